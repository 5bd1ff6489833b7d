// What training forwards do, and ranges without training: for prepared Sequentials and prepared modules of one's own.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <concepts>
#include <functional>
#include <optional>
#include <vector>

namespace octet {

// Switches what training forwards do; what is left out stays.
struct Mode {
  std::optional<bool> observe = std::nullopt;        // ranges follow the data
  std::optional<bool> fake_quantize = std::nullopt;  // off: the model is its float original
  // Batch norm keeps its running statistics in training too. Batch norms outside of blocks are put into evaluation
  // mode, or back into that of the module they are in; train() undoes it for them: set the mode after it.
  std::optional<bool> freeze_bn = std::nullopt;
};
void set_mode(torch::nn::Module& model, const Mode& mode);

// Static quantization after training: calls forward(i) for each i < batches in evaluation mode in float, and observes
// all of them with equal weight. Earlier ranges are dropped. Afterwards observing is off, fake quantization on, and the
// training flags are as they were. Errors: no batches, or NaN or inf in an activation; names the first grid that saw
// it, and the ranges are then those of the other batches.
void calibrate(torch::nn::Module& model, size_t batches, const std::function<void(size_t)>& forward);

template <std::derived_from<torch::nn::Module> M>
void calibrate(M& model, const std::vector<at::Tensor>& batches) {
  calibrate(model, batches.size(), [&](size_t i) { model.forward(batches[i]); });
}

namespace detail {

// The module in evaluation mode while it lives; afterwards every module in it is in the mode it was in.
class EvaluationGuard {
 public:
  explicit EvaluationGuard(torch::nn::Module& model);
  ~EvaluationGuard();
  EvaluationGuard(const EvaluationGuard&) = delete;
  EvaluationGuard& operator=(const EvaluationGuard&) = delete;

 private:
  torch::nn::Module& model_;
  std::vector<bool> training_;  // in the order of apply
};

}  // namespace detail

}  // namespace octet
