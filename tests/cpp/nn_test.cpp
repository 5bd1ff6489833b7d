// The C++ modules: grids, blocks against their float and INT8 counterparts, state and errors.
#include <ATen/Context.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/activation.h>

#include <limits>
#include <set>

#include "expect_error.h"
#include "octet/nn/elementwise.h"
#include "octet/nn/fake_quantize.h"
#include "octet/nn/int8.h"
#include "octet/nn/layers.h"
#include "octet/ops/histogram.h"

namespace octet::nn {
namespace {

using Keys = std::set<std::string>;

Keys keys(const torch::nn::Module& module) {
  Keys names;
  for (const auto& item : module.named_parameters()) names.insert(item.key());
  for (const auto& item : module.named_buffers()) names.insert(item.key());
  return names;
}

// A grid that has seen values in [low, high].
FakeQuantize grid(float low, float high) {
  FakeQuantize fake;
  fake->forward(at::linspace(low, high, 11));
  return fake;
}

TEST(FakeQuantizeModule, StateIsPythons) {
  FakeQuantize fake;
  EXPECT_EQ(keys(*fake),
            (Keys{"min", "max", "scale", "zero_point", "steps", "observing", "enabled", "stale", "nonfinite"}));
  for (const auto& item : fake->named_buffers()) EXPECT_EQ(item.value().dim(), 0) << item.key();
  EXPECT_EQ(fake->zero_point.scalar_type(), at::kInt);
  EXPECT_EQ(fake->steps.scalar_type(), at::kInt);
  EXPECT_EQ(fake->nonfinite.scalar_type(), at::kLong);
  EXPECT_EQ(fake->observing.scalar_type(), at::kBool);
}

TEST(FakeQuantizeModule, RangesActFromTheNextForwardOn) {
  FakeQuantize fake;
  const at::Tensor x = at::linspace(-1, 2, 100);
  EXPECT_TRUE(at::equal(fake->forward(x), x));
  EXPECT_EQ(fake->scale.item<float>(), 3.0f / 255.0f);
  const Grid g{3.0f / 255.0f, 85, 0, 255};
  EXPECT_EQ(fake->zero_point.item<int>(), 85);
  const at::Tensor y = fake->forward(x);
  for (int i = 0; i < 100; ++i) ASSERT_EQ(y[i].item<float>(), fake_quantize(x[i].item<float>(), g));
}

TEST(FakeQuantizeModule, HistogramsChooseTheRangeUntilItActs) {
  const at::Tensor x = at::cat({at::linspace(-1, 1, 1000), at::full({2}, 50.0)});
  for (const char* observer : {"percentile", "mse", "entropy"}) {
    FakeQuantize fake(Spec{.observer = observer, .percentile = 99.0});
    EXPECT_EQ(keys(*fake).count("histogram"), 1) << observer;
    EXPECT_TRUE(at::equal(fake->forward(x), x)) << observer;
    const auto [low, high] = histogram_range(fake->histogram, fake->exponent, observer, 99.0, 0, 255, false);
    EXPECT_EQ(fake->min.item<float>(), low.item<float>()) << observer;
    EXPECT_EQ(fake->max.item<float>(), high.item<float>()) << observer;
    EXPECT_EQ(fake->histogram.sum().item<int64_t>(), 1002) << observer;
    fake->forward(x * 3);  // on the grid: what lies beyond its ends cannot be seen
    EXPECT_EQ(fake->max.item<float>(), high.item<float>()) << observer;
    fake->set_calibrating(true);
    fake->forward(x * 2);
    fake->forward(x * 2);
    EXPECT_EQ(fake->histogram.sum().item<int64_t>(), 2004) << observer;
    fake->forward(at::full({3}, std::numeric_limits<float>::quiet_NaN()));
    EXPECT_EQ(fake->histogram.sum().item<int64_t>(), 2004) << observer;
    EXPECT_EQ(fake->nonfinite.item<int64_t>(), 1) << observer;
  }
  FakeQuantize cut(Spec{.observer = "percentile", .percentile = 99.0});
  cut->forward(x);
  EXPECT_LT(cut->max.item<float>(), 1.1f);
  const Spec nothing{.observer = "percentile", .percentile = 0.0};
  EXPECT_ERROR(FakeQuantize{nothing}, "percentile must be in (0, 100]");
}

TEST(FakeQuantizeModule, EvaluationDoesNotObserve) {
  FakeQuantize fake = grid(-1, 2);
  fake->eval();
  fake->forward(at::full({3}, 100.0));
  EXPECT_EQ(fake->max.item<float>(), 2.0f);
}

TEST(FakeQuantizeModule, NonfiniteForwardsAreSkippedAndCounted) {
  FakeQuantize fake = grid(-1, 2);
  fake->forward(at::full({3}, std::numeric_limits<float>::quiet_NaN()));
  fake->forward(at::full({3}, std::numeric_limits<float>::infinity()));
  EXPECT_EQ(fake->nonfinite.item<int64_t>(), 2);
  EXPECT_EQ(fake->max.item<float>(), 2.0f);
}

TEST(FakeQuantizeModule, ScalesStayFloat32) {
  FakeQuantize fake = grid(-1, 2);
  fake->to(at::kHalf);
  fake->to(at::kCPU, at::kDouble);
  EXPECT_EQ(fake->scale.scalar_type(), at::kFloat);
  EXPECT_EQ(fake->zero_point.scalar_type(), at::kInt);
}

TEST(FakeQuantizeModule, ErrorsSayWhatMustHold) {
  EXPECT_ERROR(FakeQuantize(Spec{.bits = 9}), "Spec: bits must be 2 to 8 (got 9)");
  EXPECT_ERROR(FakeQuantize(Spec{.observer = "mean"}), "\"mse\" or \"entropy\" (got \"mean\")");
  EXPECT_ERROR(FakeQuantize(Spec{.averaging_constant = 0}), "averaging_constant must be in (0, 1] (got 0)");
  FakeQuantize fake(Spec{}, "stem");
  EXPECT_ERROR(fake->forward(at::full({2}, 1, at::kInt)),
               "FakeQuantize stem: the input must be floating point (got Int)");
  EXPECT_ERROR(fake->check_ready(), "convert: stem: must have a finite range");
  fake->forward(at::linspace(-1, 1, 5));
  fake->set_enabled(false);
  EXPECT_ERROR(fake->check_ready(), "must have fake quantization on (got off)");
  fake->forward(at::linspace(-1, 1, 5));
  EXPECT_EQ(fake->stale.item<int>(), 2);
  fake->set_enabled(true);
  EXPECT_ERROR(fake->check_ready(), "observed in training while it was off");
  fake->forward(at::linspace(-1, 1, 5));
  fake->check_ready();
}

TEST(FakeQuantizeModule, StaleRangesAreKnownAfterLoading) {
  FakeQuantize trained = grid(-1, 1), loaded(Spec{}, "stem");
  trained->set_enabled(false);
  for (const auto& item : trained->named_buffers()) loaded->named_buffers()[item.key()].copy_(item.value());
  loaded->forward(at::linspace(-1, 1, 5));
  loaded->set_enabled(true);
  EXPECT_ERROR(loaded->check_ready(), "observed in training while it was off");
  trained->set_enabled(true);
  trained->check_ready();  // nothing was observed meanwhile
}

TEST(Bind, GridsChangeTogetherAtTheLast) {
  FakeQuantize a, b, c;
  bind({a, b, c}, {0, 0, 0});
  a->forward(at::linspace(-1, 1, 9));
  b->forward(at::linspace(0, 3, 9));
  EXPECT_FALSE(a->ready());
  c->forward(at::linspace(-1, 4, 9));
  const double unit = static_cast<double>(c->scale.item<float>()) / c->steps.item<int>();
  for (const FakeQuantize& fake : {a, b, c}) {
    EXPECT_TRUE(fake->ready());
    EXPECT_EQ(fake->steps.item<int>() % 2, 1);
    EXPECT_NEAR(fake->scale.item<float>(), unit * fake->steps.item<int>(), 1e-7);
  }
  EXPECT_ERROR(bind({a, b}, {0}), "bind: components must have one entry per grid (got 1, 2)");
}

TEST(Observers, PerTensorAndPerChannel) {
  MinMaxObserver whole;
  whole->forward(at::linspace(-2, 3, 6));
  whole->forward(at::full({2}, std::numeric_limits<float>::quiet_NaN()));
  EXPECT_EQ(whole->min.item<float>(), -2.0f);
  EXPECT_EQ(whole->max.item<float>(), 3.0f);
  MovingAverageObserver channels(0.5, 3, 1);
  channels->forward(at::full({2, 3}, 2.0));
  channels->forward(at::full({2, 3}, 4.0));
  EXPECT_TRUE(at::equal(channels->max, at::full({3}, 3.0f)));
  const auto [scale, zero_point] = channels->calculate_qparams(0, 255);
  EXPECT_EQ(scale.sizes(), at::IntArrayRef({3}));
  EXPECT_EQ(zero_point.scalar_type(), at::kInt);
  EXPECT_ERROR(channels->forward(at::full({2, 4}, 1.0)), "input.size(1) must be 3 (got 4)");
}

TEST(Blocks, StateKeysArePythons) {
  const Keys grid{"output.min",       "output.max",     "output.scale", "output.zero_point", "output.steps",
                  "output.observing", "output.enabled", "output.stale", "output.nonfinite"};
  Keys expected = grid;
  expected.insert(
      {"conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"});
  EXPECT_EQ(keys(*ConvBnReLU2d(torch::nn::Conv2dOptions(3, 4, 3).bias(false), BlockOptions{.input = FakeQuantize()})),
            expected);
  expected = grid;
  expected.insert({"linear.weight", "linear.bias"});
  EXPECT_EQ(keys(*Linear(torch::nn::LinearOptions(3, 4))), expected);
}

TEST(Blocks, WithoutRangesAreTheFloatComposition) {
  at::manual_seed(1);
  ConvBnReLU2d block(torch::nn::Conv2dOptions(3, 4, 3).padding(1));
  torch::nn::Conv2d conv(torch::nn::Conv2dOptions(3, 4, 3).padding(1));
  conv->weight.set_data(block->conv->weight.clone());
  conv->bias.set_data(block->conv->bias.clone());
  torch::nn::BatchNorm2d bn(4);
  for (int step = 0; step < 3; ++step) {
    const at::Tensor x = at::randn({5, 3, 6, 7});
    EXPECT_TRUE(at::allclose(block->forward(x), bn->forward(conv->forward(x)).relu(), 1e-5, 1e-6));
  }
  EXPECT_TRUE(at::allclose(block->bn->running_mean, bn->running_mean, 1e-5, 1e-6));
  EXPECT_TRUE(at::allclose(block->bn->running_var, bn->running_var, 1e-5, 1e-6));
  EXPECT_EQ(block->bn->num_batches_tracked.item<int64_t>(), 3);
}

// Trains a block for some steps, then: evaluation gives the bits of the INT8 module.
template <class Block>
void expect_int8_bits(Block block, FakeQuantize input, const std::vector<int64_t>& shape) {
  for (int step = 0; step < 4; ++step) {
    const at::Tensor y = block->forward(input->forward(at::randn(shape).requires_grad_()));
    y.square().mean().backward();
    for (const auto& parameter : block->parameters()) {
      ASSERT_TRUE(parameter.grad().isfinite().all().template item<bool>());
    }
  }
  const c10::NoGradGuard guard;
  block->eval();
  input->eval();
  torch::nn::AnyModule converted = block->to_int8();
  int8::Quantize quantize(input->grid());
  int8::Dequantize dequantize(block->output->grid());
  for (int64_t batch : {1, 7}) {
    std::vector<int64_t> size = shape;
    size[0] = batch;
    const at::Tensor x = at::randn(size);
    const at::Tensor expected = block->forward(input->forward(x));
    const at::Tensor codes = converted.forward(quantize->forward(x));
    ASSERT_EQ(codes.scalar_type(), at::kByte);
    ASSERT_TRUE(at::equal(dequantize->forward(codes), expected)) << block->name();
    ASSERT_GT(expected.abs().max().template item<float>(), 0);
  }
}

TEST(Blocks, EvaluationGivesTheBitsOfInt8) {
  at::manual_seed(2);
  using torch::nn::Conv1dOptions, torch::nn::Conv2dOptions, torch::nn::Conv3dOptions, torch::nn::LinearOptions;
  for (int seed = 0; seed < 3; ++seed) {
    FakeQuantize in = grid(-3, 3);
    const BlockOptions o{.input = in};
    expect_int8_bits(ConvBnReLU2d(Conv2dOptions(8, 6, 3).padding(1).stride(2), o), in, {4, 8, 7, 9});
    expect_int8_bits(ConvBn2d(Conv2dOptions(8, 8, 3).groups(8).dilation(2).bias(false), o), in, {4, 8, 7, 9});
    expect_int8_bits(ConvReLU2d(Conv2dOptions(8, 6, 3).padding(torch::kSame), o), in, {4, 8, 5, 5});
    expect_int8_bits(Conv2d(Conv2dOptions(8, 6, 1).groups(2), o), in, {4, 8, 5, 5});
    expect_int8_bits(ConvBnReLU1d(Conv1dOptions(8, 6, 3), o), in, {4, 8, 9});
    expect_int8_bits(ConvBnReLU3d(Conv3dOptions(2, 3, 2), o), in, {4, 2, 4, 3, 3});
    expect_int8_bits(LinearBnReLU1d(LinearOptions(8, 5), o), in, {6, 8});
    expect_int8_bits(Linear(LinearOptions(8, 5), o), in, {6, 3, 8});
    expect_int8_bits(BatchNorm2d(torch::nn::BatchNorm2d(8), o), in, {6, 8, 3, 3});
    expect_int8_bits(BatchNorm1d(torch::nn::BatchNorm1d(8), o), in, {6, 8});
    expect_int8_bits(AvgPool2d(torch::nn::AvgPool2dOptions(3).stride(2).padding(1), o), in, {4, 8, 7, 9});
    expect_int8_bits(AdaptiveAvgPool2d(torch::nn::AdaptiveAvgPool2dOptions({1, 1}), o), in, {4, 8, 7, 9});
    expect_int8_bits(AvgPool1d(torch::nn::AvgPool1dOptions(2), o), in, {4, 8, 10});
  }
}

TEST(Blocks, ZeroAndNegativeGammas) {
  at::manual_seed(3);
  FakeQuantize in = grid(-3, 3);
  ConvBnReLU2d block(torch::nn::Conv2dOptions(8, 4, 3), BlockOptions{.input = in});
  const c10::NoGradGuard guard;
  block->bn->weight.copy_(at::linspace(-1, 0, 4));
  block->bn->bias.copy_(at::linspace(0, 1, 4));
  {
    const at::AutoGradMode enable(true);
    expect_int8_bits(block, in, {4, 8, 5, 5});
  }
}

TEST(Blocks, ReluSixAndLowBits) {
  at::manual_seed(4);
  FakeQuantize in = grid(-3, 3);
  BlockOptions o{.input = in, .activations = {.bits = 4}, .weights = {.bits = 3}, .activation = Activation::kRelu6};
  ConvBnReLU2d block(torch::nn::Conv2dOptions(8, 4, 3), o);
  block->bn->weight.set_data(at::full({4}, 5.0f));
  expect_int8_bits(block, in, {4, 8, 6, 6});
  EXPECT_EQ(block->output->qmax, 15);
}

TEST(Blocks, FrozenTrainingGivesTheBitsOfEvaluation) {
  at::manual_seed(5);
  FakeQuantize in = grid(-3, 3);
  ConvBnReLU2d block(torch::nn::Conv2dOptions(8, 4, 3), BlockOptions{.input = in});
  for (int step = 0; step < 3; ++step) block->forward(in->forward(at::randn({4, 8, 6, 6})));
  in->set_observing(false);
  block->output->set_observing(false);
  block->freeze_bn = true;
  const at::Tensor x = in->forward(at::randn({4, 8, 6, 6}));
  const at::Tensor training = block->forward(x);
  EXPECT_TRUE(training.requires_grad());
  block->eval();
  EXPECT_TRUE(at::equal(training.detach(), block->forward(x).detach()));
}

TEST(Add, ResidualSumGivesTheBitsOfInt8) {
  at::manual_seed(6);
  for (bool subtract : {false, true}) {
    const Spec widest{.observer = "min_max"};
    FakeQuantize a(widest), b(widest);
    BlockOptions options;
    options.activations = widest;
    AddReLU add(a, b, subtract, options);
    bind({a, b, add->output}, {0, 0, 0});
    at::Tensor x, y;
    for (int step = 0; step < 3; ++step) {
      x = at::randn({2, 3, 4, 4}), y = at::randn({2, 3, 4, 4}) * 3;
      add->forward(a->forward(x), b->forward(y));
    }
    for (auto* module : std::initializer_list<torch::nn::Module*>{a.get(), b.get(), add.get()}) module->eval();
    torch::nn::AnyModule converted = add->to_int8();
    const at::Tensor codes =
        converted.forward(int8::Quantize(a->grid())->forward(x), int8::Quantize(b->grid())->forward(y));
    const at::Tensor expected = add->forward(a->forward(x), b->forward(y));
    EXPECT_TRUE(at::equal(int8::Dequantize(add->output->grid())->forward(codes), expected));
    EXPECT_TRUE(at::allclose(expected, (subtract ? x - y : x + y).relu(), 0, 0.2));
  }
}

// Wired by hand.
struct ResidualImpl : torch::nn::Module {
  FakeQuantize input = register_module("input", FakeQuantize());
  ConvBnReLU2d first = register_module(
      "first", ConvBnReLU2d(torch::nn::Conv2dOptions(8, 8, 3).padding(1).bias(false), BlockOptions{.input = input}));
  ConvBn2d second = register_module("second", ConvBn2d(torch::nn::Conv2dOptions(8, 8, 3).padding(1).bias(false),
                                                       BlockOptions{.input = first->output}));
  AddReLU add = register_module("add", AddReLU(input, second->output));

