// What the tiles of a convolution read. Part of igemm-inl.h.
//
// In place, where units are whole: pixels that have the same taps inside of x are of one kind, and a tile holds pixels
// of one kind. Taps in the padding cost nothing, and the taps of a kernel row that are neighbours in memory are one
// segment. Elsewhere from copies, in which no tap is outside.

constexpr int64_t kBlockPixels = 96;        // at least; where they are copied, at most
constexpr int64_t kPointBytes = 16 << 10;   // of a block's inputs and outputs, that panels find in the first-level
constexpr int64_t kBlockBytes = 256 << 10;  // cache where there is one tap, in the second-level cache elsewhere

struct PixelKind {
  Depth depth;
  const int32_t* init;  // per lane: bias, and the zero point's share
  int64_t origin;       // from where a pixel's window begins to its first tap
};

class Reads {
 public:
  Reads(const ConvShape& shape, const Plan& plan, const PackedWeights& weights, const ConvEpilogue& epilogue)
      : shape_(shape), plan_(plan), axes_{Intervals(shape, 0), Intervals(shape, 1), Intervals(shape, 2)} {
    in_place_ = !plan.merged && shape.in_per_group() % Engine::kUnit == 0 && axes_[0].complete() &&
                axes_[1].complete() && axes_[2].complete();
    const int64_t kinds = in_place_ ? axes_[0].size() * axes_[1].size() * axes_[2].size() : 1;
    const int64_t lanes = shape.groups * plan.group_lanes;
    segments_.reserve(kinds * plan.taps);  // kinds point into it
    init_.resize(kinds * lanes);
    kinds_.reserve(kinds);
    if (in_place_) {
      add_kinds_in_place(weights, epilogue);
    } else {
      add_kind_of_copies(weights, epilogue);
    }
  }

  bool in_place() const { return in_place_; }
  const PixelKind& kind(int64_t i) const { return kinds_[i]; }
  int64_t kinds() const { return static_cast<int64_t>(kinds_.size()); }
  const Intervals& axis(int i) const { return axes_[i]; }

  int64_t block_pixels() const {
    if (in_place_) {
      const int64_t bytes = plan_.taps == 1 ? kPointBytes : kBlockBytes;
      return std::max(kBlockPixels, bytes / (shape_.in_channels + shape_.out_channels));
    }
    const int64_t row = shape_.out[2];  // whole rows are copied, so that none is copied twice
    return Engine::kCopied || row > 4 * kBlockPixels ? kBlockPixels : std::max<int64_t>(1, kBlockPixels / row) * row;
  }

  // Of the copied rows that a row of outputs reads, see Block.
  int64_t row_bytes() const { return span(std::min(block_pixels(), shape_.out[2])) * shape_.in_channels + kSlack; }
  // The input columns that so many neighbouring outputs read.
  int64_t span(int64_t outputs) const {
    return (outputs - 1) * shape_.stride[2] + (shape_.kernel[2] - 1) * shape_.dilation[2] + 1;
  }

  static constexpr int64_t kSlack = 32;  // bytes behind a copied row or pixel that may be read and written

 private:
  void add_kinds_in_place(const PackedWeights& weights, const ConvEpilogue& epilogue) {
    const ConvShape& s = shape_;
    const int64_t column = s.in_channels * s.dilation[2], row = s.in[2] * s.in_channels * s.dilation[1];
    const int64_t slice = s.in[1] * s.in[2] * s.in_channels * s.dilation[0];
    for (int d = 0; d < axes_[0].size(); ++d) {
      for (int h = 0; h < axes_[1].size(); ++h) {
        for (int w = 0; w < axes_[2].size(); ++w) {
          const Interval &ds = axes_[0][d], &hs = axes_[1][h], &ws = axes_[2][w];
          const int64_t origin = ds.first_tap * slice + hs.first_tap * row + ws.first_tap * column;
          add_kind(ds, hs, ws, {slice, row, column}, origin, weights, epilogue);
        }
      }
    }
  }

