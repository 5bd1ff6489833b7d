// Steps that only move codes, in random chains, against plain indexing.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "octet/kernels/network.h"

namespace octet::kernels {
namespace {

using Words = std::vector<int64_t>;

int64_t product(const Words& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

// Codes in the order that the sizes say.
struct Plain {
  Words sizes;
  std::vector<uint8_t> codes;

  explicit Plain(Words s) : sizes(std::move(s)), codes(product(sizes)) {}

  int64_t at(const Words& index) const {
    int64_t place = 0;
    for (size_t d = 0; d < sizes.size(); ++d) place = place * sizes[d] + index[d];
    return place;
  }
};

// A tensor of `sizes` whose code at an index is source(index), or `outside` where that is negative.
template <class Source>
Plain gather(const Plain& x, const Words& sizes, Source source, uint8_t outside = 0) {
  Plain y(sizes);
  Words index(sizes.size(), 0);
  for (uint8_t& code : y.codes) {
    const Words from = source(index);
    code = std::any_of(from.begin(), from.end(), [](int64_t i) { return i < 0; }) ? outside : x.codes[x.at(from)];
    for (size_t d = sizes.size(); d-- > 0;) {
      if (++index[d] < sizes[d]) break;
      index[d] = 0;
    }
  }
  return y;
}

// In memory order: (batch, spatial..., channels) where channels are last.
std::vector<uint8_t> in_memory(const Plain& x, bool channels_last) {
  if (!channels_last || x.sizes.size() < 3) return x.codes;
  Words sizes = x.sizes;
  std::rotate(sizes.begin() + 1, sizes.begin() + 2, sizes.end());
  return gather(x, sizes,
                [](Words index) {
                  std::rotate(index.begin() + 1, index.end() - 1, index.end());
                  return index;
                })
      .codes;
}

class Chain {
 public:
  Chain(std::mt19937& random, Plain x) : random_(random), x_(std::move(x)) {}

  void add_step() {
    const int64_t kind = between(0, 10);
    const auto rank = static_cast<int64_t>(x_.sizes.size());
    if (kind == 0 && rank > 2) permute();
    if (kind == 1 && rank > 1) slice(between(1, rank - 1));
    if (kind == 2 && rank > 1) chunk(between(1, rank - 1));
    if (kind == 3 && rank > 1) pad();
    if (kind == 4 && rank > 2) upsample();
    if (kind == 5 && rank > 2) flatten();
    if (kind == 6) reshape();
    if (kind == 7 && rank > 1) transpose();
    if (kind == 8 && rank > 2) select();
    if (kind == 9 && rank > 2) pixel_shuffle();
    if (kind == 10 && rank > 2) channel_shuffle();
  }

  const Plain& expected() const { return x_; }
  Words program() const {
    Words words{kProgramVersion, 1, 1, steps_, steps_};
    words.insert(words.end(), words_.begin(), words_.end());
    return words;
  }

 private:
  int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_); }

  void step(Opcode opcode, Words arguments) {
    arguments.insert(arguments.begin(), steps_++);  // the latest value: inputs are numbered first
    words_.insert(words_.end(), {static_cast<int64_t>(opcode), static_cast<int64_t>(arguments.size())});
    words_.insert(words_.end(), arguments.begin(), arguments.end());
  }

  void permute() {
    Words order(x_.sizes.size());
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin() + 1, order.end(), random_);
    Words sizes, arguments{static_cast<int64_t>(order.size())};
    for (const int64_t d : order) sizes.push_back(x_.sizes[d]);
    arguments.insert(arguments.end(), order.begin(), order.end());
    step(Opcode::kPermute, arguments);
    x_ = gather(x_, sizes, [&](const Words& index) {
      Words from(index.size());
      for (size_t d = 0; d < order.size(); ++d) from[order[d]] = index[d];
      return from;
    });
  }

  void take(int64_t dim, int64_t start, int64_t size, int64_t by) {
    Words sizes = x_.sizes;
    sizes[dim] = size;
    x_ = gather(x_, sizes, [&](Words index) {
      index[dim] = start + index[dim] * by;
      return index;
    });
  }

  void slice(int64_t dim) {
    const int64_t size = x_.sizes[dim], start = between(0, size - 1), end = between(start + 1, size),
                  by = between(1, 2);
    step(Opcode::kSlice, {dim, start, end == size ? INT64_MAX : end - size, by});
    take(dim, start, (end - start + by - 1) / by, by);
  }

  void chunk(int64_t dim) {
    const int64_t size = x_.sizes[dim], chunks = between(1, 3), each = (size + chunks - 1) / chunks;
    const int64_t index = between(0, (size - 1) / each), start = index * each;
    step(Opcode::kChunk, {dim, chunks, index});
    take(dim, start, std::min(each, size - start), 1);
  }

