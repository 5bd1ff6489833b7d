// The tile functions of an engine, one for each number of rows and vectors, so that no tile computes rows that do not
// exist.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

namespace octet::kernels {

// A stretch of the depth that lies contiguously in memory.
struct Segment {
  int64_t offset;  // bytes from a pixel's pointer
  int64_t unit;    // where its weights begin in the panel
};

// What pixels that read alike multiply with.
struct Depth {
  const Segment* segments;
  int64_t count;
  int64_t units;  // of each segment
};

// Accumulators of `rows` pixels: acc[r][lane] = init[lane] + sum over depth. Row r reads, in each segment, units * 4
// bytes from pointers[r] + group + the segment's offset. What lies `ahead` bytes behind the weights will be wanted
// soon: of every unit one cache line may be fetched.
using TileFunction = void (*)(const uint8_t* const* pointers, int64_t group, const Depth& depth, const uint8_t* weights,
                              int64_t ahead, const int32_t* init, int32_t* acc);

// Tiles::tile<rows, vectors> for rows in [1, Tiles::kRows[vectors]]; table[vectors][rows].
template <class Tiles, int kVectors, int kMaxRows>
struct TileTable {
  using Row = std::array<typename Tiles::Function, kMaxRows + 1>;
  using Table = std::array<Row, kVectors + 1>;

  template <int kTileVectors, int... kIndex>
  static constexpr Row row(std::integer_sequence<int, kIndex...> /*rows*/) {
    return {nullptr, Tiles::template tile<kIndex + 1, kTileVectors>...};
  }
  template <int... kIndex>
  static constexpr Table table(std::integer_sequence<int, kIndex...> /*vectors*/) {
    return {Row{}, row<kIndex + 1>(std::make_integer_sequence<int, Tiles::kRows[kIndex + 1]>{})...};
  }
  static constexpr Table kTable = table(std::make_integer_sequence<int, kVectors>{});
};

}  // namespace octet::kernels
