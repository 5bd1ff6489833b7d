// gcc 12 takes the undefined operand inside its own intrinsics for a mistake (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#define OCTET_ISA_NAMESPACE avx512
#include "octet/kernels/training-inl.h"

namespace octet::kernels::avx512 {
const TrainingKernels& training_kernels = kTrainingKernels;
}  // namespace octet::kernels::avx512
