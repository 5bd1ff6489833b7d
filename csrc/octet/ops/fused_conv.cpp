#include "octet/ops/fused_conv.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/conv1d.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/conv3d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "octet/ops/block_tail.h"
#include "octet/ops/common.h"
#include "octet/ops/conv_sums.h"
#include "octet/ops/fold.h"
#include "octet/ops/integer_tail.h"
#include "octet/ops/nhwc.h"
#include "octet/ops/process_group.h"
#include "octet/ops/quantize.h"

namespace octet::detail {

using at::Tensor;
using Optional = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

// One entry per spatial dimension: convolution_backward, unlike conv2d, does not repeat a single one.
std::vector<int64_t> expanded(at::IntArrayRef values, int64_t rank) {
  return values.size() == 1 ? std::vector<int64_t>(rank, values[0]) : values.vec();
}

// Below autograd Tensor::to must not be called to no effect: it would give back its input.
Tensor to_type(const Tensor& t, at::ScalarType type) { return t.scalar_type() == type ? t : t.to(type); }

// What backward needs beside tensors.
struct Constants {
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups, weight_bits;
  bool per_channel, batch_stats;
  bool integer;  // the forward is that of the INT8 kernels
  double eps;
  at::ScalarType conv_type;  // under autocast a float convolution runs in a narrower type, forward and backward

  void save(AutogradContext* context) const {
    auto& data = context->saved_data;
    data["stride"] = stride;
    data["padding"] = padding;
    data["dilation"] = dilation;
    data["groups"] = groups;
    data["weight_bits"] = weight_bits;
    data["per_channel"] = per_channel;
    data["batch_stats"] = batch_stats;
    data["integer"] = integer;
    data["eps"] = eps;
    data["conv_type"] = static_cast<int64_t>(conv_type);
  }
  explicit Constants(AutogradContext* context) {
    auto& data = context->saved_data;
    stride = data["stride"].toIntVector();
    padding = data["padding"].toIntVector();
    dilation = data["dilation"].toIntVector();
    groups = data["groups"].toInt();
    weight_bits = data["weight_bits"].toInt();
    per_channel = data["per_channel"].toBool();
    batch_stats = data["batch_stats"].toBool();
    integer = data["integer"].toBool();
    eps = data["eps"].toDouble();
    conv_type = static_cast<at::ScalarType>(data["conv_type"].toInt());
  }
  Constants(const FusedBlock& block, const Tensor& weight)
      : stride(expanded(block.conv.stride, weight.dim() - 2)),
        padding(expanded(block.conv.padding, weight.dim() - 2)),
        dilation(expanded(block.conv.dilation, weight.dim() - 2)),
        groups(block.conv.groups),
        weight_bits(block.weight_bits),
        per_channel(block.per_channel),
        batch_stats(block.bn.batch_stats),
        integer(can_sum_codes(weight)),
        eps(block.bn.present() ? block.bn.eps : 0),
        conv_type(at::autocast::is_autocast_enabled(at::kCPU) ? at::autocast::get_autocast_dtype(at::kCPU)
                                                              : at::kFloat) {}

