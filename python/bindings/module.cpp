// octet._C: what the dispatcher cannot express.
#include <pybind11/pybind11.h>
#include <torch/version.h>

PYBIND11_MODULE(_C, m) { m.attr("torch_version") = TORCH_VERSION; }
