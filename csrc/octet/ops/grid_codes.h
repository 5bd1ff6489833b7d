// The u8 codes of a float tensor that lies on a grid, kept with the tensor by whoever computed both: its consumers need
// not quantize it again. Not a public header.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

#include "octet/core/grid.h"

namespace octet::detail {

// y must hold no NaN, which no code can tell. codes: y's shape, in any memory order.
void attach_codes(const at::Tensor& y, at::Tensor codes, const Grid& grid);

// The codes of y and their grid; undefined where nobody attached them or y has changed since.
std::pair<at::Tensor, Grid> attached_codes(const at::Tensor& y);

// The codes of y if they are on this very grid.
at::Tensor attached_codes(const at::Tensor& y, const Grid& grid);

}  // namespace octet::detail
