// The convolution's epilogue: rules 6 and 10. Included inside an ISA's namespace and target region, behind a struct
// Lanes: a vector of kCount floats and the few things done with it. Loads and stores touch the first n elements;
// load_int may read all. Lanes::finish_codes may store the codes in a better way; it returns whether it did.
//
// acc: `rows` pixels of `channels` accumulators, bias included, acc_stride apart, of the output channels from `channel`
// on. The first output channel of pixel `row` lies at y[at(row)].

struct Residual {
  const uint8_t* codes;
  Lanes::Float zero_point, ratio, conv_ratio, low, high;
};

// Codes less their zero point, not yet rounded but for a residual's first operand.
template <bool kResidual>
static inline Lanes::Float finish_vector(const int32_t* acc, Lanes::Float multiplier, Lanes::Float low,
                                         Lanes::Float high, const Residual& add, int64_t at, int n) {
  const Lanes::Float steps = Lanes::clamp(Lanes::mul(Lanes::load_int(acc), multiplier), low, high);
  if constexpr (!kResidual) return steps;
  const Lanes::Float other = Lanes::mul(Lanes::sub(Lanes::load_codes(add.codes + at, n), add.zero_point), add.ratio);
  return Lanes::clamp(Lanes::add(Lanes::mul(Lanes::round(steps), add.conv_ratio), other), add.low, add.high);
}

template <bool kResidual, bool kCodes, class At>
static void finish_tile(const int32_t* acc, int64_t acc_stride, int rows, int64_t channels, const ConvEpilogue& e,
                        int64_t channel, const ConvOutput& y, At place) {
  const auto low = Lanes::set(static_cast<float>(e.bounds.lo - e.y_zero_point));
  const auto high = Lanes::set(static_cast<float>(e.bounds.hi - e.y_zero_point));
  const ResidualAdd r = kResidual ? *e.residual : ResidualAdd{};
  const Residual add{r.codes,
                     Lanes::set(static_cast<float>(r.zero_point)),
                     Lanes::set(r.ratio),
                     Lanes::set(r.conv_ratio),
                     Lanes::set(static_cast<float>(r.bounds.lo - r.y_zero_point)),
                     Lanes::set(static_cast<float>(r.bounds.hi - r.y_zero_point))};
  const int32_t zero_point = kResidual ? r.y_zero_point : e.y_zero_point;
  const auto scale = Lanes::set(y.scale);
  for (int64_t c = 0; c < channels; c += Lanes::kCount) {
    const int n = static_cast<int>(std::min<int64_t>(Lanes::kCount, channels - c));
    const auto multiplier = Lanes::load(e.multiplier + channel + c, n);
    for (int row = 0; row < rows; ++row) {
      const int64_t at = place(row) + channel + c;
      const auto steps = finish_vector<kResidual>(acc + row * acc_stride + c, multiplier, low, high, add, at, n);
      if constexpr (kCodes) {
        Lanes::store_codes(y.codes + at, steps, zero_point, n);
      } else {
        Lanes::store(y.floats + at, Lanes::mul(scale, Lanes::round(steps)), n);
      }
    }
  }
}

template <class At>
static void finish_sums(const int32_t* acc, int64_t acc_stride, int rows, int64_t channels, const float* multiplier,
                        float* y, At at) {
  for (int64_t c = 0; c < channels; c += Lanes::kCount) {
    const int n = static_cast<int>(std::min<int64_t>(Lanes::kCount, channels - c));
    const auto factor = Lanes::load(multiplier + c, n);
    for (int row = 0; row < rows; ++row) {
      Lanes::store(y + at(row) + c, Lanes::mul(Lanes::load_int(acc + row * acc_stride + c), factor), n);
    }
  }
}

template <class At>
static void finish(const int32_t* acc, int64_t acc_stride, int rows, int64_t channels, const ConvEpilogue& e,
                   int64_t channel, const ConvOutput& y, At at) {
  if (y.sums) {
    return finish_sums(acc, acc_stride, rows, channels, e.multiplier + channel, y.floats + channel, at);
  }
  if (y.codes && Lanes::finish_codes(acc, acc_stride, rows, channels, e, channel, y.codes, at)) return;
  const auto tile = e.residual ? (y.codes ? finish_tile<true, true, At> : finish_tile<true, false, At>)
                               : (y.codes ? finish_tile<false, true, At> : finish_tile<false, false, At>);
  tile(acc, acc_stride, rows, channels, e, channel, y, at);
}
