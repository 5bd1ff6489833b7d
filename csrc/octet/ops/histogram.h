// Histograms as tensors: counts int64 [..., 8192] and exponent int32 [...], one histogram for each leading index. What
// a bin holds, and what makes histograms independent of the split of the data, is in core/histogram.h. No gradients.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>

namespace octet {

// Counts the values of x, any shape, floating point. axis: one histogram for each index along it (counts
// [x.size(axis), 8192]), else counts is [8192]. A tensor (a channel) with NaN or infinities changes nothing.
void add_to_histogram_(at::Tensor counts, at::Tensor exponent, const at::Tensor& x, std::optional<int64_t> axis);

// Adds the counts of `other`: as if its values had been counted here.
void merge_histogram_(at::Tensor counts, at::Tensor exponent, const at::Tensor& other_counts,
                      const at::Tensor& other_exponent);

// The range to quantize by, (min, max) float32 in the shape of exponent. method: "percentile", "mse" or "entropy";
// percentile, in (0, 100]: how many of the values the method of that name keeps. The empty range for an empty
// histogram.
std::tuple<at::Tensor, at::Tensor> histogram_range(const at::Tensor& counts, const at::Tensor& exponent,
                                                   std::string_view method, double percentile, int64_t qmin,
                                                   int64_t qmax, bool symmetric);

// Before commit_ranges_: what this forward counted goes into the histograms of the grids that have one, and the range
// chosen from them takes the place of the pending one, should that be finite. One entry per grid: counts
// and pending_counts int64 [8192], exponents int32 [], pending ranges float32 []. Pending histograms are emptied.
void commit_histograms_(at::TensorList counts, at::TensorList exponent, at::TensorList pending_counts,
                        at::TensorList pending_exponent, at::TensorList pending_min, at::TensorList pending_max,
                        const c10::List<std::string>& method, at::ArrayRef<double> percentile, at::IntArrayRef qmin,
                        at::IntArrayRef qmax, const c10::List<bool>& symmetric);

}  // namespace octet
