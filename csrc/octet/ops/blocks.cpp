#include "octet/ops/blocks.h"

#include <ATen/ops/adaptive_avg_pool1d.h>
#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/adaptive_avg_pool3d.h>
#include <ATen/ops/avg_pool1d.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/avg_pool3d.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include <algorithm>

#include "octet/ops/common.h"
#include "octet/ops/fake_quantize.h"
#include "octet/ops/fold.h"
#include "octet/ops/fused_add.h"
#include "octet/ops/fused_conv.h"
#include "octet/ops/integer_blocks.h"

namespace octet {

using at::IntArrayRef;
using at::Tensor;
using detail::BatchNorm;
using detail::ConvArguments;
using detail::PoolArguments;
using Optional = std::optional<Tensor>;

namespace {

void check_operands(const char* op, const Tensor& x, const Tensor& weight, const Optional& bias, const GridRef& input,
                    const GridRef& output, int64_t weight_bits) {
  detail::check_floating(op, "x", x);
  detail::check_floating(op, "weight", weight);
  TORCH_CHECK(!bias || (bias->dim() == 1 && bias->sym_numel() == weight.sym_size(0)), op,
              ": bias.numel() must equal weight.size(0) (got ", bias->sym_numel(), ", ", weight.sym_size(0), ")");
  TORCH_CHECK(weight_bits >= 2 && weight_bits <= 8, op, ": weight_bits must lie in [2, 8] (got ", weight_bits, ")");
  detail::check_grid(op, input.scale, input.zero_point, "input_");
  detail::check_grid(op, output.scale, output.zero_point, "output_");
}

void check_batch_norm(const char* op, const BatchNorm& bn, const c10::SymInt& channels) {
  for (const Optional* t : {&bn.weight, &bn.bias, &bn.mean, &bn.var}) {
    TORCH_CHECK(!*t || ((*t)->dim() == 1 && (*t)->sym_numel() == channels), op,
                ": batch norm's parameters must have one element per channel (got ", (*t)->sym_numel(), " for ",
                channels, " channels)");
  }
}

void check_conv(const Tensor& x, const Tensor& weight, const ConvArguments& conv) {
  constexpr const char* kOp = "conv_block";
  TORCH_CHECK(weight.dim() >= 3 && weight.dim() <= 5, kOp, ": weight must have 3, 4 or 5 dimensions (got ",
              weight.dim(), ")");
  TORCH_CHECK(x.dim() == weight.dim(), kOp, ": x must have as many dimensions as weight (got ", x.dim(), ", ",
              weight.dim(), ")");
  TORCH_CHECK(x.sym_size(1) == weight.sym_size(1) * conv.groups, kOp,
              ": x.size(1) must equal weight.size(1) * groups (got ", x.sym_size(1), ", ",
              weight.sym_size(1) * conv.groups, ")");
}

// What a block with batch norm does around its operator.
struct Tail {
  const char* op;
  const BatchNorm& bn;
  int64_t activation;
  const GridRef& output;
  bool fake_quantize, observe;

  // The integer path gives the value wherever batch norm does not need the batch.
  bool integer() const { return fake_quantize && !bn.batch_stats; }

  // y: what the operator gave. value: the integer path's result, undefined where the float path gives it.
  BlockResult finish(const Tensor& operator_output, const Tensor& value) const {
    const detail::Normalized normalized = detail::normalize(op, detail::to_block_dtype(operator_output), bn);
    Tensor y = detail::activate(op, normalized.y, activation);
    const auto [low, high] = detail::observed(y, observe);
    if (fake_quantize) {
      y = fake_quantize_per_tensor(y, output.scale, output.zero_point, output.qmin, output.qmax);
    }
    if (value.defined()) y = detail::straight_through(y, value.to(y.scalar_type()));
    return {y, low, high, normalized.mean, normalized.var, normalized.count};
  }

