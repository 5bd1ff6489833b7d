// The steps of a network that only move codes. Most move nothing: they give another view of the buffer, and whoever
// needs a dense value copies it once, in the order it wants.
#include <algorithm>
#include <numeric>
#include <utility>

#include "octet/kernels/network_builder.h"
#include "octet/kernels/relayout.h"

namespace octet::kernels {
namespace {

using Sizes = std::vector<int64_t>;

int64_t product(std::span<const int64_t> sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

bool same_steps(const Sizes& sizes, const Sizes& a, const Sizes& b) {
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] != 1 && a[d] != b[d]) return false;
  }
  return true;
}

// A value that turns out to be dense in one of the two orders is said to be.
Value as_dense(Value value) {
  if (value.offset != 0) return value;
  for (const bool channels_last : {true, false}) {
    TensorType type = value.type;
    type.channels_last = channels_last && type.sizes.size() > 2;
    if (same_steps(type.sizes, value.strides, dense_strides(type))) return {type, value.buffer};
  }
  return value;
}

int64_t axis(int64_t dim, const Sizes& sizes, int64_t lowest, const char* step) {
  const auto rank = static_cast<int64_t>(sizes.size());
  const int64_t counted = dim < 0 ? dim + rank : dim;
  if (counted < lowest || counted >= rank) {
    refuse(std::string(step) + ": dim must lie in [" + std::to_string(lowest) + ", " + std::to_string(rank) +
           ") (got " + std::to_string(dim) + ")");
  }
  return counted;
}

// The steps with which `wanted` sizes see the same codes in the same order; empty where they would have to be moved.
Sizes steps_of_view(const Sizes& sizes, const Sizes& strides, const Sizes& wanted) {
  Sizes result(wanted.size());
  size_t w = wanted.size();
  for (size_t d = sizes.size(); d-- > 0;) {
    const int64_t step = strides[d];
    int64_t chunk = sizes[d];  // of neighbouring dimensions that lie as one
    while (d > 0 && (sizes[d - 1] == 1 || strides[d - 1] == chunk * step)) chunk *= sizes[--d];
    int64_t filled = 1;
    while (w > 0 && (filled < chunk || wanted[w - 1] == 1)) {
      result[w - 1] = filled * step;
      filled *= wanted[--w];
    }
    if (filled != chunk) return {};
  }
  return w == 0 ? result : Sizes();
}

// The value in an order in which `wanted` sizes are a view of it: dimensions that become one lie together, and apart
// from that all stay where they are, so that images keep their channels innermost.
Value gathered(NetworkBuilder& builder, const Value& x, const Sizes& wanted) {
  const Sizes& sizes = x.type.sizes;
  struct Group {
    size_t begin, end;
    int64_t step;  // the largest of its dimensions
  };
  std::vector<Group> groups;
  for (size_t d = 0, w = 0; d < sizes.size();) {
    Group group{d, d, 0};
    int64_t have = 1, want = 1;
    do {
      if (have <= want && d < sizes.size()) {
        if (sizes[d] != 1) group.step = std::max(group.step, x.strides[d]);
        have *= sizes[d++];
      } else {
        want *= wanted[w++];
      }
    } while (have != want || want == 1);
    group.end = d;
    groups.push_back(group);
    while (d < sizes.size() && sizes[d] == 1) groups.back().end = ++d;
    while (w < wanted.size() && wanted[w] == 1) ++w;
  }
  std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.step > b.step; });
  Value y{x.type, 0, Sizes(sizes.size())};
  std::vector<CopyAxis> axes;
  int64_t step = 1;
  for (size_t g = groups.size(); g-- > 0;) {
    for (size_t d = groups[g].end; d-- > groups[g].begin;) {
      y.strides[d] = step;
      axes.push_back({sizes[d], x.strides[d], step});
      step *= sizes[d];
    }
  }
  y.buffer = builder
                 .emit({x.buffer}, x.type,
                       [=, from = x.buffer, offset = x.offset](int to) {
                         return [=](Memory memory, ParallelFor parallel) {
                           copy_codes(axes, codes_in(memory, from) + offset, codes_out(memory, to), parallel);
                         };
                       })
                 .buffer;
  return y;
}

