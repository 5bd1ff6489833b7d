// The convolution of a training block on the INT8 kernels: codes in, float32 sums out, and the statistics of every
// channel while the sums are still in the cache.
#pragma once

#include <cstdint>

#include "octet/kernels/conv.h"
#include "octet/kernels/parallel.h"
#include "octet/kernels/training.h"

namespace octet::kernels {

// y = scale * sum((x - x_zero_point) * w): the sum exact, then one rounding to float32 and one of the product. scale:
// per output channel. x, y: dense, channels innermost, as run_conv has them. The same bits on every ISA and for every
// split of the parallel loop, statistics included.
void conv_with_statistics(const PackedConv& weights, const ConvShape& shape, const uint8_t* x, int32_t x_zero_point,
                          const float* scale, float* y, const ChannelStatistics& out, ParallelFor parallel);

// The convolution of a block whose value is the INT8 model's, epilogue's bias and multiplier, and integer_tail behind
// it while the products are in the cache; out.y holds them in between. Returns integer_tail's range.
Range conv_with_tail(const PackedConv& weights, const ConvShape& shape, const uint8_t* x, const ConvEpilogue& epilogue,
                     const Tail& tail, const TailOutput& out, ParallelFor parallel);

}  // namespace octet::kernels
