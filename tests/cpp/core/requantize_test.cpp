// Rules 5, 6 and 10: activations as clamps, the accumulator limit, and the sum of two grids of one component.
#include "octet/core/requantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "octet/core/solver.h"

namespace octet {
namespace {

TEST(ActivationBounds, AreTheClampOfTheRealValue) {
  for (bool symmetric : {false, true}) {
    for (Range range : {Range{-1, 9}, Range{0, 4}, Range{-3, 6}, Range{-2, -1}, Range{0, 0}, Range{-50, 50}}) {
      const Grid g = grid_from_range(range, activation_spec(8, symmetric));
      const CodeBounds none = activation_bounds(Activation::kIdentity, g);
      EXPECT_EQ(none.lo, g.qmin);
      EXPECT_EQ(none.hi, g.qmax);
      for (int32_t q = g.qmin; q <= g.qmax; ++q) {
        const float r = dequantize(q, g);
        const CodeBounds relu = activation_bounds(Activation::kRelu, g);
        ASSERT_EQ(std::clamp(q, relu.lo, relu.hi), quantize(std::max(r, 0.0f), g));
        const CodeBounds relu6 = activation_bounds(Activation::kRelu6, g);
        ASSERT_EQ(std::clamp(q, relu6.lo, relu6.hi), quantize(std::min(std::max(r, 0.0f), 6.0f), g));
      }
    }
  }
}

TEST(AccumulatorLimit, LeavesRoomForTheBias) {
  EXPECT_LE(kAccumulatorLimit + kBiasLimit, int64_t{std::numeric_limits<int32_t>::max()});
  EXPECT_TRUE(accumulator_fits(33000, 255, 127));
  EXPECT_FALSE(accumulator_fits(33200, 255, 127));
  EXPECT_TRUE(accumulator_fits((int64_t{1} << 30) - (int64_t{1} << 21) - 1, 1, 1));
  EXPECT_FALSE(accumulator_fits((int64_t{1} << 30) - (int64_t{1} << 21), 1, 1));
}

struct Sum {
  SolvedGrid a, b, c;
  int sign;
};

Sum random_sum(std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<Range> ranges;
  for (int i = 0; i < 3; ++i) {
    const float width = std::exp2(normal(random) * 2.0f);
    ranges.push_back({-width * std::fabs(normal(random)), width});
  }
  const GridSpec spec = activation_spec(8, false);
  const auto solved = solve_grids({{spec, spec, spec}, {0, 0, 0}, {}}, ranges);
  return {solved[0], solved[1], solved[2], random() % 2 ? 1 : -1};
}

// (a*na +- b*nb) / nc rounded, in exact integers; nc is odd, so there is no tie to decide.
int32_t exact_sum(int32_t a, int32_t b, const Sum& s) {
  const int64_t numerator = int64_t{a} * s.a.steps + s.sign * int64_t{b} * s.b.steps;
  const int64_t n = s.c.steps;
  const int64_t rounded = static_cast<int64_t>(std::floor(static_cast<long double>(2 * numerator + n) / (2 * n)));
  return static_cast<int32_t>(std::clamp<int64_t>(rounded + s.c.grid.zero_point, 0, 255));
}

int32_t sum_in_double(int32_t a, int32_t b, const Sum& s) {
  const double real = static_cast<double>(s.a.grid.scale) * a + s.sign * (static_cast<double>(s.b.grid.scale) * b);
  const double y = std::nearbyint(real / s.c.grid.scale) + s.c.grid.zero_point;
  return static_cast<int32_t>(std::clamp(y, 0.0, 255.0));
}

// ONNX Runtime's QDQ form: dequantize, add, quantize, each in float32.
int32_t sum_of_dequantized(int32_t a, int32_t b, const Sum& s) {
  const float real =
      s.a.grid.scale * static_cast<float>(a) + static_cast<float>(s.sign) * (s.b.grid.scale * static_cast<float>(b));
  return quantize(real, s.c.grid);
}

// XNNPACK's qs8-vadd: both ratios as 20-bit fixed point on one shift, rounded half up.
int32_t sum_in_20_bits(int32_t a, int32_t b, const Sum& s) {
  const float ratio_a = s.a.grid.scale / s.c.grid.scale, ratio_b = s.b.grid.scale / s.c.grid.scale;
  int exponent = 0;
  std::frexp(std::max(ratio_a, ratio_b), &exponent);
  const int shift = 20 - exponent;
  const auto multiplier_a = static_cast<int32_t>(std::lrint(std::ldexp(ratio_a, shift)));
  const auto multiplier_b = s.sign * static_cast<int32_t>(std::lrint(std::ldexp(ratio_b, shift)));
  const int32_t acc = (1 << (shift - 1)) + a * multiplier_a + b * multiplier_b;
  return std::clamp((acc >> shift) + s.c.grid.zero_point, 0, 255);
}

TEST(AddCodes, EveryRuntimesFormulaAgrees) {
  std::mt19937 random(7);
  for (int i = 0; i < 60; ++i) {
    const Sum s = random_sum(random);
    const float nc = static_cast<float>(s.c.steps);
    const float ratio_a = static_cast<float>(s.a.steps) / nc, ratio_b = static_cast<float>(s.sign * s.b.steps) / nc;
    const float largest = std::max(ratio_a, std::fabs(ratio_b)), smallest = std::min(ratio_a, std::fabs(ratio_b));
    const bool xnnpack_takes_it = largest < 256.0f && smallest >= 0x1p-10f;
    for (int32_t qa = 0; qa < 256; ++qa) {
      for (int32_t qb = 0; qb < 256; ++qb) {
        const int32_t a = qa - s.a.grid.zero_point, b = qb - s.b.grid.zero_point;
        const int32_t expected = exact_sum(a, b, s);
        ASSERT_EQ(add_codes(a, ratio_a, b, ratio_b, s.c.grid.zero_point, {0, 255}), expected) << qa << ' ' << qb;
        ASSERT_EQ(sum_in_double(a, b, s), expected);
        ASSERT_EQ(sum_of_dequantized(a, b, s), expected);
        if (xnnpack_takes_it) {
          ASSERT_EQ(sum_in_20_bits(a, b, s), expected);
        }
      }
    }
  }
}

}  // namespace
}  // namespace octet
