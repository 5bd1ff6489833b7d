#include "octet/ops/observe.h"

#include <ATen/ops/amax.h>
#include <ATen/ops/amin.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "octet/core/observer.h"
#include "octet/ops/channel_layout.h"
#include "octet/ops/common.h"
#include "octet/ops/observer_name.h"
#include "octet/ops/parallel.h"

namespace octet {

using at::Tensor;
using Pair = std::tuple<Tensor, Tensor>;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

Pair empty_ranges(at::IntArrayRef shape, const Tensor& like) {
  const auto options = like.options().dtype(at::kFloat);
  return {at::full(shape, kInfinity, options), at::full(shape, -kInfinity, options)};
}

Pair ranges_of(const Tensor& x, std::optional<int64_t> axis) {
  const Tensor input = detail::dense_float(x);
  const auto shape = axis ? std::vector<int64_t>{x.size(*axis)} : std::vector<int64_t>{};
  Tensor low = at::empty(shape, input.options()), high = at::empty(shape, input.options());
  kernels::min_max(input.const_data_ptr<float>(), detail::channel_layout(input, axis), low.mutable_data_ptr<float>(),
                   high.mutable_data_ptr<float>(), detail::torch_parallel);
  return {low, high};
}

Pair min_max_cpu(const Tensor& x) {
  detail::check_floating("min_max", "x", x);
  return ranges_of(x, std::nullopt);
}

Pair min_max_any(const Tensor& x) {
  detail::check_floating("min_max", "x", x);
  if (x.numel() == 0) return empty_ranges({}, x);
  auto [low, high] = at::aminmax(x);
  return {low.to(at::kFloat), high.to(at::kFloat)};
}

Pair min_max_meta(const Tensor& x) {
  detail::check_floating("min_max", "x", x);
  const auto options = x.options().dtype(at::kFloat);
  return {at::empty({}, options), at::empty({}, options)};
}

Pair min_max_per_channel_cpu(const Tensor& x, int64_t axis) {
  detail::check_floating("min_max_per_channel", "x", x);
  return ranges_of(x, detail::check_axis("min_max_per_channel", x, axis));
}

Pair min_max_per_channel_any(const Tensor& x, int64_t axis) {
  detail::check_floating("min_max_per_channel", "x", x);
  axis = detail::check_axis("min_max_per_channel", x, axis);
  if (x.numel() == 0) return empty_ranges({x.size(axis)}, x);
  std::vector<int64_t> others;
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (d != axis) others.push_back(d);
  }
  if (others.empty()) return {x.to(at::kFloat, false, true), x.to(at::kFloat, false, true)};
  return {at::amin(x, others).to(at::kFloat), at::amax(x, others).to(at::kFloat)};
}

Pair min_max_per_channel_meta(const Tensor& x, int64_t axis) {
  detail::check_floating("min_max_per_channel", "x", x);
  axis = detail::check_axis("min_max_per_channel", x, axis);
  const auto options = x.options().dtype(at::kFloat);
  return {at::empty_symint({x.sym_size(axis)}, options), at::empty_symint({x.sym_size(axis)}, options)};
}

void check_ranges(const char* op, const Tensor& min, const Tensor& max, const Tensor& other_min,
                  const Tensor& other_max) {
  for (const Tensor* t : {&min, &max, &other_min, &other_max}) {
    detail::check_dtype(op, "every range", *t, at::kFloat);
    TORCH_CHECK(t->sym_sizes() == min.sym_sizes(), op, ": all ranges must have one shape (got ", t->sym_sizes(), ", ",
                min.sym_sizes(), ")");
  }
}

void update_range_cpu(Tensor min, Tensor max, const Tensor& batch_min, const Tensor& batch_max,
                      std::string_view observer, double averaging_constant) {
  check_ranges("update_range_", min, max, batch_min, batch_max);
  const Observer kind = detail::parse_observer("update_range_", observer);
  Tensor low = min.contiguous(), high = max.contiguous();
  const Tensor batch_low = batch_min.contiguous(), batch_high = batch_max.contiguous();
  auto* lows = low.mutable_data_ptr<float>();
  auto* highs = high.mutable_data_ptr<float>();
  for (int64_t i = 0; i < low.numel(); ++i) {
    const Range batch{batch_low.const_data_ptr<float>()[i], batch_high.const_data_ptr<float>()[i]};
    const Range range = update_range({lows[i], highs[i]}, batch, kind, static_cast<float>(averaging_constant));
    lows[i] = range.min;
    highs[i] = range.max;
  }
  if (!low.is_same(min)) min.copy_(low);
  if (!high.is_same(max)) max.copy_(high);
}

