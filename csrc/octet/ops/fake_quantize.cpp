#include "octet/ops/fake_quantize.h"

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "octet/ops/common.h"
#include "octet/ops/observe.h"

namespace octet {

using at::Tensor;
using Axis = std::optional<int64_t>;  // none: one grid for the whole tensor

namespace {

const char* op_name(Axis axis) { return axis ? "fake_quantize_per_channel" : "fake_quantize_per_tensor"; }

// Returns the axis, counted from the front.
Axis check(const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis, int64_t qmin, int64_t qmax) {
  const char* op = op_name(axis);
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

// One run of elements on one grid. mask may be null.
void fake_quantize_run(const float* x, float* y, bool* mask, int64_t count, const Grid& grid) {
  for (int64_t i = 0; i < count; ++i) y[i] = fake_quantize(x[i], grid);
  if (mask == nullptr) return;
  for (int64_t i = 0; i < count; ++i) mask[i] = passes_gradient(x[i], grid);
}

void fake_quantize_dense(const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis, int64_t qmin,
                         int64_t qmax, float* y, bool* mask) {
  const float* data = x.const_data_ptr<float>();
  const auto at_offset = [&](int64_t i) { return mask == nullptr ? nullptr : mask + i; };
  if (!axis) {
    const Grid grid = detail::read_grid(op_name(axis), scale, zero_point, qmin, qmax);
    at::parallel_for(0, x.numel(), detail::kGrain, [&](int64_t begin, int64_t end) {
      fake_quantize_run(data + begin, y + begin, at_offset(begin), end - begin, grid);
    });
    return;
  }
  if (x.numel() == 0) return;
  const detail::ChannelLayout layout(x, *axis);
  const Tensor scales = scale.contiguous(), zeros = zero_point.contiguous();
  const float* s = scales.const_data_ptr<float>();
  const int32_t* z = zeros.const_data_ptr<int32_t>();
  for (int64_t c = 0; c < layout.channels; ++c) detail::check_zero_point(op_name(axis), z[c], qmin, qmax);
  const int64_t runs = x.numel() / layout.inner;
  at::parallel_for(0, runs, detail::kGrain / layout.inner + 1, [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) {
      const int64_t c = run % layout.channels, i = run * layout.inner;
      const Grid grid{s[c], z[c], static_cast<int32_t>(qmin), static_cast<int32_t>(qmax)};
      fake_quantize_run(data + i, y + i, at_offset(i), layout.inner, grid);
    }
  });
}

// y, and where the gradient passes: bool, x's shape and strides. Without a mask for inference.
template <bool kMask>
std::tuple<Tensor, Tensor> fake_quantize_cpu(const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis,
                                             int64_t qmin, int64_t qmax) {
  axis = check(x, scale, zero_point, axis, qmin, qmax);
  const Tensor input = detail::dense_float(x);
  Tensor y = at::empty_like(input);
  Tensor mask = kMask ? at::empty_like(input, at::kBool) : Tensor();
  fake_quantize_dense(input, scale, zero_point, axis, qmin, qmax, y.mutable_data_ptr<float>(),
                      kMask ? mask.mutable_data_ptr<bool>() : nullptr);
  return {y.to(x.scalar_type()), mask};
}

template <bool kMask>
std::tuple<Tensor, Tensor> fake_quantize_meta(const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis,
                                              int64_t qmin, int64_t qmax) {
  check(x, scale, zero_point, axis, qmin, qmax);
  return {at::empty_like(x), kMask ? at::empty_like(x, at::kBool) : Tensor()};
}

// Any device, by plain ATen operations with the same roundings.
template <bool kMask>
std::tuple<Tensor, Tensor> fake_quantize_any(const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis,
                                             int64_t qmin, int64_t qmax) {
  axis = check(x, scale, zero_point, axis, qmin, qmax);
  std::vector<int64_t> shape(axis ? x.dim() : 0, 1);
  if (axis) shape[*axis] = -1;
  const Tensor s = scale.reshape(shape), z = zero_point.reshape(shape).to(at::kFloat);
  const Tensor codes = (x.to(at::kFloat) / s).round_().add_(z);
  const Tensor y = (codes.clamp(qmin, qmax) - z).mul_(s).to(x.scalar_type());
  return {y, kMask ? codes.ge(qmin).logical_and_(codes.le(qmax)) : Tensor()};
}

// The internal op that autograd runs: schema octet::_fake_quantize.
std::tuple<Tensor, Tensor> fake_quantize_masked(const Tensor& x, const Tensor& scale, const Tensor& zero_point,
                                                Axis axis, int64_t qmin, int64_t qmax) {
  static const auto op = detail::find_op<decltype(fake_quantize_masked)>("_fake_quantize");
  return op.call(x, scale, zero_point, axis, qmin, qmax);
}

// Keeps the mask, not x and the grid: the grid's buffers change between forward and backward.
class StraightThrough : public torch::autograd::Function<StraightThrough> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, const Tensor& scale,
                        const Tensor& zero_point, Axis axis, int64_t qmin, int64_t qmax) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [y, mask] = fake_quantize_masked(x, scale, zero_point, axis, qmin, qmax);
    context->save_for_backward({mask});
    return y;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const Tensor mask = context->get_saved_variables()[0];
    return {at::where(mask, gradients[0], 0), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor call(const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis, int64_t qmin, int64_t qmax) {
  return axis ? fake_quantize_per_channel(x, scale, zero_point, *axis, qmin, qmax)
              : fake_quantize_per_tensor(x, scale, zero_point, qmin, qmax);
}

Tensor fake_quantize_autograd(const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis, int64_t qmin,
                              int64_t qmax) {
  if (at::GradMode::is_enabled() && x.requires_grad()) {
    return StraightThrough::apply(x, scale, zero_point, axis, qmin, qmax);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call(x, scale, zero_point, axis, qmin, qmax);
}

Tensor fake_quantize_autocast(const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis, int64_t qmin,
                              int64_t qmax) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::autocast_dispatch_keyset);
  return call(at::autocast::cached_cast(at::kFloat, x, x.device().type()), scale, zero_point, axis, qmin, qmax);
}

// The two public schemas over one implementation.
template <auto Implementation>
Tensor per_tensor(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax) {
  if constexpr (std::is_same_v<decltype(Implementation(x, scale, zero_point, Axis(), qmin, qmax)), Tensor>) {
    return Implementation(x, scale, zero_point, std::nullopt, qmin, qmax);
  } else {
    return std::get<0>(Implementation(x, scale, zero_point, std::nullopt, qmin, qmax));
  }
}

template <auto Implementation>
Tensor per_channel(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t axis, int64_t qmin,
                   int64_t qmax) {
  if constexpr (std::is_same_v<decltype(Implementation(x, scale, zero_point, Axis(), qmin, qmax)), Tensor>) {
    return Implementation(x, scale, zero_point, axis, qmin, qmax);
  } else {
    return std::get<0>(Implementation(x, scale, zero_point, axis, qmin, qmax));
  }
}

template <auto Implementation>
void implement(torch::Library& m) {
  m.impl("fake_quantize_per_tensor", TORCH_FN(per_tensor<Implementation>));
  m.impl("fake_quantize_per_channel", TORCH_FN(per_channel<Implementation>));
}

std::tuple<Tensor, Tensor, Tensor> observe_and_fake_quantize_composite(const Tensor& x, const Tensor& scale,
                                                                       const Tensor& zero_point, int64_t qmin,
                                                                       int64_t qmax) {
  Tensor y = fake_quantize_per_tensor(x, scale, zero_point, qmin, qmax);
  auto [low, high] = min_max(x);
  return {y, low, high};
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
  m.def("_fake_quantize(Tensor x, Tensor scale, Tensor zero_point, int? axis, int qmin, int qmax) -> (Tensor, Tensor)");
  m.def(
      "observe_and_fake_quantize(Tensor x, Tensor scale, Tensor zero_point, int qmin, int qmax) -> (Tensor y, Tensor "
      "min, Tensor max)",
      TORCH_FN(observe_and_fake_quantize_composite));
}

TORCH_LIBRARY_IMPL(octet, CPU, m) {
  implement<fake_quantize_cpu<false>>(m);
  m.impl("_fake_quantize", TORCH_FN(fake_quantize_cpu<true>));
}

TORCH_LIBRARY_IMPL(octet, Meta, m) {
  implement<fake_quantize_meta<false>>(m);
  m.impl("_fake_quantize", TORCH_FN(fake_quantize_meta<true>));
}

TORCH_LIBRARY_IMPL(octet, CompositeExplicitAutograd, m) {
  implement<fake_quantize_any<false>>(m);
  m.impl("_fake_quantize", TORCH_FN(fake_quantize_any<true>));
}

TORCH_LIBRARY_IMPL(octet, Autograd, m) {
  implement<fake_quantize_autograd>(m);
  m.impl("_fake_quantize", TORCH_FN(detail::NonDifferentiable<fake_quantize_masked>::call));
}

TORCH_LIBRARY_IMPL(octet, AutocastCPU, m) { implement<fake_quantize_autocast>(m); }
TORCH_LIBRARY_IMPL(octet, Autocast, m) { implement<fake_quantize_autocast>(m); }

}  // namespace octet
