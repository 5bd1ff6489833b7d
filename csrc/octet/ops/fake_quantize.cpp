#include "octet/ops/fake_quantize.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/full.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <limits>

#include "octet/ops/channel_layout.h"
#include "octet/ops/common.h"
#include "octet/ops/observe.h"
#include "octet/ops/parallel.h"

namespace octet {

using at::Tensor;
using Axis = std::optional<int64_t>;                        // none: one grid for the whole tensor
using Result = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // y, pass bits, min, max

namespace {

// The three public ops are one internal op, octet::_fake_quantize_forward, and its gradient. keep_pass: the pass bits
// are wanted, one per element in y's order of memory, bit i % 8 of byte i / 8, in pairs of bytes (else an empty
// tensor); they are all that backward needs, so neither x nor the grid, whose buffers change between forward and
// backward, is kept. observe: min and max of x are wanted (else the empty range).

const char* op_name(Axis axis, bool observe) {
  if (observe) return "observe_and_fake_quantize";
  return axis ? "fake_quantize_per_channel" : "fake_quantize_per_tensor";
}

// Returns the axis, counted from the front.
Axis check(const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis, int64_t qmin, int64_t qmax,
           bool observe) {
  const char* op = op_name(axis, observe);
  detail::check_floating(op, "x", x);
  detail::check_bounds(op, qmin, qmax);
  if (!axis) {
    detail::check_grid(op, scale, zero_point);
    return axis;
  }
  axis = detail::check_axis(op, x, *axis);
  detail::check_channel_grids(op, x, scale, zero_point, *axis);
  return axis;
}

Tensor empty_pass(const Tensor& x, bool keep_pass) {
  return at::empty_symint({keep_pass ? (x.sym_numel() + 15) / 16 * 2 : c10::SymInt(0)}, x.options().dtype(at::kByte));
}

Result fake_quantize_cpu(const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis, int64_t qmin,
                         int64_t qmax, bool keep_pass, bool observe) {
  axis = check(x, scale, zero_point, axis, qmin, qmax, observe);
  const detail::GridArrays arrays(op_name(axis, observe), scale, zero_point, qmin, qmax);
  const Tensor input = detail::dense_float(x);
  const auto layout = detail::channel_layout(input, axis);
  Tensor y = at::empty_like(input), pass = empty_pass(input, keep_pass);
  Tensor low = at::empty({}, input.options()), high = at::empty({}, input.options());
  const auto* from = input.const_data_ptr<float>();
  auto* to = y.mutable_data_ptr<float>();
  auto* bits = keep_pass ? pass.mutable_data_ptr<uint8_t>() : nullptr;
  if (observe) {
    kernels::observe_and_fake_quantize(from, layout, arrays.grids(), to, bits, low.mutable_data_ptr<float>(),
                                       high.mutable_data_ptr<float>(), detail::torch_parallel);
  } else {
    kernels::fake_quantize(from, layout, arrays.grids(), to, bits, detail::torch_parallel);
    low.fill_(std::numeric_limits<float>::infinity());
    high.fill_(-std::numeric_limits<float>::infinity());
  }
  return {y.to(x.scalar_type()), pass, low, high};
}

Result fake_quantize_meta(const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis, int64_t qmin,
                          int64_t qmax, bool keep_pass, bool observe) {
  check(x, scale, zero_point, axis, qmin, qmax, observe);
  const auto options = x.options().dtype(at::kFloat);
  return {at::empty_like(x), empty_pass(x, keep_pass), at::empty({}, options), at::empty({}, options)};
}

Tensor bit_weights(const Tensor& like) {
  return at::pow(2, at::arange(8, like.options().dtype(at::kInt))).to(at::kByte);
}

// Any device, by plain ATen operations with the same roundings.
Result fake_quantize_any(const Tensor& raw, const Tensor& scale, const Tensor& zero_point, Axis axis, int64_t qmin,
                         int64_t qmax, bool keep_pass, bool observe) {
  axis = check(raw, scale, zero_point, axis, qmin, qmax, observe);
  const Tensor x = detail::dense(raw);
  std::vector<int64_t> shape(axis ? x.dim() : 0, 1);
  if (axis) shape[*axis] = -1;
  const Tensor s = scale.reshape(shape), z = zero_point.reshape(shape).to(at::kFloat);
  const Tensor codes = (x.to(at::kFloat) / s).round_().add_(z);
  const Tensor y = (codes.clamp(qmin, qmax) - z).mul_(s).to(x.scalar_type());
  Tensor pass = empty_pass(x, false);
  if (keep_pass) {
    const Tensor mask = codes.ge(qmin).logical_and_(codes.le(qmax)).as_strided({x.numel()}, {1}).to(at::kByte);
    const Tensor padded = at::constant_pad_nd(mask, {0, (16 - x.numel() % 16) % 16});
    pass = padded.view({-1, 8}).mul(bit_weights(x)).sum(1, false, at::kByte);
  }
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto options = x.options().dtype(at::kFloat);
  auto [low, high] =
      observe ? min_max(x) : std::tuple(at::full({}, kInfinity, options), at::full({}, -kInfinity, options));
  return {y, pass, low, high};
}

Result call_fake_quantize(const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis, int64_t qmin,
                          int64_t qmax, bool keep_pass, bool observe) {
  static const auto op = detail::find_op<decltype(fake_quantize_cpu)>("_fake_quantize_forward");
  return op.call(x, scale, zero_point, axis, qmin, qmax, keep_pass, observe);
}

// octet::_fake_quantize_backward: grad where the bit is 1, else 0. stride: y's.
Tensor backward_cpu(const Tensor& grad, const Tensor& pass, at::IntArrayRef stride) {
  Tensor g = grad.to(at::kFloat);
  if (g.strides() != stride) g = at::empty_strided(grad.sizes(), stride, g.options()).copy_(g);
  Tensor grad_x = at::empty_like(g);
  kernels::fake_quantize_backward(g.const_data_ptr<float>(), pass.const_data_ptr<uint8_t>(), g.numel(),
                                  grad_x.mutable_data_ptr<float>(), detail::torch_parallel);
  return grad_x.to(grad.scalar_type());
}

Tensor backward_meta(const Tensor& grad, const Tensor& pass, c10::SymIntArrayRef stride) {
  return at::empty_strided_symint(grad.sym_sizes(), stride, grad.options());
}

Tensor backward_any(const Tensor& grad, const Tensor& pass, c10::SymIntArrayRef stride) {
  const Tensor mask = pass.unsqueeze(1).bitwise_and(bit_weights(pass)).ne(0).view(-1);
  return at::where(mask.as_strided_symint(grad.sym_sizes(), stride), grad, 0);
}

Tensor call_backward(const Tensor& grad, const Tensor& pass, c10::SymIntArrayRef stride) {
  static const auto op = detail::find_op<decltype(backward_meta)>("_fake_quantize_backward");
  return op.call(grad, pass, stride);
}

// A second derivative is the same mask on the gradient's gradient: where one is asked for, by operations that have it.
Tensor backward_autograd(const Tensor& grad, const Tensor& pass, c10::SymIntArrayRef stride) {
  if (at::GradMode::is_enabled() && grad.requires_grad()) return backward_any(grad, pass, stride);
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_backward(grad, pass, stride);
}

class StraightThrough : public torch::autograd::Function<StraightThrough> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const Tensor& x,
                                                const Tensor& scale, const Tensor& zero_point, Axis axis, int64_t qmin,
                                                int64_t qmax, bool observe) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [y, pass, low, high] = call_fake_quantize(x, scale, zero_point, axis, qmin, qmax, true, observe);
    context->save_for_backward({pass});
    context->saved_data["stride"] = y.sym_strides();
    context->mark_non_differentiable({low, high});
    return {y, low, high};
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto stride = context->saved_data["stride"].toSymIntVector();
    torch::autograd::variable_list result(7);
    result[0] = call_backward(gradients[0], context->get_saved_variables()[0], stride);
    return result;
  }
};

