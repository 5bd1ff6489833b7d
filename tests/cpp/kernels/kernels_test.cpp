// Every kernel on every instruction set of this machine against reference.h.
#include <gtest/gtest.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include <bit>
#include <chrono>
#include <cstring>
#include <functional>
#include <numeric>
#include <set>
#include <thread>

#include "octet/kernels/conv.h"
#include "octet/kernels/dispatch.h"
#include "octet/kernels/elementwise.h"
#include "octet/kernels/pool.h"
#include "reference.h"

namespace octet::kernels {
namespace {

// Three threads, so that every split is exercised.
const auto threaded = [](int64_t count, int64_t grain, RangeBody body) {
  const int64_t part = std::max<int64_t>(grain, (count + 2) / 3);
  std::vector<std::thread> threads;
  for (int64_t begin = 0; begin < count; begin += part) {
    threads.emplace_back([=] { body(begin, std::min(count, begin + part)); });
  }
  for (auto& thread : threads) thread.join();
};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t integer(int64_t lo, int64_t hi) { return std::uniform_int_distribution<int64_t>(lo, hi)(engine_); }
  float real(float lo, float hi) { return std::uniform_real_distribution<float>(lo, hi)(engine_); }
  bool coin() { return integer(0, 1) == 1; }
  template <class T>
  std::vector<T> integers(int64_t n, int64_t lo, int64_t hi) {
    std::vector<T> values(n);
    for (T& value : values) value = static_cast<T>(integer(lo, hi));
    return values;
  }

 private:
  std::mt19937_64 engine_;
};

std::string isa_string(Isa isa) { return std::string(isa_name(isa)); }

class OnIsa : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    force_isa(isa_name(GetParam()));
    ASSERT_EQ(active_isa(), GetParam());
  }
  void TearDown() override { force_isa(""); }
};

INSTANTIATE_TEST_SUITE_P(Isas, OnIsa, ::testing::ValuesIn(available_isas().begin(), available_isas().end()),
                         [](const auto& info) { return isa_string(info.param); });

// ---- convolution

ConvShape shape2d(int64_t batch, int64_t in, int64_t out, int64_t size, int64_t kernel, int64_t stride = 1,
                  int64_t padding = 0, int64_t groups = 1, int64_t dilation = 1) {
  ConvShape s{.batch = batch, .groups = groups, .in_channels = in, .out_channels = out};
  s.in = {1, size, size};
  s.kernel = {1, kernel, kernel};
  s.stride = {1, stride, stride};
  s.padding = {0, padding, padding};
  s.dilation = {1, dilation, dilation};
  s.out = conv_output_size(s);
  return s;
}

enum class Data { kRandom, kExtreme };

std::vector<int8_t> channels_innermost(const std::vector<int8_t>& w, const ConvShape& s) {
  const int64_t taps = s.taps(), channels = s.in_per_group();
  std::vector<int8_t> moved(w.size());
  for (int64_t o = 0; o < s.out_channels; ++o) {
    for (int64_t i = 0; i < taps * channels; ++i) {
      moved[o * taps * channels + i % taps * channels + i / taps] = w[o * taps * channels + i];
    }
  }
  return moved;
}

