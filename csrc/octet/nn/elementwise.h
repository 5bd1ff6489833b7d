// QAT blocks without weights: additions, concatenation, ReLU6, pools.
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/options/pooling.h>

#include <string>
#include <vector>

#include "octet/nn/block.h"

namespace octet::nn {

// a + b or a - b, shapes that broadcast, then maybe a ReLU: rule 10. The scales of the three grids must be odd
// multiples of one unit: octet::prepare sees to that; by hand, put them into one component with bind.
class AddImpl : public BlockImpl {
 public:
  // options.input is not used.
  explicit AddImpl(FakeQuantize a = nullptr, FakeQuantize b = nullptr, bool subtract = false,
                   const BlockOptions& options = {}, Activation activation = Activation::kIdentity);
  at::Tensor forward(const at::Tensor& a, const at::Tensor& b);
  std::vector<FakeQuantize> inputs() const override { return {a, b}; }
  std::vector<Operand> operands() override { return {{"a", &a}, {"b", &b}}; }
  torch::nn::AnyModule to_int8() const override;

  FakeQuantize a{nullptr}, b{nullptr};  // not children
  bool subtract;

 protected:
  at::Tensor call(torch::nn::AnyModule& int8, const Tensors& codes) override {
    return int8.forward(codes[0], codes[1]);
  }
};
TORCH_MODULE(Add);

// relu(a + b).
class AddReLUImpl : public AddImpl {
 public:
  explicit AddReLUImpl(FakeQuantize a = nullptr, FakeQuantize b = nullptr, bool subtract = false,
                       const BlockOptions& options = {})
      : AddImpl(std::move(a), std::move(b), subtract, options, Activation::kRelu) {}
};
TORCH_MODULE(AddReLU);

// Concatenation: all operands and the result are on one grid. octet::prepare sees to that; by hand every producer must
// have been given it as its output.
class CatImpl : public BlockImpl {
 public:
  explicit CatImpl(FakeQuantize grid = nullptr, int64_t dim = 1)
      : BlockImpl("Cat", {.output = std::move(grid)}, Activation::kIdentity), dim(dim) {}
  at::Tensor forward(const std::vector<at::Tensor>& tensors);
  std::vector<FakeQuantize> inputs() const override { return {output}; }
  bool keeps_grid() const override { return true; }
  torch::nn::AnyModule to_int8() const override;

  int64_t dim;

 protected:
  at::Tensor call(torch::nn::AnyModule& int8, const Tensors& codes) override { return int8.forward(codes); }
};
TORCH_MODULE(Cat);

// ReLU6 that no block could take in: in and out are on one grid, whose code for 6 is the highest that comes out.
class ReLU6Impl : public BlockImpl {
 public:
  explicit ReLU6Impl(FakeQuantize grid = nullptr);
  at::Tensor forward(const at::Tensor& x);
  std::vector<FakeQuantize> inputs() const override { return {output}; }
  bool keeps_grid() const override { return true; }
  torch::nn::AnyModule to_int8() const override;
};
TORCH_MODULE(ReLU6);

// Max pool: the grid stays, so that a larger code is a larger value. forward: x [N, C, spatial...].
class MaxPoolBlockImpl : public BlockImpl {
 public:
  at::Tensor forward(const at::Tensor& x);
  std::vector<FakeQuantize> inputs() const override { return {output}; }
  bool keeps_grid() const override { return true; }
  torch::nn::AnyModule to_int8() const override;

  std::vector<int64_t> kernel_size;
  int8::ConvGeometry geometry;  // groups unused
  bool ceil_mode;

