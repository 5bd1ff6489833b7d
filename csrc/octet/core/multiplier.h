// Tie-free multipliers: rule 7 of docs/numerics.md.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "octet/core/rounding.h"

namespace octet {

inline constexpr int32_t kLargestDenominator = 4095;
inline constexpr double kSmallestMultiplier = 1.0 / kLargestDenominator;
// One step of the accumulator already saturates every 8-bit grid, so larger ideals mean nothing more.
inline constexpr double kLargestMultiplier = 512.0;

// The fraction p/Q, Q odd. acc * p/Q is never nearer than 1/(2Q) to a rounding tie, so every runtime's formula rounds
// alike.
struct Multiplier {
  int64_t numerator = 1;
  int32_t denominator = 1;

  double exact() const { return static_cast<double>(numerator) / denominator; }
  float value() const { return static_cast<float>(exact()); }
};

// The fraction with odd Q <= 4095 nearest to `ideal`; of equally near ones the smallest Q. ideal must be at least
// kSmallestMultiplier (the caller raises smaller ones, see fold.h); above kLargestMultiplier it is that.
inline Multiplier snap_multiplier(double ideal) {
  ideal = std::min(ideal, kLargestMultiplier);
  Multiplier best;
  double best_error = HUGE_VAL;
  for (int32_t q = 1; q <= kLargestDenominator && best_error > 0; q += 2) {
    const double p = round_even(ideal * q);
    const double error = std::fabs(ideal - p / q);
    if (error < best_error) {
      best_error = error;
      best = {static_cast<int64_t>(p), q};
    }
  }
  return best;
}

}  // namespace octet
