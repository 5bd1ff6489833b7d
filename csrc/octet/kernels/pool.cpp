#include "octet/kernels/pool.h"

#include <algorithm>
#include <map>

#include "octet/core/multiplier.h"
#include "octet/kernels/aligned_bytes.h"
#include "octet/kernels/kernel_set.h"

namespace octet::kernels {
namespace {

constexpr int64_t kGrainBytes = 16384;  // input bytes worth a thread

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls body(image, {d, h, w}, output pixel) for every output position.
template <class Body>
void for_each_output(const PoolShape& shape, ParallelFor parallel, Body body) {
  const Dims out = shape.out();
  const int64_t pixels = out[0] * out[1] * out[2];
  if (shape.batch * pixels == 0) return;
  const int64_t reads = 1 + shape.in[0] * shape.in[1] * shape.in[2] * shape.channels / pixels;
  parallel(shape.batch * pixels, 1 + kGrainBytes / reads, [&](int64_t begin, int64_t end) {
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      const int64_t at = pixel % pixels;
      body(pixel / pixels, Dims{at / out[2] / out[1], at / out[2] % out[1], at % out[2]}, pixel);
    }
  });
}

// Calls body(pointer to the channels) for every input position that an output position reads.
template <class Body>
void for_each_input(const PoolShape& shape, const uint8_t* x, int64_t image, const Dims& at, Body body) {
  const Window& wd = shape.windows[0][at[0]];
  const Window& wh = shape.windows[1][at[1]];
  const Window& ww = shape.windows[2][at[2]];
  for (int64_t d = wd.begin; d < wd.end; d += wd.step) {
    for (int64_t h = wh.begin; h < wh.end; h += wh.step) {
      const int64_t row = ((image * shape.in[0] + d) * shape.in[1] + h) * shape.in[2];
      for (int64_t w = ww.begin; w < ww.end; w += ww.step) body(x + (row + w) * shape.channels);
    }
  }
}

int64_t window_count(const PoolShape& shape, const Dims& at) {
  return shape.windows[0][at[0]].count * shape.windows[1][at[1]].count * shape.windows[2][at[2]].count;
}

int64_t largest_count(const std::vector<Window>& windows) {
  int64_t largest = 1;
  for (const Window& window : windows) largest = std::max(largest, window.count);
  return largest;
}

// Rule 7 for each window size that occurs; a multiplier below the smallest is raised to it.
class Multipliers {
 public:
  Multipliers(const PoolShape& shape, double ratio, double divisor) : fixed_(divisor) {
    for (const Window& d : shape.windows[0]) {
      for (const Window& h : shape.windows[1]) {
        for (const Window& w : shape.windows[2]) {
          const auto [entry, is_new] = by_count_.try_emplace(key(d.count * h.count * w.count), 0.0f);
          if (is_new)
            entry->second =
                snapped(ratio / (fixed_ > 0 ? fixed_ : static_cast<double>(std::max<int64_t>(1, entry->first))));
        }
      }
    }
  }
  float operator()(int64_t count) const { return by_count_.at(key(count)); }

 private:
  int64_t key(int64_t count) const { return fixed_ > 0 ? 0 : count; }
  static float snapped(double ideal) { return snap_multiplier(std::max(ideal, kSmallestMultiplier)).value(); }

  double fixed_;
  std::map<int64_t, float> by_count_;
};

void average_one_stage(const uint8_t* x, const PoolShape& shape, const AveragePoolParams& params, double divisor,
                       uint8_t* y, ParallelFor parallel) {
  const RowKernels& rows = active_kernels().rows;
  const Multipliers multipliers(shape, static_cast<double>(params.x_scale) / params.y_scale, divisor);
  for_each_output(shape, parallel, [&](int64_t image, const Dims& at, int64_t pixel) {
    thread_local std::vector<int32_t> sum;
    sum.assign(shape.channels, 0);
    int32_t positions = 0;
    for_each_input(shape, x, image, at, [&](const uint8_t* codes) {
      rows.sum_codes(codes, shape.channels, sum.data());
      ++positions;
    });
    rows.requantize(sum.data(), shape.channels, -positions * params.x_zero_point, multipliers(window_count(shape, at)),
                    params.y_zero_point, params.bounds, y + pixel * shape.channels);
  });
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
  const int64_t room = in + 2 * padding - reach;
  int64_t out = room < 0 ? 0 : (ceil_mode ? ceil_div(room, stride) : room / stride) + 1;
  if (ceil_mode && out > 0 && (out - 1) * stride >= in + padding) --out;
  std::vector<Window> windows(out);
  for (int64_t i = 0; i < out; ++i) {
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
  for_each_output(shape, parallel, [&](int64_t image, const Dims& at, int64_t pixel) {
    uint8_t* to = y + pixel * shape.channels;
    std::fill(to, to + shape.channels, uint8_t{0});
    for_each_input(shape, x, image, at, [&](const uint8_t* codes) { rows.max_codes(codes, shape.channels, to); });
  });
}

void average_pool(const uint8_t* x, const PoolShape& shape, const AveragePoolParams& params, uint8_t* y,
                  ParallelFor parallel) {
  const auto divisor = static_cast<double>(params.divisor);
  const double width = static_cast<double>(largest_count(shape.windows[2]));
  const double largest = static_cast<double>(largest_count(shape.windows[0]) * largest_count(shape.windows[1])) * width;
  const double ratio = static_cast<double>(params.x_scale) / params.y_scale;
  if (ratio / (divisor > 0 ? divisor : largest) >= kSmallestMultiplier) {
    return average_one_stage(x, shape, params, divisor, y, parallel);
  }
  PoolShape along{shape.batch,
                  shape.channels,
                  shape.in,
                  {pointwise_windows(shape.in[0]), pointwise_windows(shape.in[1]), shape.windows[2]}};
  PoolShape across{shape.batch,
                   shape.channels,
                   along.out(),
                   {shape.windows[0], shape.windows[1], pointwise_windows(along.out()[2])}};
  AveragePoolParams first = params, second = params;
  first.bounds = {0, 255};
  second.x_scale = params.y_scale;
  second.x_zero_point = params.y_zero_point;
  const Dims middle = along.out();
  const AlignedBytes codes(shape.batch * middle[0] * middle[1] * middle[2] * shape.channels);
  average_one_stage(x, along, first, divisor > 0 ? width : 0.0, codes.as<uint8_t>(), parallel);
  average_one_stage(codes.as<uint8_t>(), across, second, divisor > 0 ? divisor / width : 0.0, y, parallel);
}

}  // namespace octet::kernels