 protected:
  template <size_t D>
  MaxPoolBlockImpl(std::string name, const torch::nn::MaxPoolOptions<D>& options, FakeQuantize grid)
      : BlockImpl(std::move(name), {.output = std::move(grid)}, Activation::kIdentity),
        kernel_size(at::IntArrayRef(options.kernel_size()).vec()),
        geometry{at::IntArrayRef(options.stride()).vec(), at::IntArrayRef(options.padding()).vec(),
                 at::IntArrayRef(options.dilation()).vec()},
        ceil_mode(options.ceil_mode()) {}
};

#define OCTET_MAX_POOL_BLOCK(Name)                                                            \
  class Name##Impl : public MaxPoolBlockImpl {                                                \
   public:                                                                                    \
    explicit Name##Impl(const torch::nn::Name##Options& options, FakeQuantize grid = nullptr) \
        : MaxPoolBlockImpl(#Name, options, std::move(grid)) {}                                \
  };                                                                                          \
  TORCH_MODULE(Name)

OCTET_MAX_POOL_BLOCK(MaxPool1d);
OCTET_MAX_POOL_BLOCK(MaxPool2d);
OCTET_MAX_POOL_BLOCK(MaxPool3d);
#undef OCTET_MAX_POOL_BLOCK

// Where values leave their grid for a part in float. In evaluation mode they get the strides of the INT8 model: float
// kernels round differently at the ends of their loops, so strides show in the last bit of what they give.
class ToFloatImpl : public torch::nn::Cloneable<ToFloatImpl> {
 public:
  at::Tensor forward(const at::Tensor& x) { return is_training() ? x : x.contiguous(); }
  void reset() override {}
};
TORCH_MODULE(ToFloat);

// An average pool with a grid of its own for the result: rule 8. forward: x [N, C, spatial...].
class AvgPoolBlockImpl : public BlockImpl {
 public:
  AvgPoolBlockImpl(std::string name, int8::PoolGeometry geometry, const BlockOptions& options);
  at::Tensor forward(const at::Tensor& x);
  std::vector<FakeQuantize> inputs() const override { return {input}; }
  std::vector<Operand> operands() override { return {{"input", &input}}; }
  torch::nn::AnyModule to_int8() const override;

  FakeQuantize input{nullptr};  // not a child
  int8::PoolGeometry geometry;
};

template <size_t D>
int8::PoolGeometry pool_geometry(const torch::nn::AvgPoolOptions<D>& options) {
  int8::PoolGeometry geometry{.kernel_size = at::IntArrayRef(options.kernel_size()).vec(),
                              .stride = at::IntArrayRef(options.stride()).vec(),
                              .padding = at::IntArrayRef(options.padding()).vec(),
                              .ceil_mode = options.ceil_mode(),
                              .count_include_pad = options.count_include_pad(),
                              .output_size = {}};
  if constexpr (D > 1) geometry.divisor_override = options.divisor_override().value_or(0);
  return geometry;
}

// Errors: an output size left open (torch's nullopt).
template <class OutputSize>
int8::PoolGeometry pool_geometry(const torch::nn::AdaptiveAvgPoolOptions<OutputSize>& options) {
  int8::PoolGeometry geometry;
  for (const auto& size : *options.output_size()) {
    TORCH_CHECK(std::optional<int64_t>(size), "AdaptiveAvgPool: output_size must be given in numbers (got nullopt)");
    geometry.output_size.push_back(*std::optional<int64_t>(size));
  }
  return geometry;
}

#define OCTET_POOL_BLOCK(Name)                                                                   \
  class Name##Impl : public AvgPoolBlockImpl {                                                   \
   public:                                                                                       \
    explicit Name##Impl(const torch::nn::Name##Options& options, const BlockOptions& block = {}) \
        : AvgPoolBlockImpl(#Name, pool_geometry(options), block) {}                              \
  };                                                                                             \
  TORCH_MODULE(Name)

OCTET_POOL_BLOCK(AvgPool1d);
OCTET_POOL_BLOCK(AvgPool2d);
OCTET_POOL_BLOCK(AvgPool3d);
OCTET_POOL_BLOCK(AdaptiveAvgPool1d);
OCTET_POOL_BLOCK(AdaptiveAvgPool2d);
OCTET_POOL_BLOCK(AdaptiveAvgPool3d);
#undef OCTET_POOL_BLOCK

}  // namespace octet::nn
