// AVX2: exact through 16 bits. vpmaddwd multiplies pairs of int16 into int32; vpmaddubsw, which would take the bytes as they
// are, saturates its pair sums (57 % and more of the outputs wrong on full-range data) and is never used.
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <vector>

#include "octet/kernels/kernel_set.h"
#include "octet/kernels/taps.h"
#include "octet/kernels/target.h"
#include "octet/kernels/tile_table.h"

OCTET_TARGET_BEGIN("avx2")
namespace octet::kernels {
namespace avx2 {

#include "octet/kernels/rows-inl.h"
// rows-inl.h first: the epilogue rounds with its helpers.
#include "octet/kernels/finish-inl.h"

// 6 x 2 accumulators, 2 weights, a broadcast and a product fill 16 registers.
template <int kTileRows, int kTileVectors>
static void tile(const uint8_t* const* pointers, int64_t stride, int64_t offset, int64_t segments, int64_t units,
                 const uint8_t* weights, const int32_t* init, int32_t* acc) {
  __m256i sum[kTileRows][kTileVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kTileVectors; ++v) {
    const __m256i start = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(init + 8 * v));
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) sum[r][v] = start;
  }
  for (int64_t segment = 0; segment < segments; ++segment, pointers += stride) {
    const uint8_t* x[kTileRows];
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) x[r] = pointers[r] + offset;
    for (int64_t unit = 0; unit < units; ++unit, weights += 32 * kTileVectors) {
      __m256i w[kTileVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kTileVectors; ++v) w[v] = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights + 32 * v));
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        int32_t codes;
        std::memcpy(&codes, x[r] + 4 * unit, 4);
        const __m256i two = _mm256_set1_epi32(codes);
#pragma GCC unroll 16
        for (int v = 0; v < kTileVectors; ++v) sum[r][v] = _mm256_add_epi32(sum[r][v], _mm256_madd_epi16(two, w[v]));
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kTileVectors; ++v) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(acc + (r * kTileVectors + v) * 8), sum[r][v]);
    }
  }
}

struct Engine {
  static constexpr int kLanes = 8, kVectors = 2, kUnit = 2, kMaxRows = 6;
  static constexpr bool kWidened = true;
  static constexpr std::array<int, kVectors + 1> kRows{0, 6, 6};

  template <int kTileRows, int kTileVectors>
  static constexpr TileFunction tile = avx2::tile<kTileRows, kTileVectors>;
};

#include "octet/kernels/igemm-inl.h"

static constexpr ConvFamily kConv[] = {{"u8s8_conv_6x16__avx2", accepts, pack, run}};

}  // namespace avx2

const KernelSet& avx2_kernels() {
  static constexpr KernelSet set{Isa::kAvx2, "rows__avx2", avx2::kConv, avx2::row_kernels()};
  return set;
}

}  // namespace octet::kernels
OCTET_TARGET_END
