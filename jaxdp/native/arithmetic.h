// Sums of payloads whose values are float32 or float64, and float32 on the wire as bfloat16 or float16.
#pragma once

#include <cstddef>
#include <string>

namespace jaxdp {

// How values of one kind are added and sent. Lengths are in values; ranges are equal or do not overlap.
struct Arithmetic {
  size_t payload_bytes;  // of a value in the payload
  size_t wire_bytes;     // of a value on the wire

  // out = a + b, b as it came from the wire; out may be a.
  void (*add)(void* out, const void* a, const void* b, size_t count);

  // To the wire, rounded to nearest even, and back; null where values are sent as they are.
  void (*encode)(void* wire, const void* payload, size_t count);
  void (*decode)(void* payload, const void* wire, size_t count);

  bool narrow() const { return encode != nullptr; }
};

// The arithmetic of "float32", "float64", "bfloat16" or "float16" on the wire; null if there is no such.
const Arithmetic* find_arithmetic(const std::string& wire);

}  // namespace jaxdp
