#include "octet/nn/fake_quantize.h"

#include <ATen/ops/full.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>
#include <ostream>
#include <utility>

#include "octet/core/grid.h"
#include "octet/core/histogram.h"
#include "octet/ops/commit_ranges.h"
#include "octet/ops/fake_quantize.h"
#include "octet/ops/histogram.h"
#include "octet/ops/observe.h"

namespace octet::nn {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

bool counts(const Spec& spec) {
  return spec.observer == "percentile" || spec.observer == "mse" || spec.observer == "entropy";
}

enum Staleness { kFresh, kSwitchedOff, kStale };  // values of the buffer `stale`

}  // namespace

void check_spec(const Spec& spec) {
  TORCH_CHECK(spec.bits >= 2 && spec.bits <= 8, "Spec: bits must be 2 to 8 (got ", spec.bits, ")");
  TORCH_CHECK(spec.observer == "min_max" || spec.observer == "moving_average" || counts(spec),
              "Spec: observer must be \"min_max\", \"moving_average\", \"percentile\", \"mse\" or \"entropy\" (got \"",
              spec.observer, "\")");
  TORCH_CHECK(spec.percentile > 0 && spec.percentile <= 100, "Spec: percentile must be in (0, 100] (got ",
              spec.percentile, ")");
  TORCH_CHECK(spec.averaging_constant > 0 && spec.averaging_constant <= 1,
              "Spec: averaging_constant must be in (0, 1] (got ", spec.averaging_constant, ")");
}

// Grids that change together. Weak references: the modules own themselves, and any of them may be dropped.
struct GridSet {
  std::vector<std::weak_ptr<FakeQuantizeImpl>> grids;
  std::vector<int64_t> components;
  const torch::nn::Module* last = nullptr;  // who ends a forward; only compared
  bool pending = false;                     // something was observed since the last commit

  void commit();
};

namespace {

// The columns of octet::commit_ranges_, one entry per grid.
struct CommitColumns {
  std::vector<at::Tensor> pending_min, pending_max, min, max, scale, zero_point, steps, nonfinite;
  std::vector<int64_t> qmin, qmax, components;
  c10::List<bool> symmetric;
  c10::List<std::string> observer;
  std::vector<double> averaging_constant;

  void run() const {
    commit_ranges_(pending_min, pending_max, min, max, scale, zero_point, steps, nonfinite, qmin, qmax, symmetric,
                   components, {}, observer, averaging_constant);
  }
};

// Those of octet::commit_histograms_, one entry per grid that has a histogram.
struct HistogramColumns {
  std::vector<at::Tensor> histogram, exponent, pending_histogram, pending_exponent, pending_min, pending_max;
  c10::List<std::string> method;
  std::vector<double> percentile;
  std::vector<int64_t> qmin, qmax;
  c10::List<bool> symmetric;

  void run() const {
    commit_histograms_(histogram, exponent, pending_histogram, pending_exponent, pending_min, pending_max, method,
                       percentile, qmin, qmax, symmetric);
  }
};

void add_histogram(HistogramColumns& columns, const FakeQuantizeImpl& grid) {
  columns.histogram.push_back(grid.histogram);
  columns.exponent.push_back(grid.exponent);
  columns.method.push_back(grid.spec.observer);
  columns.percentile.push_back(grid.spec.percentile);
  columns.qmin.push_back(grid.qmin);
  columns.qmax.push_back(grid.qmax);
  columns.symmetric.push_back(grid.spec.symmetric);
}

void add_grid(CommitColumns& columns, const FakeQuantizeImpl& grid, int64_t component) {
  columns.min.push_back(grid.min);
  columns.max.push_back(grid.max);
  columns.scale.push_back(grid.scale);
  columns.zero_point.push_back(grid.zero_point);
  columns.steps.push_back(grid.steps);
  columns.nonfinite.push_back(grid.nonfinite);
  columns.qmin.push_back(grid.qmin);
  columns.qmax.push_back(grid.qmax);
  columns.components.push_back(component);
  columns.symmetric.push_back(grid.spec.symmetric);
  columns.observer.push_back(grid.observer());
  columns.averaging_constant.push_back(grid.spec.averaging_constant);
}

}  // namespace

void GridSet::commit() {
  pending = false;
  CommitColumns columns;
  HistogramColumns histograms;
  std::vector<std::shared_ptr<FakeQuantizeImpl>> living;
  for (size_t i = 0; i < grids.size(); ++i) {
    if (auto grid = grids[i].lock()) {
      add_grid(columns, *grid, components[i]);
      columns.pending_min.push_back(grid->pending_min_);
      columns.pending_max.push_back(grid->pending_max_);
      if (counts(grid->spec)) {
        add_histogram(histograms, *grid);
        histograms.pending_histogram.push_back(grid->pending_histogram_);
        histograms.pending_exponent.push_back(grid->pending_exponent_);
        histograms.pending_min.push_back(grid->pending_min_);
        histograms.pending_max.push_back(grid->pending_max_);
      }
      living.push_back(std::move(grid));
    }
  }
  if (!histograms.histogram.empty()) histograms.run();
  columns.run();
  for (const auto& grid : living) grid->note_commit();
}

