// Where a convolution reads: the implicit form of im2col, one pointer per tap and pixel instead of a copy.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "octet/kernels/conv.h"

namespace octet::kernels {

// The outputs [begin, end) of one row whose input column, at this tap, is inside of x.
struct InsideColumns {
  int64_t begin;
  int64_t end;
};

inline InsideColumns inside_columns(const ConvShape& s, int64_t kw) {
  const int64_t shift = kw * s.dilation[2] - s.padding[2];  // input column = output column * stride + shift
  const int64_t stride = s.stride[2];
  const int64_t begin = shift < 0 ? (-shift + stride - 1) / stride : 0;
  const int64_t end = shift < s.in[2] ? (s.in[2] - 1 - shift) / stride + 1 : 0;
  return {std::min(begin, s.out[2]), std::min(end, s.out[2])};
}

// Neighbouring output positions of one axis of which the same taps lie inside of x.
struct Interval {
  int64_t begin, end;           // outputs
  int64_t first_tap, last_tap;  // [first_tap, last_tap)
  int64_t taps() const { return last_tap - first_tap; }
};

// An axis cut into its intervals: at most kMost, which every kernel of up to 2 * padding + 1 = kMost taps keeps.
class Intervals {
 public:
  static constexpr int kMost = 7;

  Intervals(const ConvShape& s, int axis) {
    const int64_t kernel = s.kernel[axis], dilation = s.dilation[axis], stride = s.stride[axis];
    // The last output whose last tap is inside.
    const int64_t inner = (s.in[axis] - 1 - (kernel - 1) * dilation + s.padding[axis]) / stride;
    for (int64_t o = 0; o < s.out[axis] && complete_; ++o) {
      const int64_t at = o * stride - s.padding[axis], room = s.in[axis] - at;  // tap t reads at + t * dilation
      const int64_t first = at < 0 ? std::min(kernel, (-at + dilation - 1) / dilation) : 0;
      const int64_t last = room > 0 ? std::clamp((room + dilation - 1) / dilation, first, kernel) : first;
      const int64_t begin = o;
      if (last - first == kernel) o = std::min(inner, s.out[axis] - 1);
      append({begin, o + 1, first, last});
    }
  }

  bool complete() const { return complete_; }  // false: there are more than kMost
  int size() const { return size_; }
  const Interval& operator[](int i) const { return all_[i]; }
  int of(int64_t output) const {
    int i = 0;
    while (output >= all_[i].end) ++i;
    return i;
  }

 private:
  void append(const Interval& next) {
    if (size_ > 0 && all_[size_ - 1].first_tap == next.first_tap && all_[size_ - 1].last_tap == next.last_tap) {
      all_[size_ - 1].end = next.end;
    } else if (size_ < kMost) {
      all_[size_++] = next;
    } else {
      complete_ = false;
    }
  }

  std::array<Interval, kMost> all_{};
  int size_ = 0;
  bool complete_ = true;
};

// pointers[tap * stride + i]: the channels of the input position that this tap of output pixel first + i reads (pixels
// are counted over the whole batch), or `outside` where that is padding.
inline void gather_taps(const ConvShape& s, const uint8_t* x, int64_t first, int64_t pixels, const uint8_t* outside,
                        const uint8_t** pointers, int64_t stride) {
  const int64_t step = s.stride[2] * s.in_channels;
  for (int64_t i = 0; i < pixels;) {  // one row of outputs at a time
    const int64_t row = (first + i) / s.out[2], begin = (first + i) % s.out[2];
    const int64_t end = std::min(s.out[2], begin + pixels - i);
    const int64_t h0 = row % s.out[1] * s.stride[1] - s.padding[1];
    const int64_t d0 = row / s.out[1] % s.out[0] * s.stride[0] - s.padding[0];
    const uint8_t* image = x + row / s.out[1] / s.out[0] * s.in_pixels() * s.in_channels;
    const uint8_t** to = pointers + i - begin;  // indexed by output column
    for (int64_t kd = 0; kd < s.kernel[0]; ++kd) {
      for (int64_t kh = 0; kh < s.kernel[1]; ++kh) {
        const int64_t d = d0 + kd * s.dilation[0], h = h0 + kh * s.dilation[1];
        const bool row_inside = d >= 0 && d < s.in[0] && h >= 0 && h < s.in[1];
        for (int64_t kw = 0; kw < s.kernel[2]; ++kw, to += stride) {
          const InsideColumns columns = row_inside ? inside_columns(s, kw) : InsideColumns{end, end};
          const int64_t left = std::clamp(columns.begin, begin, end), right = std::clamp(columns.end, left, end);
          const int64_t at = ((d * s.in[1] + h) * s.in[2] - s.padding[2] + kw * s.dilation[2]) * s.in_channels;
          std::fill(to + begin, to + left, outside);
          for (int64_t column = left; column < right; ++column) to[column] = image + (at + column * step);
          std::fill(to + right, to + end, outside);
        }
      }
    }
    i += end - begin;
  }
}

}  // namespace octet::kernels
