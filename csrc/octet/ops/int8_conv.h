// INT8 convolution and linear layer: rules 5 and 6 of docs/numerics.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace octet {

// q = clamp(round(f32(acc) * multiplier) + y_zero_point, lo, hi), acc = sum((x - x_zero_point) * weight) + bias in
// int32; padding contributes x_zero_point.
//
// x: uint8 [N, I, spatial...] in 1, 2 or 3 spatial dimensions, by the weight's; any strides, channels_last is fastest.
// weight: int8 [O, I / groups, kernel...], bias: int32 [O], multiplier: float32 [O], as fold() gives them. stride,
// padding, dilation: one entry per spatial dimension. Returns uint8 [N, O, out...] with channels innermost
// (channels_last strides). Errors: dtypes, channels that do not match, lengths, a kernel larger than the padded input,
// a reduction too long for exact accumulation (rule 5).
at::Tensor int8_conv(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                     const at::Tensor& multiplier, at::IntArrayRef stride, at::IntArrayRef padding,
                     at::IntArrayRef dilation, int64_t groups, int64_t x_zero_point, int64_t y_zero_point, int64_t lo,
                     int64_t hi);

// The same for a linear layer: x uint8 [..., I], weight int8 [O, I]. Returns uint8 [..., O], contiguous.
at::Tensor int8_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                       const at::Tensor& multiplier, int64_t x_zero_point, int64_t y_zero_point, int64_t lo,
                       int64_t hi);

}  // namespace octet
