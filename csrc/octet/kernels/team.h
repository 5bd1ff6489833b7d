// Many small loops in a row on the same threads.
#pragma once

#include <cstdint>

#include "octet/kernels/parallel.h"

namespace octet::kernels {

// Calls work(loop) once, on the calling thread; `loop` is a ParallelFor whose loops start and end in a fifth of a
// microsecond where one of `parallel` takes over one (measured with two OpenMP threads; a small network has thirty).
// The threads are those of one `parallel` over [0, threads), of which [0, 1) must run on the calling thread: they wait
// in between, awake at first, so that work should be short and loops dense. Nobody waits for a thread that has not
// come: its part is done by the others. An exception of a loop's body comes out of the loop.
void with_team(int64_t threads, ParallelFor parallel, FunctionRef<void(ParallelFor)> work);

}  // namespace octet::kernels
