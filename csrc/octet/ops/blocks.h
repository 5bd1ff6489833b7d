// The forward of a quantization-aware training block: an operator, batch norm, activation and the grid of its output.
//
// Three paths, by the flags:
//   fake_quantize off:              float: activation(bn(op(x, weight))).
//   on, batch statistics:           op with the fake-quantized, unfolded weight, batch norm, activation, fake
//   quantization
//                                   on the output grid. Nothing is folded, so gamma = 0 is harmless.
//   on, no or running statistics:   the INTEGER path, the bits of the INT8 model: quantize, int8 operator with fold(),
//                                   dequantize. Its gradient is the float path's, straight through; where that is NaN
//                                   the output is. Without gradient and observation only the integer path runs.
// x and weight: any floating dtype; the result is float32 (float64 for float64 x). activation: 0 none, 1 ReLU, 2 ReLU6.
// Grids are (scale float32, zero_point int32, qmin, qmax) of u8 codes. Returned statistics have no gradient: min and
// max of the output before its grid (the empty range without observe); mean and biased variance of the batch, [O],
// and count int64 [], the values per channel (empty tensors without batch_stats). Errors name the block: channels that
// do not match, dtypes, lengths, one value per channel. process_group: the name (as c10d registers it) of the processes
// whose batches make up one batch, as with torch's SyncBatchNorm; all of them must make the call. Empty: this process's
// batch alone.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>

namespace octet {

// y, min, max, mean, var, count
using BlockResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using ObservedResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // y, min, max

// x: [N, I, spatial...] in 1, 2 or 3 spatial dimensions, by the weight's [O, I / groups, kernel...]; bias, bn_*: [O] or
// none. With batch statistics x must lie on the input grid, as its producer's fake quantization leaves it: backward
// keeps its codes. low_memory: backward computes the convolution again instead of keeping its output.
BlockResult conv_block(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       const std::optional<at::Tensor>& bn_weight, const std::optional<at::Tensor>& bn_bias,
                       const std::optional<at::Tensor>& bn_mean, const std::optional<at::Tensor>& bn_var, double bn_eps,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                       int64_t activation, int64_t weight_bits, bool per_channel, const at::Tensor& input_scale,
                       const at::Tensor& input_zero_point, int64_t input_qmin, int64_t input_qmax,
                       const at::Tensor& output_scale, const at::Tensor& output_zero_point, int64_t output_qmin,
                       int64_t output_qmax, bool fake_quantize, bool batch_stats, bool observe, bool low_memory = false,
                       std::string_view process_group = {});

// x: [..., I], weight: [O, I]. Batch norm needs x of shape [N, I]. low_memory as above.
BlockResult linear_block(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         const std::optional<at::Tensor>& bn_weight, const std::optional<at::Tensor>& bn_bias,
                         const std::optional<at::Tensor>& bn_mean, const std::optional<at::Tensor>& bn_var,
                         double bn_eps, int64_t activation, int64_t weight_bits, bool per_channel,
                         const at::Tensor& input_scale, const at::Tensor& input_zero_point, int64_t input_qmin,
                         int64_t input_qmax, const at::Tensor& output_scale, const at::Tensor& output_zero_point,
                         int64_t output_qmin, int64_t output_qmax, bool fake_quantize, bool batch_stats, bool observe,
                         bool low_memory = false, std::string_view process_group = {});

// Batch norm alone: x [N, C, ...]. Rule 11: a depthwise 1x1 convolution with weight 1.
BlockResult batch_norm_block(const at::Tensor& x, const std::optional<at::Tensor>& bn_weight,
                             const std::optional<at::Tensor>& bn_bias, const std::optional<at::Tensor>& bn_mean,
                             const std::optional<at::Tensor>& bn_var, double bn_eps, int64_t activation,
                             const at::Tensor& input_scale, const at::Tensor& input_zero_point, int64_t input_qmin,
                             int64_t input_qmax, const at::Tensor& output_scale, const at::Tensor& output_zero_point,
                             int64_t output_qmin, int64_t output_qmax, bool fake_quantize, bool batch_stats,
                             bool observe, std::string_view process_group = {});

// a + alpha * b, alpha 1 or -1, shapes that broadcast. The three grids lie in one component (rule 9b); *_steps: int32,
// n.
ObservedResult add_block(const at::Tensor& a, const at::Tensor& b, double alpha, int64_t activation,
                         const at::Tensor& a_scale, const at::Tensor& a_zero_point, const at::Tensor& a_steps,
                         int64_t a_qmin, int64_t a_qmax, const at::Tensor& b_scale, const at::Tensor& b_zero_point,
                         const at::Tensor& b_steps, int64_t b_qmin, int64_t b_qmax, const at::Tensor& output_scale,
                         const at::Tensor& output_zero_point, const at::Tensor& output_steps, int64_t output_qmin,
                         int64_t output_qmax, bool fake_quantize, bool observe);

// Average pooling as torch.nn's: windows (kernel_size, stride, padding) or, with an empty kernel_size, adaptive to
// output_size.
ObservedResult avg_pool_block(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                              at::IntArrayRef padding, bool ceil_mode, bool count_include_pad, int64_t divisor_override,
                              at::IntArrayRef output_size, const at::Tensor& input_scale,
                              const at::Tensor& input_zero_point, int64_t input_qmin, int64_t input_qmax,
                              const at::Tensor& output_scale, const at::Tensor& output_zero_point, int64_t output_qmin,
                              int64_t output_qmax, bool fake_quantize, bool observe);

// running = (1 - momentum) * running + momentum * batch, the batch's biased variance made unbiased by count, int64 [],
// values per channel, as torch's batch norm does. All [O]. An empty batch (count 0) changes nothing.
void update_batch_norm_(at::Tensor running_mean, at::Tensor running_var, const at::Tensor& mean, const at::Tensor& var,
                        const at::Tensor& count, double momentum);

}  // namespace octet
