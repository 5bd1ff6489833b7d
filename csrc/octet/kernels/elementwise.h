// One value in, one value out (or two in): rules 1, 2, 10, 11 and 12 of docs/numerics.md over dense arrays.
#pragma once

#include <cstdint>

#include "octet/core/grid.h"
#include "octet/core/requantize.h"
#include "octet/kernels/parallel.h"

namespace octet::kernels {

// A dense array seen as [outer, channels, inner]; element (o, c, i) lies at (o * channels + c) * inner + i.
// Per tensor: {1, 1, n}. The channel innermost (channels_last): inner = 1.
struct ChannelLayout {
  int64_t outer = 1;
  int64_t channels = 1;
  int64_t inner = 0;

  int64_t size() const { return outer * channels * inner; }
};

// A grid per channel; the arrays hold layout.channels entries.
struct ChannelGrids {
  const float* scale = nullptr;
  const int32_t* zero_point = nullptr;
  int32_t qmin = 0;
  int32_t qmax = 255;
};

// Rule 1; NaN gives the zero point. The codes must fit the type.
void quantize(const float* x, const ChannelLayout& layout, const ChannelGrids& grids, uint8_t* q, ParallelFor parallel);
void quantize(const float* x, const ChannelLayout& layout, const ChannelGrids& grids, int8_t* q, ParallelFor parallel);

// scale * (q - zero_point); qmin and qmax are not looked at.
void dequantize(const uint8_t* q, const ChannelLayout& layout, const ChannelGrids& grids, float* y,
                ParallelFor parallel);
void dequantize(const int8_t* q, const ChannelLayout& layout, const ChannelGrids& grids, float* y,
                ParallelFor parallel);

// One bit per element: element i is bit i % 8 of byte i / 8; whole groups of sixteen, 2-byte aligned.
constexpr int64_t pass_bytes(int64_t elements) { return (elements + 15) / 16 * 2; }

// Rule 2; NaN passes. pass (may be null): where the straight-through gradient is 1, pass_bytes(layout.size()) bytes.
// y may be x.
void fake_quantize(const float* x, const ChannelLayout& layout, const ChannelGrids& grids, float* y, uint8_t* pass,
                   ParallelFor parallel);

// grad_x = pass ? grad : 0. grad_x may be grad.
void fake_quantize_backward(const float* grad, const uint8_t* pass, int64_t n, float* grad_x, ParallelFor parallel);

// Rule 3 and then 1 or 2 for each of `rows` rows of n values, on a symmetric grid made from the row itself, while it is
// in the first-level cache: the row's scale (NaN where the row has one), and its codes or its fake-quantized values,
// whichever is not null.
void quantize_rows(const float* x, int64_t rows, int64_t n, const GridSpec& spec, float* scale, int8_t* codes,
                   float* values, ParallelFor parallel);

// The smallest and largest value of each channel. A NaN anywhere in a channel makes both NaN; an empty channel gives
// (+inf, -inf).
void min_max(const float* x, const ChannelLayout& layout, float* min, float* max, ParallelFor parallel);

// fake_quantize and the min_max of x over the whole array (one entry each), in one pass over memory.
void observe_and_fake_quantize(const float* x, const ChannelLayout& layout, const ChannelGrids& grids, float* y,
                               uint8_t* pass, float* min, float* max, ParallelFor parallel);

// Rule 12: y = table[x], 256 entries.
void lookup(const uint8_t* x, int64_t n, const uint8_t* table, uint8_t* y, ParallelFor parallel);

// Rule 10.
struct AddParams {
  int32_t a_zero_point = 0;
  float a_ratio = 1.0f;
  int32_t b_zero_point = 0;
  float b_ratio = 1.0f;  // negative: subtraction
  int32_t y_zero_point = 0;
  CodeBounds bounds;
};
void add(const uint8_t* a, const uint8_t* b, int64_t n, const AddParams& params, uint8_t* y, ParallelFor parallel);

// Rule 11, elementwise.
struct MulParams {
  int32_t a_zero_point = 0;
  int32_t b_zero_point = 0;
  float multiplier = 1.0f;
  int32_t y_zero_point = 0;
  CodeBounds bounds;
};
void mul(const uint8_t* a, const uint8_t* b, int64_t n, const MulParams& params, uint8_t* y, ParallelFor parallel);

}  // namespace octet::kernels