  void add_kind_of_copies(const PackedWeights& weights, const ConvEpilogue& epilogue) {
    const Dims& k = shape_.kernel;
    const Interval one{0, 1, 0, 1}, ds{0, 1, 0, k[0]}, hs{0, 1, 0, k[1]}, ws{0, 1, 0, k[2]};
    if (plan_.merged) return add_kind(one, one, one, {0, 0, 0}, 0, weights, epilogue);
    const int64_t row = row_bytes();
    add_kind(ds, hs, ws, {row * k[1], row, shape_.in_channels * shape_.dilation[2]}, 0, weights, epilogue);
  }

  // steps: bytes from tap to tap, of each axis.
  void add_kind(const Interval& d, const Interval& h, const Interval& w, const Dims& steps, int64_t origin,
                const PackedWeights& weights, const ConvEpilogue& epilogue) {
    const Dims kernel = plan_.merged ? Dims{1, 1, 1} : shape_.kernel;
    const bool whole_rows = steps[2] == plan_.units * 4;  // the taps of a row are neighbours
    const int64_t along = whole_rows ? 1 : w.taps(), begin = static_cast<int64_t>(segments_.size());
    const int64_t lanes = shape_.groups * plan_.group_lanes;
    int32_t* init = init_.data() + kinds() * lanes;
    start(epilogue, init);
    for (int64_t kd = d.first_tap; kd < d.last_tap; ++kd) {
      for (int64_t kh = h.first_tap; kh < h.last_tap; ++kh) {
        const int64_t tap = (kd * kernel[1] + kh) * kernel[2] + w.first_tap;
        const int64_t offset = (kd - d.first_tap) * steps[0] + (kh - h.first_tap) * steps[1];
        for (int64_t i = 0; i < along && w.taps() > 0; ++i) {
          segments_.push_back({offset + i * steps[2], (tap + i) * plan_.units});
        }
        for (int64_t i = 0; i < w.taps(); ++i) {
          subtract(weights.sums.as<int32_t>() + (tap + i) * lanes, lanes, epilogue.x_zero_point, init);
        }
      }
    }
    const auto count = static_cast<int64_t>(segments_.size()) - begin;
    kinds_.push_back({{segments_.data() + begin, count, (whole_rows ? w.taps() : 1) * plan_.units}, init, origin});
  }

  void start(const ConvEpilogue& epilogue, int32_t* init) const {
    const int64_t outputs = shape_.out_per_group();
    for (int64_t group = 0; group < shape_.groups; ++group) {
      std::copy_n(epilogue.bias + group * outputs, outputs, init + group * plan_.group_lanes);
    }
  }

  // Wraps around where the parts are large; the finished accumulator fits.
  static void subtract(const int32_t* __restrict sums, int64_t lanes, int32_t x_zero_point, int32_t* __restrict init) {
    const auto zero_point = static_cast<uint32_t>(x_zero_point - Engine::offset(x_zero_point));
    for (int64_t i = 0; i < lanes; ++i) {
      init[i] = static_cast<int32_t>(static_cast<uint32_t>(init[i]) - zero_point * static_cast<uint32_t>(sums[i]));
    }
  }

  const ConvShape& shape_;
  const Plan& plan_;
  std::array<Intervals, 3> axes_;
  bool in_place_;
  std::vector<Segment> segments_;
  std::vector<int32_t> init_;
  std::vector<PixelKind> kinds_;
};

static void copy_codes(const uint8_t* __restrict x, int64_t n, int32_t offset, Engine::Code* __restrict to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<Engine::Code>(x[i] - offset);
}

// The pixels that are worked on together: where each reads, where its outputs go.
class Block {
 public:
  struct Run {  // pixels [begin, end) of the block
    int64_t kind, begin, end;
  };

  Block(const ConvShape& shape, const Plan& plan, const Reads& reads, const uint8_t* x, int32_t zero_point,
        int64_t pixels)
      : shape_(shape), plan_(plan), reads_(reads), x_(x), zero_point_(zero_point), pointers_(pixels), places_(pixels) {
    runs_.reserve(reads.kinds());
    if (reads.in_place()) return;
    if (Engine::kCopied) {
      taps_.resize(shape.taps() * pixels);
      copy_ = AlignedBytes(pixels * shape.groups * plan.depth_bytes());
      outside_.assign(shape.in_channels, static_cast<uint8_t>(zero_point));
      return;
    }
    row_bytes_ = reads.row_bytes();
    copy_ = AlignedBytes((pixels / shape.out[2] + 2) * shape.kernel[0] * shape.kernel[1] * row_bytes_);
    merged_bytes_ = plan.depth_bytes() + Reads::kSlack;
    if (plan.merged) merged_ = AlignedBytes(pixels * merged_bytes_);
  }

