#define OCTET_ISA_NAMESPACE generic
#include "octet/kernels/training-inl.h"

namespace octet::kernels::generic {
const TrainingKernels& training_kernels = kTrainingKernels;
}  // namespace octet::kernels::generic
