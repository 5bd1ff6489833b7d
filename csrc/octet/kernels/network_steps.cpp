// The steps of a network: each reads its arguments, checks its operands, and binds one kernel call.
#include <algorithm>
#include <numeric>

#include "octet/kernels/elementwise.h"
#include "octet/kernels/network_builder.h"
#include "octet/kernels/pool.h"
#include "octet/kernels/prepared_conv.h"
#include "octet/kernels/relayout.h"

namespace octet::kernels {
namespace {

using Sizes = std::vector<int64_t>;

int64_t product(std::span<const int64_t> sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

ChannelLayout flat(int64_t elements) { return {1, 1, elements}; }

// (batch, channels, spatial...) with 1 to 3 spatial dimensions, as triples.
Dims spatial_dims(const Sizes& sizes) {
  Dims dims{1, 1, 1};
  std::copy(sizes.begin() + 2, sizes.end(), dims.end() - static_cast<int64_t>(sizes.size() - 2));
  return dims;
}

TensorType image_type(const Sizes& like, int64_t channels, const Dims& spatial) {
  Sizes sizes{like[0], channels};
  const auto first = spatial.end() - static_cast<int64_t>(like.size() - 2);
  if (std::any_of(spatial.begin(), first, [](int64_t size) { return size != 1; })) {
    refuse("the program gives a tensor more dimensions than it has");
  }
  sizes.insert(sizes.end(), first, spatial.end());
  return {Element::kCodes, true, sizes};
}

// The value in channels-last order, checked to have `spatial_rank` spatial dimensions.
Value image(NetworkBuilder& builder, int64_t index, int64_t spatial_rank, const char* step) {
  const Value& x = builder.codes(index);
  if (spatial_rank < 1 || spatial_rank > 3 || static_cast<int64_t>(x.type.sizes.size()) != spatial_rank + 2) {
    refuse(std::string(step) + ": input must have " + std::to_string(spatial_rank + 2) + " dimensions (got " +
           to_string(x.type.sizes) + ")");
  }
  return builder.in_order(x, true);
}

// x, scale_at, zero_point, lo, hi
Value bind_quantize(WordReader& words, NetworkBuilder& builder) {
  const Value x = builder.value(words.next());
  const float scale = builder.number(words.next());
  const int32_t zero_point = words.next_code();
  const CodeBounds bounds = words.next_bounds();
  if (x.type.element != Element::kFloat) refuse("quantize: input must be floating point (got uint8)");
  TensorType type = x.type;
  type.element = Element::kCodes;
  const int64_t count = type.elements();
  return builder.emit({x.buffer}, type, [=, x = x.buffer](int y) {
    return [=](Memory memory, ParallelFor parallel) {
      const ChannelGrids grid{&scale, &zero_point, bounds.lo, bounds.hi};
      quantize(reinterpret_cast<const float*>(memory[x]), flat(count), grid, codes_out(memory, y), parallel);
    };
  });
}

// x, scale_at, zero_point. In plain order: what follows may be float kernels of others, whose rounding depends on the
// order.
Value bind_dequantize(WordReader& words, NetworkBuilder& builder) {
  const Value x = builder.in_order(builder.codes(words.next()), false);
  const float scale = builder.number(words.next());
  const int32_t zero_point = words.next_code();
  TensorType type = x.type;
  type.element = Element::kFloat;
  const int64_t count = type.elements();
  return builder.emit({x.buffer}, type, [=, x = x.buffer](int y) {
    return [=](Memory memory, ParallelFor parallel) {
      const ChannelGrids grid{&scale, &zero_point};
      dequantize(codes_in(memory, x), flat(count), grid, reinterpret_cast<float*>(memory[y]), parallel);
    };
  });
}

// The common tail of convolution and linear:
//   weights_at, biases_at, multipliers_at, x_zero_point, y_zero_point, lo, hi, residual (-1: none) [, zero_point,
//   ratio_at, conv_ratio_at, y_zero_point, lo, hi]
Value bind_conv_tail(const ConvShape& shape, const Value& x, const TensorType& type, WordReader& words,
                     NetworkBuilder& builder) {
  const int64_t weights_at = words.next();
  ConvEpilogue epilogue;
  epilogue.bias = builder.biases(words.next(), shape.out_channels);
  epilogue.multiplier = builder.numbers(words.next(), shape.out_channels);
  epilogue.x_zero_point = words.next_code();
  epilogue.y_zero_point = words.next_code();
  epilogue.bounds = words.next_bounds();
  const int64_t residual_index = words.next();
  const PackedConv& packed = builder.packed(weights_at, shape);
  const PreparedConv conv(packed, shape, epilogue, builder.weights_after(packed));
  if (residual_index < 0) {
    return builder.emit({x.buffer}, type, [=, x = x.buffer](int y) {
      return [=](Memory memory, ParallelFor parallel) {
        conv.run(codes_in(memory, x), nullptr, codes_out(memory, y), parallel);
      };
    });
  }
  const Value residual = builder.in_order(builder.codes(residual_index), type.channels_last);
  ResidualAdd add;
  add.zero_point = words.next_code();
  add.ratio = builder.number(words.next());
  add.conv_ratio = builder.number(words.next());
  add.y_zero_point = words.next_code();
  add.bounds = words.next_bounds();
  if (residual.type != type) {
    refuse("add: operands must have the same shape (got " + to_string(type.sizes) + " and " +
           to_string(residual.type.sizes) + ")");
  }
  return builder.emit({x.buffer, residual.buffer}, type, [=, x = x.buffer, r = residual.buffer](int y) {
    return [=](Memory memory, ParallelFor parallel) {
      ResidualAdd bound = add;
      bound.codes = codes_in(memory, r);
      conv.run(codes_in(memory, x), &bound, codes_out(memory, y), parallel);
    };
  });
}

// x, spatial_rank, out_channels, in_channels, groups, kernel, stride, padding, dilation, tail
Value bind_conv(WordReader& words, NetworkBuilder& builder) {
  const int64_t input = words.next();
  const Value x = image(builder, input, words.next(), "conv");
  ConvShape shape;
  shape.batch = x.type.sizes[0];
  shape.out_channels = words.next_int32();
  shape.in_channels = words.next_int32();
  shape.groups = words.next_int32();
  shape.in = spatial_dims(x.type.sizes);
  shape.kernel = words.next_dims(1);
  shape.stride = words.next_dims(1);
  shape.padding = words.next_dims(0);
  shape.dilation = words.next_dims(1);
  if (shape.groups < 1 || shape.in_channels < 1 || shape.out_channels < 1 || shape.in_channels % shape.groups != 0 ||
      shape.out_channels % shape.groups != 0) {
    refuse("conv: the program's channels do not divide into its groups");
  }
  if (x.type.sizes[1] != shape.in_channels) {
    refuse("conv: input must have " + std::to_string(shape.in_channels) + " channels (got " + to_string(x.type.sizes) +
           ")");
  }
  shape.out = conv_output_size(shape);
  if (*std::min_element(shape.out.begin(), shape.out.end()) < 1) {
    refuse("conv: the kernel must fit into the padded input (got " + to_string(x.type.sizes) + ")");
  }
  return bind_conv_tail(shape, x, image_type(x.type.sizes, shape.out_channels, shape.out), words, builder);
}

// x, out_features, in_features, tail
Value bind_linear(WordReader& words, NetworkBuilder& builder) {
  const Value x = builder.in_order(builder.codes(words.next()), false);
  ConvShape shape;
  shape.out_channels = words.next_int32();
  shape.in_channels = words.next_int32();
  if (shape.out_channels < 1 || shape.in_channels < 1) refuse("linear: the program has no features");
  if (x.type.sizes.empty() || x.type.sizes.back() != shape.in_channels) {
    refuse("linear: input must have " + std::to_string(shape.in_channels) + " features (got " +
           to_string(x.type.sizes) + ")");
  }
  shape.batch = product(x.type.sizes) / shape.in_channels;
  TensorType type = x.type;
  type.sizes.back() = shape.out_channels;
  return bind_conv_tail(shape, x, type, words, builder);
}

// x, channels, tail. Batch norm alone: a depthwise convolution of one tap, pixel by pixel.
Value bind_batch_norm(WordReader& words, NetworkBuilder& builder) {
  const Value x = builder.in_order(builder.codes(words.next()), true);
  ConvShape shape;
  shape.out_channels = shape.in_channels = shape.groups = words.next_int32();
  if (shape.groups < 1) refuse("batch_norm: the program has no channels");
  if (x.type.sizes.size() < 2 || x.type.sizes[1] != shape.groups) {
    refuse("batch_norm: input must have " + std::to_string(shape.groups) + " channels (got " + to_string(x.type.sizes) +
           ")");
  }
  shape.in[2] = shape.out[2] = product(x.type.sizes) / shape.groups;
  return bind_conv_tail(shape, x, x.type, words, builder);
}

// a, b, a_zero_point, a_ratio_at, b_zero_point, b_ratio_at, y_zero_point, lo, hi
Value bind_add(WordReader& words, NetworkBuilder& builder) {
  const Value& first = builder.codes(words.next());
  const Value& second = builder.codes(words.next());
  const auto operands = builder.in_common_order({first, second});
  const Value &a = operands[0], &b = operands[1];
  AddParams params;
  params.a_zero_point = words.next_code();
  params.a_ratio = builder.number(words.next());
  params.b_zero_point = words.next_code();
  params.b_ratio = builder.number(words.next());
  params.y_zero_point = words.next_code();
  params.bounds = words.next_bounds();
  if (a.type != b.type) {
    refuse("add: operands must have the same shape (got " + to_string(a.type.sizes) + " and " +
           to_string(b.type.sizes) + ")");
  }
  const int64_t count = a.type.elements();
  return builder.emit({a.buffer, b.buffer}, a.type, [=, a = a.buffer, b = b.buffer](int y) {
    return [=](Memory memory, ParallelFor parallel) {
      add(codes_in(memory, a), codes_in(memory, b), count, params, codes_out(memory, y), parallel);
    };
  });
}

// a * b where b has one value per channel (squeeze and excite): row by row of a, channels innermost.
Value bind_channel_mul(const Value& a, const Value& b, const MulParams& params, NetworkBuilder& builder) {
  const int64_t channels = a.type.sizes[1];
  const int64_t pixels = product(std::span(a.type.sizes).subspan(2));
  const int64_t rows = a.type.sizes[0] * pixels;
  return builder.emit({a.buffer, b.buffer}, a.type, [=, a = a.buffer, b = b.buffer](int y) {
    return [=](Memory memory, ParallelFor parallel) {
      parallel(rows, std::max<int64_t>(1, 8192 / channels), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          mul(codes_in(memory, a) + r * channels, codes_in(memory, b) + r / pixels * channels, channels, params,
              codes_out(memory, y) + r * channels, serial);
        }
      });
    };
  });
}

bool one_per_channel(const TensorType& b, const TensorType& a) {
  return a.sizes.size() > 2 && a.sizes.size() == b.sizes.size() && a.sizes[0] == b.sizes[0] &&
         a.sizes[1] == b.sizes[1] && product(std::span(b.sizes).subspan(2)) == 1;
}

// a, b, a_zero_point, b_zero_point, multiplier_at, y_zero_point, lo, hi
Value bind_mul(WordReader& words, NetworkBuilder& builder) {
  Value a = builder.codes(words.next());
  Value b = builder.codes(words.next());
  MulParams params;
  params.a_zero_point = words.next_code();
  params.b_zero_point = words.next_code();
  params.multiplier = builder.number(words.next());
  params.y_zero_point = words.next_code();
  params.bounds = words.next_bounds();
  if (a.type.sizes != b.type.sizes) {
    if (one_per_channel(a.type, b.type)) {
      std::swap(a, b);
      std::swap(params.a_zero_point, params.b_zero_point);
    }
    if (one_per_channel(b.type, a.type)) {
      return bind_channel_mul(builder.in_order(a, true), builder.in_order(b, true), params, builder);
    }
    refuse("mul: operands must have the same shape, or one of them one value per channel (got " +
           to_string(a.type.sizes) + " and " + to_string(b.type.sizes) + ")");
  }
  const auto operands = builder.in_common_order({a, b});
  const int64_t count = a.type.elements();
  return builder.emit({operands[0].buffer, operands[1].buffer}, operands[0].type,
                      [=, a = operands[0].buffer, b = operands[1].buffer](int y) {
                        return [=](Memory memory, ParallelFor parallel) {
                          mul(codes_in(memory, a), codes_in(memory, b), count, params, codes_out(memory, y), parallel);
                        };
                      });
}

PoolShape pool_shape(const Value& x) {
  PoolShape shape;
  shape.batch = x.type.sizes[0];
  shape.channels = x.type.sizes[1];
  shape.in = spatial_dims(x.type.sizes);
  return shape;
}

TensorType pooled_type(const Value& x, const PoolShape& shape, const char* step) {
  const Dims out = shape.out();
  if (*std::min_element(out.begin(), out.end()) < 1) {
    refuse(std::string(step) + ": the window must fit into the padded input (got " + to_string(x.type.sizes) + ")");
  }
  return image_type(x.type.sizes, shape.channels, out);
}

// x, spatial_rank, kernel, stride, padding, dilation, ceil_mode
Value bind_max_pool(WordReader& words, NetworkBuilder& builder) {
  const int64_t input = words.next();
  const Value x = image(builder, input, words.next(), "max_pool");
  const Dims kernel = words.next_dims(1), stride = words.next_dims(1);
  const Dims padding = words.next_dims(0), dilation = words.next_dims(1);
  const bool ceil_mode = words.next() != 0;
  PoolShape shape = pool_shape(x);
  for (size_t axis = 0; axis < 3; ++axis) {
    shape.windows[axis] =
        pool_windows(shape.in[axis], kernel[axis], stride[axis], padding[axis], dilation[axis], ceil_mode, false);
  }
  return builder.emit({x.buffer}, pooled_type(x, shape, "max_pool"), [=, x = x.buffer](int y) {
    return [=](Memory memory, ParallelFor parallel) {
      max_pool(codes_in(memory, x), shape, codes_out(memory, y), parallel);
    };
  });
}

// The common tail of average pools: x_scale_at, x_zero_point, y_scale_at, y_zero_point, lo, hi, divisor (0: window
// size)
Value bind_average_tail(const Value& x, const PoolShape& shape, WordReader& words, NetworkBuilder& builder) {
  AveragePoolParams params;
  params.x_scale = builder.number(words.next());
  params.x_zero_point = words.next_code();
  params.y_scale = builder.number(words.next());
  params.y_zero_point = words.next_code();
  params.bounds = words.next_bounds();
  params.divisor = words.next_int32();
  return builder.emit(
      {x.buffer}, pooled_type(x, shape, "avg_pool"), [=, x = x.buffer, pool = AveragePool(shape, params)](int y) {
        return
            [=](Memory memory, ParallelFor parallel) { pool.run(codes_in(memory, x), codes_out(memory, y), parallel); };
      });
}

// x, spatial_rank, kernel, stride, padding, ceil_mode, count_include_pad, tail
Value bind_average_pool(WordReader& words, NetworkBuilder& builder) {
  const int64_t input = words.next();
  const Value x = image(builder, input, words.next(), "avg_pool");
  const Dims kernel = words.next_dims(1), stride = words.next_dims(1), padding = words.next_dims(0);
  const bool ceil_mode = words.next() != 0;
  const bool count_include_pad = words.next() != 0;
  PoolShape shape = pool_shape(x);
  for (size_t axis = 0; axis < 3; ++axis) {
    shape.windows[axis] =
        pool_windows(shape.in[axis], kernel[axis], stride[axis], padding[axis], 1, ceil_mode, count_include_pad);
  }
  return bind_average_tail(x, shape, words, builder);
}

// x, spatial_rank, output_size (0: as the input), tail
Value bind_adaptive_average_pool(WordReader& words, NetworkBuilder& builder) {
  const int64_t input = words.next();
  const Value x = image(builder, input, words.next(), "avg_pool");
  const Dims out = words.next_dims(0);
  PoolShape shape = pool_shape(x);
  for (size_t axis = 0; axis < 3; ++axis) {
    shape.windows[axis] = adaptive_windows(shape.in[axis], out[axis] > 0 ? out[axis] : shape.in[axis]);
  }
  return bind_average_tail(x, shape, words, builder);
}

// x, table_at (256 bytes in weights)
Value bind_table(WordReader& words, NetworkBuilder& builder) {
  const Value x = builder.codes(words.next());
  const auto* table = reinterpret_cast<const uint8_t*>(builder.weights(words.next(), 256));
  const int64_t count = x.type.elements();
  return builder.emit({x.buffer}, x.type, [=, x = x.buffer](int y) {
    return [=](Memory memory, ParallelFor parallel) {
      lookup(codes_in(memory, x), count, table, codes_out(memory, y), parallel);
    };
  });
}

// The dimension's place in memory: everything from it on is one row of the concatenation.
int64_t row_width(const TensorType& type, int64_t dim) {
  if (type.channels_last) {
    if (dim == 1) return type.sizes[1];
    return product(std::span(type.sizes).subspan(static_cast<size_t>(dim))) * type.sizes[1];
  }
  return product(std::span(type.sizes).subspan(static_cast<size_t>(dim)));
}

// dim, count, value...
Value bind_cat(WordReader& words, NetworkBuilder& builder) {
  int64_t dim = words.next();
  const int64_t count = words.next();
  std::vector<Value> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(builder.codes(words.next()));
  if (values.empty()) refuse("cat: the program concatenates nothing");
  const auto rank = static_cast<int64_t>(values[0].type.sizes.size());
  dim = dim < 0 ? dim + rank : dim;
  // Along the batch the network could not be split by images.
  if (dim < 1 || dim >= rank)
    refuse("cat: dim must lie in [1, " + std::to_string(rank) + ") (got " + std::to_string(dim) + ")");
  values = builder.in_common_order(std::move(values));
  TensorType type = values[0].type;
  type.sizes[static_cast<size_t>(dim)] = 0;
  std::vector<int> buffers;
  std::vector<int64_t> widths;
  for (const Value& value : values) {
    Sizes expected = value.type.sizes;
    if (static_cast<int64_t>(expected.size()) == rank) expected[static_cast<size_t>(dim)] = 0;
    Sizes so_far = type.sizes;
    so_far[static_cast<size_t>(dim)] = 0;
    if (expected != so_far) {
      refuse("cat: sizes must agree except in dim " + std::to_string(dim) + " (got " + to_string(values[0].type.sizes) +
             " and " + to_string(value.type.sizes) + ")");
    }
    type.sizes[static_cast<size_t>(dim)] += value.type.sizes[static_cast<size_t>(dim)];
    buffers.push_back(value.buffer);
    widths.push_back(row_width(value.type, dim));
  }
  const int64_t width = row_width(type, dim);
  const int64_t rows = width > 0 ? type.elements() / width : 0;
  return builder.emit(buffers, type, [=](int y) {
    return [=](Memory memory, ParallelFor parallel) {
      std::vector<CatPart> parts(buffers.size());
      for (size_t i = 0; i < parts.size(); ++i) parts[i] = {codes_in(memory, buffers[i]), widths[i]};
      concatenate_codes(parts, rows, codes_out(memory, y), parallel);
    };
  });
}

}  // namespace

