#include "octet/convert/sequential.h"

#include <c10/core/GradMode.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/pooling.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "octet/nn/elementwise.h"
#include "octet/nn/layers.h"

namespace octet {

namespace {

using torch::nn::AnyModule;
using torch::nn::Sequential;

struct Layer {
  std::string name;
  AnyModule module;
};

// The module as what Holder holds, or an empty holder.
template <class Holder>
Holder as(const AnyModule& module) {
  return Holder(std::dynamic_pointer_cast<typename Holder::ContainedType>(module.ptr()));
}

template <class... Holders>
bool is_any(const AnyModule& module) {
  return (as<Holders>(module) || ...);
}

// Layers whose result is on the grid of what they read.
bool keeps_grid(const AnyModule& module) {
  namespace tnn = torch::nn;
  return is_any<tnn::MaxPool1d, tnn::MaxPool2d, tnn::MaxPool3d, tnn::ReLU, tnn::Flatten, tnn::Unflatten, tnn::Identity,
                tnn::Dropout, tnn::Dropout2d, tnn::Dropout3d>(module);
}

// Whether the size of the pool's result is known before its input.
template <size_t D>
bool has_size(const torch::nn::AvgPoolOptions<D>&) {
  return true;
}

template <class OutputSize>
bool has_size(const torch::nn::AdaptiveAvgPoolOptions<OutputSize>& options) {
  const auto& sizes = *options.output_size();
  return std::all_of(sizes.begin(), sizes.end(), [](const std::optional<int64_t>& size) { return size.has_value(); });
}

bool is_dropout(const AnyModule& module) {
  return is_any<torch::nn::Dropout, torch::nn::Dropout2d, torch::nn::Dropout3d>(module);
}

std::vector<Layer> layers_of(const Sequential& model) {
  std::vector<Layer> layers;
  const auto names = model->named_children().keys();
  size_t i = 0;
  for (const AnyModule& module : *model) layers.push_back({names[i++], module});
  return layers;
}

void add(Sequential& model, const std::string& name, AnyModule module) { model->push_back(name, std::move(module)); }

// Walks the layers of a float model and builds the QAT model.
class Preparer {
 public:
  Preparer(const Sequential& model, const Recipe& recipe) : layers_(layers_of(model)), recipe_(recipe) {
    for (const auto& [name, spec] : recipe.overrides) {
      bool found = false;
      for (const Layer& layer : layers_) found |= layer.name == name;
      TORCH_CHECK(found, "prepare: overrides must name layers of the model (got \"", name, "\")");
    }
    for (Layer& layer : layers_) layer.module = layer.module.clone();
  }

  Sequential run() {
    while (next_ < layers_.size()) {
      const Layer layer = layers_[next_++];
      const bool placed =
          !stays_float(layer) && (place_weighted(layer) || place_norm(layer) || place_pool(layer) || place_tied(layer));
      if (!placed) place_island(layer);
    }
    nn::bind(grids_);
    return result_;
  }

 private:
  bool stays_float(const Layer& layer) const {
    const auto found = recipe_.overrides.find(layer.name);
    return found != recipe_.overrides.end() && !found->second;
  }

  // Takes the next layer if it is one of these.
  template <class Holder>
  Holder take() {
    if (next_ == layers_.size() || stays_float(layers_[next_])) return Holder(nullptr);
    Holder module = as<Holder>(layers_[next_].module);
    if (module) ++next_;
    return module;
  }

  // Takes a batch norm that a block can fold into a layer: over the layer's channels, with running statistics.
  template <class BatchNorm>
  BatchNorm take_norm(int64_t channels) {
    const auto bn = next_ < layers_.size() ? as<BatchNorm>(layers_[next_].module) : BatchNorm(nullptr);
    const bool fits = bn && bn->running_mean.defined() && bn->options.num_features() == channels;
    return fits ? take<BatchNorm>() : BatchNorm(nullptr);
  }

