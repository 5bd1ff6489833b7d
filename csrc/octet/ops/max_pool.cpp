#include "octet/ops/max_pool.h"

#include <ATen/ops/max_pool1d.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/max_pool3d.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "octet/kernels/training_pool.h"
#include "octet/ops/common.h"
#include "octet/ops/grid_codes.h"
#include "octet/ops/int8_pool.h"
#include "octet/ops/nhwc.h"
#include "octet/ops/parallel.h"
#include "octet/ops/pool_shape.h"

namespace octet {

using at::IntArrayRef;
using at::Tensor;
using detail::Windows;
using Pooled = std::tuple<Tensor, Tensor>;  // y, winners
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

constexpr const char* kOp = "max_pool";

Pooled allocate(const Tensor& x, const Windows& windows) {
  const auto out = detail::pooled_sizes(kOp, x, windows);
  const auto make = [&](at::ScalarType type) {
    return detail::empty_channels_innermost(x.sym_size(0), x.sym_size(1), out, x.options().dtype(type));
  };
  return {make(at::kFloat), make(at::kByte)};
}

Pooled forward_cpu(const Tensor& x, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                   IntArrayRef dilation, bool ceil_mode) {
  const Windows windows{kernel_size, stride, padding, dilation, ceil_mode};
  const Tensor input = detail::channels_innermost(x);
  auto [y, winners] = allocate(input, windows);
  kernels::max_pool_forward(input.const_data_ptr<float>(), detail::pool_shape(x, windows), y.mutable_data_ptr<float>(),
                            winners.mutable_data_ptr<uint8_t>(), detail::torch_parallel);
  if (const auto [codes, grid] = detail::attached_codes(x); codes.defined()) {
    detail::attach_codes(y, int8_max_pool(codes, kernel_size, stride, padding, dilation, ceil_mode), grid);
  }
  return {y, winners};
}

Pooled forward_meta(const Tensor& x, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                    IntArrayRef dilation, bool ceil_mode) {
  return allocate(x, {kernel_size, stride, padding, dilation, ceil_mode});
}

Tensor allocate_gradient(const Tensor& grad, c10::SymIntArrayRef size) {
  return detail::empty_channels_innermost(size[0], size[1], {size.begin() + 2, size.end()}, grad.options());
}

Tensor backward_cpu(const Tensor& raw_grad, const Tensor& winners, c10::SymIntArrayRef size, IntArrayRef kernel_size,
                    IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
  const Tensor grad = detail::channels_innermost(raw_grad);
  Tensor grad_x = allocate_gradient(grad, size);
  const auto shape = detail::pool_shape(grad_x, {kernel_size, stride, padding, dilation, ceil_mode});
  kernels::max_pool_backward(grad.const_data_ptr<float>(), winners.const_data_ptr<uint8_t>(), shape,
                             grad_x.mutable_data_ptr<float>(), detail::torch_parallel);
  return grad_x;
}

Tensor backward_meta(const Tensor& grad, const Tensor&, c10::SymIntArrayRef size, IntArrayRef, IntArrayRef, IntArrayRef,
                     IntArrayRef, bool) {
  return allocate_gradient(grad, size);
}

class MaxPool : public torch::autograd::Function<MaxPool> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Windows& w) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op = detail::find_op<decltype(forward_cpu)>("_max_pool");
    auto [y, winners] = op.call(x, w.kernel_size, w.stride, w.padding, w.dilation, w.ceil_mode);
    context->save_for_backward({winners});
    auto& data = context->saved_data;
    data["size"] = x.sym_sizes().vec();
    data["kernel_size"] = w.kernel_size.vec();
    data["stride"] = w.stride.vec();
    data["padding"] = w.padding.vec();
    data["dilation"] = w.dilation.vec();
    data["ceil_mode"] = w.ceil_mode;
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    static const auto op = detail::find_op<decltype(backward_cpu)>("_max_pool_backward");
    auto& data = context->saved_data;
    const auto list = [&](const char* name) { return data[name].toIntVector(); };
    return {op.call(gradients[0], context->get_saved_variables()[0], data["size"].toSymIntVector(), list("kernel_size"),
                    list("stride"), list("padding"), list("dilation"), data["ceil_mode"].toBool()),
            Tensor()};
  }
};

// What one byte can count, on the device our loops are for.
bool can_keep_bytes(const Tensor& x, IntArrayRef kernel_size) {
  int64_t positions = 1;
  for (const int64_t k : kernel_size) positions *= k;
  return x.device().is_cpu() && x.scalar_type() == at::kFloat && positions <= kernels::kMostPositions;
}

Tensor max_pool_composite(const Tensor& x, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                          IntArrayRef dilation, bool ceil_mode) {
  detail::check_floating(kOp, "x", x);
  const Windows windows{kernel_size, stride, padding, dilation, ceil_mode};
  detail::pooled_sizes(kOp, x, windows);
  if (can_keep_bytes(x, kernel_size)) return MaxPool::apply(x, windows);
  switch (kernel_size.size()) {
    case 1:
      return at::max_pool1d(x, kernel_size, stride, padding, dilation, ceil_mode);
    case 2:
      return at::max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode);
    default:
      return at::max_pool3d(x, kernel_size, stride, padding, dilation, ceil_mode);
  }
}

}  // namespace

Tensor max_pool(const Tensor& x, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                bool ceil_mode) {
  static const auto op = detail::find_op<decltype(max_pool)>("max_pool");
  return op.call(x, kernel_size, stride, padding, dilation, ceil_mode);
}

TORCH_LIBRARY_FRAGMENT(octet, m) {
  m.def("max_pool(Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode) -> Tensor",
        TORCH_FN(max_pool_composite));
  m.def(
      "_max_pool(Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode) -> (Tensor "
      "y, Tensor winners)");
  m.def(
      "_max_pool_backward(Tensor grad, Tensor winners, SymInt[] size, int[] kernel_size, int[] stride, int[] padding, "
      "int[] dilation, bool ceil_mode) -> Tensor");
}

TORCH_LIBRARY_IMPL(octet, CPU, m) {
  m.impl("_max_pool", TORCH_FN(forward_cpu));
  m.impl("_max_pool_backward", TORCH_FN(backward_cpu));
}

TORCH_LIBRARY_IMPL(octet, Meta, m) {
  m.impl("_max_pool", TORCH_FN(forward_meta));
  m.impl("_max_pool_backward", TORCH_FN(backward_meta));
}

}  // namespace octet
