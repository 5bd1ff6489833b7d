// Rules 6 and 7: the tie-free multipliers, and the claim that carries the whole contract: with them, the requantization
// formulas of different runtimes give the same integer for every accumulator, near-ties included.
#include "octet/core/multiplier.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <tuple>
#include <vector>

#include "octet/core/requantize.h"

namespace octet {
namespace {

constexpr CodeBounds kBounds{0, 255};

// acc * p/Q rounded half to even, in exact integers.
int64_t exact_round(int64_t acc, const Multiplier& m) {
  const __int128 twice = static_cast<__int128>(2) * acc * m.numerator;
  const __int128 divisor = static_cast<__int128>(2) * m.denominator;
  __int128 floor = (twice + m.denominator) / divisor;  // floor(x + 1/2); ties cannot occur, see the test below
  if ((twice + m.denominator) % divisor < 0) --floor;
  return static_cast<int64_t>(floor);
}

int32_t clamp_code(int64_t value, int32_t zero_point) {
  return static_cast<int32_t>(std::clamp<int64_t>(value + zero_point, kBounds.lo, kBounds.hi));
}

// gemmlowp and TFLite's single-rounding form: a 31-bit mantissa and a shift, rounded half up.
int32_t fixed_point(int32_t acc, float multiplier, int32_t zero_point) {
  int exponent = 0;
  auto mantissa = static_cast<int64_t>(std::llround(std::frexp(static_cast<double>(multiplier), &exponent) * 0x1p31));
  const int shift = 31 - exponent;
  return clamp_code((acc * mantissa + (int64_t{1} << (shift - 1))) >> shift, zero_point);
}

// oneDNN-like: the zero point is added in float before the one rounding.
int32_t zero_point_before_rounding(int32_t acc, float multiplier, int32_t zero_point) {
  const float y = static_cast<float>(acc) * multiplier + static_cast<float>(zero_point);
  return static_cast<int32_t>(std::nearbyint(std::clamp(y, 0.0f, 255.0f)));
}

// XNNPACK's magic bias: clamp, add 1.5 * 2^23, read the integer from the mantissa.
int32_t magic(int32_t acc, float multiplier, int32_t zero_point) {
  const float low = static_cast<float>(-zero_point), high = static_cast<float>(255 - zero_point);
  const float y = std::min(std::max(static_cast<float>(acc) * multiplier, low), high) + 12582912.0f;
  return std::bit_cast<int32_t>(y) - std::bit_cast<int32_t>(12582912.0f) + zero_point;
}

int32_t in_double(int32_t acc, float multiplier, int32_t zero_point) {
  const double y = std::nearbyint(static_cast<double>(acc) * multiplier);
  return clamp_code(static_cast<int64_t>(std::clamp(y, -1e9, 1e9)), zero_point);
}

// A runtime that fuses the product with the addition of the zero point.
int32_t fused(int32_t acc, float multiplier, int32_t zero_point) {
  const float y = std::fma(static_cast<float>(acc), multiplier, static_cast<float>(zero_point));
  return static_cast<int32_t>(std::nearbyint(std::clamp(y, 0.0f, 255.0f)));
}

double random_ideal(std::mt19937_64& random) {
  return std::exp2(std::uniform_real_distribution<double>(-11.9, 3.0)(random));
}

// Rule 7 as it is written.
Multiplier by_trying_all(double ideal) {
  Multiplier best;
  double best_error = HUGE_VAL;
  for (int32_t q = 1; q <= kLargestDenominator; q += 2) {
    const double p = std::nearbyint(ideal * q), error = std::fabs(ideal - p / q);
    if (error < best_error) {
      best_error = error;
      best = {static_cast<int64_t>(p), q};
    }
  }
  return best;
}

TEST(SnapMultiplier, IsTheBestOfAllDenominators) {
  std::mt19937_64 random(4);
  const auto below = [&](uint64_t n) { return static_cast<double>(1 + random() % n); };
  std::vector<double> ideals{0.5, 1.0, 1.5, 2.0, 512.0, kSmallestMultiplier, std::nextafter(kSmallestMultiplier, 1.0)};
  for (int i = 0; i < 2000; ++i) {
    ideals.push_back(random_ideal(random));
    // Fractions, even denominators too, what lies next to them, and between two of them.
    const double fraction = below(9000) / below(4200), other = below(9000) / below(4200);
    for (const double f : {fraction, std::nextafter(fraction, 0.0), std::nextafter(fraction, 99.0), fraction + 1e-12,
                           (fraction + other) / 2}) {
      ideals.push_back(f);
    }
  }
  for (const double ideal : ideals) {
    if (ideal < kSmallestMultiplier || ideal > kLargestMultiplier) continue;
    const Multiplier expected = by_trying_all(ideal), m = snap_multiplier(ideal);
    ASSERT_EQ(m.numerator, expected.numerator) << ideal;
    ASSERT_EQ(m.denominator, expected.denominator) << ideal;
  }
}

TEST(SnapMultiplier, NearestOddFraction) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 300; ++i) {
    const double ideal = random_ideal(random);
    const Multiplier m = snap_multiplier(ideal);
    ASSERT_EQ(m.denominator % 2, 1);
    ASSERT_LE(m.denominator, kLargestDenominator);
    ASSERT_GE(m.numerator, 1);
    const auto exact = static_cast<long double>(ideal);
    const long double error = std::fabs(exact - static_cast<long double>(m.numerator) / m.denominator);
    for (int q = 1; q <= kLargestDenominator; q += 2) {
      const long double p = std::round(exact * q);
      ASSERT_LE(error, std::fabs(exact - p / q) + 1e-15L * exact) << p << '/' << q << " is nearer";
    }
  }
}

