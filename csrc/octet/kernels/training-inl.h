// Bodies of the training kernels for one ISA: compiled once per ISA with OCTET_ISA_NAMESPACE defined. Each works on the
// tiles [begin, end) of a walk. Includes nothing whose inline functions could be merged into the generic build.
#pragma once

#include "octet/kernels/lanes-inl.h"
#include "octet/kernels/training_kernels.h"

namespace octet::kernels::OCTET_ISA_NAMESPACE {

// A Column is what a kernel does to sixteen lanes that share one table entry: start(args, table), block(args, offset,
// word, access) for each block, finish(args, table). `kWidth` columns go down side by side in registers. kInOrder: see
// for_each_run.
template <class Column, int kWidth, class Args>
inline void run_columns(const Run& run, const Args& args) {
  constexpr int64_t kPiece = 64;  // blocks a column adds up in float32 before it finishes and starts again
  for (int64_t begin = 0; begin == 0 || begin < run.blocks; begin += kPiece) {
    const int64_t end = begin + kPiece < run.blocks ? begin + kPiece : run.blocks;
    Column columns[kWidth];
    for (int w = 0; w < kWidth; ++w) columns[w].start(args, run.table + kLanes * w);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t offset = run.offset + i * run.stride, word = run.word + i * run.word_stride;
      for (int w = 0; w < kWidth; ++w) columns[w].block(args, offset + kLanes * w, word + w, WholeBlock{});
    }
    if (run.tail > 0 && end == run.blocks) {
      columns[0].block(args, run.offset + end * run.stride, run.word + end * run.word_stride, PartialBlock{run.tail});
    }
    for (int w = 0; w < kWidth; ++w) columns[w].finish(args, run.table + kLanes * w);
  }
}

template <class Column, class Args>
inline void run_tiles(const Args& args, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    for_each_run(*args.walk, tile, Column::kInOrder, [&](const Run& run, int width) {
      if (width == kWide) {
        run_columns<Column, kWide>(run, args);
      } else {
        run_columns<Column, 1>(run, args);
      }
    });
  }
}

// Sixteen float32 partial sums into the float64 sums: per table entry (interleaved) or per channel.
inline void flush(const Walk& walk, int64_t table, const Lanes& lanes, double* sums) {
  if (!walk.interleaved) {
    sums[table / kLanes] += sum_of(lanes);
    return;
  }
  float lane[kLanes];
  store(lane, lanes);
  for (int l = 0; l < kLanes; ++l) sums[table + l] += lane[l];
}

struct StatisticsColumn {
  static constexpr bool kInOrder = false;
  Lanes origin, sum, squares, low, high;

  void start(const StatisticsArgs& args, int64_t table) {
    origin = low = high = load(args.origin + table);
    sum = squares = splat(0);
  }

  template <class Access>
  void block(const StatisticsArgs& args, int64_t offset, int64_t, Access access) {
    const Lanes value = access.load(args.x + offset, origin);
    const Lanes distance = value - origin;
    sum = sum + distance;
    squares = squares + distance * distance;
    low = at_most(low, value);
    high = at_least(high, value);
  }

  void finish(const StatisticsArgs& args, int64_t table) {
    flush(*args.walk, table, sum, args.sums);
    flush(*args.walk, table, squares, args.squares);
    float lows[kLanes], highs[kLanes];
    store(lows, low);
    store(highs, high);
    for (int l = 0; l < kLanes; ++l) {
      const int64_t slot = args.walk->interleaved ? table + l : table / kLanes;
      args.min[slot] = lows[l] < args.min[slot] ? lows[l] : args.min[slot];
      args.max[slot] = highs[l] > args.max[slot] ? highs[l] : args.max[slot];
    }
  }
};

// rne, clamped to [first, last], both within +-2^21. Clamping before as well keeps round_even in its range. NaN stays.
inline Lanes clamp_steps(const Lanes& steps, float first, float last) {
  return round_even(at_most(at_least(steps, splat(first)), splat(last)));
}

// Activation, then fake quantization (rule 2). pass: where both let the gradient through.
inline Lanes apply_tail(const TailBounds& bounds, const Lanes& v, uint16_t& pass) {
  const Lanes low = splat(bounds.low), high = splat(bounds.high);
  const Lanes active = at_most(at_least(v, low), high);
  const Mask open = (low < v) & (v < high);
  if (!bounds.quantize) {
    pass = mask_to_bits(open);
    return active;
  }
  // One step beyond either end is enough to tell that a value lies outside, and keeps round_even in its range.
  const Lanes first = splat(bounds.first), last = splat(bounds.last), scale = splat(bounds.scale);
  const Lanes near = at_most(at_least(active / scale, splat(bounds.first - 1)), splat(bounds.last + 1));
  const Lanes steps = round_even(near);
  pass = mask_to_bits(open & (first <= steps) & (steps <= last));
  return scale * at_most(at_least(steps, first), last);
}

struct ForwardColumn {
  static constexpr bool kInOrder = true;
  Lanes gain, shift;

  void start(const ForwardArgs& args, int64_t table) {
    gain = load(args.gain + table);
    shift = load(args.shift + table);
  }

