// The tail of a training block against plain loops over core's functions, on every ISA this machine has.
#include "octet/kernels/training.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "octet/kernels/dispatch.h"

namespace octet::kernels {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// Runs the ranges one grain at a time, last first: what no kernel's result may depend on.
void backwards(int64_t count, int64_t grain, RangeBody body) {
  for (int64_t begin = (count - 1) / grain * grain; count > 0 && begin >= 0; begin -= grain) {
    body(begin, std::min(count, begin + grain));
  }
}

// Channels innermost and not, multiples of sixteen and not, several tiles, partial periods, one element.
const ChannelLayout kLayouts[] = {{1, 1, 1},    {5, 3, 1},    {4096, 16, 1}, {700, 24, 1},
                                  {97, 130, 1}, {9, 1000, 1}, {3000, 64, 1}, {20001, 7, 1},
                                  {2, 3, 49},   {3, 5, 1024}, {1, 2, 70001}, {4, 16, 5}};

std::vector<float> normal_values(int64_t n, unsigned seed, float mean = 0.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(mean, 1.0f);
  std::vector<float> values(n);
  for (float& v : values) v = normal(random);
  return values;
}

int64_t channel_of(const ChannelLayout& layout, int64_t i) { return i / layout.inner % layout.channels; }

bool passes(const std::vector<uint8_t>& pass, const ChannelLayout& layout, int64_t i) {
  const int64_t row_bytes = (layout.inner + 15) / 16 * 2;
  const int64_t bit = layout.inner == 1 ? i : i / layout.inner * row_bytes * 8 + i % layout.inner;
  return pass[bit / 8] >> (bit % 8) & 1;
}

class Training : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override { force_isa(isa_name(GetParam())); }
  void TearDown() override { force_isa(""); }
};

INSTANTIATE_TEST_SUITE_P(AllIsas, Training, testing::ValuesIn(available_isas().begin(), available_isas().end()),
                         [](const auto& info) { return std::string(isa_name(info.param)); });

struct Stats {
  explicit Stats(int64_t channels) : mean(channels), variance(channels), min(channels), max(channels) {}
  ChannelStatistics out() { return {mean.data(), variance.data(), min.data(), max.data()}; }
  std::vector<float> mean, variance, min, max;
};

TEST_P(Training, StatisticsMatchFloat64) {
  for (const ChannelLayout& layout : kLayouts) {
    for (const float offset : {0.0f, 1000.0f}) {  // a large mean must not spoil the variance
      const std::vector<float> x = normal_values(layout.size(), 1, offset);
      Stats stats(layout.channels);
      channel_statistics(x.data(), layout, stats.out(), serial);
      for (int64_t c = 0; c < layout.channels; ++c) {
        double sum = 0, squares = 0;
        float low = kInf, high = -kInf;
        for (int64_t i = 0; i < layout.size(); ++i) {
          if (channel_of(layout, i) != c) continue;
          sum += x[i];
          low = std::min(low, x[i]);
          high = std::max(high, x[i]);
        }
        const double n = static_cast<double>(layout.outer * layout.inner), mean = sum / n;
        for (int64_t i = 0; i < layout.size(); ++i) {
          if (channel_of(layout, i) == c) squares += (x[i] - mean) * (x[i] - mean);
        }
        ASSERT_NEAR(stats.mean[c], mean, 1e-6 * (1 + std::fabs(mean)));
        ASSERT_NEAR(stats.variance[c], squares / n, 2e-5 * (1e-3 + squares / n));
        ASSERT_EQ(stats.min[c], low);
        ASSERT_EQ(stats.max[c], high);
        if (layout.channels > 100 && c > 20) break;  // the reference is quadratic
      }
    }
  }
}

TEST_P(Training, StatisticsShowWhatIsNotFinite) {
  const ChannelLayout layout{40, 20, 1};
  std::vector<float> x = normal_values(layout.size(), 2);
  x[7 * 20 + 3] = kNan;
  x[39 * 20 + 19] = kInf;
  Stats stats(layout.channels);
  channel_statistics(x.data(), layout, stats.out(), serial);
  EXPECT_TRUE(std::isnan(stats.mean[3]) && std::isnan(stats.variance[3]) && std::isnan(stats.min[3]));
  EXPECT_FALSE(std::isfinite(stats.mean[19]) || std::isfinite(stats.variance[19]));
  EXPECT_TRUE(std::isfinite(stats.variance[4]) && std::isfinite(stats.max[4]));
}

