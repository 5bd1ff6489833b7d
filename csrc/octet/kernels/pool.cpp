#include "octet/kernels/pool.h"

#include <algorithm>
#include <iterator>
#include <span>

#include "octet/core/multiplier.h"
#include "octet/kernels/aligned_bytes.h"
#include "octet/kernels/kernel_set.h"

namespace octet::kernels {
namespace {

constexpr int64_t kGrainBytes = 16384;  // input bytes worth a thread

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The channels of every input position that an output position reads.
void find_inputs(const PoolShape& shape, const uint8_t* x, int64_t image, const Dims& at,
                 std::vector<const uint8_t*>& inputs) {
  const Window& wd = shape.windows[0][at[0]];
  const Window& wh = shape.windows[1][at[1]];
  const Window& ww = shape.windows[2][at[2]];
  inputs.clear();
  for (int64_t d = wd.begin; d < wd.end; d += wd.step) {
    for (int64_t h = wh.begin; h < wh.end; h += wh.step) {
      const int64_t row = ((image * shape.in[0] + d) * shape.in[1] + h) * shape.in[2];
      for (int64_t w = ww.begin; w < ww.end; w += ww.step) inputs.push_back(x + (row + w) * shape.channels);
    }
  }
}

// From the inputs of the output position left of `at` to those of `at`.
void move_right(const PoolShape& shape, const uint8_t* x, int64_t image, const Dims& at,
                std::vector<const uint8_t*>& inputs) {
  const Window &before = shape.windows[2][at[2] - 1], &now = shape.windows[2][at[2]];
  if (now.end - now.begin != before.end - before.begin) return find_inputs(shape, x, image, at, inputs);
  const int64_t step = (now.begin - before.begin) * shape.channels;
  for (const uint8_t*& input : inputs) input += step;
}

// Calls body(inputs, {d, h, w}, output pixel) for every output position, inputs being the channels of each input
// position that it reads.
template <class Body>
void for_each_output(const PoolShape& shape, const uint8_t* x, ParallelFor parallel, Body body) {
  const Dims out = shape.out();
  const int64_t pixels = out[0] * out[1] * out[2];
  if (shape.batch * pixels == 0) return;
  const int64_t reads = 1 + shape.in[0] * shape.in[1] * shape.in[2] * shape.channels / pixels;
  parallel(shape.batch * pixels, 1 + kGrainBytes / reads, [&](int64_t begin, int64_t end) {
    std::vector<const uint8_t*> inputs;
    int64_t image = begin / pixels;
    Dims at{begin % pixels / out[2] / out[1], begin / out[2] % out[1], begin % out[2]};
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      pixel == begin || at[2] == 0 ? find_inputs(shape, x, image, at, inputs) : move_right(shape, x, image, at, inputs);
      body(std::span<const uint8_t* const>(inputs), at, pixel);
      if (++at[2] < out[2]) continue;
      at[2] = 0;
      if (++at[1] < out[1]) continue;
      at[1] = 0;
      if (++at[0] < out[0]) continue;
      at[0] = 0;
      ++image;
    }
  });
}

int64_t window_count(const PoolShape& shape, const Dims& at) {
  return shape.windows[0][at[0]].count * shape.windows[1][at[1]].count * shape.windows[2][at[2]].count;
}

int64_t largest_count(const std::vector<Window>& windows) {
  int64_t largest = 1;
  for (const Window& window : windows) largest = std::max(largest, window.count);
  return largest;
}

std::vector<Window> pointwise_windows(int64_t size) { return pool_windows(size, 1, 1, 0, 1, false, true); }

}  // namespace

Dims PoolShape::out() const {
  return {static_cast<int64_t>(windows[0].size()), static_cast<int64_t>(windows[1].size()),
          static_cast<int64_t>(windows[2].size())};
}

std::vector<Window> pool_windows(int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation,
                                 bool ceil_mode, bool count_include_pad) {
  const int64_t reach = dilation * (kernel - 1) + 1;
  std::vector<Window> windows(pooled_size(in, kernel, stride, padding, dilation, ceil_mode));
  for (int64_t i = 0; i < std::ssize(windows); ++i) {
    const int64_t start = i * stride - padding;
    const int64_t begin = start < 0 ? start + ceil_div(-start, dilation) * dilation : start;
    const int64_t end = std::min(start + reach, in);
    const int64_t padded = std::min(start + reach, in + padding) - start;
    const int64_t inside = std::max<int64_t>(0, ceil_div(end - begin, dilation));
    windows[i] = {begin, end, dilation, count_include_pad ? padded : inside};
  }
  return windows;
}

