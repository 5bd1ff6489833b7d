// The pixels of a convolution that are worked on together, behind igemm_reads-inl.h. Part of igemm-inl.h.

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
