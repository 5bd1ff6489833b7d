#include "octet/ops/int8_elementwise.h"

#include <ATen/ExpandUtils.h>
#include <torch/library.h>

#include "octet/kernels/elementwise.h"
#include "octet/ops/common.h"
#include "octet/ops/parallel.h"

namespace octet {

using at::Tensor;

namespace {

void check_pair(const char* op, const Tensor& a, const Tensor& b, int64_t a_zero_point, int64_t b_zero_point,
                int64_t y_zero_point, int64_t lo, int64_t hi) {
  detail::check_dtype(op, "a", a, at::kByte);
  detail::check_dtype(op, "b", b, at::kByte);
  detail::check_zero_point(op, a_zero_point, 0, 255);
  detail::check_zero_point(op, b_zero_point, 0, 255);
  detail::check_output_codes(op, y_zero_point, lo, hi);
}

// An empty result of the broadcast shape, laid out as the operand that has it.
Tensor empty_result(const Tensor& a, const Tensor& b) {
  const auto broadcast = at::infer_size_symdimvector(a.sym_sizes(), b.sym_sizes());
  const c10::SymIntArrayRef shape = broadcast;  // torch 2.11 compares arrays of one type only
  if (a.sym_sizes() == shape) return at::empty_like(a);
  if (b.sym_sizes() == shape) return at::empty_like(b);
  return at::empty_symint(shape, a.options());
}

// x broadcast to y's shape, element for element in y's order of memory.
Tensor laid_out_as(const Tensor& y, const Tensor& x) {
  if (x.sizes() == y.sizes() && x.strides() == y.strides()) return x;
  return at::empty_like(y).copy_(x);
}

Tensor int8_add_cpu(const Tensor& a, const Tensor& b, int64_t a_zero_point, double a_ratio, int64_t b_zero_point,
                    double b_ratio, int64_t y_zero_point, int64_t lo, int64_t hi) {
  check_pair("int8_add", a, b, a_zero_point, b_zero_point, y_zero_point, lo, hi);
  Tensor y = empty_result(a, b);
  const Tensor left = laid_out_as(y, a), right = laid_out_as(y, b);
  kernels::AddParams params;
  params.a_zero_point = static_cast<int32_t>(a_zero_point);
  params.a_ratio = static_cast<float>(a_ratio);
  params.b_zero_point = static_cast<int32_t>(b_zero_point);
  params.b_ratio = static_cast<float>(b_ratio);
  params.y_zero_point = static_cast<int32_t>(y_zero_point);
  params.bounds = {static_cast<int32_t>(lo), static_cast<int32_t>(hi)};
  kernels::add(left.const_data_ptr<uint8_t>(), right.const_data_ptr<uint8_t>(), y.numel(), params,
               y.mutable_data_ptr<uint8_t>(), detail::torch_parallel);
  return y;
}

Tensor int8_add_meta(const Tensor& a, const Tensor& b, int64_t a_zero_point, double, int64_t b_zero_point, double,
                     int64_t y_zero_point, int64_t lo, int64_t hi) {
  check_pair("int8_add", a, b, a_zero_point, b_zero_point, y_zero_point, lo, hi);
  return empty_result(a, b);
}

// Other devices compute on the CPU: slow, and the same bits.
Tensor int8_add_any(const Tensor& a, const Tensor& b, int64_t a_zero_point, double a_ratio, int64_t b_zero_point,
                    double b_ratio, int64_t y_zero_point, int64_t lo, int64_t hi) {
  return int8_add_cpu(a.cpu(), b.cpu(), a_zero_point, a_ratio, b_zero_point, b_ratio, y_zero_point, lo, hi)
      .to(a.device());
}

Tensor int8_mul_cpu(const Tensor& a, const Tensor& b, int64_t a_zero_point, int64_t b_zero_point, double multiplier,
                    int64_t y_zero_point, int64_t lo, int64_t hi) {
  check_pair("int8_mul", a, b, a_zero_point, b_zero_point, y_zero_point, lo, hi);
  Tensor y = empty_result(a, b);
  const Tensor left = laid_out_as(y, a), right = laid_out_as(y, b);
  kernels::MulParams params;
  params.a_zero_point = static_cast<int32_t>(a_zero_point);
  params.b_zero_point = static_cast<int32_t>(b_zero_point);
  params.multiplier = static_cast<float>(multiplier);
  params.y_zero_point = static_cast<int32_t>(y_zero_point);
  params.bounds = {static_cast<int32_t>(lo), static_cast<int32_t>(hi)};
  kernels::mul(left.const_data_ptr<uint8_t>(), right.const_data_ptr<uint8_t>(), y.numel(), params,
               y.mutable_data_ptr<uint8_t>(), detail::torch_parallel);
  return y;
}

Tensor int8_mul_meta(const Tensor& a, const Tensor& b, int64_t a_zero_point, int64_t b_zero_point, double,
                     int64_t y_zero_point, int64_t lo, int64_t hi) {
  check_pair("int8_mul", a, b, a_zero_point, b_zero_point, y_zero_point, lo, hi);
  return empty_result(a, b);
}

Tensor int8_mul_any(const Tensor& a, const Tensor& b, int64_t a_zero_point, int64_t b_zero_point, double multiplier,
                    int64_t y_zero_point, int64_t lo, int64_t hi) {
  return int8_mul_cpu(a.cpu(), b.cpu(), a_zero_point, b_zero_point, multiplier, y_zero_point, lo, hi).to(a.device());
}

void check_table(const Tensor& x, const Tensor& table) {
  detail::check_dtype("int8_table", "x", x, at::kByte);
  TORCH_CHECK(table.scalar_type() == at::kByte && table.dim() == 1 && table.sym_numel() == 256,
              "int8_table: table must be uint8 of shape [256] (got ", table.scalar_type(), " of shape ",
              table.sym_sizes(), ")");
}

Tensor int8_table_cpu(const Tensor& x, const Tensor& table) {
  check_table(x, table);
  const Tensor input = detail::dense(x), entries = table.contiguous();
  Tensor y = at::empty_like(input);
  kernels::lookup(input.const_data_ptr<uint8_t>(), y.numel(), entries.const_data_ptr<uint8_t>(),
                  y.mutable_data_ptr<uint8_t>(), detail::torch_parallel);
  return y;
}

Tensor int8_table_meta(const Tensor& x, const Tensor& table) {
  check_table(x, table);
  return at::empty_like(x);
}

Tensor int8_table_any(const Tensor& x, const Tensor& table) {
  return int8_table_cpu(x.cpu(), table.cpu()).to(x.device());
}

}  // namespace

Tensor int8_add(const Tensor& a, const Tensor& b, int64_t a_zero_point, double a_ratio, int64_t b_zero_point,
                double b_ratio, int64_t y_zero_point, int64_t lo, int64_t hi) {
  static const auto op = detail::find_op<decltype(int8_add)>("int8_add");
  return op.call(a, b, a_zero_point, a_ratio, b_zero_point, b_ratio, y_zero_point, lo, hi);
}

Tensor int8_mul(const Tensor& a, const Tensor& b, int64_t a_zero_point, int64_t b_zero_point, double multiplier,
                int64_t y_zero_point, int64_t lo, int64_t hi) {
  static const auto op = detail::find_op<decltype(int8_mul)>("int8_mul");
  return op.call(a, b, a_zero_point, b_zero_point, multiplier, y_zero_point, lo, hi);
}

Tensor int8_table(const Tensor& x, const Tensor& table) {
  static const auto op = detail::find_op<decltype(int8_table)>("int8_table");
  return op.call(x, table);
}

TORCH_LIBRARY_FRAGMENT(octet, m) {
  m.def(
      "int8_add(Tensor a, Tensor b, int a_zero_point, float a_ratio, int b_zero_point, float b_ratio, int "
      "y_zero_point, "
      "int lo, int hi) -> Tensor");
  m.def(
      "int8_mul(Tensor a, Tensor b, int a_zero_point, int b_zero_point, float multiplier, int y_zero_point, int lo, "
      "int "
      "hi) -> Tensor");
  m.def("int8_table(Tensor x, Tensor table) -> Tensor");
}

TORCH_LIBRARY_IMPL(octet, CPU, m) {
  m.impl("int8_add", TORCH_FN(int8_add_cpu));
  m.impl("int8_mul", TORCH_FN(int8_mul_cpu));
  m.impl("int8_table", TORCH_FN(int8_table_cpu));
}

TORCH_LIBRARY_IMPL(octet, Meta, m) {
  m.impl("int8_add", TORCH_FN(int8_add_meta));
  m.impl("int8_mul", TORCH_FN(int8_mul_meta));
  m.impl("int8_table", TORCH_FN(int8_table_meta));
}

TORCH_LIBRARY_IMPL(octet, CompositeExplicitAutograd, m) {
  m.impl("int8_add", TORCH_FN(int8_add_any));
  m.impl("int8_mul", TORCH_FN(int8_mul_any));
  m.impl("int8_table", TORCH_FN(int8_table_any));
}

}  // namespace octet
