#include "octet/nn/int8.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/clamp.h>

#include <utility>

#include "octet/ops/int8_conv.h"
#include "octet/ops/int8_elementwise.h"
#include "octet/ops/int8_pool.h"
#include "octet/ops/quantize.h"

namespace octet::nn::int8 {

QuantizeImpl::QuantizeImpl(const GridArguments& grid) : Module("Quantize"), qmin(grid.qmin), qmax(grid.qmax) {
  scale = register_buffer("scale", grid.scale.clone());
  zero_point = register_buffer("zero_point", grid.zero_point.clone());
}

at::Tensor QuantizeImpl::forward(const at::Tensor& x) {
  return quantize_per_tensor(x, scale, zero_point, qmin, qmax, at::kByte);
}

DequantizeImpl::DequantizeImpl(const GridArguments& grid) : Module("Dequantize") {
  scale = register_buffer("scale", grid.scale.clone());
  zero_point = register_buffer("zero_point", grid.zero_point.clone());
}

at::Tensor DequantizeImpl::forward(const at::Tensor& x) {
  return dequantize_per_tensor(x, scale, zero_point).contiguous();
}

WeightedImpl::WeightedImpl(std::string name, const Folded& folded, const Requantization& numbers)
    : Module(std::move(name)), numbers(numbers) {
  weight = register_buffer("weight", folded.weight);
  bias = register_buffer("bias", folded.bias);
  multiplier = register_buffer("multiplier", folded.multiplier);
}

ConvImpl::ConvImpl(const Folded& folded, ConvGeometry geometry, const Requantization& numbers)
    : WeightedImpl("Conv" + std::to_string(folded.weight.dim() - 2) + "d", folded, numbers),
      geometry(std::move(geometry)) {}

at::Tensor ConvImpl::forward(const at::Tensor& x) {
  return int8_conv(x, weight, bias, multiplier, geometry.stride, geometry.padding, geometry.dilation, geometry.groups,
                   numbers.x_zero_point, numbers.y_zero_point, numbers.bounds.lo, numbers.bounds.hi);
}

LinearImpl::LinearImpl(const Folded& folded, const Requantization& numbers) : WeightedImpl("Linear", folded, numbers) {}

at::Tensor LinearImpl::forward(const at::Tensor& x) {
  return int8_linear(x, weight, bias, multiplier, numbers.x_zero_point, numbers.y_zero_point, numbers.bounds.lo,
                     numbers.bounds.hi);
}

BatchNormImpl::BatchNormImpl(const Folded& folded, const Requantization& numbers)
    : WeightedImpl("BatchNorm", folded, numbers) {}

at::Tensor BatchNormImpl::forward(const at::Tensor& x) {
  const bool flat = x.dim() == 2;  // [N, C]: the convolution wants a spatial dimension
  const at::Tensor image = flat ? x.unsqueeze(-1) : x;
  const std::vector<int64_t> ones(image.dim() - 2, 1), zeros(image.dim() - 2, 0);
  const at::Tensor y = int8_conv(image, weight, bias, multiplier, ones, zeros, ones, image.size(1),
                                 numbers.x_zero_point, numbers.y_zero_point, numbers.bounds.lo, numbers.bounds.hi);
  return flat ? y.squeeze(-1) : y;
}

AddImpl::AddImpl(int64_t a_zero_point, float a_ratio, int64_t b_zero_point, float b_ratio, int64_t y_zero_point,
                 Bounds bounds)
    : Module("Add"),
      a_zero_point(a_zero_point),
      b_zero_point(b_zero_point),
      y_zero_point(y_zero_point),
      a_ratio(a_ratio),
      b_ratio(b_ratio),
      bounds(bounds) {}

at::Tensor AddImpl::forward(const at::Tensor& a, const at::Tensor& b) {
  return int8_add(a, b, a_zero_point, a_ratio, b_zero_point, b_ratio, y_zero_point, bounds.lo, bounds.hi);
}

AvgPoolImpl::AvgPoolImpl(PoolGeometry geometry, float x_scale, float y_scale, const Requantization& numbers)
    : Module("AvgPool"), geometry(std::move(geometry)), x_scale(x_scale), y_scale(y_scale), numbers(numbers) {}

at::Tensor AvgPoolImpl::forward(const at::Tensor& x) {
  const auto& [x_zero_point, y_zero_point, bounds] = numbers;
  if (geometry.kernel_size.empty()) {
    return int8_adaptive_avg_pool(x, geometry.output_size, x_scale, x_zero_point, y_scale, y_zero_point, bounds.lo,
                                  bounds.hi);
  }
  return int8_avg_pool(x, geometry.kernel_size, geometry.stride, geometry.padding, geometry.ceil_mode,
                       geometry.count_include_pad, geometry.divisor_override, x_scale, x_zero_point, y_scale,
                       y_zero_point, bounds.lo, bounds.hi);
}

MaxPoolImpl::MaxPoolImpl(std::vector<int64_t> kernel_size, ConvGeometry geometry, bool ceil_mode)
    : Module("MaxPool"), kernel_size(std::move(kernel_size)), geometry(std::move(geometry)), ceil_mode(ceil_mode) {}

at::Tensor MaxPoolImpl::forward(const at::Tensor& x) {
  return int8_max_pool(x, kernel_size, geometry.stride, geometry.padding, geometry.dilation, ceil_mode);
}

ClampImpl::ClampImpl(Bounds bounds) : Module("Clamp"), bounds(bounds) {}

at::Tensor ClampImpl::forward(const at::Tensor& x) { return at::clamp(x, bounds.lo, bounds.hi); }

CatImpl::CatImpl(int64_t dim) : Module("Cat"), dim(dim) {}

at::Tensor CatImpl::forward(const std::vector<at::Tensor>& tensors) { return at::cat(tensors, dim); }

}  // namespace octet::nn::int8
