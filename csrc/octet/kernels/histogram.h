// Counting values into the bins of core/histogram.h.
#pragma once

#include <cstdint>

#include "octet/core/histogram.h"
#include "octet/kernels/parallel.h"

namespace octet::kernels {

// Adds n finite values, whose magnitudes the bins hold (histogram_exponent), to counts.
void add_to_histogram(const float* x, int64_t n, int32_t exponent, HistogramCounts counts, ParallelFor parallel);

}  // namespace octet::kernels
