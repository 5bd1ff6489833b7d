#include "octet/ops/int8_conv.h"

#include <torch/library.h>

#include <algorithm>

#include "octet/kernels/conv.h"
#include "octet/ops/common.h"
#include "octet/ops/conv_shape.h"
#include "octet/ops/nhwc.h"
#include "octet/ops/packed_weights.h"
#include "octet/ops/parallel.h"

namespace octet {

using at::IntArrayRef;
using at::Tensor;
using kernels::ConvShape;

namespace {

void check_parameters(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias,
                      const Tensor& multiplier, int64_t x_zero_point, int64_t y_zero_point, int64_t lo, int64_t hi) {
  detail::check_dtype(op, "x", x, at::kByte);
  detail::check_dtype(op, "weight", weight, at::kChar);
  detail::check_dtype(op, "bias", bias, at::kInt);
  detail::check_dtype(op, "multiplier", multiplier, at::kFloat);
  for (const Tensor* t : {&bias, &multiplier}) {
    TORCH_CHECK(t->dim() == 1 && t->sym_numel() == weight.sym_size(0), op,
                ": bias and multiplier must have weight.size(0) elements (got ", t->sym_numel(), ", ",
                weight.sym_size(0), ")");
  }
  detail::check_zero_point(op, x_zero_point, 0, 255);
  detail::check_output_codes(op, y_zero_point, lo, hi);
  const c10::SymInt taps = weight.sym_numel() / weight.sym_size(0);
  const int64_t largest = std::max<int64_t>(x_zero_point, 255 - x_zero_point);
  TORCH_CHECK(taps * (largest * 127) < kAccumulatorLimit, op, ": a sum of ", taps,
              " products may not fit an exact int32 accumulator (at most ", (kAccumulatorLimit - 1) / (largest * 127),
              " at zero point ", x_zero_point, ")");
}

void run(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& multiplier, const ConvShape& shape,
         int64_t x_zero_point, int64_t y_zero_point, int64_t lo, int64_t hi, const Tensor& y) {
  if (y.numel() == 0) return;
  const Tensor b = bias.contiguous(), m = multiplier.contiguous();
  kernels::ConvEpilogue epilogue;
  epilogue.bias = b.const_data_ptr<int32_t>();
  epilogue.multiplier = m.const_data_ptr<float>();
  epilogue.x_zero_point = static_cast<int32_t>(x_zero_point);
  epilogue.y_zero_point = static_cast<int32_t>(y_zero_point);
  epilogue.bounds = {static_cast<int32_t>(lo), static_cast<int32_t>(hi)};
  const auto packed = detail::packed_weight(weight, shape);
  kernels::run_conv(*packed, shape, x.const_data_ptr<uint8_t>(), epilogue, y.mutable_data_ptr<uint8_t>(),
                    detail::torch_parallel);
}

Tensor int8_conv_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& multiplier,
                     IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                     int64_t x_zero_point, int64_t y_zero_point, int64_t lo, int64_t hi) {
  check_parameters("int8_conv", x, weight, bias, multiplier, x_zero_point, y_zero_point, lo, hi);
  const auto out = detail::conv_output_sizes("int8_conv", x, weight, stride, padding, dilation, groups);
  const Tensor input = detail::channels_innermost(x);
  Tensor y = detail::empty_channels_innermost(x.size(0), weight.size(0), out, x.options());
  const ConvShape shape = detail::conv_shape(x, weight, y, stride, padding, dilation, groups);
  run(input, weight, bias, multiplier, shape, x_zero_point, y_zero_point, lo, hi, y);
  return y;
}

Tensor int8_conv_meta(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& multiplier,
                      IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                      int64_t x_zero_point, int64_t y_zero_point, int64_t lo, int64_t hi) {
  check_parameters("int8_conv", x, weight, bias, multiplier, x_zero_point, y_zero_point, lo, hi);
  const auto out = detail::conv_output_sizes("int8_conv", x, weight, stride, padding, dilation, groups);
  return detail::empty_channels_innermost(x.sym_size(0), weight.sym_size(0), out, x.options());
}

// Other devices compute on the CPU: slow, and the same bits.
Tensor int8_conv_any(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& multiplier,
                     IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                     int64_t x_zero_point, int64_t y_zero_point, int64_t lo, int64_t hi) {
  return int8_conv_cpu(x.cpu(), weight.cpu(), bias.cpu(), multiplier.cpu(), stride, padding, dilation, groups,
                       x_zero_point, y_zero_point, lo, hi)
      .to(x.device());
}

std::vector<c10::SymInt> check_linear(const Tensor& x, const Tensor& weight) {
  TORCH_CHECK(weight.dim() == 2, "int8_linear: weight must have 2 dimensions (got ", weight.dim(), ")");
  TORCH_CHECK(x.dim() >= 1 && x.sym_size(-1) == weight.sym_size(1),
              "int8_linear: x.size(-1) must equal weight.size(1) (got x of shape ", x.sym_sizes(), ", weight of shape ",
              weight.sym_sizes(), ")");
  std::vector<c10::SymInt> out = x.sym_sizes().vec();
  out.back() = weight.sym_size(0);
  return out;
}

Tensor int8_linear_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& multiplier,
                       int64_t x_zero_point, int64_t y_zero_point, int64_t lo, int64_t hi) {
  const auto out = check_linear(x, weight);
  check_parameters("int8_linear", x, weight, bias, multiplier, x_zero_point, y_zero_point, lo, hi);
  Tensor y = at::empty_symint(out, x.options());
  ConvShape shape;
  shape.in_channels = weight.size(1);
  shape.out_channels = weight.size(0);
  shape.batch = y.numel() / std::max<int64_t>(shape.out_channels, 1);
  run(x.contiguous(), weight, bias, multiplier, shape, x_zero_point, y_zero_point, lo, hi, y);
  return y;
}

