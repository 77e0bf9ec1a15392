# Headers, both libraries, the command, a pkg-config file and a CMake package.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/tallow)
install(TARGETS tallow tallow_static EXPORT tallow)
install(FILES ${PROJECT_SOURCE_DIR}/include/tallow.h TYPE INCLUDE)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE ${PROJECT_SOURCE_DIR}/README.md TYPE DOC)
if(TALLOW_CLI)
  install(TARGETS tallow_cli)
endif()

install(EXPORT tallow NAMESPACE tallow:: FILE tallowConfig.cmake DESTINATION ${package_dir})
write_basic_package_version_file(tallowConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/tallowConfigVersion.cmake DESTINATION ${package_dir})

# The pkg-config file finds its prefix from where it lies, so the tree can be moved.
set(private_libs)
foreach(item IN ITEMS m ${CMAKE_DL_LIBS} LISTS openmp_installed)
  if(NOT IS_ABSOLUTE ${item})
    set(item -l${item})
  endif()
  string(APPEND private_libs " ${item}")
endforeach()
cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX
           BASE_DIRECTORY ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig OUTPUT_VARIABLE to_prefix)
configure_file(${PROJECT_SOURCE_DIR}/cmake/tallow.pc.in tallow.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/tallow.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
