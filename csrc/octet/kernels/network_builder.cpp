#include "octet/kernels/network_builder.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <tuple>

#include "octet/kernels/relayout.h"

namespace octet::kernels {
namespace {

// Values in steps of rank r; the positions of a span that would leave its array are refused.
template <class T>
const T* slice(std::span<const T> array, int64_t at, int64_t count, const char* name) {
  const auto size = static_cast<int64_t>(array.size());
  if (at < 0 || count < 0 || at > size || count > size - at) {
    refuse(std::string("the program reads ") + name + " [" + std::to_string(at) + ", +" + std::to_string(count) +
           ") of " + std::to_string(size));
  }
  return array.data() + at;
}

bool order_matters(const TensorType& type) {
  if (type.sizes.size() < 3 || type.sizes[1] == 1) return false;
  return std::any_of(type.sizes.begin() + 2, type.sizes.end(), [](int64_t size) { return size != 1; });
}

}  // namespace

std::vector<int64_t> dense_strides(const TensorType& type) {
  const std::vector<int64_t>& sizes = type.sizes;
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  const auto next = [&](size_t d) {
    strides[d] = step;
    step *= sizes[d];
  };
  const bool channels_last = type.channels_last && sizes.size() > 2;
  if (channels_last) next(1);
  for (size_t d = sizes.size(); d-- > 0;) {
    if (!(channels_last && d == 1)) next(d);
  }
  return strides;
}

std::string to_string(std::span<const int64_t> sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

int64_t WordReader::next() { return take(1).words_.front(); }

int32_t WordReader::next_int32() {
  const int64_t word = next();
  if (word < std::numeric_limits<int32_t>::min() || word > std::numeric_limits<int32_t>::max()) {
    refuse("the program holds " + std::to_string(word) + " where an int32 belongs");
  }
  return static_cast<int32_t>(word);
}

int32_t WordReader::next_code() {
  const int32_t code = next_int32();
  if (code < 0 || code > 255) refuse("the program holds the code " + std::to_string(code) + ", outside [0, 255]");
  return code;
}

CodeBounds WordReader::next_bounds() {
  const int32_t lo = next_code();
  const int32_t hi = next_code();
  if (lo > hi) refuse("the program holds empty code bounds");
  return {lo, hi};
}

Dims WordReader::next_dims(int64_t lowest) {
  Dims dims{};
  for (int64_t& dim : dims) {
    dim = next_int32();
    if (dim < lowest) refuse("the program holds the size " + std::to_string(dim) + ", below " + std::to_string(lowest));
  }
  return dims;
}

WordReader WordReader::take(int64_t count) {
  if (count < 0 || count > static_cast<int64_t>(words_.size())) refuse("the program ends inside a step");
  const auto head = words_.first(static_cast<size_t>(count));
  words_ = words_.subspan(static_cast<size_t>(count));
  return WordReader(head);
}

void NetworkBuilder::add_input(const TensorType& type) {
  values_.push_back({type, new_buffer(type.bytes(), -1)});
  buffers_.back().external = true;
}

void NetworkBuilder::add_step(WordReader& words) {
  const auto opcode = static_cast<Opcode>(words.next());
  WordReader arguments = words.take(words.next());
  values_.push_back(bind_step(opcode, arguments, *this));
  if (!arguments.done()) refuse("a step of the program has arguments left over");
}

const Value& NetworkBuilder::value(int64_t index) const {
  if (index < 0 || index >= static_cast<int64_t>(values_.size())) {
    refuse("the program uses value " + std::to_string(index) + " before it is made");
  }
  return values_[static_cast<size_t>(index)];
}

const Value& NetworkBuilder::codes(int64_t index) {
  const Value& found = value(index);
  if (found.type.element != Element::kCodes) refuse("input must be codes (uint8), got float32");
  if (found.dense()) return found;
  const bool channels_last = found.strides.size() > 2 && found.strides[1] < found.strides.back();
  return values_[static_cast<size_t>(index)] = in_order(found, channels_last);
}

Value NetworkBuilder::view(int64_t index) const {
  Value found = value(index);
  if (found.type.element != Element::kCodes) refuse("input must be codes (uint8), got float32");
  if (found.dense()) found.strides = dense_strides(found.type);
  return found;
}

Value NetworkBuilder::in_order(const Value& value, bool channels_last) {
  if (value.dense() && value.type.channels_last == channels_last) return value;
  TensorType type = value.type;
  type.channels_last = channels_last;
  if (!value.dense()) {
    const std::vector<int64_t> to = dense_strides(type);
    std::vector<CopyAxis> axes;
    for (size_t d = 0; d < to.size(); ++d) axes.push_back({type.sizes[d], value.strides[d], to[d]});
    return emit({value.buffer}, type, [=, x = value.buffer, offset = value.offset](int y) {
      return [=](Memory memory, ParallelFor parallel) {
        copy_codes(axes, codes_in(memory, x) + offset, codes_out(memory, y), parallel);
      };
    });
  }
  if (!order_matters(type)) return {type, value.buffer};
  const int64_t batch = type.sizes[0];
  int64_t rows = type.sizes[1];
  int64_t columns = std::accumulate(type.sizes.begin() + 2, type.sizes.end(), int64_t{1}, std::multiplies<>());
  if (!channels_last) std::swap(rows, columns);
  return emit({value.buffer}, type, [=, x = value.buffer](int y) {
    return [=](Memory memory, ParallelFor parallel) {
      transpose_codes(codes_in(memory, x), batch, rows, columns, codes_out(memory, y), parallel);
    };
  });
}

std::vector<Value> NetworkBuilder::in_common_order(std::vector<Value> values) {
  const bool channels_last =
      std::any_of(values.begin(), values.end(), [](const Value& value) { return value.type.channels_last; });
  for (Value& value : values) value = in_order(value, channels_last);
  return values;
}

float NetworkBuilder::number(int64_t at) const { return *numbers(at, 1); }

const float* NetworkBuilder::numbers(int64_t at, int64_t count) const {
  return slice(program_.numbers, at, count, "numbers");
}

const int32_t* NetworkBuilder::biases(int64_t at, int64_t count) const {
  return slice(program_.biases, at, count, "biases");
}

const int8_t* NetworkBuilder::weights(int64_t at, int64_t count) const {
  return slice(program_.weights, at, count, "weights");
}

const PackedConv& NetworkBuilder::packed(int64_t at, const ConvShape& shape) {
  const int8_t* codes = weights(at, shape.out_channels * shape.in_per_group() * shape.taps());
  const auto& [k, s, d] = std::tie(shape.kernel, shape.stride, shape.dilation);
  auto& entry = packed_[{at, shape.out_channels, shape.in_channels, shape.groups, k[0], k[1], k[2], s[0], s[1], s[2],
                         d[0], d[1], d[2]}];
  if (!entry) entry = std::make_shared<const PackedConv>(codes, shape);
  return *entry;
}

std::shared_ptr<const void* const> NetworkBuilder::weights_after(const PackedConv& packed) {
  if (!first_weights_) first_weights_ = packed.memory();
  if (after_last_) *after_last_ = packed.memory();
  return after_last_ = std::make_shared<const void*>(first_weights_);
}

Value NetworkBuilder::add_output(int64_t index) {
  Value result = value(index).dense() ? value(index) : codes(index);
  // An input handed through, one buffer handed out twice, or a part of one: the caller still gets memory of its own.
  const Buffer& buffer = buffers_[static_cast<size_t>(result.buffer)];
  if (buffer.external || buffer.bytes != result.type.bytes()) {
    const auto bytes = static_cast<int64_t>(result.type.bytes());
    result = emit({result.buffer}, result.type, [=, x = result.buffer](int y) {
      return [=](Memory memory, ParallelFor parallel) {
        const CatPart whole{codes_in(memory, x), bytes};
        concatenate_codes({&whole, 1}, 1, codes_out(memory, y), parallel);
      };
    });
  }
  buffers_[static_cast<size_t>(result.buffer)].external = true;
  return result;
}

int NetworkBuilder::new_buffer(size_t bytes, int step) {
  buffers_.push_back({bytes, step, step});
  return static_cast<int>(buffers_.size()) - 1;
}

// Largest first, each at the lowest place where it meets no buffer that is alive at the same time.
size_t NetworkBuilder::place_buffers() {
  std::vector<Buffer*> order;
  for (Buffer& buffer : buffers_) {
    buffer.bytes = (buffer.bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
    if (!buffer.external) order.push_back(&buffer);
  }
  std::stable_sort(order.begin(), order.end(), [](const Buffer* a, const Buffer* b) { return a->bytes > b->bytes; });
  std::vector<const Buffer*> placed;  // by offset
  size_t total = 0;
  for (Buffer* buffer : order) {
    buffer->offset = 0;
    for (const Buffer* other : placed) {
      const bool together = buffer->born <= other->dies && other->born <= buffer->dies;
      if (together && other->offset < buffer->offset + buffer->bytes) {
        buffer->offset = std::max(buffer->offset, other->offset + other->bytes);
      }
    }
    placed.insert(std::upper_bound(placed.begin(), placed.end(), buffer,
                                   [](const Buffer* a, const Buffer* b) { return a->offset < b->offset; }),
                  buffer);
    total = std::max(total, buffer->offset + buffer->bytes);
  }
  return total;
}

}  // namespace octet::kernels
