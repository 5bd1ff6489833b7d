#include "octet/ops/quantize.h"

#include <torch/library.h>

#include "octet/ops/channel_layout.h"
#include "octet/ops/common.h"
#include "octet/ops/parallel.h"

namespace octet {

using at::Tensor;
using Axis = std::optional<int64_t>;  // none: one grid for the whole tensor

namespace {

const char* quantize_name(Axis axis) { return axis ? "quantize_per_channel" : "quantize_per_tensor"; }
const char* dequantize_name(Axis axis) { return axis ? "dequantize_per_channel" : "dequantize_per_tensor"; }

Axis check_grids(const char* op, const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis) {
  if (!axis) {
    detail::check_grid(op, scale, zero_point);
    return axis;
  }
  axis = detail::check_axis(op, x, *axis);
  detail::check_channel_grids(op, x, scale, zero_point, *axis);
  return axis;
}

Axis check_quantize(const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis, int64_t qmin,
                    int64_t qmax, at::ScalarType dtype) {
  const char* op = quantize_name(axis);
  detail::check_floating(op, "x", x);
  detail::check_bounds(op, qmin, qmax);
  TORCH_CHECK((dtype == at::kByte && qmin >= 0) || (dtype == at::kChar && qmax <= 127), op,
              ": dtype must be uint8 or int8 and hold [qmin, qmax] (got ", dtype, " for [", qmin, ", ", qmax, "])");
  return check_grids(op, x, scale, zero_point, axis);
}

Axis check_dequantize(const Tensor& q, const Tensor& scale, const Tensor& zero_point, Axis axis) {
  detail::check_codes(dequantize_name(axis), "q", q);
  return check_grids(dequantize_name(axis), q, scale, zero_point, axis);
}

template <class Code>
void quantize_dense(const Tensor& x, Axis axis, const detail::GridArrays& arrays, const Tensor& q) {
  kernels::quantize(x.const_data_ptr<float>(), detail::channel_layout(x, axis), arrays.grids(),
                    q.mutable_data_ptr<Code>(), detail::torch_parallel);
}

Tensor quantize_cpu(const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis, int64_t qmin,
                    int64_t qmax, at::ScalarType dtype) {
  axis = check_quantize(x, scale, zero_point, axis, qmin, qmax, dtype);
  const detail::GridArrays arrays(quantize_name(axis), scale, zero_point, qmin, qmax);
  const Tensor input = detail::dense_float(x);
  Tensor q = at::empty_like(input, dtype);
  dtype == at::kByte ? quantize_dense<uint8_t>(input, axis, arrays, q) : quantize_dense<int8_t>(input, axis, arrays, q);
  return q;
}

Tensor quantize_meta(const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis, int64_t qmin,
                     int64_t qmax, at::ScalarType dtype) {
  check_quantize(x, scale, zero_point, axis, qmin, qmax, dtype);
  return at::empty_like(x, dtype);
}

// Any other device, by plain ATen operations with the same roundings.
std::pair<Tensor, Tensor> broadcast_grids(const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis) {
  std::vector<int64_t> shape(axis ? x.dim() : 0, 1);
  if (axis) shape[*axis] = -1;
  return {scale.reshape(shape), zero_point.reshape(shape).to(at::kFloat)};
}

Tensor quantize_any(const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis, int64_t qmin,
                    int64_t qmax, at::ScalarType dtype) {
  axis = check_quantize(x, scale, zero_point, axis, qmin, qmax, dtype);
  const auto [s, z] = broadcast_grids(x, scale, zero_point, axis);
  return (x.to(at::kFloat) / s).round_().nan_to_num_(0.0, HUGE_VAL, -HUGE_VAL).add_(z).clamp_(qmin, qmax).to(dtype);
}

template <class Code>
void dequantize_dense(const Tensor& q, Axis axis, const detail::GridArrays& arrays, const Tensor& y) {
  kernels::dequantize(q.const_data_ptr<Code>(), detail::channel_layout(q, axis), arrays.grids(),
                      y.mutable_data_ptr<float>(), detail::torch_parallel);
}

Tensor dequantize_cpu(const Tensor& q, const Tensor& scale, const Tensor& zero_point, Axis axis) {
  axis = check_dequantize(q, scale, zero_point, axis);
  const detail::GridArrays arrays(dequantize_name(axis), scale, zero_point, -128, 255);
  const Tensor codes = detail::dense(q);
  Tensor y = at::empty_like(codes, at::kFloat);
  q.scalar_type() == at::kByte ? dequantize_dense<uint8_t>(codes, axis, arrays, y)
                               : dequantize_dense<int8_t>(codes, axis, arrays, y);
  return y;
}

Tensor dequantize_meta(const Tensor& q, const Tensor& scale, const Tensor& zero_point, Axis axis) {
  check_dequantize(q, scale, zero_point, axis);
  return at::empty_like(q, at::kFloat);
}

Tensor dequantize_any(const Tensor& q, const Tensor& scale, const Tensor& zero_point, Axis axis) {
  axis = check_dequantize(q, scale, zero_point, axis);
  const auto [s, z] = broadcast_grids(q, scale, zero_point, axis);
  return (q.to(at::kFloat) - z).mul_(s);
}

// The four public schemas over two implementations.
template <auto Quantize, auto Dequantize>
struct Implementation {
  static Tensor quantize_tensor(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t qmin,
                                int64_t qmax, at::ScalarType dtype) {
    return Quantize(x, scale, zero_point, std::nullopt, qmin, qmax, dtype);
  }
  static Tensor quantize_channel(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t axis,
                                 int64_t qmin, int64_t qmax, at::ScalarType dtype) {
    return Quantize(x, scale, zero_point, axis, qmin, qmax, dtype);
  }
  static Tensor dequantize_tensor(const Tensor& q, const Tensor& scale, const Tensor& zero_point) {
    return Dequantize(q, scale, zero_point, std::nullopt);
  }
  static Tensor dequantize_channel(const Tensor& q, const Tensor& scale, const Tensor& zero_point, int64_t axis) {
    return Dequantize(q, scale, zero_point, axis);
  }
  static void add_to(torch::Library& m) {
    m.impl("quantize_per_tensor", TORCH_FN(quantize_tensor));
    m.impl("quantize_per_channel", TORCH_FN(quantize_channel));
    m.impl("dequantize_per_tensor", TORCH_FN(dequantize_tensor));
    m.impl("dequantize_per_channel", TORCH_FN(dequantize_channel));
  }
};

}  // namespace

Tensor quantize_per_tensor(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax,
                           at::ScalarType dtype) {
  static const auto op = detail::find_op<decltype(quantize_per_tensor)>("quantize_per_tensor");
  return op.call(x, scale, zero_point, qmin, qmax, dtype);
}

Tensor quantize_per_channel(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t axis, int64_t qmin,
                            int64_t qmax, at::ScalarType dtype) {
  static const auto op = detail::find_op<decltype(quantize_per_channel)>("quantize_per_channel");
  return op.call(x, scale, zero_point, axis, qmin, qmax, dtype);
}

Tensor dequantize_per_tensor(const Tensor& q, const Tensor& scale, const Tensor& zero_point) {
  static const auto op = detail::find_op<decltype(dequantize_per_tensor)>("dequantize_per_tensor");
  return op.call(q, scale, zero_point);
}

Tensor dequantize_per_channel(const Tensor& q, const Tensor& scale, const Tensor& zero_point, int64_t axis) {
  static const auto op = detail::find_op<decltype(dequantize_per_channel)>("dequantize_per_channel");
  return op.call(q, scale, zero_point, axis);
}

TORCH_LIBRARY_FRAGMENT(octet, m) {
  m.def(
      "quantize_per_tensor(Tensor x, Tensor scale, Tensor zero_point, int qmin, int qmax, ScalarType dtype) -> Tensor");
  m.def(
      "quantize_per_channel(Tensor x, Tensor scale, Tensor zero_point, int axis, int qmin, int qmax, ScalarType dtype) "
      "-> Tensor");
  m.def("dequantize_per_tensor(Tensor q, Tensor scale, Tensor zero_point) -> Tensor");
  m.def("dequantize_per_channel(Tensor q, Tensor scale, Tensor zero_point, int axis) -> Tensor");
}

TORCH_LIBRARY_IMPL(octet, CPU, m) { Implementation<quantize_cpu, dequantize_cpu>::add_to(m); }
TORCH_LIBRARY_IMPL(octet, Meta, m) { Implementation<quantize_meta, dequantize_meta>::add_to(m); }
TORCH_LIBRARY_IMPL(octet, CompositeExplicitAutograd, m) { Implementation<quantize_any, dequantize_any>::add_to(m); }

TORCH_LIBRARY_IMPL(octet, Autograd, m) {
  m.impl("quantize_per_tensor", TORCH_FN(detail::NonDifferentiable<quantize_per_tensor>::call));
  m.impl("quantize_per_channel", TORCH_FN(detail::NonDifferentiable<quantize_per_channel>::call));
  m.impl("dequantize_per_tensor", TORCH_FN(detail::NonDifferentiable<dequantize_per_tensor>::call));
  m.impl("dequantize_per_channel", TORCH_FN(detail::NonDifferentiable<dequantize_per_channel>::call));
}

}  // namespace octet
