// AVX-512 with VNNI: vpdpbusd multiplies unsigned by signed bytes and adds four products to an int32 lane, without
// saturation. gcc 12 takes the undefined operand inside its own intrinsics for a mistake (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <span>
#include <type_traits>
#include <vector>

#include "octet/kernels/kernel_set.h"
#include "octet/kernels/taps.h"
#include "octet/kernels/target.h"
#include "octet/kernels/tile_table.h"

OCTET_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi" OCTET_PREFER_512)
namespace octet::kernels {
namespace avx512vnni {

#include "octet/kernels/rows-inl.h"

#include "octet/kernels/avx512vnni_finish-inl.h"

struct Lanes {
  using Float = __m512;
  static constexpr int kCount = 16;

  static __mmask16 mask(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  static Float set(float x) { return _mm512_set1_ps(x); }
  static Float load(const float* p, int n) { return _mm512_maskz_loadu_ps(mask(n), p); }
  static Float load_int(const int32_t* p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
  static Float load_codes(const uint8_t* p, int n) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask(n), p)));
  }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float clamp(Float x, Float low, Float high) { return _mm512_min_ps(_mm512_max_ps(x, low), high); }
  static Float round(Float x) { return _mm512_cvtepi32_ps(_mm512_cvtps_epi32(x)); }
  static void store(float* p, Float x, int n) { _mm512_mask_storeu_ps(p, mask(n), x); }
  static void store_codes(uint8_t* p, Float x, int32_t zero_point, int n) {
    const __m128i codes = _mm512_cvtepi32_epi8(_mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(zero_point)));
    if (n == 16) return _mm_storeu_si128(reinterpret_cast<__m128i*>(p), codes);
    _mm_mask_storeu_epi8(p, mask(n), codes);
  }

  template <class At>
  static bool finish_codes(const int32_t* acc, int64_t acc_stride, int rows, int64_t channels, const ConvEpilogue& e,
                           int64_t channel, uint8_t* y, At at) {
    finish_all_packed(acc, acc_stride, rows, channels, e, channel, y, at);
    return true;
  }
};

#include "octet/kernels/finish-inl.h"

// A tile keeps kTileRows * kTileVectors accumulators in registers; 24 of them, 4 weights and a broadcast fill 29 of 32.
// Nothing else may want registers in this loop: an epilogue inside once made the compiler spill, at 2.2 x the time.
template <int kTileRows, int kTileVectors>
[[gnu::always_inline]] static inline void sum_up(const uint8_t* const* pointers, int64_t group, const Depth& depth,
                                                 const uint8_t* weights, int64_t ahead, const int32_t* init,
                                                 __m512i (&sum)[kTileRows][kTileVectors]) {
#pragma GCC unroll 16
  for (int v = 0; v < kTileVectors; ++v) {
    const __m512i start = _mm512_loadu_si512(init + 16 * v);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) sum[r][v] = start;
  }
  for (const Segment* segment = depth.segments; segment != depth.segments + depth.count; ++segment) {
    const uint8_t* x[kTileRows];
    asm volatile("" : "+r"(pointers));  // read again: kept through the loop, they are spilled, at 40 cycles a tile
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) x[r] = pointers[r] + (group + segment->offset);
    const uint8_t* at = weights + segment->unit * (64 * kTileVectors);
    for (int64_t unit = 0; unit < depth.units; ++unit, at += 64 * kTileVectors) {
      __m512i w[kTileVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kTileVectors; ++v) w[v] = _mm512_load_si512(at + 64 * v);
      if constexpr (kTileVectors == 4) _mm_prefetch(reinterpret_cast<const char*>(at) + ahead, _MM_HINT_T1);
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
}

template <int kTileRows, int kTileVectors>
static void tile(const uint8_t* const* pointers, int64_t group, const Depth& depth, const uint8_t* weights,
                 int64_t ahead, const int32_t* init, int32_t* acc) {
  __m512i sum[kTileRows][kTileVectors];
  sum_up<kTileRows, kTileVectors>(pointers, group, depth, weights, ahead, init, sum);
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kTileVectors; ++v) _mm512_store_si512(acc + (r * kTileVectors + v) * 16, sum[r][v]);
  }
}

// A tile whose accumulators become codes without a way through memory.
template <int kTileRows, int kTileVectors, bool kResidual>
static void code_tile(const uint8_t* const* pointers, int64_t group, const Depth& depth, const uint8_t* weights,
                      int64_t ahead, const int32_t* init, const PackedFinish<kResidual>& finish, int64_t channel,
                      const int64_t* places) {
  __m512i sum[kTileRows][kTileVectors];
  sum_up<kTileRows, kTileVectors>(pointers, group, depth, weights, ahead, init, sum);
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kTileVectors; ++v) asm volatile("" : "+v"(sum[r][v])::"memory");
  }
  finish.run(sum, channel, places);
}

