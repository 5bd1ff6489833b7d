// What the two training examples share: data, a training loop, an evaluation.
#pragma once

#include <torch/csrc/jit/serialization/pickle.h>
#include <torch/nn/module.h>
#include <torch/optim/sgd.h>
#include <torch/utils.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

#include "octet/octet.h"

struct Data {
  at::Tensor images, labels;
};

// Four shapes on an 8x8 image: horizontal bar, vertical bar, cross, nothing but noise.
inline Data draw(int64_t count) {
  Data data{at::randn({count, 1, 8, 8}) * 0.4, at::randint(4, {count})};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t shape = data.labels[i].item<int64_t>(), row = i % 8, column = i / 8 % 8;
    if (shape == 0 || shape == 2) data.images[i][0][row] += 1;
    if (shape == 1 || shape == 2) data.images[i][0].select(1, column) += 1;
  }
  return data;
}

inline Data read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file, "cannot read ", path);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const auto dict = torch::jit::pickle_load(bytes).toGenericDict();
  return {dict.at("images").toTensor(), dict.at("labels").toTensor()};
}

// A third is held back.
struct Split {
  explicit Split(const Data& all) {
    const int64_t held_back = all.labels.size(0) / 3;
    test = {all.images.slice(0, 0, held_back), all.labels.slice(0, 0, held_back)};
    training = {all.images.slice(0, held_back), all.labels.slice(0, held_back)};
    classes = all.labels.max().item<int64_t>() + 1;
  }
  Data test, training;
  int64_t classes;
};

template <class Model>
void train(Model& model, const Data& data, int epochs, double rate) {
  torch::optim::SGD optimizer(model.parameters(), torch::optim::SGDOptions(rate).momentum(0.9));
  model.train();
  for (int epoch = 0; epoch < epochs; ++epoch) {
    for (const at::Tensor& batch : at::randperm(data.labels.size(0)).split(64)) {
      optimizer.zero_grad();
      const at::Tensor logits = model.forward(data.images.index_select(0, batch));
      at::cross_entropy_loss(logits, data.labels.index_select(0, batch)).backward();
      optimizer.step();
    }
  }
}

template <class Model>
at::Tensor evaluate(const char* name, Model& model, const Data& data) {
  const torch::NoGradGuard guard;
  model.eval();
  const at::Tensor logits = model.forward(data.images);
  std::printf("%-5s %.2f %%\n", name, 100 * logits.argmax(1).eq(data.labels).to(at::kFloat).mean().item<float>());
  return logits;
}

// The exit status: whether the converted model gives the bits of the trained one.
inline int compare(const at::Tensor& trained, const at::Tensor& converted) {
  const bool same = at::equal(trained, converted);
  std::printf("QAT and INT8 logits are %s\n", same ? "equal in every bit" : "DIFFERENT");
  return same ? 0 : 1;
}
