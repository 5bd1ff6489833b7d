// The fused training path of conv_block: fake-quantized weight, convolution, batch statistics, activation and grid as
// one node of the autograd graph. Saved for backward: the input as u8 codes, the convolution's output, one bit per
// element; in low-memory mode not even the output, which backward computes again. Not a public header.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "octet/ops/blocks.h"
#include "octet/ops/integer_blocks.h"

namespace octet::detail {

// Convolution in 1, 2 or 3 dimensions, by the weight's.
at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                    const ConvArguments& conv);

// Whether fused_conv_block takes these: on the CPU, nothing in float64.
bool can_fuse(const at::Tensor& x, const at::Tensor& weight);

struct FusedConv {
  const ConvArguments& conv;
  const BatchNorm& bn;  // with batch statistics
  int64_t activation, weight_bits;
  bool per_channel;
  const GridRef& input;
  const GridRef& output;
  bool observe, low_memory;
};

// x must lie on the input grid (the output of its producer's fake quantization): backward sees its codes.
BlockResult fused_conv_block(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                             const FusedConv& block);

}  // namespace octet::detail
