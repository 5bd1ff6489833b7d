#include "octet/nn/elementwise.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/max_pool1d.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/max_pool3d.h>
#include <ATen/ops/relu6.h>

#include <utility>

#include "octet/ops/blocks.h"
#include "octet/ops/fake_quantize.h"

namespace octet::nn {

AddImpl::AddImpl(FakeQuantize a, FakeQuantize b, bool subtract, const BlockOptions& options, Activation activation)
    : BlockImpl("Add", options, activation), a(std::move(a)), b(std::move(b)), subtract(subtract) {}

at::Tensor AddImpl::forward(const at::Tensor& left, const at::Tensor& right) {
  return run({left, right}, [this](const Tensors& x) {
    const FakeQuantize &ga = a ? a : output, &gb = b ? b : output;
    const auto [sum, low, high] = add_block(
        x[0], x[1], subtract ? -1.0 : 1.0, static_cast<int64_t>(activation), ga->scale, ga->zero_point, ga->steps,
        ga->qmin, ga->qmax, gb->scale, gb->zero_point, gb->steps, gb->qmin, gb->qmax, output->scale, output->zero_point,
        output->steps, output->qmin, output->qmax, active(), output->observes());
    observe(low, high, sum);
    return sum;
  });
}

torch::nn::AnyModule AddImpl::to_int8() const {
  check_ready();
  const auto steps = [](const FakeQuantize& grid) { return static_cast<float>(grid->steps.item<int32_t>()); };
  const auto zero_point = [](const FakeQuantize& grid) { return grid->zero_point.item<int32_t>(); };
  const float ratio_b = steps(b) / steps(output);
  return torch::nn::AnyModule(int8::Add(zero_point(a), steps(a) / steps(output), zero_point(b),
                                        subtract ? -ratio_b : ratio_b, zero_point(output), bounds()));
}

at::Tensor CatImpl::forward(const std::vector<at::Tensor>& tensors) {
  return run(tensors, [this](const Tensors& x) { return at::cat(x, dim); });
}

torch::nn::AnyModule CatImpl::to_int8() const {
  check_ready();
  return torch::nn::AnyModule(int8::Cat(dim));
}

ReLU6Impl::ReLU6Impl(FakeQuantize grid) : BlockImpl("ReLU6", {.output = std::move(grid)}, Activation::kRelu6) {}

at::Tensor ReLU6Impl::forward(const at::Tensor& value) {
  return run({value}, [this](const Tensors& x) {
    const at::Tensor y = at::relu6(x[0]);
    if (!active()) return y;
    return fake_quantize_per_tensor(y, output->scale, output->zero_point, output->qmin, output->qmax);
  });
}

torch::nn::AnyModule ReLU6Impl::to_int8() const {
  check_ready();
  return torch::nn::AnyModule(int8::Clamp(bounds()));
}

at::Tensor MaxPoolBlockImpl::forward(const at::Tensor& value) {
  return run({value}, [this](const Tensors& x) {
    const auto pool = [&](auto max_pool) {
      return max_pool(x[0], kernel_size, geometry.stride, geometry.padding, geometry.dilation, ceil_mode);
    };
    if (kernel_size.size() == 1) return pool(at::max_pool1d);
    return kernel_size.size() == 2 ? pool(at::max_pool2d) : pool(at::max_pool3d);
  });
}

torch::nn::AnyModule MaxPoolBlockImpl::to_int8() const {
  check_ready();
  return torch::nn::AnyModule(int8::MaxPool(kernel_size, geometry, ceil_mode));
}

AvgPoolBlockImpl::AvgPoolBlockImpl(std::string name, int8::PoolGeometry geometry, const BlockOptions& options)
    : BlockImpl(std::move(name), options, Activation::kIdentity), input(options.input), geometry(std::move(geometry)) {
  TORCH_CHECK(activation == Activation::kIdentity, this->name(), " ", options.label, ": takes no activation");
}

at::Tensor AvgPoolBlockImpl::forward(const at::Tensor& value) {
  return run({value}, [this](const Tensors& x) {
    const GridArguments in = grid_of(input), out = output->grid();
    const auto [y, low, high] = avg_pool_block(
        x[0], geometry.kernel_size, geometry.stride, geometry.padding, geometry.ceil_mode, geometry.count_include_pad,
        geometry.divisor_override, geometry.output_size, in.scale, in.zero_point, in.qmin, in.qmax, out.scale,
        out.zero_point, out.qmin, out.qmax, active(), output->observes());
    observe(low, high, y);
    return y;
  });
}

torch::nn::AnyModule AvgPoolBlockImpl::to_int8() const {
  check_ready();
  const int8::Requantization numbers{input->zero_point.item<int32_t>(), output->zero_point.item<int32_t>(), bounds()};
  return torch::nn::AnyModule(
      int8::AvgPool(geometry, input->scale.item<float>(), output->scale.item<float>(), numbers));
}

}  // namespace octet::nn
