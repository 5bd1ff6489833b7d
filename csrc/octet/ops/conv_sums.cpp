#include "octet/ops/conv_sums.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "octet/core/requantize.h"
#include "octet/kernels/relayout.h"
#include "octet/kernels/training_conv.h"
#include "octet/ops/common.h"
#include "octet/ops/conv_shape.h"
#include "octet/ops/fold.h"
#include "octet/ops/fused_conv.h"
#include "octet/ops/grid_codes.h"
#include "octet/ops/nhwc.h"
#include "octet/ops/parallel.h"
#include "octet/ops/weight_rows.h"

namespace octet {

using at::IntArrayRef;
using at::Tensor;
using Optional = std::optional<Tensor>;
using Codes = std::tuple<Tensor, Tensor, Tensor>;  // codes, scale to read them by, whether they are the values
using Sums = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // sums, mean, var, min, max
using Gradients = std::tuple<Tensor, Tensor, Tensor>;             // of the sums, gamma, beta

namespace {

constexpr const char* kOp = "conv_block";

Tensor allocate_codes(const Tensor& x) {
  const auto sizes = x.sym_sizes();
  return detail::empty_channels_innermost(sizes[0], sizes[1], {sizes.begin() + 2, sizes.end()},
                                          x.options().dtype(at::kByte));
}

// Codes in x's order, then channels innermost: the transposition moves a quarter of the bytes that it would of x.
void write_codes(const Tensor& x, const Tensor& from, const Tensor& codes) {
  const int64_t channels = x.size(1), pixels = x.numel() / std::max<int64_t>(1, x.size(0) * channels);
  kernels::transpose_codes(from.const_data_ptr<uint8_t>(), x.size(0), channels, pixels,
                           codes.mutable_data_ptr<uint8_t>(), detail::torch_parallel);
}

Codes input_codes_cpu(const Tensor& raw, const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax) {
  const Grid grid = detail::read_grid(kOp, scale, zero_point, qmin, qmax);
  if (Tensor known = detail::attached_codes(raw, grid); known.defined()) {
    return {known, scale.clone(), at::ones({}, at::kBool)};
  }
  const bool innermost = detail::is_channels_innermost(raw);
  const Tensor x = innermost ? raw.to(at::kFloat) : raw.to(at::kFloat).contiguous();
  Tensor codes = allocate_codes(x), read_scale = at::empty({}, scale.options());
  const Tensor in_order = innermost ? codes : at::empty_like(x, at::kByte);
  const kernels::CodesFound found = kernels::training_codes(
      x.const_data_ptr<float>(), x.numel(), grid, in_order.mutable_data_ptr<uint8_t>(), detail::torch_parallel);
  if (!innermost) write_codes(x, in_order, codes);
  *read_scale.mutable_data_ptr<float>() = found.nan ? std::numeric_limits<float>::quiet_NaN() : grid.scale;
  return {codes, read_scale, at::full({}, found.on_grid, at::kBool)};
}

Codes input_codes_meta(const Tensor& x, const Tensor& scale, const Tensor&, int64_t, int64_t) {
  return {allocate_codes(x), at::empty({}, scale.options()), at::empty({}, scale.options().dtype(at::kBool))};
}

Tensor read_codes_cpu(const Tensor& raw, const Tensor& scale, const Tensor& zero_point) {
  const Tensor codes = detail::dense(raw);
  Tensor x = at::empty_like(codes, at::kBFloat16);
  const Grid grid{detail::read_one<float>(scale), detail::read_one<int32_t>(zero_point)};
  kernels::read_codes(codes.const_data_ptr<uint8_t>(), codes.numel(), grid,
                      static_cast<uint16_t*>(x.mutable_data_ptr()), detail::torch_parallel);
  return x;
}

Tensor read_codes_meta(const Tensor& codes, const Tensor&, const Tensor&) {
  return at::empty_like(detail::dense(codes), at::kBFloat16);
}

kernels::PackedConv pack(detail::WeightRows& weight, const kernels::ConvShape& shape) {
  const Tensor codes = weight.codes();
  return kernels::PackedConv(codes.const_data_ptr<int8_t>(), shape, detail::weight_order(codes), kernels::active_isa(),
                             detail::torch_parallel);
}

Sums with_statistics(const Tensor& sums) {
  const auto make = [&] { return at::empty_symint({sums.sym_size(1)}, sums.options()); };
  return {sums, make(), make(), make(), make()};
}

// What dropout leaves lies beside the grid, and beyond its ends: codes would clamp it.
Sums float_sums(const Tensor& x, const Tensor& weight, int64_t weight_bits, bool per_channel, IntArrayRef stride,
                IntArrayRef padding, IntArrayRef dilation, int64_t groups) {
  const Tensor w = fake_quantize_weight(weight, weight_bits, per_channel);
  const Tensor sums = detail::channels_innermost(
      detail::convolve(x, w, std::nullopt, {stride, padding, dilation, groups}).to(at::kFloat));
  const detail::BatchStatistics statistics = detail::batch_statistics(sums);
  return {sums, statistics.mean, statistics.var, statistics.min, statistics.max};
}

// A convolution of codes and what its kernel takes; `codes` has channels innermost.
class ConvOfCodes {
 public:
  ConvOfCodes(const Tensor& codes, const Tensor& scale, const Tensor& zero_point, const Tensor& raw_weight,
              const detail::WeightCodes& weight_codes, const detail::ConvArguments& conv)
      : codes_(codes),
        zero_point_(detail::read_one<int32_t>(zero_point)),
        sums_(detail::allocate_sums(codes, raw_weight, conv)),
        shape_(detail::conv_shape(codes, raw_weight, sums_, conv.stride, conv.padding, conv.dilation, conv.groups)),
        weight_(raw_weight, weight_codes.bits, weight_codes.per_channel),
        packed_(pack(weight_, shape_)),
        scales_(shape_.out_channels) {
    const auto input_scale = detail::read_one<float>(scale);
    for (int64_t c = 0; c < shape_.out_channels; ++c) scales_[c] = input_scale * weight_.scale(c);
  }

