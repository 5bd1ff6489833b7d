// From accumulators to codes: rules 5, 6, 8 and 10 of docs/numerics.md.
#pragma once

#include <algorithm>
#include <cstdint>

#include "octet/core/grid.h"
#include "octet/core/rounding.h"

namespace octet {

enum class Activation : int32_t { kIdentity = 0, kRelu = 1, kRelu6 = 2 };

// The codes an operator may produce: [lo, hi].
struct CodeBounds {
  int32_t lo = 0;
  int32_t hi = 255;
};

// Rule 6: an activation is a clamp of the output codes.
inline CodeBounds activation_bounds(Activation activation, const Grid& grid) {
  CodeBounds bounds{grid.qmin, grid.qmax};
  if (activation == Activation::kIdentity) return bounds;
  bounds.lo = std::max(grid.qmin, grid.zero_point);
  if (activation == Activation::kRelu6) {
    bounds.hi = round_and_clamp(6.0f / grid.scale, grid.zero_point, grid.qmin, grid.qmax);
  }
  return bounds;
}

// Rule 6. Two roundings: the product to float32, then to an integer.
inline int32_t requantize(int32_t acc, float multiplier, int32_t zero_point, CodeBounds bounds) {
  const float product = static_cast<float>(acc) * multiplier;
  return round_and_clamp(product, zero_point, bounds.lo, bounds.hi);
}

// Rule 10. a and b are codes less their zero points; the ratios are n_a/n_c and +-n_b/n_c in float32.
inline int32_t add_codes(int32_t a, float ratio_a, int32_t b, float ratio_b, int32_t zero_point, CodeBounds bounds) {
  const float scaled_a = static_cast<float>(a) * ratio_a;
  const float scaled_b = static_cast<float>(b) * ratio_b;
  return round_and_clamp(scaled_a + scaled_b, zero_point, bounds.lo, bounds.hi);
}

// Rule 5: the largest |acc| an operator over `taps` products may reach without its bias. float32 requantization and
// int32 accumulation both need it below the limit; prepare refuses operators that exceed it.
inline constexpr int64_t kAccumulatorLimit = (int64_t{1} << 30) - (int64_t{1} << 21);
inline constexpr int32_t kBiasLimit = 1 << 30;

inline bool accumulator_fits(int64_t taps, int32_t largest_activation, int32_t largest_weight) {
  return taps * largest_activation * largest_weight < kAccumulatorLimit;
}

}  // namespace octet
