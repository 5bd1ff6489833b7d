#include "octet/convert/module.h"

#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "octet/nn/elementwise.h"
#include "octet/nn/trace.h"

namespace octet {

namespace {

using nn::Arrival;
using nn::BlockImpl;
using nn::detail::Trace;

// Union-find: things, by number, that turned out to be one.
class DisjointSets {
 public:
  explicit DisjointSets(size_t count) : parent_(count) {
    for (size_t i = 0; i < count; ++i) parent_[i] = i;
  }
  size_t find(size_t item) {
    while (parent_[item] != item) item = parent_[item] = parent_[parent_[item]];
    return item;
  }
  void unite(size_t a, size_t b) { parent_[find(b)] = find(a); }

 private:
  std::vector<size_t> parent_;
};

struct NamedBlock {
  std::string name;
  BlockImpl* block;
};

std::vector<NamedBlock> blocks_of(torch::nn::Module& module) {
  std::vector<NamedBlock> blocks;
  module.apply([&](const std::string& name, torch::nn::Module& part) {
    if (auto* block = dynamic_cast<BlockImpl*>(&part)) blocks.push_back({name, block});
  });
  return blocks;
}

bool has_grids(BlockImpl& block) {
  bool any = block.wiring.has_value();
  for (const BlockImpl::Operand& operand : block.operands()) any |= static_cast<bool>(*operand.grid);
  return any || !block.named_children().contains("output");
}

// Turns what a trace saw into grids: rules 9a and 9b of docs/numerics.md.
class Wirer {
 public:
  Wirer(const Trace& trace, const Recipe& recipe)
      : trace_(trace), recipe_(recipe), classes_(trace.values().size()), components_(trace.values().size()) {}

  void run() {
    unite();
    for (const Trace::Call& call : trace_.calls()) wire(call);
    nn::bind(grids_, numbers_, trace_.calls().back().block);
  }

 private:
  void unite() {
    for (size_t i = 0; i < trace_.values().size(); ++i) classes_.unite(trace_.values()[i].tied_to, i);
    for (const Trace::Call& call : trace_.calls()) {
      if (!call.block->keeps_grid()) continue;
      for (const size_t operand : call.operands) classes_.unite(operand, call.result);
    }
    for (const Trace::Call& call : trace_.calls()) {
      if (dynamic_cast<nn::AddImpl*>(call.block) == nullptr) continue;
      added_.insert(classes_.find(call.result));
      for (const size_t operand : call.operands) {
        added_.insert(classes_.find(operand));
        components_.unite(classes_.find(operand), classes_.find(call.result));
      }
    }
  }

  void wire(const Trace::Call& call) {
    BlockImpl& block = *call.block;
    nn::Wiring wiring{{}, call.gives_codes};
    const std::vector<BlockImpl::Operand> operands = block.operands();
    for (size_t i = 0; i < call.operands.size(); ++i) {
      wiring.arrivals.push_back(arrival(call.operands[i]));
      if (block.keeps_grid()) continue;
      const std::string& name = operands[i].name;
      nn::FakeQuantize& grid = grid_of(call.operands[i]);
      if (!grid) {
        grid = add_grid(call.operands[i], recipe_.activations, block.label + "." + name);
        adopt(block, name, grid);
      }
      *operands[i].grid = grid;
    }
    set_output(block, call.result);
    block.wiring = std::move(wiring);
  }

  void set_output(BlockImpl& block, size_t value) {
    const auto found = recipe_.overrides.find(block.label);
    const bool own = found != recipe_.overrides.end();
    if (auto* weighted = dynamic_cast<nn::NormBlockImpl*>(&block)) {
      weighted->set_weights(own ? *found->second : recipe_.weights);
    }
    nn::FakeQuantize& grid = grid_of(value);
    block.unregister_module("output");
    if (!grid) {
      grid = add_grid(value, own ? *found->second : recipe_.activations, block.label);
      adopt(block, "output", grid);
    }
    block.output = grid;
  }

  nn::FakeQuantize& grid_of(size_t value) {
    return grid_of_.try_emplace(classes_.find(value), nullptr).first->second;  // not operator[]: it would make a grid
  }

