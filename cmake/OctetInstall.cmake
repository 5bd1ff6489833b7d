# What an installation holds: liboctet, the public headers, the CMake package. A wheel has the same layout inside octet/.
include(CMakePackageConfigHelpers)

set(octet_cmake_dir ${CMAKE_INSTALL_DATADIR}/cmake/Octet)
string(REGEX MATCH "^[0-9]+\\.[0-9]+" OCTET_TORCH_MINOR "${Torch_VERSION}")

install(TARGETS octet octet_core EXPORT OctetTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT OctetTargets NAMESPACE octet:: DESTINATION ${octet_cmake_dir})
# kernels/ is not public, nor are the helpers that the ops share.
install(DIRECTORY csrc/octet DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING
  PATTERN "*.h"
  PATTERN "kernels" EXCLUDE
  PATTERN "ops/common.h" EXCLUDE
  PATTERN "ops/observer_name.h" EXCLUDE)
install(FILES ${PROJECT_BINARY_DIR}/include/octet/version.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/octet)

configure_package_config_file(cmake/OctetConfig.cmake.in ${PROJECT_BINARY_DIR}/OctetConfig.cmake
  INSTALL_DESTINATION ${octet_cmake_dir} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/OctetConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/OctetConfig.cmake ${PROJECT_BINARY_DIR}/OctetConfigVersion.cmake
  ${PROJECT_SOURCE_DIR}/cmake/OctetTorch.cmake DESTINATION ${octet_cmake_dir})

# The Python package names it where the running Torch is another one.
file(WRITE ${PROJECT_BINARY_DIR}/torch_version.txt "${Torch_VERSION}\n")
install(FILES ${PROJECT_BINARY_DIR}/torch_version.txt DESTINATION ${octet_cmake_dir})
