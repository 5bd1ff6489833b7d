#include "octet/nn/layers.h"

#include <ATen/ops/ones.h>

#include <utility>
#include <variant>

#include "octet/ops/blocks.h"

namespace octet::nn {

template <size_t D>
std::optional<std::vector<int64_t>> zero_padding(const torch::nn::detail::ConvNdOptions<D>& options) {
  if (!std::holds_alternative<torch::enumtype::kZeros>(options.padding_mode())) return std::nullopt;
  if (const auto* numbers = std::get_if<torch::ExpandingArray<D>>(&options.padding())) {
    return at::IntArrayRef(*numbers).vec();
  }
  std::vector<int64_t> padding(D, 0);
  if (std::holds_alternative<torch::enumtype::kValid>(options.padding())) return padding;
  for (size_t d = 0; d < D; ++d) {
    const int64_t span = (*options.dilation())[d] * ((*options.kernel_size())[d] - 1);
    if (span % 2 != 0) return std::nullopt;
    padding[d] = span / 2;
  }
  return padding;
}

namespace {

template <size_t D>
int8::ConvGeometry geometry_of(const std::string& title, const torch::nn::detail::ConvNdOptions<D>& options) {
  const auto padding = zero_padding(options);
  TORCH_CHECK(padding, title, ": padding must be as many zeros on both sides (got padding_mode ",
              torch::enumtype::get_enum_name(options.padding_mode()), ", kernel_size ", options.kernel_size(), ")");
  return {at::IntArrayRef(options.stride()).vec(), *padding, at::IntArrayRef(options.dilation()).vec(),
          options.groups()};
}

}  // namespace

template <size_t D>
ConvBlockImpl<D>::ConvBlockImpl(std::string name, Conv conv, BatchNorm bn, const BlockOptions& options,
                                Activation activation)
    : NormBlockImpl(std::move(name), options, activation),
      conv(register_module("conv", std::move(conv))),
      bn(std::move(bn)),
      geometry_(geometry_of(this->title(), this->conv->options)) {
  check_accumulator(this->conv->weight);
  if (!this->bn) return;
  this->register_module("bn", this->bn);
  detail::check_running_statistics(this->title(), this->bn->running_mean.defined());
}

template <size_t D>
at::Tensor ConvBlockImpl<D>::forward(const at::Tensor& value) {
  return this->run({value}, [this](const Tensors& x) {
    const Norm n = norm(bn);
    const GridArguments in = grid_of(input), out = output->grid();
    const auto [y, low, high, mean, var, count] = conv_block(
        x[0], conv->weight, optional_tensor(conv->bias), n.weight, n.bias, n.mean, n.var, n.eps, geometry_.stride,
        geometry_.padding, geometry_.dilation, geometry_.groups, static_cast<int64_t>(activation), weights.bits,
        weights.per_channel, in.scale, in.zero_point, in.qmin, in.qmax, out.scale, out.zero_point, out.qmin, out.qmax,
        active(), batch_stats(bn), output->observes(), /*low_memory=*/false, process_group);
    finish(bn, y, low, high, mean, var, count);
    return y;
  });
}

template <size_t D>
torch::nn::AnyModule ConvBlockImpl<D>::to_int8() const {
  check_ready();
  return torch::nn::AnyModule(int8::Conv2d(fold(conv->weight, conv->bias, norm(bn)), geometry_, requantization()));
}

template std::optional<std::vector<int64_t>> zero_padding<1>(const torch::nn::detail::ConvNdOptions<1>&);
template std::optional<std::vector<int64_t>> zero_padding<2>(const torch::nn::detail::ConvNdOptions<2>&);
template std::optional<std::vector<int64_t>> zero_padding<3>(const torch::nn::detail::ConvNdOptions<3>&);

template class ConvBlockImpl<1>;
template class ConvBlockImpl<2>;
template class ConvBlockImpl<3>;

LinearBlockImpl::LinearBlockImpl(std::string name, torch::nn::Linear linear, torch::nn::BatchNorm1d bn,
                                 const BlockOptions& options, Activation activation)
    : NormBlockImpl(std::move(name), options, activation),
      linear(register_module("linear", std::move(linear))),
      bn(std::move(bn)) {
  check_accumulator(this->linear->weight);
  if (!this->bn) return;
  register_module("bn", this->bn);
  detail::check_running_statistics(this->title(), this->bn->running_mean.defined());
}

at::Tensor LinearBlockImpl::forward(const at::Tensor& value) {
  return this->run({value}, [this](const Tensors& x) {
    TORCH_CHECK(!bn || x[0].dim() == 2, title(), ": x must have shape [N, I] where batch norm follows (got ",
                x[0].sizes(), ")");
    const Norm n = norm(bn);
    const GridArguments in = grid_of(input), out = output->grid();
    const auto [y, low, high, mean, var, count] =
        linear_block(x[0], linear->weight, optional_tensor(linear->bias), n.weight, n.bias, n.mean, n.var, n.eps,
                     static_cast<int64_t>(activation), weights.bits, weights.per_channel, in.scale, in.zero_point,
                     in.qmin, in.qmax, out.scale, out.zero_point, out.qmin, out.qmax, active(), batch_stats(bn),
                     output->observes(), /*low_memory=*/false, process_group);
    finish(bn, y, low, high, mean, var, count);
    return y;
  });
}

torch::nn::AnyModule LinearBlockImpl::to_int8() const {
  check_ready();
  return torch::nn::AnyModule(int8::Linear(fold(linear->weight, linear->bias, norm(bn)), requantization()));
}

template <size_t D>
BatchNormBlockImpl<D>::BatchNormBlockImpl(BatchNorm bn, const BlockOptions& options)
    : NormBlockImpl("BatchNorm" + std::to_string(D) + "d", options, Activation::kIdentity),
      bn(register_module("bn", std::move(bn))) {
  detail::check_running_statistics(this->title(), this->bn->running_mean.defined());
}

template <size_t D>
at::Tensor BatchNormBlockImpl<D>::forward(const at::Tensor& value) {
  return this->run({value}, [this](const Tensors& x) {
    const Norm n = norm(bn);
    const GridArguments in = grid_of(input), out = output->grid();
    const auto [y, low, high, mean, var, count] =
        batch_norm_block(x[0], n.weight, n.bias, n.mean, n.var, n.eps, static_cast<int64_t>(activation), in.scale,
                         in.zero_point, in.qmin, in.qmax, out.scale, out.zero_point, out.qmin, out.qmax, active(),
                         batch_stats(bn), output->observes(), process_group);
    finish(bn, y, low, high, mean, var, count);
    return y;
  });
}

template <size_t D>
torch::nn::AnyModule BatchNormBlockImpl<D>::to_int8() const {
  check_ready();
  std::vector<int64_t> shape(D + 2, 1);
  shape[0] = bn->options.num_features();
  const at::Tensor ones = at::ones(shape, bn->running_mean.options().dtype(at::kFloat));
  return torch::nn::AnyModule(int8::BatchNorm(fold(ones, {}, norm(bn)), requantization()));
}

template class BatchNormBlockImpl<1>;
template class BatchNormBlockImpl<2>;
template class BatchNormBlockImpl<3>;

}  // namespace octet::nn
