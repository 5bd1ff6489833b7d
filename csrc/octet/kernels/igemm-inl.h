// Convolution as an implicit matrix product, shared by the vector ISAs. Included inside an ISA's namespace and target
// region, behind a struct Engine that gives
//   kLanes     int32 lanes of a vector; an output channel is a lane
//   kVectors   vectors of a full panel
//   kUnit      codes per 4-byte unit of depth
//   Weight     the type of a packed weight
//   kCopied    activations are copied as Code, less offset(zero_point), instead of read in place
//   kRows[v]   pixels of a tile over v vectors, kMaxRows the most of them
//   tile<r, v> the TileFunction for r pixels and v vectors
//
// The depth of the product is cut into segments that lie contiguously in memory: one per tap, or, where it is copied,
// one in all.
//
// Weights: panels of kVectors * kLanes output channels (the last of a group may be narrower), and within a panel
// [segment][unit][channel][kUnit], zero where channels or depth end.

constexpr auto kTiles = TileTable<Engine, Engine::kVectors, Engine::kMaxRows>::kTable;
constexpr int64_t kPanel = Engine::kLanes * Engine::kVectors;
constexpr int64_t kJoinedChannels = 16;  // up to which the taps of a pixel are copied side by side
constexpr int64_t kBlockPixels = 96;     // their outputs and inputs stay in the second-level cache for every panel
constexpr int64_t kBlockPointers = 4096;

static constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct Plan {
  int64_t segments;
  int64_t length;  // codes of a segment
  int64_t units;
  bool joined;       // the taps of a pixel are copied side by side: short segments cost more than the copy
  bool padded_rows;  // x is read from a padded copy of its rows: no tap is outside, and reading up to a unit's end is
                     // safe
  int64_t group_lanes;  // output channels of a group, padded

  int64_t depth_bytes() const { return segments * units * 4; }
};

static Plan plan_for(const ConvShape& s) {
  Plan plan{};
  const int64_t channels = s.in_per_group();
  plan.joined = !Engine::kCopied && s.groups == 1 && s.taps() > 1 && channels <= kJoinedChannels;
  plan.padded_rows = !Engine::kCopied && (plan.joined || channels % Engine::kUnit != 0);
  const int64_t merged = Engine::kCopied || plan.joined ? s.taps() : 1;
  plan.segments = s.taps() / merged;
  plan.length = merged * channels;
  plan.units = (plan.length + Engine::kUnit - 1) / Engine::kUnit;
  plan.group_lanes = round_up(s.out_per_group(), Engine::kLanes);
  return plan;
}

static void copy_codes(const uint8_t* __restrict x, int64_t n, int32_t offset, Engine::Code* __restrict to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<Engine::Code>(x[i] - offset);
}

static void pack_channel(const Engine::Weight* codes, const Plan& plan, int64_t lanes, Engine::Weight* to) {
  for (int64_t segment = 0; segment < plan.segments; ++segment) {
    for (int64_t unit = 0; unit < plan.units; ++unit, to += lanes * Engine::kUnit) {
      const int64_t at = unit * Engine::kUnit;
      std::memcpy(to, codes + segment * plan.length + at,
                  sizeof(Engine::Weight) * std::min<int64_t>(Engine::kUnit, plan.length - at));
    }
  }
}

static PackedWeights pack(const int8_t* weights, const ConvShape& s) {
  using Weight = Engine::Weight;
  const Plan plan = plan_for(s);
  const int64_t taps = s.taps(), channels = s.in_per_group(), depth = taps * channels;
  PackedWeights packed{AlignedBytes(s.groups * plan.group_lanes * plan.depth_bytes()),
                       AlignedBytes(s.groups * plan.group_lanes * sizeof(int32_t))};
  std::memset(packed.codes.as<uint8_t>(), 0, packed.codes.size());
  std::memset(packed.sums.as<uint8_t>(), 0, packed.sums.size());
  std::vector<Weight> codes(depth);
  for (int64_t o = 0; o < s.out_channels; ++o) {
    const int8_t* from = weights + o * depth;
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t c = 0; c < channels; ++c) codes[t * channels + c] = from[c * taps + t];
    }
    const int64_t group = o / s.out_per_group(), lane = o % s.out_per_group(), panel = lane / kPanel * kPanel;
    const int64_t lanes = std::min(kPanel, plan.group_lanes - panel);
    uint8_t* to = packed.codes.as<uint8_t>() + (group * plan.group_lanes + panel) * plan.depth_bytes();
    pack_channel(codes.data(), plan, lanes, reinterpret_cast<Weight*>(to) + (lane - panel) * Engine::kUnit);
    packed.sums.as<int32_t>()[group * plan.group_lanes + lane] =
        std::accumulate(codes.begin(), codes.end(), int32_t{0});
  }
  return packed;
}

