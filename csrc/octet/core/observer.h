// How an observed range follows the ranges of batches.
#pragma once

#include <algorithm>
#include <cmath>

#include "octet/core/grid.h"

namespace octet {

enum class Observer {
  kMinMax,
  kMovingAverage,
  kLatest  // the batch's range as it is: what was chosen from a histogram of all batches
};

// A batch with NaN or infinities (or nothing in it) leaves the state alone: one diverged step must not poison the
// range. The moving average starts at the first batch and is state + averaging_constant * (batch - state), each
// operation rounded.
inline Range update_range(Range state, Range batch, Observer observer, float averaging_constant) {
  if (batch.empty() || !batch.finite()) return state;
  if (state.empty() || observer == Observer::kLatest) return batch;
  if (observer == Observer::kMinMax) return {std::min(state.min, batch.min), std::max(state.max, batch.max)};
  return {state.min + averaging_constant * (batch.min - state.min),
          state.max + averaging_constant * (batch.max - state.max)};
}

}  // namespace octet
