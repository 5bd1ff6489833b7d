// Depthwise convolution of any kernel size: one input and one output channel per group. Included inside an ISA's
// namespace and target region, behind a struct Depthwise that gives
//   kTaps      taps that are taken together
//   kChannels  channels that are taken together; accumulators and weights are padded to a multiple of that, x is not
//   Weight     the type of a packed weight
//   accumulate(pointers, stride, groups, c, exist, weights, group_size, init, acc)
//              acc[0..kChannels) = init + the products of the channels [c, c + exist) over all groups of taps. Tap t
//              reads at pointers[t * stride]; the weights of the next group of taps lie group_size further.
//
// Weights: [group of kTaps taps][channel][kTaps], zero where taps or channels end.

static bool depthwise_accepts(const ConvShape& s) {
  return s.groups == s.in_channels && s.groups == s.out_channels && s.groups > 1;
}

static int64_t depthwise_tap_groups(const ConvShape& s) { return (s.taps() + Depthwise::kTaps - 1) / Depthwise::kTaps; }

static PackedWeights depthwise_pack(const WeightCodes& codes, const ConvShape& s, ParallelFor /*parallel*/) {
  const int8_t* weights = codes.data;  // a channel's taps in either order
  const int64_t taps = s.taps(), groups = depthwise_tap_groups(s);
  const int64_t blocks = (s.out_channels + Depthwise::kChannels - 1) / Depthwise::kChannels;
  PackedWeights packed{
      AlignedBytes(groups * blocks * Depthwise::kChannels * Depthwise::kTaps * sizeof(Depthwise::Weight)),
      AlignedBytes(s.out_channels * sizeof(int32_t))};
  auto* to = packed.codes.as<Depthwise::Weight>();
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t c = 0; c < blocks * Depthwise::kChannels; ++c) {
      for (int64_t t = g * Depthwise::kTaps; t < (g + 1) * Depthwise::kTaps; ++t) {
        *to++ = c < s.out_channels && t < taps ? weights[c * taps + t] : Depthwise::Weight{0};
      }
    }
  }
  for (int64_t c = 0; c < s.out_channels; ++c) {
    packed.sums.as<int32_t>()[c] = std::accumulate(weights + c * taps, weights + (c + 1) * taps, int32_t{0});
  }
  return packed;
}

struct DepthwiseSetup {
  DepthwiseSetup(const PackedWeights& weights, const ConvShape& shape, const ConvEpilogue& epilogue)
      : shape(shape),
        padded((shape.out_channels + Depthwise::kChannels - 1) / Depthwise::kChannels * Depthwise::kChannels),
        init(padded, 0),
        outside(padded, static_cast<uint8_t>(epilogue.x_zero_point)) {
    for (int64_t c = 0; c < shape.out_channels; ++c) {
      init[c] = epilogue.bias[c] - epilogue.x_zero_point * weights.sums.as<int32_t>()[c];
    }
  }

  ConvShape shape;
  int64_t padded;  // channels
  std::vector<int32_t> init;
  std::vector<uint8_t> outside;  // what a tap in the padding reads
};

static ConvSetup depthwise_prepare(const PackedWeights& weights, const ConvShape& shape, const ConvEpilogue& epilogue) {
  return std::make_shared<const DepthwiseSetup>(weights, shape, epilogue);
}

static void depthwise_run(const PackedWeights& weights, const ConvSetup& setup, const uint8_t* x,
                          const ConvEpilogue& epilogue, const ConvOutput& y, ParallelFor parallel) {
  constexpr int64_t kBlock = 32;  // pixels at a time
  constexpr int64_t kStep = Depthwise::kChannels;
  const auto& prepared = *static_cast<const DepthwiseSetup*>(setup.get());
  const ConvShape& s = prepared.shape;
  const int64_t padded = prepared.padded, channels = s.out_channels, taps = s.taps(), groups = depthwise_tap_groups(s);
  parallel(s.batch * s.pixels(), 1 + 100000 / (channels * taps), [&](int64_t begin, int64_t end) {
    std::vector<const uint8_t*> pointers(groups * Depthwise::kTaps * kBlock, prepared.outside.data());
    alignas(64) int32_t acc[kBlock * kStep];
    for (int64_t first = begin; first < end; first += kBlock) {
      const int64_t count = std::min(kBlock, end - first);
      gather_taps(s, x, first, count, prepared.outside.data(), pointers.data(), kBlock);
      for (int64_t c = 0; c < channels; c += kStep) {
        const int64_t exist = std::min(kStep, channels - c);
        const auto* w = weights.codes.as<Depthwise::Weight>() + c * Depthwise::kTaps;
        for (int64_t i = 0; i < count; ++i) {
          Depthwise::accumulate(&pointers[i], kBlock, groups, c, exist, w, padded * Depthwise::kTaps, &prepared.init[c],
                                acc + i * kStep);
        }
        finish(acc, kStep, static_cast<int>(count), exist, epilogue, c, y,
               [=](int i) { return (first + i) * channels; });
      }
    }
  });
}
