// Rules 1 to 3 against references in exact integer and long double arithmetic.
#include "octet/core/grid.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace octet {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Halves to even, by integer arithmetic on the truncated part. |x| < 2^40.
int64_t reference_round(long double x) {
  const auto down = static_cast<int64_t>(std::floor(x));
  const long double rest = x - static_cast<long double>(down);
  if (rest != 0.5L) return rest < 0.5L ? down : down + 1;
  return down % 2 == 0 ? down : down + 1;
}

int32_t reference_quantize(float x, const Grid& g) {
  const float steps = x / g.scale;  // the one float32 rounding rule 1 prescribes
  if (std::fabs(steps) > 1e9f) return steps > 0 ? g.qmax : g.qmin;
  return static_cast<int32_t>(std::clamp<int64_t>(reference_round(steps) + g.zero_point, g.qmin, g.qmax));
}

const Grid kGrids[] = {{0.1f, 7, 0, 255},           {0.03f, 128, 1, 255},    {0.5f, 0, 0, 255},
                       {1e-3f, 255, 0, 255},        {0.25f, 0, -127, 127},   {3.0f, 5, 0, 15},
                       {kSmallestScale, 3, 0, 255}, {kLargestScale, 2, 0, 3}};

TEST(Rounding, HalvesGoToEven) {
  for (int i = -1000; i <= 1000; ++i) {
    const float half = static_cast<float>(i) + 0.5f;
    EXPECT_EQ(static_cast<int64_t>(round_even(half)), reference_round(half));
    EXPECT_EQ(round_and_clamp(half, 0, -5000, 5000), reference_round(half));
  }
}

TEST(Rounding, ClampingFirstIsClampingLast) {
  for (int zero_point : {-3, 0, 128, 255})
    for (int lo : {0, 1, 128})
      for (int hi : {128, 254, 255})
        for (float x = -600.0f; x <= 600.0f; x += 0.25f)
          ASSERT_EQ(round_and_clamp(x, zero_point, lo, hi),
                    std::clamp<int64_t>(reference_round(x) + zero_point, lo, hi));
  EXPECT_EQ(round_and_clamp(kInf, 10, 0, 255), 255);
  EXPECT_EQ(round_and_clamp(-kInf, 10, 0, 255), 0);
  EXPECT_EQ(round_and_clamp(3e38f, -10, 0, 255), 255);
}

TEST(Quantize, EveryHalfStepAndItsNeighbours) {
  for (const Grid& g : kGrids) {
    for (int half_step = -600; half_step <= 600; ++half_step) {
      const float centre = g.scale * 0.5f * static_cast<float>(half_step);
      for (float x : {std::nextafter(centre, -kInf), centre, std::nextafter(centre, kInf)}) {
        ASSERT_EQ(quantize(x, g), reference_quantize(x, g)) << x << " on scale " << g.scale;
      }
    }
  }
}

TEST(Quantize, NonFinite) {
  for (const Grid& g : kGrids) {
    EXPECT_EQ(quantize(kInf, g), g.qmax);
    EXPECT_EQ(quantize(-kInf, g), g.qmin);
    EXPECT_EQ(quantize(kNan, g), g.zero_point);
    EXPECT_TRUE(std::isnan(fake_quantize(kNan, g)));
    EXPECT_FALSE(passes_gradient(kNan, g));
    EXPECT_FALSE(passes_gradient(kInf, g));
    EXPECT_FALSE(passes_gradient(-kInf, g));
  }
}

TEST(Quantize, EveryCodeComesBack) {
  for (const Grid& g : kGrids)
    for (int32_t q = g.qmin; q <= g.qmax; ++q) ASSERT_EQ(quantize(dequantize(q, g), g), q);
}

TEST(FakeQuantize, IsDequantizeOfQuantizeAndIdempotent) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (const Grid& g : kGrids) {
    for (int i = 0; i < 20000; ++i) {
      const float x = normal(random) * g.scale * 100.0f;
      const float y = fake_quantize(x, g);
      ASSERT_EQ(y, dequantize(quantize(x, g), g));
      ASSERT_EQ(y, fake_quantize(y, g));
      if (passes_gradient(x, g)) {
        ASSERT_LE(std::fabs(x - y), 0.5f * g.scale * 1.00001f);
      }
    }
    EXPECT_EQ(fake_quantize(0.0f, g), 0.0f);
  }
}

