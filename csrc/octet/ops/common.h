// What the ops share: the one typed lookup of the dispatcher, checks, layouts, dispatch helpers. Not a public header.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/clone.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/GradMode.h>

#include <cstdint>

#include "octet/core/grid.h"

namespace octet::detail {

// The function behind a public op, looked up once per call site: static const auto op =
// find_op<decltype(min_max)>("min_max").
template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow((std::string("octet::") + name).c_str(), "").typed<Signature>();
}

// The Autograd kernel of an op without gradient: runs it, and whatever it calls, below autograd, so its outputs never
// ask for one.
template <auto Op>
struct NonDifferentiable;
template <class R, class... Args, R (*Op)(Args...)>
struct NonDifferentiable<Op> {
  static R call(Args... args) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const at::NoGradGuard no_gradient;
    return Op(args...);
  }
};

inline void check_floating(const char* op, const char* name, const at::Tensor& x) {
  TORCH_CHECK(x.is_floating_point(), op, ": ", name, " must be floating point (got ", x.scalar_type(), ")");
}

inline void check_dtype(const char* op, const char* name, const at::Tensor& x, at::ScalarType dtype) {
  TORCH_CHECK(x.scalar_type() == dtype, op, ": ", name, " must have dtype ", dtype, " (got ", x.scalar_type(), ")");
}

inline void check_codes(const char* op, const char* name, const at::Tensor& q) {
  const auto dtype = q.scalar_type();
  TORCH_CHECK(dtype == at::kByte || dtype == at::kChar, op, ": ", name, " must be uint8 or int8 codes (got ", dtype,
              ")");
}

inline void check_bounds(const char* op, int64_t qmin, int64_t qmax) {
  TORCH_CHECK(qmin < qmax && qmin >= -128 && qmax <= 255, op,
              ": qmin and qmax must satisfy -128 <= qmin < qmax <= 255 (got ", qmin, ", ", qmax, ")");
}

// scale and zero point of one tensor.
inline void check_grid(const char* op, const at::Tensor& scale, const at::Tensor& zero_point, const char* which = "") {
  TORCH_CHECK(scale.scalar_type() == at::kFloat && scale.sym_numel() == 1, op, ": ", which,
              "scale must be a float32 tensor with one element (got ", scale.scalar_type(), " of shape ",
              scale.sym_sizes(), ")");
  TORCH_CHECK(zero_point.scalar_type() == at::kInt && zero_point.sym_numel() == 1, op, ": ", which,
              "zero_point must be an int32 tensor with one element (got ", zero_point.scalar_type(), " of shape ",
              zero_point.sym_sizes(), ")");
}

// axis, counted from the front.
inline int64_t check_axis(const char* op, const at::Tensor& x, int64_t axis) {
  TORCH_CHECK(axis >= -x.dim() && axis < x.dim(), op, ": axis must lie in [", -x.dim(), ", ", x.dim(), ") (got ", axis,
              ")");
  return axis < 0 ? axis + x.dim() : axis;
}

// scale and zero point of every channel of x along axis.
inline void check_channel_grids(const char* op, const at::Tensor& x, const at::Tensor& scale,
                                const at::Tensor& zero_point, int64_t axis) {
  check_dtype(op, "scale", scale, at::kFloat);
  check_dtype(op, "zero_point", zero_point, at::kInt);
  const c10::SymInt channels = x.sym_size(axis);
  TORCH_CHECK(scale.dim() == 1 && scale.sym_numel() == channels, op, ": scale.numel() must equal x.size(", axis,
              ") (got ", scale.sym_numel(), ", ", channels, ")");
  TORCH_CHECK(zero_point.dim() == 1 && zero_point.sym_numel() == channels, op,
              ": zero_point.numel() must equal x.size(", axis, ") (got ", zero_point.sym_numel(), ", ", channels, ")");
}

inline void check_zero_point(const char* op, int64_t zero_point, int64_t qmin, int64_t qmax) {
  TORCH_CHECK(qmin <= zero_point && zero_point <= qmax, op, ": zero_point must lie in [qmin, qmax] (got ", zero_point,
              " outside of [", qmin, ", ", qmax, "])");
}

// What an INT8 operator may produce: codes [lo, hi] around a zero point.
inline void check_output_codes(const char* op, int64_t zero_point, int64_t lo, int64_t hi) {
  check_zero_point(op, zero_point, 0, 255);
  TORCH_CHECK(0 <= lo && lo <= hi && hi <= 255, op, ": lo and hi must satisfy 0 <= lo <= hi <= 255 (got ", lo, ", ", hi,
              ")");
}

// A tensor of one element: on the CPU without the kernel call that `item` and `fill_` are, of which a training step
// would make dozens for each block.
template <class T>
T read_one(const at::Tensor& t) {
  return t.is_cpu() ? *t.const_data_ptr<T>() : t.item<T>();
}
template <class T>
void write_one(const at::Tensor& t, T value) {
  if (!t.is_cpu()) {
    t.fill_(value);
    return;
  }
  *t.mutable_data_ptr<T>() = value;
  t.unsafeGetTensorImpl()->bump_version();
}

inline Grid read_grid(const char* op, const at::Tensor& scale, const at::Tensor& zero_point, int64_t qmin,
                      int64_t qmax) {
  check_grid(op, scale, zero_point);
  check_bounds(op, qmin, qmax);
  const auto z = read_one<int32_t>(zero_point);
  check_zero_point(op, z, qmin, qmax);
  return {read_one<float>(scale), z, static_cast<int32_t>(qmin), static_cast<int32_t>(qmax)};
}

// x without holes or overlap, any order of dimensions (so channels_last stays), with the strides empty_like(x) has.
inline at::Tensor dense(const at::Tensor& x) {
  return x.is_non_overlapping_and_dense() ? x : at::clone(x, at::MemoryFormat::Preserve);
}

inline at::Tensor dense_float(const at::Tensor& x) { return dense(x.to(at::kFloat)); }

}  // namespace octet::detail
