#include "octet/kernels/elementwise.h"

#include <algorithm>
#include <limits>
#include <mutex>
#include <vector>

#include "octet/kernels/kernel_set.h"
#include "octet/kernels/training.h"

namespace octet::kernels {
namespace {

constexpr int64_t kGrain = 16384;  // elements worth a thread
constexpr int64_t kChunk = 2048;   // elements whose flags stay in the first-level cache; a multiple of 8

// A run of elements with one channel, or (inner == 1) with consecutive channels from `channel` on.
struct Segment {
  int64_t begin;
  int64_t size;
  int64_t channel;
};

ChannelLayout normalized(ChannelLayout layout) {
  return layout.channels == 1 ? ChannelLayout{1, 1, layout.size()} : layout;
}

template <class Body>
void for_each_segment(const ChannelLayout& layout, int64_t begin, int64_t end, Body body) {
  while (begin < end) {
    const int64_t channel = begin / layout.inner % layout.channels;
    const int64_t room = layout.inner == 1 ? layout.channels - channel : layout.inner - begin % layout.inner;
    const int64_t size = std::min(end - begin, room);
    body(Segment{begin, size, channel});
    begin += size;
  }
}

RowGrid row_grid(const ChannelGrids& grids, const ChannelLayout& layout, int64_t channel) {
  return {grids.scale + channel, grids.zero_point + channel, layout.inner == 1 && layout.channels > 1, grids.qmin,
          grids.qmax};
}

template <class From, class To>
void map_rows(const From* x, const ChannelLayout& raw, const ChannelGrids& grids, To* y, ParallelFor parallel,
              void (*row)(const From*, int64_t, const RowGrid&, To*)) {
  const ChannelLayout layout = normalized(raw);
  parallel(layout.size(), kGrain, [&](int64_t begin, int64_t end) {
    for_each_segment(layout, begin, end, [&](const Segment& s) {
      row(x + s.begin, s.size, row_grid(grids, layout, s.channel), y + s.begin);
    });
  });
}

// The range of a tensor or of its channels, gathered from several threads.
class SharedRange {
 public:
  SharedRange(float* min, float* max, int64_t n) : min_(min), max_(max), n_(n) {
    std::fill(min, min + n, std::numeric_limits<float>::infinity());
    std::fill(max, max + n, -std::numeric_limits<float>::infinity());
  }
  void merge(const RowKernels& rows, const float* min, const float* max) {
    const std::lock_guard lock(mutex_);
    rows.min_max_each(min, max, n_, min_, max_);
  }
  // -0 and 0 compare equal, so which of them was kept depends on the order; 0 it is.
  void finish() {
    for (int64_t i = 0; i < n_; ++i) min_[i] += 0.0f, max_[i] += 0.0f;
  }

 private:
  float* min_;
  float* max_;
  int64_t n_;
  std::mutex mutex_;
};

// The bits of the last group that belong to no element.
void clear_behind(uint8_t* pass, int64_t size) {
  const unsigned bits = (1u << size % 16) - 1;
  if (bits == 0) return;
  uint8_t* group = pass + pass_bytes(size) - 2;
  group[0] &= static_cast<uint8_t>(bits);
  group[1] &= static_cast<uint8_t>(bits >> 8);
}

// pass bits begin at a byte: begin is a multiple of 8.
void fake_quantize_range(const RowKernels& rows, const float* x, const ChannelLayout& layout, const ChannelGrids& grids,
                         int64_t begin, int64_t end, float* y, uint8_t* pass) {
  uint8_t flags[kChunk];
  for_each_segment(layout, begin, end, [&](const Segment& s) {
    rows.fake_quantize(x + s.begin, s.size, row_grid(grids, layout, s.channel), y + s.begin,
                       pass ? flags + (s.begin - begin) : nullptr);
  });
  if (pass) rows.pack_bits(flags, end - begin, pass + begin / 8);
}

void fake_quantize_chunks(const float* x, const ChannelLayout& raw, const ChannelGrids& grids, float* y, uint8_t* pass,
                          SharedRange* range, ParallelFor parallel) {
  const RowKernels& rows = active_kernels().rows;
  const ChannelLayout layout = normalized(raw);
  const int64_t size = layout.size();
  if (pass && size > 0) pass[pass_bytes(size) - 1] = 0;  // perhaps behind the last element
  parallel((size + kChunk - 1) / kChunk, kGrain / kChunk, [&](int64_t first, int64_t last) {
    float min = std::numeric_limits<float>::infinity(), max = -min;
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, size);
      if (range) rows.min_max(x + begin, end - begin, &min, &max);
      fake_quantize_range(rows, x, layout, grids, begin, end, y, pass);
    }
    if (range) range->merge(rows, &min, &max);
  });
}

}  // namespace

void quantize(const float* x, const ChannelLayout& layout, const ChannelGrids& grids, uint8_t* q,
              ParallelFor parallel) {
  map_rows(x, layout, grids, q, parallel, active_kernels().rows.quantize_u8);
}

