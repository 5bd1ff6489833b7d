#include "octet/ops/fold.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "octet/core/fold.h"
#include "octet/ops/common.h"
#include "octet/ops/fake_quantize.h"
#include "octet/ops/observe.h"
#include "octet/ops/weight_rows.h"

namespace octet {

using at::Tensor;
using Optional = std::optional<Tensor>;
using Folded = std::tuple<Tensor, Tensor, Tensor>;

namespace {

GridSpec checked_weight_spec(int64_t bits) {
  TORCH_CHECK(bits >= 2 && bits <= 8, "fold: weight_bits must lie in [2, 8] (got ", bits, ")");
  return weight_spec(static_cast<int>(bits));
}

void check_per_channel(const char* name, const Optional& t, const Tensor& weight) {
  if (!t) return;
  detail::check_floating("fold", name, *t);
  TORCH_CHECK(t->dim() == 1 && t->sym_numel() == weight.sym_size(0), "fold: ", name,
              ".numel() must equal weight.size(0) (got ", t->sym_numel(), ", ", weight.sym_size(0), ")");
}

void check(const Tensor& weight, const Optional& bias, const Optional& bn_weight, const Optional& bn_bias,
           const Optional& bn_mean, const Optional& bn_var, const Tensor& input_scale, const Tensor& output_scale) {
  detail::check_floating("fold", "weight", weight);
  TORCH_CHECK(weight.dim() >= 2, "fold: weight must have at least 2 dimensions (got ", weight.dim(), ")");
  check_per_channel("bias", bias, weight);
  check_per_channel("bn_weight", bn_weight, weight);
  check_per_channel("bn_bias", bn_bias, weight);
  check_per_channel("bn_mean", bn_mean, weight);
  check_per_channel("bn_var", bn_var, weight);
  TORCH_CHECK(bn_mean.has_value() == bn_var.has_value(), "fold: bn_mean and bn_var must come together");
  TORCH_CHECK(bn_mean || (!bn_weight && !bn_bias), "fold: bn_weight and bn_bias need bn_mean and bn_var");
  for (const Tensor* scale : {&input_scale, &output_scale}) {
    TORCH_CHECK(scale->scalar_type() == at::kFloat && scale->sym_numel() == 1,
                "fold: input_scale and output_scale must be float32 tensors with one element (got ",
                scale->scalar_type(), " of shape ", scale->sym_sizes(), ")");
  }
}

// One number per channel, float32 on the CPU; absent tensors read as a constant.
class ChannelValues {
 public:
  ChannelValues(const Optional& t, float absent) : absent_(absent) {
    if (t) values_ = t->to(at::kCPU, at::kFloat).contiguous();
    if (t) data_ = values_.const_data_ptr<float>();
  }
  float operator[](int64_t channel) const { return data_ == nullptr ? absent_ : data_[channel]; }

