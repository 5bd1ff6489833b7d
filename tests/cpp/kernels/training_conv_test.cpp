// The convolution of a training block against wide integers, its statistics against float64, on every ISA.
#include "octet/kernels/training_conv.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "octet/kernels/dispatch.h"
#include "reference.h"

namespace octet::kernels {
namespace {

ConvShape shape2d(int64_t batch, int64_t in, int64_t out, int64_t size, int64_t kernel, int64_t stride,
                  int64_t groups) {
  ConvShape s{.batch = batch, .groups = groups, .in_channels = in, .out_channels = out};
  s.in = {1, size, size};
  s.kernel = {1, kernel, kernel};
  s.stride = {1, stride, stride};
  s.padding = {0, kernel / 2, kernel / 2};
  s.out = conv_output_size(s);
  return s;
}

// Dense, pointwise, depthwise and grouped; a few sums and more than fit one piece of the batch.
const ConvShape kShapes[] = {shape2d(1, 1, 1, 3, 1, 1, 1),   shape2d(3, 3, 16, 17, 3, 2, 1),
                             shape2d(2, 24, 40, 9, 1, 1, 1), shape2d(5, 20, 20, 11, 3, 1, 20),
                             shape2d(2, 32, 16, 8, 3, 1, 4), shape2d(23, 8, 33, 33, 1, 1, 1),
                             shape2d(3, 8, 64, 60, 3, 1, 1), shape2d(9, 48, 48, 40, 3, 1, 48)};

struct Case {
  explicit Case(const ConvShape& s, unsigned seed) : shape(s), random(seed) {
    x = integers<uint8_t>(s.batch * s.in_pixels() * s.in_channels, 0, 255);
    w = integers<int8_t>(s.out_channels * s.in_per_group() * s.taps(), -127, 127);
    zero_point = std::uniform_int_distribution<int32_t>(0, 255)(random);
    scale.resize(s.out_channels);
    for (float& m : scale) m = std::uniform_real_distribution<float>(1e-4f, 1e-2f)(random);
  }

  template <class T>
  std::vector<T> integers(int64_t n, int low, int high) {
    std::vector<T> values(n);
    for (T& v : values) v = static_cast<T>(std::uniform_int_distribution<int>(low, high)(random));
    return values;
  }

  std::vector<int32_t> bias() {
    std::vector<int32_t> values(shape.out_channels);
    for (int32_t& b : values) b = std::uniform_int_distribution<int32_t>(-30000, 30000)(random);
    return values;
  }

  void run(ParallelFor parallel) {
    const int64_t channels = shape.out_channels;
    y.assign(shape.batch * shape.pixels() * channels, -1.0f);
    for (auto* v : {&mean, &variance, &min, &max}) v->assign(channels, -1.0f);
    const PackedConv packed(w.data(), shape);
    conv_with_statistics(packed, shape, x.data(), zero_point, scale.data(), y.data(),
                         {mean.data(), variance.data(), min.data(), max.data()}, parallel);
  }

