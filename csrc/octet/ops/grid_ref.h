// A grid as ops receive it: tensors that live in a module's buffers, and the bounds of the codes.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace octet {

// scale: float32, zero_point: int32, one element each.
struct GridRef {
  const at::Tensor& scale;
  const at::Tensor& zero_point;
  int64_t qmin;
  int64_t qmax;
};

}  // namespace octet