Tensor int8_linear_meta(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& multiplier,
                        int64_t x_zero_point, int64_t y_zero_point, int64_t lo, int64_t hi) {
  const auto out = check_linear(x, weight);
  check_parameters("int8_linear", x, weight, bias, multiplier, x_zero_point, y_zero_point, lo, hi);
  return at::empty_symint(out, x.options());
}

Tensor int8_linear_any(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& multiplier,
                       int64_t x_zero_point, int64_t y_zero_point, int64_t lo, int64_t hi) {
  return int8_linear_cpu(x.cpu(), weight.cpu(), bias.cpu(), multiplier.cpu(), x_zero_point, y_zero_point, lo, hi)
      .to(x.device());
}

}  // namespace

Tensor int8_conv(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& multiplier,
                 IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups, int64_t x_zero_point,
                 int64_t y_zero_point, int64_t lo, int64_t hi) {
  static const auto op = detail::find_op<decltype(int8_conv)>("int8_conv");
  return op.call(x, weight, bias, multiplier, stride, padding, dilation, groups, x_zero_point, y_zero_point, lo, hi);
}

Tensor int8_linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& multiplier,
                   int64_t x_zero_point, int64_t y_zero_point, int64_t lo, int64_t hi) {
  static const auto op = detail::find_op<decltype(int8_linear)>("int8_linear");
  return op.call(x, weight, bias, multiplier, x_zero_point, y_zero_point, lo, hi);
}

TORCH_LIBRARY_FRAGMENT(octet, m) {
  m.def(
      "int8_conv(Tensor x, Tensor weight, Tensor bias, Tensor multiplier, int[] stride, int[] padding, int[] dilation, "
      "int groups, int x_zero_point, int y_zero_point, int lo, int hi) -> Tensor");
  m.def(
      "int8_linear(Tensor x, Tensor weight, Tensor bias, Tensor multiplier, int x_zero_point, int y_zero_point, int "
      "lo, "
      "int hi) -> Tensor");
}

TORCH_LIBRARY_IMPL(octet, CPU, m) {
  m.impl("int8_conv", TORCH_FN(int8_conv_cpu));
  m.impl("int8_linear", TORCH_FN(int8_linear_cpu));
}

TORCH_LIBRARY_IMPL(octet, Meta, m) {
  m.impl("int8_conv", TORCH_FN(int8_conv_meta));
  m.impl("int8_linear", TORCH_FN(int8_linear_meta));
}

TORCH_LIBRARY_IMPL(octet, CompositeExplicitAutograd, m) {
  m.impl("int8_conv", TORCH_FN(int8_conv_any));
  m.impl("int8_linear", TORCH_FN(int8_linear_any));
}

}  // namespace octet
