#include "octet/ops/commit_ranges.h"

#include <torch/library.h>

#include <limits>
#include <vector>

#include "octet/core/observer.h"
#include "octet/core/solver.h"
#include "octet/ops/common.h"
#include "octet/ops/observer_name.h"

namespace octet {

using at::Tensor;
using at::TensorList;

namespace {

constexpr const char* kOp = "commit_ranges_";

void check_buffers(const char* name, TensorList tensors, size_t count, at::ScalarType dtype) {
  TORCH_CHECK(tensors.size() == count, kOp, ": ", name, " must have one entry per grid (got ", tensors.size(), " for ",
              count, " grids)");
  for (const Tensor& t : tensors) {
    TORCH_CHECK(t.scalar_type() == dtype && t.sym_numel() == 1, kOp, ": ", name, " must hold ", dtype,
                " tensors with one element (got ", t.scalar_type(), " of shape ", t.sym_sizes(), ")");
  }
}

void check_length(const char* name, size_t length, size_t count) {
  TORCH_CHECK(length == count, kOp, ": ", name, " must have one entry per grid (got ", length, " for ", count,
              " grids)");
}

void check_indices(at::IntArrayRef component, at::IntArrayRef products, int64_t count) {
  for (const int64_t id : component) {
    TORCH_CHECK(id >= -1 && id < count, kOp, ": component ids must lie in [-1, number of grids) (got ", id, ")");
  }
  TORCH_CHECK(products.size() % 3 == 0, kOp, ": products must be (a, b, out) triples (got ", products.size(),
              " indices)");
  for (const int64_t i : products) {
    TORCH_CHECK(i >= 0 && i < count, kOp, ": products must index grids (got ", i, " of ", count, ")");
  }
}

GridProblem make_problem(at::IntArrayRef qmin, at::IntArrayRef qmax, const c10::List<bool>& symmetric,
                         at::IntArrayRef component, at::IntArrayRef products) {
  GridProblem problem;
  for (size_t i = 0; i < qmin.size(); ++i) {
    detail::check_bounds(kOp, qmin[i], qmax[i]);
    problem.specs.push_back({static_cast<int32_t>(qmin[i]), static_cast<int32_t>(qmax[i]), symmetric[i]});
    problem.components.push_back(static_cast<int32_t>(component[i]));
  }
  for (size_t i = 0; i < products.size(); i += 3) {
    problem.products.push_back({static_cast<int32_t>(products[i]), static_cast<int32_t>(products[i + 1]),
                                static_cast<int32_t>(products[i + 2])});
  }
  return problem;
}

// Nothing was observed: distinct from a diverged tensor whose every value is +inf.
bool untouched(Range pending) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return pending.min == kInfinity && pending.max == -kInfinity;
}

Range read_range(const Tensor& min, const Tensor& max) {
  return {detail::read_one<float>(min), detail::read_one<float>(max)};
}

void write_range(const Tensor& min, const Tensor& max, Range range) {
  detail::write_one(min, range.min);
  detail::write_one(max, range.max);
}

void check_all(TensorList pending_min, TensorList pending_max, TensorList min, TensorList max, TensorList scale,
               TensorList zero_point, TensorList steps, TensorList nonfinite, at::IntArrayRef qmin,
               at::IntArrayRef qmax, const c10::List<bool>& symmetric, at::IntArrayRef component,
               at::IntArrayRef products, const c10::List<std::string>& observer,
               at::ArrayRef<double> averaging_constant) {
  const size_t count = pending_min.size();
  check_buffers("pending_min", pending_min, count, at::kFloat);
  check_buffers("pending_max", pending_max, count, at::kFloat);
  check_buffers("min", min, count, at::kFloat);
  check_buffers("max", max, count, at::kFloat);
  check_buffers("scale", scale, count, at::kFloat);
  check_buffers("zero_point", zero_point, count, at::kInt);
  check_buffers("steps", steps, count, at::kInt);
  check_buffers("nonfinite", nonfinite, count, at::kLong);
  check_length("qmin", qmin.size(), count);
  check_length("qmax", qmax.size(), count);
  check_length("symmetric", symmetric.size(), count);
  check_length("component", component.size(), count);
  check_length("observer", observer.size(), count);
  check_length("averaging_constant", averaging_constant.size(), count);
  check_indices(component, products, static_cast<int64_t>(count));
  for (size_t i = 0; i < count; ++i) detail::parse_observer(kOp, observer[i]);
}

// Runs on any device; a grid is a handful of numbers.
void commit_ranges_any(TensorList pending_min, TensorList pending_max, TensorList min, TensorList max, TensorList scale,
                       TensorList zero_point, TensorList steps, TensorList nonfinite, at::IntArrayRef qmin,
                       at::IntArrayRef qmax, const c10::List<bool>& symmetric, at::IntArrayRef component,
                       at::IntArrayRef products, const c10::List<std::string>& observer,
                       at::ArrayRef<double> averaging_constant) {
  check_all(pending_min, pending_max, min, max, scale, zero_point, steps, nonfinite, qmin, qmax, symmetric, component,
            products, observer, averaging_constant);
  std::vector<Range> ranges;
  bool changed = false;
  for (size_t i = 0; i < min.size(); ++i) {
    const Range pending = read_range(pending_min[i], pending_max[i]);
    ranges.push_back(read_range(min[i], max[i]));
    if (untouched(pending)) continue;
    changed = true;
    write_range(pending_min[i], pending_max[i], Range());
    if (!pending.finite()) {
      nonfinite[i].add_(1);
      continue;
    }
    ranges[i] = update_range(ranges[i], pending, detail::parse_observer(kOp, observer[i]),
                             static_cast<float>(averaging_constant[i]));
    write_range(min[i], max[i], ranges[i]);
  }
  if (!changed) return;
  const auto solved = solve_grids(make_problem(qmin, qmax, symmetric, component, products), ranges);
  for (size_t i = 0; i < min.size(); ++i) {
    if (ranges[i].empty()) continue;
    detail::write_one(scale[i], solved[i].grid.scale);
    detail::write_one(zero_point[i], solved[i].grid.zero_point);
    detail::write_one(steps[i], solved[i].steps);
  }
}

void commit_ranges_meta(TensorList pending_min, TensorList pending_max, TensorList min, TensorList max,
                        TensorList scale, TensorList zero_point, TensorList steps, TensorList nonfinite,
                        at::IntArrayRef qmin, at::IntArrayRef qmax, const c10::List<bool>& symmetric,
                        at::IntArrayRef component, at::IntArrayRef products, const c10::List<std::string>& observer,
                        at::ArrayRef<double> averaging_constant) {
  check_all(pending_min, pending_max, min, max, scale, zero_point, steps, nonfinite, qmin, qmax, symmetric, component,
            products, observer, averaging_constant);
}

}  // namespace