// A range is a few numbers: other devices compute it on the CPU, by the same function.
void update_range_any(Tensor min, Tensor max, const Tensor& batch_min, const Tensor& batch_max,
                      std::string_view observer, double averaging_constant) {
  const Tensor low = min.cpu(), high = max.cpu();
  update_range_cpu(low, high, batch_min.cpu(), batch_max.cpu(), observer, averaging_constant);
  min.copy_(low);
  max.copy_(high);
}

void update_range_meta(Tensor min, Tensor max, const Tensor& batch_min, const Tensor& batch_max,
                       std::string_view observer, double) {
  check_ranges("update_range_", min, max, batch_min, batch_max);
  detail::parse_observer("update_range_", observer);
}

void merge_pending_any(Tensor pending_min, Tensor pending_max, const Tensor& min, const Tensor& max) {
  check_ranges("merge_pending_", pending_min, pending_max, min, max);
  at::minimum_out(pending_min, pending_min, min);
  at::maximum_out(pending_max, pending_max, max);
}

void merge_pending_cpu(Tensor pending_min, Tensor pending_max, const Tensor& min, const Tensor& max) {
  if (min.numel() != 1) return merge_pending_any(pending_min, pending_max, min, max);
  check_ranges("merge_pending_", pending_min, pending_max, min, max);
  const auto either_nan = [](float a, float b) { return std::isnan(a) ? a : b; };
  const float low = detail::read_one<float>(pending_min), new_low = detail::read_one<float>(min);
  const float high = detail::read_one<float>(pending_max), new_high = detail::read_one<float>(max);
  detail::write_one(pending_min, low < new_low ? low : either_nan(low, new_low));
  detail::write_one(pending_max, high > new_high ? high : either_nan(high, new_high));
}

void merge_pending_meta(Tensor pending_min, Tensor pending_max, const Tensor& min, const Tensor& max) {
  check_ranges("merge_pending_", pending_min, pending_max, min, max);
}

void check_calculate_qparams(const Tensor& min, const Tensor& max, int64_t qmin, int64_t qmax) {
  check_ranges("calculate_qparams", min, max, min, max);
  detail::check_bounds("calculate_qparams", qmin, qmax);
}

Grid grid_of(Range range, const GridSpec& spec) {
  if (!range.empty()) return grid_from_range(range, spec);
  const int32_t zero_point = spec.symmetric ? (spec.qmin + spec.qmax) / 2 : spec.qmin;
  return {scale_from_any_range(range, spec), zero_point, spec.qmin, spec.qmax};
}

Pair calculate_qparams_cpu(const Tensor& min, const Tensor& max, int64_t qmin, int64_t qmax, bool symmetric) {
  check_calculate_qparams(min, max, qmin, qmax);
  const GridSpec spec{static_cast<int32_t>(qmin), static_cast<int32_t>(qmax), symmetric};
  const Tensor low = min.contiguous(), high = max.contiguous();
  Tensor scale = at::empty_like(low), zero_point = at::empty_like(low, at::kInt);
  for (int64_t i = 0; i < low.numel(); ++i) {
    const Grid grid = grid_of({low.const_data_ptr<float>()[i], high.const_data_ptr<float>()[i]}, spec);
    scale.mutable_data_ptr<float>()[i] = grid.scale;
    zero_point.mutable_data_ptr<int32_t>()[i] = grid.zero_point;
  }
  return {scale, zero_point};
}

Pair calculate_qparams_any(const Tensor& min, const Tensor& max, int64_t qmin, int64_t qmax, bool symmetric) {
  auto [scale, zero_point] = calculate_qparams_cpu(min.cpu(), max.cpu(), qmin, qmax, symmetric);
  return {scale.to(min.device()), zero_point.to(min.device())};
}

