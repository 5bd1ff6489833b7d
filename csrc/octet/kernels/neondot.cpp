// Arm NEON with the dot-product extension: sdot multiplies signed by signed bytes, so codes less 128 stand in for the
// codes (the zero point moves along) and are copied that way.
#include <arm_neon.h>
#include <sys/auxv.h>

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

namespace octet::kernels {

bool cpu_has_neon_dot() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }

}  // namespace octet::kernels

OCTET_TARGET_BEGIN("arch=armv8.2-a+dotprod")
namespace octet::kernels {
namespace neondot {

#include "octet/kernels/rows-inl.h"

struct Lanes {
  using Float = float32x4_t;
  static constexpr int kCount = 4;

  static Float set(float x) { return vdupq_n_f32(x); }
  static Float load(const float* p, int n) {
    if (n == 4) return vld1q_f32(p);
    float part[4] = {};
    std::copy(p, p + n, part);
    return vld1q_f32(part);
  }
  static Float load_int(const int32_t* p) { return vcvtq_f32_s32(vld1q_s32(p)); }
  static Float load_codes(const uint8_t* p, int n) {
    float part[4] = {};
    for (int i = 0; i < n; ++i) part[i] = p[i];
    return vld1q_f32(part);
  }
  static Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static Float sub(Float a, Float b) { return vsubq_f32(a, b); }
  static Float mul(Float a, Float b) { return vmulq_f32(a, b); }
  static Float clamp(Float x, Float low, Float high) { return vminq_f32(vmaxq_f32(x, low), high); }
  static Float round(Float x) { return vcvtq_f32_s32(vcvtnq_s32_f32(x)); }
  static void store(float* p, Float x, int n) {
    float part[4];
    vst1q_f32(part, x);
    std::copy(part, part + n, p);
  }
  static void store_codes(uint8_t* p, Float x, int32_t zero_point, int n) {
    const int16x4_t words = vmovn_s32(vaddq_s32(vcvtnq_s32_f32(x), vdupq_n_s32(zero_point)));
    uint8_t part[8];
    vst1_u8(part, vqmovun_s16(vcombine_s16(words, words)));
    n == 4 ? std::memcpy(p, part, 4) : std::memcpy(p, part, n);
  }

  template <class At>
  static bool finish_codes(const int32_t*, int64_t, int, int64_t, const ConvEpilogue&, int64_t, uint8_t*, At) {
    return false;
  }
};

#include "octet/kernels/finish-inl.h"

// 6 x 4 accumulators, 4 weights and a broadcast fill 29 of 32 registers.
template <int kTileRows, int kTileVectors>
static void tile(const uint8_t* const* pointers, int64_t group, const Depth& depth, const uint8_t* weights,
                 int64_t /*ahead*/, const int32_t* init, int32_t* acc) {
  int32x4_t sum[kTileRows][kTileVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kTileVectors; ++v) {
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) sum[r][v] = vld1q_s32(init + 4 * v);
  }
  for (const Segment* segment = depth.segments; segment != depth.segments + depth.count; ++segment) {
    const uint8_t* x[kTileRows];
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) x[r] = pointers[r] + (group + segment->offset);
    const uint8_t* at = weights + segment->unit * (16 * kTileVectors);
    for (int64_t unit = 0; unit < depth.units; ++unit, at += 16 * kTileVectors) {
      int8x16_t w[kTileVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kTileVectors; ++v) w[v] = vld1q_s8(reinterpret_cast<const int8_t*>(at) + 16 * v);
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        int32_t codes;
        std::memcpy(&codes, x[r] + 4 * unit, 4);
        const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(codes));
#pragma GCC unroll 16
        for (int v = 0; v < kTileVectors; ++v) sum[r][v] = vdotq_s32(sum[r][v], w[v], four);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kTileVectors; ++v) vst1q_s32(acc + (r * kTileVectors + v) * 4, sum[r][v]);
  }
}

struct Engine {
  static constexpr int kLanes = 4, kVectors = 4, kUnit = 4, kMaxRows = 6;
  static constexpr bool kCopied = true;
  using Code = int8_t;
  using Weight = int8_t;
  static constexpr int32_t offset(int32_t /*zero_point*/) { return 128; }
  static constexpr std::array<int, kVectors + 1> kRows{0, 6, 6, 6, 6};

  using Function = TileFunction;
  template <int kTileRows, int kTileVectors>
  static constexpr Function tile = neondot::tile<kTileRows, kTileVectors>;
};

#include "octet/kernels/igemm-inl.h"

// One tap at a time, 8 channels widened to int16.
struct Depthwise {
  using Weight = int16_t;
  static constexpr int64_t kTaps = 1, kChannels = 8;

  static void accumulate(const uint8_t* const* pointers, int64_t stride, int64_t taps, int64_t c, int64_t exist,
                         const int16_t* weights, int64_t group_size, const int32_t* init, int32_t* acc) {
    int32x4_t low = vld1q_s32(init), high = vld1q_s32(init + 4);
    for (int64_t t = 0; t < taps; ++t, pointers += stride, weights += group_size) {
      uint8_t codes[8] = {};
      exist == 8 ? std::memcpy(codes, *pointers + c, 8) : std::memcpy(codes, *pointers + c, exist);
      const int16x8_t x = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(codes))), w = vld1q_s16(weights);
      low = vmlal_s16(low, vget_low_s16(x), vget_low_s16(w));
      high = vmlal_s16(high, vget_high_s16(x), vget_high_s16(w));
    }
    vst1q_s32(acc, low);
    vst1q_s32(acc + 4, high);
  }
};

#include "octet/kernels/depthwise-inl.h"

static constexpr ConvFamily kConv[] = {
    {"u8s8_depthwise_1x8__neondot", depthwise_accepts, depthwise_pack, depthwise_prepare, depthwise_run},
    {"u8s8_conv_6x16__neondot", accepts, pack, prepare, run}};

}  // namespace neondot

const KernelSet& neondot_kernels() {
  static constexpr KernelSet set{Isa::kNeonDot, "rows__neondot", neondot::kConv, neondot::row_kernels()};
  return set;
}

}  // namespace octet::kernels
OCTET_TARGET_END
