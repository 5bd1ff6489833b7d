#include "octet/ops/quantize.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include "octet/ops/common.h"

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

// Calls run(begin, end, grid) for stretches of a dense tensor that lie on one grid.
template <class Run>
void for_each_run(const char* op, const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis,
                  int64_t qmin, int64_t qmax, Run run) {
  if (!axis) {
    const Grid grid = detail::read_grid(op, scale, zero_point, qmin, qmax);
    at::parallel_for(0, x.numel(), detail::kGrain, [&](int64_t begin, int64_t end) { run(begin, end, grid); });
    return;
  }
  if (x.numel() == 0) return;
  const detail::ChannelLayout layout(x, *axis);
  const Tensor scales = scale.contiguous(), zeros = zero_point.contiguous();
  const float* s = scales.const_data_ptr<float>();
  const int32_t* z = zeros.const_data_ptr<int32_t>();
  for (int64_t c = 0; c < layout.channels; ++c) detail::check_zero_point(op, z[c], qmin, qmax);
  at::parallel_for(0, x.numel() / layout.inner, detail::kGrain / layout.inner + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t c = i % layout.channels;
      const Grid grid{s[c], z[c], static_cast<int32_t>(qmin), static_cast<int32_t>(qmax)};
      run(i * layout.inner, (i + 1) * layout.inner, grid);
    }
  });
}

Tensor quantize_cpu(const Tensor& x, const Tensor& scale, const Tensor& zero_point, Axis axis, int64_t qmin,
                    int64_t qmax, at::ScalarType dtype) {
  axis = check_quantize(x, scale, zero_point, axis, qmin, qmax, dtype);
  const Tensor input = detail::dense_float(x);
  const float* from = input.const_data_ptr<float>();
  Tensor q = at::empty_like(input, dtype);
  // The low byte of a code is the same in both types.
  auto* to = static_cast<uint8_t*>(q.mutable_data_ptr());
  for_each_run(quantize_name(axis), input, scale, zero_point, axis, qmin, qmax,
               [&](int64_t begin, int64_t end, const Grid& grid) {
                 for (int64_t i = begin; i < end; ++i) to[i] = static_cast<uint8_t>(quantize(from[i], grid));
               });
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
Tensor dequantize_dense(const Tensor& q, const Tensor& scale, const Tensor& zero_point, Axis axis) {
  Tensor y = at::empty_like(q, at::kFloat);
  const Code* from = q.const_data_ptr<Code>();
  auto* to = y.mutable_data_ptr<float>();
  for_each_run(dequantize_name(axis), q, scale, zero_point, axis, -128, 255,
               [&](int64_t begin, int64_t end, const Grid& grid) {
                 for (int64_t i = begin; i < end; ++i) to[i] = dequantize(from[i], grid);
               });
  return y;
}

Tensor dequantize_cpu(const Tensor& q, const Tensor& scale, const Tensor& zero_point, Axis axis) {
  axis = check_dequantize(q, scale, zero_point, axis);
  const Tensor codes = detail::dense(q);
  return q.scalar_type() == at::kByte ? dequantize_dense<uint8_t>(codes, scale, zero_point, axis)
                                      : dequantize_dense<int8_t>(codes, scale, zero_point, axis);
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
