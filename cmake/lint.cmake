# Targets `format` (rewrites) and `lint` (complains): style, and the direction of includes.
find_program(CLANG_FORMAT NAMES clang-format-14 clang-format)
set(check_includes ${CMAKE_COMMAND} -P ${PROJECT_SOURCE_DIR}/cmake/check_includes.cmake)

set(lint_style ${CMAKE_COMMAND} -E echo "clang-format is missing: style is not checked")
if(CLANG_FORMAT)
  set(globs)
  foreach(dir IN ITEMS bench cli compat include kernels src tests)
    list(APPEND globs ${PROJECT_SOURCE_DIR}/${dir}/*.c ${PROJECT_SOURCE_DIR}/${dir}/*.cpp
         ${PROJECT_SOURCE_DIR}/${dir}/*.h)
  endforeach()
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${globs})
  set(lint_style ${CLANG_FORMAT} --dry-run -Werror ${sources})
  add_custom_target(format COMMAND ${CLANG_FORMAT} -i ${sources} VERBATIM)
endif()
add_custom_target(lint COMMAND ${check_includes} COMMAND ${lint_style} VERBATIM)

if(TALLOW_TESTS)
  add_test(NAME include_direction COMMAND ${check_includes})
endif()