void check_conv(const ConvShape& s, Random& random, Data data = Data::kRandom) {
  const int64_t depth = s.in_per_group() * s.taps(), size = s.batch * s.pixels() * s.out_channels;
  auto x = random.integers<uint8_t>(s.batch * s.in_pixels() * s.in_channels, 0, 255);
  auto w = random.integers<int8_t>(s.out_channels * depth, -127, 127);
  if (data == Data::kExtreme) {  // saturates every pair sum of a 16-bit accumulator
    for (auto& q : x) q = random.integer(0, 9) ? 255 : 0;
    for (auto& q : w) q = random.integer(0, 9) ? 127 : -127;
  }
  const auto bias = random.integers<int32_t>(s.out_channels, -(1 << 20), 1 << 20);
  std::vector<float> multiplier(s.out_channels);
  float spread = 1.0f / (std::sqrt(static_cast<float>(depth)) * 90.0f);
  if (random.integer(0, 7) == 0) spread *= 1e6f;  // products beyond int32
  for (float& m : multiplier) m = reference::multiplier(random.real(0.2f, 2.0f) * spread);
  ConvEpilogue e;
  e.bias = bias.data();
  e.multiplier = multiplier.data();
  e.x_zero_point = static_cast<int32_t>(random.coin() ? random.integer(0, 255) : 255 * random.integer(0, 1));
  e.y_zero_point = static_cast<int32_t>(random.integer(0, 255));
  if (random.coin()) e.bounds.lo = e.y_zero_point;
  const auto codes = random.integers<uint8_t>(size, 0, 255);
  const ResidualAdd residual{codes.data(), static_cast<int32_t>(random.integer(0, 255)), -0.7f,
                             3.0f / 7,     static_cast<int32_t>(random.integer(0, 255)), {3, 250}};
  if (random.coin()) e.residual = &residual;

  const auto expected = reference::conv(s, x, w, e);
  const WeightOrder order = random.coin() ? WeightOrder::kTapsInnermost : WeightOrder::kChannelsInnermost;
  if (order == WeightOrder::kChannelsInnermost) w = channels_innermost(w, s);
  const PackedConv packed(w.data(), s, order, active_isa(), threaded);
  ASSERT_EQ(packed.isa(), active_isa());
  const std::string what =
      std::string(packed.kernel_name()) + " " +
      ::testing::PrintToString(std::vector<int64_t>{
          s.batch, s.groups, s.in_channels, s.out_channels, s.in[0], s.in[1], s.in[2], s.kernel[0], s.kernel[1],
          s.kernel[2], s.stride[1], s.stride[2], s.padding[1], s.padding[2], s.dilation[1], s.dilation[2]});
  std::vector<uint8_t> y(size + 64, 77);
  run_conv(packed, s, x.data(), e, y.data(), threaded);
  ASSERT_EQ(std::vector<int64_t>(y.begin(), y.begin() + size), expected) << what;
  ASSERT_EQ(std::vector<uint8_t>(y.begin() + size, y.end()), std::vector<uint8_t>(64, 77))
      << what << ": wrote behind y";

  const float scale = 0.037f;
  const int32_t zero_point = e.residual ? residual.y_zero_point : e.y_zero_point;
  std::vector<float> floats(size);
  run_conv(packed, s, x.data(), e, scale, floats.data(), serial);
  for (int64_t i = 0; i < size; ++i) {
    ASSERT_EQ(floats[i], scale * static_cast<float>(expected[i] - zero_point)) << what << " at " << i;
  }
}

TEST_P(OnIsa, ConvKernelSizesStridesPaddingDilationGroups) {
  Random random(1);
  for (const int64_t kernel : {1, 2, 3, 5}) {
    for (const int64_t stride : {1, 2}) {
      for (const int64_t dilation : {1, 2}) {
        for (const int64_t groups : {1, 2}) {
          check_conv(shape2d(2, 16, 24, 11, kernel, stride, kernel / 2, groups, dilation), random);
        }
      }
    }
  }
}

TEST_P(OnIsa, ConvChannelsAroundTileSizes) {
  Random random(2);
  for (const int64_t in : {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 63, 64, 65, 127, 130}) {
    check_conv(shape2d(1, in, 16, 5, 3, 1, 1), random);
    check_conv(shape2d(1, in, 33, 4, 1), random);
  }
  for (const int64_t out : {1, 2, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 200}) {
    check_conv(shape2d(1, 20, out, 5, 3, 1, 1), random);
    check_conv(shape2d(1, 9, out, 4, 1), random);
  }
}

