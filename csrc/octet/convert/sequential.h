// The road of a torch::nn::Sequential: prepare, train or calibrate, convert.
//
//   auto qat = octet::prepare(model);          // conv, batch norm and ReLU fused, grids in place; model is left alone
//   ... train qat in an ordinary loop ...
//   auto int8 = octet::convert(qat);           // computes in int8 what qat computes in evaluation mode, bit for bit
#pragma once

#include <torch/nn/modules/container/sequential.h>

#include <vector>

#include "octet/convert/mode.h"
#include "octet/nn/spec.h"

namespace octet {

// A QAT copy of `model`. (conv 1d to 3d or linear) + batch norm + (ReLU or ReLU6) in a row become one octet::nn block
// under the name of the first of them; batch norm alone, average pools and ReLU6 alone become blocks of their own. Max
// pools, ReLU, flatten, dropout and identity stay, on the grid of what they read. Everything else is a float island:
// also what recipe.overrides leaves float, a convolution that pads with other than as many zeros on both sides, batch
// norm without running statistics, an adaptive pool whose size is left open. The value behind an island gets a grid
// when the next block reads it, by a FakeQuantize "<name of the reader>_input".
//
// The batch size stays free. Errors: a Spec out of range, a reduction too long for exact accumulation, an override
// whose name is no layer's; each names the layer. The forward refuses tokens [N, L, C] for a linear layer with a batch
// norm over as many features: leave one of the two float.
torch::nn::Sequential prepare(const torch::nn::Sequential& model, const Recipe& recipe = {});

// The INT8 model: octet::nn::int8 modules on uint8 codes between a Quantize and a Dequantize, float islands as they
// are, in evaluation mode. Float in, float out, the bits of `qat` in evaluation mode. `qat` is left alone. Errors: a
// grid without a finite range, with fake quantization off or stale ranges; parameters with NaN or inf; each names it.
torch::nn::Sequential convert(const torch::nn::Sequential& qat);

void calibrate(torch::nn::Sequential& qat, const std::vector<at::Tensor>& batches);

}  // namespace octet