  void pad() {
    Words sizes = x_.sizes, before(sizes.size(), 0), arguments{99, 2 * between(1, std::ssize(sizes) - 1)};
    for (size_t d = sizes.size(); std::ssize(arguments) - 2 < arguments[1];) {
      --d;
      before[d] = between(sizes[d] > 2 ? -1 : 0, 1);
      const int64_t after = between(sizes[d] > 2 ? -1 : 0, 1);
      arguments.insert(arguments.end(), {before[d], after});
      sizes[d] += before[d] + after;
    }
    step(Opcode::kPad, arguments);
    x_ = gather(
        x_, sizes,
        [&](Words index) {
          for (size_t d = 1; d < index.size(); ++d) {
            index[d] -= before[d];
            if (index[d] >= x_.sizes[d]) index[d] = -1;
          }
          return index;
        },
        99);
  }

  void transpose() {
    const int64_t a = between(1, std::ssize(x_.sizes) - 1), b = between(1, std::ssize(x_.sizes) - 1);
    step(Opcode::kTranspose, {a, b - std::ssize(x_.sizes)});
    Words sizes = x_.sizes;
    std::swap(sizes[a], sizes[b]);
    x_ = gather(x_, sizes, [&](Words index) {
      std::swap(index[a], index[b]);
      return index;
    });
  }

  void select() {
    const int64_t dim = between(1, std::ssize(x_.sizes) - 1), chosen = between(0, x_.sizes[dim] - 1);
    step(Opcode::kSelect, {dim, between(0, 1) ? chosen : chosen - x_.sizes[dim]});
    Words sizes = x_.sizes;
    sizes.erase(sizes.begin() + dim);
    x_ = gather(x_, sizes, [&](Words index) {
      index.insert(index.begin() + dim, chosen);
      return index;
    });
  }

  void pixel_shuffle() {
    const int64_t r = x_.sizes[1] % 4 == 0 ? 2 : 1;
    if (x_.sizes.size() != 4) return;
    step(Opcode::kPixelShuffle, {r});
    x_ = gather(x_, {x_.sizes[0], x_.sizes[1] / r / r, x_.sizes[2] * r, x_.sizes[3] * r},
                [&](const Words& i) { return Words{i[0], (i[1] * r + i[2] % r) * r + i[3] % r, i[2] / r, i[3] / r}; });
  }

  void channel_shuffle() {
    const int64_t channels = x_.sizes[1], groups = channels % 3 == 0 ? 3 : channels % 2 == 0 ? 2 : 1;
    step(Opcode::kChannelShuffle, {groups});
    x_ = gather(x_, x_.sizes, [&](Words index) {
      index[1] = index[1] % groups * (channels / groups) + index[1] / groups;
      return index;
    });
  }

  void upsample() {
    if (x_.sizes.size() > 5 || x_.codes.size() > 4000) return;
    const size_t rank = x_.sizes.size();
    Words factors(3, 1), sizes = x_.sizes;
    for (size_t d = 2; d < rank; ++d) sizes[d] *= factors[d + 3 - rank] = between(1, 3);
    step(Opcode::kUpsampleNearest, factors);
    x_ = gather(x_, sizes, [&](Words index) {
      for (size_t d = 2; d < rank; ++d) index[d] /= factors[d + 3 - rank];
      return index;
    });
  }

  void flatten() {
    const auto rank = static_cast<int64_t>(x_.sizes.size());
    const int64_t start = between(1, rank - 1), end = between(start, rank - 1);
    step(Opcode::kFlatten, {start, end - rank});
    x_.sizes[start] = product(Words(x_.sizes.begin() + start, x_.sizes.begin() + end + 1));
    x_.sizes.erase(x_.sizes.begin() + start + 1, x_.sizes.begin() + end + 1);
  }

  // Splits all sizes into factors and multiplies neighbours again.
  void reshape() {
    Words factors, sizes{x_.sizes[0]};
    for (size_t d = 1; d < x_.sizes.size(); ++d) {
      int64_t rest = x_.sizes[d];
      for (int64_t f = 2; f <= rest; ++f) {
        for (; rest % f == 0; rest /= f) factors.push_back(f);
      }
      if (between(0, 2) == 0) factors.push_back(1);
    }
    for (const int64_t f : factors) {
      if (sizes.size() == 1 || (between(0, 1) && sizes.size() < 6)) {
        sizes.push_back(f);
      } else {
        sizes.back() *= f;
      }
    }
    Words arguments{static_cast<int64_t>(sizes.size()) - 1};
    arguments.insert(arguments.end(), sizes.begin() + 1, sizes.end());
    if (sizes.size() > 1 && between(0, 1)) arguments[between(1, std::ssize(sizes) - 1)] = -1;
    step(Opcode::kReshape, arguments);
    x_.sizes = sizes;
  }