std::vector<Window> adaptive_windows(int64_t in, int64_t out) {
  std::vector<Window> windows(out);
  for (int64_t i = 0; i < out; ++i) {
    const int64_t begin = i * in / out, end = ceil_div((i + 1) * in, out);
    windows[i] = {begin, end, 1, end - begin};
  }
  return windows;
}

void max_pool(const uint8_t* x, const PoolShape& shape, uint8_t* y, ParallelFor parallel) {
  const RowKernels& rows = active_kernels().rows;
  for_each_output(shape, x, parallel, [&](std::span<const uint8_t* const> inputs, const Dims&, int64_t pixel) {
    rows.max_codes(inputs.data(), std::ssize(inputs), shape.channels, y + pixel * shape.channels);
  });
}

AveragePool::AveragePool(const PoolShape& shape, const AveragePoolParams& params) {
  const auto divisor = static_cast<double>(params.divisor);
  const double width = static_cast<double>(largest_count(shape.windows[2]));
  const double largest = static_cast<double>(largest_count(shape.windows[0]) * largest_count(shape.windows[1])) * width;
  const double ratio = static_cast<double>(params.x_scale) / params.y_scale;
  if (ratio / (divisor > 0 ? divisor : largest) >= kSmallestMultiplier) {
    add_stage(shape, params, divisor);
    return;
  }
  PoolShape along = shape, across = shape;
  for (const int axis : {0, 1}) along.windows[axis] = pointwise_windows(shape.in[axis]);
  across.in = along.out();
  across.windows[2] = pointwise_windows(across.in[2]);
  AveragePoolParams first = params, second = params;
  first.bounds = {0, 255};
  second.x_scale = params.y_scale;
  second.x_zero_point = params.y_zero_point;
  add_stage(along, first, divisor > 0 ? width : 0.0);
  add_stage(across, second, divisor > 0 ? divisor / width : 0.0);
}

// Rule 7 for each window size that occurs; a multiplier below the smallest is raised to it.
void AveragePool::add_stage(const PoolShape& shape, const AveragePoolParams& params, double divisor) {
  Stage stage{shape, params, divisor > 0, {}};
  const double ratio = static_cast<double>(params.x_scale) / params.y_scale;
  for (const Window& d : shape.windows[0]) {
    for (const Window& h : shape.windows[1]) {
      for (const Window& w : shape.windows[2]) {
        const int64_t count = stage.fixed ? 0 : d.count * h.count * w.count;
        const auto [entry, is_new] = stage.multipliers.try_emplace(count, 0.0f);
        const double by = stage.fixed ? divisor : static_cast<double>(std::max<int64_t>(1, count));
        if (is_new) entry->second = snap_multiplier(std::max(ratio / by, kSmallestMultiplier)).value();
      }
    }
  }
  stages_.push_back(std::move(stage));
}

void AveragePool::run_stage(const Stage& stage, const uint8_t* x, uint8_t* y, ParallelFor parallel) {
  const RowKernels& rows = active_kernels().rows;
  const PoolShape& shape = stage.shape;
  const AveragePoolParams& params = stage.params;
  for_each_output(shape, x, parallel, [&](std::span<const uint8_t* const> inputs, const Dims& at, int64_t pixel) {
    thread_local std::vector<int32_t> sum;
    sum.resize(shape.channels);
    rows.sum_codes(inputs.data(), std::ssize(inputs), shape.channels, sum.data());
    const float multiplier = stage.multipliers.at(stage.fixed ? 0 : window_count(shape, at));
    rows.requantize(sum.data(), shape.channels, -static_cast<int32_t>(inputs.size()) * params.x_zero_point, multiplier,
                    params.y_zero_point, params.bounds, y + pixel * shape.channels);
  });
}

void AveragePool::run(const uint8_t* x, uint8_t* y, ParallelFor parallel) const {
  if (stages_.size() == 1) return run_stage(stages_[0], x, y, parallel);
  const PoolShape& first = stages_[0].shape;
  const Dims middle = first.out();
  const AlignedBytes codes(first.batch * middle[0] * middle[1] * middle[2] * first.channels);
  run_stage(stages_[0], x, codes.as<uint8_t>(), parallel);
  run_stage(stages_[1], codes.as<uint8_t>(), y, parallel);
}

}  // namespace octet::kernels
