// Grids: rules 1 to 3 of docs/numerics.md.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "octet/core/rounding.h"

namespace octet {

// What a grid looks like before a range is known.
struct GridSpec {
  int32_t qmin = 0;
  int32_t qmax = 255;
  bool symmetric = false;  // zero point in the middle, the lowest code unused
};

// The quantization parameters of one tensor (or one channel): r = scale * (q - zero_point), qmin <= q <= qmax.
struct Grid {
  float scale = 1.0f;
  int32_t zero_point = 0;
  int32_t qmin = 0;
  int32_t qmax = 255;

  bool operator==(const Grid&) const = default;
};

struct Range {
  float min = std::numeric_limits<float>::infinity();  // an empty range: nothing observed
  float max = -std::numeric_limits<float>::infinity();

  bool empty() const { return !(min <= max); }
  bool finite() const { return std::isfinite(min) && std::isfinite(max); }
};

// The scale of a degenerate range (all zeros). Small enough never to coarsen real data, large enough that products of
// two scales are normal floats. The upper bound keeps scale * 255 finite.
inline constexpr float kSmallestScale = 0x1p-40f;
inline constexpr float kLargestScale = 0x1p119f;

// Unsigned activation codes of `bits` bits, 2 <= bits <= 8. Symmetric: [1, 2^bits - 1] around 2^(bits - 1).
constexpr GridSpec activation_spec(int bits, bool symmetric) { return {symmetric ? 1 : 0, (1 << bits) - 1, symmetric}; }

// Signed symmetric weight codes of `bits` bits, 2 <= bits <= 8, narrow range: never -2^(bits - 1).
constexpr GridSpec weight_spec(int bits) { return {-((1 << (bits - 1)) - 1), (1 << (bits - 1)) - 1, true}; }

inline float clamp_scale(float scale) { return std::min(std::max(scale, kSmallestScale), kLargestScale); }

// Rule 3, the scale alone. Each operation is rounded to float32. The range must be finite and is widened to include 0.
inline float scale_from_range(Range range, const GridSpec& spec) {
  const float low = std::min(range.min, 0.0f);
  const float high = std::max(range.max, 0.0f);
  if (spec.symmetric) {
    const int32_t half = (spec.qmax - spec.qmin) / 2;
    return clamp_scale(std::max(-low, high) / static_cast<float>(half));
  }
  return clamp_scale((high - low) / static_cast<float>(spec.qmax - spec.qmin));
}

// The same where the range may be nothing (the scale is 1) or not a number (it is NaN, so that a diverged run shows).
inline float scale_from_any_range(Range range, const GridSpec& spec) {
  if (std::isnan(range.min) || std::isnan(range.max)) return std::numeric_limits<float>::quiet_NaN();
  return range.empty() ? 1.0f : scale_from_range(range, spec);
}

// Rule 3, the zero point for a scale that is already known (rule 9 changes scales after they were computed).
inline int32_t zero_point_for(float scale, Range range, const GridSpec& spec) {
  if (spec.symmetric) return (spec.qmin + spec.qmax) / 2;
  const float low = std::min(range.min, 0.0f);
  const float zero = static_cast<float>(spec.qmin) - low / scale;
  return round_and_clamp(zero, 0, spec.qmin, spec.qmax);
}

inline Grid grid_from_range(Range range, const GridSpec& spec) {
  const float scale = scale_from_range(range, spec);
  return {scale, zero_point_for(scale, range, spec), spec.qmin, spec.qmax};
}

// Rule 1. NaN gives the zero point.
inline int32_t quantize(float x, const Grid& grid) {
  const float steps = x / grid.scale;
  if (std::isnan(steps)) return grid.zero_point;
  return round_and_clamp(steps, grid.zero_point, grid.qmin, grid.qmax);
}

inline float dequantize(int32_t q, const Grid& grid) { return grid.scale * static_cast<float>(q - grid.zero_point); }

// Rule 2. NaN passes, so that a diverged run shows.
inline float fake_quantize(float x, const Grid& grid) {
  return std::isnan(x) ? x : dequantize(quantize(x, grid), grid);
}

// Rule 2, the straight-through gradient: true where the code was not clamped. False for NaN and infinities.
inline bool passes_gradient(float x, const Grid& grid) {
  const float q = round_even(x / grid.scale);
  return q >= static_cast<float>(grid.qmin - grid.zero_point) && q <= static_cast<float>(grid.qmax - grid.zero_point);
}

}  // namespace octet
