#include "octet/kernels/histogram.h"

#include <cmath>
#include <mutex>
#include <vector>

namespace octet::kernels {

void add_to_histogram(const float* x, int64_t n, int32_t exponent, HistogramCounts counts, ParallelFor parallel) {
  constexpr int64_t kGrain = 1 << 16;  // against 8192 bins to be added up at the end
  const float inverse_width = std::ldexp(1.0f, -exponent);
  std::mutex mutex;
  parallel(n, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> own(kHistogramBins);
    for (int64_t i = begin; i < end; ++i) ++own[static_cast<size_t>(histogram_bin(x[i], inverse_width))];
    const std::lock_guard lock(mutex);
    for (size_t bin = 0; bin < own.size(); ++bin) counts[bin] += own[bin];
  });
}

}  // namespace octet::kernels
