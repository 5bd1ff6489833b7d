# Torch must be there (the Python wheel's or a LibTorch); fmt, GoogleTest are taken from the system or fetched.
include(FetchContent)

if(NOT Torch_DIR AND NOT TARGET torch)
  find_package(Python3 COMPONENTS Interpreter QUIET)
  if(Python3_FOUND)
    execute_process(
      COMMAND ${Python3_EXECUTABLE} -c "import torch; print(torch.utils.cmake_prefix_path)"
      OUTPUT_VARIABLE octet_torch_prefix OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    list(APPEND CMAKE_PREFIX_PATH ${octet_torch_prefix})
  endif()
endif()
include(OctetTorch)
octet_find_torch()
if(NOT Torch_FOUND)
  message(FATAL_ERROR "octet needs Torch 2.11 to 2.13: name it by Torch_DIR, CMAKE_PREFIX_PATH or Python3_EXECUTABLE")
endif()

# Torch's parallel loops are inline functions: they use threads only where they are compiled with OpenMP, as Torch is on
# Linux and Windows.
find_package(OpenMP COMPONENTS CXX)
if(NOT OpenMP_CXX_FOUND AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
  message(FATAL_ERROR "octet needs the compiler's OpenMP (Debian's name for clang: libomp-dev), got none for ${CMAKE_CXX_COMPILER}")
endif()

find_package(fmt QUIET)
if(NOT fmt_FOUND)
  FetchContent_Declare(fmt GIT_REPOSITORY https://github.com/fmtlib/fmt GIT_TAG 10.2.1 SYSTEM)
  FetchContent_MakeAvailable(fmt)
endif()

if(OCTET_BUILD_TESTS)
  find_package(GTest QUIET)
  if(NOT GTest_FOUND)
    FetchContent_Declare(googletest GIT_REPOSITORY https://github.com/google/googletest GIT_TAG v1.14.0 SYSTEM)
    FetchContent_MakeAvailable(googletest)
  endif()
endif()
