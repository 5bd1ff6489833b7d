// Sixteen float32 lanes, the same arithmetic on every instruction set: a kernel body written with them gives the same
// bits everywhere, in sums too. Included once per ISA inside OCTET_ISA_NAMESPACE; needs -ffp-contract=off.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace octet::kernels::OCTET_ISA_NAMESPACE {

inline constexpr int kLanes = 16;

#if defined(__AVX512F__)
inline constexpr int kPart = 16;  // lanes of one machine register
#elif defined(__AVX2__)
inline constexpr int kPart = 8;
#else
inline constexpr int kPart = 4;
#endif
inline constexpr int kParts = kLanes / kPart;

typedef float FloatPart __attribute__((vector_size(kPart * sizeof(float))));
typedef int32_t IntPart __attribute__((vector_size(kPart * sizeof(int32_t))));
typedef uint8_t BytePart __attribute__((vector_size(kPart)));
typedef uint16_t ShortPart __attribute__((vector_size(kPart * sizeof(uint16_t))));

struct Lanes {
  FloatPart part[kParts];
};

// All bits of a lane set, or none.
struct Mask {
  IntPart part[kParts];
};

inline Lanes splat(float value) {
  Lanes r;
  for (int i = 0; i < kParts; ++i) r.part[i] = FloatPart{} + value;
  return r;
}

inline Lanes load(const float* p) {
  Lanes r;
  for (int i = 0; i < kParts; ++i) std::memcpy(&r.part[i], p + i * kPart, sizeof(FloatPart));
  return r;
}

inline void store(float* p, const Lanes& v) {
  for (int i = 0; i < kParts; ++i) std::memcpy(p + i * kPart, &v.part[i], sizeof(FloatPart));
}

// Sixteen integers in [0, 255]; NaN gives some byte.
inline void store_bytes(uint8_t* p, const Lanes& v) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  for (int i = 0; i < kParts; ++i) {
    const __m256i codes = _mm256_cvttps_epi32((__m256)v.part[i]);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p + i * kPart), _mm_packus_epi16(words, words));
  }
  return;
#endif
  for (int i = 0; i < kParts; ++i) {
    const BytePart bytes = __builtin_convertvector(__builtin_convertvector(v.part[i], IntPart), BytePart);
    std::memcpy(p + i * kPart, &bytes, kPart);
  }
}

// As bfloat16, rounded half to even; NaN stays.
inline void store_bfloat16(uint16_t* p, const Lanes& v) {
  for (int i = 0; i < kParts; ++i) {
    const IntPart bits = (IntPart)v.part[i], odd = (bits >> 16) & 1, nan = v.part[i] != v.part[i];
    const IntPart rounded = (bits + odd + 0x7fff) >> 16;
    const ShortPart shorts = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), ShortPart);
    std::memcpy(p + i * kPart, &shorts, sizeof(shorts));
  }
}

// By intrinsics where there are any: gcc 12 converts the bytes of a vector one by one, at four times the cost of all
// the rest of a tail.
inline Lanes load_bytes(const uint8_t* p) {
  Lanes r;
#if defined(__AVX512F__)
  r.part[0] = (FloatPart)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  return r;
#elif defined(__AVX2__)
  for (int i = 0; i < kParts; ++i) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + i * kPart));
    r.part[i] = (FloatPart)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
  }
  return r;
#endif
  for (int i = 0; i < kParts; ++i) {
    BytePart bytes;
    std::memcpy(&bytes, p + i * kPart, kPart);
    r.part[i] = __builtin_convertvector(__builtin_convertvector(bytes, IntPart), FloatPart);
  }
  return r;
}

#define OCTET_LANES_OPERATOR(op)                                         \
  inline Lanes operator op(const Lanes& a, const Lanes& b) {             \
    Lanes r;                                                             \
    for (int i = 0; i < kParts; ++i) r.part[i] = a.part[i] op b.part[i]; \
    return r;                                                            \
  }
OCTET_LANES_OPERATOR(+)
OCTET_LANES_OPERATOR(-)
OCTET_LANES_OPERATOR(*)
OCTET_LANES_OPERATOR(/)
#undef OCTET_LANES_OPERATOR

#define OCTET_LANES_COMPARISON(op)                                       \
  inline Mask operator op(const Lanes& a, const Lanes& b) {              \
    Mask r;                                                              \
    for (int i = 0; i < kParts; ++i) r.part[i] = a.part[i] op b.part[i]; \
    return r;                                                            \
  }
OCTET_LANES_COMPARISON(<)
OCTET_LANES_COMPARISON(<=)
OCTET_LANES_COMPARISON(==)
#undef OCTET_LANES_COMPARISON

inline Mask operator&(const Mask& a, const Mask& b) {
  Mask r;
  for (int i = 0; i < kParts; ++i) r.part[i] = a.part[i] & b.part[i];
  return r;
}

inline Mask operator|(const Mask& a, const Mask& b) {
  Mask r;
  for (int i = 0; i < kParts; ++i) r.part[i] = a.part[i] | b.part[i];
  return r;
}

inline Mask operator~(const Mask& a) {
  Mask r;
  for (int i = 0; i < kParts; ++i) r.part[i] = ~a.part[i];
  return r;
}

// m ? a : b
inline Lanes choose(const Mask& m, const Lanes& a, const Lanes& b) {
  Lanes r;
  for (int i = 0; i < kParts; ++i) {
    r.part[i] = (FloatPart)(((IntPart)a.part[i] & m.part[i]) | ((IntPart)b.part[i] & ~m.part[i]));
  }
  return r;
}

