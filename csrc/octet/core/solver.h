// The grid solver: rule 9 of docs/numerics.md. Ranges in, grids out, one pass, always solvable.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "octet/core/grid.h"
#include "octet/core/multiplier.h"

namespace octet {

// What ties the grids of a model. A class is a set of tensors on one grid (rule 9a); the caller has merged them
// already.
struct GridProblem {
  // Rule 9c: out = a * b or a matmul b, classes by index, in topological order. `out` is in no component.
  struct Product {
    int32_t a, b, out;
  };
  std::vector<GridSpec> specs;      // one per class
  std::vector<int32_t> components;  // one per class: classes with the same id >= 0 meet in an add or sub; -1: in none
  std::vector<Product> products;
};

struct SolvedGrid {
  Grid grid;
  int32_t steps = 1;  // n of rule 9b: scale = n * u in its component; 1 outside of components
};

inline constexpr int32_t kComponentSteps = 1023;

// Rule 9b: u = f32(max s / 1023); n the smallest odd integer with n*u >= s; the scale becomes f32(n*u).
inline float component_unit(float largest_scale) { return clamp_scale(largest_scale / kComponentSteps); }

inline int32_t steps_in_component(float scale, float unit) {
  const auto n = static_cast<int32_t>(std::ceil(static_cast<double>(scale) / unit));
  return std::max(1, n | 1);
}

// Rule 9c: the output scale nearest to `ideal` whose multiplier sa*sb/s is tie-free.
inline float product_scale(float a, float b, float ideal) {
  const double product = static_cast<double>(a) * b;
  const double multiplier = std::max(product / ideal, kSmallestMultiplier);
  return clamp_scale(static_cast<float>(product / snap_multiplier(multiplier).exact()));
}

namespace detail {

// Sets the scale, then the zero point that belongs to it.
inline void set_scale(SolvedGrid& solved, float scale, Range range, const GridSpec& spec) {
  solved.grid.scale = scale;
  solved.grid.zero_point = zero_point_for(scale, range, spec);
}

}  // namespace detail

// ranges: one per class, empty where nothing was observed yet (those keep scale 1 and tie nothing). All others must be
// finite.
inline std::vector<SolvedGrid> solve_grids(const GridProblem& problem, const std::vector<Range>& ranges) {
  const size_t count = problem.specs.size();
  std::vector<SolvedGrid> solved(count);
  std::vector<float> largest;  // by component
  for (size_t i = 0; i < count; ++i) {
    const GridSpec& spec = problem.specs[i];
    const int32_t middle = spec.symmetric ? (spec.qmin + spec.qmax) / 2 : spec.qmin;
    solved[i].grid = ranges[i].empty() ? Grid{1.0f, middle, spec.qmin, spec.qmax} : grid_from_range(ranges[i], spec);
    const int32_t component = problem.components[i];
    if (component < 0 || ranges[i].empty()) continue;
    if (largest.size() <= static_cast<size_t>(component)) largest.resize(component + 1, 0.0f);
    largest[component] = std::max(largest[component], solved[i].grid.scale);
  }
  for (size_t i = 0; i < count; ++i) {
    const int32_t component = problem.components[i];
    if (component < 0 || ranges[i].empty()) continue;
    const float unit = component_unit(largest[component]);
    solved[i].steps = steps_in_component(solved[i].grid.scale, unit);
    detail::set_scale(solved[i], static_cast<float>(static_cast<double>(solved[i].steps) * unit), ranges[i],
                      problem.specs[i]);
  }
  for (const auto& product : problem.products) {
    if (ranges[product.a].empty() || ranges[product.b].empty() || ranges[product.out].empty()) continue;
    const float scale =
        product_scale(solved[product.a].grid.scale, solved[product.b].grid.scale, solved[product.out].grid.scale);
    detail::set_scale(solved[product.out], scale, ranges[product.out], problem.specs[product.out]);
  }
  return solved;
}

}  // namespace octet
