// The end of a training forward: what its tensors showed becomes the grids of the next one.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace octet {

// For every grid i of a model: the pending range updates (min, max) by its observer, the solver (rule 9 of
// docs/numerics.md) turns all ranges into grids at once, scale, zero_point and steps are written, the pending range is
// emptied. A pending range with NaN or infinities is skipped and counted in nonfinite; grids without a range keep what
// they have.
//
// Lists have one entry per grid, tensors have one element each: pending_min, pending_max, min, max, scale float32;
// zero_point, steps int32; nonfinite int64. component: grids with the same id >= 0 meet in an add, -1: in none.
// products: flattened (a, b, out) triples of grid indices, in topological order. Without any pending range nothing
// changes.
void commit_ranges_(at::TensorList pending_min, at::TensorList pending_max, at::TensorList min, at::TensorList max,
                    at::TensorList scale, at::TensorList zero_point, at::TensorList steps, at::TensorList nonfinite,
                    at::IntArrayRef qmin, at::IntArrayRef qmax, const c10::List<bool>& symmetric,
                    at::IntArrayRef component, at::IntArrayRef products, const c10::List<std::string>& observer,
                    at::ArrayRef<double> averaging_constant);

}  // namespace octet