  std::mt19937& random_;
  Plain x_;
  Words words_;
  int64_t steps_ = 0;
};

TEST(NetworkMoves, RandomChainsGiveWhatIndexingGives) {
  std::mt19937 random(5);
  for (int round = 0; round < 3000; ++round) {
    const auto size = [&](int64_t most) { return std::uniform_int_distribution<int64_t>(1, most)(random); };
    Words sizes{size(3)};
    for (int64_t d = size(4); d > 0; --d) sizes.push_back(size(7));
    Plain x(sizes);
    for (uint8_t& code : x.codes) code = static_cast<uint8_t>(random());
    const bool channels_last = sizes.size() > 2 && round % 2 == 0;
    const std::vector<uint8_t> input = in_memory(x, channels_last);

    Chain chain(random, x);
    for (int64_t i = size(5); i >= 0; --i) chain.add_step();
    const Words words = chain.program();
    Network network({words, {}, {}, {}});
    const TensorType type{Element::kCodes, channels_last, sizes};
    const auto plan = network.plan({{type}});
    ASSERT_EQ(plan->outputs()[0].sizes, chain.expected().sizes) << "round " << round;
    std::vector<uint8_t> output(chain.expected().codes.size() + 1, 123);
    const void* from = input.data();
    void* to = output.data();
    network.run(*plan, {&from, 1}, {&to, 1}, serial);
    ASSERT_EQ(output.back(), 123);
    output.pop_back();
    ASSERT_EQ(output, in_memory(chain.expected(), plan->outputs()[0].channels_last)) << "round " << round;
  }
}

std::string refusal(const Words& step, const Words& sizes) {
  Words words{kProgramVersion, 1, 1, 1, 1, step[0], static_cast<int64_t>(step.size()) - 1};
  words.insert(words.end(), step.begin() + 1, step.end());
  try {
    const TensorType type{Element::kCodes, false, sizes};
    Network({words, {}, {}, {}}).plan({{type}});
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(NetworkMoves, WhatDoesNotFitIsRefused) {
  const auto code = [](Opcode opcode) { return static_cast<int64_t>(opcode); };
  EXPECT_EQ(refusal({code(Opcode::kReshape), 0, 2, 5, -1}, {2, 3, 4}),
            "reshape: input must fill [5, -1] for each of the batch (got [2, 3, 4])");
  EXPECT_EQ(refusal({code(Opcode::kReshape), 0, 2, 3, 5}, {2, 3, 4}),
            "reshape: input must fill [3, 5] for each of the batch (got [2, 3, 4])");
  EXPECT_EQ(refusal({code(Opcode::kPermute), 0, 3, 1, 0, 2}, {2, 3, 4}),
            "permute: the program's dims must be each dim once, batch first");
  EXPECT_EQ(refusal({code(Opcode::kPermute), 0, 3, 0, 1, 1}, {2, 3, 4}),
            "permute: the program's dims must be each dim once, batch first");
  EXPECT_EQ(refusal({code(Opcode::kSlice), 0, 0, 0, 1, 1}, {2, 3, 4}), "slice: dim must lie in [1, 3) (got 0)");
  EXPECT_EQ(refusal({code(Opcode::kSlice), 0, 1, 0, 1, 0}, {2, 3, 4}), "slice: step must be at least 1 (got 0)");
  EXPECT_EQ(refusal({code(Opcode::kChunk), 0, 1, 2, 2}, {2, 3, 4}),
            "chunk: the program takes chunk 2 of 2 of [2, 3, 4] along dim 1");
  EXPECT_EQ(refusal({code(Opcode::kPad), 0, 9, 2, -3, -2}, {2, 3, 4}),
            "pad: input must be larger than what is cut off (got [2, 3, 4])");
  EXPECT_EQ(refusal({code(Opcode::kUpsampleNearest), 0, 1, 1, 2}, {2, 3}),
            "upsample: input must have 3 to 5 dimensions (got [2, 3])");
  EXPECT_EQ(refusal({code(Opcode::kSelect), 0, 1, 3}, {2, 3, 4}),
            "select: index must lie in dim 1 of [2, 3, 4] (got 3)");
  EXPECT_EQ(refusal({code(Opcode::kPixelShuffle), 0, 2}, {2, 6, 4, 4}),
            "pixel_shuffle: input must be an image whose channels are a multiple of 2 squared (got [2, 6, 4, 4])");
  EXPECT_EQ(refusal({code(Opcode::kChannelShuffle), 0, 2}, {2, 3, 4}),
            "channel_shuffle: input must have a multiple of 2 channels (got [2, 3, 4])");
}

}  // namespace
}  // namespace octet::kernels
