// Convolution as an implicit matrix product, shared by the vector ISAs. Included inside an ISA's namespace and target
// region, behind a struct Engine that gives
//   kLanes     int32 lanes of a vector; an output channel is a lane
//   kVectors   vectors of a full panel
//   kUnit      codes per 4-byte unit of depth
//   Weight     the type of a packed weight
//   kCopied    activations are copied as Code, less offset(zero_point), instead of read in place
//   kRows[v]   pixels of a tile over v vectors, kMaxRows the most of them
//   tile<r, v> the TileFunction for r pixels and v vectors
//   CodeTiles  if there are tiles that store codes themselves: such tiles without and with a residual, their Finish
//
// Weights: panels of kVectors * kLanes output channels (the last of a group may be narrower), and within a panel
// [tap][unit][channel][kUnit], zero where channels or depth end; where pixels are copied with their taps side by side,
// all taps count as one. Sums: [tap][channel].

constexpr auto kTiles = TileTable<Engine, Engine::kVectors, Engine::kMaxRows>::kTable;
constexpr int64_t kPanel = Engine::kLanes * Engine::kVectors;
constexpr int64_t kFinished = 1536;  // accumulators: a quarter of the first-level cache at most
static_assert(kFinished >= Engine::kMaxRows * kPanel);
constexpr int64_t kMergedChannels = 16;  // up to which, if they fill no units, taps are copied side by side

static constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static constexpr int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

struct Plan {
  bool merged;          // the taps of a pixel are copied side by side
  int64_t taps;         // 1 where they are merged
  int64_t length;       // codes of a tap
  int64_t units;        // of a tap
  int64_t group_lanes;  // output channels of a group, padded

  int64_t depth_units() const { return taps * units; }
  int64_t depth_bytes() const { return depth_units() * 4; }
};

static Plan plan_for(const ConvShape& s) {
  Plan plan{};
  const int64_t channels = s.in_per_group();
  plan.merged = Engine::kCopied ||
                (s.groups == 1 && s.taps() > 1 && channels <= kMergedChannels && channels % Engine::kUnit != 0);
  plan.taps = plan.merged ? 1 : s.taps();
  plan.length = s.taps() / plan.taps * channels;
  plan.units = ceil_div(plan.length, Engine::kUnit);
  plan.group_lanes = round_up(s.out_per_group(), Engine::kLanes);
  return plan;
}

// kLanes rows of units, `count` of which exist, turned into units of kLanes: [row][unit] to [unit][lane of the panel].
static void interleave(const Engine::Weight* rows, int64_t count, int64_t units, int64_t lanes, uint32_t* to) {
  for (int64_t unit = 0; unit < units; ++unit, to += lanes) {
    for (int64_t lane = 0; lane < count; ++lane) {
      std::memcpy(to + lane, rows + (lane * units + unit) * Engine::kUnit, sizeof(uint32_t));
    }
    std::fill(to + count, to + Engine::kLanes, 0);
  }
}

// An output channel's codes, [tap][channel], to [tap][unit][kUnit]; and their sum per tap, all_lanes apart.
static void widen(const int8_t* codes, const Plan& plan, int64_t all_lanes, Engine::Weight* to, int32_t* sums) {
  const int64_t padded = plan.units * Engine::kUnit;
  for (int64_t tap = 0; tap < plan.taps; ++tap, codes += plan.length, to += padded) {
    std::copy(codes, codes + plan.length, to);
    std::fill(to + plan.length, to + padded, Engine::Weight{0});
    sums[tap * all_lanes] = std::accumulate(codes, codes + plan.length, int32_t{0});
  }
}