TEST(FakeQuantize, GradientPassesWhereNothingIsClamped) {
  for (const Grid& g : kGrids) {
    for (int half_step = -1100; half_step <= 1100; ++half_step) {
      const float x = g.scale * 0.5f * static_cast<float>(half_step);
      const int64_t code = reference_round(x / g.scale) + g.zero_point;
      ASSERT_EQ(passes_gradient(x, g), code >= g.qmin && code <= g.qmax);
    }
  }
}

TEST(RangeToGrid, AffineCoversTheRangeAndHoldsZero) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (int i = 0; i < 100000; ++i) {
    const float a = normal(random) * std::exp2(normal(random) * 8), b = normal(random) * std::exp2(normal(random) * 8);
    const Range range{std::min(a, b), std::max(a, b)};
    const GridSpec spec = activation_spec(2 + i % 7, false);
    const Grid g = grid_from_range(range, spec);
    const float low = std::min(range.min, 0.0f), high = std::max(range.max, 0.0f);
    ASSERT_EQ(g.scale, (high - low) / static_cast<float>(spec.qmax - spec.qmin));
    ASSERT_EQ(g.zero_point,
              std::clamp<int64_t>(reference_round(static_cast<float>(spec.qmin) - low / g.scale), 0, spec.qmax));
    ASSERT_EQ(dequantize(g.zero_point, g), 0.0f);
    // The zero point's rounding may push either end out by half a step, never by more.
    ASSERT_LE(std::fabs(fake_quantize(high, g) - high), 0.501f * g.scale);
    ASSERT_LE(std::fabs(fake_quantize(low, g) - low), 0.501f * g.scale);
  }
}

TEST(RangeToGrid, SymmetricHasTheMiddleZeroPoint) {
  const Grid activation = grid_from_range({-1.0f, 3.0f}, activation_spec(8, true));
  EXPECT_EQ(activation.zero_point, 128);
  EXPECT_EQ(activation.qmin, 1);
  EXPECT_EQ(activation.scale, 3.0f / 127.0f);
  const Grid weight = grid_from_range({-4.0f, 3.0f}, weight_spec(8));
  EXPECT_EQ(weight.zero_point, 0);
  EXPECT_EQ(weight.qmin, -127);
  EXPECT_EQ(weight.qmax, 127);
  EXPECT_EQ(weight.scale, 4.0f / 127.0f);
  const Grid narrow = grid_from_range({-4.0f, 3.0f}, weight_spec(4));
  EXPECT_EQ(narrow.qmin, -7);
  EXPECT_EQ(narrow.scale, 4.0f / 7.0f);
  const Grid two = grid_from_range({-4.0f, 3.0f}, weight_spec(2));
  EXPECT_EQ(two.qmin, -1);
  EXPECT_EQ(two.qmax, 1);
}

TEST(RangeToGrid, DegenerateRangesGiveUsableScales) {
  const float most = std::numeric_limits<float>::max(), least = std::numeric_limits<float>::denorm_min();
  for (bool symmetric : {false, true}) {
    for (Range range : {Range{0, 0}, Range{-0.0f, 0.0f}, Range{least, least}, Range{-least, least}, Range{-most, most},
                        Range{most, most}, Range{-most, -most}, Range{0, 1e-30f}, Range{5, 5}, Range{-5, -5}}) {
      const Grid g = grid_from_range(range, activation_spec(8, symmetric));
      EXPECT_TRUE(std::isfinite(g.scale));
      EXPECT_GE(g.scale, kSmallestScale);
      EXPECT_LE(g.scale, kLargestScale);
      EXPECT_GE(g.zero_point, g.qmin);
      EXPECT_LE(g.zero_point, g.qmax);
      EXPECT_TRUE(std::isfinite(dequantize(g.qmax, g)));
      EXPECT_TRUE(std::isfinite(dequantize(g.qmin, g)));
    }
  }
}

TEST(Range, EmptyAndFinite) {
  EXPECT_TRUE(Range{}.empty());
  EXPECT_FALSE((Range{0, 0}).empty());
  EXPECT_TRUE((Range{kNan, 1}).empty());
  EXPECT_FALSE((Range{-kInf, 1}).finite());
  EXPECT_FALSE((Range{0, kNan}).finite());
}

}  // namespace
}  // namespace octet
