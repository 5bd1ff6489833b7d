// As train.cpp, with a residual network: a module of one's own, composed of octet::nn blocks, prepared and converted in
// place.
//   train_residual [DIGITS.pt]
#include "common.h"

namespace onn = octet::nn;
using torch::nn::Conv2dOptions;

struct ResidualImpl : torch::nn::Module {
  explicit ResidualImpl(int64_t channels)
      : conv1(register_module("conv1", onn::ConvBnReLU2d(Conv2dOptions(channels, channels, 3).padding(1).bias(false)))),
        conv2(register_module("conv2", onn::ConvBn2d(Conv2dOptions(channels, channels, 3).padding(1).bias(false)))),
        add(register_module("add", onn::AddReLU())) {}
  at::Tensor forward(const at::Tensor& x) { return add->forward(x, conv2->forward(conv1->forward(x))); }

  onn::ConvBnReLU2d conv1;
  onn::ConvBn2d conv2;
  onn::AddReLU add;
};
TORCH_MODULE(Residual);

struct NetImpl : torch::nn::Module {
  explicit NetImpl(int64_t classes)
      : stem(register_module("stem", onn::ConvBnReLU2d(Conv2dOptions(1, 16, 3).padding(1).bias(false)))),
        residual(register_module("residual", Residual(16))),
        down(register_module("down", onn::ConvBnReLU2d(Conv2dOptions(16, 32, 3).stride(2).bias(false)))),
        pool(register_module("pool", onn::AdaptiveAvgPool2d(torch::nn::AdaptiveAvgPool2dOptions({1, 1})))),
        fc(register_module("fc", onn::Linear(torch::nn::LinearOptions(32, classes)))) {}
  at::Tensor forward(const at::Tensor& x) {
    return fc->forward(pool->forward(down->forward(residual->forward(stem->forward(x)))).flatten(1));
  }

  onn::ConvBnReLU2d stem;
  Residual residual;
  onn::ConvBnReLU2d down;
  onn::AdaptiveAvgPool2d pool;
  onn::Linear fc;
};
TORCH_MODULE(Net);

int main(int argc, char** argv) {
  torch::manual_seed(0);
  const Split data(argc > 1 ? read(argv[1]) : draw(1800));

  Net net(data.classes);  // float until it is prepared
  train(*net, data.training, 12, 0.05);
  evaluate("FP32", *net, data.test);

  octet::prepare(*net, data.test.images.slice(0, 0, 2));
  train(*net, data.training, 3, 0.005);
  const at::Tensor trained = evaluate("QAT", *net, data.test);

  octet::convert(*net);
  return compare(trained, evaluate("INT8", *net, data.test));
}