FakeQuantizeImpl::FakeQuantizeImpl(const Spec& spec, std::string label)
    : Module("FakeQuantize"), spec(spec), label(std::move(label)) {
  check_spec(spec);
  const GridSpec bounds = activation_spec(static_cast<int>(spec.bits), spec.symmetric);
  qmin = bounds.qmin;
  qmax = bounds.qmax;
  min = register_buffer("min", at::scalar_tensor(kInfinity, at::kFloat));
  max = register_buffer("max", at::scalar_tensor(-kInfinity, at::kFloat));
  scale = register_buffer("scale", at::scalar_tensor(1.0, at::kFloat));
  const int64_t middle = spec.symmetric ? int64_t{1} << (spec.bits - 1) : 0;
  zero_point = register_buffer("zero_point", at::scalar_tensor(middle, at::kInt));
  steps = register_buffer("steps", at::scalar_tensor(1, at::kInt));
  observing = register_buffer("observing", at::scalar_tensor(true, at::kBool));
  enabled = register_buffer("enabled", at::scalar_tensor(true, at::kBool));
  stale = register_buffer("stale", at::scalar_tensor(kFresh, at::kByte));
  nonfinite = register_buffer("nonfinite", at::scalar_tensor(0, at::kLong));
  pending_min_ = min.clone();
  pending_max_ = max.clone();
  if (!counts(spec)) return;
  histogram = register_buffer("histogram", at::zeros({kHistogramBins}, at::kLong));
  exponent = register_buffer("exponent", at::scalar_tensor(kSmallestExponent, at::kInt));
  pending_histogram_ = histogram.clone();
  pending_exponent_ = exponent.clone();
}

bool FakeQuantizeImpl::ready() const { return min.item<float>() <= max.item<float>(); }

bool FakeQuantizeImpl::observes() const {
  return calibrating_ || (is_training() && observing.item<bool>() && !(counts(spec) && active()));
}

bool FakeQuantizeImpl::active() const { return !calibrating_ && enabled.item<bool>() && ready(); }

at::Tensor FakeQuantizeImpl::forward(const at::Tensor& x) {
  TORCH_CHECK(x.is_floating_point(), "FakeQuantize ", label, ": the input must be floating point (got ",
              x.scalar_type(), ")");
  at::Tensor y = x;
  if (!observes()) {
    if (active()) y = fake_quantize_per_tensor(x, scale, zero_point, qmin, qmax);
  } else if (active()) {
    const auto [value, low, high] = observe_and_fake_quantize(x, scale, zero_point, qmin, qmax);
    y = value;
    observe(low, high, x);
  } else {
    const auto [low, high] = min_max(x.detach());
    observe(low, high, x);
  }
  settle(*this);
  return y;
}

void FakeQuantizeImpl::observe(const at::Tensor& low, const at::Tensor& high, const at::Tensor& x) {
  if (!set_)
    set_ = std::make_shared<GridSet>(
        GridSet{{std::static_pointer_cast<FakeQuantizeImpl>(shared_from_this())}, {-1}, this});
  merge_pending_(pending_min_, pending_max_, low, high);
  if (counts(spec)) add_to_histogram_(pending_histogram_, pending_exponent_, x.detach(), std::nullopt);
  set_->pending = true;
}

void FakeQuantizeImpl::settle(const torch::nn::Module& by) {
  if (set_ && set_->pending && set_->last == &by) set_->commit();
}

void FakeQuantizeImpl::set_observing(bool on) { observing.fill_(on); }

void FakeQuantizeImpl::set_enabled(bool on) {
  const int state = stale.item<int>();
  if (!on && enabled.item<bool>() && ready() && state == kFresh) stale.fill_(kSwitchedOff);
  if (on && state == kSwitchedOff) stale.fill_(kFresh);
  enabled.fill_(on);
}

void FakeQuantizeImpl::set_calibrating(bool on) {
  if (on) {
    min.fill_(kInfinity);
    max.fill_(-kInfinity);
    stale.fill_(kFresh);
    if (counts(spec)) {
      histogram.zero_();
      exponent.fill_(kSmallestExponent);
    }
  }
  calibrating_ = on;
}

std::string FakeQuantizeImpl::observer() const {
  if (counts(spec)) return "latest";
  return calibrating_ ? "min_max" : spec.observer;
}

