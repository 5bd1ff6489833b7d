// INT8 modules: plain uint8 codes in, plain uint8 codes out, the numbers of docs/numerics.md. Shapes are those of the
// float modules; channels_last strides are the fast ones. They are made by octet::convert or by to_int8() of a QAT
// block.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "octet/nn/fake_quantize.h"

namespace octet::nn::int8 {

// Stride, padding, dilation, one entry per spatial dimension.
struct ConvGeometry {
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups = 1;
};

// An average pool over windows, or, with an empty kernel_size, to output_size. divisor_override 0: none.
struct PoolGeometry {
  std::vector<int64_t> kernel_size, stride, padding;
  bool ceil_mode = false;
  bool count_include_pad = true;
  int64_t divisor_override = 0;
  std::vector<int64_t> output_size;
};

// The codes an operator may produce.
struct Bounds {
  int64_t lo = 0;
  int64_t hi = 255;
};

struct Requantization {
  int64_t x_zero_point = 0;
  int64_t y_zero_point = 0;
  Bounds bounds;
};

// What octet::fold gives.
struct Folded {
  at::Tensor weight;      // int8 [O, ...]
  at::Tensor bias;        // int32 [O]
  at::Tensor multiplier;  // float32 [O]
};

// Float to codes on a grid: rule 1. Any float dtype and shape in, uint8 out.
class QuantizeImpl : public torch::nn::Module {
 public:
  explicit QuantizeImpl(const GridArguments& grid);
  at::Tensor forward(const at::Tensor& x);
  at::Tensor scale, zero_point;
  int64_t qmin, qmax;
};
TORCH_MODULE(Quantize);

// Codes to float32: scale * (q - zero_point), in contiguous strides, as the QAT model leaves its grids.
class DequantizeImpl : public torch::nn::Module {
 public:
  explicit DequantizeImpl(const GridArguments& grid);
  at::Tensor forward(const at::Tensor& x);
  at::Tensor scale, zero_point;
};
TORCH_MODULE(Dequantize);

// Buffers weight, bias, multiplier: rules 5 and 6.
class WeightedImpl : public torch::nn::Module {
 public:
  at::Tensor weight, bias, multiplier;
  Requantization numbers;

 protected:
  WeightedImpl(std::string name, const Folded& folded, const Requantization& numbers);
};

// Integer convolution in 1, 2 or 3 dimensions; padding contributes the code of zero.
class ConvImpl : public WeightedImpl {
 public:
  ConvImpl(const Folded& folded, ConvGeometry geometry, const Requantization& numbers);
  at::Tensor forward(const at::Tensor& x);
  ConvGeometry geometry;
};
using Conv1dImpl = ConvImpl;
using Conv2dImpl = ConvImpl;
using Conv3dImpl = ConvImpl;
TORCH_MODULE(Conv1d);
TORCH_MODULE(Conv2d);
TORCH_MODULE(Conv3d);

// Integer matrix product over the last dimension.
class LinearImpl : public WeightedImpl {
 public:
  LinearImpl(const Folded& folded, const Requantization& numbers);
  at::Tensor forward(const at::Tensor& x);
};
TORCH_MODULE(Linear);

// A batch norm of its own: a depthwise 1x1 convolution over [N, C, ...].
class BatchNormImpl : public WeightedImpl {
 public:
  BatchNormImpl(const Folded& folded, const Requantization& numbers);
  at::Tensor forward(const at::Tensor& x);
};
TORCH_MODULE(BatchNorm);

// a + b or a - b: rule 10. The ratios are n_a/n_y and +-n_b/n_y as float32 values.
class AddImpl : public torch::nn::Module {
 public:
  AddImpl(int64_t a_zero_point, float a_ratio, int64_t b_zero_point, float b_ratio, int64_t y_zero_point,
          Bounds bounds);
  at::Tensor forward(const at::Tensor& a, const at::Tensor& b);
  int64_t a_zero_point, b_zero_point, y_zero_point;
  float a_ratio, b_ratio;
  Bounds bounds;
};
TORCH_MODULE(Add);

// Average pool: rule 8.
class AvgPoolImpl : public torch::nn::Module {
 public:
  AvgPoolImpl(PoolGeometry geometry, float x_scale, float y_scale, const Requantization& numbers);
  at::Tensor forward(const at::Tensor& x);
  PoolGeometry geometry;
  float x_scale, y_scale;
  Requantization numbers;
};
TORCH_MODULE(AvgPool);

// Largest code of each window; the grid stays.
class MaxPoolImpl : public torch::nn::Module {
 public:
  MaxPoolImpl(std::vector<int64_t> kernel_size, ConvGeometry geometry, bool ceil_mode);
  at::Tensor forward(const at::Tensor& x);
  std::vector<int64_t> kernel_size;
  ConvGeometry geometry;  // groups unused
  bool ceil_mode;
};
TORCH_MODULE(MaxPool);

// ReLU or ReLU6 that no operator could take in; the grid stays.
class ClampImpl : public torch::nn::Module {
 public:
  explicit ClampImpl(Bounds bounds);
  at::Tensor forward(const at::Tensor& x);
  Bounds bounds;
};
TORCH_MODULE(Clamp);

// Concatenation of codes on one grid.
class CatImpl : public torch::nn::Module {
 public:
  explicit CatImpl(int64_t dim);
  at::Tensor forward(const std::vector<at::Tensor>& tensors);
  int64_t dim;
};
TORCH_MODULE(Cat);

}  // namespace octet::nn::int8
