// Fake quantization: rules 1 and 2 of docs/numerics.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>

namespace octet {

// scale * (q - zero_point) with q = clamp(round(x / scale) + zero_point, qmin, qmax): bit for bit
// dequantize(quantize(x)).
//
// x: any shape, float32, float16, bfloat16 or float64; met by the grid in float32. scale: float32, zero_point: int32,
// one element each. Returns x's shape, dtype and strides; under autocast float32, because a bfloat16 value can be off
// its grid. Gradient: straight through, 1 where the code was not clamped, else 0 (also for NaN and infinities); none
// for the grid. NaN passes, infinities saturate. Errors: x not floating point, wrong dtype or length of scale and
// zero_point, bad bounds.
at::Tensor fake_quantize_per_tensor(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                                    int64_t qmin, int64_t qmax);

// The same with a grid for every index along axis: scale and zero_point have shape [x.size(axis)].
at::Tensor fake_quantize_per_channel(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                                     int64_t axis, int64_t qmin, int64_t qmax);

// fake_quantize_per_tensor(x) and min_max(x): what a training forward needs. The range has no gradient.
std::tuple<at::Tensor, at::Tensor, at::Tensor> observe_and_fake_quantize(const at::Tensor& x, const at::Tensor& scale,
                                                                         const at::Tensor& zero_point, int64_t qmin,
                                                                         int64_t qmax);

}  // namespace octet
