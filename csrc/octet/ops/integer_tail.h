// A training block on fixed statistics: the INT8 model's value, and the pass bits of the float composition, from one
// convolution of codes. An op without autograd of its own. CPU. Not a public header.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "octet/ops/block_tail.h"
#include "octet/ops/conv_sums.h"
#include "octet/ops/integer_blocks.h"

namespace octet::detail {

// input's scale may be NaN, then y is. weight: float32; bn on its running statistics, or none.
TailResult conv_integer_tail(const InputCodes& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                             const BatchNorm& bn, const ConvArguments& conv, const WeightCodes& weight_codes,
                             int64_t activation, const GridRef& output, bool observe);

}  // namespace octet::detail
