#include "octet/ops/block_tail.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "octet/kernels/training.h"
#include "octet/ops/block_parts.h"
#include "octet/ops/common.h"
#include "octet/ops/grid_codes.h"
#include "octet/ops/nhwc.h"
#include "octet/ops/parallel.h"

namespace octet {

using at::Tensor;
using Optional = std::optional<Tensor>;
using Statistics = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // mean, var, min, max
using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;     // y, pass bits, min, max
using Backward = std::tuple<Tensor, Tensor, Tensor>;

namespace {

// float32 with channels innermost or contiguous, as `like` is.
Tensor in_order(const Tensor& x, const Tensor& like) {
  const Tensor floats = x.to(at::kFloat);
  return detail::is_channels_innermost(like) ? detail::channels_innermost(floats) : floats.contiguous();
}

kernels::ChannelLayout layout_of(const Tensor& x) {
  const int64_t channels = x.size(1), batch = x.size(0);
  const int64_t pixels = x.numel() == 0 ? 0 : x.numel() / (batch * channels);
  if (detail::is_channels_innermost(x)) return {batch * pixels, channels, 1};
  return {batch, channels, pixels};
}

// A parameter per channel, `standard` where there is none.
std::vector<float> channel_values(const Optional& t, int64_t channels, float standard) {
  if (!t) return std::vector<float>(channels, standard);
  const Tensor values = t->to(at::kFloat).contiguous();
  const float* data = values.const_data_ptr<float>();
  return std::vector<float>(data, data + channels);
}

float inverse_deviation(float variance, double eps) { return static_cast<float>(1.0 / std::sqrt(variance + eps)); }

// Batch norm by finite statistics makes no NaN: had x one, they would not be finite.
bool all_finite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

Statistics allocate_statistics(const Tensor& x) {
  const auto make = [&] { return at::empty_symint({x.sym_size(1)}, x.options().dtype(at::kFloat)); };
  return {make(), make(), make(), make()};
}

Statistics statistics_cpu(const Tensor& raw) {
  const Tensor x = in_order(raw, raw);
  const Statistics result = allocate_statistics(x);
  const auto& [mean, var, min, max] = result;
  const kernels::ChannelStatistics out{mean.mutable_data_ptr<float>(), var.mutable_data_ptr<float>(),
                                       min.mutable_data_ptr<float>(), max.mutable_data_ptr<float>()};
  kernels::channel_statistics(x.const_data_ptr<float>(), layout_of(x), out, detail::torch_parallel);
  return result;
}

// Tensors for the results, the same under Meta. x is already in order.
Forward allocate(const Tensor& x) {
  const auto options = x.options();
  // Bits in groups of sixteen: through the whole array if channels are innermost, else each row starts a new group.
  const c10::SymInt rows = x.sym_size(0) * x.sym_size(1);
  const c10::SymInt words =
      detail::is_channels_innermost(x) ? (x.sym_numel() + 15) / 16 : rows * ((x.sym_numel() / rows.max(1) + 15) / 16);
  const std::vector<c10::SymInt> bytes{words * 2};
  return {at::empty_like(x), at::empty_symint(bytes, options.dtype(at::kByte)), at::empty({}, options),
          at::empty({}, options)};
}

Forward forward_cpu(const Tensor& raw, const Tensor& mean, const Tensor& var, const Tensor& low, const Tensor& high,
                    const Optional& gamma, const Optional& beta, double eps, int64_t activation, const Tensor& scale,
                    const Tensor& zero_point, int64_t qmin, int64_t qmax, bool observe) {
  const Tensor x = in_order(raw, raw);
  const kernels::ChannelLayout layout = layout_of(x);
  const int64_t channels = layout.channels;
  auto [y, pass, min, max] = allocate(x);
  const float* means = mean.const_data_ptr<float>();
  const float* vars = var.const_data_ptr<float>();
  std::vector<float> gain = channel_values(gamma, channels, 1.0f), shift = channel_values(beta, channels, 0.0f);
  for (int64_t c = 0; c < channels; ++c) {
    gain[c] *= inverse_deviation(vars[c], eps);
    shift[c] -= means[c] * gain[c];
  }
  const Grid grid = detail::read_grid("conv_block", scale, zero_point, qmin, qmax);
  const kernels::Tail tail{gain.data(), shift.data(), static_cast<Activation>(activation), grid};
  const Tensor codes = at::empty_like(y, at::kByte);
  kernels::tail_forward(
      x.const_data_ptr<float>(), layout, tail,
      {y.mutable_data_ptr<float>(), codes.mutable_data_ptr<uint8_t>(), pass.mutable_data_ptr<uint8_t>()},
      detail::torch_parallel);
  const bool wanted = detail::is_channels_innermost(codes);  // what convolutions read
  if (wanted && all_finite(gain) && all_finite(shift)) detail::attach_codes(y, codes, grid);
  const Range range =
      observe ? kernels::tail_range(low.const_data_ptr<float>(), high.const_data_ptr<float>(), channels, tail)
              : Range{};
  *min.mutable_data_ptr<float>() = range.min;
  *max.mutable_data_ptr<float>() = range.max;
  return {y, pass, min, max};
}

Forward forward_meta(const Tensor& x, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Optional&,
                     const Optional&, double, int64_t, const Tensor&, const Tensor&, int64_t, int64_t, bool) {
  return allocate(in_order(x, x));
}

Statistics statistics_meta(const Tensor& x) { return allocate_statistics(x); }

Backward backward_cpu(const Tensor& grad, const Tensor& pass, const Tensor& x, const Tensor& mean, const Tensor& var,
                      const Tensor& count, const Optional& gamma, double eps, at::ScalarType dtype,
                      std::string_view group) {
  return detail::block_tail_backward_cpu(grad, pass, x, {mean, var, count}, gamma, eps, dtype, group, false);
}

Backward backward_meta(const Tensor&, const Tensor&, const Tensor& x, const Tensor& mean, const Tensor&, const Tensor&,
                       const Optional&, double, at::ScalarType dtype, std::string_view) {
  return {at::empty_like(in_order(x, x), dtype), at::empty_like(mean), at::empty_like(mean)};
}

// In y's order of memory, which the pass bits have: channels innermost, as what convolutions give.
Tensor order_of(const Tensor& grad, const Optional& x) {
  return x ? in_order(grad, *x) : detail::channels_innermost(grad.to(at::kFloat));
}

// What the kernels write for a convolution's backward in `dtype`.
at::ScalarType gradient_type(at::ScalarType dtype) { return dtype == at::kBFloat16 ? dtype : at::kFloat; }

Tensor in_type(const Tensor& t, at::ScalarType dtype) { return t.scalar_type() == dtype ? t : t.to(dtype); }

void write_gradient(const float* grad, const uint8_t* pass, const float* x, const kernels::TailGradient& tables,
                    const kernels::ChannelLayout& layout, Tensor& grad_x) {
  if (grad_x.scalar_type() == at::kBFloat16) {
    auto* to = static_cast<uint16_t*>(grad_x.mutable_data_ptr());
    return kernels::tail_backward(grad, pass, x, tables, layout, to, detail::torch_parallel);
  }
  kernels::tail_backward(grad, pass, x, tables, layout, grad_x.mutable_data_ptr<float>(), detail::torch_parallel);
}

Backward frozen_cpu(const Tensor& raw_grad, const Tensor& pass, const Optional& x, const Tensor& mean,
                    const Tensor& var, const Optional& gamma, double eps, at::ScalarType dtype) {
  const Tensor grad = order_of(raw_grad, x);
  const kernels::ChannelLayout layout = layout_of(grad);
  Tensor grad_x = at::empty_like(grad, gradient_type(dtype)), grad_gamma = at::zeros_like(mean),
         grad_beta = at::zeros_like(mean);
  const float* g = grad.const_data_ptr<float>();
  const uint8_t* bits = pass.const_data_ptr<uint8_t>();
  const float* vars = var.const_data_ptr<float>();
  float* dot = grad_gamma.mutable_data_ptr<float>();
  kernels::tail_backward_sums(g, bits, x ? x->const_data_ptr<float>() : nullptr, mean.const_data_ptr<float>(), layout,
                              grad_beta.mutable_data_ptr<float>(), dot, detail::torch_parallel);
  std::vector<float> gain = channel_values(gamma, layout.channels, 1.0f);
  for (int64_t c = 0; c < layout.channels; ++c) {
    const float inverse = inverse_deviation(vars[c], eps);
    gain[c] *= inverse;
    dot[c] *= inverse;
  }
  write_gradient(g, bits, nullptr, {nullptr, gain.data(), nullptr, nullptr}, layout, grad_x);
  return {in_type(grad_x, dtype), grad_gamma, grad_beta};
}

Backward frozen_meta(const Tensor& grad, const Tensor&, const Optional& x, const Tensor& mean, const Tensor&,
                     const Optional&, double, at::ScalarType dtype) {
  return {at::empty_like(order_of(grad, x), dtype), at::empty_like(mean), at::empty_like(mean)};
}

}  // namespace

Backward detail::block_tail_backward_cpu(const Tensor& raw_grad, const Tensor& pass, const Tensor& raw_x,
                                         const Moments& moments, const Optional& gamma, double eps,
                                         at::ScalarType dtype, std::string_view group, bool overwrite_x) {
  const auto& [mean, var, count] = moments;
  const Tensor x = in_order(raw_x, raw_x), grad = in_order(raw_grad, x);
  const kernels::ChannelLayout layout = layout_of(x);
  const int64_t channels = layout.channels;
  const bool in_place = overwrite_x && gradient_type(dtype) == at::kFloat;
  Tensor grad_x = in_place ? x : at::empty_like(x, gradient_type(dtype));
  Tensor grad_gamma = at::zeros_like(mean), grad_beta = at::zeros_like(mean);  // an empty batch adds nothing
  const float* g = grad.const_data_ptr<float>();
  const float* data = x.const_data_ptr<float>();
  const float* means = mean.const_data_ptr<float>();
  const float* vars = var.const_data_ptr<float>();
  const uint8_t* bits = pass.const_data_ptr<uint8_t>();
  float* sum = grad_beta.mutable_data_ptr<float>();
  float* dot = grad_gamma.mutable_data_ptr<float>();
  kernels::tail_backward_sums(g, bits, data, means, layout, sum, dot, detail::torch_parallel);
  Tensor whole;
  const float *whole_sum = sum, *whole_dot = dot;
  if (!group.empty()) {
    whole = detail::sum_over_processes(at::stack({grad_beta, grad_gamma}), group);
    whole_sum = whole.const_data_ptr<float>();
    whole_dot = whole_sum + channels;
  }
  std::vector<float> a = channel_values(gamma, channels, 1.0f), b(channels), c(channels);
  const auto n = static_cast<float>(detail::read_one<int64_t>(count));
  for (int64_t i = 0; i < channels; ++i) {
    const float inverse = inverse_deviation(vars[i], eps);
    a[i] *= inverse;
    b[i] = -a[i] * inverse * (whole_dot[i] * inverse) / n;
    c[i] = -a[i] * whole_sum[i] / n;
    dot[i] *= inverse;  // now gamma's gradient
  }
  const kernels::TailGradient tables{means, a.data(), b.data(), c.data()};
  write_gradient(g, bits, data, tables, layout, grad_x);
  return {in_type(grad_x, dtype), grad_gamma, grad_beta};
}

detail::BatchStatistics detail::batch_statistics(const Tensor& x) {
  static const auto op = find_op<decltype(statistics_cpu)>("_batch_statistics");
  auto [mean, var, min, max] = op.call(x);
  return {mean, var, min, max};
}

detail::TailResult detail::block_tail(const Tensor& x, const BatchStatistics& statistics, const Optional& gamma,
                                      const Optional& beta, double eps, int64_t activation, const GridRef& output,
                                      bool observe) {
  static const auto op = find_op<decltype(forward_cpu)>("_block_tail");
  const auto& [mean, var, low, high] = statistics;
  auto [y, pass, min, max] = op.call(x, mean, var, low, high, gamma, beta, eps, activation, output.scale,
                                     output.zero_point, output.qmin, output.qmax, observe);
  return {y, pass, min, max};
}

Backward detail::block_tail_backward(const Tensor& grad, const Tensor& pass, const Tensor& x, const Moments& moments,
                                     const Optional& gamma, double eps, at::ScalarType dtype, std::string_view group) {
  static const auto op = find_op<decltype(backward_cpu)>("_block_tail_backward");
  return op.call(grad, pass, x, moments.mean, moments.var, moments.count, gamma, eps, dtype, group);
}

Backward detail::frozen_tail_backward(const Tensor& grad, const Tensor& pass, const Optional& x, const Moments& moments,
                                      const Optional& gamma, double eps, at::ScalarType dtype) {
  static const auto op = find_op<decltype(frozen_cpu)>("_frozen_tail_backward");
  return op.call(grad, pass, x, moments.mean, moments.var, gamma, eps, dtype);
}

TORCH_LIBRARY_FRAGMENT(octet, m) {
  m.def(
      "_frozen_tail_backward(Tensor grad, Tensor pass_bits, Tensor? x, Tensor mean, Tensor var, Tensor? gamma, float "
      "eps, ScalarType dtype) -> (Tensor, Tensor, Tensor)");
  m.def("_batch_statistics(Tensor x) -> (Tensor mean, Tensor var, Tensor min, Tensor max)");
  m.def(
      "_block_tail(Tensor x, Tensor mean, Tensor var, Tensor low, Tensor high, Tensor? gamma, Tensor? beta, float eps, "
      "int activation, Tensor scale, Tensor zero_point, int qmin, int qmax, bool observe) -> (Tensor y, Tensor "
      "pass_bits, Tensor min, Tensor max)");
  m.def(
      "_block_tail_backward(Tensor grad, Tensor pass_bits, Tensor x, Tensor mean, Tensor var, Tensor count, Tensor? "
      "gamma, float eps, ScalarType dtype, str process_group) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(octet, CPU, m) {
  m.impl("_batch_statistics", TORCH_FN(statistics_cpu));
  m.impl("_block_tail", TORCH_FN(forward_cpu));
  m.impl("_block_tail_backward", TORCH_FN(backward_cpu));
  m.impl("_frozen_tail_backward", TORCH_FN(frozen_cpu));
}

TORCH_LIBRARY_IMPL(octet, Meta, m) {
  m.impl("_batch_statistics", TORCH_FN(statistics_meta));
  m.impl("_block_tail", TORCH_FN(forward_meta));
  m.impl("_block_tail_backward", TORCH_FN(backward_meta));
  m.impl("_frozen_tail_backward", TORCH_FN(frozen_meta));
}

}  // namespace octet
