// Internal: from program words to bound steps. See network.h for the format.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "octet/kernels/network.h"

namespace octet::kernels {

// The words of a program, one after the other; never past the end.
class WordReader {
 public:
  explicit WordReader(std::span<const int64_t> words) : words_(words) {}

  int64_t next();
  int32_t next_int32();
  CodeBounds next_bounds();  // two codes, lo <= hi
  int32_t next_code();       // a zero point: 0 to 255
  Dims next_dims(int64_t lowest);
  WordReader take(int64_t count);
  bool done() const { return words_.empty(); }

 private:
  std::span<const int64_t> words_;
};

// Where each buffer lies in this run, by buffer index.
using Memory = std::byte* const*;
using BoundStep = std::function<void(Memory memory, ParallelFor parallel)>;

inline const uint8_t* codes_in(Memory memory, int buffer) { return reinterpret_cast<const uint8_t*>(memory[buffer]); }
inline uint8_t* codes_out(Memory memory, int buffer) { return reinterpret_cast<uint8_t*>(memory[buffer]); }

// A value: a type, and the buffer that holds it. Several values may look at one buffer (flatten moves nothing), and
// codes may be a view that is not dense: then with steps, by dimension, from `offset` on.
struct Value {
  TensorType type;
  int buffer = 0;
  std::vector<int64_t> strides{};  // empty: dense in the type's order
  int64_t offset = 0;

  bool dense() const { return strides.empty(); }
};

// The steps of a dense value.
std::vector<int64_t> dense_strides(const TensorType& type);

// A piece of memory, alive from the step that writes it to the last that reads it.
struct Buffer {
  size_t bytes = 0;
  int born = 0;
  int dies = 0;
  size_t offset = 0;      // in the arena
  bool external = false;  // an input or output of the call
};

class NetworkBuilder {
 public:
  NetworkBuilder(const Program& program, PackedWeights& packed) : program_(program), packed_(packed) {}

  void add_input(const TensorType& type);
  void add_step(WordReader& words);

  // Reading values. codes() refuses floats and makes views dense, view() says the steps of any; in_order() gives the
  // value in the wanted memory order, moving it if need be.
  const Value& value(int64_t index) const;
  const Value& codes(int64_t index);
  Value view(int64_t index) const;
  Value in_order(const Value& value, bool channels_last);
  // All on one memory order: channels last if any of them is.
  std::vector<Value> in_common_order(std::vector<Value> values);

  // A step that reads `operands` and writes a new value of `type`, whose buffer `make` is told; nothing runs on empty
  // tensors.
  template <class Make>
  Value emit(std::initializer_list<int> operands, const TensorType& type, Make make) {
    return emit(std::vector<int>(operands), type, make);
  }
  template <class Make>
  Value emit(const std::vector<int>& operands, const TensorType& type, Make make) {
    const int step = static_cast<int>(steps_.size());
    for (const int buffer : operands) buffers_[buffer].dies = step;
    const Value result{type, new_buffer(type.bytes(), step)};
    steps_.push_back(type.elements() > 0 ? BoundStep(make(result.buffer)) : BoundStep());
    return result;
  }

  // The program's arrays, with bounds checked.
  float number(int64_t at) const;
  const float* numbers(int64_t at, int64_t count) const;
  const int32_t* biases(int64_t at, int64_t count) const;
  const int8_t* weights(int64_t at, int64_t count) const;
  const PackedConv& packed(int64_t at, const ConvShape& shape);
  // The weights of the convolution added after this one; behind the last those of the first, for the next call.
  std::shared_ptr<const void* const> weights_after(const PackedConv& packed);

  // Takes the value as a result of the call: a buffer of its own, to be bound to the caller's memory.
  Value add_output(int64_t index);

  // Decides the offsets of all inner buffers; gives the bytes they need together.
  size_t place_buffers();

  size_t steps() const { return steps_.size(); }
  std::vector<BoundStep> take_steps() { return std::move(steps_); }
  std::span<const Buffer> buffers() const { return buffers_; }

 private:
  int new_buffer(size_t bytes, int step);

  const Program& program_;
  PackedWeights& packed_;
  std::vector<Value> values_;
  std::vector<Buffer> buffers_;
  std::vector<BoundStep> steps_;
  const void* first_weights_ = nullptr;
  std::shared_ptr<const void*> after_last_;
};

// Reads one step's arguments, adds it, gives its value. One function per opcode, in network_steps.cpp and, of those
// that only move codes, in network_moves.cpp.
Value bind_step(Opcode opcode, WordReader& words, NetworkBuilder& builder);
Value bind_move(Opcode opcode, WordReader& words, NetworkBuilder& builder);

[[noreturn]] inline void refuse(const std::string& what) { throw std::invalid_argument(what); }

std::string to_string(std::span<const int64_t> sizes);

}  // namespace octet::kernels
