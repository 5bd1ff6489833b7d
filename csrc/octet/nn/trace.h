// Who reads what in one forward of a module, by the identity of tensors. Not public: octet::prepare's eyes.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <ATen/record_function.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "octet/nn/block.h"

namespace octet::nn::detail {

// While it lives, the blocks that run on this thread tell it of their forwards, and every Torch operator outside of
// blocks is watched: one that reads the result of a block and does more than move it needs that result in float.
class Trace {
 public:
  // A tensor that blocks read or made, or that was moved from one they made.
  struct Value {
    at::Tensor tensor;           // held, so that no other tensor gets its address
    uint32_t version;            // a tensor changed in place is another value
    std::optional<size_t> call;  // whose result this is, moved or not
    bool on_grid;
    size_t tied_to;  // a value on the same grid: itself, or an earlier one
  };
  struct Call {
    BlockImpl* block;
    std::vector<size_t> operands;
    size_t result;
    bool gives_codes = true;  // nothing but blocks has read the result
  };

  // Blocks in `floats` count as any other operator.
  explicit Trace(std::set<const BlockImpl*> floats);
  ~Trace();
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

  static Trace* current();  // of this thread, or null

  at::Tensor call(BlockImpl& block, const Tensors& operands, const BlockImpl::Compute& compute);
  // What forward returns is read by its caller.
  void returned(const c10::IValue& result);

  const std::vector<Value>& values() const { return values_; }
  const std::vector<Call>& calls() const { return calls_; }

 private:
  struct Operator;
  static std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function);
  static void end(const at::RecordFunction& function, at::ObserverContext* context);

  std::optional<size_t> find(const at::Tensor& tensor) const;
  size_t add(const at::Tensor& tensor, std::optional<size_t> call, bool on_grid, std::optional<size_t> tied_to);
  void read(std::string_view op, size_t value, const std::vector<c10::IValue>& results);
  void leave_codes(size_t value);

  std::set<const BlockImpl*> floats_;
  std::vector<Value> values_;
  std::vector<Call> calls_;
  std::unordered_map<const c10::TensorImpl*, size_t> newest_;  // value by tensor
  int depth_ = 0;                                              // operators and blocks we are inside of
  at::CallbackHandle callback_;
};

}  // namespace octet::nn::detail