struct Engine {
  static constexpr int kLanes = 16, kVectors = 4, kUnit = 4, kMaxRows = 10;
  static constexpr bool kCopied = false;
  using Code = uint8_t;
  using Weight = int8_t;
  static constexpr int32_t offset(int32_t /*zero_point*/) { return 0; }
  static constexpr std::array<int, kVectors + 1> kRows{0, 10, 10, 8, 6};  // 10: no pointer leaves the registers

  using Function = TileFunction;
  template <int kTileRows, int kTileVectors>
  static constexpr Function tile = avx512vnni::tile<kTileRows, kTileVectors>;

  template <bool kResidual>
  struct CodeTiles {
    using Finish = PackedFinish<kResidual>;
    using Function = decltype(&code_tile<1, 1, kResidual>);
    static constexpr auto kRows = Engine::kRows;
    template <int kTileRows, int kTileVectors>
    static constexpr Function tile = code_tile<kTileRows, kTileVectors, kResidual>;
  };
};

#include "octet/kernels/igemm-inl.h"

// 32 channels of four taps: two loads each hold two taps, one vpermt2b for every 16 channels brings a channel's four
// codes together, as vpdpbusd wants them.
struct Depthwise {
  using Weight = int8_t;
  static constexpr int64_t kTaps = 4, kChannels = 32;

  static __mmask32 mask(int64_t exist) { return static_cast<__mmask32>((uint64_t{1} << exist) - 1); }

  static void load_permutations(__m512i& first, __m512i& second) {
    alignas(64) static constexpr auto kOrder = [] {  // of the first 16 channels; the others lie 16 further in every tap
      std::array<uint8_t, 64> order{};
      for (int i = 0; i < 64; ++i) order[i] = static_cast<uint8_t>(i / 4 + 32 * (i % 4));
      return order;
    }();
    first = _mm512_load_si512(kOrder.data());
    second = _mm512_add_epi8(first, _mm512_set1_epi8(16));
  }

  static __m512i load_pair(const uint8_t* a, const uint8_t* b, __mmask32 exists) {
    const __m256i low = _mm256_maskz_loadu_epi8(exists, a), high = _mm256_maskz_loadu_epi8(exists, b);
    return _mm512_inserti64x4(_mm512_zextsi256_si512(low), high, 1);
  }

  static void accumulate(const uint8_t* const* pointers, int64_t stride, int64_t groups, int64_t c, int64_t exist,
                         const int8_t* weights, int64_t group_size, const int32_t* init, int32_t* acc) {
    __m512i first, second;
    load_permutations(first, second);
    const __mmask32 exists = mask(exist);
    __m512i low = _mm512_loadu_si512(init), high = _mm512_loadu_si512(init + 16);
    for (int64_t g = 0; g < groups; ++g, pointers += 4 * stride, weights += group_size) {
      const __m512i ab = load_pair(pointers[0] + c, pointers[stride] + c, exists);
      const __m512i cd = load_pair(pointers[2 * stride] + c, pointers[3 * stride] + c, exists);
      low = _mm512_dpbusd_epi32(low, _mm512_permutex2var_epi8(ab, first, cd), _mm512_load_si512(weights));
      high = _mm512_dpbusd_epi32(high, _mm512_permutex2var_epi8(ab, second, cd), _mm512_load_si512(weights + 64));
    }
    _mm512_store_si512(acc, low);
    _mm512_store_si512(acc + 16, high);
  }
};

#include "octet/kernels/depthwise-inl.h"
// depthwise-inl.h first: both share a condition.
#include "octet/kernels/avx512vnni_depthwise-inl.h"

static constexpr ConvFamily kConv[] = {
    {"u8s8_depthwise3_1x32__avx512vnni", depthwise3_accepts, depthwise3_pack, depthwise_prepare, depthwise3_run},
    {"u8s8_depthwise_1x32__avx512vnni", depthwise_accepts, depthwise_pack, depthwise_prepare, depthwise_run},
    {"u8s8_conv_6x64__avx512vnni", accepts, pack, prepare, run}};

}  // namespace avx512vnni

const KernelSet& avx512vnni_kernels() {
  static constexpr KernelSet set{Isa::kAvx512Vnni, "rows__avx512vnni", avx512vnni::kConv, avx512vnni::row_kernels()};
  return set;
}

}  // namespace octet::kernels
OCTET_TARGET_END