// m ? a : 0
inline Lanes keep(const Mask& m, const Lanes& a) {
  Lanes r;
  for (int i = 0; i < kParts; ++i) r.part[i] = (FloatPart)((IntPart)a.part[i] & m.part[i]);
  return r;
}

// A NaN in `a` stays, one in `b` is passed over.
inline Lanes at_least(const Lanes& a, const Lanes& b) {
  Lanes r;
  for (int i = 0; i < kParts; ++i) r.part[i] = a.part[i] < b.part[i] ? b.part[i] : a.part[i];
  return r;
}
inline Lanes at_most(const Lanes& a, const Lanes& b) {
  Lanes r;
  for (int i = 0; i < kParts; ++i) r.part[i] = b.part[i] < a.part[i] ? b.part[i] : a.part[i];
  return r;
}

// a where it is NaN, else b (which must not be -0).
inline Lanes keep_nan(const Lanes& a, const Lanes& b) {
  Lanes r;
  for (int i = 0; i < kParts; ++i) r.part[i] = b.part[i] + (FloatPart)((IntPart)a.part[i] & (a.part[i] != a.part[i]));
  return r;
}

// rne for |a| < 2^22, never -0: adding 1.5 * 2^23 leaves no bits for a fraction. NaN stays.
inline Lanes round_even(const Lanes& a) {
  const Lanes magic = splat(0x1.8p23f);
  return (a + magic) - magic;
}

inline uint16_t mask_to_bits(const Mask& m) {
#if defined(__AVX512DQ__)
  return static_cast<uint16_t>(_mm512_movepi32_mask((__m512i)m.part[0]));
#elif defined(__AVX2__)
  return static_cast<uint16_t>(_mm256_movemask_ps((__m256)m.part[0]) | _mm256_movemask_ps((__m256)m.part[1]) << 8);
#elif defined(__SSE2__)
  unsigned bits = 0;
  for (int i = 0; i < kParts; ++i) bits |= static_cast<unsigned>(_mm_movemask_ps((__m128)m.part[i])) << (4 * i);
  return static_cast<uint16_t>(bits);
#else
  unsigned bits = 0;
  for (int l = 0; l < kLanes; ++l) bits |= static_cast<unsigned>(m.part[l / kPart][l % kPart] & 1) << l;
  return static_cast<uint16_t>(bits);
#endif
}

inline Mask bits_to_mask(uint16_t bits) {
  Mask r;
#if defined(__AVX512DQ__)
  r.part[0] = (IntPart)_mm512_movm_epi32(bits);
#else
  for (int i = 0; i < kParts; ++i) {
    IntPart lane;
    for (int l = 0; l < kPart; ++l) lane[l] = 1 << (i * kPart + l);
    r.part[i] = ((IntPart{} + static_cast<int32_t>(bits)) & lane) != 0;
  }
#endif
  return r;
}

// Lane by lane in order, so that the result does not depend on the machine's register size.
inline float sum_of(const Lanes& v) {
  float lane[kLanes];
  store(lane, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lane[l] = lane[l] + lane[l + width];
  }
  return lane[0];
}

// How a body touches memory: whole blocks of sixteen, or the last few elements of an array.
struct WholeBlock {
  Lanes load(const float* p, const Lanes&) const { return OCTET_ISA_NAMESPACE::load(p); }
  Lanes load_bytes(const uint8_t* p, uint8_t) const { return OCTET_ISA_NAMESPACE::load_bytes(p); }
  void store(float* p, const Lanes& v) const { OCTET_ISA_NAMESPACE::store(p, v); }
  void store(uint16_t* p, const Lanes& v) const { OCTET_ISA_NAMESPACE::store_bfloat16(p, v); }
  void store_bytes(uint8_t* p, const Lanes& v) const { OCTET_ISA_NAMESPACE::store_bytes(p, v); }
};

struct PartialBlock {
  int count;

  // Lanes behind the end read as `fill`.
  Lanes load(const float* p, const Lanes& fill) const {
#if defined(__AVX512F__)
    return {{(FloatPart)_mm512_mask_loadu_ps((__m512)fill.part[0], mask(), p)}};
#else
    float lane[kLanes];
    OCTET_ISA_NAMESPACE::store(lane, fill);
    for (int l = 0; l < count; ++l) lane[l] = p[l];
    return OCTET_ISA_NAMESPACE::load(lane);
#endif
  }

  void store(float* p, const Lanes& v) const {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, mask(), (__m512)v.part[0]);
#else
    float lane[kLanes];
    OCTET_ISA_NAMESPACE::store(lane, v);
    for (int l = 0; l < count; ++l) p[l] = lane[l];
#endif
  }

  Lanes load_bytes(const uint8_t* p, uint8_t fill) const {
    uint8_t byte[kLanes];
    for (int l = 0; l < kLanes; ++l) byte[l] = l < count ? p[l] : fill;
    return OCTET_ISA_NAMESPACE::load_bytes(byte);
  }

  void store(uint16_t* p, const Lanes& v) const {
    uint16_t narrow[kLanes];
    OCTET_ISA_NAMESPACE::store_bfloat16(narrow, v);
    for (int l = 0; l < count; ++l) p[l] = narrow[l];
  }

  void store_bytes(uint8_t* p, const Lanes& v) const {
    uint8_t byte[kLanes];
    OCTET_ISA_NAMESPACE::store_bytes(byte, v);
    for (int l = 0; l < count; ++l) p[l] = byte[l];
  }

#if defined(__AVX512F__)
  __mmask16 mask() const { return static_cast<__mmask16>((1u << count) - 1); }
#endif
};

}  // namespace octet::kernels::OCTET_ISA_NAMESPACE
