#include "octet/ops/packed_weights.h"

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
};

class Cache {
 public:
  std::shared_ptr<const PackedConv> find(const c10::StorageImpl* storage, const Key& key) {
    const std::lock_guard lock(mutex_);
    const auto [begin, end] = entries_.equal_range(storage);
    for (auto it = begin; it != end; ++it) {
      if (it->second.key == key && !it->second.storage.expired()) return it->second.packed;
    }
    return nullptr;
  }

  void insert(const c10::Storage& storage, const Key& key, std::shared_ptr<const PackedConv> packed) {
    const std::lock_guard lock(mutex_);
    std::erase_if(entries_, [&](const auto& item) {
      const auto& [address, entry] = item;
      const bool outdated = address == storage.unsafeGetStorageImpl() && entry.key.version != key.version;
      return entry.storage.expired() || outdated;
    });
    c10::weak_intrusive_ptr<c10::StorageImpl> weak(storage.getWeakStorageImpl());
    entries_.emplace(storage.unsafeGetStorageImpl(), Entry{key, std::move(weak), std::move(packed)});
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
  if (weight.is_inference()) return pack(weight, shape);  // has no version: a change would go unseen
  const Key key{static_cast<uint32_t>(weight._version()),
                weight.storage_offset(),
                weight.sizes().vec(),
                weight.strides().vec(),
                shape.groups,
                shape.dilation,
                kernels::active_isa()};
  auto found = cache().find(weight.storage().unsafeGetStorageImpl(), key);
  if (found != nullptr) return found;
  found = pack(weight, shape);
  cache().insert(weight.storage(), key, found);
  return found;
}

}  // namespace octet::detail
