// The integer path of blocks: float in, float out, in between the bits of the INT8 model. Opaque ops, so that compilers
// and autocast leave them alone; zero points are read from tensors. Not a public header.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "octet/ops/block_parts.h"
#include "octet/ops/grid_ref.h"

namespace octet::detail {

struct ConvArguments {
  at::IntArrayRef stride, padding, dilation;
  int64_t groups;
};

// All return float32, laid out like x (channels_last stays channels_last).
at::Tensor conv_integer(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                        const BatchNorm& bn, const ConvArguments& conv, int64_t activation, int64_t weight_bits,
                        bool per_channel, const GridRef& input, const GridRef& output);

at::Tensor add_integer(const at::Tensor& a, const at::Tensor& b, double alpha, int64_t activation,
                       const GridRef& a_grid, const at::Tensor& a_steps, const GridRef& b_grid,
                       const at::Tensor& b_steps, const GridRef& output, const at::Tensor& output_steps);

// Without kernel_size: adaptive to output_size.
struct PoolArguments {
  at::IntArrayRef kernel_size, stride, padding;
  bool ceil_mode, count_include_pad;
  int64_t divisor_override;
  at::IntArrayRef output_size;
};

at::Tensor avg_pool_integer(const at::Tensor& x, const PoolArguments& pool, const GridRef& input,
                            const GridRef& output);

}  // namespace octet::detail