Value reshaped(NetworkBuilder& builder, Value x, const Sizes& wanted) {
  Sizes strides;
  if (x.type.elements() > 0) {
    strides = steps_of_view(x.type.sizes, x.strides, wanted);
    if (strides.empty()) {
      x = gathered(builder, x, wanted);
      strides = steps_of_view(x.type.sizes, x.strides, wanted);
    }
  }
  x.type = {Element::kCodes, false, wanted};
  x.strides = std::move(strides);
  return x.dense() ? x : as_dense(x);
}

// x, start_dim, end_dim (both may count from the end; start_dim not the batch)
Value bind_flatten(WordReader& words, NetworkBuilder& builder) {
  const Value x = builder.view(words.next());
  Sizes sizes = x.type.sizes;
  const int64_t start = axis(words.next(), sizes, 1, "flatten"), end = axis(words.next(), sizes, start, "flatten");
  const auto first = sizes.begin() + start;
  *first = product(std::span(sizes).subspan(static_cast<size_t>(start), static_cast<size_t>(end - start + 1)));
  sizes.erase(first + 1, sizes.begin() + end + 1);
  return reshaped(builder, x, sizes);
}

// x, rank, size... of all dimensions but the batch; one of them may be -1: what is left
Value bind_reshape(WordReader& words, NetworkBuilder& builder) {
  const Value x = builder.view(words.next());
  WordReader rest = words.take(words.next());
  if (x.type.sizes.empty()) refuse("reshape: input must have a batch dimension (got a scalar)");
  Sizes sizes{x.type.sizes[0]};
  while (!rest.done()) sizes.push_back(rest.next_int32());
  const int64_t codes = product(std::span(x.type.sizes).subspan(1));
  const auto free = std::find(sizes.begin() + 1, sizes.end(), -1);
  if (free != sizes.end()) {
    *free = 1;
    const int64_t others = product(std::span(sizes).subspan(1));
    *free = others > 0 && codes % others == 0 ? codes / others : -1;
  }
  const bool negative = std::any_of(sizes.begin() + 1, sizes.end(), [](int64_t size) { return size < 0; });
  if (negative || product(std::span(sizes).subspan(1)) != codes) {
    refuse("reshape: input must fill " + to_string(std::span(sizes).subspan(1)) + " for each of the batch (got " +
           to_string(x.type.sizes) + ")");
  }
  return reshaped(builder, x, sizes);
}

// x, rank, dim...: the batch first
Value bind_permute(WordReader& words, NetworkBuilder& builder) {
  const Value x = builder.view(words.next());
  WordReader order = words.take(words.next());
  Value y = x;
  std::vector<bool> taken(x.type.sizes.size());
  for (size_t d = 0; d < taken.size(); ++d) {
    const auto from = static_cast<size_t>(axis(order.next(), x.type.sizes, d > 0, "permute"));
    if (taken[from] || (d == 0 && from != 0)) refuse("permute: the program's dims must be each dim once, batch first");
    taken[from] = true;
    y.type.sizes[d] = x.type.sizes[from];
    y.strides[d] = x.strides[from];
  }
  if (!order.done()) refuse("permute: the program must have as many dims as its input");
  return as_dense(y);
}

Value sliced(Value x, int64_t dim, int64_t start, int64_t end, int64_t step) {
  int64_t& size = x.type.sizes[static_cast<size_t>(dim)];
  int64_t& stride = x.strides[static_cast<size_t>(dim)];
  const auto bounded = [&](int64_t at) { return std::clamp<int64_t>(at < 0 ? at + size : at, 0, size); };
  start = bounded(start);
  end = std::max(start, bounded(end));
  x.offset += start * stride;
  size = (end - start + step - 1) / step;
  stride *= step;
  return as_dense(x);
}

// x, dim, start, end, step: as Python's slices, dim not the batch
Value bind_slice(WordReader& words, NetworkBuilder& builder) {
  const Value x = builder.view(words.next());
  const int64_t dim = axis(words.next(), x.type.sizes, 1, "slice");
  const int64_t start = words.next(), end = words.next(), step = words.next_int32();
  if (step < 1) refuse("slice: step must be at least 1 (got " + std::to_string(step) + ")");
  return sliced(x, dim, start, end, step);
}

