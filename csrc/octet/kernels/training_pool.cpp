#include "octet/kernels/training_pool.h"

#include <algorithm>

namespace octet::kernels {
namespace {

// body(offset of the output's channels, offset of the input's channels, position) for all windows of one image.
template <class Body>
void for_each_position(const PoolShape& shape, int64_t image, Body body) {
  const Dims out = shape.out();
  int64_t output = image * out[0] * out[1] * out[2] * shape.channels;
  for (const Window& depth : shape.windows[0]) {
    for (const Window& height : shape.windows[1]) {
      for (const Window& width : shape.windows[2]) {
        uint8_t position = 0;
        for (int64_t d = depth.begin; d < depth.end; d += depth.step) {
          for (int64_t h = height.begin; h < height.end; h += height.step) {
            const int64_t row = ((image * shape.in[0] + d) * shape.in[1] + h) * shape.in[2];
            for (int64_t w = width.begin; w < width.end; w += width.step) {
              body(output, (row + w) * shape.channels, position++);
            }
          }
        }
        output += shape.channels;
      }
    }
  }
}

template <class Body>
void for_each_image(const PoolShape& shape, ParallelFor parallel, Body body) {
  parallel(shape.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) body(image);
  });
}

void take_larger(const float* __restrict x, int64_t n, uint8_t position, float* __restrict y,
                 uint8_t* __restrict winner) {
  for (int64_t c = 0; c < n; ++c) {
    const bool larger = (x[c] > y[c]) | (x[c] != x[c]);
    y[c] = larger ? x[c] : y[c];
    winner[c] = larger ? position : winner[c];
  }
}

void add_where(const float* __restrict grad, const uint8_t* __restrict winner, int64_t n, uint8_t position,
               float* __restrict grad_x) {
  for (int64_t c = 0; c < n; ++c) grad_x[c] += winner[c] == position ? grad[c] : 0.0f;
}

}  // namespace

void max_pool_forward(const float* x, const PoolShape& shape, float* y, uint8_t* winner, ParallelFor parallel) {
  const int64_t n = shape.channels;
  for_each_image(shape, parallel, [&](int64_t image) {
    for_each_position(shape, image, [&](int64_t output, int64_t input, uint8_t position) {
      if (position == 0) {
        std::copy_n(x + input, n, y + output);
        std::fill_n(winner + output, n, uint8_t{0});
      } else {
        take_larger(x + input, n, position, y + output, winner + output);
      }
    });
  });
}

void max_pool_backward(const float* grad, const uint8_t* winner, const PoolShape& shape, float* grad_x,
                       ParallelFor parallel) {
  const int64_t n = shape.channels, image_size = shape.in[0] * shape.in[1] * shape.in[2] * n;
  for_each_image(shape, parallel, [&](int64_t image) {
    std::fill_n(grad_x + image * image_size, image_size, 0.0f);
    for_each_position(shape, image, [&](int64_t output, int64_t input, uint8_t position) {
      add_where(grad + output, winner + output, n, position, grad_x + input);
    });
  });
}

}  // namespace octet::kernels
