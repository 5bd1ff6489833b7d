#include "octet/ops/weight_rows.h"

#include <cmath>
#include <limits>

#include "octet/core/grid.h"
#include "octet/ops/parallel.h"

namespace octet::detail {

using at::Tensor;

namespace {

float scale_of(float low, float high, const GridSpec& spec) {
  if (std::isnan(low) || std::isnan(high)) return std::numeric_limits<float>::quiet_NaN();  // a diverged run shows
  return low <= high ? scale_from_range({low, high}, spec) : 1.0f;
}

}  // namespace

Tensor by_rows(const Tensor& weight) {
  const bool rows =
      weight.is_non_overlapping_and_dense() && weight.sym_stride(0) * weight.sym_size(0) == weight.sym_numel();
  return rows ? weight : weight.contiguous();
}

WeightRows::WeightRows(const Tensor& weight, int64_t bits, bool per_channel) : rows_(by_rows(weight)) {
  const GridSpec spec = weight_spec(static_cast<int>(bits));
  const int64_t channels = per_channel ? weight.size(0) : 1;
  layout_ = {1, channels, channels == 0 ? 0 : weight.numel() / channels};
  std::vector<float> low(channels), high(channels);
  kernels::min_max(rows_.const_data_ptr<float>(), layout_, low.data(), high.data(), torch_parallel);
  scale_.resize(channels);
  for (int64_t c = 0; c < channels; ++c) scale_[c] = scale_of(low[c], high[c], spec);
  zero_point_.assign(channels, 0);
  qmin_ = spec.qmin;
  qmax_ = spec.qmax;
}

}  // namespace octet::detail