  template <class Access>
  void block(const ForwardArgs& args, int64_t offset, int64_t word, Access access) {
    uint16_t bits;
    access.store(args.y + offset, apply_tail(args.bounds, access.load(args.x + offset, shift) * gain + shift, bits));
    if (args.pass) args.pass[word] = bits;
  }

  void finish(const ForwardArgs&, int64_t) {}
};

inline Lanes passing_gradient(const float* grad, const uint16_t* pass, int64_t offset, int64_t word, auto access) {
  return keep(bits_to_mask(pass[word]), access.load(grad + offset, splat(0)));
}

template <bool kDot>
struct SumColumn {
  static constexpr bool kInOrder = false;
  Lanes mean, sum, dot;

  void start(const BackwardSumsArgs& args, int64_t table) {
    if (kDot) mean = load(args.mean + table);
    sum = dot = splat(0);
  }

  template <class Access>
  void block(const BackwardSumsArgs& args, int64_t offset, int64_t word, Access access) {
    const Lanes g = passing_gradient(args.grad, args.pass, offset, word, access);
    sum = sum + g;
    if (kDot) dot = dot + g * (access.load(args.x + offset, mean) - mean);
  }

  void finish(const BackwardSumsArgs& args, int64_t table) {
    flush(*args.walk, table, sum, args.sums);
    if (kDot) flush(*args.walk, table, dot, args.dots);
  }
};

template <bool kBatch>
struct BackwardColumn {
  static constexpr bool kInOrder = true;
  Lanes mean, a, b, c;

  void start(const BackwardArgs& args, int64_t table) {
    a = load(args.tables.a + table);
    if (!kBatch) return;
    mean = load(args.tables.mean + table);
    b = load(args.tables.b + table);
    c = load(args.tables.c + table);
  }

  template <class Access>
  void block(const BackwardArgs& args, int64_t offset, int64_t word, Access access) {
    Lanes g = a * passing_gradient(args.grad, args.pass, offset, word, access);
    if (kBatch) g = g + (b * (access.load(args.x + offset, mean) - mean) + c);
    access.store(args.grad_x + offset, g);
  }

  void finish(const BackwardArgs&, int64_t) {}
};

struct AddColumn {
  static constexpr bool kInOrder = true;
  Lanes low, high, poison;  // an infinity or a NaN makes poison NaN

  void start(const AddArgs&, int64_t) {
    low = splat(kInfinity);
    high = splat(-kInfinity);
    poison = splat(0);
  }

  template <class Access>
  void block(const AddArgs& args, int64_t offset, int64_t word, Access access) {
    // Lanes behind the end repeat the first element, so that they do not widen the range.
    const Lanes a = access.load(args.a + offset, splat(args.a[offset]));
    const Lanes b = access.load(args.b + offset, splat(args.b[offset]));
    const Lanes v = a + splat(args.alpha) * b;
    uint16_t bits;
    apply_tail(args.bounds, v, bits);
    access.store(args.y + offset, keep_nan(v, value(args, a, b)));
    if (args.pass) args.pass[word] = bits;
    const Lanes active = at_most(at_least(v, splat(args.bounds.low)), splat(args.bounds.high));
    poison = poison + active * splat(0);
    low = at_most(low, active);
    high = at_least(high, active);
  }

  void finish(const AddArgs& args, int64_t) {
    float lows[kLanes], highs[kLanes];
    store(lows, low);
    store(highs, high);
    Range& range = *args.range;
    for (int l = 0; l < kLanes; ++l) {
      range.min = range.min < lows[l] ? range.min : lows[l];
      range.max = range.max > highs[l] ? range.max : highs[l];
    }
    *args.poison += sum_of(poison);
  }

  // Rule 10.
  static Lanes value(const AddArgs& args, const Lanes& a, const Lanes& b) {
    const Lanes a_steps = clamp_steps(a / splat(args.a_grid.scale), args.a_grid.first, args.a_grid.last);
    const Lanes b_steps = clamp_steps(b / splat(args.b_grid.scale), args.b_grid.first, args.b_grid.last);
    const Lanes sum = a_steps * splat(args.a_ratio) + b_steps * splat(args.b_ratio);
    return splat(args.bounds.scale) * clamp_steps(sum, args.lowest, args.highest);
  }
};

inline constexpr TrainingKernels kTrainingKernels{
    [](const StatisticsArgs& args, int64_t begin, int64_t end) { run_tiles<StatisticsColumn>(args, begin, end); },
    [](const ForwardArgs& args, int64_t begin, int64_t end) { run_tiles<ForwardColumn>(args, begin, end); },
    [](const BackwardSumsArgs& args, int64_t begin, int64_t end) {
      args.x ? run_tiles<SumColumn<true>>(args, begin, end) : run_tiles<SumColumn<false>>(args, begin, end);
    },
    [](const BackwardArgs& args, int64_t begin, int64_t end) {
      args.x ? run_tiles<BackwardColumn<true>>(args, begin, end) : run_tiles<BackwardColumn<false>>(args, begin, end);
    },
    [](const AddArgs& args, int64_t begin, int64_t end) { run_tiles<AddColumn>(args, begin, end); },
};

}  // namespace octet::kernels::OCTET_ISA_NAMESPACE
