#include "octet/kernels/network.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <numeric>

#include "octet/kernels/network_builder.h"

namespace octet::kernels {
namespace {

constexpr size_t kRememberedPlans = 8;  // input types a network is usually called with: a few batch sizes

struct Header {
  int64_t inputs = 0;
  std::vector<int64_t> outputs;
  int64_t steps = 0;
};

Header read_header(WordReader& words) {
  const int64_t version = words.next();
  if (version != kProgramVersion) {
    refuse("the program's version must be " + std::to_string(kProgramVersion) + " (got " + std::to_string(version) +
           ")");
  }
  Header header;
  header.inputs = words.next();
  WordReader outputs = words.take(words.next());
  while (!outputs.done()) header.outputs.push_back(outputs.next());
  header.steps = words.next();
  return header;
}

}  // namespace

int64_t TensorType::elements() const {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

size_t TensorType::bytes() const {
  return static_cast<size_t>(elements()) * (element == Element::kFloat ? sizeof(float) : 1);
}

struct Plan::Impl {
  std::vector<BoundStep> steps;
  std::vector<size_t> offsets;  // by buffer; of inner ones
  std::vector<int> input_buffers, output_buffers;
  std::vector<TensorType> output_types;
  size_t arena_bytes = 0;
};

Plan::Plan(const Program& program, std::span<const TensorType> inputs, PackedWeights& packed) {
  WordReader words(program.words);
  const Header header = read_header(words);
  if (header.inputs != static_cast<int64_t>(inputs.size())) {
    refuse("the network takes " + std::to_string(header.inputs) + " inputs (got " + std::to_string(inputs.size()) +
           ")");
  }
  auto impl = std::make_unique<Impl>();
  NetworkBuilder builder(program, packed);
  for (const TensorType& input : inputs) {
    impl->input_buffers.push_back(static_cast<int>(builder.buffers().size()));
    builder.add_input(input);
  }
  for (int64_t i = 0; i < header.steps; ++i) builder.add_step(words);
  if (!words.done()) refuse("the program has words left over");
  for (const int64_t index : header.outputs) {
    const Value output = builder.add_output(index);
    impl->output_buffers.push_back(output.buffer);
    impl->output_types.push_back(output.type);
  }
  impl->arena_bytes = builder.place_buffers();
  for (const Buffer& buffer : builder.buffers()) impl->offsets.push_back(buffer.offset);
  impl->steps = builder.take_steps();
  std::erase_if(impl->steps, [](const BoundStep& step) { return !step; });
  impl_ = std::move(impl);
}

Plan::Plan(Plan&&) noexcept = default;
Plan::~Plan() = default;

std::span<const TensorType> Plan::outputs() const { return impl_->output_types; }
size_t Plan::arena_bytes() const { return impl_->arena_bytes; }

void Plan::run(std::span<const void* const> inputs, std::span<void* const> outputs, std::byte* arena,
               ParallelFor parallel) const {
  std::vector<std::byte*> memory(impl_->offsets.size());
  for (size_t i = 0; i < memory.size(); ++i) memory[i] = arena + impl_->offsets[i];
  // Inputs are never written: no step has one of their buffers as its result.
  for (size_t i = 0; i < inputs.size(); ++i) {
    memory[static_cast<size_t>(impl_->input_buffers[i])] = static_cast<std::byte*>(const_cast<void*>(inputs[i]));
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    memory[static_cast<size_t>(impl_->output_buffers[i])] = static_cast<std::byte*>(outputs[i]);
  }
  for (const BoundStep& step : impl_->steps) step(memory.data(), parallel);
}

Network::Network(const Program& program) : program_(program) {
  WordReader words(program.words);
  read_header(words);
}

std::shared_ptr<const Plan> Network::plan(std::span<const TensorType> inputs) {
  const std::scoped_lock lock(mutex_);
  const auto found = std::find_if(plans_.rbegin(), plans_.rend(),
                                  [&](const auto& plan) { return std::ranges::equal(plan.first, inputs); });
  if (found != plans_.rend()) return found->second;
  auto made = std::make_shared<const Plan>(program_, inputs, packed_);
  if (plans_.size() == kRememberedPlans) plans_.erase(plans_.begin());
  plans_.emplace_back(std::vector<TensorType>(inputs.begin(), inputs.end()), made);
  return made;
}

void Network::Free::operator()(std::byte* memory) const { std::free(memory); }

// The smallest free arena that is large enough. Those that are too small are given up, so that memory stays at what the
// largest calls at one time need.
Network::Arena Network::take_arena(size_t bytes) {
  {
    const std::scoped_lock lock(mutex_);
    const auto found =
        std::find_if(arenas_.begin(), arenas_.end(), [&](const Arena& arena) { return arena.bytes >= bytes; });
    if (found != arenas_.end()) {
      Arena arena = std::move(*found);
      arenas_.erase(found);
      return arena;
    }
    if (!arenas_.empty()) arenas_.pop_back();
  }
  Arena arena;
  arena.bytes = std::max(bytes, kArenaAlignment);
  arena.memory.reset(static_cast<std::byte*>(std::aligned_alloc(kArenaAlignment, arena.bytes)));
  if (!arena.memory) throw std::bad_alloc();
  return arena;
}

void Network::run(const Plan& plan, std::span<const void* const> inputs, std::span<void* const> outputs,
                  ParallelFor parallel) {
  Arena arena = take_arena(plan.arena_bytes());
  plan.run(inputs, outputs, arena.memory.get(), parallel);
  const std::scoped_lock lock(mutex_);
  arenas_.push_back(std::move(arena));
}

}  // namespace octet::kernels