  void fill(int64_t first, int64_t pixels) {
    if (!runs_.empty() && first == first_ && pixels == pixels_) return;
    first_ = first;
    pixels_ = pixels;
    runs_.clear();
    if (reads_.in_place()) return point_into_x();
    runs_.push_back({0, 0, pixels});
    for (int64_t i = 0; i < pixels; ++i) places_[i] = (first + i) * shape_.out_channels;
    if constexpr (Engine::kCopied) {
      gather_taps(shape_, x_, first, pixels, outside_.data(), taps_.data(), pixels);
      for (int64_t i = 0; i < pixels; ++i) copy_pixel(i);
    } else {
      fill_rows(first, pixels);
    }
  }

  std::span<const Run> runs() const { return runs_; }
  const uint8_t* const* pointers() const { return pointers_.data(); }
  const int64_t* places() const { return places_.data(); }  // of the outputs, in y

 private:
  // Calls body(kind, pixel, count, where in x the first window begins) for stretches of pixels of one kind.
  template <class F>
  void for_each_stretch(F body) const {
    const ConvShape& s = shape_;
    const Intervals& columns = reads_.axis(2);
    const int64_t row = first_ / s.out[2], plane = row / s.out[1];
    int64_t column = first_ - row * s.out[2], h = row - plane * s.out[1];
    int64_t image = plane / s.out[0], d = plane - image * s.out[0];
    for (int64_t at = first_, end = first_ + pixels_; at < end; column = 0) {
      const int64_t x_row =
          (image * s.in[0] + d * s.stride[0] - s.padding[0]) * s.in[1] + h * s.stride[1] - s.padding[1];
      const int64_t kind = (reads_.axis(0).of(d) * reads_.axis(1).size() + reads_.axis(1).of(h)) * columns.size();
      const int64_t last = std::min(s.out[2], column + end - at);
      for (int w = columns.of(column); column < last; ++w) {
        const int64_t count = std::min(columns[w].end, last) - column;
        body(kind + w, at, count, (x_row * s.in[2] + column * s.stride[2] - s.padding[2]) * s.in_channels);
        at += count;
        column += count;
      }
      if (++h < s.out[1]) continue;
      h = 0;
      if (++d < s.out[0]) continue;
      d = 0;
      ++image;
    }
  }

  void point_into_x() {
    std::array<int64_t, Intervals::kMost * Intervals::kMost * Intervals::kMost> next;
    std::fill_n(next.begin(), reads_.kinds(), 0);
    for_each_stretch([&](int64_t kind, int64_t, int64_t count, int64_t) { next[kind] += count; });
    int64_t begin = 0;
    for (int64_t kind = 0; kind < reads_.kinds(); ++kind) {
      const int64_t end = begin + next[kind];
      next[kind] = begin;
      if (end > begin) runs_.push_back({kind, begin, end});
      begin = end;
    }
    const int64_t step = shape_.stride[2] * shape_.in_channels;
    for_each_stretch([&](int64_t k, int64_t pixel, int64_t count, int64_t window) {
      const PixelKind& kind = reads_.kind(k);
      const uint8_t* at = kind.depth.count > 0 ? x_ + (window + kind.origin) : x_;
      count_up(pointers_.data() + next[k], count, at, step);
      count_up(places_.data() + next[k], count, pixel * shape_.out_channels, shape_.out_channels);
      next[k] += count;
    });
  }

  template <class T>
  static void count_up(T* __restrict to, int64_t count, T first, int64_t step) {
    for (int64_t i = 0; i < count; ++i) to[i] = first + i * step;
  }

