#include "arithmetic.h"

#include <cstdint>
#include <cstring>

#include "vectorised.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace jaxdp {
namespace {

// Conversion to IEEE 754 binary16 for CPUs without an instruction for it; the bits are the same as the hardware's.
uint16_t to_float16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00 | ((magnitude >> 13) & 0x1ff));
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to 65536 or more
  if (magnitude < 0x38800000) {
    // Below the smallest normal number the last place is 2^-24: adding 0.5 makes the hardware round there.
    const float shifted = value_of(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of(shifted) - 0x3f000000));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
}

float from_float16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  if (magnitude > 0x7c00) return value_of(sign | 0x7fc00000 | (magnitude << 13));
  if (magnitude == 0x7c00) return value_of(sign | 0x7f800000);
  if (magnitude < 0x400) return value_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-24f));
  return value_of(sign | ((magnitude << 13) + 0x38000000));
}

JAXDP_VECTORISED void add_float32(void* out, const void* a, const void* b, size_t count) {
  auto* sum = static_cast<float*>(out);
  auto* one = static_cast<const float*>(a);
  auto* other = static_cast<const float*>(b);
  for (size_t i = 0; i < count; ++i) sum[i] = one[i] + other[i];
}

JAXDP_VECTORISED void add_float64(void* out, const void* a, const void* b, size_t count) {
  auto* sum = static_cast<double*>(out);
  auto* one = static_cast<const double*>(a);
  auto* other = static_cast<const double*>(b);
  for (size_t i = 0; i < count; ++i) sum[i] = one[i] + other[i];
}

JAXDP_VECTORISED void add_bfloat16(void* out, const void* a, const void* b, size_t count) {
  auto* sum = static_cast<float*>(out);
  auto* one = static_cast<const float*>(a);
  auto* other = static_cast<const uint16_t*>(b);
  for (size_t i = 0; i < count; ++i) sum[i] = one[i] + from_bfloat16(other[i]);
}

JAXDP_VECTORISED void encode_bfloat16(void* wire, const void* payload, size_t count) {
  auto* half = static_cast<uint16_t*>(wire);
  auto* value = static_cast<const float*>(payload);
  for (size_t i = 0; i < count; ++i) half[i] = to_bfloat16(value[i]);
}

JAXDP_VECTORISED void decode_bfloat16(void* payload, const void* wire, size_t count) {
  auto* value = static_cast<float*>(payload);
  auto* half = static_cast<const uint16_t*>(wire);
  for (size_t i = 0; i < count; ++i) value[i] = from_bfloat16(half[i]);
}

// Process eight values at a time with the CPU's conversion instructions, and return how many were processed.
#if defined(__x86_64__)
__attribute__((target("avx,f16c"))) size_t encode_by_f16c(uint16_t* half, const float* value, size_t count) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(value + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(half + i), halves);
  }
  return i;
}

__attribute__((target("avx,f16c"))) size_t decode_by_f16c(float* value, const uint16_t* half, size_t count) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(half + i));
    _mm256_storeu_ps(value + i, _mm256_cvtph_ps(halves));
  }
  return i;
}

__attribute__((target("avx,f16c"))) size_t add_by_f16c(float* sum, const float* a, const uint16_t* b, size_t count) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 other = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i)));
    _mm256_storeu_ps(sum + i, _mm256_add_ps(_mm256_loadu_ps(a + i), other));
  }
  return i;
}

const bool has_f16c = __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");
#else
size_t encode_by_f16c(uint16_t*, const float*, size_t) { return 0; }
size_t decode_by_f16c(float*, const uint16_t*, size_t) { return 0; }
size_t add_by_f16c(float*, const float*, const uint16_t*, size_t) { return 0; }
const bool has_f16c = false;
#endif

void add_float16(void* out, const void* a, const void* b, size_t count) {
  auto* sum = static_cast<float*>(out);
  auto* one = static_cast<const float*>(a);
  auto* other = static_cast<const uint16_t*>(b);
  for (size_t i = has_f16c ? add_by_f16c(sum, one, other, count) : 0; i < count; ++i) {
    sum[i] = one[i] + from_float16(other[i]);
  }
}

void encode_float16(void* wire, const void* payload, size_t count) {
  auto* half = static_cast<uint16_t*>(wire);
  auto* value = static_cast<const float*>(payload);
  for (size_t i = has_f16c ? encode_by_f16c(half, value, count) : 0; i < count; ++i) half[i] = to_float16(value[i]);
}

void decode_float16(void* payload, const void* wire, size_t count) {
  auto* value = static_cast<float*>(payload);
  auto* half = static_cast<const uint16_t*>(wire);
  for (size_t i = has_f16c ? decode_by_f16c(value, half, count) : 0; i < count; ++i) value[i] = from_float16(half[i]);
}

constexpr Arithmetic kFloat32 = {4, 4, add_float32, nullptr, nullptr};
constexpr Arithmetic kFloat64 = {8, 8, add_float64, nullptr, nullptr};
constexpr Arithmetic kBfloat16 = {4, 2, add_bfloat16, encode_bfloat16, decode_bfloat16};
constexpr Arithmetic kFloat16 = {4, 2, add_float16, encode_float16, decode_float16};

}  // namespace

const Arithmetic* find_arithmetic(const std::string& wire) {
  if (wire == "float32") return &kFloat32;
  if (wire == "float64") return &kFloat64;
  if (wire == "bfloat16") return &kBfloat16;
  if (wire == "float16") return &kFloat16;
  return nullptr;
}

}  // namespace jaxdp
