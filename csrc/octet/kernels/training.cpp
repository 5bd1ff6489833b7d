// The training kernels without their inner loops: tables, threads, and sums over tiles in a fixed order.
#include "octet/kernels/training.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "octet/kernels/dispatch.h"
#include "octet/kernels/training_kernels.h"
#include "octet/kernels/training_walk.h"

namespace octet::kernels {
const TrainingKernels& active_training_kernels() {
#if defined(__x86_64__)
  if (active_isa() == Isa::kAvx512Vnni) return avx512::training_kernels;
  if (active_isa() == Isa::kAvx2) return avx2::training_kernels;
#endif
  return generic::training_kernels;
}

namespace {

constexpr int64_t kTileBytes = 64 * 1024;   // of float32: an L1 cache's worth
constexpr int64_t kChunkSize = 128 * 1024;  // elements that one set of partial sums covers, at least
constexpr int64_t kMaxChunks = 16;
constexpr int64_t kGrain = 16 * 1024;  // elements worth a thread

Walk make_walk(const ChannelLayout& layout) {
  Walk walk;
  walk.channels = layout.channels;
  walk.size = layout.size();
  walk.interleaved = layout.inner == 1;
  if (walk.interleaved) {
    walk.period = std::lcm(layout.channels, int64_t{16});
    walk.table_size = walk.period;
    walk.tile_size = walk.period * std::max<int64_t>(1, kTileBytes / 4 / walk.period);
    walk.tiles = (walk.size + walk.tile_size - 1) / walk.tile_size;
  } else {
    walk.row = layout.inner;
    walk.row_blocks = (layout.inner + 15) / 16;
    walk.table_size = 16 * layout.channels;
    walk.tile_size = layout.inner;
    walk.tiles = layout.inner > 0 ? layout.outer * layout.channels : 0;
  }
  return walk;
}

std::vector<float> make_table(const Walk& walk, const float* values) {
  std::vector<float> table(walk.table_size);
  for (int64_t i = 0; i < walk.table_size; ++i) table[i] = values[walk.channel(i)];
  return table;
}

void parallel_tiles(const Walk& walk, ParallelFor parallel, RangeBody body) {
  parallel(walk.tiles, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, walk.tile_size)), body);
}

// Sums must not depend on how the loop is split, so they are taken over chunks that depend on the array alone.
struct Chunks {
  int64_t count;
  int64_t tiles;

  explicit Chunks(const Walk& walk)
      : count(std::clamp<int64_t>(walk.size / kChunkSize, 1, kMaxChunks)), tiles((walk.tiles + count - 1) / count) {}
};

// body(chunk, first tile, last tile), the chunks in parallel.
template <class Body>
void parallel_chunks(const Walk& walk, const Chunks& chunks, ParallelFor parallel, Body body) {
  parallel(chunks.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      body(c, std::min(walk.tiles, c * chunks.tiles), std::min(walk.tiles, (c + 1) * chunks.tiles));
    }
  });
}

int64_t slots_of(const Walk& walk) { return walk.interleaved ? walk.table_size : walk.channels; }

// One slot per table entry or channel and chunk, folded to channels in order.
template <class T>
struct Partials {
  Partials(const Walk& walk, const Chunks& chunks, T start)
      : slots(slots_of(walk)), values(slots * chunks.count, start) {}

  T* chunk(int64_t c) { return values.data() + c * slots; }

  template <class Fold>
  std::vector<T> fold(const Walk& walk, T start, Fold step) const {
    std::vector<T> channels(walk.channels, start);
    for (size_t i = 0; i < values.size(); ++i) {
      T& channel = channels[static_cast<int64_t>(i) % slots % walk.channels];
      channel = step(channel, values[i]);
    }
    return channels;
  }
  std::vector<T> sum(const Walk& walk) const { return fold(walk, T{0}, std::plus<T>()); }

  int64_t slots;
  std::vector<T> values;
};

StepBounds steps_of(const Grid& grid) {
  const auto from_zero = [&](int32_t code) { return static_cast<float>(code - grid.zero_point); };
  return {grid.scale, from_zero(grid.qmin), from_zero(grid.qmax), static_cast<float>(grid.zero_point)};
}

TailBounds bounds_of(const Tail& tail) {
  const StepBounds steps = steps_of(tail.grid);
  TailBounds bounds{-kInfinity, kInfinity, steps};
  if (tail.activation != Activation::kIdentity) bounds.low = 0.0f;
  if (tail.activation == Activation::kRelu6) bounds.high = 6.0f;
  return bounds;
}

uint16_t* words(uint8_t* pass) { return reinterpret_cast<uint16_t*>(pass); }
const uint16_t* words(const uint8_t* pass) { return reinterpret_cast<const uint16_t*>(pass); }

}  // namespace

int64_t tail_pass_bytes(const ChannelLayout& layout) {
  if (layout.inner == 1) return (layout.size() + 15) / 16 * 2;
  return layout.outer * layout.channels * ((layout.inner + 15) / 16 * 2);
}

