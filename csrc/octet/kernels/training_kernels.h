// What training.cpp asks of each ISA: loops over the tiles [begin, end) of a walk. Tables are laid out as
// training_walk.h says; sums and extremes are per table entry (interleaved) or per channel, and are added to.
#pragma once

#include <cstdint>
#include <limits>

#include "octet/kernels/training.h"
#include "octet/kernels/training_walk.h"

namespace octet::kernels {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct StatisticsArgs {
  const Walk* walk;
  const float* x;
  const float* origin;  // sums are of x - origin and its square
  double* sums;
  double* squares;
  float* min;
  float* max;
};

// A grid in steps from its zero point.
struct StepBounds {
  float scale, first, last, zero_point;
};

// The activation as a clamp, and the grid.
struct TailBounds {
  float low, high;
  StepBounds grid;
};

struct ForwardArgs {
  const Walk* walk;
  const float* x;
  const float* gain;
  const float* shift;
  TailBounds bounds;
  float* y;
  uint8_t* codes;  // may be null
  uint16_t* pass;  // may be null
};

struct IntegerArgs {
  const Walk* walk;  // interleaved
  const float* x;
  const float* gain;
  const float* shift;
  float lowest, highest;  // steps of the result: the activation as a clamp of codes
  TailBounds bounds;
  float* y;
  uint8_t* codes;  // may be null
  uint16_t* pass;  // may be null
  float* low;      // extremes of the activation's output, NaN passed over
  float* high;
};

struct BackwardSumsArgs {
  const Walk* walk;
  const float* grad;
  const uint16_t* pass;
  const float* x;  // may be null, then mean and dots are not looked at
  const float* mean;
  double* sums;
  double* dots;
};

struct BackwardArgs {
  const Walk* walk;
  const float* grad;
  const uint16_t* pass;
  const float* x;  // may be null, then only tables.a counts
  TailGradient tables;
  void* grad_x;
  bool bfloat16;
};

struct CodesArgs {
  const Walk* walk;
  const float* x;
  StepBounds grid;
  uint8_t* codes;
  float* poison;  // becomes NaN where a value is
  float* error;   // grows where a value lies beside the grid
};

struct ReadArgs {
  const Walk* walk;
  const uint8_t* codes;
  StepBounds grid;
  uint16_t* x;
};

struct AddArgs {
  const Walk* walk;
  AddOperand a, b;
  float alpha;
  StepBounds a_grid, b_grid;
  float a_ratio, b_ratio;
  float lowest, highest;  // steps of the result: the activation as a clamp of codes
  TailBounds bounds;
  float* y;
  uint8_t* codes;  // may be null
  uint16_t* pass;
  Range* range;   // of the finite values
  float* poison;  // becomes NaN where a value is not finite
};

// An output of a max pool that an input may have won: its channels, and the input's position in its window.
struct PooledOutput {
  const float* grad;
  const uint8_t* winner;
  uint8_t position;
};

struct TrainingKernels {
  void (*statistics)(const StatisticsArgs&, int64_t begin, int64_t end);
  void (*forward)(const ForwardArgs&, int64_t begin, int64_t end);
  void (*integer)(const IntegerArgs&, int64_t begin, int64_t end);
  void (*backward_sums)(const BackwardSumsArgs&, int64_t begin, int64_t end);
  void (*backward)(const BackwardArgs&, int64_t begin, int64_t end);
  void (*codes)(const CodesArgs&, int64_t begin, int64_t end);
  void (*read)(const ReadArgs&, int64_t begin, int64_t end);
  void (*add)(const AddArgs&, int64_t begin, int64_t end);
  // One position of a max pool, n channels: the largest of `count` inputs and which it was; the gradient of an input
  // from the outputs that it may have won, in order.
  void (*pool)(const float* const* x, int64_t count, int64_t n, float* y, uint8_t* winner);
  void (*unpool)(const PooledOutput* outputs, int64_t count, int64_t n, float* grad_x);
};

const TrainingKernels& active_training_kernels();

namespace generic {
extern const TrainingKernels& training_kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const TrainingKernels& training_kernels;
}
namespace avx512 {
extern const TrainingKernels& training_kernels;
}
#endif

}  // namespace octet::kernels
