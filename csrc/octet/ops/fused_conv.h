// The fused training path of conv_block and linear_block: fake-quantized weight, convolution, batch norm by whatever
// statistics or none, activation and grid as one node of the autograd graph. Saved for backward: the input as u8 codes,
// one bit per element, and with batch statistics the convolution's output; in low-memory mode backward computes that
// again. Without batch statistics the value is that of the integer path. Not a public header.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "octet/ops/blocks.h"
#include "octet/ops/integer_blocks.h"

namespace octet::detail {

// Convolution in 1, 2 or 3 dimensions, by the weight's; with a weight of 2 dimensions a linear layer.
at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                    const ConvArguments& conv);

// Whether fused_block takes these: on the CPU, nothing in float64.
bool can_fuse(const at::Tensor& x, const at::Tensor& weight);

struct FusedBlock {
  const char* op;
  const ConvArguments& conv;
  const BatchNorm& bn;
  int64_t activation, weight_bits;
  bool per_channel;
  const GridRef& input;
  const GridRef& output;
  bool observe, low_memory;
};

// x must lie on the input grid (the output of its producer's fake quantization): backward sees its codes.
// weight [O, I / groups, kernel...] or, of a linear layer, [O, I] and x [N, I].
BlockResult fused_block(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                        const FusedBlock& block);

}  // namespace octet::detail