struct Coefficients {
  explicit Coefficients(int64_t channels) : gain(normal_values(channels, 3)), shift(normal_values(channels, 4)) {
    if (channels > 2) gain[1] = 0.0f;
  }
  std::vector<float> gain, shift;
};

TEST_P(Training, ForwardIsActivationAndFakeQuantization) {
  const Grid grid{0.011f, 31, 0, 255};
  for (const ChannelLayout& layout : kLayouts) {
    std::vector<float> x = normal_values(layout.size(), 5);
    if (x.size() > 50) {
      x[10] = kNan;
      x[20] = kInf;
      x[30] = -kInf;
      x[40] = -0.0f;
    }
    const Coefficients k(layout.channels);
    for (const Activation activation : {Activation::kIdentity, Activation::kRelu, Activation::kRelu6}) {
      const Tail tail{k.gain.data(), k.shift.data(), activation, grid};
      std::vector<float> y(x.size());
      std::vector<uint8_t> codes(x.size() + 1, 77), pass(tail_pass_bytes(layout));
      tail_forward(x.data(), layout, tail, {y.data(), codes.data(), pass.data()}, backwards);
      EXPECT_EQ(codes[x.size()], 77);
      for (int64_t i = 0; i < layout.size(); ++i) {
        const int64_t c = channel_of(layout, i);
        const float v = x[i] * k.gain[c] + k.shift[c];
        const float low = activation == Activation::kIdentity ? -kInf : 0.0f;
        const float high = activation == Activation::kRelu6 ? 6.0f : kInf;
        const float active = v < low ? low : (v > high ? high : v);
        const float expected = fake_quantize(active, grid);
        if (std::isnan(expected)) {
          ASSERT_TRUE(std::isnan(y[i]));
        } else {
          ASSERT_EQ(std::memcmp(&y[i], &expected, sizeof(float)), 0) << y[i] << " " << expected << " at " << i;
          ASSERT_EQ(codes[i], quantize(active, grid)) << i;
        }
        ASSERT_EQ(passes(pass, layout, i), v > low && v < high && passes_gradient(active, grid));
      }
    }
  }
}

TEST_P(Training, RangeIsThatOfTheOutput) {
  for (const ChannelLayout& layout : kLayouts) {
    const std::vector<float> x = normal_values(layout.size(), 6);
    const Coefficients k(layout.channels);
    Stats stats(layout.channels);
    channel_statistics(x.data(), layout, stats.out(), serial);
    const Tail tail{k.gain.data(), k.shift.data(), Activation::kIdentity, {}};
    std::vector<float> y(x.size());
    for (int64_t i = 0; i < layout.size(); ++i) {
      const int64_t c = channel_of(layout, i);
      y[i] = x[i] * k.gain[c] + k.shift[c];
    }
    const Range range = tail_range(stats.min.data(), stats.max.data(), layout.channels, tail);
    EXPECT_EQ(range.min, *std::min_element(y.begin(), y.end()));
    EXPECT_EQ(range.max, *std::max_element(y.begin(), y.end()));
  }
}

