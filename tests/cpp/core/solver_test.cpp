// Rule 9: the grid solver's promises, over random problems.
#include "octet/core/solver.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <random>

#include "octet/core/table.h"

namespace octet {
namespace {

Range random_range(std::mt19937& random) {
  std::normal_distribution<float> normal;
  const float width = std::exp2(normal(random) * 5);
  const float low = width * normal(random);
  return {low, low + width * std::fabs(normal(random))};
}

struct Problem {
  GridProblem ties;
  std::vector<Range> ranges;
};

Problem random_problem(std::mt19937& random, int count) {
  Problem p;
  for (int i = 0; i < count; ++i) {
    p.ties.specs.push_back(activation_spec(8, random() % 4 == 0));
    p.ties.components.push_back(static_cast<int32_t>(random() % 4) - 1);
    p.ranges.push_back(random_range(random));
  }
  return p;
}

TEST(SolveGrids, WithoutTiesIsRule3) {
  std::mt19937 random(10);
  Problem p = random_problem(random, 500);
  std::fill(p.ties.components.begin(), p.ties.components.end(), -1);
  const auto solved = solve_grids(p.ties, p.ranges);
  for (size_t i = 0; i < solved.size(); ++i) {
    const Grid expected = grid_from_range(p.ranges[i], p.ties.specs[i]);
    EXPECT_EQ(solved[i].grid.scale, expected.scale);
    EXPECT_EQ(solved[i].grid.zero_point, expected.zero_point);
    EXPECT_EQ(solved[i].steps, 1);
  }
}

TEST(SolveGrids, ScalesOfAComponentAreOddMultiplesOfOneUnit) {
  std::mt19937 random(11);
  for (int trial = 0; trial < 300; ++trial) {
    const Problem p = random_problem(random, 12);
    const auto solved = solve_grids(p.ties, p.ranges);
    for (int component = 0; component < 3; ++component) {
      float largest = 0;
      for (size_t i = 0; i < solved.size(); ++i) {
        if (p.ties.components[i] == component)
          largest = std::max(largest, scale_from_range(p.ranges[i], p.ties.specs[i]));
      }
      const float unit = std::max(largest / 1023.0f, kSmallestScale);
      for (size_t i = 0; i < solved.size(); ++i) {
        if (p.ties.components[i] != component) continue;
        const float wanted = scale_from_range(p.ranges[i], p.ties.specs[i]);
        const int32_t n = solved[i].steps;
        ASSERT_EQ(n % 2, 1);
        ASSERT_LE(n, 1025);
        ASSERT_EQ(solved[i].grid.scale, static_cast<float>(static_cast<double>(n) * unit));
        ASSERT_GE(solved[i].grid.scale, wanted);  // covers the range
        ASSERT_TRUE(n == 1 || static_cast<double>(n - 2) * unit < wanted) << "not the smallest";
        ASSERT_EQ(solved[i].grid.zero_point, zero_point_for(solved[i].grid.scale, p.ranges[i], p.ties.specs[i]));
        ASSERT_EQ(fake_quantize(0.0f, solved[i].grid), 0.0f);
      }
    }
  }
}

TEST(SolveGrids, EveryClassCoversItsRange) {
  std::mt19937 random(12);
  for (int trial = 0; trial < 300; ++trial) {
    const Problem p = random_problem(random, 10);
    const auto solved = solve_grids(p.ties, p.ranges);
    for (size_t i = 0; i < solved.size(); ++i) {
      const Grid& g = solved[i].grid;
      for (float end : {std::min(p.ranges[i].min, 0.0f), std::max(p.ranges[i].max, 0.0f)}) {
        ASSERT_LE(std::fabs(fake_quantize(end, g) - end), 0.501f * g.scale);
      }
    }
  }
}

TEST(SolveGrids, UnobservedClassesKeepScaleOneAndTieNothing) {
  Problem p;
  p.ties = {{activation_spec(8, false), activation_spec(8, true), activation_spec(8, false)}, {0, 0, 0}, {{0, 1, 2}}};
  p.ranges = {{-1, 1}, {}, {}};
  const auto solved = solve_grids(p.ties, p.ranges);
  EXPECT_EQ(solved[1].grid.scale, 1.0f);
  EXPECT_EQ(solved[1].grid.zero_point, 128);
  EXPECT_EQ(solved[2].grid.scale, 1.0f);
  EXPECT_EQ(solved[2].grid.zero_point, 0);
  EXPECT_EQ(solved[0].steps, 1025);  // alone in its component: f32(s / 1023) was rounded down, so 1023 units fall short
}

TEST(SolveGrids, DegenerateRangesInAComponent) {
  const GridSpec spec = activation_spec(8, false);
  const float most = std::numeric_limits<float>::max();
  for (Range other : {Range{0, 0}, Range{0, 1}, Range{-most, most}}) {
    const auto solved = solve_grids({{spec, spec}, {0, 0}, {}}, {{0, 0}, other});
    for (const SolvedGrid& s : solved) {
      EXPECT_TRUE(std::isfinite(s.grid.scale * 255.0f));
      EXPECT_GE(s.grid.scale, kSmallestScale);
      EXPECT_EQ(s.steps % 2, 1);
    }
  }
}

TEST(SolveGrids, ProductsGetTieFreeMultipliers) {
  std::mt19937 random(13);
  const GridSpec spec = activation_spec(8, false);
  for (int trial = 0; trial < 300; ++trial) {
    std::normal_distribution<float> normal;
    auto width = [&] { return std::exp2(normal(random)); };
    const std::vector<Range> ranges{{-width(), width()}, {-width(), width()}, {-width(), width()}, {-width(), width()}};
    // The second product takes the first one's output.
    const auto solved = solve_grids({{spec, spec, spec, spec}, {0, 0, -1, -1}, {{0, 1, 2}, {2, 1, 3}}}, ranges);
    for (auto [a, b, out] : {std::array{0, 1, 2}, std::array{2, 1, 3}}) {
      const double ratio = static_cast<double>(solved[a].grid.scale) * solved[b].grid.scale / solved[out].grid.scale;
      const Multiplier m = snap_multiplier(ratio);
      ASSERT_NEAR(ratio, m.exact(), 1e-7 * ratio);
      const float wanted = scale_from_range(ranges[out], spec);
      ASSERT_NEAR(solved[out].grid.scale, wanted, wanted * 5e-4);
    }
  }
}

TEST(Table, IsTheFunctionBetweenTwoGrids) {
  const Grid in = grid_from_range({-6, 6}, activation_spec(8, false)),
             out = grid_from_range({0, 1}, activation_spec(8, false));
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  const auto table = make_table(in, out, sigmoid);
  for (int32_t q = 0; q < 256; ++q) {
    const double y = sigmoid(static_cast<double>(in.scale) * (q - in.zero_point));
    ASSERT_NEAR(table[q], y / out.scale, 0.501);
  }
  const auto identity = make_table(in, in, [](double x) { return x; });
  for (int32_t q = 0; q < 256; ++q) ASSERT_EQ(identity[q], q);
  const auto nan = make_table(in, out, [](double) { return NAN; });
  for (int32_t q = 0; q < 256; ++q) ASSERT_EQ(nan[q], out.zero_point);
}

}  // namespace
}  // namespace octet
