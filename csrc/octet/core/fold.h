// From trained parameters to integer parameters, one output channel at a time: rules 4, 5 and 7 of docs/numerics.md.
// The eval forward and convert both come through here; there is no second formula.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "octet/core/grid.h"
#include "octet/core/multiplier.h"
#include "octet/core/requantize.h"
#include "octet/core/rounding.h"

namespace octet {

// Rule 4: what batch norm with running statistics does to a channel: y = gain * x + shift.
struct ChannelAffine {
  double gain = 1.0;
  double shift = 0.0;
};

inline ChannelAffine batch_norm_affine(double gamma, double beta, double mean, double variance, double epsilon) {
  const double gain = gamma / std::sqrt(variance + epsilon);
  return {gain, beta - mean * gain};
}

struct FoldedChannel {
  float multiplier = 1.0f;
  int32_t bias = 0;
  double weight_scale = 1.0;  // sw', after batch norm and snapping
  bool raised = false;        // the multiplier was too small (or the gain 0): codes are recomputed on sw'
  // The value before snapping and rounding, for gradients: gain * (acc + bias) * multiplier + shift. NaN with a NaN.
  ChannelAffine unsnapped;
};

// weight_scale: float32 scale of the channel's unfolded weight codes. bias: the convolution's own, before batch norm.
inline FoldedChannel fold_channel(float weight_scale, double bias, ChannelAffine affine, float input_scale,
                                  float output_scale) {
  const double sx = input_scale;
  const double sy = output_scale;
  const double ideal = sx * (static_cast<double>(weight_scale) * std::fabs(affine.gain)) / sy;
  FoldedChannel channel;
  channel.raised = !(ideal >= kSmallestMultiplier);
  const Multiplier multiplier = channel.raised ? Multiplier{1, kLargestDenominator} : snap_multiplier(ideal);
  channel.multiplier = multiplier.value();
  channel.weight_scale = multiplier.exact() * sy / sx;
  const double real_bias = bias * affine.gain + affine.shift;
  const double steps = round_even(real_bias / (sx * channel.weight_scale));
  const double limit = kBiasLimit;
  channel.bias = std::isnan(steps) ? 0 : static_cast<int32_t>(std::min(std::max(steps, -limit), limit));
  const double unit = ideal < kSmallestMultiplier ? sx * channel.weight_scale : ideal * sy;  // of the accumulator
  channel.unsnapped = {unit / channel.multiplier, real_bias - unit * channel.bias};
  return channel;
}

// The code of one weight. grid: the channel's weight grid before folding (symmetric).
inline int32_t fold_weight(float weight, const Grid& grid, double gain, const FoldedChannel& channel) {
  if (!channel.raised) {
    const int32_t q = quantize(weight, grid);
    return gain < 0 ? -q : q;
  }
  const double steps = round_even(static_cast<double>(weight) * gain / channel.weight_scale);
  if (std::isnan(steps)) return 0;
  return static_cast<int32_t>(
      std::min(std::max(steps, static_cast<double>(grid.qmin)), static_cast<double>(grid.qmax)));
}

}  // namespace octet