TEST_P(Training, BackwardMatchesFloat64) {
  for (const ChannelLayout& layout : kLayouts) {
    const int64_t channels = layout.channels;
    const std::vector<float> x = normal_values(layout.size(), 7), grad = normal_values(layout.size(), 8);
    const Coefficients k(channels);
    std::vector<float> y(x.size()), mean = normal_values(channels, 9), sum(channels), dot(channels), alone(channels);
    std::vector<uint8_t> pass(tail_pass_bytes(layout));
    const Tail tail{k.gain.data(), k.shift.data(), Activation::kRelu, {0.01f, 0, 0, 255}};
    tail_forward(x.data(), layout, tail, {y.data(), nullptr, pass.data()}, serial);
    tail_backward_sums(grad.data(), pass.data(), x.data(), mean.data(), layout, sum.data(), dot.data(), serial);
    tail_backward_sums(grad.data(), pass.data(), nullptr, nullptr, layout, alone.data(), nullptr, serial);
    EXPECT_EQ(sum, alone);
    std::vector<double> sums(channels), dots(channels), size(channels, 1e-6);
    for (int64_t i = 0; i < layout.size(); ++i) {
      const int64_t c = channel_of(layout, i);
      const double g = passes(pass, layout, i) ? grad[i] : 0.0;
      sums[c] += g;
      dots[c] += g * (x[i] - mean[c]);
      size[c] += std::fabs(g) * (1 + std::fabs(x[i] - mean[c]));
    }
    for (int64_t c = 0; c < channels; ++c) {
      ASSERT_NEAR(sum[c], sums[c], 1e-6 * size[c]);
      ASSERT_NEAR(dot[c], dots[c], 1e-6 * size[c]);
    }
    std::vector<float> grad_x(x.size()), only(x.size());
    const TailGradient gradient{mean.data(), k.gain.data(), k.shift.data(), sum.data()};
    tail_backward(grad.data(), pass.data(), x.data(), gradient, layout, grad_x.data(), backwards);
    tail_backward(grad.data(), pass.data(), nullptr, gradient, layout, only.data(), backwards);
    for (int64_t i = 0; i < layout.size(); ++i) {
      const int64_t c = channel_of(layout, i);
      const float g = passes(pass, layout, i) ? grad[i] : 0.0f;
      ASSERT_EQ(grad_x[i], k.gain[c] * g + (k.shift[c] * (x[i] - mean[c]) + sum[c]));
      ASSERT_EQ(only[i], k.gain[c] * g);
    }
  }
}

TEST_P(Training, AddIsRule10WithTheGradientOfTheSum) {
  const float unit = 0.0007f;  // the scales are odd multiples of one unit
  const Grid a_grid{13 * unit, 100, 0, 255}, b_grid{31 * unit, 128, 0, 255}, output{37 * unit, 90, 0, 255};
  for (const Activation activation : {Activation::kIdentity, Activation::kRelu, Activation::kRelu6}) {
    for (const int64_t n : {1, 15, 16, 17, 333, 300001}) {
      const std::vector<float> a = normal_values(n, 10, 2.0f), b = normal_values(n, 11);
      const AddTail tail{a_grid, b_grid, -1.0f, 13.0f / 37.0f, -31.0f / 37.0f, activation, output};
      const CodeBounds bounds = activation_bounds(activation, output);
      std::vector<float> y(n);
      std::vector<uint8_t> codes(n + 1, 77), pass(tail_pass_bytes({n, 1, 1}));
      const TailOutput out{y.data(), codes.data(), pass.data()};
      const Range range = add_forward({a.data()}, {b.data()}, n, tail, out, backwards);
      EXPECT_EQ(codes[n], 77);
      const float low = activation == Activation::kIdentity ? -kInf : 0.0f;
      const float high = activation == Activation::kRelu6 ? 6.0f : kInf;
      Range expected;
      for (int64_t i = 0; i < n; ++i) {
        const float v = a[i] - b[i], active = std::min(std::max(v, low), high);
        const int32_t q = add_codes(quantize(a[i], a_grid) - 100, tail.a_ratio, quantize(b[i], b_grid) - 128,
                                    tail.b_ratio, output.zero_point, bounds);
        ASSERT_EQ(y[i], dequantize(q, output));
        ASSERT_EQ(codes[i], q);
        ASSERT_EQ(passes(pass, {n, 1, 1}, i), v > low && v < high && passes_gradient(active, output));
        expected.min = std::min(expected.min, active);
        expected.max = std::max(expected.max, active);
      }
      EXPECT_EQ(range.min, expected.min);
      EXPECT_EQ(range.max, expected.max);
    }
  }
  std::vector<float> a(100, 1.0f), y(100);
  a[77] = kNan;
  a[78] = kInf;
  const AddTail tail{a_grid, a_grid, 1.0f, 1.0f, 1.0f, Activation::kRelu, output};
  EXPECT_TRUE(std::isnan(add_forward({a.data()}, {a.data()}, 100, tail, {y.data()}, serial).max));
  EXPECT_TRUE(std::isnan(y[77]));
  EXPECT_FALSE(std::isnan(y[78]));
}

