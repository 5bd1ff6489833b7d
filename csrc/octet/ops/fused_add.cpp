#include "octet/ops/fused_add.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "octet/kernels/training.h"
#include "octet/ops/block_parts.h"
#include "octet/ops/common.h"
#include "octet/ops/grid_codes.h"
#include "octet/ops/nhwc.h"
#include "octet/ops/parallel.h"

namespace octet {

using at::Tensor;
using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // y, pass bits, min, max
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

constexpr const char* kOp = "add_block";

// t in memory as it must be to meet others of these strides element by element.
Tensor in_order(const Tensor& t, c10::SymIntArrayRef strides) {
  if (t.sym_strides() == strides) return t;
  return at::empty_strided_symint(t.sym_sizes(), strides, t.options()).copy_(t);
}

Forward allocate(const Tensor& a) {
  const std::vector<c10::SymInt> bytes{(a.sym_numel() + 15) / 16 * 2};
  return {at::empty_like(a), at::empty_symint(bytes, a.options().dtype(at::kByte)), at::empty({}, a.options()),
          at::empty({}, a.options())};
}

// Codes count where they lie in memory as y does.
kernels::AddOperand operand(const Tensor& x, const Tensor& codes, const Tensor& y) {
  const bool usable = codes.defined() && codes.strides() == y.strides();
  return {x.const_data_ptr<float>(), usable ? codes.const_data_ptr<uint8_t>() : nullptr};
}

Forward forward_cpu(const Tensor& raw_a, const Tensor& raw_b, double alpha, int64_t activation, const Tensor& a_scale,
                    const Tensor& a_zero_point, const Tensor& a_steps, int64_t a_qmin, int64_t a_qmax,
                    const Tensor& b_scale, const Tensor& b_zero_point, const Tensor& b_steps, int64_t b_qmin,
                    int64_t b_qmax, const Tensor& output_scale, const Tensor& output_zero_point,
                    const Tensor& output_steps, int64_t output_qmin, int64_t output_qmax, bool observe) {
  const Tensor a = detail::dense(raw_a), b = in_order(raw_b, a.sym_strides());
  auto [y, pass, min, max] = allocate(a);
  const Tensor codes = at::empty_like(y, at::kByte);
  const auto steps = [](const Tensor& t) { return static_cast<float>(detail::read_one<int32_t>(t)); };
  kernels::AddTail tail;
  tail.a = detail::read_grid(kOp, a_scale, a_zero_point, a_qmin, a_qmax);
  tail.b = detail::read_grid(kOp, b_scale, b_zero_point, b_qmin, b_qmax);
  tail.output = detail::read_grid(kOp, output_scale, output_zero_point, output_qmin, output_qmax);
  tail.alpha = static_cast<float>(alpha);
  tail.a_ratio = steps(a_steps) / steps(output_steps);
  tail.b_ratio = tail.alpha * (steps(b_steps) / steps(output_steps));
  tail.activation = detail::parse_activation(kOp, activation);
  const Tensor a_codes = detail::attached_codes(a, tail.a), b_codes = detail::attached_codes(b, tail.b);
  const Range range = kernels::add_forward(
      operand(a, a_codes, y), operand(b, b_codes, y), a.numel(), tail,
      {y.mutable_data_ptr<float>(), codes.mutable_data_ptr<uint8_t>(), pass.mutable_data_ptr<uint8_t>()},
      detail::torch_parallel);
  if (range.finite() && detail::is_channels_innermost(codes)) detail::attach_codes(y, codes, tail.output);
  *min.mutable_data_ptr<float>() = observe ? range.min : Range().min;
  *max.mutable_data_ptr<float>() = observe ? range.max : Range().max;
  return {y, pass, min, max};
}

Forward forward_meta(const Tensor& a, const Tensor&, double, int64_t, const Tensor&, const Tensor&, const Tensor&,
                     int64_t, int64_t, const Tensor&, const Tensor&, const Tensor&, int64_t, int64_t, const Tensor&,
                     const Tensor&, const Tensor&, int64_t, int64_t, bool) {
  return allocate(detail::dense(a));
}

Forward call(const Tensor& a, const Tensor& b, double alpha, int64_t activation, const GridRef& a_grid,
             const Tensor& a_steps, const GridRef& b_grid, const Tensor& b_steps, const GridRef& output,
             const Tensor& output_steps, bool observe) {
  static const auto op = detail::find_op<decltype(forward_cpu)>("_add_tail");
  return op.call(a, b, alpha, activation, a_grid.scale, a_grid.zero_point, a_steps, a_grid.qmin, a_grid.qmax,
                 b_grid.scale, b_grid.zero_point, b_steps, b_grid.qmin, b_grid.qmax, output.scale, output.zero_point,
                 output_steps, output.qmin, output.qmax, observe);
}

Tensor backward_cpu(const Tensor& grad, const Tensor& pass) {
  Tensor out = at::empty_like(grad);
  const float one = 1.0f;
  const kernels::TailGradient gradient{nullptr, &one, nullptr, nullptr};
  kernels::tail_backward(grad.const_data_ptr<float>(), pass.const_data_ptr<uint8_t>(), nullptr, gradient,
                         {grad.numel(), 1, 1}, out.mutable_data_ptr<float>(), detail::torch_parallel);
  return out;
}

Tensor backward_meta(const Tensor& grad, const Tensor&) { return at::empty_like(grad); }

Tensor masked(const Tensor& grad, const Tensor& pass) {
  static const auto op = detail::find_op<decltype(masked)>("_add_tail_backward");
  return op.call(grad, pass);
}

class FusedAdd : public torch::autograd::Function<FusedAdd> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& a, const Tensor& b, double alpha,
                               int64_t activation, const GridRef& a_grid, const Tensor& a_steps, const GridRef& b_grid,
                               const Tensor& b_steps, const GridRef& output, const Tensor& output_steps, bool observe) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [y, pass, min, max] =
        call(a, b, alpha, activation, a_grid, a_steps, b_grid, b_steps, output, output_steps, observe);
    context->save_for_backward({pass});
    context->saved_data["alpha"] = alpha;
    context->saved_data["strides"] = y.sym_strides();  // the order of the pass bits
    context->mark_non_differentiable({min, max});
    return {y, min, max};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    auto& data = context->saved_data;
    const Tensor grad = in_order(gradients[0], data["strides"].toSymIntVector());
    const Tensor passed = masked(grad, context->get_saved_variables()[0]);
    variable_list result(11);
    result[0] = passed;
    result[1] = data["alpha"].toDouble() > 0 ? passed : -passed;
    return result;
  }
};

}  // namespace

