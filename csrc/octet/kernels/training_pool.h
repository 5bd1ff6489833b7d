// Max pooling of float32 while training: one byte for each output remembers where it came from.
#pragma once

#include <cstdint>

#include "octet/kernels/parallel.h"
#include "octet/kernels/pool.h"

namespace octet::kernels {

// Dense, channels innermost. winner: which position of its window gave the output, counted over those inside of x; no
// window may hold more than kMostPositions. The first of equal ones wins, and a NaN, as in torch.
inline constexpr int64_t kMostPositions = 255;
void max_pool_forward(const float* x, const PoolShape& shape, float* y, uint8_t* winner, ParallelFor parallel);

// grad_x: every output's gradient, added up at the position it came from.
void max_pool_backward(const float* grad, const uint8_t* winner, const PoolShape& shape, float* grad_x,
                       ParallelFor parallel);

}  // namespace octet::kernels
