#include "octet/kernels/dispatch.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <vector>

#include "octet/kernels/kernel_set.h"

namespace octet::kernels {
namespace {

constexpr std::array<std::string_view, 4> kNames{"generic", "avx2", "avx512vnni", "neondot"};
constexpr int kNotForced = -1;
std::atomic<int> forced{kNotForced};

std::vector<Isa> detect() {
  std::vector<Isa> isas{Isa::kGeneric};
#if defined(OCTET_X86)
  if (__builtin_cpu_supports("avx2")) isas.push_back(Isa::kAvx2);
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vbmi")) {
    isas.push_back(Isa::kAvx512Vnni);
  }
#endif
#if defined(OCTET_NEON)
  if (cpu_has_neon_dot()) isas.push_back(Isa::kNeonDot);
#endif
  return isas;
}

Isa parse(std::string_view name, std::string_view who) {
  std::string choices;
  for (const Isa isa : available_isas()) {
    if (isa_name(isa) == name) return isa;
    choices += (choices.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  throw std::invalid_argument(std::string(who) + ": the instruction set must be one that this machine has: " + choices +
                              " (got \"" + std::string(name) + "\")");
}

Isa default_isa() {
  const char* name = std::getenv("OCTET_ISA");
  return name && *name ? parse(name, "OCTET_ISA") : available_isas().back();
}

}  // namespace

std::string_view isa_name(Isa isa) { return kNames[static_cast<size_t>(isa)]; }

std::span<const Isa> available_isas() {
  static const std::vector<Isa> isas = detect();
  return isas;
}

Isa active_isa() {
  const int isa = forced.load(std::memory_order_relaxed);
  if (isa != kNotForced) return static_cast<Isa>(isa);
  static const Isa standard = default_isa();
  return standard;
}

void force_isa(std::string_view name) {
  forced = name.empty() ? kNotForced : static_cast<int>(parse(name, "force_isa"));
}

std::string_view forced_isa() {
  const int isa = forced.load(std::memory_order_relaxed);
  return isa == kNotForced ? "" : isa_name(static_cast<Isa>(isa));
}

const KernelSet& kernel_set(Isa isa) {
  switch (isa) {
#if defined(OCTET_X86)
    case Isa::kAvx2:
      return avx2_kernels();
    case Isa::kAvx512Vnni:
      return avx512vnni_kernels();
#endif
#if defined(OCTET_NEON)
    case Isa::kNeonDot:
      return neondot_kernels();
#endif
    default:
      return generic_kernels();
  }
}

std::span<const KernelInfo> kernel_table() {
  static const std::vector<KernelInfo> table = [] {
    std::vector<KernelInfo> rows;
    for (const Isa isa : available_isas()) {
      for (const ConvFamily& family : kernel_set(isa).conv) rows.push_back({family.name, "conv", isa});
      rows.push_back({kernel_set(isa).row_name, "rows", isa});
    }
    return rows;
  }();
  return table;
}

}  // namespace octet::kernels
