// From trained parameters to integer parameters: rules 4, 5 and 7 of docs/numerics.md. Eval, frozen training and
// convert all come through fold(); there is no second formula.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace octet {

// Grids of the unfolded weight, one per output channel (dim 0): (scale float32 [O], zero_point int32 [O]), the latter
// 0. weight: [O, ...], floating point; bits: 2 to 8, codes [-(2^(bits-1)-1), 2^(bits-1)-1]. Without per_channel all are
// equal.
std::tuple<at::Tensor, at::Tensor> weight_grids(const at::Tensor& weight, int64_t bits, bool per_channel);

// The weight a training convolution uses: fake-quantized on weight_grids(weight). Straight-through gradient to weight.
at::Tensor fake_quantize_weight(const at::Tensor& weight, int64_t bits, bool per_channel);

namespace detail {
// What fold() gives on the CPU, the codes dense by rows (weight_rows.h), and per channel the value that rounding the
// multiplier and the bias changes: gain * (acc + bias) * multiplier + shift.
struct FoldedChannels {
  at::Tensor codes, bias, multiplier;
  std::vector<float> gain, shift;
};
FoldedChannels fold_channels(const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                             const std::optional<at::Tensor>& bn_weight, const std::optional<at::Tensor>& bn_bias,
                             const std::optional<at::Tensor>& bn_mean, const std::optional<at::Tensor>& bn_var,
                             double bn_eps, const at::Tensor& input_scale, const at::Tensor& output_scale,
                             int64_t weight_bits, bool per_channel);

// The same as one op, float32 on the CPU.
at::Tensor fake_quantize_weight_cpu(const at::Tensor& weight, int64_t bits, bool per_channel);
}  // namespace detail

// Weight codes (int8, weight's shape), bias (int32 [O]) and tie-free multipliers (float32 [O]) of a convolution or
// linear layer, weight [O, ...] floating point, with its batch norm on running statistics folded in. bias, bn_*: [O] or
// none; bn_mean and bn_var come together, without them there is no batch norm; bn_weight none: gamma 1, bn_bias none:
// beta 0. input_scale, output_scale: float32, one element. Batch norm alone is a depthwise 1x1 convolution with weight
// 1 (rule 11). No gradient. Errors: lengths other than O, weight_bits outside [2, 8], not floating point.
std::tuple<at::Tensor, at::Tensor, at::Tensor> fold(const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                                                    const std::optional<at::Tensor>& bn_weight,
                                                    const std::optional<at::Tensor>& bn_bias,
                                                    const std::optional<at::Tensor>& bn_mean,
                                                    const std::optional<at::Tensor>& bn_var, double bn_eps,
                                                    const at::Tensor& input_scale, const at::Tensor& output_scale,
                                                    int64_t weight_bits, bool per_channel);

}  // namespace octet
