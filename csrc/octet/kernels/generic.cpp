// The bodies every machine can run: plain loops.
#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "octet/kernels/kernel_set.h"
#include "octet/kernels/taps.h"
#include "octet/kernels/target.h"

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

  template <class At>
  static bool finish_codes(const int32_t*, int64_t, int, int64_t, const ConvEpilogue&, int64_t, uint8_t*, At) {
    return false;
  }
};

#include "octet/kernels/finish-inl.h"

// [tap][channel of a group][output channel], widened: the innermost loops run over output channels.
static PackedWeights pack(const WeightCodes& weights, const ConvShape& shape, ParallelFor parallel) {
  const int64_t depth = shape.taps() * shape.in_per_group(), outputs = shape.out_channels;
  PackedWeights packed{AlignedBytes(outputs * depth * sizeof(int16_t)), {}};
  auto* to = packed.codes.as<int16_t>();
  parallel(outputs, 1 + 32768 / std::max<int64_t>(depth, 1), [&](int64_t begin, int64_t end) {
    std::vector<int8_t> room(depth);
    for (int64_t o = begin; o < end; ++o) {
      const int8_t* codes = weights.channel(o, shape, room.data());
      for (int64_t i = 0; i < depth; ++i) to[i * outputs + o] = codes[i];
    }
  });
  return packed;
}

// acc[o] += x * w[o]
static void add_outputs(int32_t x, const int16_t* __restrict w, int64_t n, int32_t* __restrict acc) {
  const auto narrow = static_cast<int16_t>(x);
  for (int64_t o = 0; o < n; ++o) acc[o] += narrow * w[o];
}

// acc[c] += (x[c] - zero_point) * w[c]: depthwise
static void add_channels(const uint8_t* __restrict x, int32_t zero_point, const int16_t* __restrict w, int64_t n,
                         int32_t* __restrict acc) {
  for (int64_t c = 0; c < n; ++c) acc[c] += static_cast<int16_t>(x[c] - zero_point) * w[c];
}

static void add_tap(const ConvShape& shape, const uint8_t* x, int32_t zero_point, const int16_t* w, int32_t* acc) {
  const int64_t channels = shape.in_per_group(), outputs = shape.out_per_group();
  if (channels == 1 && outputs == 1) return add_channels(x, zero_point, w, shape.groups, acc);
  for (int64_t c = 0; c < channels; ++c, w += shape.out_channels) {
    for (int64_t g = 0; g < shape.groups; ++g) {
      add_outputs(x[g * channels + c] - zero_point, w + g * outputs, outputs, acc + g * outputs);
    }
  }
}

static ConvSetup prepare(const PackedWeights& /*weights*/, const ConvShape& shape, const ConvEpilogue& /*epilogue*/) {
  return std::make_shared<const ConvShape>(shape);
}

static void run(const PackedWeights& weights, const ConvSetup& setup, const uint8_t* x, const ConvEpilogue& epilogue,
                const ConvOutput& y, ParallelFor parallel) {
  const ConvShape& shape = *static_cast<const ConvShape*>(setup.get());
  const int64_t taps = shape.taps(), channels = shape.in_per_group(), outputs = shape.out_channels;
  const int64_t work = std::max<int64_t>(1, outputs * taps * channels);
  parallel(shape.batch * shape.pixels(), 1 + 200000 / work, [&](int64_t begin, int64_t end) {
    std::vector<const uint8_t*> pointers(taps);
    std::vector<int32_t> acc(outputs);
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      gather_taps(shape, x, pixel, 1, nullptr, pointers.data(), 1);
      std::copy(epilogue.bias, epilogue.bias + outputs, acc.begin());
      for (int64_t t = 0; t < taps; ++t) {  // padding is x_zero_point: it adds nothing
        const int16_t* w = weights.codes.as<int16_t>() + t * channels * outputs;
        if (pointers[t]) add_tap(shape, pointers[t], epilogue.x_zero_point, w, acc.data());
      }
      finish(acc.data(), outputs, 1, outputs, epilogue, 0, y, [=](int) { return pixel * outputs; });
    }
  });
}

static bool accepts(const ConvShape& /*shape*/) { return true; }

static constexpr ConvFamily kConv[] = {{"u8s8_conv_1x1__generic", accepts, pack, prepare, run}};

}  // namespace generic

const KernelSet& generic_kernels() {
  static constexpr KernelSet set{Isa::kGeneric, "rows__generic", generic::kConv, generic::row_kernels()};
  return set;
}

}  // namespace octet::kernels
