// One-input functions as tables: rule 12 of docs/numerics.md.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "octet/core/grid.h"

namespace octet {

// table[q] for every u8 code q of the input grid. f takes and gives double; its result is rounded to float32 once, then
// quantized by rule 1. Codes outside [input.qmin, input.qmax] never occur; their entries are filled all the same.
template <class Function>
std::array<uint8_t, 256> make_table(const Grid& input, const Grid& output, Function f) {
  std::array<uint8_t, 256> table{};
  for (int32_t q = 0; q < 256; ++q) {
    const double y = f(static_cast<double>(dequantize(q, input)));
    table[q] = static_cast<uint8_t>(quantize(static_cast<float>(y), output));
  }
  return table;
}

}  // namespace octet
