// The elementwise tail of a training block, (batch norm) - activation - fake quantization, and its gradient, over
// float32 arrays. Two passes each way: one for the statistics, one that writes. The same bits on every ISA and for
// every split of the parallel loop.
#pragma once

#include <cstdint>

#include "octet/core/grid.h"
#include "octet/core/requantize.h"
#include "octet/kernels/elementwise.h"
#include "octet/kernels/parallel.h"

namespace octet::kernels {

// Where the gradient passes, one bit per element in groups of sixteen. With inner = 1 the groups run through the whole
// array, else each row of `inner` elements starts a new group. Bytes of such an array:
int64_t tail_pass_bytes(const ChannelLayout& layout);

// Per channel, `channels` entries each. A NaN or an infinity makes the channel's mean or variance NaN or infinite.
struct ChannelStatistics {
  float* mean = nullptr;
  float* variance = nullptr;  // biased; right also where the mean is large against the deviation
  float* min = nullptr;
  float* max = nullptr;
};
void channel_statistics(const float* x, const ChannelLayout& layout, const ChannelStatistics& out,
                        ParallelFor parallel);

// y = fake_quantize(act(gain x + shift)); gain and shift per channel.
struct Tail {
  const float* gain = nullptr;
  const float* shift = nullptr;
  Activation activation = Activation::kIdentity;
  Grid grid;
};

// The range of act(gain x + shift), exact from the channels' extremes: each step is monotone. NaN where a channel's
// extremes, gain or shift are.
Range tail_range(const float* min, const float* max, int64_t channels, const Tail& tail);

// What a tail writes, all but y may be null.
struct TailOutput {
  float* y = nullptr;
  uint8_t* codes = nullptr;  // those of y; of a NaN some code
  uint8_t* pass = nullptr;   // where the gradient of activation and fake quantization (rule 2) is 1, 2-byte aligned
};

// y may be x. tail_pass_bytes(layout) bytes of pass bits.
void tail_forward(const float* x, const ChannelLayout& layout, const Tail& tail, const TailOutput& out,
                  ParallelFor parallel);

// The tail of a block whose value is the INT8 model's: y is the code of rule 6, clamp(rne(x)), read back, and NaN where
// gain x + shift is; pass bits are those of tail_forward, and the range that of act(gain x + shift), which is returned:
// NaN if a gain or shift is. x: finite products acc * multiplier, channels innermost (inner = 1). y may be x.
Range integer_tail(const float* x, const ChannelLayout& layout, const Tail& tail, const TailOutput& out,
                   ParallelFor parallel);

// Per channel: sum = sum of the gradient where it passes; dot = sum of the same times (x - mean), unless x is null.
void tail_backward_sums(const float* grad, const uint8_t* pass, const float* x, const float* mean,
                        const ChannelLayout& layout, float* sum, float* dot, ParallelFor parallel);

// grad_x = a (pass ? grad : 0) + b (x - mean) + c, coefficients per channel; without x only the first term.
// grad_x may be grad.
struct TailGradient {
  const float* mean = nullptr;
  const float* a = nullptr;
  const float* b = nullptr;
  const float* c = nullptr;
};
void tail_backward(const float* grad, const uint8_t* pass, const float* x, const TailGradient& gradient,
                   const ChannelLayout& layout, float* grad_x, ParallelFor parallel);
// The same, each result rounded to bfloat16.
void tail_backward(const float* grad, const uint8_t* pass, const float* x, const TailGradient& gradient,
                   const ChannelLayout& layout, uint16_t* bfloat16_grad_x, ParallelFor parallel);

// Rule 1 for n elements, and what codes cannot tell: a NaN somewhere, and whether each other value is its code's.
struct CodesFound {
  bool nan = false;
  bool on_grid = true;
};
CodesFound training_codes(const float* x, int64_t n, const Grid& grid, uint8_t* codes, ParallelFor parallel);

// scale * (q - zero_point) of n codes, rounded to bfloat16.
void read_codes(const uint8_t* codes, int64_t n, const Grid& grid, uint16_t* bfloat16, ParallelFor parallel);

// A residual add: the value by rule 10, the gradient that of fake_quantize(act(a + alpha b)).
struct AddTail {
  Grid a, b;
  float alpha = 1.0f;                    // 1 or -1
  float a_ratio = 1.0f, b_ratio = 1.0f;  // rule 10, b_ratio with alpha's sign
  Activation activation = Activation::kIdentity;
  Grid output;
};

// One operand: its values, which lie on its grid up to rounding, or their codes.
struct AddOperand {
  const float* values = nullptr;
  const uint8_t* codes = nullptr;
};

// n elements, both operands by their codes if both have some; NaN where a + alpha b is. Returns the range of
// act(a + alpha b). Pass bits as above with the layout {n, 1, 1}.
Range add_forward(const AddOperand& a, const AddOperand& b, int64_t n, const AddTail& tail, const TailOutput& out,
                  ParallelFor parallel);

}  // namespace octet::kernels
