#include "octet/ops/conv_shape.h"

#include <algorithm>

namespace octet::detail {

using at::IntArrayRef;
using at::Tensor;
using kernels::ConvShape;

namespace {

kernels::Dims to_dims(IntArrayRef values, int64_t missing) {
  kernels::Dims dims{missing, missing, missing};
  std::copy(values.begin(), values.end(), dims.end() - values.size());
  return dims;
}

}  // namespace

std::vector<c10::SymInt> conv_output_sizes(const char* op, const Tensor& x, const Tensor& weight, IntArrayRef stride,
                                           IntArrayRef padding, IntArrayRef dilation, int64_t groups) {
  const auto rank = static_cast<size_t>(weight.dim() - 2);
  TORCH_CHECK(rank >= 1 && rank <= 3, op, ": weight must have 3, 4 or 5 dimensions (got ", weight.dim(), ")");
  TORCH_CHECK(x.dim() == weight.dim(), op, ": x must have as many dimensions as weight (got ", x.dim(), ", ",
              weight.dim(), ")");
  TORCH_CHECK(stride.size() == rank && padding.size() == rank && dilation.size() == rank, op,
              ": stride, padding and dilation must have ", rank, " entries (got ", stride.size(), ", ", padding.size(),
              ", ", dilation.size(), ")");
  TORCH_CHECK(groups >= 1 && weight.sym_size(0) % groups == 0, op, ": groups must divide weight.size(0) (got ", groups,
              ", ", weight.sym_size(0), ")");
  TORCH_CHECK(x.sym_size(1) == weight.sym_size(1) * groups, op, ": x.size(1) must equal weight.size(1) * groups (got ",
              x.sym_size(1), ", ", weight.sym_size(1) * groups, ")");
  std::vector<c10::SymInt> out;
  for (size_t d = 0; d < rank; ++d) {
    TORCH_CHECK(stride[d] >= 1 && padding[d] >= 0 && dilation[d] >= 1, op,
                ": stride and dilation must be at least 1 and padding at least 0 (got ", stride[d], ", ", dilation[d],
                ", ", padding[d], ")");
    const c10::SymInt reach = (weight.sym_size(d + 2) - 1) * dilation[d] + 1;
    const c10::SymInt padded = x.sym_size(d + 2) + 2 * padding[d];
    TORCH_CHECK(padded >= reach, op, ": the kernel must not be larger than the padded input (got ", reach, ", ", padded,
                " in spatial dimension ", d, ")");
    out.push_back((padded - reach) / stride[d] + 1);
  }
  return out;
}

ConvShape conv_shape(const Tensor& x, const Tensor& weight, const Tensor& y, IntArrayRef stride, IntArrayRef padding,
                     IntArrayRef dilation, int64_t groups) {
  ConvShape shape;
  shape.batch = x.size(0);
  shape.groups = groups;
  shape.in_channels = x.size(1);
  shape.out_channels = weight.size(0);
  shape.in = to_dims(x.sizes().slice(2), 1);
  shape.out = to_dims(y.sizes().slice(2), 1);
  shape.kernel = to_dims(weight.sizes().slice(2), 1);
  shape.stride = to_dims(stride, 1);
  shape.padding = to_dims(padding, 0);
  shape.dilation = to_dims(dilation, 1);
  return shape;
}

}  // namespace octet::detail
