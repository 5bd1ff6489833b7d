#include "octet/kernels/relayout.h"

#include <algorithm>
#include <cstring>

namespace octet::kernels {
namespace {

constexpr int64_t kTile = 64;  // a tile's source and destination lines stay in the first-level cache together

// The few-channel forms (images) are interleavings; with the channel count known the compiler vectorizes them.
template <int64_t kRows>
void interleave(const uint8_t* x, int64_t columns, int64_t begin, int64_t end, uint8_t* y) {
  for (int64_t j = begin; j < end; ++j) {
    for (int64_t i = 0; i < kRows; ++i) y[j * kRows + i] = x[i * columns + j];
  }
}

void transpose_tile(const uint8_t* x, int64_t rows, int64_t columns, int64_t begin, int64_t end, uint8_t* y) {
  for (int64_t i0 = 0; i0 < rows; i0 += kTile) {
    const int64_t i1 = std::min(rows, i0 + kTile);
    for (int64_t j = begin; j < end; ++j) {
      for (int64_t i = i0; i < i1; ++i) y[j * rows + i] = x[i * columns + j];
    }
  }
}

void transpose_columns(const uint8_t* x, int64_t rows, int64_t columns, int64_t begin, int64_t end, uint8_t* y) {
  if (rows == 3) return interleave<3>(x, columns, begin, end, y);
  if (rows == 4) return interleave<4>(x, columns, begin, end, y);
  transpose_tile(x, rows, columns, begin, end, y);
}

}  // namespace

void transpose_codes(const uint8_t* x, int64_t batch, int64_t rows, int64_t columns, uint8_t* y, ParallelFor parallel) {
  const int64_t tiles = (columns + kTile - 1) / kTile;
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 15) / (kTile * std::max<int64_t>(rows, 1)));
  parallel(batch * tiles, grain, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      const int64_t image = (t / tiles) * rows * columns;
      const int64_t begin = (t % tiles) * kTile;
      transpose_columns(x + image, rows, columns, begin, std::min(columns, begin + kTile), y + image);
    }
  });
}

void concatenate_codes(std::span<const CatPart> parts, int64_t rows, uint8_t* y, ParallelFor parallel) {
  int64_t width = 0;
  for (const CatPart& part : parts) width += part.width;
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 15) / std::max<int64_t>(width, 1));
  parallel(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      uint8_t* to = y + r * width;
      for (const CatPart& part : parts) {
        std::memcpy(to, part.codes + r * part.width, static_cast<size_t>(part.width));
        to += part.width;
      }
    }
  });
}

}  // namespace octet::kernels
