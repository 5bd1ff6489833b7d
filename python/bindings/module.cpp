// octet._C: what the dispatcher cannot express.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include "octet/core/requantize.h"

namespace octet {
void bind_cpu(pybind11::module_& m);
void bind_network(pybind11::module_& m);
}  // namespace octet

PYBIND11_MODULE(_C, m) {
  m.attr("torch_version") = TORCH_VERSION;
  m.attr("accumulator_limit") = octet::kAccumulatorLimit;
  octet::bind_cpu(m);
  octet::bind_network(m);
}
