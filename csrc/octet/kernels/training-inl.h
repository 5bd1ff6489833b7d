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
inline void run_columns(const Run& run, const Args& given) {
  const Args args = given;        // in registers: the codes that are stored might be any other object's bytes
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

// Activation, then fake quantization (rule 2), in steps. pass: where both let the gradient through.
inline Lanes tail_steps(const TailBounds& bounds, const Lanes& v, uint16_t& pass) {
  const Lanes low = splat(bounds.low), high = splat(bounds.high);
  const Lanes active = at_most(at_least(v, low), high);
  // One step beyond either end is enough to tell that a value lies outside, and keeps round_even in its range.
  const Lanes first = splat(bounds.grid.first), last = splat(bounds.grid.last), scale = splat(bounds.grid.scale);
  const Lanes near = at_most(at_least(active / scale, splat(bounds.grid.first - 1)), splat(bounds.grid.last + 1));
  const Lanes steps = round_even(near);
  pass = mask_to_bits((low < v) & (v < high) & (first <= steps) & (steps <= last));
  return at_most(at_least(steps, first), last);
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
    const Lanes steps = tail_steps(args.bounds, access.load(args.x + offset, shift) * gain + shift, bits);
    access.store(args.y + offset, splat(args.bounds.grid.scale) * steps);
    if (args.codes) access.store_bytes(args.codes + offset, steps + splat(args.bounds.grid.zero_point));
    if (args.pass) args.pass[word] = bits;
  }

  void finish(const ForwardArgs&, int64_t) {}
};

struct IntegerColumn {
  static constexpr bool kInOrder = false;  // what a convolution has just written lies in the cache
  Lanes gain, shift, low, high;

  void start(const IntegerArgs& args, int64_t table) {
    gain = load(args.gain + table);
    shift = load(args.shift + table);
    low = load(args.low + table);
    high = load(args.high + table);
  }

  template <class Access>
  void block(const IntegerArgs& args, int64_t offset, int64_t word, Access access) {
    const Lanes x = access.load(args.x + offset, splat(__builtin_nanf("")));
    const Lanes v = x * gain + shift;
    uint16_t bits;
    tail_steps(args.bounds, v, bits);
    const Lanes steps = clamp_steps(x, args.lowest, args.highest);
    access.store(args.y + offset, keep_nan(v, splat(args.bounds.grid.scale) * steps));
    if (args.codes) access.store_bytes(args.codes + offset, steps + splat(args.bounds.grid.zero_point));
    if (args.pass) args.pass[word] = bits;
    const Lanes active = at_most(at_least(v, splat(args.bounds.low)), splat(args.bounds.high));
    low = at_most(low, active);
    high = at_least(high, active);
  }

  void finish(const IntegerArgs& args, int64_t table) {
    store(args.low + table, low);
    store(args.high + table, high);
  }
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

template <bool kBatch, class Out>
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
    access.store(static_cast<Out*>(args.grad_x) + offset, g);
  }

  void finish(const BackwardArgs&, int64_t) {}
};

template <class Out>
inline void run_backward(const BackwardArgs& args, int64_t begin, int64_t end) {
  args.x ? run_tiles<BackwardColumn<true, Out>>(args, begin, end)
         : run_tiles<BackwardColumn<false, Out>>(args, begin, end);
}

struct ReadColumn {
  static constexpr bool kInOrder = true;

  void start(const ReadArgs&, int64_t) {}

  template <class Access>
  void block(const ReadArgs& args, int64_t offset, int64_t, Access access) {
    const Lanes steps = access.load_bytes(args.codes + offset, 0) - splat(args.grid.zero_point);
    access.store(args.x + offset, splat(args.grid.scale) * steps);
  }

  void finish(const ReadArgs&, int64_t) {}
};

struct CodesColumn {
  static constexpr bool kInOrder = true;
  Lanes poison, low, high;  // a NaN makes poison NaN; low and high: how far values lie beside the grid

  void start(const CodesArgs&, int64_t) { poison = low = high = splat(0); }

  template <class Access>
  void block(const CodesArgs& args, int64_t offset, int64_t, Access access) {
    const Lanes x = access.load(args.x + offset, splat(0));
    const Lanes steps = clamp_steps(x / splat(args.grid.scale), args.grid.first, args.grid.last);
    const Lanes error = x - splat(args.grid.scale) * steps;
    poison = poison + steps * splat(0);
    low = at_most(low, error);
    high = at_least(high, error);
    access.store_bytes(args.codes + offset, steps + splat(args.grid.zero_point));
  }

