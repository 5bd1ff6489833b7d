// prepare, train, convert for Sequential models: the INT8 model has the bits of the QAT model in evaluation mode.
#include <ATen/Context.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/nll_loss.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/pooling.h>
#include <torch/optim/sgd.h>

#include <limits>
#include <memory>

#include "expect_error.h"
#include "octet/convert/sequential.h"
#include "octet/nn/elementwise.h"
#include "octet/nn/layers.h"

namespace octet {
namespace {

namespace tnn = torch::nn;

tnn::Sequential image_net() {
  return tnn::Sequential(
      tnn::Conv2d(tnn::Conv2dOptions(3, 8, 3).padding(1).bias(false)), tnn::BatchNorm2d(8), tnn::ReLU(),
      tnn::MaxPool2d(tnn::MaxPool2dOptions(3).stride(2).padding(1)), tnn::Conv2d(tnn::Conv2dOptions(8, 8, 3).groups(8)),
      tnn::BatchNorm2d(8), tnn::ReLU6(), tnn::Conv2d(tnn::Conv2dOptions(8, 16, 1)), tnn::Dropout(0.2), tnn::ReLU(),
      tnn::AdaptiveAvgPool2d(tnn::AdaptiveAvgPool2dOptions({1, 1})), tnn::Flatten(), tnn::Linear(16, 5));
}

void train(tnn::Sequential& model, const std::vector<int64_t>& shape, int steps = 4) {
  torch::optim::SGD optimizer(model->parameters(), 0.05);
  model->train();
  for (int step = 0; step < steps; ++step) {
    optimizer.zero_grad();
    const at::Tensor y = model->forward(at::randn(shape)).flatten(1);
    at::nll_loss(y.log_softmax(1), at::randint(y.size(1), {shape[0]})).backward();
    optimizer.step();
  }
}

void expect_same_bits(tnn::Sequential& qat, const std::vector<int64_t>& shape) {
  const c10::NoGradGuard guard;
  qat->eval();
  tnn::Sequential int8 = convert(qat);
  for (int64_t batch : {1, 7}) {
    std::vector<int64_t> size = shape;
    size[0] = batch;
    const at::Tensor x = at::randn(size);
    const at::Tensor expected = qat->forward(x);
    ASSERT_TRUE(at::equal(int8->forward(x), expected));
    ASSERT_GT(expected.abs().max().item<float>(), 0);
  }
}

TEST(PrepareConvert, ImageNetwork) {
  for (int seed = 0; seed < 5; ++seed) {
    at::manual_seed(seed);
    tnn::Sequential qat = prepare(image_net());
    train(qat, {6, 3, 13, 11});
    expect_same_bits(qat, {6, 3, 13, 11});
  }
}

TEST(PrepareConvert, FusesUnderTheFirstName) {
  const tnn::Sequential qat = prepare(image_net());
  EXPECT_EQ(qat->named_children().keys(),
            (std::vector<std::string>{"0_input", "0", "3", "4", "7", "8", "9", "10", "11", "12"}));
  auto* stem = qat->named_children()["0"]->as<nn::ConvBlockImpl<2>>();
  ASSERT_NE(stem, nullptr);
  EXPECT_EQ(stem->activation, Activation::kRelu);
  EXPECT_TRUE(stem->bn);
  EXPECT_EQ(qat->named_children()["4"]->as<nn::ConvBlockImpl<2>>()->activation, Activation::kRelu6);
  EXPECT_EQ(qat->named_children()["7"]->as<nn::ConvBlockImpl<2>>()->activation, Activation::kIdentity);
}

TEST(PrepareConvert, LeavesTheModelAlone) {
  at::manual_seed(1);
  tnn::Sequential model = image_net();
  std::vector<at::Tensor> before;
  for (const auto& parameter : model->parameters()) before.push_back(parameter.clone());
  tnn::Sequential qat = prepare(model);
  train(qat, {6, 3, 9, 9});
  const auto after = model->parameters();
  for (size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(at::equal(before[i], after[i]));
}

TEST(PrepareConvert, TheFirstForwardIsTheFloatModel) {
  at::manual_seed(2);
  tnn::Sequential model = image_net();
  model->eval();
  tnn::Sequential qat = prepare(model);
  EXPECT_FALSE(qat->is_training());
  const at::Tensor x = at::randn({4, 3, 9, 9});
  EXPECT_TRUE(at::allclose(qat->forward(x), model->forward(x), 1e-4, 1e-5));
}

TEST(PrepareConvert, OneAndThreeDimensions) {
  at::manual_seed(3);
  tnn::Sequential audio =
      prepare(tnn::Sequential(tnn::Conv1d(tnn::Conv1dOptions(2, 4, 5).stride(2)), tnn::BatchNorm1d(4), tnn::ReLU(),
                              tnn::AvgPool1d(2), tnn::MaxPool1d(2), tnn::Conv1d(4, 3, 3), tnn::BatchNorm1d(3)));
  train(audio, {6, 2, 40});
  expect_same_bits(audio, {6, 2, 40});
  tnn::Sequential volume = prepare(tnn::Sequential(tnn::BatchNorm3d(2), tnn::ReLU(), tnn::Conv3d(2, 3, 2),
                                                   tnn::MaxPool3d(2), tnn::ReLU6(), tnn::AvgPool3d(2)));
  train(volume, {6, 2, 7, 7, 7});
  expect_same_bits(volume, {6, 2, 7, 7, 7});
}

TEST(PrepareConvert, LayersWithoutIntegerFormStayFloat) {
  at::manual_seed(9);
  tnn::Sequential qat = prepare(tnn::Sequential(
      tnn::Conv2d(tnn::Conv2dOptions(3, 4, 3).padding(1).padding_mode(torch::kReflect)), tnn::ReLU(),
      tnn::Conv2d(tnn::Conv2dOptions(4, 4, 2).padding(torch::kSame)), tnn::Conv2d(tnn::Conv2dOptions(4, 4, 1)),
      tnn::BatchNorm2d(tnn::BatchNorm2dOptions(4).track_running_stats(false)), tnn::Conv2d(tnn::Conv2dOptions(4, 4, 1)),
      tnn::AdaptiveAvgPool2d(tnn::AdaptiveAvgPool2dOptions({std::nullopt, 2})), tnn::Flatten(), tnn::Linear(32, 5)));
  EXPECT_EQ(qat->named_children().keys(),
            (std::vector<std::string>{"0", "1", "2", "3_input", "3", "4_to_float", "4", "5_input", "5", "6_to_float",
                                      "6", "7", "8_input", "8"}));
  train(qat, {6, 3, 4, 4});
  expect_same_bits(qat, {6, 3, 4, 4});
}

TEST(PrepareConvert, BatchNormOverTokensIsABlockOfItsOwn) {
  at::manual_seed(10);
  tnn::Sequential qat =
      prepare(tnn::Sequential(tnn::Linear(6, 5), tnn::BatchNorm1d(3), tnn::ReLU(), tnn::Linear(5, 2)));
  EXPECT_EQ(qat->named_children().keys(), (std::vector<std::string>{"0_input", "0", "1", "3"}));
  train(qat, {4, 3, 6});
  expect_same_bits(qat, {4, 3, 6});
}

TEST(PrepareConvert, PoolsInCeilModeMayBeLargerThanTheirInput) {
  at::manual_seed(11);
  for (int64_t window : {2, 3}) {
    tnn::Sequential qat =
        prepare(tnn::Sequential(tnn::Conv2d(tnn::Conv2dOptions(3, 4, 6 - window)),
                                tnn::MaxPool2d(tnn::MaxPool2dOptions(window).stride(2).ceil_mode(true)),
                                tnn::AvgPool2d(tnn::AvgPool2dOptions(2).stride(2).ceil_mode(true))));
    calibrate(qat, {at::randn({4, 3, 4, 4})});
    expect_same_bits(qat, {4, 3, 4, 4});
  }
}

TEST(PrepareConvert, FloatIslands) {
  at::manual_seed(4);
  tnn::Sequential qat = prepare(tnn::Sequential(tnn::Linear(6, 8), tnn::Sigmoid(), tnn::Linear(8, 8), tnn::ReLU(),
                                                tnn::Linear(8, 4), tnn::Softplus()),
                                {.overrides = {{"2", kFloat}}});
  EXPECT_EQ(qat->named_children().keys(),
            (std::vector<std::string>{"0_input", "0", "1_to_float", "1", "2", "3", "4_input", "4", "5_to_float", "5"}));
  train(qat, {8, 6});
  expect_same_bits(qat, {8, 6});
  const auto names = convert(qat)->named_children().keys();
  EXPECT_EQ(names, (std::vector<std::string>{"0_input", "0", "1_dequantize", "1", "2", "3", "4_input", "4",
                                             "5_dequantize", "5"}));
}

TEST(PrepareConvert, RecipeSetsBitsByLayer) {
  at::manual_seed(5);
  const Recipe recipe{.activations = {.bits = 6, .symmetric = true}, .overrides = {{"2", Spec{.bits = 3}}}};
  tnn::Sequential qat = prepare(tnn::Sequential(tnn::Linear(6, 8), tnn::ReLU(), tnn::Linear(8, 4)), recipe);
  auto* first = qat->named_children()["0"]->as<nn::LinearBlockImpl>();
  auto* last = qat->named_children()["2"]->as<nn::LinearBlockImpl>();
  EXPECT_EQ(first->output->qmin, 1);
  EXPECT_EQ(first->output->qmax, 63);
  EXPECT_EQ(last->output->qmax, 7);
  EXPECT_EQ(last->weights.bits, 3);
  train(qat, {8, 6});
  expect_same_bits(qat, {8, 6});
}

TEST(PrepareConvert, FrozenTrainingGivesTheBitsOfEvaluation) {
  at::manual_seed(6);
  tnn::Sequential qat = prepare(
      tnn::Sequential(tnn::Conv2d(3, 4, 3), tnn::BatchNorm2d(4), tnn::ReLU(), tnn::Flatten(), tnn::Linear(4 * 25, 3)));
  train(qat, {6, 3, 7, 7});
  set_mode(*qat, {.observe = false, .freeze_bn = true});
  const at::Tensor x = at::randn({6, 3, 7, 7});
  const at::Tensor training = qat->forward(x).detach();
  qat->eval();
  EXPECT_TRUE(at::equal(training, qat->forward(x).detach()));
}

TEST(Calibrate, GivesRangesWithoutTraining) {
  at::manual_seed(7);
  tnn::Sequential model = image_net();
  train(model, {6, 3, 9, 9});
  tnn::Sequential qat = prepare(model);
  std::vector<at::Tensor> batches;
  for (int i = 0; i < 8; ++i) batches.push_back(at::randn({16, 3, 9, 9}));
  calibrate(qat, batches);
  EXPECT_TRUE(qat->is_training());
  auto* stem = qat->named_children()["0"]->as<nn::ConvBlockImpl<2>>();
  EXPECT_FALSE(stem->output->observing.item<bool>());
  EXPECT_TRUE(at::equal(stem->bn->running_mean, model->named_children()["1"]->as<tnn::BatchNorm2d>()->running_mean));
  expect_same_bits(qat, {6, 3, 9, 9});
  model->eval();
  const at::Tensor x = batches[0];
  EXPECT_TRUE(at::allclose(convert(qat)->forward(x), model->forward(x), 0, 0.1));
}

// A float layer that notes the strides it gets.
struct ProbeImpl : tnn::Cloneable<ProbeImpl> {
  void reset() override {}
  at::Tensor forward(const at::Tensor& x) {
    *strides = x.strides().vec();
    return x.softmax(1);
  }
  std::shared_ptr<std::vector<int64_t>> strides = std::make_shared<std::vector<int64_t>>();  // shared with clones
};
TORCH_MODULE(Probe);

// Float kernels round differently at the ends of their loops, so float parts must read equal strides, too.
TEST(PrepareConvert, FloatPartsReadTheSameStrides) {
  at::manual_seed(8);
  Probe probe;
  tnn::Sequential qat = prepare(tnn::Sequential(tnn::Conv2d(3, 16, 3), tnn::ReLU(), probe));
  qat->forward(at::randn({4, 3, 9, 9}));
  const c10::NoGradGuard guard;
  qat->eval();
  tnn::Sequential int8 = convert(qat);
  const at::Tensor x = at::randn({3, 3, 9, 9}).contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor expected = qat->forward(x);
  const std::vector<int64_t> strides = *probe->strides;
  EXPECT_TRUE(at::equal(int8->forward(x), expected));
  EXPECT_EQ(*probe->strides, strides);
}

TEST(SetMode, FreezesBatchNormsOutsideOfBlocksToo) {
  tnn::Sequential qat = prepare(tnn::Sequential(tnn::Conv2d(3, 4, 1), tnn::BatchNorm2d(4), tnn::ReLU(),
                                                tnn::Conv2d(4, 4, 1), tnn::BatchNorm2d(4)),
                                {.overrides = {{"0", kFloat}, {"1", kFloat}}});
  const auto* plain = qat->named_children()["1"]->as<tnn::BatchNorm2d>();
  const auto* block = qat->named_children()["3"]->as<nn::ConvBlockImpl<2>>();
  set_mode(*qat, {.freeze_bn = true});
  EXPECT_FALSE(plain->is_training());
  EXPECT_TRUE(block->freeze_bn);
  const at::Tensor before = plain->running_mean.clone();
  qat->forward(at::randn({4, 3, 2, 2}) + 5);
  EXPECT_TRUE(at::equal(plain->running_mean, before));
  set_mode(*qat, {.freeze_bn = false});
  EXPECT_TRUE(plain->is_training());
  EXPECT_FALSE(block->freeze_bn);
  qat->eval();
  set_mode(*qat, {.freeze_bn = false});
  EXPECT_FALSE(plain->is_training());
}

TEST(Calibrate, KeepsTheWidestRangeAndDropsEarlierOnes) {
  tnn::Sequential qat = prepare(tnn::Sequential(tnn::Linear(3, 2)));
  const auto* input = qat->named_children()["0_input"]->as<nn::FakeQuantize>();
  calibrate(qat, {at::full({2, 3}, -2.0), at::full({2, 3}, 0.5), at::full({2, 3}, 1.0)});
  EXPECT_EQ(input->min.item<float>(), -2.0f);
  EXPECT_EQ(input->max.item<float>(), 1.0f);
  calibrate(qat, {at::full({2, 3}, 0.5)});
  EXPECT_EQ(input->min.item<float>(), 0.5f);
  EXPECT_EQ(input->observer(), "moving_average");
  EXPECT_ERROR(calibrate(qat, {}), "calibrate: there must be at least one batch (got 0)");
  EXPECT_ERROR(calibrate(qat, {at::full({2, 3}, 1.0), at::full({2, 3}, std::numeric_limits<float>::quiet_NaN())}),
               "calibrate: 0_input: values must be finite (got NaN or inf in 1 of 2 batches)");
  convert(qat);
}

TEST(Errors, NameTheLayer) {
  tnn::Sequential qat = prepare(image_net());
  EXPECT_ERROR(convert(qat), "convert: 0_input: must have a finite range");
  EXPECT_ERROR(prepare(image_net(), {.overrides = {{"stem", kFloat}}}),
               "overrides must name layers of the model (got \"stem\")");
  EXPECT_ERROR(prepare(image_net(), {.weights = {.bits = 1}}), "Spec: bits must be 2 to 8 (got 1)");
  EXPECT_ERROR(prepare(tnn::Sequential(tnn::Linear(50000, 2))), "Linear 0: products summed per output");
  train(qat, {6, 3, 9, 9});
  set_mode(*qat, {.fake_quantize = false});
  EXPECT_ERROR(convert(qat), "must have fake quantization on (got off)");
  train(qat, {6, 3, 9, 9}, 1);
  set_mode(*qat, {.fake_quantize = true});
  EXPECT_ERROR(convert(qat), "got ranges observed in training while it was off");
  train(qat, {6, 3, 9, 9}, 1);
  const c10::NoGradGuard guard;
  qat->named_children()["7"]->as<nn::ConvBlockImpl<2>>()->conv->weight.fill_(std::numeric_limits<float>::infinity());
  EXPECT_ERROR(convert(qat), "convert: 7: conv.weight must be finite (got NaN or inf)");
  tnn::Sequential tokens = prepare(tnn::Sequential(tnn::Linear(6, 5), tnn::BatchNorm1d(5)));
  EXPECT_ERROR(tokens->forward(at::randn({2, 5, 6})),
               "Linear 0: x must have shape [N, I] where batch norm follows (got [2, 5, 6])");
}

}  // namespace
}  // namespace octet
