// Adds payloads of float32 or float64 values, and converts float32 to bfloat16 or float16 on the wire.
#pragma once

#include <cstddef>
#include <string>

namespace jaxdp {

// How values of one type are added and sent. Lengths are in values. Memory ranges are identical or do not overlap.
struct Arithmetic {
  size_t payload_bytes;  // size of a value in the payload
  size_t wire_bytes;     // size of a value on the wire

  // out = a + b, where b is in wire format; out may be a.
  void (*add)(void* out, const void* a, const void* b, size_t count);

  // Convert to the wire format, rounding to nearest even, and back. Null if values are sent unchanged.
  void (*encode)(void* wire, const void* payload, size_t count);
  void (*decode)(void* payload, const void* wire, size_t count);

  bool narrow() const { return encode != nullptr; }
};

// Returns the arithmetic for "float32", "float64", "bfloat16" or "float16" on the wire; null for any other name.
const Arithmetic* find_arithmetic(const std::string& wire);

}  // namespace jaxdp