TEST_P(OnIsa, ConvPixelsAroundTileSizes) {
  Random random(3);
  for (int64_t pixels = 1; pixels <= 14; ++pixels) check_conv(shape2d(pixels, 33, 70, 1, 1), random);
  for (const int64_t rows : {95, 96, 97, 191, 193, 400}) check_conv(shape2d(rows, 8, 65, 1, 1), random);
}

TEST_P(OnIsa, ConvDepthwise) {
  Random random(4);
  for (const int64_t channels : {1, 3, 8, 15, 16, 17, 32, 40, 63, 64, 65, 96, 130}) {
    for (const int64_t kernel : {1, 3, 5}) {
      check_conv(shape2d(2, channels, channels, 9, kernel, 1 + channels % 2, kernel / 2, channels), random);
    }
    check_conv(shape2d(1, channels, channels, 9, 3, 1, 2, channels, 2), random);
    check_conv(shape2d(1, channels, 2 * channels, 6, 3, 1, 1, channels), random);  // channel multiplier
  }
}

TEST_P(OnIsa, ConvFirstLayers) {
  Random random(5);
  for (const int64_t in : {1, 3, 4}) {
    check_conv(shape2d(2, in, 64, 29, 7, 2, 3), random);
    check_conv(shape2d(2, in, 32, 24, 3, 2, 1), random);
    check_conv(shape2d(2, in, 16, 13, 3, 1, 1), random);
    check_conv(shape2d(1, in, 16, 13, 4, 4, 0), random);
  }
}

TEST_P(OnIsa, ConvDeepAndExtreme) {
  Random random(6);
  check_conv(shape2d(3, 4096, 10, 1, 1), random, Data::kExtreme);
  check_conv(shape2d(1, 30000, 17, 1, 1), random, Data::kExtreme);
  check_conv(shape2d(1, 256, 72, 5, 3, 1, 1), random, Data::kExtreme);
  check_conv(shape2d(1, 64, 64, 6, 3, 1, 1, 64), random, Data::kExtreme);
  check_conv(shape2d(1, 3, 64, 16, 7, 2, 3), random, Data::kExtreme);
}

TEST_P(OnIsa, ConvOneAndThreeDimensions) {
  Random random(7);
  ConvShape line{.batch = 2, .in_channels = 12, .out_channels = 20};
  line.in = {1, 1, 30}, line.kernel = {1, 1, 5}, line.stride = {1, 1, 2}, line.padding = {0, 0, 2};
  line.out = conv_output_size(line);
  check_conv(line, random);
  ConvShape volume{.batch = 2, .in_channels = 6, .out_channels = 10};
  volume.in = {4, 5, 6}, volume.kernel = {3, 2, 3}, volume.stride = {1, 2, 1}, volume.padding = {1, 0, 1};
  volume.out = conv_output_size(volume);
  check_conv(volume, random);
}

// Rows longer than a block, as in audio: a block reads a stretch of a row.
TEST_P(OnIsa, ConvLongRows) {
  Random random(9);
  for (const int64_t in : {1, 5, 24}) {
    ConvShape line{.batch = 2, .in_channels = in, .out_channels = 8};
    line.in = {1, 1, 1500}, line.kernel = {1, 1, 9}, line.stride = {1, 1, 1 + in % 2}, line.padding = {0, 0, 4};
    line.out = conv_output_size(line);
    check_conv(line, random);
  }
}

TEST_P(OnIsa, ConvEmptyBatchDoesNothing) {
  Random random(8);
  const ConvShape s = shape2d(0, 16, 16, 4, 3, 1, 1);
  check_conv(s, random);
  EXPECT_EQ(s.batch * s.pixels(), 0);
}