 private:
  Tensor values_;
  const float* data_ = nullptr;
  float absent_;
};

// Folding is a little work on parameters: every device does it on the CPU.
Folded fold_any(const Tensor& weight, const Optional& bias, const Optional& bn_weight, const Optional& bn_bias,
                const Optional& bn_mean, const Optional& bn_var, double bn_eps, const Tensor& input_scale,
                const Tensor& output_scale, int64_t weight_bits, bool per_channel) {
  const auto device = weight.device();
  const detail::FoldedChannels folded = detail::fold_channels(weight, bias, bn_weight, bn_bias, bn_mean, bn_var, bn_eps,
                                                              input_scale, output_scale, weight_bits, per_channel);
  return {folded.codes.contiguous().to(device), folded.bias.to(device), folded.multiplier.to(device)};
}

Folded fold_meta(const Tensor& weight, const Optional& bias, const Optional& bn_weight, const Optional& bn_bias,
                 const Optional& bn_mean, const Optional& bn_var, double, const Tensor& input_scale,
                 const Tensor& output_scale, int64_t weight_bits, bool) {
  check(weight, bias, bn_weight, bn_bias, bn_mean, bn_var, input_scale, output_scale);
  checked_weight_spec(weight_bits);
  const auto options = weight.options();
  return {at::empty_symint(weight.sym_sizes(), options.dtype(at::kChar)),
          at::empty_symint({weight.sym_size(0)}, options.dtype(at::kInt)),
          at::empty_symint({weight.sym_size(0)}, options.dtype(at::kFloat))};
}

}  // namespace

detail::FoldedChannels detail::fold_channels(const Tensor& weight, const Optional& bias, const Optional& bn_weight,
                                             const Optional& bn_bias, const Optional& bn_mean, const Optional& bn_var,
                                             double bn_eps, const Tensor& input_scale, const Tensor& output_scale,
                                             int64_t weight_bits, bool per_channel) {
  check(weight, bias, bn_weight, bn_bias, bn_mean, bn_var, input_scale, output_scale);
  const GridSpec spec = checked_weight_spec(weight_bits);
  WeightRows w(weight.to(at::kCPU, at::kFloat), weight_bits, per_channel);
  const ChannelValues biases(bias, 0), gamma(bn_weight, 1), beta(bn_bias, 0), mean(bn_mean, 0), variance(bn_var, 1);
  const auto sx = detail::read_one<float>(input_scale), sy = detail::read_one<float>(output_scale);
  const int64_t channels = weight.size(0), taps = channels == 0 ? 0 : weight.numel() / channels;

  FoldedChannels folded{w.codes(), at::empty({channels}, at::kInt), at::empty({channels}, at::kFloat),
                        std::vector<float>(channels), std::vector<float>(channels)};
  const auto* from = w.rows().const_data_ptr<float>();
  auto* to = folded.codes.mutable_data_ptr<int8_t>();
  auto* b = folded.bias.mutable_data_ptr<int32_t>();
  auto* m = folded.multiplier.mutable_data_ptr<float>();
  at::parallel_for(0, channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const auto affine =
          bn_mean ? batch_norm_affine(gamma[c], beta[c], mean[c], variance[c], bn_eps) : ChannelAffine();
      const FoldedChannel channel = fold_channel(w.scale(c), biases[c], affine, sx, sy);
      if (channel.raised || affine.gain < 0) {
        const Grid grid{w.scale(c), 0, spec.qmin, spec.qmax};
        for (int64_t i = c * taps; i < (c + 1) * taps; ++i) {
          to[i] = static_cast<int8_t>(fold_weight(from[i], grid, affine.gain, channel));
        }
      }
      b[c] = channel.bias;
      m[c] = channel.multiplier;
      folded.gain[c] = static_cast<float>(channel.unsnapped.gain);
      folded.shift[c] = static_cast<float>(channel.unsnapped.shift);
    }
  });
  return folded;
}

std::tuple<Tensor, Tensor> weight_grids(const Tensor& weight, int64_t bits, bool per_channel) {
  const GridSpec spec = checked_weight_spec(bits);
  auto [low, high] = per_channel ? min_max_per_channel(weight, 0) : min_max(weight);
  auto [scale, zero_point] = calculate_qparams(low, high, spec.qmin, spec.qmax, spec.symmetric);
  if (per_channel) return {scale, zero_point};
  return {scale.expand_symint({weight.sym_size(0)}), zero_point.expand_symint({weight.sym_size(0)})};
}

Tensor fake_quantize_weight(const Tensor& weight, int64_t bits, bool per_channel) {
  const GridSpec spec = checked_weight_spec(bits);
  if (weight.device().is_cpu() && weight.scalar_type() == at::kFloat) {
    return detail::fake_quantize_weight_cpu(weight, bits, per_channel);
  }
  const auto [scale, zero_point] = weight_grids(weight, bits, per_channel);
  return fake_quantize_per_channel(weight, scale, zero_point, 0, spec.qmin, spec.qmax);
}

Folded fold(const Tensor& weight, const Optional& bias, const Optional& bn_weight, const Optional& bn_bias,
            const Optional& bn_mean, const Optional& bn_var, double bn_eps, const Tensor& input_scale,
            const Tensor& output_scale, int64_t weight_bits, bool per_channel) {
  static const auto op = detail::find_op<decltype(fold)>("fold");
  return op.call(weight, bias, bn_weight, bn_bias, bn_mean, bn_var, bn_eps, input_scale, output_scale, weight_bits,
                 per_channel);
}

TORCH_LIBRARY_FRAGMENT(octet, m) {
  m.def(
      "fold(Tensor weight, Tensor? bias, Tensor? bn_weight, Tensor? bn_bias, Tensor? bn_mean, Tensor? bn_var, float "
      "bn_eps, Tensor input_scale, Tensor output_scale, int weight_bits, bool per_channel) -> (Tensor codes, Tensor "
      "bias, Tensor multiplier)");
}
TORCH_LIBRARY_IMPL(octet, CompositeExplicitAutograd, m) { m.impl("fold", TORCH_FN(fold_any)); }
TORCH_LIBRARY_IMPL(octet, Meta, m) { m.impl("fold", TORCH_FN(fold_meta)); }
TORCH_LIBRARY_IMPL(octet, Autograd, m) { m.impl("fold", TORCH_FN(detail::NonDifferentiable<fold>::call)); }

}  // namespace octet