  void finish(const CodesArgs& args, int64_t) {
    *args.poison += sum_of(poison);
    *args.error += sum_of(high - low);
  }
};

// What an operand is in steps of its grid, and its value.
struct AddTerm {
  Lanes steps, value;
};

template <bool kCodes, class Access>
inline AddTerm add_term(const AddOperand& x, const StepBounds& grid, int64_t offset, Access access) {
  // Lanes behind the end repeat the first element, so that they do not widen the range.
  if constexpr (kCodes) {
    const Lanes steps = access.load_bytes(x.codes + offset, x.codes[offset]) - splat(grid.zero_point);
    return {steps, splat(grid.scale) * steps};
  } else {
    const Lanes value = access.load(x.values + offset, splat(x.values[offset]));
    return {clamp_steps(value / splat(grid.scale), grid.first, grid.last), value};
  }
}

template <bool kCodes>
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
    const AddTerm a = add_term<kCodes>(args.a, args.a_grid, offset, access);
    const AddTerm b = add_term<kCodes>(args.b, args.b_grid, offset, access);
    const Lanes v = a.value + splat(args.alpha) * b.value;
    uint16_t bits;
    tail_steps(args.bounds, v, bits);
    // Rule 10.
    const Lanes sum = a.steps * splat(args.a_ratio) + b.steps * splat(args.b_ratio);
    const Lanes steps = clamp_steps(sum, args.lowest, args.highest);
    access.store(args.y + offset, keep_nan(v, splat(args.bounds.grid.scale) * steps));
    if (args.codes) access.store_bytes(args.codes + offset, steps + splat(args.bounds.grid.zero_point));
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
};

// Calls body(offset, access) for blocks of sixteen channels.
template <class Body>
inline void for_each_block(int64_t n, Body body) {
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) body(c, WholeBlock{});
  if (c < n) body(c, PartialBlock{static_cast<int>(n - c)});
}

// The first of equal ones wins, and a NaN.
inline void pool(const float* const* x, int64_t count, int64_t n, float* y, uint8_t* winner) {
  for_each_block(n, [&](int64_t c, auto access) {
    const Lanes zero = splat(0);
    Lanes most = access.load(x[0] + c, zero), position = zero;
    for (int64_t i = 1; i < count; ++i) {
      const Lanes next = access.load(x[i] + c, zero);
      const Mask wins = (most < next) | ~(next == next);
      position = choose(wins, splat(static_cast<float>(i)), position);
      most = choose(wins, next, most);
    }
    access.store(y + c, most);
    access.store_bytes(winner + c, position);
  });
}

inline void unpool(const PooledOutput* outputs, int64_t count, int64_t n, float* grad_x) {
  for_each_block(n, [&](int64_t c, auto access) {
    const Lanes zero = splat(0);
    Lanes sum = zero;
    for (const PooledOutput* o = outputs; o != outputs + count; ++o) {
      const Mask won = access.load_bytes(o->winner + c, 0) == splat(o->position);
      sum = sum + keep(won, access.load(o->grad + c, zero));
    }
    access.store(grad_x + c, sum);
  });
}

inline constexpr TrainingKernels kTrainingKernels{
    [](const StatisticsArgs& args, int64_t begin, int64_t end) { run_tiles<StatisticsColumn>(args, begin, end); },
    [](const ForwardArgs& args, int64_t begin, int64_t end) { run_tiles<ForwardColumn>(args, begin, end); },
    [](const IntegerArgs& args, int64_t begin, int64_t end) { run_tiles<IntegerColumn>(args, begin, end); },
    [](const BackwardSumsArgs& args, int64_t begin, int64_t end) {
      args.x ? run_tiles<SumColumn<true>>(args, begin, end) : run_tiles<SumColumn<false>>(args, begin, end);
    },
    [](const BackwardArgs& args, int64_t begin, int64_t end) {
      args.bfloat16 ? run_backward<uint16_t>(args, begin, end) : run_backward<float>(args, begin, end);
    },
    [](const CodesArgs& args, int64_t begin, int64_t end) { run_tiles<CodesColumn>(args, begin, end); },
    [](const ReadArgs& args, int64_t begin, int64_t end) { run_tiles<ReadColumn>(args, begin, end); },
    [](const AddArgs& args, int64_t begin, int64_t end) {
      args.a.codes&& args.b.codes ? run_tiles<AddColumn<true>>(args, begin, end)
                                  : run_tiles<AddColumn<false>>(args, begin, end);
    },
    pool,
    unpool,
};

}  // namespace octet::kernels::OCTET_ISA_NAMESPACE