  ResidualImpl() { bind({input, first->output, second->output, add->output}, {0, -1, 0, 0}); }
  at::Tensor forward(at::Tensor x) {
    x = input->forward(x);
    return add->forward(x, second->forward(first->forward(x)));
  }
};

TEST(Residual, ByHandGivesTheBitsOfInt8) {
  at::manual_seed(8);
  ResidualImpl net;
  for (int step = 0; step < 4; ++step) net.forward(at::randn({4, 8, 6, 5})).square().mean().backward();
  net.eval();
  const at::Tensor x = at::randn({3, 8, 6, 5});
  torch::nn::AnyModule first = net.first->to_int8(), second = net.second->to_int8(), add = net.add->to_int8();
  const at::Tensor codes = int8::Quantize(net.input->grid())->forward(x);
  const at::Tensor hidden = first.forward(codes);
  const at::Tensor sum = add.forward(codes, second.forward<at::Tensor>(hidden));
  EXPECT_TRUE(at::equal(int8::Dequantize(net.add->output->grid())->forward(sum), net.forward(x)));
}

TEST(Cat, SharesOneGrid) {
  at::manual_seed(7);
  FakeQuantize in = grid(-3, 3);
  ConvReLU2d left(torch::nn::Conv2dOptions(3, 2, 1), BlockOptions{.input = in});
  Conv2d right(torch::nn::Conv2dOptions(3, 4, 1), BlockOptions{.input = in, .output = left->output});
  Cat cat(left->output);
  EXPECT_EQ(keys(*right), (Keys{"conv.weight", "conv.bias"}));
  at::Tensor x = in->forward(at::randn({2, 3, 4, 4}));
  left->forward(x), right->forward(x);
  for (auto* module : std::initializer_list<torch::nn::Module*>{in.get(), left.get(), right.get()}) module->eval();
  x = in->forward(x);
  const at::Tensor expected = cat->forward({left->forward(x), right->forward(x)});
  const at::Tensor codes = int8::Quantize(in->grid())->forward(x);
  torch::nn::AnyModule l = left->to_int8(), r = right->to_int8(), c = cat->to_int8();
  const std::vector<at::Tensor> parts{l.forward(codes), r.forward(codes)};
  EXPECT_TRUE(at::equal(int8::Dequantize(left->output->grid())->forward(c.forward(parts)), expected));
}

TEST(Blocks, ErrorsNameTheBlock) {
  EXPECT_ERROR(Conv2d(torch::nn::Conv2dOptions(4, 4, 3).padding_mode(torch::kReflect)),
               "Conv2d: padding must be as many zeros on both sides (got padding_mode kReflect, kernel_size [3, 3])");
  EXPECT_ERROR(
      Conv2d(torch::nn::Conv2dOptions(4, 4, 2).padding(torch::kSame), BlockOptions{.label = "stem"}),
      "Conv2d stem: padding must be as many zeros on both sides (got padding_mode kZeros, kernel_size [2, 2])");
  EXPECT_ERROR(Linear(torch::nn::LinearOptions(40000, 1), BlockOptions{.label = "head"}),
               "Linear head: products summed per output");
  Linear lonely(torch::nn::LinearOptions(4, 2), BlockOptions{.label = "head"});
  EXPECT_ERROR(lonely->to_int8(), "convert: head (Linear): must have the grid of its input (got none)");
  EXPECT_ERROR(lonely->clone(), "clone() has not been implemented");
  Linear fresh(torch::nn::LinearOptions(4, 2), BlockOptions{.input = grid(-1, 1), .label = "head"});
  EXPECT_ERROR(fresh->to_int8(), "convert: head: must have a finite range");
  fresh->forward(at::rand({2, 4}));
  fresh->linear->bias.set_data(at::full({2}, std::numeric_limits<float>::quiet_NaN()));
  EXPECT_ERROR(fresh->to_int8(), "convert: head: linear.bias must be finite (got NaN or inf)");
  ConvBn2d diverged(torch::nn::Conv2dOptions(4, 4, 1), BlockOptions{.input = grid(-1, 1), .label = "stem"});
  diverged->forward(at::rand({2, 4, 3, 3}));
  diverged->bn->running_var.fill_(std::numeric_limits<float>::infinity());
  EXPECT_ERROR(diverged->to_int8(), "convert: stem: bn.running_var must be finite (got NaN or inf)");
  EXPECT_ERROR(
      AvgPool2d(torch::nn::AvgPool2dOptions(2), BlockOptions{.activation = Activation::kRelu, .label = "pool"}),
      "pool: takes no activation");
}

}  // namespace
}  // namespace octet::nn
