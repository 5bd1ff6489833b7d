// From floats to codes and back: rule 1 of docs/numerics.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace octet {

// Codes clamp(round(x / scale) + zero_point, qmin, qmax), halves to even. NaN gives zero_point, infinities saturate.
//
// x: any shape, floating point, met in float32. scale: float32, zero_point: int32, one element each. dtype: uint8 or
// int8, which must hold [qmin, qmax]. Returns x's shape and strides. No gradient.
at::Tensor quantize_per_tensor(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point, int64_t qmin,
                               int64_t qmax, at::ScalarType dtype);

// The same with a grid for every index along axis: scale and zero_point have shape [x.size(axis)].
at::Tensor quantize_per_channel(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                                int64_t axis, int64_t qmin, int64_t qmax, at::ScalarType dtype);

// scale * (q - zero_point) in float32; q: uint8 or int8, any shape. Returns q's shape and strides.
at::Tensor dequantize_per_tensor(const at::Tensor& q, const at::Tensor& scale, const at::Tensor& zero_point);

at::Tensor dequantize_per_channel(const at::Tensor& q, const at::Tensor& scale, const at::Tensor& zero_point,
                                  int64_t axis);

}  // namespace octet
