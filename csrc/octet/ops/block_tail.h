// The elementwise tail of a training block as ops without autograd of their own: the batch's statistics; batch norm by
// them, activation, fake quantization; and the gradient of all of it. CPU, float32. Not a public header.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>

#include "octet/ops/grid_ref.h"
#include "octet/ops/process_group.h"

namespace octet::detail {

// Of every channel, float32 [C]; the variance is biased. NaN where a channel has one.
struct BatchStatistics {
  at::Tensor mean, var, min, max;
};

// x: [N, C, ...] float32, contiguous or channels_last.
BatchStatistics batch_statistics(const at::Tensor& x);

struct TailResult {
  at::Tensor y;         // like x
  at::Tensor pass;      // one bit per element, for block_tail_backward
  at::Tensor min, max;  // of the activation's output, [] (the empty range without observe)
};

// x as above, statistics: those of x (or of a larger batch that x is a part of).
TailResult block_tail(const at::Tensor& x, const BatchStatistics& statistics, const std::optional<at::Tensor>& gamma,
                      const std::optional<at::Tensor>& beta, double eps, int64_t activation, const GridRef& output,
                      bool observe);

// Gradients of (x, gamma, beta); x's rounded to dtype, gamma's and beta's float32 [C]. moments: of the batch, or of
// those of all processes of `group`, whose gradients then count too; gamma's and beta's are this process's part.
std::tuple<at::Tensor, at::Tensor, at::Tensor> block_tail_backward(const at::Tensor& grad, const at::Tensor& pass,
                                                                   const at::Tensor& x, const Moments& moments,
                                                                   const std::optional<at::Tensor>& gamma, double eps,
                                                                   at::ScalarType dtype, std::string_view group);

// The same where batch norm's statistics, moments' mean and var, do not depend on x; without x no gradient of gamma.
std::tuple<at::Tensor, at::Tensor, at::Tensor> frozen_tail_backward(const at::Tensor& grad, const at::Tensor& pass,
                                                                    const std::optional<at::Tensor>& x,
                                                                    const Moments& moments,
                                                                    const std::optional<at::Tensor>& gamma, double eps,
                                                                    at::ScalarType dtype);

// block_tail_backward below the dispatcher. overwrite_x: x is the caller's own and may become the gradient.
std::tuple<at::Tensor, at::Tensor, at::Tensor> block_tail_backward_cpu(const at::Tensor& grad, const at::Tensor& pass,
                                                                       const at::Tensor& x, const Moments& moments,
                                                                       const std::optional<at::Tensor>& gamma,
                                                                       double eps, at::ScalarType dtype,
                                                                       std::string_view group, bool overwrite_x);

}  // namespace octet::detail
