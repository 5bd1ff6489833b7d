// QAT convolutions, linear layers and batch norms, with or without a ReLU behind them.
//
// Children `conv` or `linear`, maybe `bn`, and the grid of the result, `output`: the same state_dict keys as in Python.
// Each is built from the float layer's options, or over layers that exist (their parameters are shared):
//   octet::nn::ConvBnReLU2d block(torch::nn::Conv2dOptions(3, 16, 3).bias(false), octet::nn::BlockOptions{.input =
//   grid});
#pragma once

#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>

#include <optional>
#include <string>
#include <vector>

#include "octet/nn/block.h"

namespace octet::nn {

template <size_t D>
struct FloatLayers;
template <>
struct FloatLayers<1> {
  using Conv = torch::nn::Conv1d;
  using BatchNorm = torch::nn::BatchNorm1d;
};
template <>
struct FloatLayers<2> {
  using Conv = torch::nn::Conv2d;
  using BatchNorm = torch::nn::BatchNorm2d;
};
template <>
struct FloatLayers<3> {
  using Conv = torch::nn::Conv3d;
  using BatchNorm = torch::nn::BatchNorm3d;
};

// The padding of a convolution in numbers, or nothing where it is not as many zeros on both sides: a padding_mode other
// than zeros, "same" padding of an even kernel. No ConvBlock computes such a convolution.
template <size_t D>
std::optional<std::vector<int64_t>> zero_padding(const torch::nn::detail::ConvNdOptions<D>& options);

// forward: x [N, I, spatial...], float32 values (or any floating dtype); returns float32 [N, O, out...] on the output
// grid. Errors: a convolution without zero_padding, and those of octet::conv_block.
template <size_t D>
class ConvBlockImpl : public NormBlockImpl {
 public:
  using Conv = typename FloatLayers<D>::Conv;
  using BatchNorm = typename FloatLayers<D>::BatchNorm;

  ConvBlockImpl(std::string name, Conv conv, BatchNorm bn, const BlockOptions& options, Activation activation);
  at::Tensor forward(const at::Tensor& x);
  torch::nn::AnyModule to_int8() const override;

  Conv conv;
  BatchNorm bn;  // empty in blocks without one

 private:
  int8::ConvGeometry geometry_;
};

// forward: x [..., I], with batch norm [N, I]; returns float32 [..., O].
class LinearBlockImpl : public NormBlockImpl {
 public:
  LinearBlockImpl(std::string name, torch::nn::Linear linear, torch::nn::BatchNorm1d bn, const BlockOptions& options,
                  Activation activation);
  at::Tensor forward(const at::Tensor& x);
  torch::nn::AnyModule to_int8() const override;

  torch::nn::Linear linear;
  torch::nn::BatchNorm1d bn;
};

// Batch norm that follows no convolution: rule 11. forward: x [N, C, ...].
template <size_t D>
class BatchNormBlockImpl : public NormBlockImpl {
 public:
  using BatchNorm = typename FloatLayers<D>::BatchNorm;
  explicit BatchNormBlockImpl(BatchNorm bn, const BlockOptions& options = {});
  at::Tensor forward(const at::Tensor& x);
  torch::nn::AnyModule to_int8() const override;

  BatchNorm bn;
};

// A block's name, its dimensions, whether it has a batch norm, its activation.
#define OCTET_CONV_BLOCK(Name, D, kHasNorm, kActivation)                                                         \
  class Name##Impl : public ConvBlockImpl<D> {                                                                   \
   public:                                                                                                       \
    explicit Name##Impl(const torch::nn::ConvOptions<D>& options, const BlockOptions& block = {})                \
        : Name##Impl(Conv(options), kHasNorm ? BatchNorm(options.out_channels()) : BatchNorm(nullptr), block) {} \
    Name##Impl(Conv conv, BatchNorm bn, const BlockOptions& block = {})                                          \
        : ConvBlockImpl<D>(#Name, std::move(conv), std::move(bn), block, kActivation) {}                         \
  };                                                                                                             \
  TORCH_MODULE(Name)

OCTET_CONV_BLOCK(Conv1d, 1, false, Activation::kIdentity);
OCTET_CONV_BLOCK(Conv2d, 2, false, Activation::kIdentity);
OCTET_CONV_BLOCK(Conv3d, 3, false, Activation::kIdentity);
OCTET_CONV_BLOCK(ConvReLU1d, 1, false, Activation::kRelu);
OCTET_CONV_BLOCK(ConvReLU2d, 2, false, Activation::kRelu);
OCTET_CONV_BLOCK(ConvReLU3d, 3, false, Activation::kRelu);
OCTET_CONV_BLOCK(ConvBn1d, 1, true, Activation::kIdentity);
OCTET_CONV_BLOCK(ConvBn2d, 2, true, Activation::kIdentity);
OCTET_CONV_BLOCK(ConvBn3d, 3, true, Activation::kIdentity);
OCTET_CONV_BLOCK(ConvBnReLU1d, 1, true, Activation::kRelu);
OCTET_CONV_BLOCK(ConvBnReLU2d, 2, true, Activation::kRelu);
OCTET_CONV_BLOCK(ConvBnReLU3d, 3, true, Activation::kRelu);
#undef OCTET_CONV_BLOCK

#define OCTET_LINEAR_BLOCK(Name, kHasNorm, kActivation)                                                           \
  class Name##Impl : public LinearBlockImpl {                                                                     \
   public:                                                                                                        \
    explicit Name##Impl(const torch::nn::LinearOptions& options, const BlockOptions& block = {})                  \
        : Name##Impl(torch::nn::Linear(options),                                                                  \
                     kHasNorm ? torch::nn::BatchNorm1d(options.out_features()) : torch::nn::BatchNorm1d(nullptr), \
                     block) {}                                                                                    \
    Name##Impl(torch::nn::Linear linear, torch::nn::BatchNorm1d bn, const BlockOptions& block = {})               \
        : LinearBlockImpl(#Name, std::move(linear), std::move(bn), block, kActivation) {}                         \
  };                                                                                                              \
  TORCH_MODULE(Name)

OCTET_LINEAR_BLOCK(Linear, false, Activation::kIdentity);
OCTET_LINEAR_BLOCK(LinearReLU, false, Activation::kRelu);
OCTET_LINEAR_BLOCK(LinearBn1d, true, Activation::kIdentity);
OCTET_LINEAR_BLOCK(LinearBnReLU1d, true, Activation::kRelu);
#undef OCTET_LINEAR_BLOCK

using BatchNorm1dImpl = BatchNormBlockImpl<1>;
using BatchNorm2dImpl = BatchNormBlockImpl<2>;
using BatchNorm3dImpl = BatchNormBlockImpl<3>;
TORCH_MODULE(BatchNorm1d);
TORCH_MODULE(BatchNorm2d);
TORCH_MODULE(BatchNorm3d);

}  // namespace octet::nn
