#include "octet/kernels/team.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace octet::kernels {
namespace {

// Waits awake for some tens of microseconds, about as long as a step takes, then lets others have the core.
class Waiting {
 public:
  void operator()() {
    if (++turns_ > kAwake) return std::this_thread::yield();
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

 private:
  static constexpr int kAwake = 2000;
  int turns_ = 0;
};

// One loop at a time, cut into parts that any thread may take. A part is taken by lowering `free_`; who holds a part
// may read the loop, since the leader changes it only when no part is free and all are done.
class Team {
 public:
  explicit Team(int64_t threads) : threads_(threads) {}

  void run(int64_t count, int64_t grain, RangeBody body) {
    const int64_t parts = std::min(threads_, count / std::max<int64_t>(grain, 1));
    if (parts <= 1) return serial(count, grain, body);
    loop_ = {count, parts, &body};
    undone_.store(parts, std::memory_order_relaxed);
    free_.store(parts, std::memory_order_release);
    while (take_part()) {
    }
    for (Waiting wait; undone_.load(std::memory_order_acquire) > 0;) wait();
    if (failed_.exchange(false)) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

  void follow() {
    Waiting wait;
    while (!over_.load(std::memory_order_acquire)) {
      if (take_part()) {
        wait = Waiting();
      } else {
        wait();
      }
    }
  }

  void dismiss() { over_.store(true, std::memory_order_release); }

 private:
  struct Loop {
    int64_t count = 0, parts = 0;
    const RangeBody* body = nullptr;
  };

  bool take_part() {
    int64_t part = free_.load(std::memory_order_acquire);
    do {
      if (part == 0) return false;
    } while (!free_.compare_exchange_weak(part, part - 1, std::memory_order_acq_rel, std::memory_order_acquire));
    const Loop loop = loop_;
    try {
      (*loop.body)(loop.count*(part - 1) / loop.parts, loop.count * part / loop.parts);
    } catch (...) {
      if (!failed_.exchange(true)) failure_ = std::current_exception();
    }
    undone_.fetch_sub(1, std::memory_order_acq_rel);
    return true;
  }

  const int64_t threads_;
  Loop loop_;
  std::exception_ptr failure_;
  std::atomic<bool> failed_{false};
  // On lines of their own: the waiting threads read one while the others are written.
  alignas(64) std::atomic<int64_t> free_{0};
  alignas(64) std::atomic<int64_t> undone_{0};
  alignas(64) std::atomic<bool> over_{false};
};

// Dismisses the team however the work ends.
struct Leading {
  Team& team;
  ~Leading() { team.dismiss(); }
};

}  // namespace

void with_team(int64_t threads, ParallelFor parallel, FunctionRef<void(ParallelFor)> work) {
  if (threads <= 1) return work(serial);
  Team team(threads);
  parallel(threads, 1, [&](int64_t begin, int64_t /*end*/) {
    if (begin > 0) return team.follow();
    const Leading leading{team};
    work([&](int64_t count, int64_t grain, RangeBody body) { team.run(count, grain, body); });
  });
}

}  // namespace octet::kernels