  WeightCodes weight_codes() const { return {weight_bits, per_channel}; }
  ConvArguments conv() const { return {stride, padding, dilation, groups}; }
  Tensor quantized(const Tensor& weight) const {
    return to_type(fake_quantize_weight(weight, weight_bits, per_channel), conv_type);
  }
};

Optional optional(const Tensor& t) { return t.defined() ? Optional(t) : std::nullopt; }

Tensor read(const InputCodes& input, at::ScalarType type) {
  if (type == at::kBFloat16) return read_codes(input.codes, input.scale, input.zero_point);
  return to_type(dequantize_per_tensor(input.codes, input.scale, input.zero_point), type);
}

// The convolution's output in float32, without its bias: batch norm would take it out again.
std::tuple<Tensor, BatchStatistics> sums_of(const Constants& constants, const InputCodes& input, const Optional& x,
                                            const Tensor& weight) {
  if (constants.integer) {
    return conv_sums(input, x, weight, constants.weight_codes(), constants.conv());
  }
  const Tensor values = x ? *x : read(input, constants.conv_type);
  // Channels innermost whatever x's layout: backward may compute them again from the codes, which have it.
  const Tensor sums = channels_innermost(
      to_type(convolve(values, constants.quantized(weight), std::nullopt, constants.conv()), at::kFloat));
  return {sums, batch_statistics(sums)};
}

Moments batch_moments(const char* op, const Tensor& sums, const BatchStatistics& own, const std::string& group) {
  if (group.empty()) check_batch(op, sums);
  return join_moments(op, {own.mean, own.var, batch_count(sums)}, group);
}

// Those of the sums, which lack the bias, by running statistics; without batch norm such that it only adds the bias.
Moments fixed_moments(const char* op, const BatchNorm& bn, const Optional& bias, const Tensor& weight) {
  const c10::SymInt channels = weight.sym_size(0);
  const Tensor shift = bias ? to_type(*bias, at::kFloat) : at::zeros_symint({channels}, weight.options());
  const Tensor no_count = at::empty({0}, weight.options().dtype(at::kLong));
  if (!bn.present()) return {-shift, at::ones_symint({channels}, weight.options()), no_count};
  TORCH_CHECK(bn.mean && bn.var, op, ": batch norm without batch_stats needs bn_mean and bn_var (got none)");
  return {to_type(*bn.mean, at::kFloat) - shift, to_type(*bn.var, at::kFloat).clone(), no_count};
}

struct Forward {
  TailResult tail;
  Tensor sums;  // to be kept, undefined for none
  Moments moments;
};

Forward run_forward(const Constants& constants, const InputCodes& input, const Tensor& x, const Tensor& weight,
                    const Optional& bias, const Optional& gamma, const Optional& beta, const FusedBlock& block,
                    const std::string& group) {
  if (!constants.batch_stats) {
    const Moments moments = fixed_moments(block.op, block.bn, bias, weight);
    return {conv_integer_tail(input, weight, bias, block.bn, constants.conv(), constants.weight_codes(),
                              block.activation, block.output, block.observe),
            Tensor(), moments};
  }
  const auto [sums, own] = sums_of(constants, input, x, weight);
  const Moments moments = batch_moments(block.op, sums, own, group);
  const BatchStatistics statistics{moments.mean, moments.var, own.min, own.max};
  return {block_tail(sums, statistics, gamma, beta, constants.eps, block.activation, block.output, block.observe),
          block.low_memory ? Tensor() : sums, moments};
}

// Gradients of the convolution's output (`sums` is undefined where it was not kept), gamma and beta.
std::tuple<Tensor, Tensor, Tensor> tail_gradients(const Constants& constants, const Tensor& grad, const Tensor& pass,
                                                  const Tensor& sums, const InputCodes& input, const Tensor& weight,
                                                  const Moments& moments, const Optional& gamma, bool needs_gamma,
                                                  std::string_view group) {
  const auto again = [&] { return std::get<0>(sums_of(constants, input, std::nullopt, weight)); };
  if (!constants.batch_stats) {
    const Optional x = needs_gamma ? Optional(again()) : std::nullopt;
    return frozen_tail_backward(grad, pass, x, moments, gamma, constants.eps, constants.conv_type);
  }
  if (!sums.defined() && constants.integer) {
    return recomputed_tail_backward(grad, pass, input, weight, constants.weight_codes(), constants.conv(), moments,
                                    gamma, constants.eps, constants.conv_type, group);
  }
  return block_tail_backward(grad, pass, sums.defined() ? sums : again(), moments, gamma, constants.eps,
                             constants.conv_type, group);
}

// Whatever is added to a channel, batch norm by the batch's own statistics takes it out.
Tensor bias_gradient(const Constants& constants, const Tensor& grad_beta, const Optional& gamma, const Tensor& var) {
  if (constants.batch_stats) return at::zeros_like(grad_beta);
  const Tensor scaled = grad_beta * (var + constants.eps).rsqrt();
  return gamma ? scaled * to_type(*gamma, at::kFloat) : scaled;
}

// Of x and weight, both in grad's type.
std::tuple<Tensor, Tensor> operand_gradients(const Constants& constants, const Tensor& grad, const Tensor& x,
                                             const Tensor& weight, bool needs_x, bool needs_weight) {
  if (weight.dim() == 2) {
    return {needs_x ? at::mm(grad, weight) : Tensor(), needs_weight ? at::mm(grad.t(), x) : Tensor()};
  }
  const ConvArguments conv = constants.conv();
  const std::vector<int64_t> no_output_padding(weight.dim() - 2, 0);
  auto [grad_x, grad_weight, _] =
      at::convolution_backward(grad, x, weight, std::nullopt, conv.stride, conv.padding, conv.dilation,
                               /*transposed=*/false, no_output_padding, conv.groups, {needs_x, needs_weight, false});
  return {grad_x, grad_weight};
}

class FusedFunction : public torch::autograd::Function<FusedFunction> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& weight, const Optional& bias,
                               const Optional& gamma, const Optional& beta, const FusedBlock& block) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const Constants constants(block, weight);
    const InputCodes input = input_codes(x, block.input);
    const std::string group(block.bn.process_group);
    const auto [tail, sums, moments] = run_forward(constants, input, x, weight, bias, gamma, beta, block, group);
    context->save_for_backward({input.codes, input.scale, input.zero_point, weight, gamma.value_or(Tensor()), sums,
                                tail.pass, moments.mean, moments.var, moments.count});
    constants.save(context);
    context->saved_data["group"] = group;
    context->saved_data["needs_x"] = x.requires_grad();
    context->saved_data["needs_weight"] = weight.requires_grad();
    context->saved_data["has_bias"] = bias.has_value();
    context->saved_data["needs_gamma"] = gamma && gamma->requires_grad();
    context->saved_data["has_beta"] = beta.has_value();
    if (!block.bn.batch_stats) {
      const Tensor none = at::empty({0}, weight.options()), no_count = moments.count.clone();
      context->mark_non_differentiable({tail.min, tail.max, none, no_count});
      return {tail.y, tail.min, tail.max, none, none.clone(), no_count};
    }
    const Tensor mean = bias ? moments.mean + to_type(*bias, at::kFloat) : moments.mean;
    context->mark_non_differentiable({tail.min, tail.max, mean, moments.var, moments.count});
    return {tail.y, tail.min, tail.max, mean, moments.var, moments.count};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const InputCodes input{saved[0], saved[1], saved[2], Tensor()};
    const Tensor& weight = saved[3];
    const Optional gamma = optional(saved[4]);
    const Constants constants(context);
    const auto type = constants.conv_type;
    const Moments moments{saved[7], saved[8], saved[9]};
    const auto [grad_sums, grad_gamma, grad_beta] =
        tail_gradients(constants, gradients[0], saved[6], saved[5], input, weight, moments, gamma,
                       context->saved_data["needs_gamma"].toBool(), context->saved_data["group"].toStringRef());
    const Tensor x = read(input, type);  // not before the sums' memory is free again
    const auto [grad_x, grad_weight] =
        operand_gradients(constants, grad_sums, x, constants.quantized(weight), context->saved_data["needs_x"].toBool(),
                          context->saved_data["needs_weight"].toBool());
    const auto cast = [](const Tensor& grad, at::ScalarType to) { return grad.defined() ? grad.to(to) : grad; };
    return {
        cast(grad_x, at::kFloat),
        cast(grad_weight, weight.scalar_type()),  // straight through: no weight lies outside its grid
        context->saved_data["has_bias"].toBool() ? bias_gradient(constants, grad_beta, gamma, moments.var) : Tensor(),
        gamma ? cast(grad_gamma, gamma->scalar_type()) : Tensor(),
        context->saved_data["has_beta"].toBool() ? grad_beta : Tensor(),
        Tensor()};
  }
};

}  // namespace

Tensor convolve(const Tensor& x, const Tensor& weight, const Optional& bias, const ConvArguments& conv) {
  const Tensor input = to_type(x, weight.scalar_type());
  switch (weight.dim()) {
    case 2:
      return at::linear(input, weight, bias);
    case 3:
      return at::conv1d(input, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups);
    case 4:
      return at::conv2d(input, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups);
    default:
      return at::conv3d(input, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups);
  }
}

bool can_fuse(const Tensor& x, const Tensor& weight) {
  return x.device().is_cpu() && x.scalar_type() != at::kDouble && weight.scalar_type() == at::kFloat;
}

BlockResult fused_block(const Tensor& x, const Tensor& weight, const Optional& bias, const FusedBlock& block) {
  const variable_list r = FusedFunction::apply(x.to(at::kFloat), weight, bias, block.bn.weight, block.bn.bias, block);
  return {r[0], r[1], r[2], r[3], r[4], r[5]};
}

}  // namespace octet::detail
