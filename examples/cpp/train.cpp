// Quantization-aware training in C++ alone:
//   train [DIGITS.pt]
// Trains a small network in float, fine-tunes it with QAT, converts it to INT8 and compares the three. DIGITS.pt is
// what torch.save({"images": ..., "labels": ...}, path) gives (images [N, 1, 8, 8]); without it the data are drawn:
// noisy bars and crosses, which the network has to tell apart.
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/pooling.h>

#include "common.h"

namespace tnn = torch::nn;

int main(int argc, char** argv) {
  torch::manual_seed(0);
  const Split data(argc > 1 ? read(argv[1]) : draw(1800));

  tnn::Sequential model(
      tnn::Conv2d(tnn::Conv2dOptions(1, 16, 3).padding(1).bias(false)), tnn::BatchNorm2d(16), tnn::ReLU(),
      tnn::Conv2d(tnn::Conv2dOptions(16, 32, 3).stride(2).bias(false)), tnn::BatchNorm2d(32), tnn::ReLU(),
      tnn::AdaptiveAvgPool2d(tnn::AdaptiveAvgPool2dOptions({1, 1})), tnn::Flatten(), tnn::Linear(32, data.classes));
  train(*model, data.training, 12, 0.05);
  evaluate("FP32", *model, data.test);

  tnn::Sequential qat = octet::prepare(model);
  train(*qat, data.training, 3, 0.005);
  const at::Tensor trained = evaluate("QAT", *qat, data.test);

  tnn::Sequential int8 = octet::convert(qat);
  return compare(trained, evaluate("INT8", *int8, data.test));
}
