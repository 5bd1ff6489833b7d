// Target regions: the code between OCTET_TARGET_BEGIN("avx2") and OCTET_TARGET_END is compiled for that instruction
// set, all other code of the file is not. Include every header before the region, so that no shared inline function is
// compiled for an instruction set the machine may lack.
#pragma once

#define OCTET_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define OCTET_TARGET_BEGIN(features) \
  OCTET_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define OCTET_TARGET_END OCTET_PRAGMA(clang attribute pop)
#else
#define OCTET_TARGET_BEGIN(features) OCTET_PRAGMA(GCC push_options) OCTET_PRAGMA(GCC target(features))
#define OCTET_TARGET_END OCTET_PRAGMA(GCC pop_options)
#endif