void channel_statistics(const float* x, const ChannelLayout& layout, const ChannelStatistics& out,
                        ParallelFor parallel) {
  const Walk walk = make_walk(layout);
  const Chunks chunks(walk);
  // Sums are of the distance from each channel's first element: no cancellation where the mean is large.
  std::vector<float> origin(layout.channels, 0.0f);
  if (walk.size > 0) {
    for (int64_t c = 0; c < layout.channels; ++c) origin[c] = x[c * layout.inner];
  }
  const std::vector<float> table = make_table(walk, origin.data());
  Partials<double> sums(walk, chunks, 0.0), squares(walk, chunks, 0.0);
  Partials<float> lows(walk, chunks, kInfinity), highs(walk, chunks, -kInfinity);
  const auto& run = active_training_kernels();
  parallel_chunks(walk, chunks, parallel, [&](int64_t c, int64_t begin, int64_t end) {
    run.statistics({&walk, x, table.data(), sums.chunk(c), squares.chunk(c), lows.chunk(c), highs.chunk(c)}, begin,
                   end);
  });
  const std::vector<double> sum = sums.sum(walk), square = squares.sum(walk);
  const std::vector<float> low = lows.fold(walk, kInfinity, [](float a, float b) { return std::min(a, b); });
  const std::vector<float> high = highs.fold(walk, -kInfinity, [](float a, float b) { return std::max(a, b); });
  const double n = static_cast<double>(layout.outer * layout.inner);
  for (int64_t c = 0; c < layout.channels; ++c) {
    const double distance = sum[c] / n;
    out.mean[c] = static_cast<float>(origin[c] + distance);
    out.variance[c] = static_cast<float>(std::max(square[c] / n - distance * distance, 0.0));
    if (std::isnan(distance))
      out.variance[c] = std::numeric_limits<float>::quiet_NaN();  // max() above may have lost it
    const bool nan = std::isnan(distance) && n > 0;
    out.min[c] = nan ? std::numeric_limits<float>::quiet_NaN() : low[c];
    out.max[c] = nan ? std::numeric_limits<float>::quiet_NaN() : high[c];
  }
}

Range tail_range(const float* min, const float* max, int64_t channels, const Tail& tail) {
  const TailBounds bounds = bounds_of(tail);
  Range range;
  for (int64_t c = 0; c < channels; ++c) {
    if (min[c] > max[c]) continue;  // an empty channel
    for (const float end : {min[c], max[c]}) {
      float y = end * tail.gain[c] + tail.shift[c];
      if (std::isnan(y)) return {y, y};
      y = std::min(std::max(y, bounds.low), bounds.high);
      range.min = std::min(range.min, y);
      range.max = std::max(range.max, y);
    }
  }
  return range;
}

void tail_forward(const float* x, const ChannelLayout& layout, const Tail& tail, const TailOutput& out,
                  ParallelFor parallel) {
  const Walk walk = make_walk(layout);
  const std::vector<float> gain = make_table(walk, tail.gain), shift = make_table(walk, tail.shift);
  const TailBounds bounds = bounds_of(tail);
  const auto& run = active_training_kernels();
  parallel_tiles(walk, parallel, [&](int64_t begin, int64_t end) {
    run.forward({&walk, x, gain.data(), shift.data(), bounds, out.y, out.codes, words(out.pass)}, begin, end);
  });
}

Range integer_tail(const float* x, const ChannelLayout& layout, const Tail& tail, const TailOutput& out,
                   ParallelFor parallel) {
  const Walk walk = make_walk(layout);
  const Chunks chunks(walk);
  const std::vector<float> gain = make_table(walk, tail.gain), shift = make_table(walk, tail.shift);
  const TailBounds bounds = bounds_of(tail);
  const CodeBounds codes = activation_bounds(tail.activation, tail.grid);
  const auto step = [&](int32_t code) { return static_cast<float>(code - tail.grid.zero_point); };
  Partials<float> lows(walk, chunks, kInfinity), highs(walk, chunks, -kInfinity);
  const auto& run = active_training_kernels();
  parallel_chunks(walk, chunks, parallel, [&](int64_t c, int64_t begin, int64_t end) {
    run.integer({&walk, x, gain.data(), shift.data(), step(codes.lo), step(codes.hi), bounds, out.y, out.codes,
                 words(out.pass), lows.chunk(c), highs.chunk(c)},
                begin, end);
  });
  for (int64_t c = 0; c < layout.channels; ++c) {
    const float poison = 0 * tail.gain[c] + 0 * tail.shift[c];
    if (std::isnan(poison) && walk.size > 0) return {poison, poison};
  }
  Range range;
  for (const float low : lows.values) range.min = std::min(range.min, low);
  for (const float high : highs.values) range.max = std::max(range.max, high);
  return range;
}

