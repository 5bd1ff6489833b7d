#include "octet/kernels/team.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <thread>
#include <tuple>
#include <vector>

namespace octet::kernels {
namespace {

// A parallel loop of one index per thread, the first on the caller; `late`: the others begin when that is through.
void on_threads(int64_t count, bool late, RangeBody body) {
  std::vector<std::jthread> threads;
  if (late) body(0, 1);
  for (int64_t i = 1; i < count; ++i) threads.emplace_back([=] { body(i, i + 1); });
  if (!late) body(0, 1);
}

class Team : public testing::TestWithParam<std::tuple<int64_t, bool>> {
 protected:
  void with(FunctionRef<void(ParallelFor)> work) {
    const auto [threads, late] = GetParam();
    with_team(threads, [late = late](int64_t count, int64_t, RangeBody body) { on_threads(count, late, body); }, work);
  }
};

TEST_P(Team, CoversEveryLoopOnce) {
  with([](ParallelFor loop) {
    for (int64_t round = 0; round < 2000; ++round) {
      const int64_t count = round % 37, grain = round % 5;
      std::vector<int> seen(static_cast<size_t>(count), 0);
      loop(count, grain, [&](int64_t begin, int64_t end) {
        EXPECT_LT(begin, end);
        for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
      });
      EXPECT_EQ(seen, std::vector<int>(seen.size(), 1));
    }
  });
}

TEST_P(Team, NoPartIsSmallerThanTheGrain) {
  with([](ParallelFor loop) {
    for (int64_t count = 1; count < 60; ++count) {
      loop(count, 7, [&](int64_t begin, int64_t end) { EXPECT_GE(end - begin, std::min<int64_t>(count, 7)); });
    }
  });
}

TEST_P(Team, ExceptionsComeOutOfTheLoop) {
  with([](ParallelFor loop) {
    for (int round = 0; round < 100; ++round) {
      EXPECT_THROW(loop(64, 1, [](int64_t, int64_t) { throw std::runtime_error("part"); }), std::runtime_error);
      std::atomic<int64_t> sum = 0;
      loop(64, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
      EXPECT_EQ(sum, 64);
    }
  });
  EXPECT_THROW(with([](ParallelFor) { throw std::runtime_error("work"); }), std::runtime_error);
}

INSTANTIATE_TEST_SUITE_P(Threads, Team, testing::Combine(testing::Values(1, 2, 3, 8), testing::Bool()));

}  // namespace
}  // namespace octet::kernels
