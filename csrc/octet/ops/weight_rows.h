// A float32 weight on the CPU and the grids of its codes, row by row. Not a public header.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "octet/kernels/elementwise.h"

namespace octet::detail {

// Output channels outermost in memory, as contiguous and channels_last weights both have them.
at::Tensor by_rows(const at::Tensor& weight);

class WeightRows {
 public:
  WeightRows(const at::Tensor& weight, int64_t bits, bool per_channel);

  const at::Tensor& rows() const { return rows_; }
  const kernels::ChannelLayout& layout() const { return layout_; }  // one channel if not per_channel
  kernels::ChannelGrids grids() const { return {scale_.data(), zero_point_.data(), qmin_, qmax_}; }
  float scale(int64_t channel) const {
    return scale_[layout_.channels == 1 ? 0 : channel];
  }  // NaN where the row has one

 private:
  at::Tensor rows_;
  kernels::ChannelLayout layout_;
  std::vector<float> scale_;
  std::vector<int32_t> zero_point_;
  int32_t qmin_, qmax_;
};

}  // namespace octet::detail