  // A group's depth begins at group * units * 4 bytes of the copy, see offset in run_tiles.
  void copy_pixel(int64_t i) {
    const int64_t channels = shape_.in_per_group();
    const int64_t depth = plan_.units * Engine::kUnit, offset = Engine::offset(zero_point_);
    auto* to = copy_.as<Engine::Code>() + i * depth * shape_.groups;
    pointers_[i] = reinterpret_cast<const uint8_t*>(to);
    for (int64_t g = 0; g < shape_.groups; ++g, to += depth) {
      for (int64_t t = 0; t < shape_.taps(); ++t) {
        copy_codes(taps_[t * pixels_ + i] + g * channels, channels, offset, to + t * channels);
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
      const int64_t step = shape_.stride[2] * shape_.in_channels;
      if (plan_.merged) merge_taps(rows, count, i);
      for (int64_t c = 0; c < count && !plan_.merged; ++c) pointers_[i + c] = rows + c * step;
      i += count;
    }
  }

  // What the outputs [column, column + count) of one row read, padded: a stretch of each row of the kernel.
  void copy_rows(int64_t row, int64_t column, int64_t count, uint8_t* to) {
    const ConvShape& s = shape_;
    const int64_t h0 = row % s.out[1] * s.stride[1] - s.padding[1];
    const int64_t d0 = row / s.out[1] % s.out[0] * s.stride[0] - s.padding[0];
    const int64_t image = row / s.out[1] / s.out[0];
    const int64_t w0 = column * s.stride[2] - s.padding[2], width = reads_.span(count);
    const int64_t left = std::clamp<int64_t>(-w0, 0, width), right = std::clamp(s.in[2] - w0, left, width);
    for (int64_t kd = 0; kd < s.kernel[0]; ++kd) {
      for (int64_t kh = 0; kh < s.kernel[1]; ++kh, to += row_bytes_) {
        const int64_t d = d0 + kd * s.dilation[0], h = h0 + kh * s.dilation[1];
        const bool inside = d >= 0 && d < s.in[0] && h >= 0 && h < s.in[1];
        const int64_t begin = inside ? left : width, end = inside ? right : width;
        const int64_t from = ((image * s.in[0] + d) * s.in[1] + h) * s.in[2] + w0 + begin;
        std::memset(to, zero_point_, begin * s.in_channels);
        std::memcpy(to + begin * s.in_channels, inside ? x_ + from * s.in_channels : to, (end - begin) * s.in_channels);
        std::memset(to + end * s.in_channels, zero_point_, (width - end) * s.in_channels + Reads::kSlack);
      }
    }
  }

  // The taps of each pixel side by side, merged_bytes_ from pixel to pixel.
  void merge_taps(const uint8_t* rows, int64_t pixels, int64_t i) {
    const ConvShape& s = shape_;
    const bool dense = s.dilation[2] == 1;  // the taps of a kernel row are neighbours already
    const int64_t runs = dense ? 1 : s.kernel[2], size = (dense ? s.kernel[2] : 1) * s.in_channels;
    uint8_t* to = merged_.as<uint8_t>() + i * merged_bytes_;
    for (int64_t p = 0; p < pixels; ++p) pointers_[i + p] = to + p * merged_bytes_;
    for (int64_t row = 0; row < s.kernel[0] * s.kernel[1]; ++row, rows += row_bytes_) {
      for (int64_t run = 0; run < runs; ++run, to += size) {
        const uint8_t* from = rows + run * s.dilation[2] * s.in_channels;
        for (int64_t at = 0; at < size;) {
          if (size - at > 16) {
            copy_vectors<32>(from + at, pixels, to + at);
            at += 32;
          } else {
            copy_vectors<16>(from + at, pixels, to + at);
            at += 16;
          }
        }
      }
    }
  }

  // One vector for each pixel. What it holds too much is overwritten by the next run; the last one's lands in the slack
  // between two pixels.
  template <int kBytes>
  void copy_vectors(const uint8_t* from, int64_t pixels, uint8_t* to) const {
    const int64_t step = shape_.stride[2] * shape_.in_channels;
    for (int64_t p = 0; p < pixels; ++p) std::memcpy(to + p * merged_bytes_, from + p * step, kBytes);
  }

  const ConvShape& shape_;
  const Plan& plan_;
  const Reads& reads_;
  const uint8_t* x_;
  int32_t zero_point_;
  int64_t first_ = 0, pixels_ = 0;
  std::vector<const uint8_t*> pointers_, taps_;
  std::vector<int64_t> places_;
  std::vector<Run> runs_;
  int64_t row_bytes_ = 0, merged_bytes_ = 0;
  AlignedBytes copy_, merged_;
  std::vector<uint8_t> outside_;
};
