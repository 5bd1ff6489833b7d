// What to quantize and how.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

namespace octet {

// How one kind of tensor is quantized. Errors are raised by the modules that are given a Spec.
struct Spec {
  int64_t bits = 8;        // 2 to 8; activations [0, 2^bits - 1], weights symmetric without the lowest code
  bool symmetric = false;  // activations: the zero point is in the middle. Weights always are symmetric
  // activations: "moving_average" follows the batches, "min_max" keeps the widest range ever seen; "percentile", "mse"
  // and "entropy" choose the range from a histogram of values in float
  std::string observer = "moving_average";
  double averaging_constant = 0.01;  // weight of the newest batch in the moving average, in (0, 1]
  double percentile = 99.99;         // of the values, how many "percentile" keeps, in (0, 100]
  bool per_channel = true;           // weights: one scale per output channel
};

// In Recipe::overrides: this layer stays float.
inline constexpr std::nullopt_t kFloat = std::nullopt;

// What prepare does to a model. overrides, by layer name: kFloat, or a Spec in the place of both defaults.
struct Recipe {
  Spec activations = {};
  Spec weights = {};
  std::map<std::string, std::optional<Spec>> overrides = {};
};

}  // namespace octet