// What a block of pixels reads: a table of pointers [segment][pixel] and the memory behind those that are not in x.
class Block {
 public:
  Block(const ConvShape& shape, const Plan& plan, const uint8_t* x, int32_t zero_point, int64_t pixels)
      : shape_(shape), plan_(plan), x_(x), zero_point_(zero_point), pointers_(plan.segments * pixels), stride_(pixels) {
    if (Engine::kCopied) {
      taps_.resize(shape.taps() * pixels);
      copy_ = AlignedBytes(pixels * shape.groups * plan.depth_bytes());
    } else if (plan.padded_rows) {
      row_bytes_ = span(std::min(pixels, shape.out[2])) * shape.in_channels + kSlack;
      copy_ = AlignedBytes((pixels / shape.out[2] + 2) * shape.kernel[0] * shape.kernel[1] * row_bytes_);
    }
    joined_bytes_ = plan.depth_bytes() + kSlack;
    if (plan.joined) joined_ = AlignedBytes(pixels * joined_bytes_);
    outside_.assign(shape.in_channels + 8, static_cast<uint8_t>(zero_point));
  }

  void fill(int64_t first, int64_t pixels) {
    if constexpr (Engine::kCopied) {
      gather_taps(shape_, x_, first, pixels, outside_.data(), taps_.data(), stride_);
      for (int64_t i = 0; i < pixels; ++i) copy_pixel(i);
    } else if (plan_.padded_rows) {
      fill_rows(first, pixels);
    } else {
      gather_taps(shape_, x_, first, pixels, outside_.data(), pointers_.data(), stride_);
    }
  }

  const uint8_t* const* pointers() const { return pointers_.data(); }
  int64_t stride() const { return stride_; }

 private:
  // A group's depth begins at group * units * 4 bytes of the copy, see offset() in run_block.
  void copy_pixel(int64_t i) {
    const int64_t channels = shape_.in_per_group();
    const int64_t depth = plan_.units * Engine::kUnit, offset = Engine::offset(zero_point_);
    auto* to = copy_.as<Engine::Code>() + i * depth * shape_.groups;
    pointers_[i] = reinterpret_cast<const uint8_t*>(to);
    for (int64_t g = 0; g < shape_.groups; ++g, to += depth) {
      for (int64_t t = 0; t < shape_.taps(); ++t) {
        copy_codes(taps_[t * stride_ + i] + g * channels, channels, offset, to + t * channels);
      }
      std::fill(to + plan_.length, to + depth, Engine::Code{0});
    }
  }

  void fill_rows(int64_t first, int64_t pixels) {
    const int64_t width = shape_.out[2], kernel_rows = shape_.kernel[0] * shape_.kernel[1];
    uint8_t* rows = copy_.as<uint8_t>();
    for (int64_t i = 0; i < pixels; rows += kernel_rows * row_bytes_) {
      const int64_t row = (first + i) / width, column = (first + i) % width;
      const int64_t count = std::min(pixels - i, width - column);
      copy_rows(row, column, count, rows);
      if (plan_.joined) join_taps(rows, count, i);
      for (int64_t c = 0; c < count && !plan_.joined; ++c) point_into_rows(rows, c, &pointers_[i + c]);
      i += count;
    }
  }

  // The input columns that so many neighbouring outputs read.
  int64_t span(int64_t outputs) const {
    return (outputs - 1) * shape_.stride[2] + (shape_.kernel[2] - 1) * shape_.dilation[2] + 1;
  }

