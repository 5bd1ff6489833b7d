#include "octet/ops/int8_pool.h"

#include <torch/library.h>

#include "octet/kernels/pool.h"
#include "octet/ops/common.h"
#include "octet/ops/nhwc.h"
#include "octet/ops/parallel.h"
#include "octet/ops/pool_shape.h"

namespace octet {

using at::IntArrayRef;
using at::Tensor;
using detail::Windows;
using Sizes = std::vector<c10::SymInt>;

namespace {

// The values that an average moves between.
struct Grids {
  double x_scale;
  int64_t x_zero_point;
  double y_scale;
  int64_t y_zero_point, lo, hi;
};

void check_input(const char* op, const Tensor& x, size_t rank) {
  detail::check_dtype(op, "x", x, at::kByte);
  detail::check_pooled(op, x, rank);
}

void check_grids(const char* op, const Grids& grids) {
  TORCH_CHECK(grids.x_scale > 0 && grids.y_scale > 0, op, ": scales must be positive (got ", grids.x_scale, ", ",
              grids.y_scale, ")");
  detail::check_zero_point(op, grids.x_zero_point, 0, 255);
  detail::check_output_codes(op, grids.y_zero_point, grids.lo, grids.hi);
}

// The output's spatial sizes.
Sizes check_windows(const char* op, const Tensor& x, const Windows& w) {
  check_input(op, x, w.kernel_size.size());
  return detail::pooled_sizes(op, x, w);
}

Sizes check_adaptive(const Tensor& x, IntArrayRef output_size) {
  constexpr const char* kOp = "int8_adaptive_avg_pool";
  check_input(kOp, x, output_size.size());
  for (size_t d = 0; d < output_size.size(); ++d) {
    TORCH_CHECK(output_size[d] >= 1, kOp, ": output_size must be at least 1 (got ", output_size[d], ")");
    TORCH_CHECK(x.sym_size(d + 2) >= 1, kOp, ": x must not be empty in spatial dimension ", d, " (got ", x.sym_sizes(),
                ")");
  }
  return {output_size.begin(), output_size.end()};
}

Tensor empty_result(const Tensor& x, const Sizes& out) {
  return detail::empty_channels_innermost(x.sym_size(0), x.sym_size(1), out, x.options());
}

kernels::PoolShape adaptive_shape(const Tensor& x, IntArrayRef output_size) {
  kernels::PoolShape shape = detail::unit_pool_shape(x);
  const size_t rank = output_size.size();
  for (size_t d = 0; d < rank; ++d) {
    shape.windows[3 - rank + d] = kernels::adaptive_windows(x.size(d + 2), output_size[d]);
  }
  return shape;
}

Tensor average(const Tensor& x, const kernels::PoolShape& shape, const Sizes& out, const Grids& grids,
               int64_t divisor) {
  Tensor y = empty_result(x, out);
  if (y.numel() == 0) return y;
  kernels::AveragePoolParams params;
  params.x_scale = static_cast<float>(grids.x_scale);
  params.x_zero_point = static_cast<int32_t>(grids.x_zero_point);
  params.y_scale = static_cast<float>(grids.y_scale);
  params.y_zero_point = static_cast<int32_t>(grids.y_zero_point);
  params.bounds = {static_cast<int32_t>(grids.lo), static_cast<int32_t>(grids.hi)};
  params.divisor = divisor;
  const Tensor input = detail::channels_innermost(x);
  kernels::average_pool(input.const_data_ptr<uint8_t>(), shape, params, y.mutable_data_ptr<uint8_t>(),
                        detail::torch_parallel);
  return y;
}

// torch's average pooling has no dilation.
Windows average_windows(IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding, bool ceil_mode,
                        bool count_include_pad) {
  static constexpr int64_t kOnes[] = {1, 1, 1};
  return {kernel_size, stride,           padding, IntArrayRef(kOnes, std::min<size_t>(kernel_size.size(), 3)),
          ceil_mode,   count_include_pad};
}

Sizes check_average(const Tensor& x, const Windows& windows, int64_t divisor_override, const Grids& grids) {
  TORCH_CHECK(divisor_override >= 0, "int8_avg_pool: divisor_override must be at least 0 (got ", divisor_override, ")");
  check_grids("int8_avg_pool", grids);
  return check_windows("int8_avg_pool", x, windows);
}

Tensor avg_pool_cpu(const Tensor& x, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding, bool ceil_mode,
                    bool count_include_pad, int64_t divisor_override, double x_scale, int64_t x_zero_point,
                    double y_scale, int64_t y_zero_point, int64_t lo, int64_t hi) {
  const Windows windows = average_windows(kernel_size, stride, padding, ceil_mode, count_include_pad);
  const Grids grids{x_scale, x_zero_point, y_scale, y_zero_point, lo, hi};
  const Sizes out = check_average(x, windows, divisor_override, grids);
  return average(x, detail::pool_shape(x, windows), out, grids, divisor_override);
}

Tensor avg_pool_meta(const Tensor& x, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding, bool ceil_mode,
                     bool count_include_pad, int64_t divisor_override, double x_scale, int64_t x_zero_point,
                     double y_scale, int64_t y_zero_point, int64_t lo, int64_t hi) {
  const Windows windows = average_windows(kernel_size, stride, padding, ceil_mode, count_include_pad);
  return empty_result(
      x, check_average(x, windows, divisor_override, {x_scale, x_zero_point, y_scale, y_zero_point, lo, hi}));
}

// Other devices compute on the CPU: slow, and the same bits.
Tensor avg_pool_any(const Tensor& x, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding, bool ceil_mode,
                    bool count_include_pad, int64_t divisor_override, double x_scale, int64_t x_zero_point,
                    double y_scale, int64_t y_zero_point, int64_t lo, int64_t hi) {
  return avg_pool_cpu(x.cpu(), kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, x_scale,
                      x_zero_point, y_scale, y_zero_point, lo, hi)
      .to(x.device());
}

Tensor adaptive_cpu(const Tensor& x, IntArrayRef output_size, double x_scale, int64_t x_zero_point, double y_scale,
                    int64_t y_zero_point, int64_t lo, int64_t hi) {
  const Grids grids{x_scale, x_zero_point, y_scale, y_zero_point, lo, hi};
  check_grids("int8_adaptive_avg_pool", grids);
  const Sizes out = check_adaptive(x, output_size);
  return average(x, adaptive_shape(x, output_size), out, grids, 0);
}

Tensor adaptive_meta(const Tensor& x, IntArrayRef output_size, double x_scale, int64_t x_zero_point, double y_scale,
                     int64_t y_zero_point, int64_t lo, int64_t hi) {
  check_grids("int8_adaptive_avg_pool", {x_scale, x_zero_point, y_scale, y_zero_point, lo, hi});
  return empty_result(x, check_adaptive(x, output_size));
}

Tensor adaptive_any(const Tensor& x, IntArrayRef output_size, double x_scale, int64_t x_zero_point, double y_scale,
                    int64_t y_zero_point, int64_t lo, int64_t hi) {
  return adaptive_cpu(x.cpu(), output_size, x_scale, x_zero_point, y_scale, y_zero_point, lo, hi).to(x.device());
}

Tensor max_pool_cpu(const Tensor& x, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                    IntArrayRef dilation, bool ceil_mode) {
  const Windows windows{kernel_size, stride, padding, dilation, ceil_mode};
  Tensor y = empty_result(x, check_windows("int8_max_pool", x, windows));
  if (y.numel() == 0) return y;
  const Tensor input = detail::channels_innermost(x);
  kernels::max_pool(input.const_data_ptr<uint8_t>(), detail::pool_shape(x, windows), y.mutable_data_ptr<uint8_t>(),
                    detail::torch_parallel);
  return y;
}

Tensor max_pool_meta(const Tensor& x, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                     IntArrayRef dilation, bool ceil_mode) {
  return empty_result(x, check_windows("int8_max_pool", x, {kernel_size, stride, padding, dilation, ceil_mode}));
}

Tensor max_pool_any(const Tensor& x, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                    IntArrayRef dilation, bool ceil_mode) {
  return max_pool_cpu(x.cpu(), kernel_size, stride, padding, dilation, ceil_mode).to(x.device());
}

}  // namespace

Tensor int8_avg_pool(const Tensor& x, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding, bool ceil_mode,
                     bool count_include_pad, int64_t divisor_override, double x_scale, int64_t x_zero_point,
                     double y_scale, int64_t y_zero_point, int64_t lo, int64_t hi) {
  static const auto op = detail::find_op<decltype(int8_avg_pool)>("int8_avg_pool");
  return op.call(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, x_scale, x_zero_point,
                 y_scale, y_zero_point, lo, hi);
}

Tensor int8_adaptive_avg_pool(const Tensor& x, IntArrayRef output_size, double x_scale, int64_t x_zero_point,
                              double y_scale, int64_t y_zero_point, int64_t lo, int64_t hi) {
  static const auto op = detail::find_op<decltype(int8_adaptive_avg_pool)>("int8_adaptive_avg_pool");
  return op.call(x, output_size, x_scale, x_zero_point, y_scale, y_zero_point, lo, hi);
}

Tensor int8_max_pool(const Tensor& x, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                     IntArrayRef dilation, bool ceil_mode) {
  static const auto op = detail::find_op<decltype(int8_max_pool)>("int8_max_pool");
  return op.call(x, kernel_size, stride, padding, dilation, ceil_mode);
}

TORCH_LIBRARY_FRAGMENT(octet, m) {
  m.def(
      "int8_avg_pool(Tensor x, int[] kernel_size, int[] stride, int[] padding, bool ceil_mode, bool count_include_pad, "
      "int divisor_override, float x_scale, int x_zero_point, float y_scale, int y_zero_point, int lo, int hi) -> "
      "Tensor");
  m.def(
      "int8_adaptive_avg_pool(Tensor x, int[] output_size, float x_scale, int x_zero_point, float y_scale, int "
      "y_zero_point, int lo, int hi) -> Tensor");
  m.def(
      "int8_max_pool(Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode) -> "
      "Tensor");
}

TORCH_LIBRARY_IMPL(octet, CPU, m) {
  m.impl("int8_avg_pool", TORCH_FN(avg_pool_cpu));
  m.impl("int8_adaptive_avg_pool", TORCH_FN(adaptive_cpu));
  m.impl("int8_max_pool", TORCH_FN(max_pool_cpu));
}

TORCH_LIBRARY_IMPL(octet, Meta, m) {
  m.impl("int8_avg_pool", TORCH_FN(avg_pool_meta));
  m.impl("int8_adaptive_avg_pool", TORCH_FN(adaptive_meta));
  m.impl("int8_max_pool", TORCH_FN(max_pool_meta));
}

TORCH_LIBRARY_IMPL(octet, CompositeExplicitAutograd, m) {
  m.impl("int8_avg_pool", TORCH_FN(avg_pool_any));
  m.impl("int8_adaptive_avg_pool", TORCH_FN(adaptive_any));
  m.impl("int8_max_pool", TORCH_FN(max_pool_any));
}

}  // namespace octet
