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
//
// Not by trying all 2048 denominators, which takes 10 us where frozen training does it for every channel of every step:
// the Stern-Brocot tree leads to the neighbours of `ideal` among all fractions with Q <= 4095. Of two neighbours at
// most one has an even Q; the next fraction on its other side then has an odd one.
inline Multiplier snap_multiplier(double ideal) {
  constexpr int64_t kMost = kLargestDenominator;
  ideal = std::min(ideal, kLargestMultiplier);
  // a/below <= fraction of ideal < c/above, and how far it is to both, times their denominators and 2^64: exact.
  int64_t below = 1, above = 1;
  __extension__ using Wide = unsigned __int128;
  Wide to_below = static_cast<uint64_t>(std::ldexp(ideal - std::floor(ideal), 64));
  Wide to_above = (Wide{1} << 64) - to_below;
  const auto steps = [](Wide wanted, int64_t room) { return static_cast<int64_t>(std::min(wanted, Wide(room))); };
  while (below + above <= kMost) {
    const int64_t up = steps(to_below / to_above, (kMost - below) / above);
    below += up * above;
    to_below -= up * to_above;
    if (below + above > kMost) break;
    const int64_t room = (kMost - above) / below;
    const int64_t down = to_below == 0 ? room : steps((to_above - 1) / to_below, room);
    above += down * below;
    to_above -= down * to_below;
  }
  const int64_t low = below % 2 == 1 ? below : (kMost + above) / below * below - above;
  const int64_t high = above % 2 == 1 ? above : (kMost + below) / above * above - below;
  Multiplier best;
  double best_error = HUGE_VAL;
  for (const int64_t q : {std::min(low, high), std::max(low, high)}) {
    const double p = round_even(ideal * static_cast<double>(q));
    const double error = std::fabs(ideal - p / static_cast<double>(q));
    if (error < best_error) {
      best_error = error;
      best = {static_cast<int64_t>(p), static_cast<int32_t>(q)};
    }
  }
  return best;
}

}  // namespace octet
