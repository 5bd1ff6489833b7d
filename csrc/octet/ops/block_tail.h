// The elementwise tail of a training block as two ops without autograd of their own: batch norm with the batch's
// statistics, activation, fake quantization; and the gradient of all three. CPU, float32. Not a public header.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "octet/ops/grid_ref.h"

namespace octet::detail {

struct TailResult {
  at::Tensor y;          // like x
  at::Tensor pass;       // one bit per element, for block_tail_backward
  at::Tensor min, max;   // of the activation's output, [] (the empty range without observe)
  at::Tensor mean, var;  // of the batch, [C], biased
};

// x: [N, C, ...] float32, contiguous or channels_last.
TailResult block_tail(const at::Tensor& x, const std::optional<at::Tensor>& gamma,
                      const std::optional<at::Tensor>& beta, double eps, int64_t activation, const GridRef& output,
                      bool observe);

// Gradients of (x, gamma, beta), gamma's and beta's float32 [C].
std::tuple<at::Tensor, at::Tensor, at::Tensor> block_tail_backward(const at::Tensor& grad, const at::Tensor& pass,
                                                                   const at::Tensor& x, const at::Tensor& mean,
                                                                   const at::Tensor& var,
                                                                   const std::optional<at::Tensor>& gamma, double eps);

}  // namespace octet::detail
