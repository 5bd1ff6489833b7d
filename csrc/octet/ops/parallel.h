// Torch's threads for the kernels. Not a public header.
#pragma once

#include <ATen/Parallel.h>

#include "octet/kernels/parallel.h"

#if AT_PARALLEL_OPENMP && !defined(_OPENMP)
#error "at::parallel_for would silently run on one thread: compile with OpenMP, as this Torch is"
#endif

namespace octet::detail {

inline constexpr auto torch_parallel = [](int64_t count, int64_t grain, kernels::RangeBody body) {
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(begin, end); });
};

}  // namespace octet::detail
