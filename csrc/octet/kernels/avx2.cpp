// AVX2: exact through 16 bits. vpmaddwd multiplies pairs of int16 into int32; vpmaddubsw, which would take the bytes as
// they are, saturates its pair sums (57 % and more of the outputs wrong on full-range data) and is never used.
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <span>
#include <vector>

#include "octet/kernels/kernel_set.h"
#include "octet/kernels/taps.h"
#include "octet/kernels/target.h"
#include "octet/kernels/tile_table.h"

OCTET_TARGET_BEGIN("avx2")
namespace octet::kernels {
namespace avx2 {

#include "octet/kernels/rows-inl.h"
// Up to 8 codes; a copy of constant length is one instruction, any other is a call.
static inline uint64_t load_up_to_8(const uint8_t* p, int64_t n) {
  uint64_t codes = 0;
  n == 8 ? std::memcpy(&codes, p, 8) : std::memcpy(&codes, p, n);
  return codes;
}
static inline void store_up_to_8(uint8_t* p, uint64_t codes, int64_t n) {
  n == 8 ? std::memcpy(p, &codes, 8) : std::memcpy(p, &codes, n);
}

struct Lanes {
  using Float = __m256;
  static constexpr int kCount = 8;

  static Float set(float x) { return _mm256_set1_ps(x); }
  static Float load(const float* p, int n) {
    if (n == 8) return _mm256_loadu_ps(p);
    alignas(32) float part[8] = {};
    std::copy(p, p + n, part);
    return _mm256_load_ps(part);
  }
  static Float load_int(const int32_t* p) {
    return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Float load_codes(const uint8_t* p, int n) {
    const auto codes = static_cast<int64_t>(load_up_to_8(p, n));
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(codes)));
  }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float clamp(Float x, Float low, Float high) { return _mm256_min_ps(_mm256_max_ps(x, low), high); }
  static Float round(Float x) { return _mm256_cvtepi32_ps(_mm256_cvtps_epi32(x)); }
  static void store(float* p, Float x, int n) {
    if (n == 8) return _mm256_storeu_ps(p, x);
    alignas(32) float part[8];
    _mm256_store_ps(part, x);
    std::copy(part, part + n, p);
  }
  static void store_codes(uint8_t* p, Float x, int32_t zero_point, int n) {
    const __m256i codes = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(zero_point));
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
    const auto bytes = static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_packus_epi16(words, words)));
    store_up_to_8(p, bytes, n);
  }

  template <class At>
  static bool finish_codes(const int32_t*, int64_t, int, int64_t, const ConvEpilogue&, int64_t, uint8_t*, At) {
    return false;
  }
};

#include "octet/kernels/finish-inl.h"

// 6 x 2 accumulators, 2 weights, a broadcast and a product fill 16 registers.
template <int kTileRows, int kTileVectors>
static void tile(const uint8_t* const* pointers, int64_t group, const Depth& depth, const uint8_t* weights,
                 int64_t /*ahead*/, const int32_t* init, int32_t* acc) {
  __m256i sum[kTileRows][kTileVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kTileVectors; ++v) {
    const __m256i start = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(init + 8 * v));
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) sum[r][v] = start;
  }
  for (const Segment* segment = depth.segments; segment != depth.segments + depth.count; ++segment) {
    const uint8_t* x[kTileRows];
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) x[r] = pointers[r] + (group + segment->offset);
    const uint8_t* at = weights + segment->unit * (32 * kTileVectors);
    for (int64_t unit = 0; unit < depth.units; ++unit, at += 32 * kTileVectors) {
      __m256i w[kTileVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kTileVectors; ++v) w[v] = _mm256_load_si256(reinterpret_cast<const __m256i*>(at + 32 * v));
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
  static constexpr bool kCopied = true;
  using Code = int16_t;
  using Weight = int16_t;
  static constexpr int32_t offset(int32_t zero_point) { return zero_point; }
  static constexpr std::array<int, kVectors + 1> kRows{0, 6, 6};

  using Function = TileFunction;
  template <int kTileRows, int kTileVectors>
  static constexpr Function tile = avx2::tile<kTileRows, kTileVectors>;
};

#include "octet/kernels/igemm-inl.h"

// One tap at a time, 8 channels widened to int32.
struct Depthwise {
  using Weight = int32_t;
  static constexpr int64_t kTaps = 1, kChannels = 8;

  static void accumulate(const uint8_t* const* pointers, int64_t stride, int64_t taps, int64_t c, int64_t exist,
                         const int32_t* weights, int64_t group_size, const int32_t* init, int32_t* acc) {
    __m256i sum = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(init));
    for (int64_t t = 0; t < taps; ++t, pointers += stride, weights += group_size) {
      const auto codes = static_cast<int64_t>(load_up_to_8(*pointers + c, exist));
      const __m256i x = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(codes));
      const __m256i w = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights));
      sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(x, w));
    }
    _mm256_store_si256(reinterpret_cast<__m256i*>(acc), sum);
  }
};

#include "octet/kernels/depthwise-inl.h"

static constexpr ConvFamily kConv[] = {
    {"u8s8_depthwise_1x8__avx2", depthwise_accepts, depthwise_pack, depthwise_prepare, depthwise_run},
    {"u8s8_conv_6x16__avx2", accepts, pack, prepare, run}};

}  // namespace avx2

const KernelSet& avx2_kernels() {
  static constexpr KernelSet set{Isa::kAvx2, "rows__avx2", avx2::kConv, avx2::row_kernels()};
  return set;
}

}  // namespace octet::kernels
OCTET_TARGET_END
