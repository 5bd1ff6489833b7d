// prepare and convert in place, for modules of one's own: wiring by the identity of tensors.
#include <ATen/Context.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/randn.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/pooling.h>
#include <torch/optim/sgd.h>

#include <functional>
#include <set>
#include <string>
#include <tuple>

#include "expect_error.h"
#include "octet/convert/module.h"
#include "octet/nn/elementwise.h"
#include "octet/nn/layers.h"

namespace octet {
namespace {

namespace tnn = torch::nn;
using tnn::Conv2dOptions;

// The residual block of a ResNet, as a user writes it.
struct BasicBlockImpl : tnn::Module {
  BasicBlockImpl(int64_t in, int64_t out, int64_t stride)
      : conv1(register_module("conv1",
                              nn::ConvBnReLU2d(Conv2dOptions(in, out, 3).stride(stride).padding(1).bias(false)))),
        conv2(register_module("conv2", nn::ConvBn2d(Conv2dOptions(out, out, 3).padding(1).bias(false)))),
        add(register_module("add", nn::AddReLU())) {
    if (in != out) down = register_module("down", nn::ConvBn2d(Conv2dOptions(in, out, 1).stride(stride).bias(false)));
  }
  at::Tensor forward(const at::Tensor& x) {
    return add->forward(conv2->forward(conv1->forward(x)), down ? down->forward(x) : x);
  }
  nn::ConvBnReLU2d conv1;
  nn::ConvBn2d conv2, down{nullptr};
  nn::AddReLU add;
};
TORCH_MODULE(BasicBlock);

struct ResNetImpl : tnn::Module {
  nn::ConvBnReLU2d stem = register_module("stem", nn::ConvBnReLU2d(Conv2dOptions(3, 8, 3).padding(1).bias(false)));
  BasicBlock layer1 = register_module("layer1", BasicBlock(8, 8, 1));
  BasicBlock layer2 = register_module("layer2", BasicBlock(8, 16, 2));
  tnn::Dropout dropout = register_module("dropout", tnn::Dropout(0.1));
  nn::MaxPool2d max_pool = register_module("max_pool", nn::MaxPool2d(tnn::MaxPool2dOptions(3).stride(2).padding(1)));
  nn::AdaptiveAvgPool2d pool = register_module("pool", nn::AdaptiveAvgPool2d(tnn::AdaptiveAvgPool2dOptions({1, 1})));
  nn::Linear fc = register_module("fc", nn::Linear(tnn::LinearOptions(16, 5)));

  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor y = layer2->forward(layer1->forward(max_pool->forward(stem->forward(x))));
    return fc->forward(dropout->forward(pool->forward(y).flatten(1)));
  }
};
TORCH_MODULE(ResNet);

template <class Net>
void train(Net& net, const std::vector<int64_t>& shape, int steps = 4) {
  torch::optim::SGD optimizer(net.parameters(), 0.05);
  net.train();
  for (int step = 0; step < steps; ++step) {
    optimizer.zero_grad();
    net.forward(at::randn(shape)).square().mean().backward();
    optimizer.step();
  }
}

// Converts a trained module: float in, float out, the bits of before, for every batch size.
template <class Net>
void expect_same_bits(Net& net, const std::vector<int64_t>& shape) {
  const c10::NoGradGuard guard;
  net.eval();
  std::vector<at::Tensor> inputs, expected;
  for (int64_t batch : {1, 7}) {
    std::vector<int64_t> size = shape;
    size[0] = batch;
    inputs.push_back(at::randn(size));
    expected.push_back(net.forward(inputs.back()));
    ASSERT_GT(expected.back().abs().max().template item<float>(), 0);
  }
  convert(net);
  for (size_t i = 0; i < inputs.size(); ++i) {
    const at::Tensor y = net.forward(inputs[i]);
    ASSERT_EQ(y.scalar_type(), at::kFloat);
    ASSERT_TRUE(at::equal(y, expected[i]));
  }
}

bool gives_codes(const nn::BlockImpl& block) { return block.wiring.value().gives_codes; }

TEST(OwnModule, ResNetKeepsItsBitsInPlace) {
  for (int seed = 0; seed < 3; ++seed) {
    at::manual_seed(seed);
    ResNet net;
    prepare(*net, at::randn({2, 3, 14, 14}));
    train(*net, {6, 3, 14, 14});
    expect_same_bits(*net, {6, 3, 14, 14});
  }
}

TEST(OwnModule, WiresByIdentity) {
  ResNet net;
  prepare(*net, at::randn({2, 3, 14, 14}));
  EXPECT_EQ(net->stem->input.get(), net->stem->named_children()["input"].get());
  EXPECT_EQ(net->layer1->conv1->input.get(), net->stem->output.get());
  EXPECT_EQ(net->layer1->add->a.get(), net->layer1->conv2->output.get());
  EXPECT_EQ(net->layer1->add->b.get(), net->stem->output.get());
  EXPECT_EQ(net->layer2->down->input.get(), net->layer1->add->output.get());
  EXPECT_EQ(net->fc->input.get(), net->pool->output.get());
  EXPECT_EQ(net->layer2->add->output->label, "layer2.add");
  EXPECT_EQ(net->stem->input->label, "stem.input");
  EXPECT_EQ(net->max_pool->output.get(), net->stem->output.get());
  EXPECT_TRUE(gives_codes(*net->stem) && gives_codes(*net->max_pool));
  EXPECT_TRUE(gives_codes(*net->pool));  // flatten and dropout move them
  EXPECT_FALSE(gives_codes(*net->fc));   // the caller reads it
  EXPECT_TRUE(net->is_training());
  train(*net, {6, 3, 14, 14});
  const double unit = net->stem->output->scale.item<double>() / net->stem->output->steps.item<int>();
  for (const nn::FakeQuantize& grid : {net->layer1->conv2->output, net->layer1->add->output}) {
    EXPECT_EQ(grid->steps.item<int>() % 2, 1);
    EXPECT_NEAR(grid->scale.item<double>(), unit * grid->steps.item<int>(), 1e-6 * grid->scale.item<double>());
  }
}

TEST(OwnModule, IsFloatUntilItHasRanges) {
  at::manual_seed(1);
  ResNet net;
  net->eval();
  const at::Tensor x = at::randn({2, 3, 14, 14}), before = net->forward(x);
  prepare(*net, x);
  EXPECT_FALSE(net->is_training());
  EXPECT_FALSE(net->stem->input->is_training());
  EXPECT_TRUE(at::equal(net->forward(x), before));
}

TEST(OwnModule, CalibratesAndConvertsWithoutTraining) {
  at::manual_seed(2);
  ResNet net;
  prepare(*net, at::randn({2, 3, 14, 14}));
  net->layer2->eval();
  std::vector<at::Tensor> batches;
  for (int i = 0; i < 3; ++i) batches.push_back(at::randn({4, 3, 14, 14}));
  calibrate(*net, batches);
  EXPECT_TRUE(net->layer1->conv1->is_training());
  EXPECT_FALSE(net->layer2->conv1->is_training());
  expect_same_bits(*net, {4, 3, 14, 14});
}

// A forward given as a function, tried part by part.
struct FreeImpl : tnn::Module {
  nn::Conv2d a = register_module("a", nn::Conv2d(Conv2dOptions(3, 4, 1)));
  nn::Conv2d b = register_module("b", nn::Conv2d(Conv2dOptions(4, 4, 1)));
  nn::Conv2d c = register_module("c", nn::Conv2d(Conv2dOptions(4, 4, 1)));
  nn::Cat cat = register_module("cat", nn::Cat());
  nn::ReLU6 relu6 = register_module("relu6", nn::ReLU6());
  std::function<at::Tensor(FreeImpl&, const at::Tensor&)> body;
  at::Tensor forward(const at::Tensor& x) { return body(*this, x); }
};
TORCH_MODULE(Free);

const std::vector<int64_t> kShape{4, 3, 6, 5};

Free prepared(std::function<at::Tensor(FreeImpl&, const at::Tensor&)> body, const Recipe& recipe = {}) {
  Free net;
  net->body = std::move(body);
  prepare(*net, at::randn(kShape), recipe);
  return net;
}

TEST(OwnModule, FloatPartsBetweenBlocksGetGridsOfTheirOwn) {
  at::manual_seed(3);
  Free net = prepared([](FreeImpl& m, const at::Tensor& x) { return m.b->forward(at::sigmoid(m.a->forward(x))); });
  EXPECT_FALSE(gives_codes(*net->a));
  EXPECT_EQ(net->b->input->label, "b.input");
  EXPECT_NE(net->b->input.get(), net->a->output.get());
  EXPECT_EQ(net->b->wiring->arrivals[0], nn::Arrival::kFloat);
  train(*net, kShape);
  expect_same_bits(*net, kShape);
}

TEST(OwnModule, TorchsReluAndMaxPoolStayOnTheGridInFloat) {
  at::manual_seed(4);
  using Function = std::function<at::Tensor(at::Tensor)>;
  for (const Function& keep :
       {Function([](at::Tensor y) { return y.relu(); }), Function([](at::Tensor y) { return y.relu_(); }),
        Function([](at::Tensor y) { return at::max_pool2d(y, 2); })}) {
    Free net = prepared([=](FreeImpl& m, const at::Tensor& x) { return m.b->forward(keep(m.a->forward(x))); });
    EXPECT_EQ(net->b->input.get(), net->a->output.get());
    EXPECT_FALSE(gives_codes(*net->a));
    train(*net, kShape);
    expect_same_bits(*net, kShape);
  }
}

TEST(OwnModule, AResultChangedInPlaceIsAnotherTensor) {
  at::manual_seed(5);
  Free net = prepared([](FreeImpl& m, const at::Tensor& x) { return m.b->forward(m.a->forward(x).mul_(1.7)); });
  EXPECT_NE(net->b->input.get(), net->a->output.get());
  train(*net, kShape);
  expect_same_bits(*net, kShape);
}

TEST(OwnModule, WhatTheCallerGetsIsFloatThoughBlocksReadItToo) {
  at::manual_seed(6);
  struct TwoImpl : FreeImpl {
    std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& x) {
      const at::Tensor features = a->forward(x);
      return {b->forward(features), features.flatten(1)};
    }
  };
  TwoImpl net;
  prepare(net, at::randn(kShape));
  EXPECT_FALSE(gives_codes(*net.a));
  EXPECT_EQ(net.b->input.get(), net.a->output.get());
  for (int step = 0; step < 3; ++step) net.forward(at::randn(kShape));
  const c10::NoGradGuard guard;
  net.eval();
  const at::Tensor x = at::randn(kShape);
  const auto [logits, features] = net.forward(x);
  convert(net);
  const auto [logits8, features8] = net.forward(x);
  EXPECT_TRUE(at::equal(logits, logits8));
  EXPECT_TRUE(at::equal(features, features8));
}

