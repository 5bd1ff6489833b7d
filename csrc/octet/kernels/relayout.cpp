#include "octet/kernels/relayout.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace octet::kernels {
namespace {

constexpr int64_t kTile = 64;  // a tile's source and destination lines stay in the first-level cache together

// The few-channel forms (images, shuffled groups) are interleavings; with the channel count known the compiler
// vectorizes them. x: rows `stride` apart.
template <int64_t kRows>
void interleave(const uint8_t* x, int64_t stride, int64_t begin, int64_t end, uint8_t* y) {
  for (int64_t j = begin; j < end; ++j) {
    for (int64_t i = 0; i < kRows; ++i) y[j * kRows + i] = x[i * stride + j];
  }
}

void transpose_tile(const uint8_t* x, int64_t rows, int64_t stride, int64_t begin, int64_t end, uint8_t* y) {
  for (int64_t i0 = 0; i0 < rows; i0 += kTile) {
    const int64_t i1 = std::min(rows, i0 + kTile);
    for (int64_t j = begin; j < end; ++j) {
      for (int64_t i = i0; i < i1; ++i) y[j * rows + i] = x[i * stride + j];
    }
  }
}

void transpose_columns(const uint8_t* x, int64_t rows, int64_t stride, int64_t begin, int64_t end, uint8_t* y) {
  switch (rows) {
    case 2:
      return interleave<2>(x, stride, begin, end, y);
    case 3:
      return interleave<3>(x, stride, begin, end, y);
    case 4:
      return interleave<4>(x, stride, begin, end, y);
    default:
      return transpose_tile(x, rows, stride, begin, end, y);
  }
}

// Outermost first by where they go; neighbours that lie as one dimension become one.
std::vector<CopyAxis> simplified(std::vector<CopyAxis> axes) {
  std::erase_if(axes, [](const CopyAxis& axis) { return axis.size == 1; });
  std::stable_sort(axes.begin(), axes.end(), [](const CopyAxis& a, const CopyAxis& b) { return a.to > b.to; });
  std::vector<CopyAxis> merged;
  for (const CopyAxis& axis : axes) {
    const bool whole =
        !merged.empty() && merged.back().from == axis.from * axis.size && merged.back().to == axis.to * axis.size;
    if (whole) {
      merged.back() = {merged.back().size * axis.size, axis.from, axis.to};
    } else {
      merged.push_back(axis);
    }
  }
  return merged;
}

// What the innermost one or two axes of a copy are together.
struct CopyBlock {
  explicit CopyBlock(std::vector<CopyAxis>& axes) {
    inner = axes.back();
    axes.pop_back();
    if (axes.empty() || inner.to != 1 || axes.back().from != 1 || axes.back().to != inner.size) return;
    columns = axes.back().size;
    axes.pop_back();
  }

  int64_t codes() const { return inner.size * std::max<int64_t>(1, columns); }

  void copy(const uint8_t* x, uint8_t* y) const {
    if (columns > 0) return transpose_columns(x, inner.size, inner.from, 0, columns, y);
    if (inner.from == 1 && inner.to == 1) {
      std::memcpy(y, x, static_cast<size_t>(inner.size));
      return;
    }
    for (int64_t i = 0; i < inner.size; ++i) y[i * inner.to] = x[i * inner.from];
  }

  CopyAxis inner{1, 1, 1};
  int64_t columns = 0;  // of a transposition with inner.size rows; 0: none
};

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

void copy_codes(std::vector<CopyAxis> given, const uint8_t* x, uint8_t* y, ParallelFor parallel) {
  std::vector<CopyAxis> axes = simplified(std::move(given));
  if (axes.empty()) axes.push_back({1, 1, 1});
  const CopyBlock block(axes);
  int64_t blocks = 1;
  for (const CopyAxis& axis : axes) blocks *= axis.size;
  if (block.codes() == 0) return;
  parallel(blocks, 1 + (int64_t{1} << 15) / block.codes(), [&](int64_t begin, int64_t end) {
    std::vector<int64_t> at(axes.size());
    int64_t from = 0, to = 0, rest = begin;
    for (size_t a = axes.size(); a-- > 0; rest /= axes[a].size) {
      at[a] = rest % axes[a].size;
      from += at[a] * axes[a].from;
      to += at[a] * axes[a].to;
    }
    for (int64_t i = begin; i < end; ++i) {
      block.copy(x + from, y + to);
      for (size_t a = axes.size(); a-- > 0;) {
        from += axes[a].from;
        to += axes[a].to;
        if (++at[a] < axes[a].size) break;
        from -= axes[a].size * axes[a].from;
        to -= axes[a].size * axes[a].to;
        at[a] = 0;
      }
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