bool detail::can_fuse_add(const Tensor& a, const Tensor& b) {
  const auto fits = [](const Tensor& t) { return t.device().is_cpu() && t.scalar_type() == at::kFloat; };
  return fits(a) && fits(b) && a.sym_sizes() == b.sym_sizes();
}

ObservedResult detail::fused_add_block(const Tensor& a, const Tensor& b, double alpha, int64_t activation,
                                       const GridRef& a_grid, const Tensor& a_steps, const GridRef& b_grid,
                                       const Tensor& b_steps, const GridRef& output, const Tensor& output_steps,
                                       bool observe) {
  const variable_list r =
      FusedAdd::apply(a, b, alpha, activation, a_grid, a_steps, b_grid, b_steps, output, output_steps, observe);
  return {r[0], r[1], r[2]};
}

TORCH_LIBRARY_FRAGMENT(octet, m) {
  m.def(
      "_add_tail(Tensor a, Tensor b, float alpha, int activation, Tensor a_scale, Tensor a_zero_point, Tensor a_steps, "
      "int "
      "a_qmin, int a_qmax, Tensor b_scale, Tensor b_zero_point, Tensor b_steps, int b_qmin, int b_qmax, Tensor "
      "output_scale, Tensor output_zero_point, Tensor output_steps, int output_qmin, int output_qmax, bool observe) -> "
      "(Tensor y, Tensor pass_bits, Tensor min, Tensor max)");
  m.def("_add_tail_backward(Tensor grad, Tensor pass_bits) -> Tensor");
}

TORCH_LIBRARY_IMPL(octet, CPU, m) {
  m.impl("_add_tail", TORCH_FN(forward_cpu));
  m.impl("_add_tail_backward", TORCH_FN(backward_cpu));
}

TORCH_LIBRARY_IMPL(octet, Meta, m) {
  m.impl("_add_tail", TORCH_FN(forward_meta));
  m.impl("_add_tail_backward", TORCH_FN(backward_meta));
}

}  // namespace octet
