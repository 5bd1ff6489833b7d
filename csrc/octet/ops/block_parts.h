// The steps that blocks are made of. Not a public header.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>

#include "octet/core/requantize.h"
#include "octet/ops/grid_ref.h"

namespace octet::detail {

// Batch norm's parameters; bn_mean and bn_var are the running statistics.
struct BatchNorm {
  const std::optional<at::Tensor>& weight;
  const std::optional<at::Tensor>& bias;
  const std::optional<at::Tensor>& mean;
  const std::optional<at::Tensor>& var;
  double eps;
  bool batch_stats;
  std::string_view process_group = {};  // whose batches count as one; empty: this process's alone

  bool present() const { return mean.has_value() || weight.has_value() || batch_stats; }
};

struct Normalized {
  at::Tensor y, mean, var, count;
};

Activation parse_activation(const char* op, int64_t activation);
CodeBounds output_bounds(const char* op, int64_t activation, const GridRef& output);

// Blocks exchange float32: a bfloat16 value can be off its grid by half a step. float64 stays, for gradient checks.
at::ScalarType block_dtype(const at::Tensor& x);
at::Tensor to_block_dtype(const at::Tensor& y);

// Batch norm with batch statistics of one value per channel would give 0 whatever it is.
void check_batch(const char* op, const at::Tensor& y);
// Values per channel, int64 [].
at::Tensor batch_count(const at::Tensor& y);
Normalized normalize(const char* op, const at::Tensor& y, const BatchNorm& bn);
at::Tensor activate(const char* op, const at::Tensor& y, int64_t activation);
std::tuple<at::Tensor, at::Tensor> observed(const at::Tensor& y, bool observe);

// value, with the gradient of surrogate; NaN where surrogate is NaN, so that a diverged run shows.
at::Tensor straight_through(const at::Tensor& surrogate, const at::Tensor& value);

// Whether any of the tensors takes part in a gradient now.
bool needs_gradient(std::initializer_list<std::optional<at::Tensor>> tensors);

}  // namespace octet::detail
