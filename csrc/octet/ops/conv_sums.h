// The convolution of a training block on the INT8 kernels, as ops without autograd of their own. Not a public header.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "octet/ops/block_tail.h"
#include "octet/ops/grid_ref.h"
#include "octet/ops/integer_blocks.h"

namespace octet::detail {

// A convolution's input as u8 codes, channels innermost, and what codes cannot tell: scale, by which to read them, is
// NaN where x has a NaN (a diverged run must show); on_grid, bool [], whether every other value is its code's.
struct InputCodes {
  at::Tensor codes, scale, zero_point, on_grid;
};
InputCodes input_codes(const at::Tensor& x, const GridRef& grid);

// scale * (codes - zero_point), rounded to bfloat16.
at::Tensor read_codes(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& zero_point);

struct WeightCodes {
  int64_t bits;
  bool per_channel;
};

// For the convolution of codes, float32 with channels innermost. A weight of 2 dimensions is that of a linear layer: a
// convolution without spatial dimensions.
at::Tensor allocate_sums(const at::Tensor& codes, const at::Tensor& weight, const ConvArguments& conv);

// Whether conv_sums takes this weight and is worth it: exact in int32, an instruction set made for it.
bool can_sum_codes(const at::Tensor& weight);

// conv(scale * (codes - zero_point), fake_quantize_weight(weight)) without bias, float32, channels innermost: exact but
// for two roundings. And its statistics. With x: its float convolution where it does not lie on the grid.
std::tuple<at::Tensor, BatchStatistics> conv_sums(const InputCodes& input, const std::optional<at::Tensor>& x,
                                                  const at::Tensor& weight, const WeightCodes& weight_codes,
                                                  const ConvArguments& conv);

// block_tail_backward where nothing was kept of the sums: they are computed again, without their statistics, and give
// their memory to the gradient.
std::tuple<at::Tensor, at::Tensor, at::Tensor> recomputed_tail_backward(
    const at::Tensor& grad, const at::Tensor& pass, const InputCodes& input, const at::Tensor& weight,
    const WeightCodes& weight_codes, const ConvArguments& conv, const Moments& moments,
    const std::optional<at::Tensor>& gamma, double eps, at::ScalarType dtype, std::string_view group);

}  // namespace octet::detail
