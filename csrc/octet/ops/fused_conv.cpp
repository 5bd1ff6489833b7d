#include "octet/ops/fused_conv.h"

#include <ATen/ops/conv1d.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/conv3d.h>
#include <ATen/ops/convolution_backward.h>
#include <torch/csrc/autograd/custom_function.h>

#include "octet/ops/block_tail.h"
#include "octet/ops/common.h"
#include "octet/ops/fold.h"
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

// What backward needs beside tensors.
struct Constants {
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups, weight_bits;
  bool per_channel;
  double eps;
  at::ScalarType conv_type;  // under autocast the convolution runs in a narrower type, forward and backward

  void save(AutogradContext* context) const {
    auto& data = context->saved_data;
    data["stride"] = stride;
    data["padding"] = padding;
    data["dilation"] = dilation;
    data["groups"] = groups;
    data["weight_bits"] = weight_bits;
    data["per_channel"] = per_channel;
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
    eps = data["eps"].toDouble();
    conv_type = static_cast<at::ScalarType>(data["conv_type"].toInt());
  }
  Constants(const FusedConv& block, int64_t rank, at::ScalarType type)
      : stride(expanded(block.conv.stride, rank)),
        padding(expanded(block.conv.padding, rank)),
        dilation(expanded(block.conv.dilation, rank)),
        groups(block.conv.groups),
        weight_bits(block.weight_bits),
        per_channel(block.per_channel),
        eps(block.bn.eps),
        conv_type(type) {}
};

Optional optional(const Tensor& t) { return t.defined() ? Optional(t) : std::nullopt; }

class FusedConvFunction : public torch::autograd::Function<FusedConvFunction> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& weight, const Optional& bias,
                               const Optional& gamma, const Optional& beta, const FusedConv& block) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor w = fake_quantize_weight(weight, block.weight_bits, block.per_channel);
    const Tensor sums = convolve(x, w, bias, block.conv);
    check_batch("conv_block", sums);
    const TailResult tail = block_tail(sums, gamma, beta, block.bn.eps, block.activation, block.output, block.observe);
    const GridRef& in = block.input;
    const Tensor codes = quantize_per_tensor(x, in.scale, in.zero_point, in.qmin, in.qmax, at::kByte);
    // The grid's buffers change between forward and backward.
    context->save_for_backward({codes, in.scale.clone(), in.zero_point.clone(), weight, bias.value_or(Tensor()),
                                gamma.value_or(Tensor()), block.low_memory ? Tensor() : sums, tail.pass, tail.mean,
                                tail.var});
    Constants(block, weight.dim() - 2, sums.scalar_type()).save(context);
    context->saved_data["needs_x"] = x.requires_grad();
    context->saved_data["needs_weight"] = weight.requires_grad();
    context->saved_data["has_beta"] = beta.has_value();
    context->mark_non_differentiable({tail.min, tail.max, tail.mean, tail.var});
    return {tail.y, tail.min, tail.max, tail.mean, tail.var};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &codes = saved[0], &weight = saved[3], &pass = saved[7], &mean = saved[8], &var = saved[9];
    const Optional bias = optional(saved[4]), gamma = optional(saved[5]);
    const Constants constants(context);
    const Tensor x = dequantize_per_tensor(codes, saved[1], saved[2]).to(constants.conv_type);
    const Tensor w = fake_quantize_weight(weight, constants.weight_bits, constants.per_channel).to(constants.conv_type);
    const ConvArguments conv{constants.stride, constants.padding, constants.dilation, constants.groups};
    Tensor sums = saved[6];
    if (!sums.defined()) sums = convolve(x, w, bias ? Optional(bias->to(constants.conv_type)) : bias, conv);
    const auto [grad_sums, grad_gamma, grad_beta] =
        block_tail_backward(gradients[0], pass, sums, mean, var, gamma, constants.eps);
    const std::vector<int64_t> no_output_padding(weight.dim() - 2, 0);
    const std::vector<int64_t> bias_size{weight.size(0)};
    auto [grad_x, grad_weight, grad_bias] = at::convolution_backward(
        grad_sums.to(constants.conv_type), x, w, bias_size, conv.stride, conv.padding, conv.dilation,
        /*transposed=*/false, no_output_padding, conv.groups,
        {context->saved_data["needs_x"].toBool(), context->saved_data["needs_weight"].toBool(), bias.has_value()});
    const auto cast = [](const Tensor& grad, at::ScalarType type) { return grad.defined() ? grad.to(type) : grad; };
    return {cast(grad_x, at::kFloat),
            cast(grad_weight, weight.scalar_type()),  // straight through: no weight lies outside its grid
            bias ? cast(grad_bias, bias->scalar_type()) : Tensor(),
            gamma ? cast(grad_gamma, gamma->scalar_type()) : Tensor(),
            context->saved_data["has_beta"].toBool() ? grad_beta : Tensor(),
            Tensor()};
  }
};

}  // namespace

Tensor convolve(const Tensor& x, const Tensor& weight, const Optional& bias, const ConvArguments& conv) {
  // Below autograd Tensor::to must not be called to no effect: it would give back its input.
  const Tensor input = x.scalar_type() == weight.scalar_type() ? x : x.to(weight.scalar_type());
  switch (weight.dim()) {
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

BlockResult fused_conv_block(const Tensor& x, const Tensor& weight, const Optional& bias, const FusedConv& block) {
  const variable_list r =
      FusedConvFunction::apply(x.to(at::kFloat), weight, bias, block.bn.weight, block.bn.bias, block);
  return {r[0], r[1], r[2], r[3], r[4]};
}

}  // namespace octet::detail
