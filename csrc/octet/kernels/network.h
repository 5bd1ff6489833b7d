// A whole INT8 network, or the part of one between two float islands, as one call: a straight list of steps over
// planned buffers. Nothing is compiled or searched for; each step calls the kernel that the operator alone would call.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "octet/kernels/conv.h"
#include "octet/kernels/parallel.h"

namespace octet::kernels {

enum class Element : uint8_t { kCodes, kFloat };  // u8 codes or float32

// What a tensor is at run time. Sizes are logical: (batch, channels, spatial...) where there are channels.
struct TensorType {
  Element element = Element::kCodes;
  bool channels_last = false;  // memory order (batch, spatial..., channels); else as the sizes say
  std::vector<int64_t> sizes;

  int64_t elements() const;
  size_t bytes() const;
  bool operator==(const TensorType&) const = default;
};

// What the file holds. program: int64 words
//   [kProgramVersion, inputs, outputs, value of each output..., steps, step...], a step being [opcode, words,
//   argument...].
// Values are numbered: the inputs first, then one for each step. Arguments named *_at are positions in `numbers`
// (floats), `weights` (weight codes and tables) or `biases`. Spatial arguments are triples (depth, height, width),
// missing dimensions in front. The steps and their arguments, in order, stand beside each reader in network_steps.cpp.
struct Program {
  std::span<const int64_t> words;
  std::span<const int8_t> weights;
  std::span<const int32_t> biases;
  std::span<const float> numbers;
};

inline constexpr int64_t kProgramVersion = 1;

enum class Opcode : int64_t {
  kQuantize = 1,
  kDequantize = 2,
  kConv = 3,
  kLinear = 4,
  kAdd = 5,
  kMul = 6,
  kMaxPool = 7,
  kAveragePool = 8,
  kAdaptiveAveragePool = 9,
  kTable = 10,
  kCat = 11,
  kFlatten = 12,
  kBatchNorm = 13,
  kPermute = 20,
  kReshape = 21,
  kSlice = 22,
  kChunk = 23,
  kPad = 24,
  kUpsampleNearest = 25,
  kTranspose = 26,
  kSelect = 27,
  kPixelShuffle = 28,
  kChannelShuffle = 29,
};

// What weights were packed for: their position in Program::weights, then the shape without batch and sizes. Two
// convolutions may read the same weights in different shapes.
using PackedKey = std::array<int64_t, 13>;

// Packed weights; shared by the plans of a network.
using PackedWeights = std::map<PackedKey, std::shared_ptr<const PackedConv>>;

// The steps of a program for given input types, each value's place in memory decided. Immutable.
class Plan {
 public:
  Plan(const Program& program, std::span<const TensorType> inputs, PackedWeights& packed);
  Plan(Plan&&) noexcept;
  ~Plan();

  std::span<const TensorType> outputs() const;
  size_t arena_bytes() const;

  // Pointers in the order of the program, dense. arena: arena_bytes() bytes aligned to kArenaAlignment, not shared with
  // a concurrent run. The program's arrays must still be there.
  void run(std::span<const void* const> inputs, std::span<void* const> outputs, std::byte* arena,
           ParallelFor parallel) const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

inline constexpr size_t kArenaAlignment = 64;

// A program with what is remembered between calls: packed weights, plans by input types, arenas. Safe to call from
// several threads. The program's arrays must outlive it and not change.
class Network {
 public:
  // Throws std::invalid_argument when the words are not a program.
  explicit Network(const Program& program);

  // Throws std::invalid_argument, naming the step, when the inputs do not fit.
  std::shared_ptr<const Plan> plan(std::span<const TensorType> inputs);

  void run(const Plan& plan, std::span<const void* const> inputs, std::span<void* const> outputs, ParallelFor parallel);

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  struct Arena {
    std::unique_ptr<std::byte, Free> memory;
    size_t bytes = 0;
  };
  Arena take_arena(size_t bytes);

  Program program_;
  std::mutex mutex_;  // of everything below
  PackedWeights packed_;
  std::vector<std::pair<std::vector<TensorType>, std::shared_ptr<const Plan>>> plans_;  // latest last
  std::vector<Arena> arenas_;                                                           // those not in use
};

}  // namespace octet::kernels
