// A convolution's arguments as the kernels want them. Not a public header.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "octet/kernels/conv.h"

namespace octet::detail {

// The spatial sizes of the result in 1, 2 or 3 dimensions, by the weight's; what does not fit is refused in the name of
// `op`. stride, padding and dilation must have an entry for each dimension.
std::vector<c10::SymInt> conv_output_sizes(const char* op, const at::Tensor& x, const at::Tensor& weight,
                                           at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                           int64_t groups);

// y: the result, for its sizes.
kernels::ConvShape conv_shape(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& y,
                              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                              int64_t groups);

}  // namespace octet::detail
