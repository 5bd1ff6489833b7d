#include "octet/ops/weight_rows.h"

#include <ATen/ops/empty_like.h>

#include "octet/kernels/elementwise.h"
#include "octet/ops/parallel.h"

namespace octet::detail {

using at::Tensor;

Tensor by_rows(const Tensor& weight) {
  const bool rows =
      weight.is_non_overlapping_and_dense() && weight.sym_stride(0) * weight.sym_size(0) == weight.sym_numel();
  return rows ? weight : weight.contiguous();
}

kernels::WeightOrder weight_order(const Tensor& codes) {
  return codes.is_contiguous() ? kernels::WeightOrder::kTapsInnermost : kernels::WeightOrder::kChannelsInnermost;
}

WeightRows::WeightRows(const Tensor& weight, int64_t bits, bool per_channel)
    : rows_(by_rows(weight)),
      spec_(weight_spec(static_cast<int>(bits))),
      scale_(per_channel ? static_cast<size_t>(weight.size(0)) : 1) {}

Tensor WeightRows::codes() {
  Tensor codes = at::empty_like(rows_, at::kChar);
  quantize(codes.mutable_data_ptr<int8_t>(), nullptr);
  return codes;
}

Tensor WeightRows::fake_quantized() {
  Tensor values = at::empty_like(rows_);
  quantize(nullptr, values.mutable_data_ptr<float>());
  return values;
}

void WeightRows::quantize(int8_t* codes, float* values) {
  const auto* x = rows_.const_data_ptr<float>();
  const auto count = static_cast<int64_t>(scale_.size()), n = rows_.numel() / std::max<int64_t>(1, count);
  if (count != 1) return kernels::quantize_rows(x, count, n, spec_, scale_.data(), codes, values, torch_parallel);
  // One grid for all: threads share the row, which no cache holds.
  Range range;
  const kernels::ChannelLayout layout{1, 1, n};
  kernels::min_max(x, layout, &range.min, &range.max, torch_parallel);
  scale_[0] = scale_from_any_range(range, spec_);
  const int32_t zero = 0;
  const kernels::ChannelGrids grid{scale_.data(), &zero, spec_.qmin, spec_.qmax};
  if (codes) kernels::quantize(x, layout, grid, codes, torch_parallel);
  if (values) kernels::fake_quantize(x, layout, grid, values, nullptr, torch_parallel);
}

}  // namespace octet::detail