  // Only the integer path ran.
  BlockResult inference(const Tensor& value) const {
    const auto [low, high] = detail::observed(value, false);
    const Tensor none = at::empty({0}, value.options()), no_count = at::empty({0}, value.options().dtype(at::kLong));
    return {value, low, high, none, none, no_count};
  }
};

BlockResult conv_block_composite(const Tensor& x, const Tensor& weight, const Optional& bias, const Optional& bn_weight,
                                 const Optional& bn_bias, const Optional& bn_mean, const Optional& bn_var,
                                 double bn_eps, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                 int64_t groups, int64_t activation, int64_t weight_bits, bool per_channel,
                                 const Tensor& input_scale, const Tensor& input_zero_point, int64_t input_qmin,
                                 int64_t input_qmax, const Tensor& output_scale, const Tensor& output_zero_point,
                                 int64_t output_qmin, int64_t output_qmax, bool fake_quantize, bool batch_stats,
                                 bool observe, bool low_memory, std::string_view process_group) {
  const GridRef input{input_scale, input_zero_point, input_qmin, input_qmax};
  const GridRef output{output_scale, output_zero_point, output_qmin, output_qmax};
  const BatchNorm bn{bn_weight, bn_bias, bn_mean, bn_var, bn_eps, batch_stats, process_group};
  const ConvArguments conv{stride, padding, dilation, groups};
  check_operands("conv_block", x, weight, bias, input, output, weight_bits);
  check_conv(x, weight, conv);
  check_batch_norm("conv_block", bn, weight.sym_size(0));
  detail::parse_activation("conv_block", activation);
  const bool plain = !batch_stats && !observe && !detail::needs_gradient({x, weight, bias, bn_weight, bn_bias});
  if (fake_quantize && !plain && detail::can_fuse(x, weight)) {
    return detail::fused_block(
        x, weight, bias,
        {"conv_block", conv, bn, activation, weight_bits, per_channel, input, output, observe, low_memory});
  }
  const Tail tail{"conv_block", bn, activation, output, fake_quantize, observe};
  Tensor value;
  if (tail.integer()) {
    value = detail::conv_integer(x, weight, bias, bn, conv, activation, weight_bits, per_channel, input, output);
    value = value.to(detail::block_dtype(weight));
    if (plain) return tail.inference(value);
  }
  const Tensor w = fake_quantize ? fake_quantize_weight(weight, weight_bits, per_channel) : weight;
  return tail.finish(detail::convolve(x, w, bias, conv), value);
}

BlockResult linear_block_composite(const Tensor& x, const Tensor& weight, const Optional& bias,
                                   const Optional& bn_weight, const Optional& bn_bias, const Optional& bn_mean,
                                   const Optional& bn_var, double bn_eps, int64_t activation, int64_t weight_bits,
                                   bool per_channel, const Tensor& input_scale, const Tensor& input_zero_point,
                                   int64_t input_qmin, int64_t input_qmax, const Tensor& output_scale,
                                   const Tensor& output_zero_point, int64_t output_qmin, int64_t output_qmax,
                                   bool fake_quantize, bool batch_stats, bool observe, bool low_memory,
                                   std::string_view process_group) {
  constexpr const char* kOp = "linear_block";
  const GridRef input{input_scale, input_zero_point, input_qmin, input_qmax};
  const GridRef output{output_scale, output_zero_point, output_qmin, output_qmax};
  const BatchNorm bn{bn_weight, bn_bias, bn_mean, bn_var, bn_eps, batch_stats, process_group};
  check_operands(kOp, x, weight, bias, input, output, weight_bits);
  TORCH_CHECK(weight.dim() == 2, kOp, ": weight must have 2 dimensions (got ", weight.dim(), ")");
  TORCH_CHECK(x.dim() >= 1 && x.sym_size(-1) == weight.sym_size(1), kOp,
              ": x.size(-1) must equal weight.size(1) (got x of shape ", x.sym_sizes(), ", weight of shape ",
              weight.sym_sizes(), ")");
  TORCH_CHECK(!bn.present() || x.dim() == 2, kOp, ": batch norm needs x of shape [N, I] (got ", x.sym_sizes(), ")");
  check_batch_norm(kOp, bn, weight.sym_size(0));
  detail::parse_activation(kOp, activation);
  auto shape = x.sym_sizes().vec();
  shape.back() = weight.sym_size(0);
  const Tensor rows = x.dim() == 2 ? x : x.reshape_symint({x.sym_numel() / weight.sym_size(1), weight.sym_size(1)});
  const bool plain = !batch_stats && !observe && !detail::needs_gradient({x, weight, bias, bn_weight, bn_bias});
  if (fake_quantize && !plain && detail::can_fuse(x, weight)) {
    BlockResult result = detail::fused_block(
        rows, weight, bias,
        {kOp, {{}, {}, {}, 1}, bn, activation, weight_bits, per_channel, input, output, observe, low_memory});
    if (x.dim() != 2) std::get<0>(result) = std::get<0>(result).reshape_symint(shape);
    return result;
  }
  const Tail tail{kOp, bn, activation, output, fake_quantize, observe};
  Tensor value;
  if (tail.integer()) {
    // A linear layer is a convolution over one position.
    const int64_t one = 1, zero = 0;
    const ConvArguments conv{one, zero, one, 1};
    value = detail::conv_integer(rows.unsqueeze(-1), weight.unsqueeze(-1), bias, bn, conv, activation, weight_bits,
                                 per_channel, input, output);
    value = value.reshape_symint(shape).to(detail::block_dtype(weight));
    if (plain) return tail.inference(value);
  }
  const Tensor w = fake_quantize ? fake_quantize_weight(weight, weight_bits, per_channel) : weight;
  return tail.finish(at::linear(x.to(weight.scalar_type()), w, bias), value);
}

BlockResult batch_norm_block_composite(const Tensor& x, const Optional& bn_weight, const Optional& bn_bias,
                                       const Optional& bn_mean, const Optional& bn_var, double bn_eps,
                                       int64_t activation, const Tensor& input_scale, const Tensor& input_zero_point,
                                       int64_t input_qmin, int64_t input_qmax, const Tensor& output_scale,
                                       const Tensor& output_zero_point, int64_t output_qmin, int64_t output_qmax,
                                       bool fake_quantize, bool batch_stats, bool observe,
                                       std::string_view process_group) {
  constexpr const char* kOp = "batch_norm_block";
  const GridRef input{input_scale, input_zero_point, input_qmin, input_qmax};
  const GridRef output{output_scale, output_zero_point, output_qmin, output_qmax};
  const BatchNorm bn{bn_weight, bn_bias, bn_mean, bn_var, bn_eps, batch_stats, process_group};
  detail::check_floating(kOp, "x", x);
  TORCH_CHECK(x.dim() >= 2 && x.dim() <= 5, kOp, ": x must have 2 to 5 dimensions (got ", x.dim(), ")");
  TORCH_CHECK(bn.present(), kOp, ": batch norm without batch_stats needs bn_mean and bn_var (got none)");
  detail::check_grid(kOp, input.scale, input.zero_point, "input_");
  detail::check_grid(kOp, output.scale, output.zero_point, "output_");
  check_batch_norm(kOp, bn, x.sym_size(1));
  const Tail tail{kOp, bn, activation, output, fake_quantize, observe};
  Tensor value;
  if (tail.integer()) {
    const Tensor image = x.dim() == 2 ? x.unsqueeze(-1) : x;
    std::vector<c10::SymInt> shape(image.dim(), 1);
    shape[0] = x.sym_size(1);
    const int64_t ones[] = {1, 1, 1}, zeros[] = {0, 0, 0};
    const size_t rank = image.dim() - 2;
    const ConvArguments conv{{ones, rank}, {zeros, rank}, {ones, rank}, x.size(1)};
    value = detail::conv_integer(image, at::ones_symint(shape, x.options().dtype(at::kFloat)), std::nullopt, bn, conv,
                                 activation, 8, true, input, output);
    value = value.view_symint(x.sym_sizes()).to(detail::block_dtype(x));
    if (!observe && !detail::needs_gradient({x, bn_weight, bn_bias})) return tail.inference(value);
  }
  return tail.finish(x, value);
}

// The end of blocks without batch norm or weights.
ObservedResult finish(const char* op, const Tensor& result, int64_t activation, const GridRef& output,
                      bool fake_quantize, bool observe, const Tensor& value) {
  Tensor y = detail::activate(op, detail::to_block_dtype(result), activation);
  const auto [low, high] = detail::observed(y, observe);
  if (fake_quantize) {
    y = fake_quantize_per_tensor(y, output.scale, output.zero_point, output.qmin, output.qmax);
    y = detail::straight_through(y, value.to(y.scalar_type()));
  }
  return {y, low, high};
}

ObservedResult inference(const Tensor& value) {
  const auto [low, high] = detail::observed(value, false);
  return {value, low, high};
}

ObservedResult add_block_composite(const Tensor& a, const Tensor& b, double alpha, int64_t activation,
                                   const Tensor& a_scale, const Tensor& a_zero_point, const Tensor& a_steps,
                                   int64_t a_qmin, int64_t a_qmax, const Tensor& b_scale, const Tensor& b_zero_point,
                                   const Tensor& b_steps, int64_t b_qmin, int64_t b_qmax, const Tensor& output_scale,
                                   const Tensor& output_zero_point, const Tensor& output_steps, int64_t output_qmin,
                                   int64_t output_qmax, bool fake_quantize, bool observe) {
  constexpr const char* kOp = "add_block";
  const GridRef a_grid{a_scale, a_zero_point, a_qmin, a_qmax}, b_grid{b_scale, b_zero_point, b_qmin, b_qmax};
  const GridRef output{output_scale, output_zero_point, output_qmin, output_qmax};
  detail::check_floating(kOp, "a", a);
  detail::check_floating(kOp, "b", b);
  TORCH_CHECK(alpha == 1 || alpha == -1, kOp, ": alpha must be 1 or -1 (got ", alpha, ")");
  detail::check_grid(kOp, a_scale, a_zero_point, "a_");
  detail::check_grid(kOp, b_scale, b_zero_point, "b_");
  detail::check_grid(kOp, output_scale, output_zero_point, "output_");
  detail::parse_activation(kOp, activation);
  const bool plain = !observe && !detail::needs_gradient({a, b});
  if (fake_quantize && !plain && detail::can_fuse_add(a, b)) {
    return detail::fused_add_block(a, b, alpha, activation, a_grid, a_steps, b_grid, b_steps, output, output_steps,
                                   observe);
  }
  Tensor value;
  if (fake_quantize) {
    value = detail::add_integer(a, b, alpha, activation, a_grid, a_steps, b_grid, b_steps, output, output_steps);
    const bool wide = a.scalar_type() == at::kDouble || b.scalar_type() == at::kDouble;
    if (wide) value = value.to(at::kDouble);
    if (plain) return inference(value);
  }
  const Tensor left = detail::to_block_dtype(a), right = detail::to_block_dtype(b);
  return finish(kOp, alpha > 0 ? left + right : left - right, activation, output, fake_quantize, observe, value);
}

Tensor average(const Tensor& x, const PoolArguments& pool) {
  const auto rank = x.dim() - 2;
  if (pool.kernel_size.empty()) {
    if (rank == 1) return at::adaptive_avg_pool1d(x, pool.output_size);
    return rank == 2 ? at::adaptive_avg_pool2d(x, pool.output_size) : at::adaptive_avg_pool3d(x, pool.output_size);
  }
  const auto divisor = pool.divisor_override > 0 ? std::optional(pool.divisor_override) : std::nullopt;
  if (rank == 1) {
    return at::avg_pool1d(x, pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, pool.count_include_pad);
  }
  if (rank == 2) {
    return at::avg_pool2d(x, pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, pool.count_include_pad,
                          divisor);
  }
  return at::avg_pool3d(x, pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, pool.count_include_pad,
                        divisor);
}

ObservedResult avg_pool_block_composite(const Tensor& x, IntArrayRef kernel_size, IntArrayRef stride,
                                        IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                                        int64_t divisor_override, IntArrayRef output_size, const Tensor& input_scale,
                                        const Tensor& input_zero_point, int64_t input_qmin, int64_t input_qmax,
                                        const Tensor& output_scale, const Tensor& output_zero_point,
                                        int64_t output_qmin, int64_t output_qmax, bool fake_quantize, bool observe) {
  constexpr const char* kOp = "avg_pool_block";
  const GridRef input{input_scale, input_zero_point, input_qmin, input_qmax};
  const GridRef output{output_scale, output_zero_point, output_qmin, output_qmax};
  const PoolArguments pool{kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, output_size};
  detail::check_floating(kOp, "x", x);
  const size_t rank = kernel_size.empty() ? output_size.size() : kernel_size.size();
  TORCH_CHECK(rank >= 1 && rank <= 3 && x.dim() == static_cast<int64_t>(rank) + 2, kOp,
              ": x must have 2 dimensions more than there are windows, 1 to 3 (got ", x.dim(), ", ", rank, ")");
  TORCH_CHECK(rank != 1 || divisor_override == 0, kOp, ": one spatial dimension knows no divisor_override (got ",
              divisor_override, ")");
  detail::check_grid(kOp, input.scale, input.zero_point, "input_");
  detail::check_grid(kOp, output.scale, output.zero_point, "output_");
  Tensor value;
  if (fake_quantize) {
    value = detail::avg_pool_integer(x, pool, input, output).to(detail::block_dtype(x));
    if (!observe && !detail::needs_gradient({x})) return inference(value);
  }
  return finish(kOp, average(detail::to_block_dtype(x), pool), 0, output, fake_quantize, observe, value);
}

void check_update(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean, const Tensor& var,
                  const Tensor& count) {
  TORCH_CHECK(count.scalar_type() == at::kLong && count.sym_numel() == 1,
              "update_batch_norm_: count must be an int64 tensor with one element (got ", count.scalar_type(),
              " of shape ", count.sym_sizes(), ")");
  for (const Tensor* t : {&running_var, &mean, &var}) {
    TORCH_CHECK(t->dim() == 1 && t->sym_numel() == running_mean.sym_numel(),
                "update_batch_norm_: all statistics must have one element per channel (got ", t->sym_sizes(), ", ",
                running_mean.sym_sizes(), ")");
  }
}

// No number is read back, so no device is waited for.
void update_batch_norm_any(Tensor running_mean, Tensor running_var, const Tensor& mean, const Tensor& var,
                           const Tensor& count, double momentum) {
  check_update(running_mean, running_var, mean, var, count);
  const Tensor n = count.to(at::kDouble), some = count > 0, unbiased = var * (n / (n - 1).clamp_min(1));
  running_mean.copy_(at::where(some, (running_mean * (1 - momentum)).add_(mean, momentum), running_mean));
  running_var.copy_(at::where(some, (running_var * (1 - momentum)).add_(unbiased, momentum), running_var));
}

// One pass where the composition makes thirty kernel calls for each layer.
void update_batch_norm_cpu(Tensor running_mean, Tensor running_var, const Tensor& mean, const Tensor& var,
                           const Tensor& count, double momentum) {
  check_update(running_mean, running_var, mean, var, count);
  const auto is_float = [](const Tensor& t) { return t.scalar_type() == at::kFloat; };
  if (!is_float(running_mean) || !is_float(running_var) || !is_float(mean) || !is_float(var)) {
    return update_batch_norm_any(running_mean, running_var, mean, var, count, momentum);
  }
  const auto n = static_cast<double>(detail::read_one<int64_t>(count));
  if (n == 0) return;
  const auto update = [&](Tensor& running, const Tensor& batch, double factor) {
    auto* to = running.mutable_data_ptr<float>();
    const auto* from = batch.const_data_ptr<float>();
    for (int64_t c = 0; c < batch.numel(); ++c) {
      float& value = to[c * running.stride(0)];
      value = static_cast<float>((1 - momentum) * value + momentum * factor * from[c * batch.stride(0)]);
    }
    running.unsafeGetTensorImpl()->bump_version();
  };
  update(running_mean, mean, 1);
  update(running_var, var, n / std::max(n - 1, 1.0));
}

void update_batch_norm_meta(Tensor running_mean, Tensor running_var, const Tensor& mean, const Tensor& var,
                            const Tensor& count, double) {
  check_update(running_mean, running_var, mean, var, count);
}

}  // namespace

void update_batch_norm_(Tensor running_mean, Tensor running_var, const Tensor& mean, const Tensor& var,
                        const Tensor& count, double momentum) {
  static const auto op = detail::find_op<decltype(update_batch_norm_)>("update_batch_norm_");
  op.call(running_mean, running_var, mean, var, count, momentum);
}

BlockResult conv_block(const Tensor& x, const Tensor& weight, const Optional& bias, const Optional& bn_weight,
                       const Optional& bn_bias, const Optional& bn_mean, const Optional& bn_var, double bn_eps,
                       IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                       int64_t activation, int64_t weight_bits, bool per_channel, const Tensor& input_scale,
                       const Tensor& input_zero_point, int64_t input_qmin, int64_t input_qmax,
                       const Tensor& output_scale, const Tensor& output_zero_point, int64_t output_qmin,
                       int64_t output_qmax, bool fake_quantize, bool batch_stats, bool observe, bool low_memory,
                       std::string_view process_group) {
  static const auto op = detail::find_op<decltype(conv_block)>("conv_block");
  return op.call(x, weight, bias, bn_weight, bn_bias, bn_mean, bn_var, bn_eps, stride, padding, dilation, groups,
                 activation, weight_bits, per_channel, input_scale, input_zero_point, input_qmin, input_qmax,
                 output_scale, output_zero_point, output_qmin, output_qmax, fake_quantize, batch_stats, observe,
                 low_memory, process_group);
}

BlockResult linear_block(const Tensor& x, const Tensor& weight, const Optional& bias, const Optional& bn_weight,
                         const Optional& bn_bias, const Optional& bn_mean, const Optional& bn_var, double bn_eps,
                         int64_t activation, int64_t weight_bits, bool per_channel, const Tensor& input_scale,
                         const Tensor& input_zero_point, int64_t input_qmin, int64_t input_qmax,
                         const Tensor& output_scale, const Tensor& output_zero_point, int64_t output_qmin,
                         int64_t output_qmax, bool fake_quantize, bool batch_stats, bool observe, bool low_memory,
                         std::string_view process_group) {
  static const auto op = detail::find_op<decltype(linear_block)>("linear_block");
  return op.call(x, weight, bias, bn_weight, bn_bias, bn_mean, bn_var, bn_eps, activation, weight_bits, per_channel,
                 input_scale, input_zero_point, input_qmin, input_qmax, output_scale, output_zero_point, output_qmin,
                 output_qmax, fake_quantize, batch_stats, observe, low_memory, process_group);
}

BlockResult batch_norm_block(const Tensor& x, const Optional& bn_weight, const Optional& bn_bias,
                             const Optional& bn_mean, const Optional& bn_var, double bn_eps, int64_t activation,
                             const Tensor& input_scale, const Tensor& input_zero_point, int64_t input_qmin,
                             int64_t input_qmax, const Tensor& output_scale, const Tensor& output_zero_point,
                             int64_t output_qmin, int64_t output_qmax, bool fake_quantize, bool batch_stats,
                             bool observe, std::string_view process_group) {
  static const auto op = detail::find_op<decltype(batch_norm_block)>("batch_norm_block");
  return op.call(x, bn_weight, bn_bias, bn_mean, bn_var, bn_eps, activation, input_scale, input_zero_point, input_qmin,
                 input_qmax, output_scale, output_zero_point, output_qmin, output_qmax, fake_quantize, batch_stats,
                 observe, process_group);
}

ObservedResult add_block(const Tensor& a, const Tensor& b, double alpha, int64_t activation, const Tensor& a_scale,
                         const Tensor& a_zero_point, const Tensor& a_steps, int64_t a_qmin, int64_t a_qmax,
                         const Tensor& b_scale, const Tensor& b_zero_point, const Tensor& b_steps, int64_t b_qmin,
                         int64_t b_qmax, const Tensor& output_scale, const Tensor& output_zero_point,
                         const Tensor& output_steps, int64_t output_qmin, int64_t output_qmax, bool fake_quantize,
                         bool observe) {
  static const auto op = detail::find_op<decltype(add_block)>("add_block");
  return op.call(a, b, alpha, activation, a_scale, a_zero_point, a_steps, a_qmin, a_qmax, b_scale, b_zero_point,
                 b_steps, b_qmin, b_qmax, output_scale, output_zero_point, output_steps, output_qmin, output_qmax,
                 fake_quantize, observe);
}

ObservedResult avg_pool_block(const Tensor& x, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                              bool ceil_mode, bool count_include_pad, int64_t divisor_override, IntArrayRef output_size,
                              const Tensor& input_scale, const Tensor& input_zero_point, int64_t input_qmin,
                              int64_t input_qmax, const Tensor& output_scale, const Tensor& output_zero_point,
                              int64_t output_qmin, int64_t output_qmax, bool fake_quantize, bool observe) {
  static const auto op = detail::find_op<decltype(avg_pool_block)>("avg_pool_block");
  return op.call(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, output_size,
                 input_scale, input_zero_point, input_qmin, input_qmax, output_scale, output_zero_point, output_qmin,
                 output_qmax, fake_quantize, observe);
}

TORCH_LIBRARY_FRAGMENT(octet, m) {
  m.def(
      "conv_block(Tensor x, Tensor weight, Tensor? bias, Tensor? bn_weight, Tensor? bn_bias, Tensor? bn_mean, Tensor? "
      "bn_var, float bn_eps, int[] stride, int[] padding, int[] dilation, int groups, int activation, int weight_bits, "
      "bool per_channel, Tensor input_scale, Tensor input_zero_point, int input_qmin, int input_qmax, Tensor "
      "output_scale, Tensor output_zero_point, int output_qmin, int output_qmax, bool fake_quantize, bool batch_stats, "
      "bool observe, bool low_memory=False, str process_group='') -> (Tensor y, Tensor min, Tensor max, Tensor mean, "
      "Tensor var, Tensor count)",
      TORCH_FN(conv_block_composite));
  m.def(
      "linear_block(Tensor x, Tensor weight, Tensor? bias, Tensor? bn_weight, Tensor? bn_bias, Tensor? bn_mean, "
      "Tensor? "
      "bn_var, float bn_eps, int activation, int weight_bits, bool per_channel, Tensor input_scale, Tensor "
      "input_zero_point, int input_qmin, int input_qmax, Tensor output_scale, Tensor output_zero_point, int "
      "output_qmin, int output_qmax, bool fake_quantize, bool batch_stats, bool observe, bool low_memory=False, str "
      "process_group='') -> "
      "(Tensor y, "
      "Tensor min, Tensor max, Tensor mean, Tensor var, Tensor count)",
      TORCH_FN(linear_block_composite));
  m.def(
      "batch_norm_block(Tensor x, Tensor? bn_weight, Tensor? bn_bias, Tensor? bn_mean, Tensor? bn_var, float bn_eps, "
      "int activation, Tensor input_scale, Tensor input_zero_point, int input_qmin, int input_qmax, Tensor "
      "output_scale, Tensor output_zero_point, int output_qmin, int output_qmax, bool fake_quantize, bool batch_stats, "
      "bool observe, str process_group='') -> (Tensor y, Tensor min, Tensor max, Tensor mean, Tensor var, Tensor "
      "count)",
      TORCH_FN(batch_norm_block_composite));
  m.def(
      "add_block(Tensor a, Tensor b, float alpha, int activation, Tensor a_scale, Tensor a_zero_point, Tensor a_steps, "
      "int a_qmin, int a_qmax, Tensor b_scale, Tensor b_zero_point, Tensor b_steps, int b_qmin, int b_qmax, Tensor "
      "output_scale, Tensor output_zero_point, Tensor output_steps, int output_qmin, int output_qmax, bool "
      "fake_quantize, bool observe) -> (Tensor y, Tensor min, Tensor max)",
      TORCH_FN(add_block_composite));
  m.def(
      "avg_pool_block(Tensor x, int[] kernel_size, int[] stride, int[] padding, bool ceil_mode, bool "
      "count_include_pad, "
      "int divisor_override, int[] output_size, Tensor input_scale, Tensor input_zero_point, int input_qmin, int "
      "input_qmax, Tensor output_scale, Tensor output_zero_point, int output_qmin, int output_qmax, bool "
      "fake_quantize, bool observe) -> (Tensor y, Tensor min, Tensor max)",
      TORCH_FN(avg_pool_block_composite));
  m.def(
      "update_batch_norm_(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor var, Tensor count, "
      "float "
      "momentum) -> ()");
}

TORCH_LIBRARY_IMPL(octet, CompositeExplicitAutograd, m) {
  m.impl("update_batch_norm_", TORCH_FN(update_batch_norm_any));
}
TORCH_LIBRARY_IMPL(octet, CPU, m) { m.impl("update_batch_norm_", TORCH_FN(update_batch_norm_cpu)); }
TORCH_LIBRARY_IMPL(octet, Meta, m) { m.impl("update_batch_norm_", TORCH_FN(update_batch_norm_meta)); }

}  // namespace octet