TEST(OwnModule, ConcatenationSharesOneGrid) {
  at::manual_seed(7);
  struct DenseImpl : tnn::Module {
    nn::ConvReLU2d a = register_module("a", nn::ConvReLU2d(Conv2dOptions(3, 4, 1)));
    nn::Conv2d b = register_module("b", nn::Conv2d(Conv2dOptions(4, 5, 1)));
    nn::Cat cat = register_module("cat", nn::Cat());
    nn::ReLU6 relu6 = register_module("relu6", nn::ReLU6());
    nn::Conv2d c = register_module("c", nn::Conv2d(Conv2dOptions(12, 4, 1)));
    at::Tensor forward(const at::Tensor& x) {
      const at::Tensor y = a->forward(x), z = b->forward(y);
      return c->forward(relu6->forward(cat->forward({y, z, x})));
    }
  };
  DenseImpl net;
  prepare(net, at::randn(kShape));
  EXPECT_EQ(net.b->output.get(), net.a->output.get());
  EXPECT_EQ(net.c->input.get(), net.a->output.get());
  EXPECT_EQ(net.a->input.get(), net.a->output.get());  // the input of the network is concatenated too
  EXPECT_FALSE(net.b->named_children().contains("output"));
  EXPECT_TRUE(gives_codes(*net.a) && gives_codes(*net.b) && gives_codes(*net.cat) && gives_codes(*net.relu6));
  train(net, kShape);
  expect_same_bits(net, kShape);
}

