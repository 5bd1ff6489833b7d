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
  std::string observer = "moving_average";  // activations: or "min_max", the widest range ever seen
  double averaging_constant = 0.01;         // weight of the newest batch in the moving average, in (0, 1]
  bool per_channel = true;                  // weights: one scale per output channel
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