TEST(SnapMultiplier, SmallestDenominatorWins) {
  for (auto [ideal, p, q] :
       {std::tuple{0.2, 1, 5}, {1.0, 1, 1}, {3.0, 3, 1}, {6.0 / 9.0, 2, 3}, {1.0 / 4095, 1, 4095}}) {
    const Multiplier m = snap_multiplier(ideal);
    EXPECT_EQ(m.numerator, p);
    EXPECT_EQ(m.denominator, q);
    EXPECT_EQ(m.value(), static_cast<float>(ideal));
  }
}

TEST(SnapMultiplier, MovesByAtMostHalfAPerMille) {
  std::mt19937_64 random(4);
  for (int i = 0; i < 5000; ++i) {
    const double ideal = random_ideal(random);
    if (ideal < kSmallestMultiplier) continue;
    // Near 1/4095 neighbouring fractions are 1/4093 and 1/4095: that is the bound of the relative move.
    ASSERT_LE(std::fabs(snap_multiplier(ideal).exact() - ideal) / ideal, 5e-4);
  }
}

TEST(SnapMultiplier, LargeIdealsAreClamped) {
  for (double ideal : {512.0, 513.7, 1e20, 1e300, HUGE_VAL}) {
    const Multiplier m = snap_multiplier(ideal);
    EXPECT_EQ(m.exact(), kLargestMultiplier);
    EXPECT_EQ(requantize(1, m.value(), 0, kBounds), 255);
    EXPECT_EQ(requantize(0, m.value(), 9, kBounds), 9);
  }
}

TEST(SnapMultiplier, NoAccumulatorIsNearATie) {
  std::mt19937_64 random(5);
  for (int i = 0; i < 200; ++i) {
    const Multiplier m = snap_multiplier(random_ideal(random));
    for (int64_t acc = 0; acc < 2 * m.denominator; ++acc) {  // the fractional part has period Q
      const int64_t twice = 2 * acc * m.numerator % (2 * m.denominator);
      ASSERT_GE(std::abs(twice - m.denominator), 1);  // distance from the tie, in 1/(2Q)
    }
  }
}

// The accumulators nearest to a tie, over the whole range of output codes and beyond it.
std::vector<int32_t> near_ties(const Multiplier& m) {
  std::vector<int32_t> accumulators;
  for (int code = -260; code <= 260; ++code) {
    const double tie = (code + 0.5) * m.denominator / static_cast<double>(m.numerator);
    for (int d = -1; d <= 2; ++d) accumulators.push_back(static_cast<int32_t>(std::floor(tie)) + d);
  }
  return accumulators;
}

TEST(Requantize, EveryRuntimesFormulaAgrees) {
  std::mt19937_64 random(6);
  int64_t compared = 0;
  for (int i = 0; i < 1500; ++i) {
    const Multiplier m = snap_multiplier(std::max(random_ideal(random), kSmallestMultiplier));
    const float value = m.value();
    const int32_t zero_point = std::array{0, 128, 255, 37}[i % 4];
    for (int32_t acc : near_ties(m)) {
      const int32_t expected = clamp_code(exact_round(acc, m), zero_point);
      ASSERT_EQ(requantize(acc, value, zero_point, kBounds), expected)
          << acc << " * " << m.numerator << '/' << m.denominator;
      ASSERT_EQ(fixed_point(acc, value, zero_point), expected);
      ASSERT_EQ(zero_point_before_rounding(acc, value, zero_point), expected);
      ASSERT_EQ(magic(acc, value, zero_point), expected);
      ASSERT_EQ(in_double(acc, value, zero_point), expected);
      ASSERT_EQ(fused(acc, value, zero_point), expected);
      ++compared;
    }
  }
  EXPECT_GT(compared, 3'000'000);
}

// Where multiplying accumulators in the worst place matters most: the largest the rules allow.
TEST(Requantize, LargestAccumulators) {
  for (int32_t acc :
       {kBiasLimit, -kBiasLimit, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()}) {
    const float smallest = static_cast<float>(kSmallestMultiplier);
    EXPECT_EQ(requantize(acc, smallest, 128, kBounds), acc > 0 ? 255 : 0);
    EXPECT_EQ(requantize(acc, static_cast<float>(kLargestMultiplier), 128, kBounds), acc > 0 ? 255 : 0);
  }
}

}  // namespace
}  // namespace octet
