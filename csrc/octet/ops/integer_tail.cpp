#include "octet/ops/integer_tail.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>

#include "octet/kernels/training_conv.h"
#include "octet/ops/common.h"
#include "octet/ops/conv_shape.h"
#include "octet/ops/fold.h"
#include "octet/ops/grid_codes.h"
#include "octet/ops/nhwc.h"
#include "octet/ops/parallel.h"
#include "octet/ops/weight_rows.h"

namespace octet {

using at::IntArrayRef;
using at::Tensor;
using Optional = std::optional<Tensor>;
using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // y, pass bits, min, max

namespace {

constexpr const char* kOp = "conv_block";

Forward allocate(const Tensor& codes, const Tensor& weight, const detail::ConvArguments& conv) {
  const Tensor y = detail::allocate_sums(codes, weight, conv);
  const std::vector<c10::SymInt> bytes{(y.sym_numel() + 15) / 16 * 2};
  return {y, at::empty_symint(bytes, codes.options()), at::empty({}, y.options()), at::empty({}, y.options())};
}

void check_products(const Tensor& weight, const Grid& input) {
  const int64_t products = weight.numel() / std::max<int64_t>(1, weight.size(0));
  const int32_t largest = std::max(input.zero_point, 255 - input.zero_point);
  TORCH_CHECK(accumulator_fits(products, largest, 127), kOp, ": a sum of ", products,
              " products may not fit an exact int32 accumulator (at zero point ", input.zero_point, ")");
}

Forward forward_cpu(const Tensor& raw, const Tensor& scale, const Tensor& zero_point, const Tensor& weight,
                    const Optional& bias, const Optional& bn_weight, const Optional& bn_bias, const Optional& bn_mean,
                    const Optional& bn_var, double bn_eps, IntArrayRef stride, IntArrayRef padding,
                    IntArrayRef dilation, int64_t groups, int64_t weight_bits, bool per_channel, int64_t activation,
                    const Tensor& output_scale, const Tensor& output_zero_point, int64_t qmin, int64_t qmax,
                    bool observe) {
  const Tensor codes = detail::channels_innermost(raw);
  const Grid input{detail::read_one<float>(scale), detail::read_one<int32_t>(zero_point)};
  check_products(weight, input);
  auto [y, pass, min, max] = allocate(codes, weight, {stride, padding, dilation, groups});
  const auto shape = detail::conv_shape(codes, weight, y, stride, padding, dilation, groups);
  const detail::FoldedChannels folded = detail::fold_channels(weight, bias, bn_weight, bn_bias, bn_mean, bn_var, bn_eps,
                                                              scale, output_scale, weight_bits, per_channel);
  const kernels::PackedConv packed(folded.codes.const_data_ptr<int8_t>(), shape, detail::weight_order(folded.codes),
                                   kernels::active_isa(), detail::torch_parallel);
  kernels::ConvEpilogue epilogue;
  epilogue.bias = folded.bias.const_data_ptr<int32_t>();
  epilogue.multiplier = folded.multiplier.const_data_ptr<float>();
  epilogue.x_zero_point = input.zero_point;
  const Grid grid = detail::read_grid(kOp, output_scale, output_zero_point, qmin, qmax);
  const kernels::Tail tail{folded.gain.data(), folded.shift.data(), static_cast<Activation>(activation), grid};
  const Tensor y_codes = at::empty_like(y, at::kByte);
  const Range range = kernels::conv_with_tail(
      packed, shape, codes.const_data_ptr<uint8_t>(), epilogue, tail,
      {y.mutable_data_ptr<float>(), y_codes.mutable_data_ptr<uint8_t>(), pass.mutable_data_ptr<uint8_t>()},
      detail::torch_parallel);
  if (range.finite()) detail::attach_codes(y, y_codes, grid);
  *min.mutable_data_ptr<float>() = observe ? range.min : Range().min;
  *max.mutable_data_ptr<float>() = observe ? range.max : Range().max;
  return {y, pass, min, max};
}

Forward forward_meta(const Tensor& codes, const Tensor&, const Tensor&, const Tensor& weight, const Optional&,
                     const Optional&, const Optional&, const Optional&, const Optional&, double, IntArrayRef stride,
                     IntArrayRef padding, IntArrayRef dilation, int64_t groups, int64_t, bool, int64_t, const Tensor&,
                     const Tensor&, int64_t, int64_t, bool) {
  return allocate(codes, weight, {stride, padding, dilation, groups});
}

}  // namespace

detail::TailResult detail::conv_integer_tail(const InputCodes& input, const Tensor& weight, const Optional& bias,
                                             const BatchNorm& bn, const ConvArguments& conv,
                                             const WeightCodes& weight_codes, int64_t activation, const GridRef& output,
                                             bool observe) {
  static const auto op = find_op<decltype(forward_cpu)>("_conv_integer_tail");
  auto [y, pass, min, max] =
      op.call(input.codes, input.scale, input.zero_point, weight, bias, bn.weight, bn.bias, bn.mean, bn.var, bn.eps,
              conv.stride, conv.padding, conv.dilation, conv.groups, weight_codes.bits, weight_codes.per_channel,
              activation, output.scale, output.zero_point, output.qmin, output.qmax, observe);
  return {y, pass, min, max};
}

TORCH_LIBRARY_FRAGMENT(octet, m) {
  m.def(
      "_conv_integer_tail(Tensor codes, Tensor scale, Tensor zero_point, Tensor weight, Tensor? bias, Tensor? "
      "bn_weight, Tensor? bn_bias, Tensor? bn_mean, Tensor? bn_var, float bn_eps, int[] stride, int[] padding, int[] "
      "dilation, int groups, int weight_bits, bool per_channel, int activation, Tensor output_scale, Tensor "
      "output_zero_point, int qmin, int qmax, bool observe) -> (Tensor y, Tensor pass_bits, Tensor min, Tensor max)");
}
TORCH_LIBRARY_IMPL(octet, CPU, m) { m.impl("_conv_integer_tail", TORCH_FN(forward_cpu)); }
TORCH_LIBRARY_IMPL(octet, Meta, m) { m.impl("_conv_integer_tail", TORCH_FN(forward_meta)); }

}  // namespace octet
