#include "octet/ops/process_group.h"

#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/var_mean.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <string>
#include <vector>

#include "octet/ops/common.h"

namespace octet::detail {

using at::Tensor;
using Optional = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

// Boxed, because the type of the group's argument changed between versions of Torch; a name is taken by all.
template <class... Args>
Tensor call_boxed(const char* name, Args&&... args) {
  torch::jit::Stack stack{c10::IValue(std::forward<Args>(args))...};
  c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(&stack);
  return stack[0].toTensor();
}

std::vector<int64_t> all_but_channels(const Tensor& x) {
  std::vector<int64_t> dims;
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (d != 1) dims.push_back(d);
  }
  return dims;
}

Tensor per_channel(const Tensor& values, const Tensor& x) {
  std::vector<int64_t> shape(x.dim(), 1);
  shape[1] = -1;
  return values.to(x.scalar_type()).view(shape);
}

class SyncedBatchNorm : public torch::autograd::Function<SyncedBatchNorm> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& x, const Optional& gamma, const Optional& beta,
                               double eps, std::string_view group, const char* op) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [own_var, own_mean] = at::var_mean(x, all_but_channels(x), /*correction=*/0);
    const Tensor own_count = at::full({}, x.size(1) == 0 ? 0 : x.numel() / x.size(1), x.options().dtype(at::kLong));
    const auto [mean, var, count] = join_moments(op, {own_mean, own_var, own_count}, group);
    const Tensor inverse = (var + eps).rsqrt();
    Tensor y = (x - per_channel(mean, x)) * per_channel(gamma ? inverse * *gamma : inverse, x);
    if (beta) y = y + per_channel(*beta, x);
    context->save_for_backward({x, gamma.value_or(Tensor()), mean, inverse, count});
    context->saved_data["group"] = std::string(group);
    context->saved_data["has_beta"] = beta.has_value();
    context->mark_non_differentiable({mean, var, count});
    return {y, mean, var, count};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &x = saved[0], &gamma = saved[1], &inverse = saved[3], &grad = gradients[0];
    const Tensor centered = x - per_channel(saved[2], x);
    const Tensor own_sum = grad.sum(all_but_channels(x)), own_dot = (grad * centered).sum(all_but_channels(x));
    const Tensor means =
        sum_over_processes(at::stack({own_sum, own_dot}), context->saved_data["group"].toStringRef()) / saved[4];
    const Tensor gain = gamma.defined() ? inverse * gamma : inverse;
    const Tensor grad_x = (grad - per_channel(means[0], x) - centered * per_channel(means[1] * inverse.square(), x)) *
                          per_channel(gain, x);
    return {grad_x,
            gamma.defined() ? own_dot * inverse : Tensor(),
            context->saved_data["has_beta"].toBool() ? own_sum : Tensor(),
            Tensor(),
            Tensor(),
            Tensor()};
  }
};

}  // namespace

Tensor sum_over_processes(const Tensor& t, std::string_view group) {
  if (group.empty()) return t;
  const Tensor pending = call_boxed("_c10d_functional::all_reduce", t.contiguous(), "sum", std::string(group));
  return call_boxed("_c10d_functional::wait_tensor", pending);
}

Moments join_moments(const char* op, const Moments& own, std::string_view group) {
  if (group.empty()) return own;
  // In float64, where mean square minus squared mean loses nothing that float32 had. An empty batch adds nothing; its
  // own mean is NaN.
  const Tensor n = own.count.to(at::kDouble), mean = own.mean.to(at::kDouble), var = own.var.to(at::kDouble);
  const Tensor parts = at::stack({n.expand_as(mean), n * mean, n * (var + mean.square())});
  const Tensor sums = sum_over_processes(at::where(own.count > 0, parts, at::zeros_like(parts)), group);
  const Tensor total = sums[0].select(0, 0), joint_mean = sums[1] / total;
  TORCH_CHECK(!total.is_cpu() || total.item<double>() != 1, op,
              ": batch statistics need more than one value per channel (got 1 on all processes together)");
  const Tensor joint_var = (sums[2] / total - joint_mean.square()).clamp_min(0);
  return {joint_mean.to(own.mean.scalar_type()), joint_var.to(own.var.scalar_type()), total.to(at::kLong)};
}

SyncedNorm synced_batch_norm(const char* op, const Tensor& x, const Optional& gamma, const Optional& beta, double eps,
                             std::string_view group) {
  const variable_list r = SyncedBatchNorm::apply(x, gamma, beta, eps, group, op);
  return {r[0], r[1], r[2], r[3]};
}

}  // namespace octet::detail
