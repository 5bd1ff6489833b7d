// Networks against the same kernels called one by one, and the words that are not programs.
#include "octet/kernels/network.h"

#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>

#include "octet/kernels/elementwise.h"
#include "octet/kernels/pool.h"
#include "octet/kernels/relayout.h"

namespace octet::kernels {
namespace {

using Codes = std::vector<uint8_t>;
using Words = std::vector<int64_t>;

// Builds programs by hand; values are numbered as in the file.
struct Writer {
  explicit Writer(int64_t inputs) : inputs(inputs) {}

  int64_t step(Opcode opcode, Words arguments) {
    words.push_back(static_cast<int64_t>(opcode));
    words.push_back(static_cast<int64_t>(arguments.size()));
    words.insert(words.end(), arguments.begin(), arguments.end());
    return inputs + steps++;
  }

  int64_t number(float value) {
    numbers.push_back(value);
    return static_cast<int64_t>(numbers.size()) - 1;
  }

  Program program(const Words& outputs) {
    all = {kProgramVersion, inputs, static_cast<int64_t>(outputs.size())};
    all.insert(all.end(), outputs.begin(), outputs.end());
    all.push_back(steps);
    all.insert(all.end(), words.begin(), words.end());
    return {all, weights, biases, numbers};
  }

  int64_t inputs, steps = 0;
  Words words, all;
  std::vector<int8_t> weights;
  std::vector<int32_t> biases;
  std::vector<float> numbers;
};

// The convolutions of these tests: 3x3, padding 1, `channels` in and out.
struct Conv {
  Conv(Writer& writer, int64_t channels, std::mt19937& random)
      : channels(channels),
        weights_at(static_cast<int64_t>(writer.weights.size())),
        biases_at(static_cast<int64_t>(writer.biases.size())),
        multipliers_at(static_cast<int64_t>(writer.numbers.size())) {
    for (int64_t i = 0; i < channels * channels * 9; ++i)
      writer.weights.push_back(static_cast<int8_t>(random() % 255 - 127));
    for (int64_t i = 0; i < channels; ++i) writer.biases.push_back(static_cast<int32_t>(random() % 4001) - 2000);
    for (int64_t i = 0; i < channels; ++i) writer.numbers.push_back(static_cast<float>(1 + random() % 9) / 4095.0f);
  }

  Words words(int64_t x, Words residual) const {
    Words all{x, 2,          channels,  channels,       1, 1,   3, 3,  1, 1, 1, 0, 1, 1, 1, 1,
              1, weights_at, biases_at, multipliers_at, 7, 100, 3, 250};
    all.insert(all.end(), residual.begin(), residual.end());
    return all;
  }

  Codes run(const Writer& writer, const Codes& x, int64_t batch, int64_t height, int64_t width) const {
    ConvShape shape;
    shape.batch = batch;
    shape.in_channels = shape.out_channels = channels;
    shape.in = shape.out = {1, height, width};
    shape.kernel = {1, 3, 3};
    shape.padding = {0, 1, 1};
    ConvEpilogue epilogue{
        writer.biases.data() + biases_at, writer.numbers.data() + multipliers_at, 7, 100, {3, 250}, nullptr};
    Codes y(x.size());
    run_conv(PackedConv(writer.weights.data() + weights_at, shape), shape, x.data(), epilogue, y.data(), serial);
    return y;
  }

