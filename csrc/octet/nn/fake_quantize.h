// The owners of ranges and grids: FakeQuantize, and observers on their own.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "octet/nn/spec.h"

namespace octet::nn {

struct GridSet;

// Throws unless every field of the Spec is in its range.
void check_spec(const Spec& spec);

// A grid as the ops take it.
struct GridArguments {
  at::Tensor scale;       // float32 []
  at::Tensor zero_point;  // int32 []
  int64_t qmin;
  int64_t qmax;
};

// Observes the range of a tensor and rounds it to the grid that follows from the range: rules 1 to 3 of
// docs/numerics.md.
//
// forward(x): any floating shape in, the same shape out. Where it observes, the range of x counts from the next forward
// on. Straight-through gradient: 1 where the code is not clamped, else 0. Until a range is known x passes unchanged.
// NaN passes; a forward that saw NaN or inf leaves the range alone and is counted in nonfinite.
//
// Buffers, all 0-d, the same as Python's: min, max (+inf, -inf while empty), scale, zero_point, steps, observing,
// enabled, stale, nonfinite. stale is 1 while fake quantization is off after it had been on, 2 once the range was
// observed in training since then, so that it is not that of the quantized model. With an observer that needs one also
// histogram, int64 [8192], and exponent, of its bins' width; such a grid observes until it is active. They keep their
// dtype under Module::to. The switches are read from the buffers in every forward, so that a loaded state acts at once.
class FakeQuantizeImpl : public torch::nn::Module {
 public:
  // label: what errors call this grid.
  explicit FakeQuantizeImpl(const Spec& spec = {}, std::string label = "");

  at::Tensor forward(const at::Tensor& x);

  // Adds one tensor, in float, and its range (float32 [] each) to what this forward saw.
  void observe(const at::Tensor& low, const at::Tensor& high, const at::Tensor& x);
  // `by` has done its part of a forward: if the forward ends with it, what was observed becomes grids. It ends with the
  // grid itself if that is bound to no others, else as bind says.
  void settle(const torch::nn::Module& by);

  bool observes() const;  // whether this forward observes
  bool active() const;    // whether this forward is on the grid
  bool ready() const;     // whether a range is known
  GridArguments grid() const { return {scale, zero_point, qmin, qmax}; }

  void set_observing(bool on);
  void set_enabled(bool on);  // fake quantization
  // Observing in evaluation mode, all forwards with equal weight; drops the range there was.
  void set_calibrating(bool on);
  std::string observer() const;  // as commit_ranges_ calls it, in this forward

  // Throws unless the grid can be converted: it has a finite range, fake quantization is on, the range is not stale.
  void check_ready() const;

  void to(torch::Device device, torch::Dtype dtype, bool non_blocking = false) override;
  void to(torch::Dtype dtype, bool non_blocking = false) override;
  void to(torch::Device device, bool non_blocking = false) override;
  void pretty_print(std::ostream& stream) const override;

  at::Tensor min, max, scale, zero_point, steps, observing, enabled, stale, nonfinite;
  at::Tensor histogram, exponent;  // undefined without an observer that needs them
  Spec spec;
  int64_t qmin, qmax;
  std::string label;

 private:
  friend struct GridSet;
  friend void bind(const std::vector<class FakeQuantize>& grids, const std::vector<int64_t>& components,
                   const torch::nn::Module* last);
  void note_commit();

  // What this forward saw; not part of the state.
  at::Tensor pending_min_, pending_max_, pending_histogram_, pending_exponent_;
  std::shared_ptr<GridSet> set_;  // those it commits with; made on the first observation if bind was not called
  bool calibrating_ = false;
};
TORCH_MODULE(FakeQuantize);

// Lets the grids of one model change together, when the last of the list has observed: list them in the order in which
// a forward meets them, or name the block with which a forward ends. components: per grid the number (>= 0) of the
// additions it takes part in, -1 for none, or no entries at all; the scales of a component become odd multiples of one
// unit (rule 9b of docs/numerics.md). The set does not own them.
void bind(const std::vector<FakeQuantize>& grids, const std::vector<int64_t>& components = {},
          const torch::nn::Module* last = nullptr);

// Keeps the range of what passes; forward returns its input. channels: one range for each index along axis instead of
// one for the whole tensor. A batch (a channel) with NaN or inf changes nothing. Buffers min, max: float32 [] or
// [channels].
class MinMaxObserverImpl : public torch::nn::Module {
 public:
  explicit MinMaxObserverImpl(std::optional<int64_t> channels = std::nullopt, int64_t axis = 0);
  at::Tensor forward(const at::Tensor& x);
  // Scale (float32) and zero point (int32) of the range, in the shape of min: rule 3.
  std::tuple<at::Tensor, at::Tensor> calculate_qparams(int64_t qmin, int64_t qmax, bool symmetric = false) const;

  at::Tensor min, max;

 protected:
  MinMaxObserverImpl(std::string name, std::string observer, double averaging_constant, std::optional<int64_t> channels,
                     int64_t axis);

 private:
  std::string observer_;
  double averaging_constant_;
  std::optional<int64_t> channels_;
  int64_t axis_;
};
TORCH_MODULE(MinMaxObserver);

// Follows the batches: range += averaging_constant * (batch range - range). The first batch counts in full.
class MovingAverageObserverImpl : public MinMaxObserverImpl {
 public:
  explicit MovingAverageObserverImpl(double averaging_constant = 0.01, std::optional<int64_t> channels = std::nullopt,
                                     int64_t axis = 0);
};
TORCH_MODULE(MovingAverageObserver);

}  // namespace octet::nn
