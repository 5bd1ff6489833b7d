// The names of observers in op schemas. Not a public header.
#pragma once

#include <c10/util/Exception.h>

#include <string_view>

#include "octet/core/observer.h"

namespace octet::detail {

inline Observer parse_observer(const char* op, std::string_view name) {
  if (name == "min_max") return Observer::kMinMax;
  if (name == "latest") return Observer::kLatest;
  TORCH_CHECK(name == "moving_average", op, ": observer must be \"min_max\", \"moving_average\" or \"latest\" (got \"",
              name, "\")");
  return Observer::kMovingAverage;
}

}  // namespace octet::detail
