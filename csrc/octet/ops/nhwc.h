// The layout INT8 kernels work in, channels innermost, behind tensors of logical shape [N, C, spatial...]. Not public.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <vector>

namespace octet::detail {

inline bool is_channels_innermost(const at::Tensor& x) { return x.dim() >= 2 && x.movedim(1, -1).is_contiguous(); }

// x with channels innermost in memory; a view where it already is so. Its data pointer is what kernels read.
inline at::Tensor channels_innermost(const at::Tensor& x) { return x.movedim(1, -1).contiguous().movedim(-1, 1); }

// [batch, channels, spatial...] with channels innermost in memory: channels_last strides.
inline at::Tensor empty_channels_innermost(const c10::SymInt& batch, const c10::SymInt& channels,
                                           const std::vector<c10::SymInt>& spatial, at::TensorOptions options) {
  std::vector<c10::SymInt> shape{batch};
  shape.insert(shape.end(), spatial.begin(), spatial.end());
  shape.push_back(channels);
  return at::empty_symint(shape, options).movedim(-1, 1);
}

}  // namespace octet::detail
