// fake_quantize_weight on the CPU: the ranges of the rows, their grids and the fake quantization as one op. No code is
// ever clamped, because every grid is made from the weights themselves, so that the gradient passes everywhere and
// backward keeps nothing.
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <vector>

#include "octet/kernels/elementwise.h"
#include "octet/ops/common.h"
#include "octet/ops/fold.h"
#include "octet/ops/parallel.h"

namespace octet {

using at::Tensor;

namespace {

// Output channels outermost, as contiguous and channels_last weights both have them.
Tensor by_rows(const Tensor& weight) {
  const bool rows =
      weight.is_non_overlapping_and_dense() && weight.sym_stride(0) * weight.sym_size(0) == weight.sym_numel();
  return rows ? weight : weight.contiguous();
}

float scale_of(float low, float high, const GridSpec& spec) {
  if (std::isnan(low) || std::isnan(high)) return std::numeric_limits<float>::quiet_NaN();  // a diverged run shows
  return low <= high ? scale_from_range({low, high}, spec) : 1.0f;
}

Tensor forward_cpu(const Tensor& raw, int64_t bits, bool per_channel) {
  const Tensor weight = by_rows(raw);
  Tensor y = at::empty_like(weight);
  const int64_t channels = weight.size(0);
  if (weight.numel() == 0) return y;
  const GridSpec spec = weight_spec(static_cast<int>(bits));
  const kernels::ChannelLayout layout{1, per_channel ? channels : 1,
                                      per_channel ? weight.numel() / channels : weight.numel()};
  std::vector<float> low(layout.channels), high(layout.channels), scale(layout.channels);
  const std::vector<int32_t> zero_point(layout.channels, 0);
  const float* data = weight.const_data_ptr<float>();
  kernels::min_max(data, layout, low.data(), high.data(), detail::torch_parallel);
  for (int64_t c = 0; c < layout.channels; ++c) scale[c] = scale_of(low[c], high[c], spec);
  const kernels::ChannelGrids grids{scale.data(), zero_point.data(), spec.qmin, spec.qmax};
  kernels::fake_quantize(data, layout, grids, y.mutable_data_ptr<float>(), nullptr, detail::torch_parallel);
  return y;
}

Tensor forward_meta(const Tensor& weight, int64_t, bool) { return at::empty_like(by_rows(weight)); }

Tensor call(const Tensor& weight, int64_t bits, bool per_channel) {
  static const auto op = detail::find_op<decltype(call)>("_fake_quantize_weight");
  return op.call(weight, bits, per_channel);
}

class StraightThrough : public torch::autograd::Function<StraightThrough> {
 public:
  static Tensor forward(torch::autograd::AutogradContext*, const Tensor& weight, int64_t bits, bool per_channel) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call(weight, bits, per_channel);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list gradients) {
    return {gradients[0], Tensor(), Tensor()};
  }
};

Tensor forward_autograd(const Tensor& weight, int64_t bits, bool per_channel) {
  return StraightThrough::apply(weight, bits, per_channel);
}

}  // namespace

Tensor detail::fake_quantize_weight_cpu(const Tensor& weight, int64_t bits, bool per_channel) {
  return call(weight, bits, per_channel);
}

TORCH_LIBRARY_FRAGMENT(octet, m) {
  m.def("_fake_quantize_weight(Tensor weight, int bits, bool per_channel) -> Tensor");
}
TORCH_LIBRARY_IMPL(octet, CPU, m) { m.impl("_fake_quantize_weight", TORCH_FN(forward_cpu)); }
TORCH_LIBRARY_IMPL(octet, Meta, m) { m.impl("_fake_quantize_weight", TORCH_FN(forward_meta)); }
TORCH_LIBRARY_IMPL(octet, Autograd, m) { m.impl("_fake_quantize_weight", TORCH_FN(forward_autograd)); }

}  // namespace octet
