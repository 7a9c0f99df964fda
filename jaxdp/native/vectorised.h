// Support for loops that the compiler vectorises, with bfloat16 values in them.

#pragma once

#include <cstdint>
#include <cstring>

// Compiles a function once per CPU type; the version is chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define JAXDP_VECTORISED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define JAXDP_VECTORISED
#endif

namespace jaxdp {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float value_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  // Rounding could turn a NaN into infinity or zero, so the NaN is made quiet instead.
  const uint32_t not_a_number = (bits >> 16) | 0x40;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? not_a_number : rounded);
}

inline float from_bfloat16(uint16_t half) { return value_of(static_cast<uint32_t>(half) << 16); }

// Read and write array elements; a uint16_t is a bfloat16.
inline float number(float value) { return value; }
inline float number(uint16_t value) { return from_bfloat16(value); }
inline void put(float value, float& to) { to = value; }
inline void put(float value, uint16_t& to) { to = to_bfloat16(value); }

}  // namespace jaxdp
