// Histograms of what a tensor holds, and the ranges chosen from them.
//
// Bins are aligned at zero and as wide as a power of two, the smallest that holds the data. Coarsening merges whole
// bins in pairs, so nothing is ever split or estimated: the histogram of all data is the same bit for bit however they
// come in batches, in which order, and on how many processes. Constant memory; time linear in the data.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "octet/core/grid.h"

namespace octet {

// Bin i counts the values in [(i - 4096) * w, (i - 4095) * w), w = 2^exponent. Of data on one side of zero at least
// 2048 bins tell values apart, eight for each code of eight bits.
inline constexpr int32_t kHistogramBins = 8192;
inline constexpr int32_t kHistogramZero = kHistogramBins / 2;
inline constexpr int32_t kSmallestExponent = -51;  // of an empty histogram; all bins span less than kSmallestScale

using HistogramCounts = std::span<int64_t, kHistogramBins>;
using ConstHistogramCounts = std::span<const int64_t, kHistogramBins>;

// The exponent of the narrowest bins that hold values up to `largest` in magnitude (finite).
inline int32_t histogram_exponent(float largest) {
  if (!(largest > 0)) return kSmallestExponent;
  int exponent = 0;
  std::frexp(largest, &exponent);  // largest < 2^exponent
  constexpr int kHalfBits = 12;
  static_assert(1 << kHalfBits == kHistogramZero);
  return std::max(exponent - kHalfBits, kSmallestExponent);
}

// inverse_width = 2^-exponent: the product is exact, so every instruction set counts alike.
inline int32_t histogram_bin(float x, float inverse_width) {
  const float scaled = x * inverse_width;
  const auto toward_zero = static_cast<int32_t>(scaled);
  return toward_zero - (scaled < static_cast<float>(toward_zero)) + kHistogramZero;
}

// Bins 2^steps times as wide.
inline void coarsen(HistogramCounts counts, int32_t steps) {
  if (steps <= 0) return;
  steps = std::min(steps, 13);  // then everything lies in the two bins at zero
  std::array<int64_t, kHistogramBins> wide{};
  for (int32_t i = 0; i < kHistogramBins; ++i) wide[((i - kHistogramZero) >> steps) + kHistogramZero] += counts[i];
  std::copy(wide.begin(), wide.end(), counts.begin());
}

// Adds `other` to `counts`, both then with the wider bins; returns their exponent.
inline int32_t merge_histogram(HistogramCounts counts, int32_t exponent, ConstHistogramCounts other,
                               int32_t other_exponent) {
  const int32_t joint = std::max(exponent, other_exponent);
  std::array<int64_t, kHistogramBins> added;
  std::copy(other.begin(), other.end(), added.begin());
  coarsen(counts, joint - exponent);
  coarsen(added, joint - other_exponent);
  for (int32_t i = 0; i < kHistogramBins; ++i) counts[i] += added[i];
  return joint;
}

enum class HistogramMethod {
  kPercentile,  // leaves out the outermost values
  kMse,         // least squared error between a value and its fake quantization
  kEntropy      // least information lost, in the sense of Kullback and Leibler
};

// A histogram with what the searches need.
class Histogram {
 public:
  Histogram(ConstHistogramCounts counts, int32_t exponent) : counts_(counts), width_(std::ldexp(1.0, exponent)) {
    while (begin_ < kHistogramBins && counts[begin_] == 0) ++begin_;
    while (end_ > begin_ && counts[end_ - 1] == 0) --end_;
    for (int32_t i = begin_; i < end_; ++i) total_ += counts[i];
  }

  bool empty() const { return total_ == 0; }
  int64_t total() const { return total_; }
  int64_t count(int32_t bin) const { return counts_[bin]; }
  int32_t begin() const { return begin_; }  // the occupied bins
  int32_t end() const { return end_; }
  double width() const { return width_; }
  Range range(int32_t begin, int32_t end) const {
    return {static_cast<float>((begin - kHistogramZero) * width_), static_cast<float>((end - kHistogramZero) * width_)};
  }