std::tuple<Tensor, Tensor, Tensor> differentiable(const Tensor& x, const Tensor& scale, const Tensor& zero_point,
                                                  Axis axis, int64_t qmin, int64_t qmax, bool observe) {
  if (at::GradMode::is_enabled() && x.requires_grad()) {
    const auto result = StraightThrough::apply(x, scale, zero_point, axis, qmin, qmax, observe);
    return {result[0], result[1], result[2]};
  }
  auto [y, pass, low, high] = call_fake_quantize(x, scale, zero_point, axis, qmin, qmax, false, observe);
  return {y, low, high};
}

// The public ops. kAutocast: their kernels under autocast, where the result shall be float32 and x with it.
template <bool kAutocast>
Tensor input(const Tensor& x) {
  return kAutocast ? at::autocast::cached_cast(at::kFloat, x, x.device().type()) : x;
}

template <bool kAutocast>
Tensor per_tensor(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax) {
  return std::get<0>(differentiable(input<kAutocast>(x), scale, zero_point, std::nullopt, qmin, qmax, false));
}

template <bool kAutocast>
Tensor per_channel(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t axis, int64_t qmin,
                   int64_t qmax) {
  return std::get<0>(differentiable(input<kAutocast>(x), scale, zero_point, axis, qmin, qmax, false));
}