TEST_P(Training, AddOfCodesIsAddOfTheirValues) {
  const float unit = 0.0007f;
  const Grid a_grid{13 * unit, 100, 0, 255}, b_grid{31 * unit, 128, 0, 255}, output{37 * unit, 90, 0, 255};
  const AddTail tail{a_grid, b_grid, 1.0f, 13.0f / 37.0f, 31.0f / 37.0f, Activation::kRelu, output};
  for (const int64_t n : {1, 15, 16, 17, 333, 300001}) {
    std::vector<float> a = normal_values(n, 20, 1.0f), b = normal_values(n, 21);
    std::vector<uint8_t> a_codes(n), b_codes(n);
    for (int64_t i = 0; i < n; ++i) {
      a_codes[i] = static_cast<uint8_t>(quantize(a[i], a_grid));
      b_codes[i] = static_cast<uint8_t>(quantize(b[i], b_grid));
      a[i] = dequantize(a_codes[i], a_grid);
      b[i] = dequantize(b_codes[i], b_grid);
    }
    std::vector<float> y(n), other(n);
    std::vector<uint8_t> codes(n), other_codes(n), pass(tail_pass_bytes({n, 1, 1})), other_pass(pass.size());
    const Range range = add_forward({a.data()}, {b.data()}, n, tail, {y.data(), codes.data(), pass.data()}, serial);
    const Range same = add_forward({nullptr, a_codes.data()}, {nullptr, b_codes.data()}, n, tail,
                                   {other.data(), other_codes.data(), other_pass.data()}, backwards);
    EXPECT_EQ(y, other);
    EXPECT_EQ(codes, other_codes);
    EXPECT_EQ(pass, other_pass);
    EXPECT_EQ(range.min, same.min);
    EXPECT_EQ(range.max, same.max);
  }
}

// Sums too: they are taken in one order on every ISA and for every split of the loop.
TEST_P(Training, SumsHaveTheBitsOfTheGenericLoop) {
  for (const ChannelLayout& layout : kLayouts) {
    const std::vector<float> x = normal_values(layout.size(), 12);
    const std::vector<uint8_t> pass(tail_pass_bytes(layout), 0xb7);
    const std::vector<float> mean(layout.channels, 0.1f);
    Stats here(layout.channels), reference(layout.channels);
    std::vector<float> sum(layout.channels), dot(layout.channels), sums(layout.channels), dots(layout.channels);
    channel_statistics(x.data(), layout, here.out(), backwards);
    tail_backward_sums(x.data(), pass.data(), x.data(), mean.data(), layout, sum.data(), dot.data(), backwards);
    force_isa("generic");
    channel_statistics(x.data(), layout, reference.out(), serial);
    tail_backward_sums(x.data(), pass.data(), x.data(), mean.data(), layout, sums.data(), dots.data(), serial);
    force_isa(isa_name(GetParam()));
    EXPECT_EQ(here.mean, reference.mean);
    EXPECT_EQ(here.variance, reference.variance);
    EXPECT_EQ(sum, sums);
    EXPECT_EQ(dot, dots);
  }
}

TEST_P(Training, EmptyArraysAreFine) {
  for (const ChannelLayout& layout : {ChannelLayout{0, 4, 1}, ChannelLayout{0, 4, 9}, ChannelLayout{2, 4, 0}}) {
    Stats stats(4);
    channel_statistics(nullptr, layout, stats.out(), serial);
    EXPECT_GT(stats.min[3], stats.max[3]);
    const Coefficients k(4);
    const Tail tail{k.gain.data(), k.shift.data(), Activation::kRelu, {}};
    tail_forward(nullptr, layout, tail, {}, serial);
    const Range range = tail_range(stats.min.data(), stats.max.data(), 4, tail);
    EXPECT_TRUE(range.empty());
  }
  EXPECT_TRUE(add_forward({}, {}, 0, {}, {}, serial).empty());
}

}  // namespace
}  // namespace octet::kernels
