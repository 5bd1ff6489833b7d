// Runs one octet::nn module as tests/python/test_cpp_modules.py runs its namesake in octet.nn:
//   module_runner NAME INPUT.pt OUTPUT.pt
// INPUT.pt: {"state": {key: tensor}, "batches": [[operand, ...], ...]}. Trains on all batches but the last, evaluates
// on it, and writes the output of every forward, the state after, and what the INT8 module gives (codes, or values if
// it was prepared and converted in place).
#include <ATen/core/Dict.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <fstream>
#include <functional>
#include <iterator>
#include <map>

#include "octet/convert/module.h"
#include "octet/nn/elementwise.h"
#include "octet/nn/layers.h"

namespace {

using namespace octet::nn;
using Tensors = std::vector<at::Tensor>;

std::vector<char> read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file, "cannot read ", path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Children a, b: the quantizers of the operands; block.
struct Root : torch::nn::Module {
  FakeQuantize a = register_module("a", FakeQuantize()), b = register_module("b", FakeQuantize());
  std::function<at::Tensor(const Tensors&)> block;
  std::function<at::Tensor(const Tensors&)> int8;

  template <class Holder>
  void unary(Holder module) {
    register_module("block", module);
    block = [=](const Tensors& x) mutable { return module->forward(x[0]); };
    int8 = [=, this](const Tensors& x) { return module->to_int8().forward(codes(a, x[0])); };
  }
  template <class Holder>
  void binary(Holder module) {
    register_module("block", module);
    bind({a, b, module->output}, {0, 0, 0});
    block = [=](const Tensors& x) mutable { return module->forward(x[0], x[1]); };
    int8 = [=, this](const Tensors& x) { return module->to_int8().forward(codes(a, x[0]), codes(b, x[1])); };
  }
  // A module of one's own, with a grid for its input.
  template <class Holder>
  void own(Holder module, const at::Tensor& example) {
    register_module("block", module);
    octet::prepare(*module, example);
    block = [=](const Tensors& x) mutable { return module->forward(x[0]); };
    int8 = [=, this](const Tensors& x) mutable {
      const at::Tensor on_grid = a->forward(x[0]);
      octet::convert(*module);
      return module->forward(on_grid);
    };
  }
  Tensors quantized(const Tensors& x) {
    return x.size() == 1 ? Tensors{a->forward(x[0])} : Tensors{a->forward(x[0]), b->forward(x[1])};
  }