TEST(OwnModule, RecipesNameBlocks) {
  at::manual_seed(8);
  const Recipe recipe{.activations = {.bits = 6}, .overrides = {{"b", kFloat}, {"c", Spec{.bits = 4}}}};
  Free net =
      prepared([](FreeImpl& m, const at::Tensor& x) { return m.c->forward(m.b->forward(m.a->forward(x))); }, recipe);
  EXPECT_EQ(net->a->output->qmax, 63);
  EXPECT_EQ(net->a->input->qmax, 63);
  EXPECT_FALSE(net->b->wiring || net->b->input);
  EXPECT_FALSE(gives_codes(*net->a));
  EXPECT_EQ(net->c->wiring->arrivals[0], nn::Arrival::kFloat);
  EXPECT_EQ(net->c->output->qmax, 15);
  EXPECT_EQ(net->c->weights.bits, 4);
  train(*net, kShape);
  expect_same_bits(*net, kShape);
}

TEST(OwnModule, SequentialsOfBlocksAndInferenceMode) {
  at::manual_seed(9);
  tnn::Sequential net(nn::ConvBnReLU2d(Conv2dOptions(3, 4, 3)), tnn::MaxPool2d(2), nn::Conv2d(Conv2dOptions(4, 4, 1)));
  const c10::InferenceMode inference;
  prepare(*net, at::randn({2, 3, 8, 8}));
  calibrate(*net, {at::randn({4, 3, 8, 8})});
  net->eval();
  const at::Tensor x = at::randn({3, 3, 8, 8}), expected = net->forward(x);
  convert(static_cast<tnn::Module&>(*net));
  EXPECT_TRUE(at::equal(net->forward(x), expected));
  for (const auto& item : net->named_buffers()) EXPECT_FALSE(item.value().is_inference()) << item.key();
}