  std::optional<Activation> take_activation() {
    if (take<torch::nn::ReLU>()) return Activation::kRelu;
    if (take<torch::nn::ReLU6>()) return Activation::kRelu6;
    return std::nullopt;
  }

  // The grid of the value that `reader` reads; a value that is float so far gets one.
  nn::FakeQuantize grid(const std::string& reader) {
    if (!grid_) {
      const std::string name = reader + "_input";
      grid_ = nn::FakeQuantize(recipe_.activations, name);
      add(result_, name, AnyModule(grid_));
      grids_.push_back(grid_);
    }
    return grid_;
  }

  nn::BlockOptions options(const Layer& layer) {
    const auto found = recipe_.overrides.find(layer.name);
    const Spec* own = found == recipe_.overrides.end() ? nullptr : &*found->second;
    return {.input = grid(layer.name),
            .activations = own ? *own : recipe_.activations,
            .weights = own ? *own : recipe_.weights,
            .label = layer.name};
  }

  template <class Block>
  bool place(const Layer& layer, std::shared_ptr<Block> block) {
    grid_ = block->output;
    grids_.push_back(grid_);
    add(result_, layer.name, AnyModule(std::move(block)));
    return true;
  }

  template <size_t D>
  bool place_conv(const Layer& layer) {
    using Block = nn::ConvBlockImpl<D>;
    auto conv = as<typename Block::Conv>(layer.module);
    if (!conv || !nn::zero_padding(conv->options)) return false;
    auto bn = take_norm<typename Block::BatchNorm>(conv->options.out_channels());
    const Activation activation = take_activation().value_or(Activation::kIdentity);
    const std::string name = "Conv" + std::to_string(D) + "d";
    return place(layer, std::make_shared<Block>(name, conv, bn, options(layer), activation));
  }

  bool place_weighted(const Layer& layer) {
    if (place_conv<1>(layer) || place_conv<2>(layer) || place_conv<3>(layer)) return true;
    auto linear = as<torch::nn::Linear>(layer.module);
    if (!linear) return false;
    auto bn = take_norm<torch::nn::BatchNorm1d>(linear->options.out_features());
    const Activation activation = take_activation().value_or(Activation::kIdentity);
    return place(layer, std::make_shared<nn::LinearBlockImpl>("Linear", linear, bn, options(layer), activation));
  }

  template <size_t D>
  bool place_norm(const Layer& layer) {
    auto bn = as<typename nn::FloatLayers<D>::BatchNorm>(layer.module);
    if (!bn || !bn->running_mean.defined()) return false;
    nn::BlockOptions block = options(layer);
    block.activation = take_activation();
    return place(layer, std::make_shared<nn::BatchNormBlockImpl<D>>(bn, block));
  }
  bool place_norm(const Layer& layer) { return place_norm<1>(layer) || place_norm<2>(layer) || place_norm<3>(layer); }

  template <class Float, class Block>
  bool place_pool(const Layer& layer) {
    auto pool = as<Float>(layer.module);
    return pool && has_size(pool->options) && place(layer, std::make_shared<Block>(pool->options, options(layer)));
  }
  bool place_pool(const Layer& layer) {
    return place_pool<torch::nn::AvgPool1d, nn::AvgPool1dImpl>(layer) ||
           place_pool<torch::nn::AvgPool2d, nn::AvgPool2dImpl>(layer) ||
           place_pool<torch::nn::AvgPool3d, nn::AvgPool3dImpl>(layer) ||
           place_pool<torch::nn::AdaptiveAvgPool1d, nn::AdaptiveAvgPool1dImpl>(layer) ||
           place_pool<torch::nn::AdaptiveAvgPool2d, nn::AdaptiveAvgPool2dImpl>(layer) ||
           place_pool<torch::nn::AdaptiveAvgPool3d, nn::AdaptiveAvgPool3dImpl>(layer);
  }