Pair calculate_qparams_meta(const Tensor& min, const Tensor& max, int64_t qmin, int64_t qmax, bool) {
  check_calculate_qparams(min, max, qmin, qmax);
  return {at::empty_like(min, at::MemoryFormat::Contiguous),
          at::empty_like(min, min.options().dtype(at::kInt), at::MemoryFormat::Contiguous)};
}

}  // namespace

Pair min_max(const Tensor& x) {
  static const auto op = detail::find_op<decltype(min_max)>("min_max");
  return op.call(x);
}

Pair min_max_per_channel(const Tensor& x, int64_t axis) {
  static const auto op = detail::find_op<decltype(min_max_per_channel)>("min_max_per_channel");
  return op.call(x, axis);
}

void update_range_(Tensor min, Tensor max, const Tensor& batch_min, const Tensor& batch_max, std::string_view observer,
                   double averaging_constant) {
  static const auto op = detail::find_op<decltype(update_range_)>("update_range_");
  op.call(min, max, batch_min, batch_max, observer, averaging_constant);
}

void merge_pending_(Tensor pending_min, Tensor pending_max, const Tensor& min, const Tensor& max) {
  static const auto op = detail::find_op<decltype(merge_pending_)>("merge_pending_");
  op.call(pending_min, pending_max, min, max);
}

Pair calculate_qparams(const Tensor& min, const Tensor& max, int64_t qmin, int64_t qmax, bool symmetric) {
  static const auto op = detail::find_op<decltype(calculate_qparams)>("calculate_qparams");
  return op.call(min, max, qmin, qmax, symmetric);
}

TORCH_LIBRARY_FRAGMENT(octet, m) {
  m.def("min_max(Tensor x) -> (Tensor min, Tensor max)");
  m.def("min_max_per_channel(Tensor x, int axis) -> (Tensor min, Tensor max)");
  m.def(
      "update_range_(Tensor(a!) min, Tensor(b!) max, Tensor batch_min, Tensor batch_max, str observer, float "
      "averaging_constant) -> ()");
  m.def("merge_pending_(Tensor(a!) pending_min, Tensor(b!) pending_max, Tensor min, Tensor max) -> ()");
  m.def(
      "calculate_qparams(Tensor min, Tensor max, int qmin, int qmax, bool symmetric) -> (Tensor scale, Tensor "
      "zero_point)");
}

TORCH_LIBRARY_IMPL(octet, CPU, m) {
  m.impl("min_max", TORCH_FN(min_max_cpu));
  m.impl("min_max_per_channel", TORCH_FN(min_max_per_channel_cpu));
  m.impl("update_range_", TORCH_FN(update_range_cpu));
  m.impl("merge_pending_", TORCH_FN(merge_pending_cpu));
  m.impl("calculate_qparams", TORCH_FN(calculate_qparams_cpu));
}

TORCH_LIBRARY_IMPL(octet, CompositeExplicitAutograd, m) {
  m.impl("min_max", TORCH_FN(min_max_any));
  m.impl("min_max_per_channel", TORCH_FN(min_max_per_channel_any));
  m.impl("update_range_", TORCH_FN(update_range_any));
  m.impl("merge_pending_", TORCH_FN(merge_pending_any));
  m.impl("calculate_qparams", TORCH_FN(calculate_qparams_any));
}

TORCH_LIBRARY_IMPL(octet, Meta, m) {
  m.impl("min_max", TORCH_FN(min_max_meta));
  m.impl("min_max_per_channel", TORCH_FN(min_max_per_channel_meta));
  m.impl("update_range_", TORCH_FN(update_range_meta));
  m.impl("merge_pending_", TORCH_FN(merge_pending_meta));
  m.impl("calculate_qparams", TORCH_FN(calculate_qparams_meta));
}

TORCH_LIBRARY_IMPL(octet, Autograd, m) {
  m.impl("min_max", TORCH_FN(detail::NonDifferentiable<min_max>::call));
  m.impl("min_max_per_channel", TORCH_FN(detail::NonDifferentiable<min_max_per_channel>::call));
  m.impl("calculate_qparams", TORCH_FN(detail::NonDifferentiable<calculate_qparams>::call));
}

}  // namespace octet
