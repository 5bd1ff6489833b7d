// The road of a user's own torch::nn::Module that is composed of octet::nn blocks: prepare, train or calibrate,
// convert, all in place.
//
//   octet::prepare(*net, example);   // wires the grids by running forward once
//   ... train net in an ordinary loop, or octet::calibrate(*net, batches) ...
//   octet::convert(*net);            // from now on forward computes in int8, bit for bit what it did in evaluation
//   mode
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <torch/nn/module.h>

#include <concepts>
#include <functional>

#include "octet/convert/mode.h"
#include "octet/nn/spec.h"

namespace octet {

// Runs `forward` once in evaluation mode and gives the blocks of `module` that it reaches their grids, by the identity
// of the tensors they read and return. Blocks are built without grids; bits and observers are the recipe's, overrides
// by the name of the block.
//
// A block reads the grid of the block whose result it gets, directly or moved (views, reshape, flatten, permute, slice,
// contiguous, dropout). ReLU and max pool stay on the grid too, but as Torch's operators they run in float; prefer
// blocks with a ReLU and octet::nn::MaxPool2d. A tensor that no block made, the input of the network
// first of all, gets a grid of its own, which belongs to the first block that reads it, as its child `input` (`a`, `b`
// in an Add), and that is what errors call it. Additions between blocks must be octet::nn::Add, concatenations
// octet::nn::Cat; whatever else happens between blocks happens in float. Blocks that forward does not reach stay float.
//
// forward must go the same way in every later call and may return what an IValue holds: a tensor, a tuple, vector or
// dictionary of tensors. Tensors it keeps elsewhere may be codes once converted.
//
// Errors: no block reached, a block reached twice or wired before, an override whose name is no block's, a Spec out of
// range; each names the block. The module is then as it was.
void prepare(torch::nn::Module& module, const std::function<c10::IValue()>& forward, const Recipe& recipe = {});

// The same with module.forward(example).
template <std::derived_from<torch::nn::Module> M>
void prepare(M& module, const at::Tensor& example, const Recipe& recipe = {}) {
  prepare(module, [&] { return c10::IValue(module.forward(example)); }, recipe);
}

// Switches the blocks of a prepared module to INT8, in place, and the module to evaluation mode. forward takes and
// gives float as before; between blocks flow uint8 codes where nothing else reads them. The blocks keep their float
// layers, so that the state_dict only gains the children `int8`; they do not train any more. Call it again after
// changing the layers. Errors, each with the name, before anything is switched: a module without prepared blocks,
// blocks with grids given by hand, and those of block->to_int8(): a grid without a finite range, with fake quantization
// off or stale ranges, parameters with NaN or inf.
void convert(torch::nn::Module& module);

}  // namespace octet