  // Written by run().
  const Tensor& sums() const { return sums_; }

  void run(const kernels::ChannelStatistics& statistics) const {
    kernels::conv_with_statistics(packed_, shape_, codes_.const_data_ptr<uint8_t>(), zero_point_, scales_.data(),
                                  sums_.mutable_data_ptr<float>(), statistics, detail::torch_parallel);
  }
  void run() const {
    kernels::run_conv_sums(packed_, shape_, codes_.const_data_ptr<uint8_t>(), zero_point_, nullptr, scales_.data(),
                           sums_.mutable_data_ptr<float>(), detail::torch_parallel);
  }

 private:
  Tensor codes_;
  int32_t zero_point_;
  Tensor sums_;
  kernels::ConvShape shape_;
  detail::WeightRows weight_;
  kernels::PackedConv packed_;
  std::vector<float> scales_;
};

Sums conv_sums_cpu(const Tensor& raw, const Tensor& scale, const Tensor& zero_point, const Optional& x,
                   const Optional& on_grid, const Tensor& raw_weight, int64_t weight_bits, bool per_channel,
                   IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups) {
  if (x && on_grid && !detail::read_one<bool>(*on_grid)) {
    return float_sums(*x, raw_weight, weight_bits, per_channel, stride, padding, dilation, groups);
  }
  const Tensor codes = detail::channels_innermost(raw);
  const ConvOfCodes conv(codes, scale, zero_point, raw_weight, {weight_bits, per_channel},
                         {stride, padding, dilation, groups});
  const Sums result = with_statistics(conv.sums());
  const auto& [sums, mean, var, min, max] = result;
  conv.run({mean.mutable_data_ptr<float>(), var.mutable_data_ptr<float>(), min.mutable_data_ptr<float>(),
            max.mutable_data_ptr<float>()});
  return result;
}

Sums conv_sums_meta(const Tensor& codes, const Tensor&, const Tensor&, const Optional&, const Optional&,
                    const Tensor& weight, int64_t, bool, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                    int64_t groups) {
  return with_statistics(detail::allocate_sums(codes, weight, {stride, padding, dilation, groups}));
}

Gradients recomputed_backward_cpu(const Tensor& grad, const Tensor& pass, const Tensor& raw, const Tensor& scale,
                                  const Tensor& zero_point, const Tensor& weight, int64_t weight_bits, bool per_channel,
                                  IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                                  const Tensor& mean, const Tensor& var, const Tensor& count, const Optional& gamma,
                                  double eps, at::ScalarType dtype, std::string_view group) {
  const Tensor codes = detail::channels_innermost(raw);
  const ConvOfCodes conv(codes, scale, zero_point, weight, {weight_bits, per_channel},
                         {stride, padding, dilation, groups});
  conv.run();
  return detail::block_tail_backward_cpu(grad, pass, conv.sums(), {mean, var, count}, gamma, eps, dtype, group,
                                         /*overwrite_x=*/true);
}

Gradients recomputed_backward_meta(const Tensor&, const Tensor&, const Tensor& codes, const Tensor&, const Tensor&,
                                   const Tensor& weight, int64_t, bool, IntArrayRef stride, IntArrayRef padding,
                                   IntArrayRef dilation, int64_t groups, const Tensor& mean, const Tensor&,
                                   const Tensor&, const Optional&, double, at::ScalarType dtype, std::string_view) {
  const Tensor sums = detail::allocate_sums(codes, weight, {stride, padding, dilation, groups});
  return {at::empty_like(sums, dtype), at::empty_like(mean), at::empty_like(mean)};
}

}  // namespace

detail::InputCodes detail::input_codes(const Tensor& x, const GridRef& grid) {
  static const auto op = find_op<decltype(input_codes_cpu)>("_input_codes");
  auto [codes, scale, on_grid] = op.call(x, grid.scale, grid.zero_point, grid.qmin, grid.qmax);
  return {codes, scale, grid.zero_point.clone(), on_grid};
}

Tensor detail::read_codes(const Tensor& codes, const Tensor& scale, const Tensor& zero_point) {
  static const auto op = find_op<decltype(read_codes_cpu)>("_read_codes");
  return op.call(codes, scale, zero_point);
}

Tensor detail::allocate_sums(const Tensor& codes, const Tensor& weight, const ConvArguments& conv) {
  std::vector<c10::SymInt> out;
  if (weight.dim() > 2) {
    out = conv_output_sizes(kOp, codes, weight, conv.stride, conv.padding, conv.dilation, conv.groups);
  }
  return empty_channels_innermost(codes.sym_size(0), weight.sym_size(0), out, weight.options());
}

bool detail::can_sum_codes(const Tensor& weight) {
  c10::SymInt products = 255 * 127;
  for (int64_t d = 1; d < weight.dim(); ++d) products = products * weight.sym_size(d);
  return products < kAccumulatorLimit && kernels::active_isa() != kernels::Isa::kGeneric;
}

std::tuple<Tensor, detail::BatchStatistics> detail::conv_sums(const InputCodes& input, const Optional& x,
                                                              const Tensor& weight, const WeightCodes& weight_codes,
                                                              const ConvArguments& conv) {
  static const auto op = find_op<decltype(conv_sums_cpu)>("_conv_sums");
  auto [sums, mean, var, min, max] = op.call(
      input.codes, input.scale, input.zero_point, x, input.on_grid.defined() ? Optional(input.on_grid) : std::nullopt,
      weight, weight_codes.bits, weight_codes.per_channel, conv.stride, conv.padding, conv.dilation, conv.groups);
  return {sums, {mean, var, min, max}};
}

std::tuple<Tensor, Tensor, Tensor> detail::recomputed_tail_backward(const Tensor& grad, const Tensor& pass,
                                                                    const InputCodes& input, const Tensor& weight,
                                                                    const WeightCodes& weight_codes,
                                                                    const ConvArguments& conv, const Moments& moments,
                                                                    const Optional& gamma, double eps,
                                                                    at::ScalarType dtype, std::string_view group) {
  static const auto op = find_op<decltype(recomputed_backward_cpu)>("_recomputed_tail_backward");
  return op.call(grad, pass, input.codes, input.scale, input.zero_point, weight, weight_codes.bits,
                 weight_codes.per_channel, conv.stride, conv.padding, conv.dilation, conv.groups, moments.mean,
                 moments.var, moments.count, gamma, eps, dtype, group);
}

TORCH_LIBRARY_FRAGMENT(octet, m) {
  m.def(
      "_input_codes(Tensor x, Tensor scale, Tensor zero_point, int qmin, int qmax) -> (Tensor codes, Tensor "
      "read_scale, Tensor on_grid)");
  m.def("_read_codes(Tensor codes, Tensor scale, Tensor zero_point) -> Tensor");
  m.def(
      "_conv_sums(Tensor codes, Tensor scale, Tensor zero_point, Tensor? x, Tensor? on_grid, Tensor weight, int "
      "weight_bits, bool per_channel, int[] stride, int[] padding, int[] dilation, int groups) -> (Tensor sums, Tensor "
      "mean, Tensor var, Tensor min, Tensor max)");
  m.def(
      "_recomputed_tail_backward(Tensor grad, Tensor pass_bits, Tensor codes, Tensor scale, Tensor zero_point, Tensor "
      "weight, int weight_bits, bool per_channel, int[] stride, int[] padding, int[] dilation, int groups, Tensor "
      "mean, Tensor var, Tensor count, Tensor? gamma, float eps, ScalarType dtype, str process_group) -> (Tensor, "
      "Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(octet, CPU, m) {
  m.impl("_input_codes", TORCH_FN(input_codes_cpu));
  m.impl("_read_codes", TORCH_FN(read_codes_cpu));
  m.impl("_conv_sums", TORCH_FN(conv_sums_cpu));
  m.impl("_recomputed_tail_backward", TORCH_FN(recomputed_backward_cpu));
}

TORCH_LIBRARY_IMPL(octet, Meta, m) {
  m.impl("_input_codes", TORCH_FN(input_codes_meta));
  m.impl("_read_codes", TORCH_FN(read_codes_meta));
  m.impl("_conv_sums", TORCH_FN(conv_sums_meta));
  m.impl("_recomputed_tail_backward", TORCH_FN(recomputed_backward_meta));
}

}  // namespace octet