  int64_t channels, weights_at, biases_at, multipliers_at;
};

Codes random_codes(size_t count, std::mt19937& random) {
  Codes codes(count);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random());
  return codes;
}

TensorType image(std::vector<int64_t> sizes, bool channels_last = true) {
  return {Element::kCodes, channels_last, std::move(sizes)};
}

std::vector<Codes> run(Network& network, const std::vector<TensorType>& types, const std::vector<const void*>& inputs,
                       ParallelFor parallel = serial) {
  const auto plan = network.plan(types);
  std::vector<Codes> outputs;
  std::vector<void*> pointers;
  for (const TensorType& type : plan->outputs()) outputs.emplace_back(type.bytes());
  for (Codes& output : outputs) pointers.push_back(output.data());
  network.run(*plan, inputs, pointers, parallel);
  return outputs;
}

std::string refusal(const Program& program, const std::vector<TensorType>& types) {
  try {
    Network(program).plan(types);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

// A residual block, its add once in the epilogue and once on its own.
struct Residual {
  Residual(int64_t channels, std::mt19937& random)
      : writer(1), first(writer, channels, random), second(writer, channels, random) {
    const int64_t ratio = writer.number(3.0f / 7.0f), conv_ratio = writer.number(5.0f / 7.0f);
    const int64_t a = writer.step(Opcode::kConv, first.words(0, {-1}));
    const int64_t fused = writer.step(Opcode::kConv, second.words(a, {0, 9, ratio, conv_ratio, 90, 90, 255}));
    const int64_t b = writer.step(Opcode::kConv, second.words(a, {-1}));
    const int64_t apart = writer.step(Opcode::kAdd, {0, b, 9, ratio, 100, conv_ratio, 90, 90, 255});
    outputs = {fused, apart};
  }

  Codes expected(const Codes& x, int64_t batch, int64_t height, int64_t width) const {
    const Codes b = second.run(writer, first.run(writer, x, batch, height, width), batch, height, width);
    Codes y(x.size());
    add(x.data(), b.data(), static_cast<int64_t>(x.size()), {9, 3.0f / 7.0f, 100, 5.0f / 7.0f, 90, {90, 255}}, y.data(),
        serial);
    return y;
  }

  Writer writer;
  Conv first, second;
  Words outputs;
};

TEST(Network, ResidualAddInTheEpilogueIsTheAddOnItsOwn) {
  std::mt19937 random(1);
  for (const int64_t channels : {1, 3, 16, 65}) {
    Residual block(channels, random);
    Network network(block.writer.program(block.outputs));
    const Codes x = random_codes(static_cast<size_t>(2 * channels * 5 * 7), random);
    const auto y = run(network, {image({2, channels, 5, 7})}, {x.data()});
    ASSERT_EQ(y.size(), 2U);
    EXPECT_EQ(y[0], block.expected(x, 2, 5, 7)) << channels;
    EXPECT_EQ(y[1], y[0]) << channels;
  }
}

TEST(Network, TakesPlainOrder) {
  std::mt19937 random(2);
  for (const int64_t channels : {3, 4, 70}) {
    Residual block(channels, random);
    Network network(block.writer.program(block.outputs));
    const Codes plain = random_codes(static_cast<size_t>(3 * channels * 9 * 11), random);
    Codes last(plain.size());
    for (int64_t n = 0; n < 3; ++n) {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t p = 0; p < 99; ++p) {
          last[static_cast<size_t>((n * 99 + p) * channels + c)] =
              plain[static_cast<size_t>((n * channels + c) * 99 + p)];
        }
      }
    }
    const auto y = run(network, {image({3, channels, 9, 11}, false)}, {plain.data()});
    EXPECT_EQ(y[0], block.expected(last, 3, 9, 11)) << channels;
  }
}

// A long chain with skips of every length: buffers are reused all the time, and no value may be lost before its last
// reader.
TEST(Network, ReusedBuffersLoseNothing) {
  std::mt19937 random(3);
  for (int round = 0; round < 20; ++round) {
    Writer writer(1);
    const int64_t half = writer.number(0.5f);
    std::vector<Codes> values{random_codes(300, random)};
    for (int64_t i = 0; i < 40; ++i) {
      const auto a = static_cast<int64_t>(random() % values.size()), b = static_cast<int64_t>(values.size()) - 1;
      writer.step(Opcode::kAdd, {a, b, 10, half, 20, half, 100, 0, 255});
      Codes y(300);
      add(values[static_cast<size_t>(a)].data(), values.back().data(), 300, {10, 0.5f, 20, 0.5f, 100, {0, 255}},
          y.data(), serial);
      values.push_back(y);
    }
    Network network(writer.program({40, 17, 40}));
    const std::vector<TensorType> types{image({3, 100})};
    EXPECT_LT(network.plan(types)->arena_bytes(), 41U * 320U);
    const auto y = run(network, types, {values[0].data()});
    EXPECT_EQ(y, (std::vector<Codes>{values[40], values[17], values[40]}));
  }
}

TEST(Network, ConcatenatesFlattensAndLooksUp) {
  std::mt19937 random(4);
  Writer writer(2);
  for (int i = 0; i < 256; ++i) writer.weights.push_back(std::bit_cast<int8_t>(static_cast<uint8_t>(255 - i)));
  const int64_t cat = writer.step(Opcode::kCat, {1, 2, 0, 1});
  const int64_t table = writer.step(Opcode::kTable, {cat, 0});
  const int64_t flat = writer.step(Opcode::kFlatten, {table, 1, -1});
  const Codes a = random_codes(2 * 3 * 4, random), b = random_codes(2 * 2 * 4, random);
  Network network(writer.program({cat, flat, 0}));
  const auto y = run(network, {image({2, 3, 2, 2}), image({2, 2, 2, 2}, false)}, {a.data(), b.data()});
  ASSERT_EQ(y[0].size(), 2U * 5 * 4);
  for (size_t n = 0; n < 2; ++n) {
    for (size_t c = 0; c < 5; ++c) {
      for (size_t p = 0; p < 4; ++p) {
        const uint8_t code = c < 3 ? a[(n * 4 + p) * 3 + c] : b[(n * 2 + c - 3) * 4 + p];
        EXPECT_EQ(y[0][(n * 4 + p) * 5 + c], code);
        EXPECT_EQ(y[1][(n * 5 + c) * 4 + p], 255 - code);
      }
    }
  }
  EXPECT_EQ(y[2], a);
}

TEST(Network, PoolsAndMultipliesPerChannel) {
  std::mt19937 random(5);
  Writer writer(1);
  const int64_t scale = writer.number(0.1f), m = writer.number(0.01f);
  const int64_t max = writer.step(Opcode::kMaxPool, {0, 2, 1, 2, 2, 1, 2, 2, 0, 0, 0, 1, 1, 1, 0});
  const int64_t mean = writer.step(Opcode::kAdaptiveAveragePool, {max, 2, 1, 1, 1, scale, 5, scale, 6, 0, 255, 0});
  const int64_t product = writer.step(Opcode::kMul, {mean, max, 6, 5, m, 128, 0, 255});
  Network network(writer.program({max, mean, product}));
  const Codes x = random_codes(2 * 6 * 6 * 3, random);
  const auto y = run(network, {image({2, 3, 6, 6})}, {x.data()});
  ASSERT_EQ(y[1].size(), 6U);
  for (size_t n = 0; n < 2; ++n) {
    for (size_t p = 0; p < 9; ++p) {
      for (size_t c = 0; c < 3; ++c) {
        const size_t at = (n * 9 + p) * 3 + c, corner = (n * 36 + p / 3 * 12 + p % 3 * 2) * 3 + c;
        const int acc = (y[0][at] - 5) * (y[1][n * 3 + c] - 6);
        EXPECT_EQ(y[0][at], std::max(std::max(x[corner], x[corner + 3]), std::max(x[corner + 18], x[corner + 21])));
        EXPECT_EQ(y[2][at], requantize(acc, 0.01f, 128, {0, 255}));
      }
    }
  }
}

TEST(Network, EmptyBatchesAndOnePixelImages) {
  std::mt19937 random(6);
  Residual block(5, random);
  Network network(block.writer.program(block.outputs));
  const auto none = run(network, {image({0, 5, 4, 4})}, {nullptr});
  EXPECT_TRUE(none[0].empty() && none[1].empty());
  const Codes x = random_codes(5, random);
  EXPECT_EQ(run(network, {image({1, 5, 1, 1})}, {x.data()})[0], block.expected(x, 1, 1, 1));
}

TEST(Network, ManyThreadsAtOnce) {
  std::mt19937 random(7);
  Residual block(8, random);
  Network network(block.writer.program(block.outputs));
  std::vector<Codes> inputs, expected;
  for (int64_t batch = 1; batch <= 12; ++batch) {  // more shapes than plans are remembered
    inputs.push_back(random_codes(static_cast<size_t>(batch * 8 * 9), random));
    expected.push_back(block.expected(inputs.back(), batch, 3, 3));
  }
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < 200; ++i) {
        const size_t k = (i * (t + 1)) % inputs.size();
        const auto y = run(network, {image({static_cast<int64_t>(k) + 1, 8, 3, 3})}, {inputs[k].data()});
        wrong += y[0] != expected[k];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Network, RefusesInputsThatDoNotFit) {
  std::mt19937 random(8);
  Residual block(5, random);
  const Program program = block.writer.program(block.outputs);
  EXPECT_EQ(refusal(program, {image({1, 4, 3, 3})}), "conv: input must have 5 channels (got [1, 4, 3, 3])");
  EXPECT_EQ(refusal(program, {image({1, 5, 3})}), "conv: input must have 4 dimensions (got [1, 5, 3])");
  EXPECT_EQ(refusal(program, {{Element::kFloat, true, {1, 5, 3, 3}}}), "input must be codes (uint8), got float32");
  EXPECT_EQ(refusal(program, {}), "the network takes 1 inputs (got 0)");
}

// A file may be damaged: every word in turn is replaced, and the program either still makes sense or is refused.
TEST(Network, DamagedProgramsAreRefusedOrHarmless) {
  std::mt19937 random(9);
  Residual block(4, random);
  block.writer.program(block.outputs);
  const Words good = block.writer.all;
  const Codes x = random_codes(4 * 9, random);
  int refused = 0;
  for (size_t i = 0; i < good.size(); ++i) {
    for (const int64_t word : {int64_t{-1}, int64_t{0}, int64_t{2}, int64_t{1} << 40}) {
      Words words = good;
      words[i] = word;
      const Program program{words, block.writer.weights, block.writer.biases, block.writer.numbers};
      try {
        Network network(program);
        EXPECT_LE(run(network, {image({1, 4, 3, 3})}, {x.data()}).size(), 3U);
      } catch (const std::invalid_argument&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, static_cast<int>(good.size()));
  for (size_t size = 0; size < good.size(); ++size) {
    const Words words(good.begin(), good.begin() + static_cast<int64_t>(size));
    EXPECT_NE(refusal({words, block.writer.weights, block.writer.biases, block.writer.numbers}, {image({1, 4, 3, 3})}),
              "")
        << size;
  }
}

}  // namespace
}  // namespace octet::kernels