  ConvShape shape;
  std::mt19937 random;
  std::vector<uint8_t> x;
  std::vector<int8_t> w;
  int32_t zero_point;
  std::vector<float> scale, y, mean, variance, min, max;
};

// Ranges one grain at a time, last first: what nothing may depend on.
void backwards(int64_t count, int64_t grain, RangeBody body) {
  for (int64_t begin = (count - 1) / grain * grain; count > 0 && begin >= 0; begin -= grain) {
    body(begin, std::min(count, begin + grain));
  }
}

class TrainingConv : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override { force_isa(isa_name(GetParam())); }
  void TearDown() override { force_isa(""); }
};

INSTANTIATE_TEST_SUITE_P(AllIsas, TrainingConv, testing::ValuesIn(available_isas().begin(), available_isas().end()),
                         [](const auto& info) { return std::string(isa_name(info.param)); });

TEST_P(TrainingConv, SumsAreExact) {
  for (const ConvShape& shape : kShapes) {
    Case c(shape, 1);
    c.run(serial);
    const std::vector<int64_t> sums = reference::sums(shape, c.x, c.w, c.zero_point);
    for (size_t i = 0; i < sums.size(); ++i) {
      ASSERT_EQ(c.y[i], static_cast<float>(sums[i]) * c.scale[i % shape.out_channels]) << i;
    }
  }
}

TEST_P(TrainingConv, StatisticsMatchFloat64) {
  for (const ConvShape& shape : kShapes) {
    Case c(shape, 2);
    c.run(serial);
    const int64_t channels = shape.out_channels, n = shape.batch * shape.pixels();
    for (int64_t o = 0; o < channels; ++o) {
      double sum = 0, squares = 0;
      float low = c.y[o], high = c.y[o];
      for (int64_t i = 0; i < n; ++i) {
        const float v = c.y[i * channels + o];
        sum += v;
        low = std::min(low, v);
        high = std::max(high, v);
      }
      for (int64_t i = 0; i < n; ++i) squares += std::pow(c.y[i * channels + o] - sum / n, 2);
      const double deviation = std::sqrt(squares / n);
      EXPECT_NEAR(c.mean[o], sum / n, 1e-5 * (deviation + std::fabs(sum / n)));
      EXPECT_NEAR(c.variance[o], squares / n, 1e-5 * squares / n);
      EXPECT_EQ(c.min[o], low);
      EXPECT_EQ(c.max[o], high);
    }
  }
}

TEST_P(TrainingConv, TheSameBitsForEverySplitAndIsa) {
  for (const ConvShape& shape : kShapes) {
    Case c(shape, 3), other(shape, 3);
    c.run(serial);
    force_isa("generic");
    other.run(backwards);
    force_isa(isa_name(GetParam()));
    EXPECT_EQ(c.y, other.y);
    EXPECT_EQ(c.mean, other.mean);
    EXPECT_EQ(c.variance, other.variance);
    EXPECT_EQ(c.min, other.min);
    EXPECT_EQ(c.max, other.max);
  }
}

TEST_P(TrainingConv, TailsOfProductsAreTheIntegerModels) {
  for (const ConvShape& shape : kShapes) {
    for (const Activation activation : {Activation::kIdentity, Activation::kRelu, Activation::kRelu6}) {
      Case c(shape, 6);
      const int64_t channels = shape.out_channels, n = shape.batch * shape.pixels() * channels;
      const std::vector<int32_t> bias = c.bias();
      std::vector<float> gain(channels, 0.051f), shift(channels, 0.01f);
      const Grid grid{0.05f, activation == Activation::kIdentity ? 120 : 0, 0, 255};
      const Tail tail{gain.data(), shift.data(), activation, grid};
      const PackedConv packed(c.w.data(), shape);
      std::vector<float> y(n);
      std::vector<uint8_t> codes(n), pass(tail_pass_bytes({n, 1, 1}));
      ConvEpilogue epilogue;
      epilogue.bias = bias.data();
      epilogue.multiplier = c.scale.data();
      epilogue.x_zero_point = c.zero_point;
      const Range range =
          conv_with_tail(packed, shape, c.x.data(), epilogue, tail, {y.data(), codes.data(), pass.data()}, backwards);
      const std::vector<int64_t> sums = reference::sums(shape, c.x, c.w, c.zero_point);
      Range expected;
      const float low = activation == Activation::kIdentity ? -INFINITY : 0.0f;
      const float high = activation == Activation::kRelu6 ? 6.0f : INFINITY;
      for (int64_t i = 0; i < n; ++i) {
        const int64_t o = i % channels;
        const auto acc = static_cast<int32_t>(sums[i]) + bias[o];
        const int32_t code = requantize(acc, c.scale[o], grid.zero_point, activation_bounds(activation, grid));
        ASSERT_EQ(codes[i], code) << i;
        ASSERT_EQ(y[i], dequantize(code, grid)) << i;
        const float v = static_cast<float>(acc) * c.scale[o] * gain[o] + shift[o];
        const float steps = std::nearbyint(std::clamp(v, low, high) / grid.scale) + static_cast<float>(grid.zero_point);
        ASSERT_EQ(pass[i / 8] >> i % 8 & 1, low < v && v < high && 0 <= steps && steps <= 255) << i;
        expected.min = std::min(expected.min, std::clamp(v, low, high));
        expected.max = std::max(expected.max, std::clamp(v, low, high));
      }
      EXPECT_EQ(range.min, expected.min);
      EXPECT_EQ(range.max, expected.max);
      gain[channels - 1] = std::nanf("");
      EXPECT_TRUE(std::isnan(
          conv_with_tail(packed, shape, c.x.data(), epilogue, tail, {y.data(), codes.data(), pass.data()}, serial)
              .min));
      for (int64_t i = 0; i < n; ++i) ASSERT_EQ(std::isnan(y[i]), i % channels == channels - 1) << i;
    }
  }
}

TEST_P(TrainingConv, ANanInTheScaleStays) {
  for (const ConvShape& shape : kShapes) {
    Case c(shape, 4);
    c.scale[0] = std::nanf("");
    c.run(serial);
    EXPECT_TRUE(std::isnan(c.mean[0]) && std::isnan(c.variance[0]) && std::isnan(c.min[0]) && std::isnan(c.max[0]));
  }
}

TEST_P(TrainingConv, CodesAndWhatTheyCannotTell) {
  const Grid grid{0.05f, 100, 0, 255};
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0.0f, 6.0f);
  for (const int64_t n : {1, 15, 16, 17, 1000, 300001}) {
    std::vector<float> x(n);
    for (float& v : x) v = normal(random);
    std::vector<uint8_t> codes(n + 1, 77);
    EXPECT_FALSE(training_codes(x.data(), n, grid, codes.data(), backwards).on_grid);
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_EQ(codes[i], quantize(x[i], grid)) << i;
      x[i] = dequantize(codes[i], grid);
    }
    EXPECT_EQ(codes[n], 77);
    CodesFound found = training_codes(x.data(), n, grid, codes.data(), backwards);
    EXPECT_TRUE(found.on_grid && !found.nan);
    x[n / 2] = std::nanf("");
    EXPECT_TRUE(training_codes(x.data(), n, grid, codes.data(), serial).nan);
    x[n / 2] = INFINITY;
    found = training_codes(x.data(), n, grid, codes.data(), serial);
    EXPECT_FALSE(found.on_grid || found.nan);
    EXPECT_EQ(codes[n / 2], 255);
  }
}

}  // namespace
}  // namespace octet::kernels
