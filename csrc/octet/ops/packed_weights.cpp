#include "octet/ops/packed_weights.h"

#include <ATen/ops/equal.h>
#include <c10/core/StorageImpl.h>

#include <mutex>
#include <tuple>
#include <unordered_map>
#include <vector>

namespace octet::detail {

using kernels::ConvShape;
using kernels::PackedConv;

namespace {

// All that the packed bytes depend on, the storage aside.
struct Key {
  uint32_t version;
  int64_t offset;
  std::vector<int64_t> sizes, strides;
  int64_t groups;
  kernels::Dims dilation;
  kernels::Isa isa;

  bool operator==(const Key&) const = default;
};

struct Entry {
  Key key;
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;  // while it is held the address is not given out again
  std::shared_ptr<const PackedConv> packed;
  at::Tensor seen;  // a copy of an inference tensor, whose changes torch does not count; else undefined

  bool holds(const Key& wanted, const at::Tensor& weight) const {
    return key == wanted && !storage.expired() && (!seen.defined() || at::equal(seen, weight));
  }
};

class Cache {
 public:
  std::shared_ptr<const PackedConv> find(const at::Tensor& weight, const Key& key) {
    const std::lock_guard lock(mutex_);
    const auto [begin, end] = entries_.equal_range(weight.storage().unsafeGetStorageImpl());
    for (auto it = begin; it != end; ++it) {
      if (it->second.holds(key, weight)) return it->second.packed;
    }
    return nullptr;
  }

  void insert(const at::Tensor& weight, const Key& key, std::shared_ptr<const PackedConv> packed) {
    const std::lock_guard lock(mutex_);
    const c10::StorageImpl* storage = weight.storage().unsafeGetStorageImpl();
    std::erase_if(entries_, [&](const auto& item) {
      const auto& [address, entry] = item;
      const bool outdated = address == storage && (entry.key.version != key.version || entry.key == key);
      return entry.storage.expired() || outdated;
    });
    c10::weak_intrusive_ptr<c10::StorageImpl> weak(weight.storage().getWeakStorageImpl());
    at::Tensor seen = weight.is_inference() ? weight.clone() : at::Tensor();
    entries_.emplace(storage, Entry{key, std::move(weak), std::move(packed), std::move(seen)});
  }

 private:
  std::mutex mutex_;
  std::unordered_multimap<const c10::StorageImpl*, Entry> entries_;
};

// Never destroyed: models may outlive static destruction.
Cache& cache() {
  static auto* instance = new Cache();
  return *instance;
}

std::shared_ptr<const PackedConv> pack(const at::Tensor& weight, const ConvShape& shape) {
  const at::Tensor dense = weight.contiguous();
  return std::make_shared<const PackedConv>(dense.const_data_ptr<int8_t>(), shape);
}

}  // namespace

std::shared_ptr<const PackedConv> packed_weight(const at::Tensor& weight, const ConvShape& shape) {
  const Key key{weight.is_inference() ? 0 : static_cast<uint32_t>(weight._version()),
                weight.storage_offset(),
                weight.sizes().vec(),
                weight.strides().vec(),
                shape.groups,
                shape.dilation,
                kernels::active_isa()};
  auto found = cache().find(weight, key);
  if (found != nullptr) return found;
  found = pack(weight, shape);
  cache().insert(weight, key, found);
  return found;
}

}  // namespace octet::detail
