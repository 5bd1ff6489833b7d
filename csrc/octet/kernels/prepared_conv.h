// A convolution that runs again and again, as a network's do.
#pragma once

#include <cstdint>
#include <memory>

#include "octet/kernels/conv.h"

namespace octet::kernels {

// What depends on neither the input nor the residual is worked out once: that takes 4 % off ResNet-20's one image.
// Immutable, safe to use from several threads.
class PreparedConv {
 public:
  // `weights` and the epilogue's arrays must outlive it; the epilogue's residual and wanted_next are not looked at.
  // wanted_next: where it is said, by the time of a run, which weights are.
  PreparedConv(const PackedConv& weights, const ConvShape& shape, const ConvEpilogue& epilogue,
               std::shared_ptr<const void* const> wanted_next);

  // As run_conv; residual may be null.
  void run(const uint8_t* x, const ResidualAdd* residual, uint8_t* y, ParallelFor parallel) const;

 private:
  const PackedConv* weights_;
  ConvEpilogue epilogue_;
  std::shared_ptr<const void* const> wanted_next_;
  std::shared_ptr<const void> setup_;  // null: there is nothing to compute
};

}  // namespace octet::kernels