TEST_P(OnIsa, ConvRandomShapes) {
  Random random(std::random_device{}());
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(4);
  while (std::chrono::steady_clock::now() < deadline && !HasFatalFailure()) {
    const int64_t groups = random.coin() ? 1 : random.integer(1, 6);
    const bool depthwise = random.integer(0, 3) == 0;
    ConvShape s{.batch = random.integer(1, 3), .groups = groups};
    s.in_channels = groups * (depthwise ? 1 : random.integer(1, random.coin() ? 8 : 90));
    s.out_channels = groups * (depthwise ? 1 : random.integer(1, random.coin() ? 8 : 150));
    for (int a = random.integer(0, 5) ? 1 : 0; a < 3; ++a) {
      s.in[a] = random.integer(1, 14);
      s.padding[a] = random.integer(0, 3);
      s.kernel[a] = random.integer(1, 4);
      s.dilation[a] = random.integer(1, 2);
      s.stride[a] = random.integer(1, 3);
    }
    s.out = conv_output_size(s);
    check_conv(s, random, random.coin() ? Data::kRandom : Data::kExtreme);
  }
}

TEST(Conv, PackedWeightsKeepTheirIsa) {
  const ConvShape s = shape2d(1, 16, 16, 4, 3, 1, 1);
  const std::vector<int8_t> w(16 * 16 * 9, 1);
  const Isa best = available_isas().back();
  const PackedConv packed(w.data(), s, WeightOrder::kTapsInnermost, best);
  force_isa("generic");
  EXPECT_EQ(packed.isa(), best);
  EXPECT_GE(packed.bytes(), w.size());
  force_isa("");
}

// ---- elementwise

const float kInfinity = std::numeric_limits<float>::infinity();
const float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Grids {
  std::vector<float> scale;
  std::vector<int32_t> zero_point;
  int32_t qmin, qmax;

  Grids(int64_t channels, Random& random, int32_t qmin, int32_t qmax) : qmin(qmin), qmax(qmax) {
    for (int64_t c = 0; c < channels; ++c) {
      scale.push_back(std::ldexp(random.real(0.5f, 1.0f), static_cast<int>(random.integer(-6, 2))));
      zero_point.push_back(static_cast<int32_t>(random.integer(qmin, qmax)));
    }
  }
  ChannelGrids view() const { return {scale.data(), zero_point.data(), qmin, qmax}; }
};

const std::vector<ChannelLayout> kLayouts{{1, 1, 1},   {1, 1, 7},   {1, 1, 5000}, {3, 5, 7}, {2, 64, 1},
                                          {700, 3, 1}, {1, 33, 40}, {4, 2, 1030}, {0, 3, 4}, {50, 1, 3}};

std::vector<float> awkward_values(const ChannelLayout& layout, const Grids& grids, Random& random) {
  std::vector<float> x(layout.size());
  for (int64_t i = 0; i < layout.size(); ++i) {
    const int64_t c = i / layout.inner % layout.channels;
    const auto half = static_cast<float>(random.integer(-600, 600)) / 2;  // ties, and both ends of the range
    x[i] = random.coin() ? half * grids.scale[c] : random.real(-400, 400) * grids.scale[c];
    if (random.integer(0, 40) == 0)
      x[i] = std::vector<float>{kNaN, kInfinity, -kInfinity, -0.0f, 3e38f, -1e-42f}[i % 6];
  }
  return x;
}

// Compares bits, so that -0 is not 0; any NaN equals any NaN.
void expect_same(const std::vector<float>& got, const std::vector<float>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(expected[i]) && std::isnan(got[i])) continue;
    ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(expected[i]))
        << "at " << i << ": " << got[i] << " for " << expected[i];
  }
}