template <bool kAutocast>
std::tuple<Tensor, Tensor, Tensor> observing(const Tensor& x, const Tensor& scale, const Tensor& zero_point,
                                             int64_t qmin, int64_t qmax) {
  return differentiable(input<kAutocast>(x), scale, zero_point, std::nullopt, qmin, qmax, true);
}

template <bool kAutocast>
void implement(torch::Library& m) {
  m.impl("fake_quantize_per_tensor", TORCH_FN(per_tensor<kAutocast>));
  m.impl("fake_quantize_per_channel", TORCH_FN(per_channel<kAutocast>));
  m.impl("observe_and_fake_quantize", TORCH_FN(observing<kAutocast>));
}

}  // namespace

Tensor fake_quantize_per_tensor(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t qmin,
                                int64_t qmax) {
  static const auto op = detail::find_op<decltype(fake_quantize_per_tensor)>("fake_quantize_per_tensor");
  return op.call(x, scale, zero_point, qmin, qmax);
}

Tensor fake_quantize_per_channel(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t axis,
                                 int64_t qmin, int64_t qmax) {
  static const auto op = detail::find_op<decltype(fake_quantize_per_channel)>("fake_quantize_per_channel");
  return op.call(x, scale, zero_point, axis, qmin, qmax);
}

std::tuple<Tensor, Tensor, Tensor> observe_and_fake_quantize(const Tensor& x, const Tensor& scale,
                                                             const Tensor& zero_point, int64_t qmin, int64_t qmax) {
  static const auto op = detail::find_op<decltype(observe_and_fake_quantize)>("observe_and_fake_quantize");
  return op.call(x, scale, zero_point, qmin, qmax);
}

TORCH_LIBRARY_FRAGMENT(octet, m) {
  m.def("fake_quantize_per_tensor(Tensor x, Tensor scale, Tensor zero_point, int qmin, int qmax) -> Tensor");
  m.def("fake_quantize_per_channel(Tensor x, Tensor scale, Tensor zero_point, int axis, int qmin, int qmax) -> Tensor");
  m.def(
      "observe_and_fake_quantize(Tensor x, Tensor scale, Tensor zero_point, int qmin, int qmax) -> (Tensor y, Tensor "
      "min, Tensor max)");
  m.def(
      "_fake_quantize_forward(Tensor x, Tensor scale, Tensor zero_point, int? axis, int qmin, int qmax, bool "
      "keep_pass, bool "
      "observe) -> (Tensor y, Tensor pass_bits, Tensor min, Tensor max)");
  m.def("_fake_quantize_backward(Tensor grad, Tensor pass_bits, SymInt[] stride) -> Tensor");
}

TORCH_LIBRARY_IMPL(octet, CompositeImplicitAutograd, m) { implement<false>(m); }
TORCH_LIBRARY_IMPL(octet, AutocastCPU, m) { implement<true>(m); }
TORCH_LIBRARY_IMPL(octet, Autocast, m) { implement<true>(m); }

TORCH_LIBRARY_IMPL(octet, CPU, m) {
  m.impl("_fake_quantize_forward", TORCH_FN(fake_quantize_cpu));
  m.impl("_fake_quantize_backward", TORCH_FN(backward_cpu));
}

TORCH_LIBRARY_IMPL(octet, Meta, m) {
  m.impl("_fake_quantize_forward", TORCH_FN(fake_quantize_meta));
  m.impl("_fake_quantize_backward", TORCH_FN(backward_meta));
}

TORCH_LIBRARY_IMPL(octet, CompositeExplicitAutograd, m) {
  m.impl("_fake_quantize_forward", TORCH_FN(fake_quantize_any));
  m.impl("_fake_quantize_backward", TORCH_FN(backward_any));
}

TORCH_LIBRARY_IMPL(octet, Autograd, m) {
  m.impl("_fake_quantize_forward", TORCH_FN(detail::NonDifferentiable<call_fake_quantize>::call));
  m.impl("_fake_quantize_backward", TORCH_FN(backward_autograd));
}

}  // namespace octet