void tail_backward_sums(const float* grad, const uint8_t* pass, const float* x, const float* mean,
                        const ChannelLayout& layout, float* sum, float* dot, ParallelFor parallel) {
  const Walk walk = make_walk(layout);
  const Chunks chunks(walk);
  const std::vector<float> centre = x ? make_table(walk, mean) : std::vector<float>();
  Partials<double> sums(walk, chunks, 0.0), dots(walk, chunks, 0.0);
  const auto& run = active_training_kernels();
  parallel_chunks(walk, chunks, parallel, [&](int64_t c, int64_t begin, int64_t end) {
    run.backward_sums({&walk, grad, words(pass), x, centre.data(), sums.chunk(c), dots.chunk(c)}, begin, end);
  });
  const std::vector<double> total = sums.sum(walk), total_dot = dots.sum(walk);
  for (int64_t c = 0; c < layout.channels; ++c) {
    sum[c] = static_cast<float>(total[c]);
    if (x) dot[c] = static_cast<float>(total_dot[c]);
  }
}

namespace {

void run_tail_backward(const float* grad, const uint8_t* pass, const float* x, const TailGradient& gradient,
                       const ChannelLayout& layout, void* grad_x, bool bfloat16, ParallelFor parallel) {
  const Walk walk = make_walk(layout);
  const auto table = [&](const float* values) { return values && x ? make_table(walk, values) : std::vector<float>(); };
  const std::vector<float> mean = table(gradient.mean), b = table(gradient.b), c = table(gradient.c);
  const std::vector<float> a = make_table(walk, gradient.a);
  const TailGradient tables{mean.data(), a.data(), b.data(), c.data()};
  const auto& run = active_training_kernels();
  parallel_tiles(walk, parallel, [&](int64_t begin, int64_t end) {
    run.backward({&walk, grad, words(pass), x, tables, grad_x, bfloat16}, begin, end);
  });
}

}  // namespace

void tail_backward(const float* grad, const uint8_t* pass, const float* x, const TailGradient& gradient,
                   const ChannelLayout& layout, float* grad_x, ParallelFor parallel) {
  run_tail_backward(grad, pass, x, gradient, layout, grad_x, false, parallel);
}

void tail_backward(const float* grad, const uint8_t* pass, const float* x, const TailGradient& gradient,
                   const ChannelLayout& layout, uint16_t* bfloat16_grad_x, ParallelFor parallel) {
  run_tail_backward(grad, pass, x, gradient, layout, bfloat16_grad_x, true, parallel);
}

void read_codes(const uint8_t* codes, int64_t n, const Grid& grid, uint16_t* bfloat16, ParallelFor parallel) {
  const Walk walk = make_walk({n, 1, 1});
  const auto& run = active_training_kernels();
  parallel_tiles(walk, parallel,
                 [&](int64_t begin, int64_t end) { run.read({&walk, codes, steps_of(grid), bfloat16}, begin, end); });
}

CodesFound training_codes(const float* x, int64_t n, const Grid& grid, uint8_t* codes, ParallelFor parallel) {
  const Walk walk = make_walk({n, 1, 1});
  const Chunks chunks(walk);
  std::vector<float> poison(chunks.count, 0.0f), error(chunks.count, 0.0f);
  const auto& run = active_training_kernels();
  parallel_chunks(walk, chunks, parallel, [&](int64_t c, int64_t begin, int64_t end) {
    run.codes({&walk, x, steps_of(grid), codes, &poison[c], &error[c]}, begin, end);
  });
  return {std::any_of(poison.begin(), poison.end(), [](float p) { return std::isnan(p); }),
          std::all_of(error.begin(), error.end(), [](float e) { return e == 0.0f; })};
}

Range add_forward(const AddOperand& a, const AddOperand& b, int64_t n, const AddTail& tail, const TailOutput& out,
                  ParallelFor parallel) {
  if (n == 0) return {};
  const Walk walk = make_walk({n, 1, 1});
  const Chunks chunks(walk);
  std::vector<Range> ranges(chunks.count);
  std::vector<float> poison(chunks.count, 0.0f);
  const TailBounds bounds = bounds_of({nullptr, nullptr, tail.activation, tail.output});
  const CodeBounds codes = activation_bounds(tail.activation, tail.output);
  const auto step = [&](int32_t code) { return static_cast<float>(code - tail.output.zero_point); };
  const auto& run = active_training_kernels();
  parallel_chunks(walk, chunks, parallel, [&](int64_t c, int64_t begin, int64_t end) {
    run.add({&walk, a, b, tail.alpha, steps_of(tail.a), steps_of(tail.b), tail.a_ratio, tail.b_ratio, step(codes.lo),
             step(codes.hi), bounds, out.y, out.codes, words(out.pass), &ranges[c], &poison[c]},
            begin, end);
  });
  Range range;
  for (int64_t c = 0; c < chunks.count; ++c) {
    if (std::isnan(poison[c])) return {poison[c], poison[c]};
    range.min = std::min(range.min, ranges[c].min);
    range.max = std::max(range.max, ranges[c].max);
  }
  return range;
}

}  // namespace octet::kernels
