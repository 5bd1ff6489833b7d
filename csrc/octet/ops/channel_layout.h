// Dense tensors and their grids as the elementwise kernels see them. Not a public header.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "octet/kernels/elementwise.h"
#include "octet/ops/common.h"

namespace octet::detail {

// x must be dense, in any order of dimensions: whatever lies outside of the axis in memory is `outer`. No axis: one
// channel.
inline kernels::ChannelLayout channel_layout(const at::Tensor& x, std::optional<int64_t> axis) {
  const int64_t channels = axis ? x.size(*axis) : 1;
  if (channels <= 1) return {1, channels, x.numel()};
  const int64_t inner = x.stride(*axis);  // that of a dimension of size 1 would mean nothing
  return {x.numel() / (channels * inner), channels, inner};
}

// The grids of a call, checked and dense; keeps alive what grids() points to. With axis: one per channel, else one
// element.
class GridArrays {
 public:
  GridArrays(const char* op, const at::Tensor& scale, const at::Tensor& zero_point, int64_t qmin, int64_t qmax)
      : scale_(scale.contiguous()), zero_point_(zero_point.contiguous()) {
    grids_ = {scale_.const_data_ptr<float>(), zero_point_.const_data_ptr<int32_t>(), static_cast<int32_t>(qmin),
              static_cast<int32_t>(qmax)};
    for (int64_t i = 0; i < zero_point_.numel(); ++i) check_zero_point(op, grids_.zero_point[i], qmin, qmax);
  }

  const kernels::ChannelGrids& grids() const { return grids_; }

 private:
  at::Tensor scale_, zero_point_;
  kernels::ChannelGrids grids_;
};

}  // namespace octet::detail
