// Rounding: the two primitive steps every rule of docs/numerics.md is made of.
//
// Compile every user of core/ with -ffp-contract=off: a fused multiply-add rounds once where the contract rounds twice.
// The CMake target octet_core carries that flag.
#pragma once

#include <cmath>
#include <cstdint>

namespace octet {

// rne: the nearest integer, halves to even. Needs the default rounding mode, which Torch never changes.
inline float round_even(float x) { return std::nearbyint(x); }
inline double round_even(double x) { return std::nearbyint(x); }

// clamp(rne(x) + zero_point, lo, hi) for any finite or infinite x. Clamping first, between integers, gives the same
// result and keeps the conversion to int defined. x must not be NaN.
inline int32_t round_and_clamp(float x, int32_t zero_point, int32_t lo, int32_t hi) {
  const float low = static_cast<float>(lo - zero_point);
  const float high = static_cast<float>(hi - zero_point);
  const float clamped = x < low ? low : (x > high ? high : x);
  return static_cast<int32_t>(round_even(clamped)) + zero_point;
}

}  // namespace octet
