// fake_quantize_weight on the CPU: the ranges of the rows, their grids and the fake quantization as one op. No code is
// ever clamped, because every grid is made from the weights themselves, so that the gradient passes everywhere and
// backward keeps nothing.
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "octet/ops/common.h"
#include "octet/ops/fold.h"
#include "octet/ops/weight_rows.h"

namespace octet {

using at::Tensor;

namespace {

Tensor forward_cpu(const Tensor& raw, int64_t bits, bool per_channel) {
  return detail::WeightRows(raw, bits, per_channel).fake_quantized();
}

Tensor forward_meta(const Tensor& weight, int64_t, bool) { return at::empty_like(detail::by_rows(weight)); }

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
