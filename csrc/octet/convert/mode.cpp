#include "octet/convert/mode.h"

#include <c10/core/GradMode.h>
#include <torch/nn/modules/batchnorm.h>

#include "octet/nn/block.h"

namespace octet {

namespace {

template <class Function>
void for_each_grid(torch::nn::Module& model, Function f) {
  model.apply([&](torch::nn::Module& module) {
    if (auto* grid = dynamic_cast<nn::FakeQuantizeImpl*>(&module)) f(*grid);
  });
}

bool is_batch_norm(torch::nn::Module& module) {
  return dynamic_cast<torch::nn::BatchNorm1dImpl*>(&module) != nullptr ||
         dynamic_cast<torch::nn::BatchNorm2dImpl*>(&module) != nullptr ||
         dynamic_cast<torch::nn::BatchNorm3dImpl*>(&module) != nullptr;
}

void freeze_norms(torch::nn::Module& module, bool freeze) {
  if (auto* block = dynamic_cast<nn::NormBlockImpl*>(&module)) {
    block->freeze_bn = freeze;
    return;  // its batch norm goes by the block's flag
  }
  for (const auto& child : module.children()) {
    if (is_batch_norm(*child)) child->train(!freeze && module.is_training());
    freeze_norms(*child, freeze);
  }
}

}  // namespace

void set_mode(torch::nn::Module& model, const Mode& mode) {
  for_each_grid(model, [&](nn::FakeQuantizeImpl& grid) {
    if (mode.observe) grid.set_observing(*mode.observe);
    if (mode.fake_quantize) grid.set_enabled(*mode.fake_quantize);
  });
  if (mode.freeze_bn) freeze_norms(model, *mode.freeze_bn);
}

void calibrate(torch::nn::Module& model, size_t batches, const std::function<void(size_t)>& forward) {
  TORCH_CHECK(batches > 0, "calibrate: there must be at least one batch (got 0)");
  const c10::NoGradGuard guard;
  std::vector<int64_t> before;
  for_each_grid(model, [&](nn::FakeQuantizeImpl& grid) { before.push_back(grid.nonfinite.item<int64_t>()); });
  const auto set_calibrating = [&](bool on) {
    for_each_grid(model, [&](nn::FakeQuantizeImpl& grid) { grid.set_calibrating(on); });
  };
  const detail::EvaluationGuard evaluation(model);
  set_calibrating(true);
  try {
    for (size_t i = 0; i < batches; ++i) forward(i);
  } catch (...) {
    set_calibrating(false);
    throw;
  }
  set_calibrating(false);
  set_mode(model, {.observe = false, .fake_quantize = true});
  size_t i = 0;
  for_each_grid(model, [&](nn::FakeQuantizeImpl& grid) {
    const int64_t lost = grid.nonfinite.item<int64_t>() - before[i++];
    TORCH_CHECK(lost == 0, "calibrate: ", grid.label, ": values must be finite (got NaN or inf in ", lost, " of ",
                batches, " batches)");
  });
}

namespace detail {

EvaluationGuard::EvaluationGuard(torch::nn::Module& model) : model_(model) {
  model.apply([&](torch::nn::Module& module) { training_.push_back(module.is_training()); });
  model.eval();
}

// train() reaches the children too, which come later in the order of apply.
EvaluationGuard::~EvaluationGuard() {
  size_t i = 0;
  model_.apply([&](torch::nn::Module& module) { module.train(training_[i++]); });
}

}  // namespace detail

}  // namespace octet