void commit_ranges_(TensorList pending_min, TensorList pending_max, TensorList min, TensorList max, TensorList scale,
                    TensorList zero_point, TensorList steps, TensorList nonfinite, at::IntArrayRef qmin,
                    at::IntArrayRef qmax, const c10::List<bool>& symmetric, at::IntArrayRef component,
                    at::IntArrayRef products, const c10::List<std::string>& observer,
                    at::ArrayRef<double> averaging_constant) {
  static const auto op = detail::find_op<decltype(commit_ranges_)>("commit_ranges_");
  op.call(pending_min, pending_max, min, max, scale, zero_point, steps, nonfinite, qmin, qmax, symmetric, component,
          products, observer, averaging_constant);
}

TORCH_LIBRARY_FRAGMENT(octet, m) {
  m.def(
      "commit_ranges_(Tensor(a!)[] pending_min, Tensor(b!)[] pending_max, Tensor(c!)[] min, Tensor(d!)[] max, "
      "Tensor(e!)[] scale, Tensor(f!)[] zero_point, Tensor(g!)[] steps, Tensor(h!)[] nonfinite, int[] qmin, int[] "
      "qmax, "
      "bool[] symmetric, int[] component, int[] products, str[] observer, float[] averaging_constant) -> ()");
}
TORCH_LIBRARY_IMPL(octet, CompositeExplicitAutograd, m) { m.impl("commit_ranges_", TORCH_FN(commit_ranges_any)); }
TORCH_LIBRARY_IMPL(octet, Meta, m) { m.impl("commit_ranges_", TORCH_FN(commit_ranges_meta)); }

}  // namespace octet