 private:
  ConstHistogramCounts counts_;
  double width_;
  int32_t begin_ = 0, end_ = kHistogramBins;
  int64_t total_ = 0;
};

// The narrowest range of whole bins that leaves out at most (100 - percentile) % of the values: half of that at either
// end, or for symmetric grids the largest magnitudes. As the `percentile` calibration of McKinstry et al., "Discovering
// low-precision networks close to full-precision networks" (2018), section 3, and of Wu et al., "Integer quantization
// for deep learning inference" (2020), section 5.2.
inline Range percentile_range(const Histogram& histogram, double percentile, bool symmetric) {
  const double spare = static_cast<double>(histogram.total()) * (100.0 - percentile) / 100.0;
  int32_t begin = histogram.begin(), end = histogram.end();
  int64_t left_out = 0;
  if (symmetric) {
    int32_t radius = std::max(end - kHistogramZero, kHistogramZero - begin);
    for (; radius > 1; --radius) {
      left_out += histogram.count(kHistogramZero + radius - 1) + histogram.count(kHistogramZero - radius);
      if (static_cast<double>(left_out) > spare) break;
    }
    return histogram.range(kHistogramZero - radius, kHistogramZero + radius);
  }
  for (; begin < end - 1; ++begin) {
    left_out += histogram.count(begin);
    if (static_cast<double>(left_out) > spare / 2) break;
  }
  for (left_out = 0; end > begin + 1; --end) {
    left_out += histogram.count(end - 1);
    if (static_cast<double>(left_out) > spare / 2) break;
  }
  return histogram.range(begin, end);
}

namespace detail {

// Sums over bins from the left, in units of a bin and of its middle: squared errors of many grids cost a code each
// instead of a bin each.
class SquaredError {
 public:
  SquaredError(const Histogram& histogram, const GridSpec& spec) : histogram_(histogram), spec_(spec) {
    for (int32_t i = histogram.begin(); i < histogram.end(); ++i) {
      const double n = static_cast<double>(histogram.count(i)), x = i - kHistogramZero + 0.5;
      sums_.push_back({sums_.back().n + n, sums_.back().x + n * x, sums_.back().xx + n * x * x});
    }
  }

  double operator()(Range range) const {
    const Grid grid = grid_from_range(range, spec_);
    const double step = grid.scale / histogram_.width();
    double error = 0.0;
    Sums before;
    for (int32_t q = grid.qmin; q <= grid.qmax; ++q) {
      const double value = step * (q - grid.zero_point);
      const Sums& upto = q == grid.qmax ? sums_.back() : sums_[below(value + step / 2)];
      error += (upto.xx - before.xx) - 2 * value * (upto.x - before.x) + value * value * (upto.n - before.n);
      before = upto;
    }
    return error;
  }

 private:
  struct Sums {
    double n = 0, x = 0, xx = 0;
  };

  // How many occupied bins have their middle below `limit`.
  size_t below(double limit) const {
    const double bin = std::ceil(limit - 0.5) + kHistogramZero - histogram_.begin();
    return static_cast<size_t>(std::clamp(bin, 0.0, static_cast<double>(sums_.size() - 1)));
  }

