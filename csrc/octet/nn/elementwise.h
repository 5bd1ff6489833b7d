// QAT blocks without weights: additions, concatenation, ReLU6, average pools.
#pragma once

#include <torch/nn/options/pooling.h>

#include <string>
#include <vector>

#include "octet/nn/block.h"

namespace octet::nn {

// a + b or a - b, shapes that broadcast, then maybe a ReLU: rule 10. The scales of the three grids must be odd
// multiples of one unit: put them into one component with bind.
class AddImpl : public BlockImpl {
 public:
  // options.input is not used.
  AddImpl(FakeQuantize a, FakeQuantize b, bool subtract = false, const BlockOptions& options = {},
          Activation activation = Activation::kIdentity);
  at::Tensor forward(const at::Tensor& a, const at::Tensor& b);
  std::vector<FakeQuantize> inputs() const override { return {a, b}; }
  torch::nn::AnyModule to_int8() const override;

  FakeQuantize a{nullptr}, b{nullptr};  // not children
  bool subtract;
};
TORCH_MODULE(Add);

// relu(a + b).
class AddReLUImpl : public AddImpl {
 public:
  AddReLUImpl(FakeQuantize a, FakeQuantize b, bool subtract = false, const BlockOptions& options = {})
      : AddImpl(std::move(a), std::move(b), subtract, options, Activation::kRelu) {}
};
TORCH_MODULE(AddReLU);

// Concatenation: all operands and the result are on one grid, so every producer must have been given it as its output.
class CatImpl : public torch::nn::Module {
 public:
  explicit CatImpl(FakeQuantize grid, int64_t dim = 1) : Module("Cat"), output(std::move(grid)), dim(dim) {}
  at::Tensor forward(const std::vector<at::Tensor>& tensors);
  torch::nn::AnyModule to_int8() const;

  FakeQuantize output;  // not a child
  int64_t dim;
};
TORCH_MODULE(Cat);

// ReLU6 that no block could take in: in and out are on one grid, whose code for 6 is the highest that comes out.
class ReLU6Impl : public BlockImpl {
 public:
  explicit ReLU6Impl(FakeQuantize grid);
  at::Tensor forward(const at::Tensor& x);
  std::vector<FakeQuantize> inputs() const override { return {output}; }
  torch::nn::AnyModule to_int8() const override;
};
TORCH_MODULE(ReLU6);

// An average pool with a grid of its own for the result: rule 8. forward: x [N, C, spatial...].
class AvgPoolBlockImpl : public BlockImpl {
 public:
  AvgPoolBlockImpl(std::string name, int8::PoolGeometry geometry, const BlockOptions& options);
  at::Tensor forward(const at::Tensor& x);
  std::vector<FakeQuantize> inputs() const override { return {input}; }
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