 private:
  static at::Tensor codes(const FakeQuantize& grid, const at::Tensor& x) {
    return int8::Quantize(grid->grid())->forward(x);
  }
};

struct ResidualImpl : torch::nn::Module {
  ConvBnReLU2d first = register_module("first", ConvBnReLU2d(torch::nn::Conv2dOptions(4, 4, 3).padding(1).bias(false)));
  ConvBn2d second = register_module("second", ConvBn2d(torch::nn::Conv2dOptions(4, 4, 3).padding(1)));
  AddReLU add = register_module("add", AddReLU());
  at::Tensor forward(const at::Tensor& x) { return add->forward(second->forward(first->forward(x)), x); }
};
TORCH_MODULE(Residual);

using Make = std::function<void(Root&)>;

Make observed_by(const char* observer) {
  return [=](Root& r) {
    BlockOptions options{.input = r.a};
    options.activations.observer = observer;
    options.activations.percentile = 95.0;
    r.unary(ConvBn2d(torch::nn::Conv2dOptions(4, 6, 3), options));
  };
}

// The arguments are repeated in the Python test.
const std::map<std::string, Make> kModules{
    {"Conv2d",
     [](Root& r) { r.unary(Conv2d(torch::nn::Conv2dOptions(4, 6, 3).stride(2), BlockOptions{.input = r.a})); }},
    {"ConvReLU2d",
     [](Root& r) { r.unary(ConvReLU2d(torch::nn::Conv2dOptions(4, 8, 3).groups(4), BlockOptions{.input = r.a})); }},
    {"ConvBn2d",
     [](Root& r) { r.unary(ConvBn2d(torch::nn::Conv2dOptions(4, 6, 3).dilation(2), BlockOptions{.input = r.a})); }},
    {"ConvBnReLU2d",
     [](Root& r) {
       r.unary(ConvBnReLU2d(torch::nn::Conv2dOptions(4, 6, 3).padding(1).bias(false), BlockOptions{.input = r.a}));
     }},
    {"Linear", [](Root& r) { r.unary(Linear(torch::nn::LinearOptions(9, 5), BlockOptions{.input = r.a})); }},
    {"LinearReLU", [](Root& r) { r.unary(LinearReLU(torch::nn::LinearOptions(9, 5), BlockOptions{.input = r.a})); }},
    {"LinearBnReLU1d",
     [](Root& r) { r.unary(LinearBnReLU1d(torch::nn::LinearOptions(9, 5), BlockOptions{.input = r.a})); }},
    {"BatchNorm2d", [](Root& r) { r.unary(BatchNorm2d(torch::nn::BatchNorm2d(4), BlockOptions{.input = r.a})); }},
    {"AvgPool2d", [](Root& r) { r.unary(AvgPool2d(torch::nn::AvgPool2dOptions(2), BlockOptions{.input = r.a})); }},
    {"AdaptiveAvgPool2d",
     [](Root& r) {
       r.unary(AdaptiveAvgPool2d(torch::nn::AdaptiveAvgPool2dOptions({2, 2}), BlockOptions{.input = r.a}));
     }},
    {"Add", [](Root& r) { r.binary(Add(r.a, r.b)); }},
    {"AddReLU", [](Root& r) { r.binary(AddReLU(r.a, r.b)); }},
    {"percentile", observed_by("percentile")},
    {"mse", observed_by("mse")},
    {"entropy", observed_by("entropy")},
    {"Residual", [](Root& r) { r.own(Residual(), at::zeros({2, 4, 9, 8})); }},
};

std::map<std::string, at::Tensor> state_of(const torch::nn::Module& module) {
  std::map<std::string, at::Tensor> state;
  for (const auto& item : module.named_parameters()) state[item.key()] = item.value().detach();
  for (const auto& item : module.named_buffers()) state[item.key()] = item.value();
  return state;
}

void load(const torch::nn::Module& module, const c10::impl::GenericDict& source) {
  const auto state = state_of(module);
  TORCH_CHECK(state.size() == source.size(), "the state must have ", state.size(), " tensors (got ", source.size(),
              ")");
  for (const auto& [key, tensor] : state) {
    const at::Tensor value = source.at(key).toTensor();
    TORCH_CHECK(value.sizes() == tensor.sizes() && value.scalar_type() == tensor.scalar_type(), key, ": ",
                tensor.toString(), " of ", tensor.sizes(), " expected (got ", value.toString(), " of ", value.sizes(),
                ")");
    tensor.copy_(value);
  }
}

Tensors tensors(const c10::IValue& list) {
  Tensors result;
  for (const c10::IValue& item : list.toListRef()) result.push_back(item.toTensor());
  return result;
}

void run(const char* name, const char* input, const char* output) {
  Root root;
  kModules.at(name)(root);
  const auto given = torch::jit::pickle_load(read(input)).toGenericDict();
  {
    const c10::NoGradGuard guard;
    load(root, given.at("state").toGenericDict());
  }
  c10::Dict<std::string, at::Tensor> results;
  const auto batches = given.at("batches").toList();
  for (size_t i = 0; i < batches.size(); ++i) {
    const Tensors x = tensors(batches.get(i));
    if (i + 1 == batches.size()) root.eval();
    results.insert("forward" + std::to_string(i), root.block(root.quantized(x)).detach());
  }
  for (const auto& [key, tensor] : state_of(root)) results.insert("state." + key, tensor);
  const c10::NoGradGuard guard;
  results.insert("int8", root.int8(tensors(batches.get(batches.size() - 1))));
  const std::vector<char> bytes = torch::jit::pickle_save(results);
  std::ofstream(output, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

}  // namespace

int main(int argc, char** argv) {
  TORCH_CHECK(argc == 4, "usage: module_runner NAME INPUT.pt OUTPUT.pt");
  run(argv[1], argv[2], argv[3]);
}