template <class Code>
void check_quantize(int32_t qmin, int32_t qmax, Random& random) {
  for (const ChannelLayout& layout : kLayouts) {
    const Grids grids(layout.channels, random, qmin, qmax);
    const auto x = awkward_values(layout, grids, random);
    const int64_t n = layout.size();
    std::vector<Code> q(n), expected_q(n);
    std::vector<float> y(n), fake(n), expected_y(n), expected_fake(n);
    std::vector<uint8_t> pass(pass_bytes(n)), expected_pass(pass_bytes(n));
    for (int64_t i = 0; i < n; ++i) {
      const int64_t c = i / layout.inner % layout.channels;
      const double code = reference::steps(x[i], grids.scale[c]) + grids.zero_point[c];
      const int64_t clamped = std::isnan(code) ? grids.zero_point[c] : reference::clamp(code, qmin, qmax);
      expected_q[i] = static_cast<Code>(clamped);
      expected_y[i] = grids.scale[c] * static_cast<float>(clamped - grids.zero_point[c]);
      expected_fake[i] = std::isnan(x[i]) ? x[i] : expected_y[i];
      if (code >= qmin && code <= qmax) expected_pass[i / 8] |= static_cast<uint8_t>(1 << i % 8);
    }
    quantize(x.data(), layout, grids.view(), q.data(), threaded);
    ASSERT_EQ(q, expected_q);
    dequantize(q.data(), layout, grids.view(), y.data(), threaded);
    expect_same(y, expected_y);
    fake_quantize(x.data(), layout, grids.view(), fake.data(), pass.data(), threaded);
    expect_same(fake, expected_fake);
    ASSERT_EQ(pass, expected_pass);
    auto in_place = x;
    fake_quantize(in_place.data(), layout, grids.view(), in_place.data(), nullptr, threaded);
    expect_same(in_place, expected_fake);
  }
}

TEST_P(OnIsa, QuantizeDequantizeFakeQuantize) {
  Random random(11);
  check_quantize<uint8_t>(0, 255, random);
  check_quantize<uint8_t>(1, 255, random);
  check_quantize<uint8_t>(0, 3, random);
  check_quantize<int8_t>(-127, 127, random);
  check_quantize<int8_t>(-7, 7, random);
}

TEST_P(OnIsa, FakeQuantizeBackwardFollowsTheMask) {
  Random random(12);
  for (const int64_t n : {0, 1, 7, 8, 9, 31, 64, 1000, 40001}) {
    std::vector<float> grad(n), expected(n), got(n);
    auto pass = random.integers<uint8_t>(pass_bytes(n), 0, 255);
    for (int64_t i = 0; i < n; ++i) {
      grad[i] = i % 11 ? random.real(-1, 1) : kNaN;
      expected[i] = pass[i / 8] >> i % 8 & 1 ? grad[i] : 0.0f;
    }
    fake_quantize_backward(grad.data(), pass.data(), n, got.data(), threaded);
    expect_same(got, expected);
    fake_quantize_backward(grad.data(), pass.data(), n, grad.data(), threaded);
    expect_same(grad, expected);
  }
}

TEST_P(OnIsa, MinMax) {
  Random random(13);
  for (const ChannelLayout& layout : kLayouts) {
    std::vector<float> x(layout.size());
    for (float& value : x) value = random.real(-5, 5);
    if (!x.empty()) x[x.size() / 2] = random.coin() ? kNaN : kInfinity;
    std::vector<float> low(layout.channels, kInfinity), high(layout.channels, -kInfinity);
    for (int64_t i = 0; i < layout.size(); ++i) {
      const int64_t c = i / layout.inner % layout.channels;
      low[c] = std::isnan(x[i]) || std::isnan(low[c]) ? kNaN : std::min(low[c], x[i]);
      high[c] = std::isnan(x[i]) || std::isnan(high[c]) ? kNaN : std::max(high[c], x[i]);
    }
    std::vector<float> min(layout.channels), max(layout.channels);
    min_max(x.data(), layout, min.data(), max.data(), threaded);
    expect_same(min, low);
    expect_same(max, high);
  }
}

