// The row kernels, written once in plain C++ and compiled for each ISA: included inside that ISA's namespace and target
// region (no include guard, no includes). The loops have no branches and no calls, so that the compiler vectorizes
// them.

// Adding and subtracting 1.5 * 2^23 rounds |x| < 2^22 to even, on every ISA and without a call; the result is never -0,
// so scale * round(x / scale) equals dequantize(quantize(x)) in every bit. Callers clamp first.
constexpr float kRounder = 0x1.8p23f;
static inline float round_small(float x) { return (x + kRounder) - kRounder; }

static inline float clamp_float(float x, float low, float high) {
  const float raised = x < low ? low : x;  // NaN stays
  return raised > high ? high : raised;
}

static inline int32_t requantize_float(float x, float low, float high, int32_t zero_point) {
  return static_cast<int32_t>(round_small(clamp_float(x, low, high))) + zero_point;
}

template <bool kEach, class Code>
static void quantize_loop(const float* __restrict x, int64_t n, const RowGrid& grid, Code* __restrict q) {
  const float* __restrict scale = grid.scale;
  const int32_t* __restrict zero_point = grid.zero_point;
  const int32_t qmin = grid.qmin, qmax = grid.qmax;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t g = kEach ? i : 0;
    const int32_t z = zero_point[g];
    const float steps = x[i] / scale[g];
    const float known = steps == steps ? steps : 0.0f;
    q[i] = static_cast<Code>(requantize_float(known, static_cast<float>(qmin - z), static_cast<float>(qmax - z), z));
  }
}

template <class Code>
static void quantize_row(const float* x, int64_t n, const RowGrid& grid, Code* q) {
  grid.per_element ? quantize_loop<true>(x, n, grid, q) : quantize_loop<false>(x, n, grid, q);
}

template <bool kEach, class Code>
static void dequantize_loop(const Code* __restrict q, int64_t n, const RowGrid& grid, float* __restrict y) {
  const float* __restrict scale = grid.scale;
  const int32_t* __restrict zero_point = grid.zero_point;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t g = kEach ? i : 0;
    y[i] = scale[g] * static_cast<float>(static_cast<int32_t>(q[i]) - zero_point[g]);
  }
}

template <class Code>
static void dequantize_row(const Code* q, int64_t n, const RowGrid& grid, float* y) {
  grid.per_element ? dequantize_loop<true>(q, n, grid, y) : dequantize_loop<false>(q, n, grid, y);
}

// y may be x, so no __restrict between them; every iteration reads its element before it writes it.
template <bool kEach, bool kFlags>
static void fake_quantize_loop(const float* x, int64_t n, const RowGrid& grid, float* y, uint8_t* __restrict flags) {
  const float* __restrict scale = grid.scale;
  const int32_t* __restrict zero_point = grid.zero_point;
  const int32_t qmin = grid.qmin, qmax = grid.qmax;
  OCTET_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const int64_t g = kEach ? i : 0;
    const float low = static_cast<float>(qmin - zero_point[g]);
    const float high = static_cast<float>(qmax - zero_point[g]);
    // One step beyond either end still tells a clamped code from one that rounds onto the end.
    const float steps = round_small(clamp_float(x[i] / scale[g], low - 1.0f, high + 1.0f));
    if (kFlags) flags[i] = static_cast<uint8_t>((steps >= low) & (steps <= high));
    y[i] = scale[g] * clamp_float(steps, low, high);
  }
}

static void fake_quantize_row(const float* x, int64_t n, const RowGrid& grid, float* y, uint8_t* flags) {
  if (grid.per_element) {
    flags ? fake_quantize_loop<true, true>(x, n, grid, y, flags)
          : fake_quantize_loop<true, false>(x, n, grid, y, flags);
  } else {
    flags ? fake_quantize_loop<false, true>(x, n, grid, y, flags)
          : fake_quantize_loop<false, false>(x, n, grid, y, flags);
  }
}

static void pack_bits_row(const uint8_t* __restrict flags, int64_t n, uint8_t* __restrict bits) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    // Little-endian: flag j is bit 8 j of the word; the factor moves it to bit 56 + j, and no two bits meet.
    uint64_t word;
    std::memcpy(&word, flags + i, 8);
    bits[i / 8] = static_cast<uint8_t>((word * 0x0102040810204080u) >> 56);
  }
  if (i == n) return;
  uint8_t byte = 0;
  for (int64_t j = i; j < n; ++j) byte |= static_cast<uint8_t>(flags[j] << (j - i));
  bits[i / 8] = byte;
}

// low and high may be one array: then these are the ranges of its elements.
static void min_max_each_row(const float* low, const float* high, int64_t n, float* __restrict min,
                             float* __restrict max) {
  for (int64_t i = 0; i < n; ++i) {
    // An entry that is NaN compares false and stays; a new NaN replaces the entry.
    min[i] = ((low[i] < min[i]) | (low[i] != low[i])) ? low[i] : min[i];
    max[i] = ((high[i] > max[i]) | (high[i] != high[i])) ? high[i] : max[i];
  }
}

