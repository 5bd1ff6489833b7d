// Pooling over u8 codes, channels innermost: rules 8 and 9a of docs/numerics.md, in 1, 2 and 3 dimensions.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <vector>

#include "octet/core/requantize.h"
#include "octet/kernels/conv.h"
#include "octet/kernels/parallel.h"

namespace octet::kernels {

// The input positions [begin, end) one output position reads along one axis (dilation apart), and how many it counts
// for in an average: with count_include_pad that includes padding.
struct Window {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t step = 1;
  int64_t count = 0;
};

// What a pooling operator reads, axis by axis; windows[a].size() is the output size of axis a.
struct PoolShape {
  int64_t batch = 1;
  int64_t channels = 1;
  Dims in{1, 1, 1};
  std::array<std::vector<Window>, 3> windows;

  Dims out() const;
};

// How many windows torch.nn.MaxPool / AvgPool have along one axis, 0 where none fits. With ceil_mode one that reaches
// behind the input counts, even the only one, unless it starts behind the input and its left padding. `Int`: int64_t
// or Torch's symbolic integer.
template <class Int>
Int pooled_size(const Int& in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, bool ceil_mode) {
  const Int room = in + 2 * padding - dilation * (kernel - 1) - 1 + (ceil_mode ? stride - 1 : 0);
  if (room < 0) return 0;
  const Int windows = room / stride + 1;
  return ceil_mode && (windows - 1) * stride >= in + padding ? windows - 1 : windows;
}

// Those windows.
std::vector<Window> pool_windows(int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation,
                                 bool ceil_mode, bool count_include_pad);

// The windows of torch.nn.AdaptiveAvgPool: [floor(i in / out), ceil((i + 1) in / out)).
std::vector<Window> adaptive_windows(int64_t in, int64_t out);

// x: [batch, in..., channels]; y: [batch, out..., channels], on x's grid. Padding never wins.
void max_pool(const uint8_t* x, const PoolShape& shape, uint8_t* y, ParallelFor parallel);

struct AveragePoolParams {
  float x_scale = 1.0f;
  int32_t x_zero_point = 0;
  float y_scale = 1.0f;
  int32_t y_zero_point = 0;
  CodeBounds bounds;
  int64_t divisor = 0;  // 0: the number of positions the window counts for
};

// Rule 8: the sum of q - x_zero_point, requantized by the tie-free multiplier of x_scale / (y_scale * divisor). Where
// the largest window's would be below 1/4095, in two stages: first along the width onto the output grid, [0, 255], then
// the rest. Finding multipliers takes longer than many a pool, so it is done once.
class AveragePool {
 public:
  AveragePool(const PoolShape& shape, const AveragePoolParams& params);
  void run(const uint8_t* x, uint8_t* y, ParallelFor parallel) const;

 private:
  struct Stage {
    PoolShape shape;
    AveragePoolParams params;
    bool fixed;                            // one divisor for all windows
    std::map<int64_t, float> multipliers;  // by window_count; the fixed one at 0
  };

  void add_stage(const PoolShape& shape, const AveragePoolParams& params, double divisor);
  static void run_stage(const Stage& stage, const uint8_t* x, uint8_t* y, ParallelFor parallel);

  std::vector<Stage> stages_;
};

inline void average_pool(const uint8_t* x, const PoolShape& shape, const AveragePoolParams& params, uint8_t* y,
                         ParallelFor parallel) {
  AveragePool(shape, params).run(x, y, parallel);
}

}  // namespace octet::kernels
