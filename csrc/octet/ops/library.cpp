// The op namespace `octet`. Each op registers its own schema and kernels beside its implementation with
// TORCH_LIBRARY_FRAGMENT.
#include <torch/library.h>

TORCH_LIBRARY(octet, m) {}
