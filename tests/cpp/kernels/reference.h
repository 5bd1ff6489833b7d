// What the kernels must give, written from docs/numerics.md in the plainest way: wide integers, one loop per index,
// padding spelled out. Shares no arithmetic with csrc/octet.
#pragma once

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "octet/kernels/conv.h"
#include "octet/kernels/pool.h"

namespace reference {

using octet::kernels::ConvEpilogue;
using octet::kernels::ConvShape;
using octet::kernels::ResidualAdd;

inline int64_t clamp(double x, int64_t lo, int64_t hi) {
  return static_cast<int64_t>(std::min(std::max(x, static_cast<double>(lo)), static_cast<double>(hi)));
}

// Rule 6.
inline int64_t requantize(int64_t acc, float m, int32_t zy, int64_t lo, int64_t hi) {
  const volatile float product = static_cast<float>(acc) * m;
  return clamp(std::rint(static_cast<double>(product)) + zy, lo, hi);
}

// Rule 10.
inline int64_t add(int64_t a, float ma, int64_t b, float mb, int32_t z, int64_t lo, int64_t hi) {
  const volatile float sa = static_cast<float>(a) * ma, sb = static_cast<float>(b) * mb;
  const volatile float sum = sa + sb;
  return clamp(std::rint(static_cast<double>(sum)) + z, lo, hi);
}

// Rule 5 without the bias.
inline std::vector<int64_t> sums(const ConvShape& s, const std::vector<uint8_t>& x, const std::vector<int8_t>& w,
                                 int32_t x_zero_point) {
  std::vector<int64_t> y;
  const int64_t cg = s.in_channels / s.groups, og = s.out_channels / s.groups;
  for (int64_t n = 0; n < s.batch; ++n)
    for (int64_t od = 0; od < s.out[0]; ++od)
      for (int64_t oh = 0; oh < s.out[1]; ++oh)
        for (int64_t ow = 0; ow < s.out[2]; ++ow)
          for (int64_t o = 0; o < s.out_channels; ++o) {
            int64_t acc = 0;
            for (int64_t c = 0; c < cg; ++c)
              for (int64_t kd = 0; kd < s.kernel[0]; ++kd)
                for (int64_t kh = 0; kh < s.kernel[1]; ++kh)
                  for (int64_t kw = 0; kw < s.kernel[2]; ++kw) {
                    const int64_t d = od * s.stride[0] - s.padding[0] + kd * s.dilation[0];
                    const int64_t h = oh * s.stride[1] - s.padding[1] + kh * s.dilation[1];
                    const int64_t v = ow * s.stride[2] - s.padding[2] + kw * s.dilation[2];
                    int64_t qx = x_zero_point;
                    if (d >= 0 && d < s.in[0] && h >= 0 && h < s.in[1] && v >= 0 && v < s.in[2]) {
                      qx = x[(((n * s.in[0] + d) * s.in[1] + h) * s.in[2] + v) * s.in_channels + o / og * cg + c];
                    }
                    const int64_t at = (((o * cg + c) * s.kernel[0] + kd) * s.kernel[1] + kh) * s.kernel[2] + kw;
                    acc += (qx - x_zero_point) * w[at];
                  }
            y.push_back(acc);
          }
  return y;
}

// Rules 5, 6, 10.
inline std::vector<int64_t> conv(const ConvShape& s, const std::vector<uint8_t>& x, const std::vector<int8_t>& w,
                                 const ConvEpilogue& e) {
  std::vector<int64_t> y = sums(s, x, w, e.x_zero_point);
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t o = i % s.out_channels;
    y[i] = requantize(y[i] + e.bias[o], e.multiplier[o], e.y_zero_point, e.bounds.lo, e.bounds.hi);
    if (const ResidualAdd* r = e.residual) {
      y[i] = add(y[i] - e.y_zero_point, r->conv_ratio, static_cast<int64_t>(r->codes[i]) - r->zero_point, r->ratio,
                 r->y_zero_point, r->bounds.lo, r->bounds.hi);
    }
  }
  return y;
}

// Rule 7, by trying every fraction.
inline float multiplier(double ideal) {
  if (ideal < 1.0 / 4095) ideal = 1.0 / 4095;
  double best = HUGE_VAL, value = 0;
  for (int q = 1; q <= 4095; q += 2) {
    const double p = std::rint(ideal * q), error = std::fabs(ideal - p / q);
    if (error < best) best = error, value = p / q;
  }
  return static_cast<float>(value);
}

// Rules 1 and 2, on doubles where the rule has integers.
inline double steps(float x, float scale) {
  const volatile float ratio = x / scale;
  return std::rint(static_cast<double>(ratio));
}

}  // namespace reference