  // What the outputs [column, column + count) of one row read, padded: a stretch of each row of the kernel.
  void copy_rows(int64_t row, int64_t column, int64_t count, uint8_t* to) {
    const ConvShape& s = shape_;
    const int64_t h0 = row % s.out[1] * s.stride[1] - s.padding[1];
    const int64_t d0 = row / s.out[1] % s.out[0] * s.stride[0] - s.padding[0];
    const int64_t image = row / s.out[1] / s.out[0];
    const int64_t w0 = column * s.stride[2] - s.padding[2], width = span(count);
    const int64_t left = std::clamp<int64_t>(-w0, 0, width), right = std::clamp(s.in[2] - w0, left, width);
    for (int64_t kd = 0; kd < s.kernel[0]; ++kd) {
      for (int64_t kh = 0; kh < s.kernel[1]; ++kh, to += row_bytes_) {
        const int64_t d = d0 + kd * s.dilation[0], h = h0 + kh * s.dilation[1];
        const bool inside = d >= 0 && d < s.in[0] && h >= 0 && h < s.in[1];
        const int64_t begin = inside ? left : width, end = inside ? right : width;
        const int64_t from = ((image * s.in[0] + d) * s.in[1] + h) * s.in[2] + w0 + begin;
        std::memset(to, zero_point_, begin * s.in_channels);
        std::memcpy(to + begin * s.in_channels, inside ? x_ + from * s.in_channels : to, (end - begin) * s.in_channels);
        std::memset(to + end * s.in_channels, zero_point_, (width - end) * s.in_channels + kSlack);
      }
    }
  }

  void point_into_rows(const uint8_t* rows, int64_t column, const uint8_t** pointer) {
    const ConvShape& s = shape_;
    for (int64_t row = 0; row < s.kernel[0] * s.kernel[1]; ++row, rows += row_bytes_) {
      const uint8_t* at = rows + column * s.stride[2] * s.in_channels;
      for (int64_t kw = 0; kw < s.kernel[2]; ++kw, pointer += stride_)
        *pointer = at + kw * s.dilation[2] * s.in_channels;
    }
  }

  // The taps of each pixel side by side, joined_bytes_ from pixel to pixel.
  void join_taps(const uint8_t* rows, int64_t pixels, int64_t i) {
    const ConvShape& s = shape_;
    const bool dense = s.dilation[2] == 1;  // the taps of a kernel row are neighbours already
    const int64_t runs = dense ? 1 : s.kernel[2], size = (dense ? s.kernel[2] : 1) * s.in_channels;
    const int64_t step = s.stride[2] * s.in_channels;
    uint8_t* to = joined_.as<uint8_t>() + i * joined_bytes_;
    for (int64_t p = 0; p < pixels; ++p) pointers_[i + p] = to + p * joined_bytes_;
    for (int64_t row = 0; row < s.kernel[0] * s.kernel[1]; ++row, rows += row_bytes_) {
      for (int64_t run = 0; run < runs; ++run, to += size) {
        const uint8_t* from = rows + run * s.dilation[2] * s.in_channels;
        for (int64_t at = 0; at < size; at += kVector) copy_vectors(from + at, step, pixels, to + at);
      }
    }
  }

  // One vector for each pixel. What it holds too much is overwritten by the next run; the last one's lands in the slack
  // between two pixels.
  void copy_vectors(const uint8_t* from, int64_t step, int64_t pixels, uint8_t* to) const {
    for (int64_t p = 0; p < pixels; ++p) std::memcpy(to + p * joined_bytes_, from + p * step, kVector);
  }

  static constexpr int64_t kVector = 16;
  static constexpr int64_t kSlack = 16;  // bytes behind a row and a pixel that may be read and written

  const ConvShape& shape_;
  const Plan& plan_;
  const uint8_t* x_;
  int32_t zero_point_;
  std::vector<const uint8_t*> pointers_, taps_;
  int64_t stride_;
  int64_t row_bytes_ = 0, joined_bytes_ = 0;
  AlignedBytes copy_, joined_;
  std::vector<uint8_t> outside_;
};