// x, dim, chunks, index: one of torch.chunk's
Value bind_chunk(WordReader& words, NetworkBuilder& builder) {
  const Value x = builder.view(words.next());
  const int64_t dim = axis(words.next(), x.type.sizes, 1, "chunk");
  const int64_t chunks = words.next_int32(), index = words.next_int32();
  const int64_t size = x.type.sizes[static_cast<size_t>(dim)];
  const int64_t each = chunks < 1 ? 0 : (size + chunks - 1) / chunks;
  if (chunks < 1 || index < 0 || index * each >= std::max<int64_t>(size, 1)) {
    refuse("chunk: the program takes chunk " + std::to_string(index) + " of " + std::to_string(chunks) + " of " +
           to_string(x.type.sizes) + " along dim " + std::to_string(dim));
  }
  return sliced(x, dim, index * each, (index + 1) * each, 1);
}

// x, code, count, pads: before and after, the last dim first, as torch's pad; negative ones cut off
Value bind_pad(WordReader& words, NetworkBuilder& builder) {
  Value x = builder.view(words.next());
  const auto code = static_cast<uint8_t>(words.next_code());
  WordReader pads = words.take(words.next());
  TensorType type{Element::kCodes, true, x.type.sizes};
  Sizes before(type.sizes.size(), 0);
  for (size_t d = type.sizes.size(); d-- > 1 && !pads.done();) {
    before[d] = pads.next_int32();
    const int64_t after = pads.next_int32(), size = x.type.sizes[d];
    type.sizes[d] = size + before[d] + after;
    if (type.sizes[d] < 0) {
      refuse("pad: input must be larger than what is cut off (got " + to_string(x.type.sizes) + ")");
    }
    const int64_t first = std::max<int64_t>(0, -before[d]), last = size - std::max<int64_t>(0, -after);
    x.offset += first * x.strides[d];
    x.type.sizes[d] = std::max<int64_t>(0, last - first);
    before[d] = std::max<int64_t>(0, before[d]);
  }
  if (!pads.done()) refuse("pad: the program pads more dims than its input has behind the batch");
  const Sizes to = dense_strides(type);
  std::vector<CopyAxis> axes;
  int64_t begin = 0;
  for (size_t d = 0; d < to.size(); ++d) {
    axes.push_back({x.type.sizes[d], x.strides[d], to[d]});
    begin += before[d] * to[d];
  }
  return builder.emit({x.buffer}, type, [=, from = x.buffer, offset = x.offset](int y) {
    return [=](Memory memory, ParallelFor parallel) {
      std::fill_n(codes_out(memory, y), type.elements(), code);
      copy_codes(axes, codes_in(memory, from) + offset, codes_out(memory, y) + begin, parallel);
    };
  });
}

// x, factor of each spatial dimension (three, missing ones in front): every code again and again
Value bind_upsample_nearest(WordReader& words, NetworkBuilder& builder) {
  const Value x = builder.view(words.next());
  const Dims factors = words.next_dims(1);
  const size_t rank = x.type.sizes.size();
  if (rank < 3 || rank > 5) refuse("upsample: input must have 3 to 5 dimensions (got " + to_string(x.type.sizes) + ")");
  Value repeated = x;
  Sizes& sizes = repeated.type.sizes;
  Sizes wanted = sizes;
  for (size_t d = rank; d-- > 2;) {
    const int64_t factor = factors[d + 3 - rank];
    wanted[d] *= factor;
    sizes.insert(sizes.begin() + static_cast<int64_t>(d) + 1, factor);
    repeated.strides.insert(repeated.strides.begin() + static_cast<int64_t>(d) + 1, 0);
  }
  return reshaped(builder, repeated, wanted);
}

// x, dim, dim: neither the batch
Value bind_transpose(WordReader& words, NetworkBuilder& builder) {
  Value x = builder.view(words.next());
  const int64_t a = axis(words.next(), x.type.sizes, 1, "transpose");
  const int64_t b = axis(words.next(), x.type.sizes, 1, "transpose");
  std::swap(x.type.sizes[static_cast<size_t>(a)], x.type.sizes[static_cast<size_t>(b)]);
  std::swap(x.strides[static_cast<size_t>(a)], x.strides[static_cast<size_t>(b)]);
  return as_dense(x);
}