TEST_P(OnIsa, ObserveAndFakeQuantizeIsBothAtOnce) {
  Random random(14);
  for (const ChannelLayout& layout : kLayouts) {
    const Grids grids(layout.channels, random, 0, 255);
    const auto x = awkward_values(layout, grids, random);
    std::vector<float> y(x.size()), expected(x.size()), range(2), expected_range(2);
    std::vector<uint8_t> pass(pass_bytes(x.size())), expected_pass(pass.size());
    fake_quantize(x.data(), layout, grids.view(), expected.data(), expected_pass.data(), serial);
    min_max(x.data(), {1, 1, layout.size()}, &expected_range[0], &expected_range[1], serial);
    observe_and_fake_quantize(x.data(), layout, grids.view(), y.data(), pass.data(), &range[0], &range[1], threaded);
    expect_same(y, expected);
    expect_same(range, expected_range);
    EXPECT_EQ(pass, expected_pass);
  }
}

TEST_P(OnIsa, AddAndMulOverEveryPairOfCodes) {
  Random random(15);
  std::vector<uint8_t> a(65536), b(65536), y(65536);
  for (int i = 0; i < 65536; ++i) a[i] = static_cast<uint8_t>(i), b[i] = static_cast<uint8_t>(i >> 8);
  for (int round = 0; round < 20; ++round) {
    const auto code = [&] { return static_cast<int32_t>(random.integer(0, 255)); };
    const AddParams p{code(), static_cast<float>(random.integer(1, 1023)) / 511,
                      code(), static_cast<float>(random.integer(-1023, 1023)) / 511,
                      code(), {round % 3, 255 - round % 2}};
    add(a.data(), b.data(), 65536, p, y.data(), threaded);
    for (int i = 0; i < 65536; ++i) {
      ASSERT_EQ(y[i], reference::add(a[i] - p.a_zero_point, p.a_ratio, b[i] - p.b_zero_point, p.b_ratio, p.y_zero_point,
                                     p.bounds.lo, p.bounds.hi));
    }
    const MulParams m{code(), code(), reference::multiplier(random.real(0, 0.05f)), code(), p.bounds};
    mul(a.data(), b.data(), 65536, m, y.data(), threaded);
    for (int i = 0; i < 65536; ++i) {
      const int64_t product = (a[i] - m.a_zero_point) * (b[i] - m.b_zero_point);
      ASSERT_EQ(y[i], reference::requantize(product, m.multiplier, m.y_zero_point, m.bounds.lo, m.bounds.hi));
    }
  }
}

TEST_P(OnIsa, Lookup) {
  Random random(16);
  const auto table = random.integers<uint8_t>(256, 0, 255);
  for (const int64_t n : {0, 1, 63, 64, 65, 255, 5000}) {
    const auto x = random.integers<uint8_t>(n, 0, 255);
    std::vector<uint8_t> y(n), expected(n);
    std::transform(x.begin(), x.end(), expected.begin(), [&](uint8_t q) { return table[q]; });
    lookup(x.data(), n, table.data(), y.data(), threaded);
    ASSERT_EQ(y, expected);
  }
}

// ---- pooling

// Calls f(input index or -1 in the padding) for every position of a window, torch's definition: padding on both sides,
// and (ceil_mode) positions behind the padding that count for nothing.
struct Axis {
  int64_t in, kernel, stride, padding, dilation;
  bool ceil_mode;

  int64_t out() const {
    const double places =
        static_cast<double>(in + 2 * padding - dilation * (kernel - 1) - 1) / static_cast<double>(stride);
    int64_t n = static_cast<int64_t>(ceil_mode ? std::ceil(places) : std::floor(places)) + 1;
    if (ceil_mode && (n - 1) * stride >= in + padding) --n;
    return n;
  }
  void each(int64_t o, const std::function<void(int64_t)>& f) const {
    for (int64_t k = 0; k < kernel; ++k) {
      const int64_t i = o * stride - padding + k * dilation;
      if (i < in + padding) f(i >= 0 && i < in ? i : -1);
    }
  }
  std::vector<Window> windows(bool count_include_pad) const {
    return pool_windows(in, kernel, stride, padding, dilation, ceil_mode, count_include_pad);
  }
};

