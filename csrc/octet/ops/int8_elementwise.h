// INT8 addition, multiplication and one-input functions: rules 10, 11 and 12 of docs/numerics.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace octet {

// q = clamp(round(f32(a - a_zero_point) * a_ratio + f32(b - b_zero_point) * b_ratio) + y_zero_point, lo, hi); the
// ratios are n_a / n_y and +-n_b / n_y of the grids' steps, a negative one subtracts. a, b: uint8, shapes that
// broadcast. Returns uint8 of the broadcast shape, laid out as the operand that has it.
at::Tensor int8_add(const at::Tensor& a, const at::Tensor& b, int64_t a_zero_point, double a_ratio,
                    int64_t b_zero_point, double b_ratio, int64_t y_zero_point, int64_t lo, int64_t hi);

// q = clamp(round(f32((a - a_zero_point) * (b - b_zero_point)) * multiplier) + y_zero_point, lo, hi); shapes as
// int8_add.
at::Tensor int8_mul(const at::Tensor& a, const at::Tensor& b, int64_t a_zero_point, int64_t b_zero_point,
                    double multiplier, int64_t y_zero_point, int64_t lo, int64_t hi);

// table[x]: x uint8, any shape; table uint8 [256]. Returns x's shape and strides.
at::Tensor int8_table(const at::Tensor& x, const at::Tensor& table);

}  // namespace octet