// x, dim, index (may count from the end): that one of the dimension, which goes
Value bind_select(WordReader& words, NetworkBuilder& builder) {
  Value x = builder.view(words.next());
  const int64_t dim = axis(words.next(), x.type.sizes, 1, "select"), given = words.next();
  const int64_t size = x.type.sizes[static_cast<size_t>(dim)], index = given < 0 ? given + size : given;
  if (index < 0 || index >= size) {
    refuse("select: index must lie in dim " + std::to_string(dim) + " of " + to_string(x.type.sizes) + " (got " +
           std::to_string(given) + ")");
  }
  x.offset += index * x.strides[static_cast<size_t>(dim)];
  x.type.sizes.erase(x.type.sizes.begin() + dim);
  x.strides.erase(x.strides.begin() + dim);
  return as_dense(x);
}

// Replaces a dimension by `outer` times what is left of it.
void split_dim(Value& x, size_t dim, int64_t outer) {
  const int64_t inner = x.type.sizes[dim] / outer;
  x.type.sizes[dim] = outer;
  x.type.sizes.insert(x.type.sizes.begin() + static_cast<int64_t>(dim) + 1, inner);
  x.strides.insert(x.strides.begin() + static_cast<int64_t>(dim) + 1, x.strides[dim]);
  x.strides[dim] *= inner;
}

void move_dim(Value& x, int64_t from, int64_t to) {
  for (Sizes* sizes : {&x.type.sizes, &x.strides}) {
    const int64_t value = (*sizes)[static_cast<size_t>(from)];
    sizes->erase(sizes->begin() + from);
    sizes->insert(sizes->begin() + to, value);
  }
}

// x, factor: as torch.nn.PixelShuffle
Value bind_pixel_shuffle(WordReader& words, NetworkBuilder& builder) {
  Value x = builder.view(words.next());
  const int64_t factor = words.next_int32();
  if (x.type.sizes.size() != 4 || factor < 1 || x.type.sizes[1] % (factor * factor) != 0) {
    refuse("pixel_shuffle: input must be an image whose channels are a multiple of " + std::to_string(factor) +
           " squared (got " + to_string(x.type.sizes) + ")");
  }
  const Sizes& in = x.type.sizes;
  const Sizes wanted{in[0], in[1] / (factor * factor), in[2] * factor, in[3] * factor};
  split_dim(x, 1, wanted[1]);
  split_dim(x, 2, factor);  // [N, C, factor, factor, H, W]
  move_dim(x, 2, 4);        // [N, C, factor, H, factor, W]
  move_dim(x, 2, 5);        // [N, C, H, factor, W, factor]
  return reshaped(builder, x, wanted);
}

// x, groups: as torch.nn.ChannelShuffle
Value bind_channel_shuffle(WordReader& words, NetworkBuilder& builder) {
  Value x = builder.view(words.next());
  const int64_t groups = words.next_int32();
  if (x.type.sizes.size() < 3 || groups < 1 || x.type.sizes[1] % groups != 0) {
    refuse("channel_shuffle: input must have a multiple of " + std::to_string(groups) + " channels (got " +
           to_string(x.type.sizes) + ")");
  }
  const Sizes wanted = x.type.sizes;
  split_dim(x, 1, groups);
  move_dim(x, 1, 2);
  return reshaped(builder, x, wanted);
}

}  // namespace

Value bind_move(Opcode opcode, WordReader& words, NetworkBuilder& builder) {
  switch (opcode) {
    case Opcode::kFlatten:
      return bind_flatten(words, builder);
    case Opcode::kReshape:
      return bind_reshape(words, builder);
    case Opcode::kPermute:
      return bind_permute(words, builder);
    case Opcode::kSlice:
      return bind_slice(words, builder);
    case Opcode::kChunk:
      return bind_chunk(words, builder);
    case Opcode::kPad:
      return bind_pad(words, builder);
    case Opcode::kTranspose:
      return bind_transpose(words, builder);
    case Opcode::kSelect:
      return bind_select(words, builder);
    case Opcode::kPixelShuffle:
      return bind_pixel_shuffle(words, builder);
    case Opcode::kChannelShuffle:
      return bind_channel_shuffle(words, builder);
    default:
      return bind_upsample_nearest(words, builder);
  }
}

}  // namespace octet::kernels
