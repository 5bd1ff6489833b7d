// A whole INT8 network, or the part of one between two float islands, in one call.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace octet {

// Runs the program (its format: octet/kernels/network.h) and gives its outputs; each has the bits of the operators
// called one by one.
//   inputs: floating point of any dtype where the program begins with a quantize, uint8 codes elsewhere; any strides,
//   any
//     batch size (0 too). All on the CPU.
//   program: int64 [words]; weights: int8 codes and tables; biases: int32; numbers: float32; one-dimensional, dense.
// Outputs are uint8 codes or float32; those of convolutions and pools have channels_last strides. No gradient.
// The first call packs the weights and plans the buffers; both stay with `program` and die with it. A change of the
// four tensors in place is seen (by their version), except for inference tensors, which have none. Several threads may
// call at once. Throws c10::Error naming the operator when dtype, shape or channel count of an input do not fit.
std::vector<at::Tensor> run_network(at::TensorList inputs, const at::Tensor& program, const at::Tensor& weights,
                                    const at::Tensor& biases, const at::Tensor& numbers);

}  // namespace octet