TEST(OwnModule, ConvertsAgainAfterAChange) {
  at::manual_seed(10);
  Free net = prepared([](FreeImpl& m, const at::Tensor& x) { return m.b->forward(m.a->forward(x)); });
  train(*net, kShape);
  expect_same_bits(*net, kShape);
  const c10::NoGradGuard guard;
  const at::Tensor x = at::randn(kShape), before = net->forward(x);
  net->a->conv->weight.neg_();
  EXPECT_TRUE(at::equal(net->forward(x), before));
  convert(*net);
  EXPECT_FALSE(at::equal(net->forward(x), before));
}

TEST(OwnModuleErrors, NameTheBlock) {
  const auto chain = [](FreeImpl& m, const at::Tensor& x) { return m.b->forward(m.a->forward(x)); };
  Free fresh;
  EXPECT_ERROR(convert(*fresh), "convert: the module must be prepared first");
  Free net = prepared(chain);
  EXPECT_ERROR(convert(*net), "convert: a.input: must have a finite range");
  EXPECT_ERROR(prepare(*net, at::randn(kShape)), "prepare: a: must have no grids yet (got some)");
  EXPECT_ERROR(prepared([](FreeImpl& m, const at::Tensor& x) { return m.b->forward(m.b->forward(m.a->forward(x))); }),
               "prepare: b: must be called once in a forward, because its result has one grid (got a second call)");
  EXPECT_ERROR(prepared([](FreeImpl&, const at::Tensor& x) { return x.relu(); }),
               "prepare: forward must reach an octet::nn block (got none)");
  EXPECT_ERROR(prepared(chain, {.overrides = {{"stem", kFloat}}}),
               "overrides must name octet::nn blocks of the module (got \"stem\")");
  EXPECT_ERROR(prepared(chain, {.weights = {.bits = 1}}), "Spec: bits must be 2 to 8 (got 1)");
  nn::FakeQuantize grid;
  tnn::Sequential by_hand(nn::Conv2d(Conv2dOptions(3, 4, 1), nn::BlockOptions{.input = grid}));
  EXPECT_ERROR(convert(static_cast<tnn::Module&>(*by_hand)), "convert: 0: must get its grids from octet::prepare");
}

TEST(OwnModuleErrors, AfterAFailedPrepareTheModuleIsAsItWas) {
  Free net;
  net->body = [](FreeImpl& m, const at::Tensor& x) { return m.a->forward(m.b->forward(x)); };
  EXPECT_ERROR(prepare(*net, at::randn(kShape)), "x.size(1) must equal weight.size(1) * groups (got 3, 4)");
  EXPECT_TRUE(net->is_training());
  net->body = [](FreeImpl& m, const at::Tensor& x) { return m.b->forward(m.a->forward(x)); };
  prepare(*net, at::randn(kShape));
  EXPECT_EQ(net->b->input.get(), net->a->output.get());
}

TEST(OwnModuleErrors, AConvertedModuleSaysWhatItCannotDo) {
  at::manual_seed(11);
  bool other_way = false;
  Free net = prepared([&](FreeImpl& m, const at::Tensor& x) {
    const at::Tensor y = m.a->forward(x);
    return m.b->forward(other_way ? y * 2.0 : y);
  });
  train(*net, kShape);
  convert(*net);
  EXPECT_FALSE(net->is_training());
  other_way = true;
  EXPECT_ERROR(
      net->forward(at::randn(kShape)),
      "b: operand 0 must be the uint8 codes of a block, as in the forward that octet::prepare ran (got Float)");
  net->train();
  EXPECT_ERROR(net->forward(at::randn(kShape)), "a: a converted module must be in evaluation mode (got training mode)");
}

}  // namespace
}  // namespace octet