void quantize(const float* x, const ChannelLayout& layout, const ChannelGrids& grids, int8_t* q, ParallelFor parallel) {
  map_rows(x, layout, grids, q, parallel, active_kernels().rows.quantize_s8);
}

void dequantize(const uint8_t* q, const ChannelLayout& layout, const ChannelGrids& grids, float* y,
                ParallelFor parallel) {
  map_rows(q, layout, grids, y, parallel, active_kernels().rows.dequantize_u8);
}

void dequantize(const int8_t* q, const ChannelLayout& layout, const ChannelGrids& grids, float* y,
                ParallelFor parallel) {
  map_rows(q, layout, grids, y, parallel, active_kernels().rows.dequantize_s8);
}

void fake_quantize(const float* x, const ChannelLayout& layout, const ChannelGrids& grids, float* y, uint8_t* pass,
                   ParallelFor parallel) {
  if (pass && layout.channels == 1) {  // bits straight from the comparison, where flags would go through memory
    const float one = 1.0f, zero = 0.0f;
    const Grid grid{grids.scale[0], grids.zero_point[0], grids.qmin, grids.qmax};
    tail_forward(x, {layout.size(), 1, 1}, {&one, &zero, Activation::kIdentity, grid}, {y, nullptr, pass}, parallel);
    return clear_behind(pass, layout.size());
  }
  fake_quantize_chunks(x, layout, grids, y, pass, nullptr, parallel);
}

void observe_and_fake_quantize(const float* x, const ChannelLayout& layout, const ChannelGrids& grids, float* y,
                               uint8_t* pass, float* min, float* max, ParallelFor parallel) {
  SharedRange range(min, max, 1);
  fake_quantize_chunks(x, layout, grids, y, pass, &range, parallel);
  range.finish();
}

void fake_quantize_backward(const float* grad, const uint8_t* pass, int64_t n, float* grad_x, ParallelFor parallel) {
  const float one = 1.0f;
  tail_backward(grad, pass, nullptr, {nullptr, &one, nullptr, nullptr}, {n, 1, 1}, grad_x, parallel);
}

void quantize_rows(const float* x, int64_t count, int64_t n, const GridSpec& spec, float* scale, int8_t* codes,
                   float* values, ParallelFor parallel) {
  const RowKernels& rows = active_kernels().rows;
  static constexpr int32_t kZero = 0;
  parallel(count, 1 + kGrain / std::max<int64_t>(n, 1), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      constexpr float kInfinity = std::numeric_limits<float>::infinity();
      float low = kInfinity, high = -kInfinity;
      rows.min_max(x + r * n, n, &low, &high);
      scale[r] = scale_from_any_range({low, high}, spec);
      const RowGrid grid{scale + r, &kZero, false, spec.qmin, spec.qmax};
      if (codes) rows.quantize_s8(x + r * n, n, grid, codes + r * n);
      if (values) rows.fake_quantize(x + r * n, n, grid, values + r * n, nullptr);
    }
  });
}

void min_max(const float* x, const ChannelLayout& raw, float* min, float* max, ParallelFor parallel) {
  const RowKernels& rows = active_kernels().rows;
  const ChannelLayout layout = normalized(raw);
  SharedRange range(min, max, layout.channels);
  parallel(layout.size(), kGrain, [&](int64_t begin, int64_t end) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    std::vector<float> low(layout.channels, kInfinity), high(layout.channels, -kInfinity);
    for_each_segment(layout, begin, end, [&](const Segment& s) {
      const float* from = x + s.begin;
      if (layout.inner == 1) {
        rows.min_max_each(from, from, s.size, &low[s.channel], &high[s.channel]);
      } else {
        rows.min_max(from, s.size, &low[s.channel], &high[s.channel]);
      }
    });
    range.merge(rows, low.data(), high.data());
  });
  range.finish();
}

void lookup(const uint8_t* x, int64_t n, const uint8_t* table, uint8_t* y, ParallelFor parallel) {
  const RowKernels& rows = active_kernels().rows;
  parallel(n, kGrain, [&](int64_t begin, int64_t end) { rows.lookup(x + begin, end - begin, table, y + begin); });
}

void add(const uint8_t* a, const uint8_t* b, int64_t n, const AddParams& params, uint8_t* y, ParallelFor parallel) {
  const RowKernels& rows = active_kernels().rows;
  parallel(n, kGrain,
           [&](int64_t begin, int64_t end) { rows.add(a + begin, b + begin, end - begin, params, y + begin); });
}

void mul(const uint8_t* a, const uint8_t* b, int64_t n, const MulParams& params, uint8_t* y, ParallelFor parallel) {
  const RowKernels& rows = active_kernels().rows;
  parallel(n, kGrain,
           [&](int64_t begin, int64_t end) { rows.mul(a + begin, b + begin, end - begin, params, y + begin); });
}

}  // namespace octet::kernels
