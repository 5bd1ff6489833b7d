// Something computed from tensors and kept with one of them: it dies with that tensor, no registry to clean. Not
// public.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/StorageImpl.h>

#include <array>
#include <memory>
#include <mutex>
#include <utility>

namespace octet::detail {

// Tells whether a tensor is still the one it was: the same storage, place and version. Inference tensors have no
// version and count as unchanged: comparing all weights of a network in every call would be a large part of it.
class TensorStamp {
 public:
  explicit TensorStamp(const at::Tensor& tensor)
      : storage_(tensor.storage().getWeakStorageImpl()),
        data_(tensor.const_data_ptr()),
        size_(tensor.numel()),
        version_(version(tensor)) {}

  bool matches(const at::Tensor& tensor) const {
    // The weak reference keeps the storage's address from being given out again, so equal addresses mean one storage.
    return storage_._unsafe_get_target() == tensor.storage().unsafeGetStorageImpl() &&
           data_ == tensor.const_data_ptr() && size_ == tensor.numel() && version_ == version(tensor);
  }

 private:
  static uint32_t version(const at::Tensor& tensor) {
    return tensor.is_inference() ? 0 : static_cast<uint32_t>(tensor._version());
  }

  c10::weak_intrusive_ptr<c10::StorageImpl> storage_;
  const void* data_;
  int64_t size_;
  uint32_t version_;
};

// A tensor carries a T in the slot torch has for what a backend wants to remember of it.
template <class T, size_t kSources>
struct Attachment : c10::BackendMeta {
  Attachment(const std::array<at::Tensor, kSources>& sources, std::shared_ptr<T> attached)
      : stamps(make_stamps(sources, std::make_index_sequence<kSources>())), value(std::move(attached)) {}

  bool matches(const std::array<at::Tensor, kSources>& sources) const {
    for (size_t i = 0; i < kSources; ++i) {
      if (!stamps[i].matches(sources[i])) return false;
    }
    return true;
  }

  template <size_t... kIndex>
  static std::array<TensorStamp, kSources> make_stamps(const std::array<at::Tensor, kSources>& sources,
                                                       std::index_sequence<kIndex...>) {
    return {TensorStamp(sources[kIndex])...};
  }

  std::array<TensorStamp, kSources> stamps;
  std::shared_ptr<T> value;
};

// The T attached to sources[0], made by `make` where there is none yet or a source has changed since.
template <class T, size_t kSources, class Make>
std::shared_ptr<T> attached(const std::array<at::Tensor, kSources>& sources, Make make) {
  static std::mutex mutex;
  c10::TensorImpl* owner = sources[0].unsafeGetTensorImpl();
  const std::scoped_lock lock(mutex);
  const auto* found = dynamic_cast<Attachment<T, kSources>*>(owner->get_backend_meta());
  if (found != nullptr && found->matches(sources)) return found->value;
  std::shared_ptr<T> value = make();
  owner->set_backend_meta(c10::make_intrusive<Attachment<T, kSources>>(sources, value));
  return value;
}

}  // namespace octet::detail