// Independent lanes, because the order of a float reduction is not the compiler's to change.
static void min_max_row(const float* x, int64_t n, float* min, float* max) {
  constexpr int kLanes = 64;
  if (n < kLanes) {  // the weights of a depthwise channel: nine values are not worth 64 lanes
    for (int64_t i = 0; i < n; ++i) min_max_each_row(x + i, x + i, 1, min, max);
    return;
  }
  float low[kLanes], high[kLanes];
  for (int j = 0; j < kLanes; ++j) {
    low[j] = *min;
    high[j] = *max;
  }
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) min_max_each_row(x + i, x + i, kLanes, low, high);
  min_max_each_row(x + i, x + i, n - i, low, high);
  for (int j = 0; j < kLanes; ++j) min_max_each_row(low + j, high + j, 1, min, max);
}

static void lookup_row(const uint8_t* x, int64_t n, const uint8_t* table, uint8_t* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = table[x[i]];
}

static void add_row(const uint8_t* a, const uint8_t* b, int64_t n, const AddParams& p, uint8_t* y) {
  const float ratio_a = p.a_ratio, ratio_b = p.b_ratio;
  const int32_t za = p.a_zero_point, zb = p.b_zero_point, zy = p.y_zero_point;
  const float low = static_cast<float>(p.bounds.lo - zy), high = static_cast<float>(p.bounds.hi - zy);
  OCTET_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const float scaled_a = static_cast<float>(a[i] - za) * ratio_a;
    const float scaled_b = static_cast<float>(b[i] - zb) * ratio_b;
    y[i] = static_cast<uint8_t>(requantize_float(scaled_a + scaled_b, low, high, zy));
  }
}

static void mul_row(const uint8_t* a, const uint8_t* b, int64_t n, const MulParams& p, uint8_t* y) {
  const float multiplier = p.multiplier;
  const int32_t za = p.a_zero_point, zb = p.b_zero_point, zy = p.y_zero_point;
  const float low = static_cast<float>(p.bounds.lo - zy), high = static_cast<float>(p.bounds.hi - zy);
  OCTET_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const float product = static_cast<float>((a[i] - za) * (b[i] - zb)) * multiplier;
    y[i] = static_cast<uint8_t>(requantize_float(product, low, high, zy));
  }
}

// Vectors of any machine: the compiler cuts them to its own. A local array in their place ends up in memory.
using Bytes64 [[gnu::vector_size(64)]] = uint8_t;
using Bytes16 [[gnu::vector_size(16)]] = uint8_t;
using Shorts32 [[gnu::vector_size(64)]] = uint16_t;

template <class Bytes>
static inline void max_codes_at(const uint8_t* const* x, int64_t count, int64_t at, uint8_t* y) {
  Bytes most{};
  for (int64_t i = 0; i < count; ++i) {
    Bytes next;
    std::memcpy(&next, x[i] + at, sizeof next);
    most = next > most ? next : most;
  }
  std::memcpy(y + at, &most, sizeof most);
}

static void max_codes_row(const uint8_t* const* x, int64_t count, int64_t n, uint8_t* y) {
  int64_t at = 0;
  for (; at + 64 <= n; at += 64) max_codes_at<Bytes64>(x, count, at, y);
  for (; at + 16 <= n; at += 16) max_codes_at<Bytes16>(x, count, at, y);
  if (at < n && n >= 16) return max_codes_at<Bytes16>(x, count, n - 16, y);  // some of them once more
  for (; at < n; ++at) max_codes_at<uint8_t>(x, count, at, y);
}

// Adds the codes of 64 channels up in pairs of bytes, since gcc 12 widens the bytes of a vector one by one: those of
// lower and of higher addresses, 256 of which fit into 16 bits.
static void sum_64_channels(const uint8_t* const* x, int64_t count, int64_t at, int32_t* y) {
  static_assert(std::endian::native == std::endian::little);
  for (int64_t begin = 0; begin < count; begin += 256) {
    Shorts32 low{}, high{};
    for (int64_t i = begin; i < std::min(count, begin + 256); ++i) {
      Shorts32 pairs;
      std::memcpy(&pairs, x[i] + at, sizeof pairs);
      low += pairs & 0xff;
      high += pairs >> 8;
    }
    for (int c = 0; c < 32; ++c) {
      y[at + 2 * c] += low[c];
      y[at + 2 * c + 1] += high[c];
    }
  }
}

static void sum_codes_row(const uint8_t* const* x, int64_t count, int64_t n, int32_t* __restrict y) {
  std::fill_n(y, n, 0);
  int64_t at = 0;
  for (; at + 64 <= n; at += 64) sum_64_channels(x, count, at, y);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = at; c < n; ++c) y[c] += x[i][c];
  }
}

static void requantize_row(const int32_t* __restrict acc, int64_t n, int32_t offset, float multiplier,
                           int32_t zero_point, CodeBounds bounds, uint8_t* __restrict y) {
  const float low = static_cast<float>(bounds.lo - zero_point), high = static_cast<float>(bounds.hi - zero_point);
  for (int64_t i = 0; i < n; ++i) {
    y[i] =
        static_cast<uint8_t>(requantize_float(static_cast<float>(acc[i] + offset) * multiplier, low, high, zero_point));
  }
}

static constexpr RowKernels row_kernels() {
  return {quantize_row<uint8_t>,
          quantize_row<int8_t>,
          dequantize_row<uint8_t>,
          dequantize_row<int8_t>,
          fake_quantize_row,
          pack_bits_row,
          min_max_row,
          min_max_each_row,
          lookup_row,
          add_row,
          mul_row,
          max_codes_row,
          sum_codes_row,
          requantize_row};
}