Value bind_step(Opcode opcode, WordReader& words, NetworkBuilder& builder) {
  switch (opcode) {
    case Opcode::kQuantize:
      return bind_quantize(words, builder);
    case Opcode::kDequantize:
      return bind_dequantize(words, builder);
    case Opcode::kConv:
      return bind_conv(words, builder);
    case Opcode::kLinear:
      return bind_linear(words, builder);
    case Opcode::kAdd:
      return bind_add(words, builder);
    case Opcode::kMul:
      return bind_mul(words, builder);
    case Opcode::kMaxPool:
      return bind_max_pool(words, builder);
    case Opcode::kAveragePool:
      return bind_average_pool(words, builder);
    case Opcode::kAdaptiveAveragePool:
      return bind_adaptive_average_pool(words, builder);
    case Opcode::kTable:
      return bind_table(words, builder);
    case Opcode::kCat:
      return bind_cat(words, builder);
    case Opcode::kBatchNorm:
      return bind_batch_norm(words, builder);
    case Opcode::kFlatten:
    case Opcode::kPermute:
    case Opcode::kReshape:
    case Opcode::kSlice:
    case Opcode::kChunk:
    case Opcode::kPad:
    case Opcode::kUpsampleNearest:
    case Opcode::kTranspose:
    case Opcode::kSelect:
    case Opcode::kPixelShuffle:
    case Opcode::kChannelShuffle:
      return bind_move(opcode, words, builder);
  }
  refuse("the program has the unknown opcode " + std::to_string(static_cast<int64_t>(opcode)));
}

}  // namespace octet::kernels
