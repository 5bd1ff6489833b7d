// How the training kernels walk an array: as runs of 16-element blocks that share one entry of the per-lane tables, so
// that one body serves both layouts and every channel count.
//
// Channels innermost: the channel of element i is i % channels, so sixteen lanes meet the same sixteen channels again
// after `period` = lcm(channels, 16) elements; a run goes down one column of sixteen. Otherwise a run is one row of
// `inner` elements of one channel. Tables hold `table_size` floats: one per element of the period, or sixteen equal
// ones per channel.
#pragma once

#include <cstdint>

#include "octet/kernels/elementwise.h"

namespace octet::kernels {

struct Run {
  int64_t offset = 0;  // of the first element
  int64_t stride = 16;
  int64_t blocks = 0;  // whole ones
  int tail = 0;        // elements of the last, partial one
  int64_t table = 0;
  int64_t word = 0;  // of the first block, in pass bits
  int64_t word_stride = 1;
};

struct Walk {
  bool interleaved = true;  // channels innermost
  int64_t channels = 1;
  int64_t size = 0;
  int64_t table_size = 16;
  int64_t tiles = 0;  // what is handed to threads
  // Interleaved: elements of the period and of a tile. Else: elements and blocks of a row; a tile is one row.
  int64_t period = 16;
  int64_t tile_size = 0;
  int64_t row = 0;
  int64_t row_blocks = 0;

  // The channel of a table entry.
  int64_t channel(int64_t entry) const { return interleaved ? entry % channels : entry / 16; }
};

// Runs that lie side by side go together where they can, body(run, width): memory is then read in stretches of 256
// bytes, which outside the caches is worth a factor of two. A body that keeps nothing from block to block reads memory
// strictly in order
// (`in_order`) at the price of starting more often: with many channels that is worth as much again.
inline constexpr int kWide = 4;

template <class Body>
inline void for_each_run(const Walk& walk, int64_t tile, bool in_order, Body&& body) {
  if (!walk.interleaved) {
    body(Run{tile * walk.row, 16, walk.row / 16, static_cast<int>(walk.row % 16), tile % walk.channels * 16,
             tile * walk.row_blocks, 1},
         1);
    return;
  }
  const int64_t begin = tile * walk.tile_size;
  const int64_t left = walk.size - begin;
  const int64_t length = left < walk.tile_size ? left : walk.tile_size;
  const int64_t rows = length / walk.period;
  const int64_t at_once = in_order && walk.period > 16 ? 1 : rows;
  for (int64_t row = 0; row < rows; row += at_once) {
    for (int64_t j = 0; j < walk.period;) {
      const int width = j + 16 * kWide <= walk.period ? kWide : 1;
      const int64_t offset = begin + row * walk.period + j;
      body(Run{offset, walk.period, at_once, 0, j, offset / 16, walk.period / 16}, width);
      j += 16 * width;
    }
  }
  const int64_t rest = length % walk.period;  // the array's last, partial period
  for (int64_t j = 0; j < rest; j += 16) {
    const int64_t offset = begin + rows * walk.period + j;
    const bool whole = rest - j >= 16;
    body(Run{offset, 16, whole, whole ? 0 : static_cast<int>(rest - j), j, offset / 16, 1}, 1);
  }
}

}  // namespace octet::kernels
