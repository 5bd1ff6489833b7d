// Rules 4, 5 and 7 together: folding batch norm into a channel's integer parameters.
#include "octet/core/fold.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace octet {
namespace {

Grid weight_grid(float largest) { return grid_from_range({-largest, largest}, weight_spec(8)); }

TEST(BatchNormAffine, IsTheRunningStatisticsFormula) {
  std::mt19937 random(8);
  std::normal_distribution<double> normal;
  for (int i = 0; i < 1000; ++i) {
    const double gamma = normal(random), beta = normal(random), mean = normal(random);
    const double variance = std::exp(normal(random));
    const ChannelAffine affine = batch_norm_affine(gamma, beta, mean, variance, 1e-5);
    const double x = normal(random);
    const double expected = (x - mean) / std::sqrt(variance + 1e-5) * gamma + beta;
    EXPECT_NEAR(affine.gain * x + affine.shift, expected, 1e-12 * (1 + std::fabs(affine.gain)));
  }
}

TEST(FoldChannel, KeepsTheRealValuesOfWeightsAndBias) {
  std::mt19937 random(9);
  std::normal_distribution<float> normal;
  for (int i = 0; i < 20000; ++i) {
    const Grid grid = weight_grid(std::exp2(normal(random)));
    const ChannelAffine affine{normal(random), normal(random)};
    const float sx = std::exp2(normal(random) - 5), sy = std::exp2(normal(random) - 5);
    const double bias = normal(random);
    const FoldedChannel channel = fold_channel(grid.scale, bias, affine, sx, sy);
    const double ideal = static_cast<double>(sx) * grid.scale * std::fabs(affine.gain) / sy;
    ASSERT_EQ(channel.raised, ideal < 1.0 / 4095);
    // sw' follows the multiplier: m = sx * sw' / sy.
    ASSERT_NEAR(sx * channel.weight_scale / sy, channel.multiplier, channel.multiplier * 1e-7);
    const double real_bias = bias * affine.gain + affine.shift;
    const double bias_step = sx * channel.weight_scale;
    ASSERT_LE(std::fabs(channel.bias * bias_step - real_bias), 0.5001 * bias_step);
    const double unit = channel.raised ? bias_step : sx * grid.scale * std::fabs(affine.gain);
    const ChannelAffine exact = channel.unsnapped;
    for (const double acc : {-20000.0, 0.0, 777.0}) {
      const double value = exact.gain * (acc + channel.bias) * channel.multiplier + exact.shift;
      ASSERT_NEAR(value, unit * acc + real_bias, 1e-6 * (std::fabs(unit * acc) + std::fabs(real_bias)));
    }
    const float w = grid.scale * normal(random) * 40;
    const int32_t code = fold_weight(w, grid, affine.gain, channel);
    ASSERT_LE(std::abs(code), 127);
    if (std::fabs(w) < grid.scale * 126) {
      const double step = channel.weight_scale;
      const double moved = std::fabs(w * affine.gain) * 5e-4;  // the multiplier's snap
      ASSERT_LE(std::fabs(code * step - w * affine.gain), 0.501 * step + moved);
    }
  }
}

TEST(FoldWeight, CommutesWithTheGain) {
  const Grid grid = weight_grid(0.7f);
  for (float gain : {1.0f, -1.0f, 0.3f, -2.5f}) {
    const FoldedChannel channel = fold_channel(grid.scale, 0, {gain, 0}, 0.02f, 0.05f);
    ASSERT_FALSE(channel.raised);
    for (int i = -1000; i <= 1000; ++i) {
      const float w = 0.0007f * static_cast<float>(i);
      ASSERT_EQ(fold_weight(w, grid, gain, channel), (gain < 0 ? -1 : 1) * quantize(w, grid));
    }
  }
}

TEST(FoldChannel, ZeroGainIsAConstantChannel) {
  const Grid grid = weight_grid(1.0f);
  const FoldedChannel channel = fold_channel(grid.scale, 3.0, {0.0, 1.5}, 0.02f, 0.05f);
  EXPECT_TRUE(channel.raised);
  EXPECT_EQ(channel.multiplier, 1.0f / 4095);
  EXPECT_EQ(fold_weight(0.9f, grid, 0.0, channel), 0);
  EXPECT_EQ(requantize(channel.bias, channel.multiplier, 10, {0, 255}), 10 + 30);  // 1.5 / 0.05
}

TEST(FoldChannel, TinyGainRaisesTheMultiplierAndShrinksTheCodes) {
  const Grid grid = weight_grid(1.0f);
  const double gain = 1e-4;
  const FoldedChannel channel = fold_channel(grid.scale, 0, {gain, 0}, 0.02f, 0.05f);
  ASSERT_TRUE(channel.raised);
  const int32_t code = fold_weight(1.0f, grid, gain, channel);
  EXPECT_EQ(code, std::lrint(gain / channel.weight_scale));
  EXPECT_LT(std::abs(code), 127);
}

TEST(FoldChannel, ExtremesStayDefined) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (double gain : {0.0, 1e-300, 1e30, -1e300, static_cast<double>(inf), static_cast<double>(nan)}) {
    for (double shift : {0.0, 1e30, -1e300, static_cast<double>(inf), static_cast<double>(nan)}) {
      for (float sx : {kSmallestScale, 0.1f, kLargestScale}) {
        for (float sy : {kSmallestScale, 0.1f, kLargestScale}) {
          const FoldedChannel channel = fold_channel(0.01f, 1.0, {gain, shift}, sx, sy);
          EXPECT_TRUE(std::isfinite(channel.multiplier));
          EXPECT_GE(channel.multiplier, static_cast<float>(kSmallestMultiplier));
          EXPECT_LE(std::abs(int64_t{channel.bias}), int64_t{kBiasLimit});
          const int32_t code = fold_weight(0.5f, weight_grid(1.0f), gain, channel);
          EXPECT_LE(std::abs(code), 127);
        }
      }
    }
  }
}

TEST(FoldChannel, HugeBiasSaturatesTheOutput) {
  for (double shift : {1e6, -1e6}) {
    const FoldedChannel channel = fold_channel(0.01f, 0, {1.0, shift}, 1e-4f, 0.01f);
    EXPECT_EQ(std::abs(channel.bias), kBiasLimit);
    EXPECT_EQ(requantize(channel.bias, channel.multiplier, 100, {0, 255}), shift > 0 ? 255 : 0);
  }
}

}  // namespace
}  // namespace octet