TEST_P(OnIsa, MaxPool) {
  Random random(21);
  for (const Axis& axis :
       {Axis{13, 3, 2, 1, 1, false}, {13, 3, 2, 1, 1, true}, {9, 2, 2, 0, 2, true}, {5, 5, 1, 2, 1, false}}) {
    for (const int64_t channels : {1, 16, 67}) {
      const PoolShape shape{2,
                            channels,
                            {1, axis.in, axis.in},
                            {pool_windows(1, 1, 1, 0, 1, false, true), axis.windows(true), axis.windows(true)}};
      const auto x = random.integers<uint8_t>(2 * axis.in * axis.in * channels, 0, 255);
      std::vector<int64_t> expected;
      for (int64_t n = 0; n < 2; ++n)
        for (int64_t oh = 0; oh < axis.out(); ++oh)
          for (int64_t ow = 0; ow < axis.out(); ++ow)
            for (int64_t c = 0; c < channels; ++c) {
              int64_t best = 0;
              axis.each(oh, [&](int64_t h) {
                axis.each(ow, [&](int64_t w) {
                  if (h >= 0 && w >= 0)
                    best = std::max<int64_t>(best, x[((n * axis.in + h) * axis.in + w) * channels + c]);
                });
              });
              expected.push_back(best);
            }
      std::vector<uint8_t> y(expected.size());
      ASSERT_EQ(shape.out(), (Dims{1, axis.out(), axis.out()}));
      max_pool(x.data(), shape, y.data(), threaded);
      ASSERT_EQ(std::vector<int64_t>(y.begin(), y.end()), expected);
    }
  }
}

TEST_P(OnIsa, AveragePool) {
  Random random(22);
  for (const Axis& axis :
       {Axis{13, 3, 2, 1, 1, false}, {13, 3, 2, 1, 1, true}, {18, 18, 18, 0, 1, false}, {6, 3, 2, 0, 1, true}}) {
    for (const bool include : {true, false}) {
      for (const int64_t divisor : {0, 5}) {
        const int64_t channels = divisor ? 19 : 150;
        const PoolShape shape{2,
                              channels,
                              {1, axis.in, axis.in},
                              {pool_windows(1, 1, 1, 0, 1, false, true), axis.windows(include), axis.windows(include)}};
        const AveragePoolParams p{0.03f, 120, 0.02f, 99, {99, 255}, divisor};
        const auto x = random.integers<uint8_t>(2 * axis.in * axis.in * channels, axis.in == 18 ? 200 : 0, 255);
        std::vector<int64_t> expected;
        for (int64_t n = 0; n < 2; ++n)
          for (int64_t oh = 0; oh < axis.out(); ++oh)
            for (int64_t ow = 0; ow < axis.out(); ++ow)
              for (int64_t c = 0; c < channels; ++c) {
                int64_t sum = 0, count = 0;
                axis.each(oh, [&](int64_t h) {
                  axis.each(ow, [&](int64_t w) {
                    const bool inside = h >= 0 && w >= 0;
                    if (inside) sum += x[((n * axis.in + h) * axis.in + w) * channels + c] - p.x_zero_point;
                    count += inside || include;
                  });
                });
                const double n_ideal = static_cast<double>(divisor ? divisor : count);
                const float m = reference::multiplier(static_cast<double>(p.x_scale) / p.y_scale / n_ideal);
                expected.push_back(reference::requantize(sum, m, p.y_zero_point, p.bounds.lo, p.bounds.hi));
              }
        std::vector<uint8_t> y(expected.size());
        average_pool(x.data(), shape, p, y.data(), threaded);
        ASSERT_EQ(std::vector<int64_t>(y.begin(), y.end()), expected);
      }
    }
  }
}

