// Quantization-aware training in C++ alone:
//   train [DIGITS.pt]
// Trains a small network in float, fine-tunes it with QAT, converts it to INT8 and compares the three. DIGITS.pt is
// what torch.save({"images": ..., "labels": ...}, path) gives (images [N, 1, 8, 8]); without it the data are drawn:
// noisy bars and crosses, which the network has to tell apart.
#include <torch/csrc/jit/serialization/pickle.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/pooling.h>
#include <torch/optim/sgd.h>
#include <torch/utils.h>

#include <cstdio>
#include <fstream>
#include <iterator>

#include "octet/octet.h"

namespace tnn = torch::nn;

struct Data {
  at::Tensor images, labels;
};

// Four shapes on an 8x8 image: horizontal bar, vertical bar, cross, nothing but noise.
Data draw(int64_t count) {
  Data data{at::randn({count, 1, 8, 8}) * 0.4, at::randint(4, {count})};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t shape = data.labels[i].item<int64_t>(), row = i % 8, column = i / 8 % 8;
    if (shape == 0 || shape == 2) data.images[i][0][row] += 1;
    if (shape == 1 || shape == 2) data.images[i][0].select(1, column) += 1;
  }
  return data;
}

Data read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file, "cannot read ", path);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const auto dict = torch::jit::pickle_load(bytes).toGenericDict();
  return {dict.at("images").toTensor(), dict.at("labels").toTensor()};
}

void train(tnn::Sequential& model, const Data& data, int epochs, double rate) {
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(rate).momentum(0.9));
  model->train();
  for (int epoch = 0; epoch < epochs; ++epoch) {
    for (const at::Tensor& batch : at::randperm(data.labels.size(0)).split(64)) {
      optimizer.zero_grad();
      const at::Tensor logits = model->forward(data.images.index_select(0, batch));
      at::cross_entropy_loss(logits, data.labels.index_select(0, batch)).backward();
      optimizer.step();
    }
  }
}

at::Tensor evaluate(const char* name, tnn::Sequential& model, const Data& data) {
  const torch::NoGradGuard guard;
  model->eval();
  const at::Tensor logits = model->forward(data.images);
  std::printf("%-5s %.2f %%\n", name, 100 * logits.argmax(1).eq(data.labels).to(at::kFloat).mean().item<float>());
  return logits;
}

int main(int argc, char** argv) {
  torch::manual_seed(0);
  const Data all = argc > 1 ? read(argv[1]) : draw(1800);
  const int64_t held_back = all.labels.size(0) / 3;
  const Data test{all.images.slice(0, 0, held_back), all.labels.slice(0, 0, held_back)};
  const Data training{all.images.slice(0, held_back), all.labels.slice(0, held_back)};
  const int64_t classes = all.labels.max().item<int64_t>() + 1;

  tnn::Sequential model(
      tnn::Conv2d(tnn::Conv2dOptions(1, 16, 3).padding(1).bias(false)), tnn::BatchNorm2d(16), tnn::ReLU(),
      tnn::Conv2d(tnn::Conv2dOptions(16, 32, 3).stride(2).bias(false)), tnn::BatchNorm2d(32), tnn::ReLU(),
      tnn::AdaptiveAvgPool2d(tnn::AdaptiveAvgPool2dOptions({1, 1})), tnn::Flatten(), tnn::Linear(32, classes));
  train(model, training, 12, 0.05);
  evaluate("FP32", model, test);

  tnn::Sequential qat = octet::prepare(model);
  train(qat, training, 3, 0.005);
  const at::Tensor trained = evaluate("QAT", qat, test);

  tnn::Sequential int8 = octet::convert(qat);
  const at::Tensor converted = evaluate("INT8", int8, test);
  const bool same = at::equal(trained, converted);
  std::printf("QAT and INT8 logits are %s\n", same ? "equal in every bit" : "DIFFERENT");
  return same ? 0 : 1;
}
