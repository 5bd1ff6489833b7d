// octet.cpu: which instruction sets the INT8 kernels can run on, and which they do.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "octet/kernels/dispatch.h"

namespace octet {

void bind_cpu(pybind11::module_& m) {
  m.def("cpu_available", [] {
    std::vector<std::string_view> names;
    for (const auto isa : kernels::available_isas()) names.push_back(kernels::isa_name(isa));
    return names;
  });
  m.def("cpu_active", [] { return kernels::isa_name(kernels::active_isa()); });
  m.def("cpu_force", [](const std::string& name) { kernels::force_isa(name); });
  m.def("cpu_forced", &kernels::forced_isa);
  m.def("cpu_kernels", [] {
    std::vector<std::tuple<std::string_view, std::string_view, std::string_view>> rows;
    for (const auto& row : kernels::kernel_table()) rows.emplace_back(row.name, row.family, kernels::isa_name(row.isa));
    return rows;
  });
}

}  // namespace octet
