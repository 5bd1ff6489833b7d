// The convolution's epilogue for one pixel: rules 6 and 10. Included inside an ISA's namespace and target region.

template <bool kResidual, class Store>
static inline void finish_loop(const int32_t* __restrict acc, int64_t n, const ConvEpilogue& e, int64_t channel,
                               const uint8_t* __restrict residual, Store store) {
  const float* __restrict multiplier = e.multiplier + channel;
  const int32_t zy = e.y_zero_point;
  const float low = static_cast<float>(e.bounds.lo - zy), high = static_cast<float>(e.bounds.hi - zy);
  const ResidualAdd add = kResidual ? *e.residual : ResidualAdd{};
  const float sum_low = static_cast<float>(add.bounds.lo - add.y_zero_point);
  const float sum_high = static_cast<float>(add.bounds.hi - add.y_zero_point);
  for (int64_t i = 0; i < n; ++i) {
    float steps = round_small(clamp_float(static_cast<float>(acc[i]) * multiplier[i], low, high));
    if (kResidual) {
      const float scaled = static_cast<float>(residual[i] - add.zero_point) * add.ratio;
      steps = round_small(clamp_float(steps * add.conv_ratio + scaled, sum_low, sum_high));
    }
    store(i, steps);
  }
}

// acc: n accumulators, bias included, of the output channels from `channel` on, of the pixel whose first channel lies at
// y[pixel]. Steps are codes less the result's zero point.
static void finish_pixel(const int32_t* acc, int64_t n, const ConvEpilogue& e, int64_t channel, const ConvOutput& y,
                         int64_t pixel) {
  const int64_t at = pixel + channel;
  const int32_t zero_point = e.residual ? e.residual->y_zero_point : e.y_zero_point;
  uint8_t* __restrict codes = y.codes + (y.codes ? at : 0);
  float* __restrict floats = y.floats + (y.floats ? at : 0);
  const float scale = y.scale;
  const auto store_code = [=](int64_t i, float steps) {
    codes[i] = static_cast<uint8_t>(static_cast<int32_t>(steps) + zero_point);
  };
  const auto store_float = [=](int64_t i, float steps) { floats[i] = scale * steps; };
  if (e.residual) {
    const uint8_t* residual = e.residual->codes + at;
    y.codes ? finish_loop<true>(acc, n, e, channel, residual, store_code)
            : finish_loop<true>(acc, n, e, channel, residual, store_float);
  } else {
    y.codes ? finish_loop<false>(acc, n, e, channel, nullptr, store_code)
            : finish_loop<false>(acc, n, e, channel, nullptr, store_float);
  }
}