void FakeQuantizeImpl::note_commit() {
  const int state = stale.item<int>();
  if (enabled.item<bool>() && state == kStale) stale.fill_(kFresh);
  if (is_training() && state == kSwitchedOff) stale.fill_(kStale);
}

void FakeQuantizeImpl::check_ready() const {
  const float low = min.item<float>(), high = max.item<float>();
  const int64_t lost = nonfinite.item<int64_t>();
  const Range range{low, high};
  TORCH_CHECK(range.finite() && !range.empty() && std::isfinite(scale.item<float>()), "convert: ", label,
              ": must have a finite range (got [", low, ", ", high, "], ", lost,
              " forwards with NaN or inf); train or calibrate first");
  TORCH_CHECK(enabled.item<bool>(), "convert: ", label, ": must have fake quantization on (got off)");
  TORCH_CHECK(stale.item<int>() != kStale, "convert: ", label,
              ": must have been observed with fake quantization on (got ranges observed in training while it was off, "
              "after it had been on)");
}

// Scales are float32 whatever the model computes in, so only the device follows.
void FakeQuantizeImpl::to(torch::Device device, torch::Dtype, bool non_blocking) { to(device, non_blocking); }
void FakeQuantizeImpl::to(torch::Dtype, bool) {}
void FakeQuantizeImpl::to(torch::Device device, bool non_blocking) {
  Module::to(device, non_blocking);
  pending_min_ = pending_min_.to(device);
  pending_max_ = pending_max_.to(device);
  if (!counts(spec)) return;
  pending_histogram_ = pending_histogram_.to(device);
  pending_exponent_ = pending_exponent_.to(device);
}

void FakeQuantizeImpl::pretty_print(std::ostream& stream) const {
  stream << "octet::nn::FakeQuantize(bits=" << spec.bits << ", symmetric=" << spec.symmetric << ", observer=\""
         << spec.observer << "\")";
}

void bind(const std::vector<FakeQuantize>& grids, const std::vector<int64_t>& components,
          const torch::nn::Module* last) {
  TORCH_CHECK(components.empty() || components.size() == grids.size(),
              "bind: components must have one entry per grid (got ", components.size(), ", ", grids.size(), ")");
  auto set = std::make_shared<GridSet>();
  set->last = last != nullptr || grids.empty() ? last : grids.back().get();
  set->components = components.empty() ? std::vector<int64_t>(grids.size(), -1) : components;
  for (const FakeQuantize& grid : grids) {
    set->grids.push_back(grid.ptr());
    grid.ptr()->set_ = set;
  }
}

MinMaxObserverImpl::MinMaxObserverImpl(std::optional<int64_t> channels, int64_t axis)
    : MinMaxObserverImpl("MinMaxObserver", "min_max", 1.0, channels, axis) {}

MinMaxObserverImpl::MinMaxObserverImpl(std::string name, std::string observer, double averaging_constant,
                                       std::optional<int64_t> channels, int64_t axis)
    : Module(std::move(name)),
      observer_(std::move(observer)),
      averaging_constant_(averaging_constant),
      channels_(channels),
      axis_(axis) {
  const std::vector<int64_t> shape = channels ? std::vector<int64_t>{*channels} : std::vector<int64_t>{};
  min = register_buffer("min", at::full(shape, kInfinity, at::kFloat));
  max = register_buffer("max", at::full(shape, -kInfinity, at::kFloat));
}

at::Tensor MinMaxObserverImpl::forward(const at::Tensor& x) {
  TORCH_CHECK(!channels_ || x.size(axis_) == *channels_, name(), ": input.size(", axis_, ") must be ",
              channels_.value_or(0), " (got ", x.size(axis_), ")");
  const auto [low, high] = channels_ ? min_max_per_channel(x.detach(), axis_) : min_max(x.detach());
  update_range_(min, max, low, high, observer_, averaging_constant_);
  return x;
}

std::tuple<at::Tensor, at::Tensor> MinMaxObserverImpl::calculate_qparams(int64_t qmin, int64_t qmax,
                                                                         bool symmetric) const {
  return octet::calculate_qparams(min, max, qmin, qmax, symmetric);
}

MovingAverageObserverImpl::MovingAverageObserverImpl(double averaging_constant, std::optional<int64_t> channels,
                                                     int64_t axis)
    : MinMaxObserverImpl("MovingAverageObserver", "moving_average", averaging_constant, channels, axis) {
  TORCH_CHECK(averaging_constant > 0 && averaging_constant <= 1,
              "MovingAverageObserver: averaging_constant must be in (0, 1] (got ", averaging_constant, ")");
}

}  // namespace octet::nn
