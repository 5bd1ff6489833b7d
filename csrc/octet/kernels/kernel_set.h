// Internal to kernels: what one ISA provides. Row functions work on one contiguous run; the drivers in conv.cpp,
// elementwise.cpp and pool.cpp cut tensors into rows and share them among threads.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "octet/kernels/aligned_bytes.h"
#include "octet/kernels/conv.h"
#include "octet/kernels/dispatch.h"
#include "octet/kernels/elementwise.h"

namespace octet::kernels {

// Where a convolution's codes go: as they are, or dequantized. Or (`sums`) multiplier * accumulator, for training.
struct ConvOutput {
  uint8_t* codes = nullptr;
  float* floats = nullptr;
  float scale = 1.0f;
  bool sums = false;
};

// The codes of a weight as they come.
struct WeightCodes {
  const int8_t* data;
  WeightOrder order;

  // An output channel as [tap][channel]; `room` holds it where it has to be rearranged.
  const int8_t* channel(int64_t o, const ConvShape& shape, int8_t* room) const {
    const int64_t taps = shape.taps(), channels = shape.in_per_group();
    const int8_t* from = data + o * taps * channels;
    if (order == WeightOrder::kChannelsInnermost || taps == 1 || channels == 1) return from;
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t c = 0; c < channels; ++c) room[t * channels + c] = from[c * taps + t];
    }
    return room;
  }
};

struct PackedWeights {
  AlignedBytes codes;
  AlignedBytes sums;  // int32, sum of an output channel's codes: the zero point's share of the accumulator
};

// What a family works out for a shape, a bias and an input's zero point before it sees an input; of a type of its own.
using ConvSetup = std::shared_ptr<const void>;

// One way to convolve. A KernelSet lists its families in order of preference; the first that takes the shape packs,
// prepares and runs.
struct ConvFamily {
  std::string_view name;
  bool (*accepts)(const ConvShape& shape);
  PackedWeights (*pack)(const WeightCodes& weights, const ConvShape& shape, ParallelFor parallel);
  ConvSetup (*prepare)(const PackedWeights& weights, const ConvShape& shape, const ConvEpilogue& epilogue);
  void (*run)(const PackedWeights& weights, const ConvSetup& setup, const uint8_t* x, const ConvEpilogue& epilogue,
              const ConvOutput& y, ParallelFor parallel);
};

// The grid of a row: one entry for all elements, or (per_element) one each.
struct RowGrid {
  const float* scale = nullptr;
  const int32_t* zero_point = nullptr;
  bool per_element = false;
  int32_t qmin = 0;
  int32_t qmax = 255;
};

struct RowKernels {
  void (*quantize_u8)(const float* x, int64_t n, const RowGrid& grid, uint8_t* q);
  void (*quantize_s8)(const float* x, int64_t n, const RowGrid& grid, int8_t* q);
  void (*dequantize_u8)(const uint8_t* q, int64_t n, const RowGrid& grid, float* y);
  void (*dequantize_s8)(const int8_t* q, int64_t n, const RowGrid& grid, float* y);
  void (*fake_quantize)(const float* x, int64_t n, const RowGrid& grid, float* y,
                        uint8_t* flags);  // flags: 0/1, or null
  void (*pack_bits)(const uint8_t* flags, int64_t n, uint8_t* bits);
  void (*min_max)(const float* x, int64_t n, float* min, float* max);  // into one entry; NaN sticks
  void (*min_max_each)(const float* low, const float* high, int64_t n, float* min, float* max);  // into n entries
  void (*lookup)(const uint8_t* x, int64_t n, const uint8_t* table, uint8_t* y);
  void (*add)(const uint8_t* a, const uint8_t* b, int64_t n, const AddParams& params, uint8_t* y);
  void (*mul)(const uint8_t* a, const uint8_t* b, int64_t n, const MulParams& params, uint8_t* y);
  void (*max_codes)(const uint8_t* const* x, int64_t count, int64_t n, uint8_t* y);  // of `count` rows
  void (*sum_codes)(const uint8_t* const* x, int64_t count, int64_t n, int32_t* y);
  void (*requantize)(const int32_t* acc, int64_t n, int32_t offset, float multiplier, int32_t zero_point,
                     CodeBounds bounds, uint8_t* y);  // of acc + offset
};

struct KernelSet {
  Isa isa;
  std::string_view row_name;  // of the row kernels, in the kernel table
  std::span<const ConvFamily> conv;
  RowKernels rows;
};

const KernelSet& kernel_set(Isa isa);
inline const KernelSet& active_kernels() { return kernel_set(active_isa()); }

const KernelSet& generic_kernels();
#if defined(OCTET_X86)
const KernelSet& avx2_kernels();
const KernelSet& avx512vnni_kernels();
#endif
#if defined(OCTET_NEON)
const KernelSet& neondot_kernels();
bool cpu_has_neon_dot();
#endif

}  // namespace octet::kernels
