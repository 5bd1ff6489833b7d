#define OCTET_ISA_NAMESPACE avx512
#include "octet/kernels/training-inl.h"

namespace octet::kernels::avx512 {
const TrainingKernels& training_kernels = kTrainingKernels;
}  // namespace octet::kernels::avx512
