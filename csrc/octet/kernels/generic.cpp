// The bodies every machine can run: plain loops.
#include <algorithm>
#include <vector>

#include "octet/kernels/kernel_set.h"
#include "octet/kernels/taps.h"

namespace octet::kernels {
namespace generic {

#include "octet/kernels/rows-inl.h"
struct Lanes {
  using Float = float;
  static constexpr int kCount = 1;

  static Float set(float x) { return x; }
  static Float load(const float* p, int) { return *p; }
  static Float load_int(const int32_t* p) { return static_cast<float>(*p); }
  static Float load_codes(const uint8_t* p, int) { return *p; }
  static Float add(Float a, Float b) { return a + b; }
  static Float sub(Float a, Float b) { return a - b; }
  static Float mul(Float a, Float b) { return a * b; }
  static Float clamp(Float x, Float low, Float high) { return clamp_float(x, low, high); }
  static Float round(Float x) { return round_small(x); }
  static void store(float* p, Float x, int) { *p = x; }
  static void store_codes(uint8_t* p, Float x, int32_t zero_point, int) {
    *p = static_cast<uint8_t>(static_cast<int32_t>(round_small(x)) + zero_point);
  }
};

#include "octet/kernels/finish-inl.h"

static int32_t dot(const uint8_t* x, const int8_t* w, int64_t n, int32_t zero_point) {
  int32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += (x[i] - zero_point) * w[i];
  return sum;
}

// [out_channels][taps][in channels of the group]: a tap's channels lie together, as in x.
static PackedWeights pack(const int8_t* weights, const ConvShape& shape) {
  const int64_t taps = shape.taps(), channels = shape.in_per_group();
  PackedWeights packed{AlignedBytes(shape.out_channels * taps * channels), {}};
  int8_t* to = packed.codes.as<int8_t>();
  for (int64_t o = 0; o < shape.out_channels; ++o) {
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t c = 0; c < channels; ++c) *to++ = weights[(o * channels + c) * taps + t];
    }
  }
  return packed;
}

static void run(const PackedWeights& weights, const ConvShape& shape, const uint8_t* x, const ConvEpilogue& epilogue,
                const ConvOutput& y, ParallelFor parallel) {
  const int64_t taps = shape.taps(), channels = shape.in_per_group(), outputs = shape.out_channels;
  const int64_t work = std::max<int64_t>(1, outputs * taps * channels);
  parallel(shape.batch * shape.pixels(), 1 + 200000 / work, [&](int64_t begin, int64_t end) {
    std::vector<const uint8_t*> pointers(taps);
    std::vector<int32_t> acc(outputs);
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      gather_taps(shape, x, pixel, 1, nullptr, pointers.data(), 1);
      for (int64_t o = 0; o < outputs; ++o) {
        const int64_t first = o / shape.out_per_group() * channels;
        const int8_t* w = weights.codes.as<int8_t>() + o * taps * channels;
        int32_t sum = epilogue.bias[o];
        for (int64_t t = 0; t < taps; ++t) {  // padding is x_zero_point: it adds nothing
          if (pointers[t]) sum += dot(pointers[t] + first, w + t * channels, channels, epilogue.x_zero_point);
        }
        acc[o] = sum;
      }
      finish(acc.data(), outputs, 1, outputs, epilogue, 0, y, pixel * outputs, outputs);
    }
  });
}

static bool accepts(const ConvShape& /*shape*/) { return true; }

static constexpr ConvFamily kConv[] = {{"u8s8_conv_1x1__generic", accepts, pack, run}};

}  // namespace generic

const KernelSet& generic_kernels() {
  static constexpr KernelSet set{Isa::kGeneric, "rows__generic", generic::kConv, generic::row_kernels()};
  return set;
}

}  // namespace octet::kernels