  bool place_tied(const Layer& layer) {
    if (grid_ && as<torch::nn::ReLU6>(layer.module)) {
      add(result_, layer.name, AnyModule(nn::ReLU6(grid_)));
      return true;
    }
    if (!keeps_grid(layer.module)) return false;
    add(result_, layer.name, layer.module);
    return true;
  }

  void place_island(const Layer& layer) {
    if (grid_) add(result_, layer.name + "_to_float", AnyModule(nn::ToFloat()));
    grid_ = nn::FakeQuantize(nullptr);
    add(result_, layer.name, layer.module);
  }

  std::vector<Layer> layers_;
  const Recipe& recipe_;
  size_t next_ = 0;
  Sequential result_;
  nn::FakeQuantize grid_{nullptr};       // of the value so far; empty while it is float
  std::vector<nn::FakeQuantize> grids_;  // in the order of the forward
};

// Walks the layers of a QAT model and builds the INT8 model.
class Converter {
 public:
  Sequential run(const Sequential& qat) {
    for (const Layer& layer : layers_of(qat)) place(layer);
    if (grid_) place_dequantize("dequantize");
    result_->eval();
    return result_;
  }

 private:
  void place(const Layer& layer) {
    if (auto quantize = as<nn::FakeQuantize>(layer.module)) {
      quantize->check_ready();
      grid_ = quantize;
      add(result_, layer.name, AnyModule(nn::int8::Quantize(grid_->grid())));
    } else if (auto block = std::dynamic_pointer_cast<nn::BlockImpl>(layer.module.ptr())) {
      add(result_, layer.name, block->to_int8());
      grid_ = block->output;
    } else if (as<nn::ToFloat>(layer.module)) {
      place_dequantize(layer.name.substr(0, layer.name.rfind("_to_float")) + "_dequantize");
    } else if (!grid_) {
      add(result_, layer.name, layer.module.clone());  // a float island
    } else if (!is_dropout(layer.module)) {
      place_tied(layer);
    }
  }

  void place_dequantize(const std::string& name) {
    add(result_, name, AnyModule(nn::int8::Dequantize(grid_->grid())));
    grid_ = nn::FakeQuantize(nullptr);
  }

  void place_tied(const Layer& layer) {
    if (as<torch::nn::ReLU>(layer.module)) {
      const nn::int8::Bounds bounds{std::max<int64_t>(grid_->qmin, grid_->zero_point.item<int32_t>()), grid_->qmax};
      add(result_, layer.name, AnyModule(nn::int8::Clamp(bounds)));
    } else if (!place_max_pool<torch::nn::MaxPool1d>(layer) && !place_max_pool<torch::nn::MaxPool2d>(layer) &&
               !place_max_pool<torch::nn::MaxPool3d>(layer)) {
      add(result_, layer.name, layer.module.clone());  // moves codes around
    }
  }

  template <class MaxPool>
  bool place_max_pool(const Layer& layer) {
    const auto pool = as<MaxPool>(layer.module);
    if (!pool) return false;
    const auto numbers = [](const auto& array) { return at::IntArrayRef(array).vec(); };
    const auto& o = pool->options;
    const nn::int8::ConvGeometry geometry{numbers(o.stride()), numbers(o.padding()), numbers(o.dilation())};
    add(result_, layer.name, AnyModule(nn::int8::MaxPool(numbers(o.kernel_size()), geometry, o.ceil_mode())));
    return true;
  }

  Sequential result_;
  nn::FakeQuantize grid_{nullptr};  // of the codes so far; empty while the value is float
};

}  // namespace

Sequential prepare(const Sequential& model, const Recipe& recipe) {
  Sequential qat = Preparer(model, recipe).run();
  qat->train(model->is_training());
  return qat;
}

Sequential convert(const Sequential& qat) {
  const c10::NoGradGuard guard;
  return Converter().run(qat);
}

void calibrate(Sequential& qat, const std::vector<at::Tensor>& batches) {
  calibrate(*qat, batches.size(), [&](size_t i) { qat->forward(batches[i]); });
}

}  // namespace octet
