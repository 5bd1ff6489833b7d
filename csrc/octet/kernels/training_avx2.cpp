#define OCTET_ISA_NAMESPACE avx2
#include "octet/kernels/training-inl.h"

namespace octet::kernels::avx2 {
const TrainingKernels& training_kernels = kTrainingKernels;
}  // namespace octet::kernels::avx2
