#include "octet/kernels/training_conv.h"

#include <algorithm>
#include <cmath>
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

}  // namespace

void conv_with_statistics(const PackedConv& weights, const ConvShape& shape, const uint8_t* x, int32_t x_zero_point,
                          const float* scale, float* y, const ChannelStatistics& out, ParallelFor parallel) {
  const int64_t in_size = shape.in_pixels() * shape.in_channels, channels = shape.out_channels;
  const int64_t out_size = shape.pixels() * channels;
  const int64_t images = std::max<int64_t>(1, kChunkBytes / 4 / std::max<int64_t>(1, out_size));
  const int64_t chunks = (shape.batch + images - 1) / images;
  if (chunks <= 1) {  // the convolution knows better how to share little work
    run_conv_sums(weights, shape, x, x_zero_point, scale, y, parallel);
    return channel_statistics(y, {shape.batch * shape.pixels(), channels, 1}, out, parallel);
  }
  PartialStatistics partial(chunks, channels);
  std::vector<double> sizes(chunks);
  parallel(chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      ConvShape part = shape;
      part.batch = std::min(images, shape.batch - c * images);
      float* sums = y + c * images * out_size;
      run_conv_sums(weights, part, x + c * images * in_size, x_zero_point, scale, sums, serial);
      channel_statistics(sums, {part.batch * part.pixels(), channels, 1}, partial.part(c), serial);
      sizes[c] = static_cast<double>(part.batch * part.pixels());
    }
  });
  partial.merge(sizes, out);
}

}  // namespace octet::kernels
