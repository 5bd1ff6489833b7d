// Moving u8 codes between memory orders.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "octet/kernels/parallel.h"

namespace octet::kernels {

// y[b][j][i] = x[b][i][j], i < rows, j < columns: NCHW to NHWC with rows = C, columns = HW, and back with the two
// exchanged.
void transpose_codes(const uint8_t* x, int64_t batch, int64_t rows, int64_t columns, uint8_t* y, ParallelFor parallel);

// A dimension of a copy: its size, and how far apart neighbours lie where they come from (0: one code again and again)
// and where they go.
struct CopyAxis {
  int64_t size, from, to;
};

// Codes of one view of memory to those of another: permutations, slices, padding, nearest upsampling. The targets of
// two positions are never the same.
void copy_codes(std::vector<CopyAxis> axes, const uint8_t* x, uint8_t* y, ParallelFor parallel);

// One operand of a concatenation: `width` codes of each row.
struct CatPart {
  const uint8_t* codes = nullptr;
  int64_t width = 0;
};

// y[r] = parts[0][r], parts[1][r], ...: along the innermost dimension.
void concatenate_codes(std::span<const CatPart> parts, int64_t rows, uint8_t* y, ParallelFor parallel);

}  // namespace octet::kernels
