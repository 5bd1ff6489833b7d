// From where the tiles of a convolution read. Part of igemm-inl.h.
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
