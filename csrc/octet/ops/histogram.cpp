#include "octet/ops/histogram.h"

#include <ATen/ops/bincount.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "octet/core/histogram.h"
#include "octet/kernels/histogram.h"
#include "octet/ops/common.h"
#include "octet/ops/observe.h"
#include "octet/ops/parallel.h"

namespace octet {

using at::Tensor;
using at::TensorList;
using Pair = std::tuple<Tensor, Tensor>;

namespace {

HistogramMethod parse_method(const char* op, std::string_view name, double percentile) {
  TORCH_CHECK(percentile > 0 && percentile <= 100, op, ": percentile must be in (0, 100] (got ", percentile, ")");
  if (name == "percentile") return HistogramMethod::kPercentile;
  if (name == "mse") return HistogramMethod::kMse;
  TORCH_CHECK(name == "entropy", op, ": method must be \"percentile\", \"mse\" or \"entropy\" (got \"", name, "\")");
  return HistogramMethod::kEntropy;
}

void check_histogram(const char* op, const Tensor& counts, const Tensor& exponent) {
  detail::check_dtype(op, "counts", counts, at::kLong);
  detail::check_dtype(op, "exponent", exponent, at::kInt);
  TORCH_CHECK(counts.dim() >= 1 && counts.sym_size(-1) == kHistogramBins &&
                  counts.sym_sizes().slice(0, counts.dim() - 1) == exponent.sym_sizes(),
              op, ": counts must have the shape of exponent and ", kHistogramBins, " bins (got ", counts.sym_sizes(),
              ", ", exponent.sym_sizes(), ")");
}

// Row i of counts.
HistogramCounts row(const Tensor& counts, int64_t i) {
  return HistogramCounts(counts.mutable_data_ptr<int64_t>() + i * kHistogramBins, kHistogramBins);
}

// Calls change(counts, exponent) on CPU copies where needed, and writes them back.
template <class Change>
void in_memory(const Tensor& counts, const Tensor& exponent, Change change) {
  const Tensor c = counts.cpu().contiguous(), e = exponent.cpu().contiguous();
  change(c, e);
  if (!c.is_same(counts)) counts.copy_(c);
  if (!e.is_same(exponent)) exponent.copy_(e);
}

void check_add(const Tensor& counts, const Tensor& exponent, const Tensor& x, std::optional<int64_t> axis) {
  constexpr const char* kOp = "add_to_histogram_";
  check_histogram(kOp, counts, exponent);
  detail::check_floating(kOp, "x", x);
  const int64_t dims = axis ? 1 : 0;
  if (axis) axis = detail::check_axis(kOp, x, *axis);
  TORCH_CHECK(exponent.dim() == dims && (!axis || exponent.sym_size(0) == x.sym_size(*axis)), kOp,
              ": there must be one histogram for each index along axis, or one for the tensor (got exponent of shape ",
              exponent.sym_sizes(), " for x of shape ", x.sym_sizes(), ")");
}

// Makes room for what x holds; nothing if there is none, or not finite.
std::optional<int32_t> widen(HistogramCounts counts, int32_t exponent, const Tensor& x) {
  const auto [low, high] = min_max(x);
  const Range range{detail::read_one<float>(low), detail::read_one<float>(high)};
  if (range.empty() || !range.finite()) return std::nullopt;
  const int32_t needed = histogram_exponent(std::max(std::abs(range.min), std::abs(range.max)));
  coarsen(counts, needed - exponent);
  return std::max(exponent, needed);
}

void count_on_cpu(HistogramCounts counts, int32_t exponent, const Tensor& x) {
  const Tensor values = detail::dense_float(x);
  kernels::add_to_histogram(values.const_data_ptr<float>(), values.numel(), exponent, counts, detail::torch_parallel);
}

// Any device, by ATen; the counts alone travel.
void count_by_aten(HistogramCounts counts, int32_t exponent, const Tensor& x) {
  const Tensor bins = (x.to(at::kFloat) * std::ldexp(1.0, -exponent)).floor().to(at::kLong) + kHistogramZero;
  const Tensor added = at::bincount(bins.flatten(), {}, kHistogramBins).cpu();
  for (int64_t i = 0; i < kHistogramBins; ++i) counts[i] += added.const_data_ptr<int64_t>()[i];
}

template <auto Count>
void add_to_histogram_impl(Tensor counts, Tensor exponent, const Tensor& x, std::optional<int64_t> axis) {
  check_add(counts, exponent, x, axis);
  const Tensor data = x.detach();
  in_memory(counts, exponent, [&](const Tensor& c, const Tensor& e) {
    auto* exponents = e.mutable_data_ptr<int32_t>();
    for (int64_t i = 0; i < e.numel(); ++i) {
      const Tensor part = axis ? data.select(*axis, i) : data;
      const auto wide = widen(row(c, i), exponents[i], part);
      if (!wide) continue;
      exponents[i] = *wide;
      Count(row(c, i), *wide, part);
    }
  });
}

void add_to_histogram_meta(Tensor counts, Tensor exponent, const Tensor& x, std::optional<int64_t> axis) {
  check_add(counts, exponent, x, axis);
}

void check_merge(const Tensor& counts, const Tensor& exponent, const Tensor& other_counts,
                 const Tensor& other_exponent) {
  constexpr const char* kOp = "merge_histogram_";
  check_histogram(kOp, counts, exponent);
  check_histogram(kOp, other_counts, other_exponent);
  TORCH_CHECK(exponent.sym_sizes() == other_exponent.sym_sizes(), kOp, ": both must hold as many histograms (got ",
              exponent.sym_sizes(), ", ", other_exponent.sym_sizes(), ")");
}

void merge_histogram_any(Tensor counts, Tensor exponent, const Tensor& other_counts, const Tensor& other_exponent) {
  check_merge(counts, exponent, other_counts, other_exponent);
  const Tensor other = other_counts.cpu().contiguous(), others = other_exponent.cpu().contiguous();
  in_memory(counts, exponent, [&](const Tensor& c, const Tensor& e) {
    auto* exponents = e.mutable_data_ptr<int32_t>();
    for (int64_t i = 0; i < e.numel(); ++i) {
      exponents[i] = merge_histogram(row(c, i), exponents[i], row(other, i), others.const_data_ptr<int32_t>()[i]);
    }
  });
}

void merge_histogram_meta(Tensor counts, Tensor exponent, const Tensor& other_counts, const Tensor& other_exponent) {
  check_merge(counts, exponent, other_counts, other_exponent);
}

void check_range(const Tensor& counts, const Tensor& exponent, std::string_view method, double percentile, int64_t qmin,
                 int64_t qmax) {
  check_histogram("histogram_range", counts, exponent);
  parse_method("histogram_range", method, percentile);
  detail::check_bounds("histogram_range", qmin, qmax);
}

Pair histogram_range_any(const Tensor& counts, const Tensor& exponent, std::string_view method, double percentile,
                         int64_t qmin, int64_t qmax, bool symmetric) {
  check_range(counts, exponent, method, percentile, qmin, qmax);
  const HistogramMethod kind = parse_method("histogram_range", method, percentile);
  const GridSpec spec{static_cast<int32_t>(qmin), static_cast<int32_t>(qmax), symmetric};
  const Tensor c = counts.cpu().contiguous(), e = exponent.cpu().contiguous();
  Tensor min = at::empty(e.sizes(), e.options().dtype(at::kFloat)), max = at::empty_like(min);
  for (int64_t i = 0; i < e.numel(); ++i) {
    const Range range = histogram_range(row(c, i), e.const_data_ptr<int32_t>()[i], kind, percentile, spec);
    min.mutable_data_ptr<float>()[i] = range.min;
    max.mutable_data_ptr<float>()[i] = range.max;
  }
  return {min.to(counts.device()), max.to(counts.device())};
}

Pair histogram_range_meta(const Tensor& counts, const Tensor& exponent, std::string_view method, double percentile,
                          int64_t qmin, int64_t qmax, bool) {
  check_range(counts, exponent, method, percentile, qmin, qmax);
  const auto options = exponent.options().dtype(at::kFloat);
  return {at::empty_symint(exponent.sym_sizes(), options), at::empty_symint(exponent.sym_sizes(), options)};
}

void check_commit(TensorList counts, TensorList exponent, TensorList pending_counts, TensorList pending_exponent,
                  TensorList pending_min, TensorList pending_max, const c10::List<std::string>& method,
                  at::ArrayRef<double> percentile, at::IntArrayRef qmin, at::IntArrayRef qmax,
                  const c10::List<bool>& symmetric) {
  constexpr const char* kOp = "commit_histograms_";
  for (const size_t size :
       {exponent.size(), pending_counts.size(), pending_exponent.size(), pending_min.size(), pending_max.size(),
        method.size(), percentile.size(), qmin.size(), qmax.size(), symmetric.size()}) {
    TORCH_CHECK(size == counts.size(), kOp, ": every list must have one entry per grid (got ", size, " for ",
                counts.size(), " grids)");
  }
  for (size_t i = 0; i < counts.size(); ++i) {
    check_histogram(kOp, counts[i], exponent[i]);
    check_histogram(kOp, pending_counts[i], pending_exponent[i]);
    detail::check_dtype(kOp, "pending_min", pending_min[i], at::kFloat);
    detail::check_dtype(kOp, "pending_max", pending_max[i], at::kFloat);
    parse_method(kOp, method[i], percentile[i]);
  }
}

void commit_histograms_any(TensorList counts, TensorList exponent, TensorList pending_counts,
                           TensorList pending_exponent, TensorList pending_min, TensorList pending_max,
                           const c10::List<std::string>& method, at::ArrayRef<double> percentile, at::IntArrayRef qmin,
                           at::IntArrayRef qmax, const c10::List<bool>& symmetric) {
  check_commit(counts, exponent, pending_counts, pending_exponent, pending_min, pending_max, method, percentile, qmin,
               qmax, symmetric);
  for (size_t i = 0; i < counts.size(); ++i) {
    merge_histogram_any(counts[i], exponent[i], pending_counts[i], pending_exponent[i]);
    pending_counts[i].zero_();
    pending_exponent[i].fill_(kSmallestExponent);
    const Range pending{detail::read_one<float>(pending_min[i]), detail::read_one<float>(pending_max[i])};
    if (pending.empty() || !pending.finite()) continue;
    const auto [low, high] =
        histogram_range_any(counts[i], exponent[i], method[i], percentile[i], qmin[i], qmax[i], symmetric[i]);
    pending_min[i].copy_(low);
    pending_max[i].copy_(high);
  }
}

void commit_histograms_meta(TensorList counts, TensorList exponent, TensorList pending_counts,
                            TensorList pending_exponent, TensorList pending_min, TensorList pending_max,
                            const c10::List<std::string>& method, at::ArrayRef<double> percentile, at::IntArrayRef qmin,
                            at::IntArrayRef qmax, const c10::List<bool>& symmetric) {
  check_commit(counts, exponent, pending_counts, pending_exponent, pending_min, pending_max, method, percentile, qmin,
               qmax, symmetric);
}

}  // namespace

void add_to_histogram_(Tensor counts, Tensor exponent, const Tensor& x, std::optional<int64_t> axis) {
  static const auto op = detail::find_op<decltype(add_to_histogram_)>("add_to_histogram_");
  op.call(counts, exponent, x, axis);
}

void merge_histogram_(Tensor counts, Tensor exponent, const Tensor& other_counts, const Tensor& other_exponent) {
  static const auto op = detail::find_op<decltype(merge_histogram_)>("merge_histogram_");
  op.call(counts, exponent, other_counts, other_exponent);
}

Pair histogram_range(const Tensor& counts, const Tensor& exponent, std::string_view method, double percentile,
                     int64_t qmin, int64_t qmax, bool symmetric) {
  using Signature = Pair(const Tensor&, const Tensor&, std::string_view, double, int64_t, int64_t, bool);
  static const auto op = detail::find_op<Signature>("histogram_range");
  return op.call(counts, exponent, method, percentile, qmin, qmax, symmetric);
}

void commit_histograms_(TensorList counts, TensorList exponent, TensorList pending_counts, TensorList pending_exponent,
                        TensorList pending_min, TensorList pending_max, const c10::List<std::string>& method,
                        at::ArrayRef<double> percentile, at::IntArrayRef qmin, at::IntArrayRef qmax,
                        const c10::List<bool>& symmetric) {
  static const auto op = detail::find_op<decltype(commit_histograms_)>("commit_histograms_");
  op.call(counts, exponent, pending_counts, pending_exponent, pending_min, pending_max, method, percentile, qmin, qmax,
          symmetric);
}

TORCH_LIBRARY_FRAGMENT(octet, m) {
  m.def("add_to_histogram_(Tensor(a!) counts, Tensor(b!) exponent, Tensor x, int? axis=None) -> ()");
  m.def("merge_histogram_(Tensor(a!) counts, Tensor(b!) exponent, Tensor other_counts, Tensor other_exponent) -> ()");
  m.def(
      "histogram_range(Tensor counts, Tensor exponent, str method, float percentile, int qmin, int qmax, bool "
      "symmetric) -> (Tensor min, Tensor max)");
  m.def(
      "commit_histograms_(Tensor(a!)[] counts, Tensor(b!)[] exponent, Tensor(c!)[] pending_counts, Tensor(d!)[] "
      "pending_exponent, Tensor(e!)[] pending_min, Tensor(f!)[] pending_max, str[] method, float[] percentile, int[] "
      "qmin, int[] qmax, bool[] symmetric) -> ()");
}

TORCH_LIBRARY_IMPL(octet, CPU, m) { m.impl("add_to_histogram_", TORCH_FN(add_to_histogram_impl<count_on_cpu>)); }

TORCH_LIBRARY_IMPL(octet, CompositeExplicitAutograd, m) {
  m.impl("add_to_histogram_", TORCH_FN(add_to_histogram_impl<count_by_aten>));
  m.impl("merge_histogram_", TORCH_FN(merge_histogram_any));
  m.impl("histogram_range", TORCH_FN(histogram_range_any));
  m.impl("commit_histograms_", TORCH_FN(commit_histograms_any));
}

TORCH_LIBRARY_IMPL(octet, Meta, m) {
  m.impl("add_to_histogram_", TORCH_FN(add_to_histogram_meta));
  m.impl("merge_histogram_", TORCH_FN(merge_histogram_meta));
  m.impl("histogram_range", TORCH_FN(histogram_range_meta));
  m.impl("commit_histograms_", TORCH_FN(commit_histograms_meta));
}

}  // namespace octet
