// How a kernel uses threads: it has none of its own, the caller hands it a parallel loop (octet/ops passes Torch's).
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

namespace octet::kernels {

// A reference to a callable object: two pointers, no allocation. The callable must outlive the reference.
template <class Signature>
class FunctionRef;

template <class Result, class... Args>
class FunctionRef<Result(Args...)> {
 public:
  template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef> && std::is_invocable_r_v<Result, F&, Args...>)
  FunctionRef(F&& f)  // NOLINT(google-explicit-constructor): a lambda or a plain function is passed as is
      : object_(address(f)), call_([](void* object, Args... args) -> Result {
          return callable<std::remove_reference_t<F>>(object)(std::forward<Args>(args)...);
        }) {}

  Result operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  // A function's address becomes a void* only by reinterpret_cast, as POSIX guarantees it can.
  template <class F>
  static void* address(F& f) {
    if constexpr (std::is_function_v<F>) {
      return reinterpret_cast<void*>(std::addressof(f));
    } else {
      return const_cast<void*>(static_cast<const void*>(std::addressof(f)));
    }
  }
  template <class F>
  static F& callable(void* object) {
    if constexpr (std::is_function_v<F>) {
      return *reinterpret_cast<F*>(object);
    } else {
      return *static_cast<F*>(object);
    }
  }

  void* object_;
  Result (*call_)(void*, Args...);
};

// One part of a loop: the indices [begin, end).
using RangeBody = FunctionRef<void(int64_t begin, int64_t end)>;

// parallel(count, grain, body) calls body on disjoint ranges that cover [0, count), perhaps at the same time, each but
// the last at least `grain` long. No kernel's result depends on how the loop was split.
using ParallelFor = FunctionRef<void(int64_t count, int64_t grain, RangeBody body)>;

// The loop on the calling thread.
inline constexpr auto serial = [](int64_t count, int64_t /*grain*/, RangeBody body) {
  if (count > 0) body(0, count);
};

}  // namespace octet::kernels
