// Max pooling while training: torch's values and gradient, one byte kept per output.
#pragma once

#include <ATen/core/Tensor.h>

namespace octet {

// x: [N, C, spatial...], floating, in 1, 2 or 3 spatial dimensions by kernel_size's length; windows as
// torch.nn.MaxPool's. Values and gradient are torch's, the result's memory has channels innermost. Where x came with
// its codes the result does too. Errors: lengths, a window larger than the padded input.
at::Tensor max_pool(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                    at::IntArrayRef dilation, bool ceil_mode);

}  // namespace octet
