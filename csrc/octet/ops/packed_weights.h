// Weights packed for the kernels, once per weight tensor. Not a public header.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "octet/kernels/conv.h"

namespace octet::detail {

// The packed form of an int8 weight [O, I/groups, spatial...] for the active ISA. Cached for the whole process under
// the weight's storage and version: a changed weight is packed anew, and an entry does not keep its weight alive
// (entries of dead weights go at the next packing). So files hold plain tensors, and deepcopy, .to() and threads need
// no care. Writing through weight.data goes unseen: it changes no version. Inference tensors have none: they are
// compared with a copy of what was packed.
std::shared_ptr<const kernels::PackedConv> packed_weight(const at::Tensor& weight, const kernels::ConvShape& shape);

}  // namespace octet::detail
