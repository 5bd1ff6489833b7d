// Which instruction sets there are, which one runs. Every kernel gives the same bits on every one of them.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace octet::kernels {

enum class Isa { kGeneric, kAvx2, kAvx512Vnni, kNeonDot };

// "generic", "avx2", "avx512vnni", "neondot".
std::string_view isa_name(Isa isa);

// What this build has and this machine can run, best last; never empty, the first is always kGeneric.
std::span<const Isa> available_isas();

// The ISA that kernels use: the forced one, else the one named by the environment variable OCTET_ISA, else the best.
// Throws std::invalid_argument, listing the choices, when OCTET_ISA names one that is not available.
Isa active_isa();

// Forces an ISA for the whole process ("" undoes it). Weights packed before keep the ISA they were packed for.
// Throws std::invalid_argument, listing the choices, when it is not available.
void force_isa(std::string_view name);

// The name of the forced ISA, "" where none is.
std::string_view forced_isa();

// One row of the kernel table; names are decoded in docs/kernel-names.md.
struct KernelInfo {
  std::string_view name;
  std::string_view family;
  Isa isa;
};

// Every kernel this machine can run.
std::span<const KernelInfo> kernel_table();

}  // namespace octet::kernels