static PackedWeights pack(const WeightCodes& weights, const ConvShape& s, ParallelFor parallel) {
  const Plan plan = plan_for(s);
  const int64_t all_lanes = s.groups * plan.group_lanes, units = plan.depth_units(), outputs = s.out_per_group();
  static_assert(sizeof(Engine::Weight) * Engine::kUnit == sizeof(uint32_t));
  PackedWeights packed{AlignedBytes(all_lanes * plan.depth_bytes()),
                       AlignedBytes(all_lanes * plan.taps * sizeof(int32_t))};
  std::memset(packed.sums.as<uint8_t>(), 0, packed.sums.size());
  parallel(all_lanes / Engine::kLanes, 1 + 32768 / (1 + plan.depth_bytes()), [&](int64_t begin, int64_t end) {
    std::vector<Engine::Weight> rows(Engine::kLanes * units * Engine::kUnit);
    std::vector<int8_t> room(s.taps() * s.in_per_group());
    for (int64_t at = begin * Engine::kLanes; at < end * Engine::kLanes; at += Engine::kLanes) {
      const int64_t group = at / plan.group_lanes, lane = at % plan.group_lanes, panel = lane / kPanel * kPanel;
      const int64_t count = std::clamp<int64_t>(outputs - lane, 0, Engine::kLanes);
      for (int64_t i = 0; i < count; ++i) {
        widen(weights.channel(group * outputs + lane + i, s, room.data()), plan, all_lanes,
              &rows[i * units * Engine::kUnit], packed.sums.as<int32_t>() + at + i);
      }
      uint8_t* to = packed.codes.as<uint8_t>() + (group * plan.group_lanes + panel) * plan.depth_bytes();
      interleave(rows.data(), count, units, std::min(kPanel, plan.group_lanes - panel),
                 reinterpret_cast<uint32_t*>(to) + (lane - panel));
    }
  });
  return packed;
}

#include "octet/kernels/igemm_reads-inl.h"

// igemm_reads-inl.h first.
#include "octet/kernels/igemm_block-inl.h"

// A convolution that reads single pixels one after the other sees one row of them.
static ConvShape flattened(const ConvShape& shape) {
  const Dims ones{1, 1, 1};
  if (shape.taps() > 1 || shape.stride != ones || shape.in != shape.out) return shape;
  ConvShape flat = shape;
  flat.batch = 1;
  flat.in = flat.out = {1, 1, shape.batch * shape.pixels()};
  return flat;
}

struct Setup {
  Setup(const PackedWeights& weights, const ConvShape& given, const ConvEpilogue& epilogue)
      : shape(flattened(given)), plan(plan_for(shape)), reads(shape, plan, weights, epilogue) {
    small_multipliers = std::all_of(epilogue.multiplier, epilogue.multiplier + shape.out_channels,
                                    [](float multiplier) { return std::fabs(multiplier) < 1.0f; });
  }
  Setup(const Setup&) = delete;  // reads looks at the others

  ConvShape shape;
  Plan plan;
  Reads reads;
  bool small_multipliers;  // none reaches 1
};

static ConvSetup prepare(const PackedWeights& weights, const ConvShape& shape, const ConvEpilogue& epilogue) {
  return std::make_shared<const Setup>(weights, shape, epilogue);
}

// What there is to do, and what every thread reads.
struct Job {
  const PackedWeights& weights;
  const ConvShape& shape;
  const Plan& plan;
  const uint8_t* x;
  const ConvEpilogue& epilogue;
  const ConvOutput& y;
  const Reads& reads;
  bool bounded;  // no result before clamping leaves the integers
};

// Accumulators reach 2^31, a residual's operands 255 steps.
static bool is_bounded(bool small_multipliers, const ResidualAdd* add) {
  return small_multipliers && (!add || std::max(std::fabs(add->ratio), std::fabs(add->conv_ratio)) < (1 << 20));
}

// One panel over the pixels of a block that read alike.
struct Panel {
  Panel(const Job& job, const Block& block, const Block::Run& run, int64_t group, int64_t panel)
      : at(group * job.plan.group_lanes + panel),
        lanes(std::min(kPanel, job.plan.group_lanes - panel)),
        outputs(std::min(lanes, job.shape.out_per_group() - panel)),
        channel(group * job.shape.out_per_group() + panel),
        offset(group * (Engine::kCopied ? job.plan.units * 4 : job.shape.in_per_group())),
        vectors(static_cast<int>(lanes / Engine::kLanes)),
        weights(job.weights.codes.as<uint8_t>() + at * job.plan.depth_bytes()),
        next(panel + lanes < job.plan.group_lanes ? lanes * job.plan.depth_bytes() : to_wanted(job)),
        kind(job.reads.kind(run.kind)),
        pointers(block.pointers() + run.begin),
        places(block.places() + run.begin),
        pixels(run.end - run.begin) {}

  // Calls body(first pixel, rows, what the tile may fetch `ahead`) for tiles of nearly the same height. A fresh panel
  // comes from the third-level cache or memory: the next one's weights, or behind the last panel the next
  // convolution's, are fetched while this one's tiles run.
  template <class F>
  void for_each_tile(F body) const {
    const int64_t tiles = ceil_div(pixels, Engine::kRows[vectors]), height = pixels / tiles, higher = pixels % tiles;
    for (int64_t tile = 0, i = 0; tile < tiles; ++tile) {
      const int64_t rows = height + (tile < higher ? 1 : 0);
      body(i, static_cast<int>(rows), next + tile % 4 * 64);
      i += rows;
    }
  }

