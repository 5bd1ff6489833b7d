// The layout INT8 kernels work in, channels innermost, behind tensors of logical shape [N, C, spatial...]. Not public.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>

#include <vector>

namespace octet::detail {

// Asked several times for each block of a training step: by the strides themselves, where they are numbers.
inline bool is_channels_innermost(const at::Tensor& x) {
  if (x.dim() < 2) return false;
  if (x.unsafeGetTensorImpl()->has_symbolic_sizes_strides()) return x.movedim(1, -1).is_contiguous();
  const auto sizes = x.sizes(), strides = x.strides();
  int64_t expected = 1;
  const auto lies_next = [&](size_t dim) {
    if (sizes[dim] != 1 && strides[dim] != expected) return false;
    expected *= sizes[dim];
    return true;
  };
  if (x.numel() == 0) return true;
  if (!lies_next(1)) return false;
  for (size_t dim = sizes.size() - 1; dim > 1; --dim) {
    if (!lies_next(dim)) return false;
  }
  return lies_next(0);
}

// x with channels innermost in memory; x itself where it already is so. Its data pointer is what kernels read.
inline at::Tensor channels_innermost(const at::Tensor& x) {
  return is_channels_innermost(x) ? x : x.movedim(1, -1).contiguous().movedim(-1, 1);
}

// [batch, channels, spatial...] with channels innermost in memory: channels_last strides.
inline at::Tensor empty_channels_innermost(const c10::SymInt& batch, const c10::SymInt& channels,
                                           const std::vector<c10::SymInt>& spatial, at::TensorOptions options) {
  std::vector<c10::SymInt> sizes{batch, channels}, strides(spatial.size() + 2, 1);
  sizes.insert(sizes.end(), spatial.begin(), spatial.end());
  c10::SymInt stride = channels;
  for (size_t dim = sizes.size() - 1; dim > 1; --dim) {
    strides[dim] = stride;
    stride = stride * sizes[dim].max(1);  // as torch counts empty dimensions
  }
  strides[0] = stride;
  return at::empty_strided_symint(sizes, strides, options);
}

}  // namespace octet::detail
