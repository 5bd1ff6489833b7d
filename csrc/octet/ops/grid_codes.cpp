#include "octet/ops/grid_codes.h"

#include "octet/ops/attached.h"

namespace octet::detail {

using at::Tensor;

namespace {

struct GridCodes : c10::BackendMeta {
  GridCodes(const Tensor& y, Tensor of_y, const Grid& on) : stamp(y), codes(std::move(of_y)), grid(on) {}

  TensorStamp stamp;
  Tensor codes;
  Grid grid;
};

}  // namespace

void attach_codes(const Tensor& y, Tensor codes, const Grid& grid) {
  if (y.is_inference()) return;  // has no version: a change would go unseen
  y.unsafeGetTensorImpl()->set_backend_meta(c10::make_intrusive<GridCodes>(y, std::move(codes), grid));
}

std::pair<Tensor, Grid> attached_codes(const Tensor& y) {
  const auto* found = dynamic_cast<GridCodes*>(y.unsafeGetTensorImpl()->get_backend_meta());
  const bool valid = found != nullptr && found->stamp.matches(y) && found->codes.sizes() == y.sizes();
  return valid ? std::pair(found->codes, found->grid) : std::pair(Tensor(), Grid());
}

Tensor attached_codes(const Tensor& y, const Grid& grid) {
  auto [codes, on] = attached_codes(y);
  return on == grid ? codes : Tensor();
}

}  // namespace octet::detail
