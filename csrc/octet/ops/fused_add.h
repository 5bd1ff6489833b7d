// The training path of add_block as one node of the autograd graph: rule 10 forward, one bit per element kept. Not a
// public header.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "octet/ops/blocks.h"
#include "octet/ops/grid_ref.h"

namespace octet::detail {

// Whether fused_add_block takes these: float32 of one shape on the CPU.
bool can_fuse_add(const at::Tensor& a, const at::Tensor& b);

ObservedResult fused_add_block(const at::Tensor& a, const at::Tensor& b, double alpha, int64_t activation,
                               const GridRef& a_grid, const at::Tensor& a_steps, const GridRef& b_grid,
                               const at::Tensor& b_steps, const GridRef& output, const at::Tensor& output_steps,
                               bool observe);

}  // namespace octet::detail