struct Job {
  const PackedWeights& weights;
  const ConvShape& shape;
  const Plan& plan;
  const int32_t* init;  // per lane: bias, and the zero point's share
  const ConvEpilogue& epilogue;
  const ConvOutput& y;
};

// One panel over the pixels of a block.
static void run_panel(const Job& job, const Block& block, int64_t first, int64_t pixels, int64_t group, int64_t panel) {
  const Plan& plan = job.plan;
  const int64_t at = group * plan.group_lanes + panel, lanes = std::min(kPanel, plan.group_lanes - panel);
  const int64_t outputs = std::min(lanes, job.shape.out_per_group() - panel);
  const int64_t channel = group * job.shape.out_per_group() + panel;
  const int64_t offset = group * (Engine::kCopied ? plan.units * 4 : job.shape.in_per_group());
  const auto vectors = static_cast<int>(lanes / Engine::kLanes);
  const uint8_t* weights = job.weights.codes.as<uint8_t>() + at * plan.depth_bytes();
  alignas(64) int32_t acc[Engine::kMaxRows * kPanel];
  for (int64_t i = 0; i < pixels;) {
    const auto rows = static_cast<int>(std::min<int64_t>(Engine::kRows[vectors], pixels - i));
    kTiles[vectors][rows](block.pointers() + i, block.stride(), offset, plan.segments, plan.units, weights,
                          job.init + at, acc);
    finish(acc, lanes, rows, outputs, job.epilogue, channel, job.y, (first + i) * job.shape.out_channels,
           job.shape.out_channels);
    i += rows;
  }
}

// Whole rows of outputs where rows are copied, so that none is copied twice.
static int64_t block_pixels(const ConvShape& shape, const Plan& plan) {
  const int64_t most = std::clamp<int64_t>(kBlockPointers / plan.segments, Engine::kMaxRows, kBlockPixels);
  const int64_t row = shape.out[2];
  if (!plan.padded_rows || row > 4 * most) return std::min(most, shape.batch * shape.pixels());
  return std::min(std::max<int64_t>(1, most / row) * row, shape.batch * shape.pixels());
}

static void run(const PackedWeights& weights, const ConvShape& shape, const uint8_t* x, const ConvEpilogue& epilogue,
                const ConvOutput& y, ParallelFor parallel) {
  const Plan plan = plan_for(shape);
  const int64_t lanes = shape.groups * plan.group_lanes;
  std::vector<int32_t> init(lanes, 0);
  const int32_t zero_point = epilogue.x_zero_point - Engine::offset(epilogue.x_zero_point);
  for (int64_t o = 0; o < shape.out_channels; ++o) {
    const int64_t lane = o / shape.out_per_group() * plan.group_lanes + o % shape.out_per_group();
    // Wraps around where the parts are large; the finished accumulator fits.
    init[lane] = static_cast<int32_t>(static_cast<uint32_t>(epilogue.bias[o]) -
                                      static_cast<uint32_t>(zero_point * weights.sums.as<int32_t>()[lane]));
  }
  const Job job{weights, shape, plan, init.data(), epilogue, y};
  const int64_t pixels = shape.batch * shape.pixels();
  const int64_t size = block_pixels(shape, plan);
  const int64_t blocks = (pixels + size - 1) / size, panels = (plan.group_lanes + kPanel - 1) / kPanel;
  // Threads share pixels; where the weights are the larger part, panels.
  const bool by_panel =
      static_cast<int64_t>(weights.codes.size()) > 2 * shape.batch * shape.in_pixels() * shape.in_channels;
  const int64_t parts = by_panel ? shape.groups * panels : 1;
  const int64_t work = std::max<int64_t>(1, size * lanes * plan.units * plan.segments / parts);
  parallel(parts * blocks, 1 + 400000 / work, [&](int64_t begin, int64_t end) {
    Block block(shape, plan, x, epilogue.x_zero_point, size);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item % blocks * size, count = std::min(size, pixels - first);
      block.fill(first, count);
      const int64_t part = item / blocks, last = by_panel ? part + 1 : shape.groups * panels;
      for (int64_t p = part; p < last; ++p) run_panel(job, block, first, count, p / panels, p % panels * kPanel);
    }
  });
}

static bool accepts(const ConvShape& /*shape*/) { return true; }
