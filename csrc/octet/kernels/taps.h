// Where a convolution reads: the implicit form of im2col, one pointer per tap instead of a copy.
#pragma once

#include <cstdint>

#include "octet/kernels/conv.h"

namespace octet::kernels {

// pointers[tap * stride]: the channels of the input position that this tap of the output pixel (counted over the whole batch)
// reads, or `outside` where that is padding.
inline void gather_taps(const ConvShape& s, const uint8_t* x, int64_t pixel, const uint8_t* outside,
                        const uint8_t** pointers, int64_t stride) {
  const int64_t column = pixel % s.out[2], rest = pixel / s.out[2];
  const int64_t row = rest % s.out[1], slice = rest / s.out[1] % s.out[0], image = rest / s.out[1] / s.out[0];
  const int64_t d0 = slice * s.stride[0] - s.padding[0];
  const int64_t h0 = row * s.stride[1] - s.padding[1];
  const int64_t w0 = column * s.stride[2] - s.padding[2];
  const uint8_t* base = x + image * s.in_pixels() * s.in_channels;
  for (int64_t kd = 0; kd < s.kernel[0]; ++kd) {
    const int64_t d = d0 + kd * s.dilation[0];
    for (int64_t kh = 0; kh < s.kernel[1]; ++kh) {
      const int64_t h = h0 + kh * s.dilation[1];
      const bool in_slice = d >= 0 && d < s.in[0] && h >= 0 && h < s.in[1];
      for (int64_t kw = 0; kw < s.kernel[2]; ++kw) {
        const int64_t w = w0 + kw * s.dilation[2];
        const bool inside = in_slice && w >= 0 && w < s.in[2];
        *pointers = inside ? base + ((d * s.in[1] + h) * s.in[2] + w) * s.in_channels : outside;
        pointers += stride;
      }
    }
  }
}

}  // namespace octet::kernels
