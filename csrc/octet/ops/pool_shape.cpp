#include "octet/ops/pool_shape.h"

#include <algorithm>

namespace octet::detail {

using at::Tensor;

void check_pooled(const char* op, const Tensor& x, size_t rank) {
  TORCH_CHECK(rank >= 1 && rank <= 3 && x.dim() == static_cast<int64_t>(rank) + 2, op,
              ": x must have 2 dimensions more than there are windows, 1 to 3 (got ", x.dim(), ", ", rank, ")");
}

std::vector<c10::SymInt> pooled_sizes(const char* op, const Tensor& x, const Windows& w) {
  const size_t rank = w.kernel_size.size();
  check_pooled(op, x, rank);
  TORCH_CHECK(w.stride.size() == rank && w.padding.size() == rank && w.dilation.size() == rank, op,
              ": stride, padding and dilation must have ", rank, " entries (got ", w.stride.size(), ", ",
              w.padding.size(), ", ", w.dilation.size(), ")");
  std::vector<c10::SymInt> out;
  for (size_t d = 0; d < rank; ++d) {
    TORCH_CHECK(w.kernel_size[d] >= 1 && w.stride[d] >= 1 && w.dilation[d] >= 1, op,
                ": kernel_size, stride and dilation must be at least 1 (got ", w.kernel_size[d], ", ", w.stride[d],
                ", ", w.dilation[d], ")");
    TORCH_CHECK(w.padding[d] >= 0 && 2 * w.padding[d] <= w.kernel_size[d], op,
                ": padding must be at most half of kernel_size (got ", w.padding[d], ", ", w.kernel_size[d], ")");
    c10::SymInt size = kernels::pooled_size(x.sym_size(d + 2), w.kernel_size[d], w.stride[d], w.padding[d],
                                            w.dilation[d], w.ceil_mode);
    TORCH_CHECK(size >= 1, op, ": the window must not be larger than the padded input (got ", w.kernel_size[d], ", ",
                x.sym_size(d + 2) + 2 * w.padding[d], " in spatial dimension ", d, ")");
    out.push_back(std::move(size));
  }
  return out;
}

kernels::PoolShape unit_pool_shape(const Tensor& x) {
  kernels::PoolShape shape;
  shape.batch = x.size(0);
  shape.channels = x.size(1);
  const auto spatial = x.sizes().slice(2);
  std::copy(spatial.begin(), spatial.end(), shape.in.end() - spatial.size());
  for (auto& windows : shape.windows) windows = kernels::pool_windows(1, 1, 1, 0, 1, false, true);
  return shape;
}

kernels::PoolShape pool_shape(const Tensor& x, const Windows& w) {
  kernels::PoolShape shape = unit_pool_shape(x);
  const size_t rank = w.kernel_size.size();
  for (size_t d = 0; d < rank; ++d) {
    shape.windows[3 - rank + d] = kernels::pool_windows(x.size(d + 2), w.kernel_size[d], w.stride[d], w.padding[d],
                                                        w.dilation[d], w.ceil_mode, w.count_include_pad);
  }
  return shape;
}

}  // namespace octet::detail
