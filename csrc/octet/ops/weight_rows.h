// A float32 weight on the CPU, quantized row by row on grids made from the rows themselves. Not a public header.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "octet/core/grid.h"
#include "octet/kernels/conv.h"

namespace octet::detail {

// Output channels outermost in memory, as contiguous and channels_last weights both have them.
at::Tensor by_rows(const at::Tensor& weight);

// In which order the codes of a convolution's weight, laid out by_rows, lie in memory.
kernels::WeightOrder weight_order(const at::Tensor& codes);

class WeightRows {
 public:
  WeightRows(const at::Tensor& weight, int64_t bits, bool per_channel);

  const at::Tensor& rows() const { return rows_; }
  // int8 or float32, laid out as rows(); each of them also finds the scales.
  at::Tensor codes();
  at::Tensor fake_quantized();
  // Once one of these was called: NaN where the row (or, if not per_channel, the weight) has one.
  float scale(int64_t channel) const { return scale_[scale_.size() == 1 ? 0 : channel]; }

 private:
  void quantize(int8_t* codes, float* values);

  at::Tensor rows_;
  GridSpec spec_;
  std::vector<float> scale_;  // one if not per_channel
};

}  // namespace octet::detail