// A mean over 128 x 96 positions needs two stages: each row onto the output grid, then the column of row means.
TEST_P(OnIsa, AveragePoolInTwoStages) {
  Random random(23);
  const int64_t height = 128, width = 96, channels = 5;
  const PoolShape shape{1,
                        channels,
                        {1, height, width},
                        {adaptive_windows(1, 1), adaptive_windows(height, 1), adaptive_windows(width, 1)}};
  const AveragePoolParams p{0.02f, 100, 0.01f, 7, {20, 255}};
  const auto x = random.integers<uint8_t>(height * width * channels, 60, 255);
  const float along = reference::multiplier(static_cast<double>(p.x_scale) / p.y_scale / width);
  const float across = reference::multiplier(1.0 / height);
  std::vector<int64_t> expected(channels);
  for (int64_t c = 0; c < channels; ++c) {
    int64_t column = 0;
    for (int64_t h = 0; h < height; ++h) {
      int64_t row = 0;
      for (int64_t w = 0; w < width; ++w) row += x[(h * width + w) * channels + c] - p.x_zero_point;
      column += reference::requantize(row, along, p.y_zero_point, 0, 255) - p.y_zero_point;
    }
    expected[c] = reference::requantize(column, across, p.y_zero_point, p.bounds.lo, p.bounds.hi);
  }
  std::vector<uint8_t> y(channels);
  average_pool(x.data(), shape, p, y.data(), threaded);
  EXPECT_EQ(std::vector<int64_t>(y.begin(), y.end()), expected);
}

TEST(Pool, AdaptiveWindowsCoverTheInputInOrder) {
  for (const int64_t in : {1, 5, 7, 32}) {
    for (const int64_t out : {1, 3, 7}) {
      const auto windows = adaptive_windows(in, out);
      EXPECT_EQ(windows.front().begin, 0);
      EXPECT_EQ(windows.back().end, in);
      for (size_t i = 1; i < windows.size(); ++i) EXPECT_LE(windows[i].begin, windows[i - 1].end);
      for (const Window& window : windows) EXPECT_EQ(window.count, window.end - window.begin);
    }
  }
}

// ---- dispatch

TEST(Dispatch, ForcingAnAbsentIsaListsTheChoices) {
  try {
    force_isa("avx1024");
    FAIL() << "an unknown instruction set was accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("avx1024"), std::string::npos);
    for (const Isa isa : available_isas()) EXPECT_NE(std::string(error.what()).find(isa_name(isa)), std::string::npos);
  }
}

TEST(Dispatch, EveryIsaHasConvolutionsAndRows) {
  for (const Isa isa : available_isas()) {
    std::set<std::string_view> families;
    for (const KernelInfo& kernel : kernel_table()) {
      if (kernel.isa != isa) continue;
      families.insert(kernel.family);
      EXPECT_TRUE(kernel.name.ends_with("__" + isa_string(isa))) << kernel.name;
    }
    EXPECT_EQ(families, (std::set<std::string_view>{"conv", "rows"})) << isa_name(isa);
  }
}

// Losing an instruction set silently would be the worst regression: what the CPU has, the library must have, and the
// tests above run on it (each asserts that the ISA it forced is the active one).
TEST(Dispatch, EveryIsaOfThisCpuIsTested) {
  std::set<std::string> expected{"generic"};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) expected.insert("avx2");
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi")) expected.insert("avx512vnni");
#endif
#if defined(__aarch64__)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) expected.insert("neondot");
#endif
  std::set<std::string> available, tested;
  for (const Isa isa : available_isas()) available.insert(isa_string(isa));
  const auto* tests = ::testing::UnitTest::GetInstance();
  for (int i = 0; i < tests->total_test_suite_count(); ++i) {
    const auto* suite = tests->GetTestSuite(i);
    if (std::string(suite->name()) != "Isas/OnIsa") continue;
    for (int j = 0; j < suite->total_test_count(); ++j) {
      const std::string name = suite->GetTestInfo(j)->name();
      tested.insert(name.substr(name.rfind('/') + 1));
    }
  }
  EXPECT_EQ(available, expected);
  EXPECT_EQ(tested, expected);
}

}  // namespace
}  // namespace octet::kernels
