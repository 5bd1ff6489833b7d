// Time, GOPS and share of the machine's peak of every convolution kernel, one thread; bytes a second of the elementwise
// ones. Usage: kernels_benchmark [seconds for each measurement = 0.1] [peak]; peak: that of the machine and no more.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#if defined(__x86_64__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // inside gcc's own intrinsics, GCC bug 105593
#endif
#include <immintrin.h>
#endif

#include "layers.h"
#include "octet/kernels/conv.h"
#include "octet/kernels/dispatch.h"
#include "octet/kernels/elementwise.h"

namespace {

using namespace octet::kernels;

double budget = 0.1;

// The shortest of as many calls as fit into the budget: what the code takes when nothing disturbs it.
template <class F>
double seconds(F f) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9;
  for (const auto end = Clock::now() + std::chrono::duration<double>(budget); Clock::now() < end;) {
    const auto start = Clock::now();
    f();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

#if defined(__x86_64__)
// 16 independent chains of vpdpbusd: more than its latency times its throughput.
__attribute__((target("avx512f,avx512vnni"))) double vnni_peak() {
  constexpr int kChains = 16, kRounds = 100000;
  static volatile int sink;
  const double time = seconds([]() __attribute__((target("avx512f,avx512vnni"))) {
    __m512i sum[kChains], x = _mm512_set1_epi32(static_cast<int>(reinterpret_cast<uintptr_t>(&sink)));
    for (auto& s : sum) s = x;
    for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < kChains; ++j) sum[j] = _mm512_dpbusd_epi32(sum[j], x, x);
    }
    for (const auto& s : sum) sink = _mm_cvtsi128_si32(_mm512_castsi512_si128(s));
  });
  return 2.0 * 64 * kChains * kRounds / time * 1e-9;
}
#endif

template <class T>
std::vector<T> random_codes(size_t n, int lo, int hi) {
  static std::mt19937 engine(1);
  std::uniform_int_distribution<int> codes(lo, hi);
  std::vector<T> values(n);
  for (T& value : values) value = static_cast<T>(codes(engine));
  return values;
}

ConvShape shape_of(const Layer& layer) {
  ConvShape s;
  s.batch = layer.rows;
  s.groups = layer.groups;
  s.in_channels = layer.in;
  s.out_channels = layer.out;
  s.in = {1, layer.size, layer.size};
  s.kernel = {1, layer.kernel, layer.kernel};
  s.stride = {1, layer.stride, layer.stride};
  s.padding = {0, layer.kernel / 2, layer.kernel / 2};
  s.out = conv_output_size(s);
  return s;
}

void measure_conv(const Layer& layer, Isa isa, double peak) {
  const ConvShape s = shape_of(layer);
  const auto weights = random_codes<int8_t>(s.out_channels * s.taps() * s.in_per_group(), -127, 127);
  const auto x = random_codes<uint8_t>(s.batch * s.in_pixels() * s.in_channels, 0, 255);
  const std::vector<int32_t> bias(s.out_channels, 100);
  const std::vector<float> multiplier(s.out_channels, 0.001f);
  std::vector<uint8_t> y(s.batch * s.pixels() * s.out_channels);
  ConvEpilogue epilogue;
  epilogue.bias = bias.data();
  epilogue.multiplier = multiplier.data();
  epilogue.x_zero_point = 7;
  const PackedConv packed(weights.data(), s, WeightOrder::kTapsInnermost, isa);
  const double time = seconds([&] { run_conv(packed, s, x.data(), epilogue, y.data(), serial); });
  const double gops = 2.0 * s.batch * s.pixels() * weights.size() / time * 1e-9;
  std::printf("%-34s %-34s %10.1f us %8.1f GOPS", layer.name.data(), std::string(packed.kernel_name()).c_str(),
              time * 1e6, gops);
  if (peak > 0 && isa == Isa::kAvx512Vnni) std::printf(" %5.1f %% of peak", 100 * gops / peak);
  std::printf("\n");
}

void measure_rows(Isa isa) {
  force_isa(isa_name(isa));
  constexpr int64_t n = 1 << 20;
  std::vector<float> x(n), y(n);
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(i % 1000) * 0.01f;
  std::vector<uint8_t> a = random_codes<uint8_t>(n, 0, 255), b = a, pass(pass_bytes(n));
  const float scale = 0.05f;
  const int32_t zero_point = 3;
  const ChannelGrids grid{&scale, &zero_point, 0, 255};
  const ChannelLayout layout{1, 1, n};
  float min, max;
  const auto report = [&](const char* name, double time) {
    std::printf("%-34s %-34s %10.1f us %8.2f elements/ns\n", name, std::string(isa_name(isa)).c_str(), time * 1e6,
                n / time * 1e-9);
  };
  report("fake_quantize", seconds([&] { fake_quantize(x.data(), layout, grid, y.data(), pass.data(), serial); }));
  report("fake_quantize_backward",
         seconds([&] { fake_quantize_backward(x.data(), pass.data(), n, y.data(), serial); }));
  report("min_max", seconds([&] { min_max(x.data(), layout, &min, &max, serial); }));
  report("quantize", seconds([&] { quantize(x.data(), layout, grid, a.data(), serial); }));
  report("dequantize", seconds([&] { dequantize(a.data(), layout, grid, y.data(), serial); }));
  report("add", seconds([&] { add(a.data(), a.data(), n, AddParams{}, b.data(), serial); }));
  report("mul", seconds([&] { mul(a.data(), a.data(), n, MulParams{}, b.data(), serial); }));
  report("lookup", seconds([&] { lookup(a.data(), n, a.data(), b.data(), serial); }));
  force_isa("");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) budget = std::atof(argv[1]);
  double peak = 0;
#if defined(__x86_64__)
  if (available_isas().back() == Isa::kAvx512Vnni) {
    peak = vnni_peak();
    std::printf("peak of a bare vpdpbusd loop: %.1f GOPS\n", peak);
  }
#endif
  if (argc > 2) return 0;
  for (const Isa isa : available_isas()) {
    for (const Layer& layer : kLayers) measure_conv(layer, isa, peak);
    measure_rows(isa);
  }
}
