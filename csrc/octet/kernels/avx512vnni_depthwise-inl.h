// Depthwise convolution with kernels three wide and up to three high, the ones networks are made of: the rows of an
// input column are interleaved once, by one vpermt2b for every 16 channels, and the result serves the three outputs
// that read the column. Included inside the namespace and target region of AVX-512 VNNI.

// Two vectors: 16 channels each, the rows of a column as the four bytes of a lane (the fourth is not looked at).
struct Column {
  __m512i low, high;
};

struct ColumnReader {
  const uint8_t* rows[3];  // at input column 0, at the block's first channel
  int64_t steps[3];        // from column to column: 0 where a row is padding
  int64_t width;
  __mmask32 exists;
  Column outside;
  __m512i first, second;  // permutations

  Column read(int64_t column) const {
    if (column < 0 || column >= width) return outside;
    const __m512i ab = Depthwise::load_pair(rows[0] + column * steps[0], rows[1] + column * steps[1], exists);
    const __m512i c = _mm512_zextsi256_si512(_mm256_maskz_loadu_epi8(exists, rows[2] + column * steps[2]));
    return {_mm512_permutex2var_epi8(ab, first, c), _mm512_permutex2var_epi8(ab, second, c)};
  }
};

// acc[i] = the accumulators of 32 channels of output column begin + i.
template <int kStride>
static void depthwise3_row(const ColumnReader& reader, int64_t begin, int64_t end, int64_t padding,
                           const int8_t* weights, const int32_t* init, int32_t* acc) {
  __m512i w[6];
#pragma GCC unroll 6
  for (int i = 0; i < 6; ++i) w[i] = _mm512_load_si512(weights + 64 * i);
  const __m512i init_low = _mm512_loadu_si512(init), init_high = _mm512_loadu_si512(init + 16);
  int64_t at = begin * kStride - padding;
  Column a = reader.read(at), b = reader.read(at + 1);
  for (int64_t i = begin; i < end; ++i, acc += 32) {
    const Column c = reader.read(at + 2);
    _mm512_store_si512(
        acc,
        _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_dpbusd_epi32(init_low, a.low, w[0]), b.low, w[2]), c.low, w[4]));
    _mm512_store_si512(
        acc + 16, _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_dpbusd_epi32(init_high, a.high, w[1]), b.high, w[3]),
                                      c.high, w[5]));
    at += kStride;
    a = kStride == 1 ? b : c;
    b = kStride == 1 ? c : reader.read(at + 1);
  }
}

static bool depthwise3_accepts(const ConvShape& s) {
  return depthwise_accepts(s) && s.kernel[2] == 3 && s.kernel[1] <= 3 && s.kernel[0] == 1 && s.dilation[2] == 1 &&
         (s.stride[2] == 1 || s.stride[2] == 2);
}

// [block of 32 channels][kernel column][channel][row of 4]
static PackedWeights depthwise3_pack(const WeightCodes& codes, const ConvShape& s, ParallelFor /*parallel*/) {
  const int8_t* weights = codes.data;  // a channel's taps in either order
  const int64_t blocks = (s.out_channels + 31) / 32;
  PackedWeights packed{AlignedBytes(blocks * 384), AlignedBytes(blocks * 32 * sizeof(int32_t))};
  auto* to = packed.codes.as<int8_t>();
  auto* sums = packed.sums.as<int32_t>();
  std::memset(to, 0, packed.codes.size());
  std::memset(sums, 0, packed.sums.size());
  for (int64_t c = 0; c < s.out_channels; ++c) {
    for (int64_t row = 0; row < s.kernel[1]; ++row) {
      for (int64_t column = 0; column < 3; ++column) {
        const int8_t code = weights[(c * s.kernel[1] + row) * 3 + column];
        to[c / 32 * 384 + column * 128 + c % 32 * 4 + row] = code;
        sums[c] += code;
      }
    }
  }
  return packed;
}

// Points the reader at the rows that one row of outputs (counted over batch and depth) reads.
static void point_at_rows(const ConvShape& s, const uint8_t* x, int64_t row, int64_t channel, const uint8_t* outside,
                          ColumnReader& reader) {
  const int64_t slice = row / s.out[1] % s.out[0] * s.stride[0] - s.padding[0];
  const int64_t image = row / s.out[1] / s.out[0];
  for (int64_t kh = 0; kh < 3; ++kh) {
    const int64_t h = row % s.out[1] * s.stride[1] - s.padding[1] + kh * s.dilation[1];
    const bool inside = kh < s.kernel[1] && h >= 0 && h < s.in[1] && slice >= 0 && slice < s.in[0];
    const int64_t first = ((image * s.in[0] + slice) * s.in[1] + h) * s.in[2] * s.in_channels + channel;
    reader.rows[kh] = inside ? x + first : outside;
    reader.steps[kh] = inside ? s.in_channels : 0;
  }
}

static void depthwise3_run(const PackedWeights& weights, const ConvSetup& setup, const uint8_t* x,
                           const ConvEpilogue& epilogue, const ConvOutput& y, ParallelFor parallel) {
  constexpr int64_t kColumns = 64;  // whose accumulators stay in the first-level cache
  const auto* prepared = static_cast<const DepthwiseSetup*>(setup.get());
  const ConvShape& s = prepared->shape;
  const int32_t* init = prepared->init.data();
  const uint8_t* outside = prepared->outside.data();
  const int64_t channels = s.out_channels, blocks = (channels + 31) / 32;
  const __m512i padding = _mm512_set1_epi8(static_cast<char>(epilogue.x_zero_point));
  const auto row_function = s.stride[2] == 1 ? depthwise3_row<1> : depthwise3_row<2>;
  parallel(s.batch * s.out[0] * s.out[1], 1 + 30000 / (s.out[2] * channels), [&](int64_t begin, int64_t end) {
    ColumnReader reader{};
    reader.width = s.in[2];
    reader.outside = {padding, padding};
    Depthwise::load_permutations(reader.first, reader.second);
    alignas(64) int32_t acc[kColumns * 32];
    const auto sum_row = [&](int64_t row, int64_t block, int64_t first, int64_t last, int32_t* to) {
      point_at_rows(s, x, row, block * 32, outside, reader);
      row_function(reader, first, last, s.padding[2], weights.codes.as<int8_t>() + block * 384, init + block * 32, to);
    };
    const int64_t width = s.out[2], together = std::max<int64_t>(1, kColumns / width);  // rows finished at once
    for (int64_t row = begin; row < end; row += together) {
      const int64_t rows = std::min(together, end - row);
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t c = block * 32, exist = std::min<int64_t>(32, channels - c);
        reader.exists = Depthwise::mask(exist);
        for (int64_t first = 0; first < width; first += kColumns) {
          const int64_t last = std::min(width, first + kColumns);
          for (int64_t r = 0; r < rows; ++r) sum_row(row + r, block, first, last, acc + r * width * 32);
          finish(acc, 32, static_cast<int>((rows - 1) * width + last - first), exist, epilogue, c, y,
                 [=](int i) { return (row * width + first + i) * channels; });
        }
      }
    }
  });
}
