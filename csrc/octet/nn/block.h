// What all QAT blocks have in common: the grids they refer to and the flags of a forward.
#pragma once

#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/any.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "octet/core/requantize.h"
#include "octet/nn/fake_quantize.h"
#include "octet/nn/int8.h"

namespace octet::nn {

// How a block is built; name what differs: {.input = quantize, .weights = {.bits = 4}}.
struct BlockOptions {
  FakeQuantize input{nullptr};   // the operand's grid, owned by its producer; without one the block stays float
  FakeQuantize output{nullptr};  // a grid another module owns (tensors that share one); none: the block owns a new one
  Spec activations = {};         // of the new grid
  Spec weights = {};
  std::optional<Activation> activation = std::nullopt;  // in the place of the block's own
  std::string label = "";                               // what errors call the block
};

// How an operand comes to a block of a module that octet::prepare has wired.
enum class Arrival {
  kOnGrid,  // float values that lie on the operand's grid
  kFloat,   // float values that the block itself puts on the grid
  kCodes,   // once converted as uint8 codes, before that as kOnGrid
};

// What octet::prepare saw in the forward of a module.
struct Wiring {
  std::vector<Arrival> arrivals;  // by operand
  bool gives_codes = false;       // nothing but blocks reads the result, so that it may be codes once converted
};

using Tensors = std::vector<at::Tensor>;

// An operator of the integer network as it is while training. Its output is on the grid `output`.
//
// Until the grids it reads and writes have ranges, or with fake quantization off, a block is its float composition.
// After that its value is, in training with batch statistics, the fake-quantized composition, and otherwise that of the
// INT8 operator bit for bit. Blocks cannot be cloned (Module::clone says so): a copy would go on referring to the
// original's grids.
class BlockImpl : public torch::nn::Module {
 public:
  using Compute = std::function<at::Tensor(const Tensors&)>;

  // A reference to the grid of an operand, which is not a child, and its name.
  struct Operand {
    std::string name;
    FakeQuantize* grid;
  };

  // The grids of the operands; empty holders where the producer has none.
  virtual std::vector<FakeQuantize> inputs() const = 0;
  // The same, to be set; none where operands and result are on one grid.
  virtual std::vector<Operand> operands() { return {}; }
  // Whether operands and result are on one grid, `output`.
  virtual bool keeps_grid() const { return false; }
  // The module of octet::nn::int8 that computes the same codes. Throws unless all grids are ready to be converted.
  virtual torch::nn::AnyModule to_int8() const = 0;

  bool active() const;  // whether this forward is on the grids
  // From now on forward runs `int8`, on codes or on float values as the wiring says.
  void switch_to(torch::nn::AnyModule int8);

  FakeQuantize output{nullptr};
  Activation activation;
  std::string label;             // what errors call the block
  std::optional<Wiring> wiring;  // set by octet::prepare for the blocks of a user's own module

 protected:
  BlockImpl(std::string name, const BlockOptions& options, Activation activation);
  // Every forward: `compute` on the operands as they are to be, or its INT8 form.
  at::Tensor run(Tensors operands, const Compute& compute);
  virtual at::Tensor call(torch::nn::AnyModule& int8, const Tensors& codes) { return int8.forward(codes[0]); }
  GridArguments grid_of(const FakeQuantize& input) const;
  void observe(const at::Tensor& low, const at::Tensor& high,
               const at::Tensor& y);  // and ends the output grid's part of this forward
  std::string title() const;          // the class and the label
  int8::Bounds bounds() const;        // rule 6: an activation is a clamp of the output codes
  void check_ready() const;

 private:
  at::Tensor run_int8(Tensors operands);
  void check_count(const Tensors& operands) const;

  torch::nn::AnyModule int8_;  // empty before convert
};

// A block with a weight or a batch norm. Batch norm is not folded while training.
class NormBlockImpl : public BlockImpl {
 public:
  std::vector<FakeQuantize> inputs() const override { return {input}; }
  std::vector<Operand> operands() override { return {{"input", &input}}; }
  void set_weights(const Spec& spec);

  FakeQuantize input{nullptr};  // not a child: its producer owns it
  Spec weights;
  bool freeze_bn = false;  // running statistics in training too
  // c10d's name of the processes whose batches batch norm takes for one, as torch's SyncBatchNorm does; empty: this one
  std::string process_group = "";

 protected:
  // Batch norm as the ops take it; all empty for none.
  struct Norm {
    std::optional<at::Tensor> weight, bias, mean, var;
    double eps = 0.0;
  };

  NormBlockImpl(std::string name, const BlockOptions& options, Activation activation);

  template <class BatchNorm>
  static Norm norm(const BatchNorm& bn);
  template <class BatchNorm>
  bool batch_stats(const BatchNorm& bn) const {
    return bn && bn->is_training() && !freeze_bn;
  }
  // Writes what a forward showed to the buffers.
  template <class BatchNorm>
  void finish(const BatchNorm& bn, const at::Tensor& y, const at::Tensor& low, const at::Tensor& high,
              const at::Tensor& mean, const at::Tensor& var, const at::Tensor& count);
  int8::Folded fold(const at::Tensor& weight, const at::Tensor& bias, const Norm& norm) const;
  int8::Requantization requantization() const;
  void check_accumulator(const at::Tensor& weight) const;  // rule 5
};

inline std::optional<at::Tensor> optional_tensor(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

namespace detail {
void update_statistics(at::Tensor running_mean, at::Tensor running_var, at::Tensor batches, const at::Tensor& mean,
                       const at::Tensor& var, const at::Tensor& count, std::optional<double> momentum);
void check_running_statistics(const std::string& title, bool tracked);
}  // namespace detail

template <class BatchNorm>
NormBlockImpl::Norm NormBlockImpl::norm(const BatchNorm& bn) {
  if (!bn) return {};
  return {optional_tensor(bn->weight), optional_tensor(bn->bias), bn->running_mean, bn->running_var, bn->options.eps()};
}

template <class BatchNorm>
void NormBlockImpl::finish(const BatchNorm& bn, const at::Tensor& y, const at::Tensor& low, const at::Tensor& high,
                           const at::Tensor& mean, const at::Tensor& var, const at::Tensor& count) {
  observe(low, high, y);
  if (!batch_stats(bn)) return;
  detail::update_statistics(bn->running_mean, bn->running_var, bn->num_batches_tracked, mean, var, count,
                            bn->options.momentum());
}

}  // namespace octet::nn