  nn::FakeQuantize add_grid(size_t value, const Spec& spec, const std::string& label) {
    const size_t group = classes_.find(value);
    grids_.emplace_back(spec, label);
    numbers_.push_back(added_.count(group) > 0 ? static_cast<int64_t>(components_.find(group)) : -1);
    return grids_.back();
  }

  static void adopt(BlockImpl& block, const std::string& name, nn::FakeQuantize grid) {
    grid->train(block.is_training());
    block.register_module(name, std::move(grid));
  }

  Arrival arrival(size_t index) const {
    const Trace::Value& value = trace_.values()[index];
    if (value.call && trace_.calls()[*value.call].gives_codes) return Arrival::kCodes;
    return value.on_grid ? Arrival::kOnGrid : Arrival::kFloat;
  }

  const Trace& trace_;
  const Recipe& recipe_;
  DisjointSets classes_;     // values on one grid
  DisjointSets components_;  // classes that meet in additions
  std::set<size_t> added_;   // classes that take part in additions
  std::map<size_t, nn::FakeQuantize> grid_of_;
  std::vector<nn::FakeQuantize> grids_;
  std::vector<int64_t> numbers_;  // of their components
};

// Gives the blocks their names, and says which of them the recipe leaves float.
std::set<const BlockImpl*> name_blocks(const std::vector<NamedBlock>& blocks, const Recipe& recipe) {
  std::set<const BlockImpl*> floats;
  std::set<std::string> names;
  for (const auto& [name, block] : blocks) {
    names.insert(block->label = name);
    const auto found = recipe.overrides.find(name);
    if (found != recipe.overrides.end() && !found->second) floats.insert(block);
  }
  for (const auto& [name, spec] : recipe.overrides) {
    TORCH_CHECK(names.count(name) > 0, "prepare: overrides must name octet::nn blocks of the module (got \"", name,
                "\")");
    if (spec) nn::check_spec(*spec);
  }
  nn::check_spec(recipe.activations);
  nn::check_spec(recipe.weights);
  return floats;
}

void check_calls(const Trace& trace) {
  TORCH_CHECK(!trace.calls().empty(), "prepare: forward must reach an octet::nn block (got none)");
  std::set<const BlockImpl*> seen;
  for (const Trace::Call& call : trace.calls()) {
    BlockImpl& block = *call.block;
    TORCH_CHECK(!has_grids(block), "prepare: ", block.label, ": must have no grids yet (got some)");
    TORCH_CHECK(seen.insert(&block).second, "prepare: ", block.label,
                ": must be called once in a forward, because its result has one grid (got a second call)");
  }
}

}  // namespace

void prepare(torch::nn::Module& module, const std::function<c10::IValue()>& forward, const Recipe& recipe) {
  const c10::InferenceMode normal(false);  // inference tensors do not tell when they change; turns gradients on
  const c10::NoGradGuard no_grad;
  Trace trace(name_blocks(blocks_of(module), recipe));
  {
    const detail::EvaluationGuard evaluation(module);
    trace.returned(forward());
  }
  check_calls(trace);
  Wirer(trace, recipe).run();
}

void convert(torch::nn::Module& module) {
  const c10::InferenceMode normal(false);
  const c10::NoGradGuard no_grad;
  std::vector<std::pair<BlockImpl*, torch::nn::AnyModule>> converted;
  for (const auto& [name, block] : blocks_of(module)) {
    if (block->wiring) {
      converted.emplace_back(block, block->to_int8());
    } else {
      for (const nn::FakeQuantize& grid : block->inputs()) {
        TORCH_CHECK(block->keeps_grid() || !grid, "convert: ", name,
                    ": must get its grids from octet::prepare (got one given by hand); block->to_int8() converts it");
      }
    }
  }
  TORCH_CHECK(!converted.empty(),
              "convert: the module must be prepared first (got no block that octet::prepare wired)");
  for (auto& [block, int8] : converted) block->switch_to(std::move(int8));
  module.eval();
}

}  // namespace octet
