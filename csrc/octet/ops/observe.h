// Observation: ranges of tensors, how they accumulate, and the grids they give (rule 3 of docs/numerics.md).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>
#include <tuple>

namespace octet {

// Smallest and largest value of x, float32 []. NaN anywhere gives NaN for both; an empty x the empty range (+inf,
// -inf). x: any shape, floating point. No gradient.
std::tuple<at::Tensor, at::Tensor> min_max(const at::Tensor& x);

// The same for every index along axis: float32 [x.size(axis)].
std::tuple<at::Tensor, at::Tensor> min_max_per_channel(const at::Tensor& x, int64_t axis);

// Updates the observed range (min, max) by a batch's range, elementwise; all four float32 of one shape. observer:
// "min_max" keeps the extremes, "moving_average" adds averaging_constant times the difference, "latest" takes the
// batch's. Entries of the batch that are NaN, infinite or empty change nothing; the first finite batch is taken as it
// is.
void update_range_(at::Tensor min, at::Tensor max, const at::Tensor& batch_min, const at::Tensor& batch_max,
                   std::string_view observer, double averaging_constant);

// Adds a range to what this forward saw so far: elementwise minimum and maximum, NaN sticks. All float32 of one shape.
void merge_pending_(at::Tensor pending_min, at::Tensor pending_max, const at::Tensor& min, const at::Tensor& max);

// Rule 3, elementwise: (scale float32, zero_point int32), shaped as min and max (float32). The range is widened to
// include 0; an empty range gives scale 1, one with NaN a NaN scale (so that it shows). Symmetric grids: zero point in
// the middle.
std::tuple<at::Tensor, at::Tensor> calculate_qparams(const at::Tensor& min, const at::Tensor& max, int64_t qmin,
                                                     int64_t qmax, bool symmetric);

}  // namespace octet
