#include "octet/ops/integer_blocks.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "octet/ops/common.h"
#include "octet/ops/fold.h"
#include "octet/ops/int8_conv.h"
#include "octet/ops/int8_elementwise.h"
#include "octet/ops/int8_pool.h"
#include "octet/ops/quantize.h"

namespace octet {

using at::IntArrayRef;
using at::Tensor;
using Optional = std::optional<Tensor>;

namespace {

// The numbers an INT8 operator takes beside tensors. Under Meta they are unknown; any valid ones give the right shapes.
struct Numbers {
  int64_t x_zero_point = 128;
  double x_scale = 1;
  int64_t y_zero_point = 128;
  double y_scale = 1;
  CodeBounds bounds;
};

template <bool kMeta>
Numbers read_numbers(const char* op, int64_t activation, const GridRef& input, const GridRef& output) {
  if constexpr (kMeta) return {};
  const Grid x = detail::read_grid(op, input.scale, input.zero_point, input.qmin, input.qmax);
  return {x.zero_point, x.scale, detail::read_one<int32_t>(output.zero_point), detail::read_one<float>(output.scale),
          detail::output_bounds(op, activation, output)};
}

Tensor to_codes(const Tensor& x, const GridRef& grid) {
  return quantize_per_tensor(x, grid.scale, grid.zero_point, grid.qmin, grid.qmax, at::kByte);
}

// Back to float, in the layout of the block's input.
Tensor from_codes(const Tensor& q, const GridRef& grid, const Tensor& like) {
  const Tensor y = dequantize_per_tensor(q, grid.scale, grid.zero_point);
  return y.dim() == like.dim() ? y.contiguous(like.suggest_memory_format()) : y;
}

template <bool kMeta>
Tensor conv_block_integer(const Tensor& x, const Tensor& weight, const Optional& bias, const Optional& bn_weight,
                          const Optional& bn_bias, const Optional& bn_mean, const Optional& bn_var, double bn_eps,
                          IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                          int64_t activation, int64_t weight_bits, bool per_channel, const Tensor& input_scale,
                          const Tensor& input_zero_point, int64_t input_qmin, int64_t input_qmax,
                          const Tensor& output_scale, const Tensor& output_zero_point, int64_t output_qmin,
                          int64_t output_qmax) {
  const GridRef input{input_scale, input_zero_point, input_qmin, input_qmax};
  const GridRef output{output_scale, output_zero_point, output_qmin, output_qmax};
  const Numbers n = read_numbers<kMeta>("conv_block", activation, input, output);
  const auto [codes, integer_bias, multiplier] = fold(weight, bias, bn_weight, bn_bias, bn_mean, bn_var, bn_eps,
                                                      input_scale, output_scale, weight_bits, per_channel);
  const Tensor y = int8_conv(to_codes(x, input), codes, integer_bias, multiplier, stride, padding, dilation, groups,
                             n.x_zero_point, n.y_zero_point, n.bounds.lo, n.bounds.hi);
  return from_codes(y, output, x);
}

Tensor call_conv(const Tensor& x, const Tensor& weight, const Optional& bias, const Optional& bn_weight,
                 const Optional& bn_bias, const Optional& bn_mean, const Optional& bn_var, double bn_eps,
                 IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups, int64_t activation,
                 int64_t weight_bits, bool per_channel, const Tensor& input_scale, const Tensor& input_zero_point,
                 int64_t input_qmin, int64_t input_qmax, const Tensor& output_scale, const Tensor& output_zero_point,
                 int64_t output_qmin, int64_t output_qmax) {
  static const auto op = detail::find_op<decltype(call_conv)>("_conv_block_integer");
  return op.call(x, weight, bias, bn_weight, bn_bias, bn_mean, bn_var, bn_eps, stride, padding, dilation, groups,
                 activation, weight_bits, per_channel, input_scale, input_zero_point, input_qmin, input_qmax,
                 output_scale, output_zero_point, output_qmin, output_qmax);
}

// Rule 10: the ratios of steps, odd over odd.
float ratio_of(const Tensor& steps, const Tensor& output_steps) {
  return static_cast<float>(detail::read_one<int32_t>(steps)) /
         static_cast<float>(detail::read_one<int32_t>(output_steps));
}

template <bool kMeta>
Tensor add_block_integer(const Tensor& a, const Tensor& b, double alpha, int64_t activation, const Tensor& a_scale,
                         const Tensor& a_zero_point, const Tensor& a_steps, int64_t a_qmin, int64_t a_qmax,
                         const Tensor& b_scale, const Tensor& b_zero_point, const Tensor& b_steps, int64_t b_qmin,
                         int64_t b_qmax, const Tensor& output_scale, const Tensor& output_zero_point,
                         const Tensor& output_steps, int64_t output_qmin, int64_t output_qmax) {
  const GridRef a_grid{a_scale, a_zero_point, a_qmin, a_qmax}, b_grid{b_scale, b_zero_point, b_qmin, b_qmax};
  const GridRef output{output_scale, output_zero_point, output_qmin, output_qmax};
  const Tensor qa = to_codes(a, a_grid), qb = to_codes(b, b_grid);
  Tensor y;
  if constexpr (kMeta) {
    y = int8_add(qa, qb, 128, 1, 128, alpha, 128, 0, 255);
  } else {
    const Numbers n = read_numbers<kMeta>("add_block", activation, a_grid, output);
    y = int8_add(qa, qb, n.x_zero_point, ratio_of(a_steps, output_steps), detail::read_one<int32_t>(b_zero_point),
                 alpha * ratio_of(b_steps, output_steps), n.y_zero_point, n.bounds.lo, n.bounds.hi);
  }
  return dequantize_per_tensor(y, output_scale, output_zero_point);
}

Tensor call_add(const Tensor& a, const Tensor& b, double alpha, int64_t activation, const Tensor& a_scale,
                const Tensor& a_zero_point, const Tensor& a_steps, int64_t a_qmin, int64_t a_qmax,
                const Tensor& b_scale, const Tensor& b_zero_point, const Tensor& b_steps, int64_t b_qmin,
                int64_t b_qmax, const Tensor& output_scale, const Tensor& output_zero_point, const Tensor& output_steps,
                int64_t output_qmin, int64_t output_qmax) {
  static const auto op = detail::find_op<decltype(call_add)>("_add_block_integer");
  return op.call(a, b, alpha, activation, a_scale, a_zero_point, a_steps, a_qmin, a_qmax, b_scale, b_zero_point,
                 b_steps, b_qmin, b_qmax, output_scale, output_zero_point, output_steps, output_qmin, output_qmax);
}

template <bool kMeta>
Tensor avg_pool_block_integer(const Tensor& x, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                              bool ceil_mode, bool count_include_pad, int64_t divisor_override, IntArrayRef output_size,
                              const Tensor& input_scale, const Tensor& input_zero_point, int64_t input_qmin,
                              int64_t input_qmax, const Tensor& output_scale, const Tensor& output_zero_point,
                              int64_t output_qmin, int64_t output_qmax) {
  const GridRef input{input_scale, input_zero_point, input_qmin, input_qmax};
  const GridRef output{output_scale, output_zero_point, output_qmin, output_qmax};
  const Numbers n = read_numbers<kMeta>("avg_pool_block", 0, input, output);
  const Tensor q = to_codes(x, input);
  const Tensor y = kernel_size.empty()
                       ? int8_adaptive_avg_pool(q, output_size, n.x_scale, n.x_zero_point, n.y_scale, n.y_zero_point,
                                                n.bounds.lo, n.bounds.hi)
                       : int8_avg_pool(q, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override,
                                       n.x_scale, n.x_zero_point, n.y_scale, n.y_zero_point, n.bounds.lo, n.bounds.hi);
  return from_codes(y, output, x);
}

Tensor call_avg_pool(const Tensor& x, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding, bool ceil_mode,
                     bool count_include_pad, int64_t divisor_override, IntArrayRef output_size,
                     const Tensor& input_scale, const Tensor& input_zero_point, int64_t input_qmin, int64_t input_qmax,
                     const Tensor& output_scale, const Tensor& output_zero_point, int64_t output_qmin,
                     int64_t output_qmax) {
  static const auto op = detail::find_op<decltype(call_avg_pool)>("_avg_pool_block_integer");
  return op.call(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, output_size,
                 input_scale, input_zero_point, input_qmin, input_qmax, output_scale, output_zero_point, output_qmin,
                 output_qmax);
}

template <bool kMeta>
void implement(torch::Library& m) {
  m.impl("_conv_block_integer", TORCH_FN(conv_block_integer<kMeta>));
  m.impl("_add_block_integer", TORCH_FN(add_block_integer<kMeta>));
  m.impl("_avg_pool_block_integer", TORCH_FN(avg_pool_block_integer<kMeta>));
}

}  // namespace

namespace detail {

Tensor conv_integer(const Tensor& x, const Tensor& weight, const Optional& bias, const BatchNorm& bn,
                    const ConvArguments& conv, int64_t activation, int64_t weight_bits, bool per_channel,
                    const GridRef& input, const GridRef& output) {
  return call_conv(x, weight, bias, bn.weight, bn.bias, bn.mean, bn.var, bn.eps, conv.stride, conv.padding,
                   conv.dilation, conv.groups, activation, weight_bits, per_channel, input.scale, input.zero_point,
                   input.qmin, input.qmax, output.scale, output.zero_point, output.qmin, output.qmax);
}

Tensor add_integer(const Tensor& a, const Tensor& b, double alpha, int64_t activation, const GridRef& a_grid,
                   const Tensor& a_steps, const GridRef& b_grid, const Tensor& b_steps, const GridRef& output,
                   const Tensor& output_steps) {
  return call_add(a, b, alpha, activation, a_grid.scale, a_grid.zero_point, a_steps, a_grid.qmin, a_grid.qmax,
                  b_grid.scale, b_grid.zero_point, b_steps, b_grid.qmin, b_grid.qmax, output.scale, output.zero_point,
                  output_steps, output.qmin, output.qmax);
}

Tensor avg_pool_integer(const Tensor& x, const PoolArguments& pool, const GridRef& input, const GridRef& output) {
  return call_avg_pool(x, pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, pool.count_include_pad,
                       pool.divisor_override, pool.output_size, input.scale, input.zero_point, input.qmin, input.qmax,
                       output.scale, output.zero_point, output.qmin, output.qmax);
}

}  // namespace detail

TORCH_LIBRARY_FRAGMENT(octet, m) {
  m.def(
      "_conv_block_integer(Tensor x, Tensor weight, Tensor? bias, Tensor? bn_weight, Tensor? bn_bias, Tensor? bn_mean, "
      "Tensor? bn_var, float bn_eps, int[] stride, int[] padding, int[] dilation, int groups, int activation, int "
      "weight_bits, bool per_channel, Tensor input_scale, Tensor input_zero_point, int input_qmin, int input_qmax, "
      "Tensor output_scale, Tensor output_zero_point, int output_qmin, int output_qmax) -> Tensor");
  m.def(
      "_add_block_integer(Tensor a, Tensor b, float alpha, int activation, Tensor a_scale, Tensor a_zero_point, Tensor "
      "a_steps, int a_qmin, int a_qmax, Tensor b_scale, Tensor b_zero_point, Tensor b_steps, int b_qmin, int b_qmax, "
      "Tensor output_scale, Tensor output_zero_point, Tensor output_steps, int output_qmin, int output_qmax) -> "
      "Tensor");
  m.def(
      "_avg_pool_block_integer(Tensor x, int[] kernel_size, int[] stride, int[] padding, bool ceil_mode, bool "
      "count_include_pad, int divisor_override, int[] output_size, Tensor input_scale, Tensor input_zero_point, int "
      "input_qmin, int input_qmax, Tensor output_scale, Tensor output_zero_point, int output_qmin, int output_qmax) -> "
      "Tensor");
}

TORCH_LIBRARY_IMPL(octet, CompositeExplicitAutograd, m) { implement<false>(m); }
TORCH_LIBRARY_IMPL(octet, Meta, m) { implement<true>(m); }

TORCH_LIBRARY_IMPL(octet, Autograd, m) {
  m.impl("_conv_block_integer", TORCH_FN(detail::NonDifferentiable<call_conv>::call));
  m.impl("_add_block_integer", TORCH_FN(detail::NonDifferentiable<call_add>::call));
  m.impl("_avg_pool_block_integer", TORCH_FN(detail::NonDifferentiable<call_avg_pool>::call));
}

}  // namespace octet
