// AVX-512 with VNNI: vpdpbusd multiplies unsigned by signed bytes and adds four products to an int32 lane, without saturation.
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

OCTET_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,prefer-vector-width=512")
namespace octet::kernels {
namespace avx512vnni {

#include "octet/kernels/rows-inl.h"
// rows-inl.h first: the epilogue rounds with its helpers.
#include "octet/kernels/finish-inl.h"

// A tile keeps kTileRows * kTileVectors accumulators in registers; 24 of them, 4 weights and a broadcast fill 29 of 32. Nothing
// else may happen in this function: an epilogue here once made the compiler spill, at 2.2 x the time.
template <int kTileRows, int kTileVectors>
static void tile(const uint8_t* const* pointers, int64_t stride, int64_t offset, int64_t segments, int64_t units,
                 const uint8_t* weights, const int32_t* init, int32_t* acc) {
  __m512i sum[kTileRows][kTileVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kTileVectors; ++v) {
    const __m512i start = _mm512_loadu_si512(init + 16 * v);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) sum[r][v] = start;
  }
  for (int64_t segment = 0; segment < segments; ++segment, pointers += stride) {
    const uint8_t* x[kTileRows];
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) x[r] = pointers[r] + offset;
    for (int64_t unit = 0; unit < units; ++unit, weights += 64 * kTileVectors) {
      __m512i w[kTileVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kTileVectors; ++v) w[v] = _mm512_load_si512(weights + 64 * v);
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        int32_t codes;
        std::memcpy(&codes, x[r] + 4 * unit, 4);
        const __m512i four = _mm512_set1_epi32(codes);
#pragma GCC unroll 16
        for (int v = 0; v < kTileVectors; ++v) sum[r][v] = _mm512_dpbusd_epi32(sum[r][v], four, w[v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kTileVectors; ++v) _mm512_store_si512(acc + (r * kTileVectors + v) * 16, sum[r][v]);
  }
}

struct Engine {
  static constexpr int kLanes = 16, kVectors = 4, kUnit = 4, kMaxRows = 12;
  static constexpr bool kWidened = false;
  static constexpr std::array<int, kVectors + 1> kRows{0, 12, 12, 8, 6};

  template <int kTileRows, int kTileVectors>
  static constexpr TileFunction tile = avx512vnni::tile<kTileRows, kTileVectors>;
};

#include "octet/kernels/igemm-inl.h"

static constexpr ConvFamily kConv[] = {{"u8s8_conv_6x64__avx512vnni", accepts, pack, run}};

}  // namespace avx512vnni

const KernelSet& avx512vnni_kernels() {
  static constexpr KernelSet set{Isa::kAvx512Vnni, "rows__avx512vnni", avx512vnni::kConv, avx512vnni::row_kernels()};
  return set;
}

}  // namespace octet::kernels
OCTET_TARGET_END
