// Where the time of a network goes: the shortest time of each step, of all of them, and of a whole run.
// Usage: network_profile PROGRAM BATCH,CHANNELS,... [threads = 1] [seconds = 1] [nchw]; dump_programs.py writes the
// files. The input is float32, channels last unless nchw is said.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "octet/kernels/aligned_bytes.h"
#include "octet/kernels/network_builder.h"
#include "octet/kernels/team.h"

namespace {

using namespace octet::kernels;
using Clock = std::chrono::steady_clock;

constexpr const char* kNames[] = {"relayout",
                                  "quantize",
                                  "dequantize",
                                  "conv",
                                  "linear",
                                  "add",
                                  "mul",
                                  "max_pool",
                                  "avg_pool",
                                  "adaptive",
                                  "table",
                                  "cat",
                                  "flatten",
                                  "batch_norm",
                                  "conv_transpose",
                                  "",
                                  "",
                                  "",
                                  "",
                                  "",
                                  "permute",
                                  "reshape",
                                  "slice",
                                  "chunk",
                                  "pad",
                                  "upsample",
                                  "transpose",
                                  "select",
                                  "pixel_shuffle",
                                  "channel_shuffle"};

struct Arrays {
  std::vector<int64_t> words;
  std::vector<int8_t> weights;
  std::vector<int32_t> biases;
  std::vector<float> numbers;

  Program program() const { return {words, weights, biases, numbers}; }
};

template <class T>
void read_array(std::istream& file, std::vector<T>& array) {
  int64_t count = 0;
  file.read(reinterpret_cast<char*>(&count), sizeof count);
  array.resize(static_cast<size_t>(count));
  file.read(reinterpret_cast<char*>(array.data()), count * static_cast<int64_t>(sizeof(T)));
}

Arrays read_arrays(const char* path) {
  std::ifstream file(path, std::ios::binary);
  Arrays arrays;
  read_array(file, arrays.words);
  read_array(file, arrays.weights);
  read_array(file, arrays.biases);
  read_array(file, arrays.numbers);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  return arrays;
}

struct Step {
  std::string name;
  BoundStep run;
  double seconds = 1e9;
};

// The steps of a plan (network.cpp), with names.
class Profile {
 public:
  Profile(const Program& program, const TensorType& input) : builder_(program, packed_) {
    WordReader words(program.words);
    words.take(2);
    const int64_t output = words.take(words.next()).next();
    const int64_t count = words.next();
    builder_.add_input(input);
    for (int64_t i = 0; i < count; ++i) add_step(words, i + 1);
    builder_.add_output(output);
    arena_ = AlignedBytes(static_cast<int64_t>(builder_.place_buffers() + external_bytes()));
    std::byte* external = arena_.as<std::byte>() + (arena_.size() - external_bytes());
    for (const Buffer& buffer : builder_.buffers()) {
      memory_.push_back(buffer.external ? external : arena_.as<std::byte>() + buffer.offset);
      external += buffer.external ? buffer.bytes : 0;
    }
    std::vector<BoundStep> bound = builder_.take_steps();
    for (size_t i = 0; i < bound.size(); ++i) steps_[i].run = std::move(bound[i]);
  }

  void run(double budget, ParallelFor parallel) {
    for (const auto end = Clock::now() + std::chrono::duration<double>(budget); Clock::now() < end;) {
      const auto start = Clock::now();
      for (const Step& step : steps_) step.run(memory_.data(), parallel);
      whole_ = std::min(whole_, since(start));
      for (Step& step : steps_) {
        const auto begin = Clock::now();
        step.run(memory_.data(), parallel);
        step.seconds = std::min(step.seconds, since(begin));
      }
    }
  }

  void print() const {
    double sum = 0;
    for (const Step& step : steps_) {
      std::printf("%-60s %9.2f us\n", step.name.c_str(), step.seconds * 1e6);
      sum += step.seconds;
    }
    std::printf("%-60s %9.2f us\n%-60s %9.2f us\n", "sum of the steps", sum * 1e6, "a whole run", whole_ * 1e6);
  }

 private:
  static double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

  void add_step(WordReader& words, int64_t value) {
    WordReader rest = words;
    const auto opcode = static_cast<size_t>(rest.next());
    WordReader arguments = rest.take(rest.next());
    const std::vector<int64_t> from = builder_.value(arguments.next()).type.sizes;
    builder_.add_step(words);
    std::string name =
        std::string(kNames[opcode]) + " " + to_string(from) + " -> " + to_string(builder_.value(value).type.sizes);
    while (steps_.size() + 1 < builder_.steps()) steps_.push_back({kNames[0], {}});
    if (steps_.size() < builder_.steps()) steps_.push_back({std::move(name), {}});
  }

  size_t external_bytes() const {
    size_t bytes = 0;
    for (const Buffer& buffer : builder_.buffers()) bytes += buffer.external ? buffer.bytes : 0;
    return bytes;
  }

  PackedWeights packed_;
  NetworkBuilder builder_;
  AlignedBytes arena_;
  std::vector<std::byte*> memory_;
  std::vector<Step> steps_;
  double whole_ = 1e9;
};

std::vector<int64_t> parse_sizes(const char* text) {
  std::vector<int64_t> sizes;
  std::istringstream stream(text);
  for (std::string size; std::getline(stream, size, ',');) sizes.push_back(std::stoll(size));
  return sizes;
}

void spawn(int64_t count, int64_t /*grain*/, RangeBody body) {
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < count; ++i) threads.emplace_back([=] { body(i, i + 1); });
  body(0, 1);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "usage: network_profile PROGRAM SIZES [threads] [seconds] [nchw]\n"), 1;
  const Arrays arrays = read_arrays(argv[1]);
  const bool nchw = argc > 5;
  const std::vector<int64_t> sizes = parse_sizes(argv[2]);
  Profile profile(arrays.program(), {Element::kFloat, sizes.size() > 2 && !nchw, sizes});
  const double budget = argc > 4 ? std::atof(argv[4]) : 1;
  with_team(argc > 3 ? std::atoi(argv[3]) : 1, spawn, [&](ParallelFor parallel) { profile.run(budget, parallel); });
  profile.print();
}
