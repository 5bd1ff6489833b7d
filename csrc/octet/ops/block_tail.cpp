#include "octet/ops/block_tail.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <vector>

#include "octet/kernels/training.h"
#include "octet/ops/block_parts.h"
#include "octet/ops/common.h"
#include "octet/ops/parallel.h"

namespace octet {

using at::Tensor;
using Optional = std::optional<Tensor>;
using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Backward = std::tuple<Tensor, Tensor, Tensor>;

namespace {

bool channels_innermost(const Tensor& x) { return x.suggest_memory_format() != at::MemoryFormat::Contiguous; }

// contiguous or channels_last, as `like` suggests.
Tensor in_order(const Tensor& x, const Tensor& like) {
  return x.to(at::kFloat).contiguous(like.suggest_memory_format());
}

kernels::ChannelLayout layout_of(const Tensor& x) {
  const int64_t channels = x.size(1), batch = x.size(0);
  const int64_t pixels = x.numel() == 0 ? 0 : x.numel() / (batch * channels);
  if (channels_innermost(x)) return {batch * pixels, channels, 1};
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

// Tensors for the results, the same under Meta. x is already in order.
Forward allocate(const Tensor& x) {
  const auto options = x.options();
  // Bits in groups of sixteen: through the whole array if channels are innermost, else each row starts a new group.
  const c10::SymInt rows = x.sym_size(0) * x.sym_size(1);
  const c10::SymInt words =
      channels_innermost(x) ? (x.sym_numel() + 15) / 16 : rows * ((x.sym_numel() / rows.max(1) + 15) / 16);
  const std::vector<c10::SymInt> bytes{words * 2}, channels{x.sym_size(1)};
  return {at::empty_like(x),
          at::empty_symint(bytes, options.dtype(at::kByte)),
          at::empty({}, options),
          at::empty({}, options),
          at::empty_symint(channels, options),
          at::empty_symint(channels, options)};
}

Forward forward_cpu(const Tensor& raw, const Optional& gamma, const Optional& beta, double eps, int64_t activation,
                    const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax, bool observe) {
  const Tensor x = in_order(raw, raw);
  const kernels::ChannelLayout layout = layout_of(x);
  const int64_t channels = layout.channels;
  auto [y, pass, min, max, mean, var] = allocate(x);
  std::vector<float> lows(channels), highs(channels);
  float* means = mean.mutable_data_ptr<float>();
  float* vars = var.mutable_data_ptr<float>();
  const float* data = x.const_data_ptr<float>();
  kernels::channel_statistics(data, layout, {means, vars, lows.data(), highs.data()}, detail::torch_parallel);
  std::vector<float> gain = channel_values(gamma, channels, 1.0f), shift = channel_values(beta, channels, 0.0f);
  for (int64_t c = 0; c < channels; ++c) {
    gain[c] *= inverse_deviation(vars[c], eps);
    shift[c] -= means[c] * gain[c];
  }
  const Grid grid = detail::read_grid("conv_block", scale, zero_point, qmin, qmax);
  const kernels::Tail tail{gain.data(), shift.data(), static_cast<Activation>(activation), grid, true};
  kernels::tail_forward(data, layout, tail, y.mutable_data_ptr<float>(), pass.mutable_data_ptr<uint8_t>(),
                        detail::torch_parallel);
  const Range range = observe ? kernels::tail_range(lows.data(), highs.data(), channels, tail) : Range{};
  *min.mutable_data_ptr<float>() = range.min;
  *max.mutable_data_ptr<float>() = range.max;
  return {y, pass, min, max, mean, var};
}

Forward forward_meta(const Tensor& x, const Optional&, const Optional&, double, int64_t, const Tensor&, const Tensor&,
                     int64_t, int64_t, bool) {
  return allocate(in_order(x, x));
}

Backward backward_cpu(const Tensor& raw_grad, const Tensor& pass, const Tensor& raw_x, const Tensor& mean,
                      const Tensor& var, const Optional& gamma, double eps) {
  const Tensor x = in_order(raw_x, raw_x), grad = in_order(raw_grad, x);
  const kernels::ChannelLayout layout = layout_of(x);
  const int64_t channels = layout.channels;
  Tensor grad_x = at::empty_like(x), grad_gamma = at::empty_like(mean), grad_beta = at::empty_like(mean);
  const float* g = grad.const_data_ptr<float>();
  const float* data = x.const_data_ptr<float>();
  const float* means = mean.const_data_ptr<float>();
  const float* vars = var.const_data_ptr<float>();
  const uint8_t* bits = pass.const_data_ptr<uint8_t>();
  float* sum = grad_beta.mutable_data_ptr<float>();
  float* dot = grad_gamma.mutable_data_ptr<float>();
  kernels::tail_backward_sums(g, bits, data, means, layout, sum, dot, detail::torch_parallel);
  std::vector<float> a = channel_values(gamma, channels, 1.0f), b(channels), c(channels);
  const float n = static_cast<float>(layout.outer * layout.inner);
  for (int64_t i = 0; i < channels; ++i) {
    const float inverse = inverse_deviation(vars[i], eps);
    a[i] *= inverse;
    dot[i] *= inverse;  // now gamma's gradient
    b[i] = -a[i] * inverse * dot[i] / n;
    c[i] = -a[i] * sum[i] / n;
  }
  kernels::tail_backward(g, bits, data, {means, a.data(), b.data(), c.data()}, layout, grad_x.mutable_data_ptr<float>(),
                         detail::torch_parallel);
  return {grad_x, grad_gamma, grad_beta};
}

Backward backward_meta(const Tensor&, const Tensor&, const Tensor& x, const Tensor& mean, const Tensor&,
                       const Optional&, double) {
  return {at::empty_like(in_order(x, x)), at::empty_like(mean), at::empty_like(mean)};
}

}  // namespace

detail::TailResult detail::block_tail(const Tensor& x, const Optional& gamma, const Optional& beta, double eps,
                                      int64_t activation, const GridRef& output, bool observe) {
  static const auto op = find_op<decltype(forward_cpu)>("_block_tail");
  auto [y, pass, min, max, mean, var] =
      op.call(x, gamma, beta, eps, activation, output.scale, output.zero_point, output.qmin, output.qmax, observe);
  return {y, pass, min, max, mean, var};
}

Backward detail::block_tail_backward(const Tensor& grad, const Tensor& pass, const Tensor& x, const Tensor& mean,
                                     const Tensor& var, const Optional& gamma, double eps) {
  static const auto op = find_op<decltype(backward_cpu)>("_block_tail_backward");
  return op.call(grad, pass, x, mean, var, gamma, eps);
}

TORCH_LIBRARY_FRAGMENT(octet, m) {
  m.def(
      "_block_tail(Tensor x, Tensor? gamma, Tensor? beta, float eps, int activation, Tensor scale, Tensor zero_point, "
      "int "
      "qmin, int qmax, bool observe) -> (Tensor y, Tensor pass_bits, Tensor min, Tensor max, Tensor mean, Tensor var)");
  m.def(
      "_block_tail_backward(Tensor grad, Tensor pass_bits, Tensor x, Tensor mean, Tensor var, Tensor? gamma, float "
      "eps) "
      "-> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(octet, CPU, m) {
  m.impl("_block_tail", TORCH_FN(forward_cpu));
  m.impl("_block_tail_backward", TORCH_FN(backward_cpu));
}

TORCH_LIBRARY_IMPL(octet, Meta, m) {
  m.impl("_block_tail", TORCH_FN(forward_meta));
  m.impl("_block_tail_backward", TORCH_FN(backward_meta));
}

}  // namespace octet
