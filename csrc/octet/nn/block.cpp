#include "octet/nn/block.h"

#include <string>
#include <utility>

#include "octet/nn/trace.h"
#include "octet/ops/blocks.h"
#include "octet/ops/fold.h"
#include "octet/ops/quantize.h"

namespace octet::nn {

namespace {

int32_t code(const at::Tensor& zero_point) { return zero_point.item<int32_t>(); }

}  // namespace

BlockImpl::BlockImpl(std::string name, const BlockOptions& options, Activation activation)
    : Module(std::move(name)),
      output(options.output),
      activation(options.activation.value_or(activation)),
      label(options.label) {
  if (!output) output = register_module("output", FakeQuantize(options.activations, options.label));
}

std::string BlockImpl::title() const { return label.empty() ? name() : name() + ' ' + label; }

bool BlockImpl::active() const {
  for (const FakeQuantize& input : inputs()) {
    if (!input || !input->active()) return false;
  }
  return output->active();
}

at::Tensor BlockImpl::run(Tensors operands, const Compute& compute) {
  if (detail::Trace* trace = detail::Trace::current()) return trace->call(*this, operands, compute);
  if (!int8_.is_empty()) return run_int8(std::move(operands));
  if (!wiring) return compute(operands);
  check_count(operands);
  const auto grids = inputs();
  for (size_t i = 0; i < operands.size(); ++i) {
    if (wiring->arrivals[i] == Arrival::kFloat) operands[i] = grids[keeps_grid() ? 0 : i].ptr()->forward(operands[i]);
  }
  const at::Tensor y = compute(operands);
  output->settle(*this);
  // Float kernels round differently at the ends of their loops, so a float reader gets the strides of the INT8 form.
  return is_training() || wiring->gives_codes ? y : y.contiguous();
}

at::Tensor BlockImpl::run_int8(Tensors operands) {
  TORCH_CHECK(!is_training(), label, ": a converted module must be in evaluation mode (got training mode)");
  check_count(operands);
  const auto grids = inputs();
  for (size_t i = 0; i < operands.size(); ++i) {
    const bool codes = wiring->arrivals[i] == Arrival::kCodes;
    TORCH_CHECK(codes == (operands[i].scalar_type() == at::kByte), label, ": operand ", i, " must be ",
                codes ? "the uint8 codes of a block" : "floating point",
                ", as in the forward that octet::prepare ran (got ", operands[i].scalar_type(), ")");
    const GridArguments grid = grids[keeps_grid() ? 0 : i]->grid();
    if (!codes) {
      operands[i] = quantize_per_tensor(operands[i], grid.scale, grid.zero_point, grid.qmin, grid.qmax, at::kByte);
    }
  }
  const at::Tensor y = call(int8_, operands);
  return wiring->gives_codes ? y : dequantize_per_tensor(y, output->scale, output->zero_point).contiguous();
}

void BlockImpl::check_count(const Tensors& operands) const {
  TORCH_CHECK(operands.size() == wiring->arrivals.size(), label, ": must have ", wiring->arrivals.size(),
              " operands, as in the forward that octet::prepare ran (got ", operands.size(), ")");
}

void BlockImpl::switch_to(torch::nn::AnyModule int8) {
  if (!int8_.is_empty()) unregister_module("int8");
  int8_ = std::move(int8);
  register_module("int8", int8_.ptr());
}

// Without an input grid the block is not active, and the op does not read what stands in for it.
GridArguments BlockImpl::grid_of(const FakeQuantize& input) const { return (input ? input : output)->grid(); }

void BlockImpl::observe(const at::Tensor& low, const at::Tensor& high, const at::Tensor& y) {
  if (output->observes()) output->observe(low, high, y);
  output->settle(*output);
}

int8::Bounds BlockImpl::bounds() const {
  const Grid grid{output->scale.item<float>(), code(output->zero_point), static_cast<int32_t>(output->qmin),
                  static_cast<int32_t>(output->qmax)};
  const CodeBounds bounds = activation_bounds(activation, grid);
  return {bounds.lo, bounds.hi};
}

void BlockImpl::check_ready() const {
  for (const FakeQuantize& input : inputs()) {
    TORCH_CHECK(input, "convert: ", label, " (", name(), "): must have the grid of its input (got none)");
    input->check_ready();
  }
  output->check_ready();
  const auto check_finite = [&](const std::string& key, const at::Tensor& value) {
    TORCH_CHECK(value.isfinite().all().item<bool>(), "convert: ", label, ": ", key, " must be finite (got NaN or inf)");
  };
  for (const auto& parameter : named_parameters()) check_finite(parameter.key(), parameter.value());
  for (const auto& buffer : named_buffers()) {
    // An idle grid's pending range is infinite by right; the grids' own checks are above.
    if (buffer.key().find("running_") != std::string::npos) check_finite(buffer.key(), buffer.value());
  }
}

NormBlockImpl::NormBlockImpl(std::string name, const BlockOptions& options, Activation activation)
    : BlockImpl(std::move(name), options, activation), input(options.input) {
  set_weights(options.weights);
}

void NormBlockImpl::set_weights(const Spec& spec) {
  TORCH_CHECK(spec.bits >= 2 && spec.bits <= 8, "Spec: bits must be 2 to 8 (got ", spec.bits, ")");
  weights = spec;
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
                               const at::Tensor& mean, const at::Tensor& var, const at::Tensor& count,
                               std::optional<double> momentum) {
  batches.add_(1);
  update_batch_norm_(running_mean, running_var, mean, var, count, momentum.value_or(1.0 / batches.item<double>()));
}

void NormBlockImpl::check_accumulator(const at::Tensor& weight) const {
  const int64_t taps = weight.numel() / weight.size(0), largest = (int64_t{1} << (weights.bits - 1)) - 1;
  TORCH_CHECK(accumulator_fits(taps, 255, static_cast<int32_t>(largest)), title(),
              ": products summed per output times 255 times the largest weight code must stay below ",
              kAccumulatorLimit, " (got ", taps, " products)");
}

void detail::check_running_statistics(const std::string& title, bool tracked) {
  TORCH_CHECK(tracked, title, ": batch norm must track running statistics (got none)");
}

}  // namespace octet::nn
