// Checks a fake-quantized value through the public headers and the installed library.
#include <ATen/ops/tensor.h>
#include <octet/core/grid.h>
#include <octet/ops/fake_quantize.h>
#include <octet/version.h>

#include <cstdio>

int main() {
  const octet::Grid grid{0.1f, 0, 0, 255};
  const at::Tensor y = octet::fake_quantize_per_tensor(at::tensor({0.26f}), at::tensor({grid.scale}),
                                                       at::tensor({grid.zero_point}, at::kInt), grid.qmin, grid.qmax);
  std::printf("octet %s for torch %s\n", OCTET_VERSION, OCTET_TORCH_VERSION);
  return y.item<float>() == octet::fake_quantize(0.26f, grid) ? 0 : 1;
}
