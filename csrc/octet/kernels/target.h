// Target regions: the code between OCTET_TARGET_BEGIN("avx2") and OCTET_TARGET_END is compiled for that instruction
// set, all other code of the file is not. Include every header before the region, so that no shared inline function is
// compiled for an instruction set the machine may lack.
#pragma once

// OCTET_INDEPENDENT before a loop: its iterations do not depend on each other, though its arrays may be one and the
// same. OCTET_PREFER_512: full vectors also where the compiler vectorizes (clang has no such option for a region).
#define OCTET_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define OCTET_TARGET_BEGIN(features) \
  OCTET_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define OCTET_TARGET_END OCTET_PRAGMA(clang attribute pop)
#define OCTET_INDEPENDENT OCTET_PRAGMA(clang loop vectorize(assume_safety))
#define OCTET_PREFER_512
#else
#define OCTET_TARGET_BEGIN(features) OCTET_PRAGMA(GCC push_options) OCTET_PRAGMA(GCC target(features))
#define OCTET_TARGET_END OCTET_PRAGMA(GCC pop_options)
#define OCTET_INDEPENDENT OCTET_PRAGMA(GCC ivdep)
#define OCTET_PREFER_512 ",prefer-vector-width=512"
#endif
