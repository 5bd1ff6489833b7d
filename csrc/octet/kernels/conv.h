// INT8 convolution in 1, 2 and 3 dimensions: rules 5, 6 and 10 of docs/numerics.md. A linear layer is a convolution
// whose spatial sizes are 1 and whose batch is its rows; batch norm alone is a depthwise convolution with kernel 1.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "octet/core/requantize.h"
#include "octet/kernels/dispatch.h"
#include "octet/kernels/parallel.h"

namespace octet::kernels {

using Dims = std::array<int64_t, 3>;  // depth, height, width; missing leading dimensions are 1 (padding: 0)

struct ConvShape {
  int64_t batch = 1;
  int64_t groups = 1;
  int64_t in_channels = 1;  // of all groups together
  int64_t out_channels = 1;
  Dims in{1, 1, 1};
  Dims out{1, 1, 1};
  Dims kernel{1, 1, 1};
  Dims stride{1, 1, 1};
  Dims padding{0, 0, 0};
  Dims dilation{1, 1, 1};

  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  int64_t pixels() const { return out[0] * out[1] * out[2]; }  // per image
  int64_t in_pixels() const { return in[0] * in[1] * in[2]; }
  int64_t in_per_group() const { return in_channels / groups; }
  int64_t out_per_group() const { return out_channels / groups; }
};

// floor((in + 2 padding - dilation (kernel - 1) - 1) / stride) + 1, for each dimension; 0 where the kernel does not
// fit.
Dims conv_output_size(const ConvShape& shape);

// A residual add behind the convolution: the convolution's code, formed and clamped by rule 6, is one operand of
// rule 10.
struct ResidualAdd {
  const uint8_t* codes = nullptr;  // laid out as y
  int32_t zero_point = 0;          // of the residual
  float ratio = 1.0f;              // of the residual: +-n/n_y
  float conv_ratio = 1.0f;         // of the convolution's own grid
  int32_t y_zero_point = 0;        // of the sum
  CodeBounds bounds;               // of the sum
};

// What happens to an accumulator. Arrays are per output channel.
struct ConvEpilogue {
  const int32_t* bias = nullptr;
  const float* multiplier = nullptr;
  int32_t x_zero_point = 0;
  int32_t y_zero_point = 0;  // of the convolution's own grid
  CodeBounds bounds;
  const ResidualAdd* residual = nullptr;  // none: the convolution's code is the result
  const void* wanted_next = nullptr;      // another convolution's packed weights; the last panel may fetch them
};

// How the codes of a weight lie in memory: [out, in / groups, kd, kh, kw] or [out, kd, kh, kw, in / groups].
enum class WeightOrder { kTapsInnermost, kChannelsInnermost };

// Weights arranged for one ISA; made once per weight tensor, immutable, safe to use from several threads.
class PackedConv {
 public:
  // weights: dense. Of the shape only groups, channels, kernel and dilation matter; the packed weights serve every
  // batch, input size, stride and padding.
  PackedConv(const int8_t* weights, const ConvShape& shape, WeightOrder order = WeightOrder::kTapsInnermost,
             Isa isa = active_isa(), ParallelFor parallel = serial);
  PackedConv(PackedConv&&) noexcept;
  PackedConv& operator=(PackedConv&&) noexcept;
  ~PackedConv();

  Isa isa() const;
  std::string_view kernel_name() const;  // the row of the kernel table that will run
  size_t bytes() const;                  // memory held
  const void* memory() const;            // of the weights

  struct Impl;
  const Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<const Impl> impl_;
};

// x: codes [batch, in..., in_channels], dense, channels innermost; padding reads as x_zero_point. y: likewise [batch,
// out..., out_channels], u8 codes of the result's grid. shape.out must be conv_output_size(shape). Needs
// accumulator_fits().
void run_conv(const PackedConv& weights, const ConvShape& shape, const uint8_t* x, const ConvEpilogue& epilogue,
              uint8_t* y, ParallelFor parallel);

// The same, the result dequantized: scale * (q - z), z the result's zero point. A residual's codes stay u8.
void run_conv(const PackedConv& weights, const ConvShape& shape, const uint8_t* x, const ConvEpilogue& epilogue,
              float scale, float* y, ParallelFor parallel);

// multiplier * (sum((x - x_zero_point) * w) + bias) as it is, no grid behind it. multiplier and bias, which may be
// null: per output channel.
void run_conv_sums(const PackedConv& weights, const ConvShape& shape, const uint8_t* x, int32_t x_zero_point,
                   const int32_t* bias, const float* multiplier, float* y, ParallelFor parallel);

}  // namespace octet::kernels
