#include "octet/ops/block_parts.h"

#include <ATen/ops/batch_norm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/hardtanh.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/custom_function.h>

#include <limits>

#include "octet/ops/common.h"
#include "octet/ops/observe.h"
#include "octet/ops/process_group.h"

namespace octet::detail {

using at::Tensor;
using Optional = std::optional<Tensor>;

namespace {

Optional cast(const Optional& t, at::ScalarType dtype) { return t ? Optional(t->to(dtype)) : t; }

class StraightThrough : public torch::autograd::Function<StraightThrough> {
 public:
  static Tensor forward(torch::autograd::AutogradContext*, const Tensor& surrogate, const Tensor& value) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return at::where(at::isnan(surrogate), surrogate, value);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list gradients) {
    return {gradients[0], Tensor()};
  }
};

Normalized normalize_batch(const char* op, const Tensor& y, const BatchNorm& bn) {
  const auto dtype = y.scalar_type();
  if (!bn.process_group.empty()) {
    const auto [normalized, mean, var, count] =
        synced_batch_norm(op, y, cast(bn.weight, dtype), cast(bn.bias, dtype), bn.eps, bn.process_group);
    return {normalized, mean, var, count};
  }
  check_batch(op, y);
  auto [normalized, mean, inverse] =
      at::native_batch_norm(y, cast(bn.weight, dtype), cast(bn.bias, dtype), std::nullopt, std::nullopt,
                            /*training=*/true, /*momentum=*/0.0, bn.eps);
  // 1 / sqrt(var + eps) is what batch norm keeps; off by a few ulp of var + eps, which is what the gain is made of.
  const Tensor variance = inverse.detach().pow(-2).sub(bn.eps).clamp_min(0);
  return {normalized, mean.detach(), variance, batch_count(y)};
}

}  // namespace

Activation parse_activation(const char* op, int64_t activation) {
  TORCH_CHECK(activation >= 0 && activation <= 2, op, ": activation must be 0 (none), 1 (ReLU) or 2 (ReLU6) (got ",
              activation, ")");
  return static_cast<Activation>(activation);
}

CodeBounds output_bounds(const char* op, int64_t activation, const GridRef& output) {
  const Grid grid = read_grid(op, output.scale, output.zero_point, output.qmin, output.qmax);
  return activation_bounds(parse_activation(op, activation), grid);
}

at::ScalarType block_dtype(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

Tensor to_block_dtype(const Tensor& y) { return y.to(block_dtype(y)); }

void check_batch(const char* op, const Tensor& y) {
  const c10::SymInt count = y.sym_numel() / y.sym_size(1);
  TORCH_CHECK(count != 1, op, ": batch statistics need more than one value per channel (got x of shape ", y.sym_sizes(),
              " behind the operator)");
}

Tensor batch_count(const Tensor& y) {
  const c10::SymInt count = y.sym_numel() / y.sym_size(1).max(1);
  return at::full_symint({}, count, y.options().dtype(at::kLong));
}

Normalized normalize(const char* op, const Tensor& y, const BatchNorm& bn) {
  const Tensor none = at::empty({0}, y.options()), no_count = at::empty({0}, y.options().dtype(at::kLong));
  if (!bn.present()) return {y, none, none, no_count};
  if (bn.batch_stats) return normalize_batch(op, y, bn);
  TORCH_CHECK(bn.mean && bn.var, op, ": batch norm without batch_stats needs bn_mean and bn_var (got none)");
  const auto dtype = y.scalar_type();
  return {at::batch_norm(y, cast(bn.weight, dtype), cast(bn.bias, dtype), cast(bn.mean, dtype), cast(bn.var, dtype),
                         /*training=*/false, /*momentum=*/0.0, bn.eps, /*cudnn_enabled=*/false),
          none, none, no_count};
}

Tensor activate(const char* op, const Tensor& y, int64_t activation) {
  switch (parse_activation(op, activation)) {
    case Activation::kIdentity:
      return y;
    case Activation::kRelu:
      return at::relu(y);
    case Activation::kRelu6:
      return at::hardtanh(y, 0, 6);
  }
  return y;
}

std::tuple<Tensor, Tensor> observed(const Tensor& y, bool observe) {
  if (observe) return min_max(y.detach());
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto options = y.options().dtype(at::kFloat);
  return {at::full({}, kInfinity, options), at::full({}, -kInfinity, options)};
}

Tensor straight_through(const Tensor& surrogate, const Tensor& value) {
  return StraightThrough::apply(surrogate, value);
}

bool needs_gradient(std::initializer_list<Optional> tensors) {
  if (!at::GradMode::is_enabled()) return false;
  for (const Optional& t : tensors) {
    if (t && t->requires_grad()) return true;
  }
  return false;
}

}  // namespace octet::detail
