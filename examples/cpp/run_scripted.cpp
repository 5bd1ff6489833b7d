// Runs an INT8 model that octet.export.torchscript wrote, without Python:
//   run_scripted MODEL.ts INPUTS.pt LOGITS.pt
// INPUTS.pt is what torch.save({"images": ..., "labels": ...}, path) gives; the logits are written for torch.load.
// All this program needs of octet is to be linked with liboctet, which registers the ops of the model.
#include <ATen/ops/argmax.h>
#include <ATen/ops/cat.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

std::vector<char> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(const std::string& path, const std::vector<char>& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

at::Tensor run(torch::jit::Module& model, const at::Tensor& images) {
  constexpr int64_t kBatch = 64;
  std::vector<at::Tensor> logits;
  for (const at::Tensor& batch : images.split(kBatch)) logits.push_back(model.forward({batch}).toTensor());
  return at::cat(logits);
}

void evaluate(const std::string& model_path, const std::string& inputs_path, const std::string& logits_path) {
  const c10::NoGradGuard guard;
  torch::jit::Module model = torch::jit::load(model_path);
  const auto inputs = torch::jit::pickle_load(read(inputs_path)).toGenericDict();
  const at::Tensor images = inputs.at("images").toTensor(), labels = inputs.at("labels").toTensor();

  const auto start = std::chrono::steady_clock::now();
  const at::Tensor logits = run(model, images);
  const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;

  const auto right = at::argmax(logits, 1).eq(labels).sum().item<int64_t>();
  std::printf("%lld of %lld images right (%.2f %%), %.4f ms per image\n", static_cast<long long>(right),
              static_cast<long long>(images.size(0)), 100.0 * static_cast<double>(right) / images.size(0),
              time.count() / static_cast<double>(images.size(0)));
  write(logits_path, torch::jit::pickle_save(logits));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s MODEL.ts INPUTS.pt LOGITS.pt\n", argv[0]);
    return 2;
  }
  try {
    evaluate(argv[1], argv[2], argv[3]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "run_scripted: %s\n", error.what());
    return 1;
  }
}
