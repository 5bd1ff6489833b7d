#include "octet/kernels/training_conv.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace octet::kernels {
namespace {

constexpr int64_t kChunkBytes = 512 * 1024;  // of sums: what stays in the second-level cache until it is read again

// The statistics of parts of a batch, one after the other.
class PartialStatistics {
 public:
  PartialStatistics(int64_t parts, int64_t channels) : channels_(channels), values_(4 * parts * channels) {}

  ChannelStatistics part(int64_t p) {
    float* at = values_.data() + 4 * p * channels_;
    return {at, at + channels_, at + 2 * channels_, at + 3 * channels_};
  }

  // Parts in order, sizes[p] values of each channel in part p; NaN stays.
  void merge(const std::vector<double>& sizes, const ChannelStatistics& out) {
    double total = 0;
    for (const double n : sizes) total += n;
    for (int64_t c = 0; c < channels_; ++c) {
      double mean = 0, squares = 0;
      float low = part(0).min[c], high = part(0).max[c];
      for (size_t p = 0; p < sizes.size(); ++p) mean += sizes[p] * part(p).mean[c] / total;
      for (size_t p = 0; p < sizes.size(); ++p) {
        const ChannelStatistics s = part(p);
        const double distance = s.mean[c] - mean;
        squares += sizes[p] * (s.variance[c] + distance * distance);
        low = s.min[c] < low || std::isnan(s.min[c]) ? s.min[c] : low;
        high = s.max[c] > high || std::isnan(s.max[c]) ? s.max[c] : high;
      }
      out.mean[c] = static_cast<float>(mean);
      out.variance[c] = static_cast<float>(squares / total);
      out.min[c] = low;
      out.max[c] = high;
    }
  }

 private:
  int64_t channels_;
  std::vector<float> values_;
};

// A batch in parts whose sums fit the cache. Each but the last holds a multiple of sixteen sums, so that no two parts
// share a word of pass bits.
struct Parts {
  explicit Parts(const ConvShape& s) : shape(s), in_size(s.in_pixels() * s.in_channels) {
    out_size = s.pixels() * s.out_channels;
    const int64_t unit = 16 / std::gcd<int64_t>(16, out_size);
    const int64_t fitting = kChunkBytes / 4 / std::max<int64_t>(1, out_size);
    images = std::max<int64_t>(1, fitting / unit) * unit;
    count = (shape.batch + images - 1) / images;
  }

  ConvShape part(int64_t p) const {
    ConvShape part = shape;
    part.batch = std::min(images, shape.batch - p * images);
    return part;
  }
  int64_t in(int64_t p) const { return p * images * in_size; }    // of the first input
  int64_t out(int64_t p) const { return p * images * out_size; }  // of the first sum

  const ConvShape& shape;
  int64_t in_size, out_size, images, count;
};

ChannelLayout layout_of(const ConvShape& shape) { return {shape.batch * shape.pixels(), shape.out_channels, 1}; }

}  // namespace

void conv_with_statistics(const PackedConv& weights, const ConvShape& shape, const uint8_t* x, int32_t x_zero_point,
                          const float* scale, float* y, const ChannelStatistics& out, ParallelFor parallel) {
  const Parts parts(shape);
  if (parts.count <= 1) {  // the convolution knows better how to share little work
    run_conv_sums(weights, shape, x, x_zero_point, nullptr, scale, y, parallel);
    return channel_statistics(y, layout_of(shape), out, parallel);
  }
  PartialStatistics partial(parts.count, shape.out_channels);
  std::vector<double> sizes(parts.count);
  parallel(parts.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const ConvShape part = parts.part(p);
      float* sums = y + parts.out(p);
      run_conv_sums(weights, part, x + parts.in(p), x_zero_point, nullptr, scale, sums, serial);
      channel_statistics(sums, layout_of(part), partial.part(p), serial);
      sizes[p] = static_cast<double>(part.batch * part.pixels());
    }
  });
  partial.merge(sizes, out);
}

Range conv_with_tail(const PackedConv& weights, const ConvShape& shape, const uint8_t* x, const ConvEpilogue& epilogue,
                     const Tail& tail, const TailOutput& out, ParallelFor parallel) {
  const Parts parts(shape);
  std::vector<Range> ranges(parts.count);
  const auto run = [&](int64_t p, ParallelFor loop) {
    const ConvShape part = parts.part(p);
    const int64_t at = parts.out(p);
    run_conv_sums(weights, part, x + parts.in(p), epilogue.x_zero_point, epilogue.bias, epilogue.multiplier, out.y + at,
                  loop);
    ranges[p] = integer_tail(out.y + at, layout_of(part), tail, {out.y + at, out.codes + at, out.pass + at / 8}, loop);
  };
  if (parts.count == 1) {
    run(0, parallel);
  } else {
    parallel(parts.count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) run(p, serial);
    });
  }
  Range range;
  for (const Range& r : ranges) {
    if (std::isnan(r.min)) return r;
    range.min = std::min(range.min, r.min);
    range.max = std::max(range.max, r.max);
  }
  return range;
}

}  // namespace octet::kernels
