// The epilogue of AVX-512 where codes are stored, 64 accumulators at once: saturating packs clamp on the way, which
// leaves four operations for a vector instead of eight. The float only has to stay below the integers' end; beyond the
// other end the conversion gives the smallest integer. Included inside the namespace and target region of AVX-512 VNNI.

template <bool kResidual>
class PackedFinish {
 public:
  PackedFinish(const ConvEpilogue& e, uint8_t* y)
      : e_(e),
        add_(kResidual ? *e.residual : ResidualAdd{}),
        y_(y),
        least_(static_cast<float>(e.bounds.lo - e.y_zero_point)),
        most_(static_cast<float>(e.bounds.hi - e.y_zero_point)),
        zero_point_(_mm512_set1_epi16(static_cast<int16_t>(kResidual ? add_.y_zero_point : e.y_zero_point))),
        low_(_mm512_set1_epi8(static_cast<char>(bounds().lo))),
        high_(_mm512_set1_epi8(static_cast<char>(bounds().hi))) {}

  // kVectors vectors of a pixel, so 4 / kVectors pixels at once; `exists` masks the channels of the last vector, of
  // which there may be fewer only if there is one.
  template <int kVectors, class At>
  void run(const int32_t* acc, int64_t acc_stride, int rows, int64_t channel, __mmask16 exists, At at) const {
    constexpr int kPixels = 4 / kVectors;
    const PackedFinish self = *this;  // in registers: the codes that are stored might be any other object's bytes
    __m512 multiplier[kVectors];
    for (int v = 0; v < kVectors; ++v)
      multiplier[v] = _mm512_maskz_loadu_ps(exists, self.e_.multiplier + channel + 16 * v);
    const auto pixels = [&](int row, auto whole) {
      int64_t place[kPixels];
      __m512i q[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const int r = whole ? row + v / kVectors : std::min(row + v / kVectors, rows - 1), part = v % kVectors * 16;
        if (part == 0) place[v / kVectors] = at(r) + channel;
        const __m512 sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(acc + r * acc_stride + part));
        q[v] =
            self.template steps<false>(_mm512_mul_ps(sum, multiplier[part / 16]), place[v / kVectors] + part, exists);
      }
      const __m512i codes = self.pack(q);
      if constexpr (kVectors == 4) {
        _mm512_storeu_si512(self.y_ + place[0], codes);
      } else if constexpr (kVectors == 2) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(self.y_ + place[0]), _mm512_castsi512_si256(codes));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(self.y_ + place[1]), _mm512_extracti64x4_epi64(codes, 1));
      } else {
        self.store(_mm512_castsi512_si128(codes), place[0], exists);
        self.store(_mm512_extracti32x4_epi32(codes, 1), place[1], exists);
        self.store(_mm512_extracti32x4_epi32(codes, 2), place[2], exists);
        self.store(_mm512_extracti32x4_epi32(codes, 3), place[3], exists);
      }
    };
    int row = 0;
    for (; row + kPixels <= rows; row += kPixels) pixels(row, std::true_type());
    if (row < rows) pixels(row, std::false_type());  // the last pixel takes the places of those that do not exist
  }

  // A tile's accumulators, in registers. All channels exist, and no product leaves the integers.
  template <int kRows, int kVectors>
  [[gnu::always_inline]] inline void run(const __m512i (&sum)[kRows][kVectors], int64_t channel,
                                         const int64_t* places) const {
    constexpr int kPixels = 4 / kVectors;  // whose codes are packed together
    uint8_t* y = y_ + channel;
#pragma GCC unroll 16
    for (int row = 0; row < kRows; row += kPixels) {
      __m512i q[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const int r = std::min(row + v / kVectors, kRows - 1), part = v % kVectors;
        const __m512 factor = _mm512_loadu_ps(e_.multiplier + channel + 16 * part);
        const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][part]), factor);
        q[v] = steps<true>(product, places[r] + channel + 16 * part, 0xffff);
      }
      const __m512i codes = pack(q);
      if constexpr (kVectors == 4) {
        _mm512_storeu_si512(y + places[row], codes);
      } else if constexpr (kVectors == 3) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + places[row]), _mm512_castsi512_si256(codes));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(y + places[row] + 32), _mm512_extracti32x4_epi32(codes, 2));
      } else if constexpr (kVectors == 2) {
        const int second = std::min(row + 1, kRows - 1);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + places[row]), _mm512_castsi512_si256(codes));
        if (second > row) {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + places[second]), _mm512_extracti64x4_epi64(codes, 1));
        }
      } else {
        store(_mm512_castsi512_si128(codes), places[row] + channel, 0xffff);
        if (row + 1 < kRows) store(_mm512_extracti32x4_epi32(codes, 1), places[row + 1] + channel, 0xffff);
        if (row + 2 < kRows) store(_mm512_extracti32x4_epi32(codes, 2), places[row + 2] + channel, 0xffff);
        if (row + 3 < kRows) store(_mm512_extracti32x4_epi32(codes, 3), places[row + 3] + channel, 0xffff);
      }
    }
  }

 private:
  const CodeBounds& bounds() const { return kResidual ? add_.bounds : e_.bounds; }

  // From a product of rule 6 to the result's code less its zero point, not yet clamped. kBounded: it is known to fit.
  template <bool kBounded>
  [[gnu::always_inline]] inline __m512i steps(__m512 product, int64_t at, __mmask16 exists) const {
    if constexpr (kResidual) {
      const __m512 clamped = _mm512_min_ps(_mm512_max_ps(product, _mm512_set1_ps(least_)), _mm512_set1_ps(most_));
      const __m512 mine = _mm512_roundscale_ps(clamped, 0);
      const __m512i codes = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(exists, add_.codes + at));
      const __m512 other = _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, _mm512_set1_epi32(add_.zero_point)));
      product = _mm512_add_ps(_mm512_mul_ps(mine, _mm512_set1_ps(add_.conv_ratio)),
                              _mm512_mul_ps(other, _mm512_set1_ps(add_.ratio)));
    }
    return _mm512_cvtps_epi32(kBounded ? product : _mm512_min_ps(product, _mm512_set1_ps(32767.0f)));
  }

  [[gnu::always_inline]] inline __m512i pack(const __m512i (&q)[4]) const {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i first = _mm512_adds_epi16(_mm512_packs_epi32(q[0], q[1]), zero_point_);
    const __m512i second = _mm512_adds_epi16(_mm512_packs_epi32(q[2], q[3]), zero_point_);
    const __m512i codes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second));
    return _mm512_min_epu8(_mm512_max_epu8(codes, low_), high_);
  }

  [[gnu::always_inline]] inline void store(__m128i codes, int64_t at, __mmask16 exists) const {
    if (exists == 0xffff) return _mm_storeu_si128(reinterpret_cast<__m128i*>(y_ + at), codes);
    _mm_mask_storeu_epi8(y_ + at, exists, codes);
  }

  ConvEpilogue e_;
  ResidualAdd add_;
  uint8_t* y_;
  float least_, most_;  // of the convolution's own steps
  __m512i zero_point_, low_, high_;
};

template <bool kResidual, class At>
static void finish_packed(const int32_t* acc, int64_t acc_stride, int rows, int64_t channels, const ConvEpilogue& e,
                          int64_t channel, uint8_t* y, At at) {
  const PackedFinish<kResidual> finish(e, y);
  int64_t c = 0;
  for (; c + 64 <= channels; c += 64) {
    finish.template run<4>(acc + c, acc_stride, rows, channel + c, 0xffff, at);
  }
  if (c + 32 <= channels) {
    finish.template run<2>(acc + c, acc_stride, rows, channel + c, 0xffff, at);
    c += 32;
  }
  for (; c < channels; c += 16) {
    const auto exists = static_cast<__mmask16>(channels - c < 16 ? (1u << (channels - c)) - 1 : 0xffff);
    finish.template run<1>(acc + c, acc_stride, rows, channel + c, exists, at);
  }
}

template <class At>
static void finish_all_packed(const int32_t* acc, int64_t acc_stride, int rows, int64_t channels, const ConvEpilogue& e,
                              int64_t channel, uint8_t* y, At at) {
  const auto finish = e.residual ? finish_packed<true, At> : finish_packed<false, At>;
  finish(acc, acc_stride, rows, channels, e, channel, y, at);
}
