// The windows of pooling layers, checked, as the kernels want them. Not a public header.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "octet/kernels/pool.h"

namespace octet::detail {

struct Windows {
  at::IntArrayRef kernel_size, stride, padding, dilation;
  bool ceil_mode;
  bool count_include_pad = true;
};

// x must have 2 dimensions more than there are windows, 1 to 3.
void check_pooled(const char* op, const at::Tensor& x, size_t rank);

// The output's spatial sizes; what does not fit is refused in the name of `op`.
std::vector<c10::SymInt> pooled_sizes(const char* op, const at::Tensor& x, const Windows& windows);

// x's sizes, one window over one position on every axis.
kernels::PoolShape unit_pool_shape(const at::Tensor& x);

kernels::PoolShape pool_shape(const at::Tensor& x, const Windows& windows);

}  // namespace octet::detail
