#include "octet/nn/block.h"

#include <string>
#include <utility>

#include "octet/ops/blocks.h"
#include "octet/ops/fold.h"

namespace octet::nn {

namespace {

int32_t code(const at::Tensor& zero_point) { return zero_point.item<int32_t>(); }

}  // namespace

BlockImpl::BlockImpl(std::string name, const BlockOptions& options, Activation activation)
    : Module(std::move(name)), output(options.output), activation(options.activation.value_or(activation)) {
  if (!output) output = register_module("output", FakeQuantize(options.activations, options.label));
}

bool BlockImpl::active() const {
  for (const FakeQuantize& input : inputs()) {
    if (!input || !input->active()) return false;
  }
  return output->active();
}

// Without an input grid the block is not active, and the op does not read what stands in for it.
GridArguments BlockImpl::grid_of(const FakeQuantize& input) const { return (input ? input : output)->grid(); }

void BlockImpl::observe(const at::Tensor& low, const at::Tensor& high) {
  if (output->observes()) output->observe(low, high);
  output->settle();
}

int8::Bounds BlockImpl::bounds() const {
  const Grid grid{output->scale.item<float>(), code(output->zero_point), static_cast<int32_t>(output->qmin),
                  static_cast<int32_t>(output->qmax)};
  const CodeBounds bounds = activation_bounds(activation, grid);
  return {bounds.lo, bounds.hi};
}

void BlockImpl::check_ready() const {
  for (const FakeQuantize& input : inputs()) {
    TORCH_CHECK(input, "convert: ", output->label, " (", name(), "): must have the grid of its input (got none)");
    input->check_ready();
  }
  output->check_ready();
  const auto check_finite = [&](const std::string& key, const at::Tensor& value) {
    TORCH_CHECK(value.isfinite().all().item<bool>(), "convert: ", output->label, ": ", key,
                " must be finite (got NaN or inf)");
  };
  for (const auto& parameter : named_parameters()) check_finite(parameter.key(), parameter.value());
  for (const auto& buffer : named_buffers()) {
    // An idle grid's pending range is infinite by right; the grids' own checks are above.
    if (buffer.key().find("running_") != std::string::npos) check_finite(buffer.key(), buffer.value());
  }
}

NormBlockImpl::NormBlockImpl(std::string name, const BlockOptions& options, Activation activation)
    : BlockImpl(std::move(name), options, activation), input(options.input), weights(options.weights) {
  TORCH_CHECK(weights.bits >= 2 && weights.bits <= 8, "Spec: bits must be 2 to 8 (got ", weights.bits, ")");
}

int8::Folded NormBlockImpl::fold(const at::Tensor& weight, const at::Tensor& bias, const Norm& norm) const {
  auto [codes, integers, multiplier] =
      octet::fold(weight, optional_tensor(bias), norm.weight, norm.bias, norm.mean, norm.var, norm.eps, input->scale,
                  output->scale, weights.bits, weights.per_channel);
  return {codes, integers, multiplier};
}

int8::Requantization NormBlockImpl::requantization() const {
  return {code(input->zero_point), code(output->zero_point), bounds()};
}

void detail::update_statistics(at::Tensor running_mean, at::Tensor running_var, at::Tensor batches,
                               const at::Tensor& mean, const at::Tensor& var, int64_t count,
                               std::optional<double> momentum) {
  batches.add_(1);
  update_batch_norm_(running_mean, running_var, mean, var, count, momentum.value_or(1.0 / batches.item<double>()));
}

void NormBlockImpl::check_accumulator(const at::Tensor& weight) const {
  const int64_t taps = weight.numel() / weight.size(0), largest = (int64_t{1} << (weights.bits - 1)) - 1;
  TORCH_CHECK(accumulator_fits(taps, 255, static_cast<int32_t>(largest)), name(), " ", output->label,
              ": products summed per output times 255 times the largest weight code must stay below ",
              kAccumulatorLimit, " (got ", taps, " products)");
}

void detail::check_running_statistics(const std::string& label, bool tracked) {
  TORCH_CHECK(tracked, label, ": batch norm must track running statistics (got none)");
}

}  // namespace octet::nn
