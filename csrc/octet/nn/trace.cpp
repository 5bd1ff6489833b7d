#include "octet/nn/trace.h"

#include <algorithm>
#include <array>
#include <utility>

namespace octet::nn::detail {

namespace {

thread_local Trace* active_trace = nullptr;

// Operators that only move values, and do the same to codes.
constexpr std::array<std::string_view, 25> kMoves{
    "aten::flatten",    "aten::unflatten", "aten::view",         "aten::reshape", "aten::permute",
    "aten::transpose",  "aten::t",         "aten::movedim",      "aten::squeeze", "aten::unsqueeze",
    "aten::contiguous", "aten::clone",     "aten::detach",       "aten::alias",   "aten::slice",
    "aten::select",     "aten::narrow",    "aten::index_select", "aten::expand",  "aten::repeat",
    "aten::chunk",      "aten::split",     "aten::flip",         "aten::dropout", "aten::feature_dropout"};

// Operators whose results are on the grid of what they read, but which cannot run on its codes: zero has another code
// than 0, and Torch's max pools do not take uint8 in every layout.
constexpr std::array<std::string_view, 5> kKeepGrid{"aten::relu", "aten::relu_", "aten::max_pool1d", "aten::max_pool2d",
                                                    "aten::max_pool3d"};

template <class Names>
bool contains(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

uint32_t version_of(const at::Tensor& tensor) {
  return tensor.is_inference() ? 0 : static_cast<uint32_t>(tensor._version());
}

template <class Function>
void for_each_tensor(const c10::IValue& value, Function f) {
  value.visit([&](const c10::IValue& part) {
    if (part.isTensor() && part.toTensor().defined()) f(part.toTensor());
    return false;
  });
}

}  // namespace

// What is known of an operator when it begins; its results are known when it ends.
struct Trace::Operator : at::ObserverContext {
  std::vector<size_t> reads;
};

Trace::Trace(std::set<const BlockImpl*> floats) : floats_(std::move(floats)) {
  TORCH_CHECK(active_trace == nullptr, "prepare: must not be called within the forward of another prepare");
  active_trace = this;
  callback_ = at::addThreadLocalCallback(at::RecordFunctionCallback(&Trace::begin, &Trace::end)
                                             .needsInputs(true)
                                             .needsOutputs(true)
                                             .scopes({at::RecordScope::FUNCTION}));
}

Trace::~Trace() {
  at::removeCallback(callback_);
  active_trace = nullptr;
}

Trace* Trace::current() { return active_trace; }

at::Tensor Trace::call(BlockImpl& block, const Tensors& operands, const BlockImpl::Compute& compute) {
  if (floats_.count(&block) > 0) return compute(operands);
  ++depth_;
  at::Tensor result = compute(operands);
  --depth_;
  Call call{&block, {}, 0};
  for (const at::Tensor& operand : operands) {
    const auto known = find(operand);
    call.operands.push_back(known ? *known : add(operand, std::nullopt, false, std::nullopt));
  }
  call.result = add(result, calls_.size(), true, std::nullopt);
  calls_.push_back(std::move(call));
  return result;
}

void Trace::returned(const c10::IValue& result) {
  for_each_tensor(result, [&](const at::Tensor& tensor) {
    if (const auto value = find(tensor)) leave_codes(*value);
  });
}

std::unique_ptr<at::ObserverContext> Trace::begin(const at::RecordFunction& function) {
  auto op = std::make_unique<Operator>();
  if (active_trace != nullptr && active_trace->depth_++ == 0) {
    for (const c10::IValue& input : function.inputs()) {
      for_each_tensor(input, [&](const at::Tensor& tensor) {
        const auto value = active_trace->find(tensor);
        if (value && active_trace->values_[*value].on_grid) op->reads.push_back(*value);
      });
    }
  }
  return op;
}

void Trace::end(const at::RecordFunction& function, at::ObserverContext* context) {
  if (active_trace == nullptr) return;
  --active_trace->depth_;
  for (const size_t value : static_cast<Operator*>(context)->reads) {
    active_trace->read(function.name(), value, function.outputs());
  }
}

void Trace::read(std::string_view op, size_t value, const std::vector<c10::IValue>& results) {
  const bool moves = contains(kMoves, op);
  if (!moves) leave_codes(value);
  if (!moves && !contains(kKeepGrid, op)) return;
  const std::optional<size_t> call = moves ? values_[value].call : std::nullopt;
  for (const c10::IValue& result : results) {
    for_each_tensor(result, [&](const at::Tensor& tensor) {
      if (!find(tensor)) add(tensor, call, true, value);
    });
  }
}

void Trace::leave_codes(size_t value) {
  if (const auto call = values_[value].call) calls_[*call].gives_codes = false;
}

std::optional<size_t> Trace::find(const at::Tensor& tensor) const {
  const auto found = newest_.find(tensor.unsafeGetTensorImpl());
  if (found == newest_.end() || values_[found->second].version != version_of(tensor)) return std::nullopt;
  return found->second;
}

size_t Trace::add(const at::Tensor& tensor, std::optional<size_t> call, bool on_grid, std::optional<size_t> tied_to) {
  const size_t index = values_.size();
  values_.push_back({tensor, version_of(tensor), call, on_grid, tied_to.value_or(index)});
  newest_[tensor.unsafeGetTensorImpl()] = index;
  return index;
}

}  // namespace octet::nn::detail