  const Histogram& histogram_;
  GridSpec spec_;
  std::vector<Sums> sums_{Sums{}};
};

}  // namespace detail

// The range whose grid has the least squared error over the histogram, the ends in hundredths of what was seen, one end
// and then the other, twice. Sung, Shin, Hwang, "Resiliency of deep neural networks under quantization" (2015), section
// 3, and Nagel et al., "A white paper on neural network quantization" (2021), section 2.3.1 (there by grid search too).
inline Range mse_range(const Histogram& histogram, const GridSpec& spec) {
  constexpr int kParts = 100;
  const detail::SquaredError error(histogram, spec);
  Range best = histogram.range(histogram.begin(), histogram.end());
  if (spec.symmetric) best = {-std::max(-best.min, best.max), std::max(-best.min, best.max)};
  const Range whole{std::min(best.min, 0.0f), std::max(best.max, 0.0f)};
  best = whole;
  double least = error(best);
  const auto search = [&](bool low, bool high) {
    for (int part = kParts - 1; part > 0; --part) {
      const float fraction = static_cast<float>(part) / kParts;
      const Range candidate{low ? whole.min * fraction : best.min, high ? whole.max * fraction : best.max};
      const double found = error(candidate);
      if (found < least) {
        least = found;
        best = candidate;
      }
    }
  };
  if (spec.symmetric) {
    search(true, true);
    return best;
  }
  for (int round = 0; round < 2; ++round) {
    if (whole.max > 0) search(false, true);
    if (whole.min < 0) search(true, false);
  }
  return best;
}

namespace detail {

// The divergence of Kullback and Leibler between the bins [begin, end), all outside counted into the outermost, and the
// same bins at the resolution of `levels` codes, every occupied bin of a level with the level's mean. Infinite where a
// level is empty and holds only what lies outside.
inline double divergence(const Histogram& histogram, int32_t begin, int32_t end, int32_t levels) {
  int64_t inside = 0, outside_low = 0, outside_high = 0;
  for (int32_t i = histogram.begin(); i < histogram.end(); ++i) {
    (i < begin ? outside_low : i < end ? inside : outside_high) += histogram.count(i);
  }
  const double total = static_cast<double>(histogram.total());
  double sum = 0.0;
  for (int32_t level = 0; level < levels; ++level) {
    const int64_t span = end - begin;
    const auto first = static_cast<int32_t>(begin + span * level / levels);
    const auto last = static_cast<int32_t>(begin + span * (level + 1) / levels);
    const auto reference = [&](int32_t i) {
      return histogram.count(i) + (i == begin ? outside_low : 0) + (i == end - 1 ? outside_high : 0);
    };
    int64_t count = 0, occupied = 0;
    for (int32_t i = first; i < last; ++i) {
      count += histogram.count(i);
      occupied += reference(i) > 0;
    }
    if (occupied == 0) continue;
    if (count == 0) return std::numeric_limits<double>::infinity();
    const double mean = static_cast<double>(count) / static_cast<double>(occupied) / static_cast<double>(inside);
    for (int32_t i = first; i < last; ++i) {
      const double p = static_cast<double>(reference(i)) / total;
      if (p > 0) sum += p * std::log(p / mean);
    }
  }
  return sum;
}

}  // namespace detail

// The range, cut at one magnitude on either side, at which the codes tell most about the values: Migacz, "8-bit
// inference with TensorRT" (GPU Technology Conference 2017). The magnitudes tried are hundredths of the largest, as
// long as a code has at least one bin.
inline Range entropy_range(const Histogram& histogram, const GridSpec& spec) {
  constexpr int kParts = 100;
  const int32_t levels = spec.qmax - spec.qmin + 1;
  const int32_t radius = std::max(histogram.end() - kHistogramZero, kHistogramZero - histogram.begin());
  const auto cut = [&](int32_t most) {
    if (spec.symmetric) return std::pair(kHistogramZero - most, kHistogramZero + most);
    return std::pair(std::max(kHistogramZero - most, std::min(histogram.begin(), kHistogramZero)),
                     std::min(kHistogramZero + most, std::max(histogram.end(), kHistogramZero)));
  };
  auto best = cut(radius);
  double least = detail::divergence(histogram, best.first, best.second, levels);
  for (int part = kParts - 1; part > 0; --part) {
    const auto candidate = cut(static_cast<int32_t>(static_cast<int64_t>(radius) * part / kParts));
    if (candidate.second - candidate.first < levels) break;
    const double found = detail::divergence(histogram, candidate.first, candidate.second, levels);
    if (found < least) {
      least = found;
      best = candidate;
    }
  }
  return histogram.range(best.first, best.second);
}

// The empty range for an empty histogram. percentile: of the method of that name, in (0, 100].
inline Range histogram_range(ConstHistogramCounts counts, int32_t exponent, HistogramMethod method, double percentile,
                             const GridSpec& spec) {
  const Histogram histogram(counts, exponent);
  if (histogram.empty()) return {};
  switch (method) {
    case HistogramMethod::kPercentile:
      return percentile_range(histogram, percentile, spec.symmetric);
    case HistogramMethod::kMse:
      return mse_range(histogram, spec);
    case HistogramMethod::kEntropy:
      return entropy_range(histogram, spec);
  }
  return {};
}

}  // namespace octet
