// INT8 pooling: rules 8 and 9a of docs/numerics.md. The arguments are those of torch.nn's pooling layers, one entry per
// spatial dimension; x: uint8 [N, C, spatial...] with 1 to 3 spatial dimensions; results have channels innermost
// (channels_last).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace octet {

// Average over windows from grid (x_scale, x_zero_point) to grid (y_scale, y_zero_point), clamped to [lo, hi].
// divisor_override: 0 for none. Scales hold float32 values.
at::Tensor int8_avg_pool(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                         at::IntArrayRef padding, bool ceil_mode, bool count_include_pad, int64_t divisor_override,
                         double x_scale, int64_t x_zero_point, double y_scale, int64_t y_zero_point, int64_t lo,
                         int64_t hi);

// Average over windows that divide the input into output_size parts; {1, 1} is the global mean.
at::Tensor int8_adaptive_avg_pool(const at::Tensor& x, at::IntArrayRef output_size, double x_scale,
                                  int64_t x_zero_point, double y_scale, int64_t y_zero_point, int64_t lo, int64_t hi);

// Maximum over windows; the result is on x's grid, and padding never wins.
at::Tensor int8_max_pool(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                         at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode);

}  // namespace octet