  int64_t to_wanted(const Job& job) const {
    const void* wanted = job.epilogue.wanted_next;
    return wanted ? reinterpret_cast<intptr_t>(wanted) - reinterpret_cast<intptr_t>(weights) : 0;
  }

  int64_t at, lanes, outputs, channel, offset;
  int vectors;
  const uint8_t* weights;
  int64_t next;  // from these weights to those wanted next
  const PixelKind& kind;
  const uint8_t* const* pointers;
  const int64_t* places;
  int64_t pixels;
};

// Tiles that store codes themselves.
template <class Tiles>
static void run_code_tiles(const Job& job, const Panel& p) {
  static constexpr auto kCodeTiles = TileTable<Tiles, Engine::kVectors, Engine::kMaxRows>::kTable;
  const typename Tiles::Finish finish(job.epilogue, job.y.codes);
  p.for_each_tile([&](int64_t i, int rows, int64_t ahead) {
    kCodeTiles[p.vectors][rows](p.pointers + i, p.offset, p.kind.depth, p.weights, ahead, p.kind.init + p.at, finish,
                                p.channel, p.places + i);
  });
}

template <class E>
static void run_tiles(const Job& job, const Panel& p) {
  if constexpr (requires { typename E::template CodeTiles<false>; }) {
    if (job.y.codes && job.bounded && p.outputs == p.lanes) {
      if (job.epilogue.residual) return run_code_tiles<typename E::template CodeTiles<true>>(job, p);
      return run_code_tiles<typename E::template CodeTiles<false>>(job, p);
    }
  }
  alignas(64) int32_t acc[kFinished];
  int64_t first = 0;
  int done = 0;  // short tiles are finished several at a time
  const auto finish_tiles = [&] {
    finish(acc, p.lanes, done, p.outputs, job.epilogue, p.channel, job.y,
           [to = p.places + first](int row) { return to[row]; });
    first += done;
    done = 0;
  };
  p.for_each_tile([&](int64_t i, int rows, int64_t ahead) {
    if ((done + rows) * p.lanes > kFinished) finish_tiles();
    kTiles[p.vectors][rows](p.pointers + i, p.offset, p.kind.depth, p.weights, ahead, p.kind.init + p.at,
                            acc + done * p.lanes);
    done += rows;
  });
  finish_tiles();
}

static void run(const PackedWeights& weights, const ConvSetup& setup, const uint8_t* x, const ConvEpilogue& epilogue,
                const ConvOutput& y, ParallelFor parallel) {
  const auto& prepared = *static_cast<const Setup*>(setup.get());
  const ConvShape& shape = prepared.shape;
  const Plan& plan = prepared.plan;
  const Reads& reads = prepared.reads;
  const Job job{weights, shape, plan, x, epilogue, y, reads, is_bounded(prepared.small_multipliers, epilogue.residual)};
  const int64_t pixels = shape.batch * shape.pixels(), panels = ceil_div(plan.group_lanes, kPanel);
  const int64_t lanes = shape.groups * plan.group_lanes;
  // Threads share pixels; where the weights are the larger part, panels and then pixels.
  const bool by_panel =
      static_cast<int64_t>(weights.codes.size()) > 2 * shape.batch * shape.in_pixels() * shape.in_channels;
  const int64_t parts = by_panel ? shape.groups * panels : 1, all = shape.groups * panels;
  const int64_t work = 1 + lanes * (plan.depth_units() + 16) / parts;
  parallel(parts * pixels, 1 + 150000 / work, [&](int64_t begin, int64_t end) {
    const int64_t size = std::min(reads.block_pixels(), std::min(pixels, end - begin));
    Block block(job.shape, plan, reads, x, epilogue.x_zero_point, size);
    for (int64_t at = begin; at < end;) {
      const int64_t part = at / pixels, first = at % pixels, left = std::min(pixels - first, end - at);
      const int64_t count = reads.in_place() ? ceil_div(left, ceil_div(left, size)) : std::min(left, size);
      block.fill(first, count);
      for (int64_t p = by_panel ? part : 0; p < (by_panel ? part + 1 : all); ++p) {
        for (const Block::Run& run : block.runs()) {
          run_tiles<Engine>(job, Panel(job, block, run, p / panels, p % panels * kPanel));
        }
      }
      at += count;
    }
  });
}

static bool accepts(const ConvShape& /*shape*/) { return true; }
