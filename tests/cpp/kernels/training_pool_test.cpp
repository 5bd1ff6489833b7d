// Max pools of training against plain loops, on every ISA this machine has.
#include "octet/kernels/training_pool.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "octet/kernels/dispatch.h"

namespace octet::kernels {
namespace {

class TrainingPool : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override { force_isa(isa_name(GetParam())); }
  void TearDown() override { force_isa(""); }
};

INSTANTIATE_TEST_SUITE_P(AllIsas, TrainingPool, testing::ValuesIn(available_isas().begin(), available_isas().end()),
                         [](const auto& info) { return std::string(isa_name(info.param)); });

PoolShape random_shape(std::mt19937& random) {
  const auto between = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  PoolShape shape;
  shape.batch = between(1, 3);
  shape.channels = between(1, 40);
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t kernel = between(1, 4), dilation = between(1, 2), padding = between(0, kernel / 2);
    shape.in[axis] = between(dilation * (kernel - 1) + 1, 9);
    shape.windows[axis] = pool_windows(shape.in[axis], kernel, between(1, 3), padding, dilation, between(0, 1), false);
  }
  return shape;
}

// Few different values, so that windows have ties; now and then a NaN.
std::vector<float> values_with_ties(int64_t n, std::mt19937& random) {
  std::uniform_int_distribution<int> value(-4, 60);
  std::vector<float> values(n);
  for (float& v : values) {
    const int drawn = value(random);
    v = drawn > 59 ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(drawn % 5);
  }
  return values;
}

// Calls body(output position, input position, which of the window's positions inside of x it is).
template <class Body>
void for_each_tap(const PoolShape& s, Body body) {
  int64_t output = 0;
  for (int64_t image = 0; image < s.batch; ++image) {
    for (const Window& wd : s.windows[0]) {
      for (const Window& wh : s.windows[1]) {
        for (const Window& ww : s.windows[2]) {
          int position = 0;
          for (int64_t d = wd.begin; d < wd.end; d += wd.step) {
            for (int64_t h = wh.begin; h < wh.end; h += wh.step) {
              for (int64_t w = ww.begin; w < ww.end; w += ww.step) {
                body(output, ((image * s.in[0] + d) * s.in[1] + h) * s.in[2] + w, position++);
              }
            }
          }
          ++output;
        }
      }
    }
  }
}

TEST_P(TrainingPool, ForwardRemembersWhoWonAndBackwardGivesItTheGradient) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    const PoolShape s = random_shape(random);
    const Dims out = s.out();
    const int64_t n = s.channels, inputs = s.batch * s.in[0] * s.in[1] * s.in[2] * n;
    const int64_t outputs = s.batch * out[0] * out[1] * out[2] * n;
    const std::vector<float> x = values_with_ties(inputs, random), grad = values_with_ties(outputs, random);

    std::vector<float> expected(outputs);
    std::vector<uint8_t> won(outputs, 0);
    for_each_tap(s, [&](int64_t output, int64_t input, int position) {
      for (int64_t c = 0; c < n; ++c) {
        const float value = x[input * n + c];
        float& most = expected[output * n + c];
        if (position > 0 && !(value > most || std::isnan(value))) continue;
        most = value;
        won[output * n + c] = static_cast<uint8_t>(position);
      }
    });
    std::vector<float> expected_grad(inputs, 0.0f);
    for_each_tap(s, [&](int64_t output, int64_t input, int position) {
      for (int64_t c = 0; c < n; ++c) {
        if (won[output * n + c] == position) expected_grad[input * n + c] += grad[output * n + c];
      }
    });

    std::vector<float> y(outputs), grad_x(inputs, 7.0f);
    std::vector<uint8_t> winner(outputs);
    max_pool_forward(x.data(), s, y.data(), winner.data(), serial);
    max_pool_backward(grad.data(), winner.data(), s, grad_x.data(), serial);
    for (int64_t i = 0; i < outputs; ++i) {
      ASSERT_EQ(winner[i], won[i]) << "round " << round << " at " << i;
      ASSERT_TRUE(y[i] == expected[i] || (std::isnan(y[i]) && std::isnan(expected[i]))) << y[i] << " " << expected[i];
    }
    for (int64_t i = 0; i < inputs; ++i) {
      ASSERT_TRUE(grad_x[i] == expected_grad[i] || (std::isnan(grad_x[i]) && std::isnan(expected_grad[i])))
          << "round " << round << " at " << i << ": " << grad_x[i] << " " << expected_grad[i];
    }
  }
}

}  // namespace
}  // namespace octet::kernels
