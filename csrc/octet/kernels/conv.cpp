#include "octet/kernels/conv.h"

#include <cassert>
#include <vector>

#include "octet/kernels/kernel_set.h"
#include "octet/kernels/prepared_conv.h"

namespace octet::kernels {

Dims conv_output_size(const ConvShape& shape) {
  Dims out{};
  for (int a = 0; a < 3; ++a) {
    const int64_t room = shape.in[a] + 2 * shape.padding[a] - shape.dilation[a] * (shape.kernel[a] - 1) - 1;
    out[a] = room < 0 ? 0 : room / shape.stride[a] + 1;
  }
  return out;
}

struct PackedConv::Impl {
  Isa isa;
  const ConvFamily* family;
  PackedWeights weights;
};

namespace {

const ConvFamily& choose_family(const ConvShape& shape, Isa isa) {
  for (const ConvFamily& family : kernel_set(isa).conv) {
    if (family.accepts(shape)) return family;
  }
  return generic_kernels().conv.back();  // takes every shape
}

void run(const PackedConv::Impl& impl, const ConvShape& shape, const uint8_t* x, const ConvEpilogue& epilogue,
         const ConvOutput& y, ParallelFor parallel) {
  assert(shape.out == conv_output_size(shape));
  if (shape.batch * shape.pixels() == 0) return;
  impl.family->run(impl.weights, impl.family->prepare(impl.weights, shape, epilogue), x, epilogue, y, parallel);
}

}  // namespace

PackedConv::PackedConv(const int8_t* weights, const ConvShape& shape, WeightOrder order, Isa isa,
                       ParallelFor parallel) {
  const ConvFamily& family = choose_family(shape, isa);
  impl_ = std::make_unique<const Impl>(Impl{isa, &family, family.pack({weights, order}, shape, parallel)});
}

PackedConv::PackedConv(PackedConv&&) noexcept = default;
PackedConv& PackedConv::operator=(PackedConv&&) noexcept = default;
PackedConv::~PackedConv() = default;

Isa PackedConv::isa() const { return impl_->isa; }
std::string_view PackedConv::kernel_name() const { return impl_->family->name; }
const void* PackedConv::memory() const { return impl_->weights.codes.as<uint8_t>(); }
size_t PackedConv::bytes() const { return impl_->weights.codes.size() + impl_->weights.sums.size(); }

void run_conv(const PackedConv& weights, const ConvShape& shape, const uint8_t* x, const ConvEpilogue& epilogue,
              uint8_t* y, ParallelFor parallel) {
  run(weights.impl(), shape, x, epilogue, {.codes = y}, parallel);
}

void run_conv(const PackedConv& weights, const ConvShape& shape, const uint8_t* x, const ConvEpilogue& epilogue,
              float scale, float* y, ParallelFor parallel) {
  run(weights.impl(), shape, x, epilogue, {.floats = y, .scale = scale}, parallel);
}

void run_conv_sums(const PackedConv& weights, const ConvShape& shape, const uint8_t* x, int32_t x_zero_point,
                   const int32_t* bias, const float* multiplier, float* y, ParallelFor parallel) {
  const std::vector<int32_t> none(bias ? 0 : shape.out_channels, 0);
  ConvEpilogue epilogue;
  epilogue.bias = bias ? bias : none.data();
  epilogue.multiplier = multiplier;
  epilogue.x_zero_point = x_zero_point;
  run(weights.impl(), shape, x, epilogue, {.floats = y, .sums = true}, parallel);
}

PreparedConv::PreparedConv(const PackedConv& weights, const ConvShape& shape, const ConvEpilogue& epilogue,
                           std::shared_ptr<const void* const> wanted_next)
    : weights_(&weights), epilogue_(epilogue), wanted_next_(std::move(wanted_next)) {
  assert(shape.out == conv_output_size(shape));
  const PackedConv::Impl& impl = weights.impl();
  if (shape.batch * shape.pixels() > 0) setup_ = impl.family->prepare(impl.weights, shape, epilogue);
}

void PreparedConv::run(const uint8_t* x, const ResidualAdd* residual, uint8_t* y, ParallelFor parallel) const {
  if (!setup_) return;
  ConvEpilogue epilogue = epilogue_;
  epilogue.residual = residual;
  epilogue.wanted_next = *wanted_next_;
  const PackedConv::Impl& impl = weights_->impl();
  impl.family->run(impl.weights, setup_, x, epilogue, {.codes = y}, parallel);
}

}  // namespace octet::kernels
