# Every #include points one way. A file of src/ may include headers of its own rank or a lower one,
# so that problem.c never hears of plans, nor a plan of threads. The command line sees no header of
# src/. No two files share a name, so that an include says which file it means.
cmake_minimum_required(VERSION 3.25)
cmake_path(GET CMAKE_CURRENT_LIST_DIR PARENT_PATH root)

set(ranks
  "0 include/tallow"
  "1 src/(error|cpu_features|cuda_driver|convert|sha256|kernel_sources)"
  "2 src/(problem(_.*)?|check|rotary|spec|tiles)"
  "3 src/(plan(_.*)?|cpu/tile)"
  "4 (src/cpu|kernels)/.*"
  "5 src/(cpu|cuda)(_.*)?|src/pack|src/system"
  "6 src/api")

function(rank_of path out)
  cmake_path(REMOVE_EXTENSION path)
  foreach(line IN LISTS ranks)
    string(SUBSTRING "${line}" 0 1 rank)
    string(SUBSTRING "${line}" 2 -1 pattern)
    if(path MATCHES "^(${pattern})$")
      set(${out} ${rank} PARENT_SCOPE)
      return()
    endif()
  endforeach()
  set(${out} "" PARENT_SCOPE)
endfunction()

# What is wrong with `file` including `header`, both paths from the root; "" when nothing is.
function(complaint file header out)
  set(${out} "" PARENT_SCOPE)
  if(file MATCHES "^cli/" AND header MATCHES "^src/")
    set(${out} "the command line uses tallow.h alone" PARENT_SCOPE)
  elseif(file MATCHES "^(src|kernels|include)/")
    rank_of(${file} from)
    rank_of(${header} to)
    if(from STREQUAL "")
      set(${out} "give ${file} a rank in cmake/check_includes.cmake" PARENT_SCOPE)
    elseif(to STREQUAL "" OR to GREATER from)
      set(${out} "rank ${from} may not include rank '${to}'" PARENT_SCOPE)
    endif()
  endif()
endfunction()

file(GLOB_RECURSE files RELATIVE ${root}
     ${root}/include/*.h ${root}/src/*.[ch] ${root}/kernels/*.* ${root}/cli/*.[ch] ${root}/compat/*.[ch]
     ${root}/tests/*.[ch] ${root}/src/*.def ${root}/tests/*.def)
set(complaints)
foreach(file IN LISTS files)
  cmake_path(GET file FILENAME name)
  if(DEFINED path_of_${name})
    list(APPEND complaints "${file} and ${path_of_${name}} share a name")
  endif()
  set(path_of_${name} ${file})
endforeach()

set(checked 0)
foreach(file IN LISTS files)
  file(STRINGS ${root}/${file} lines REGEX "^ *# *include +\"")
  foreach(line IN LISTS lines)
    string(REGEX REPLACE ".*\"([^\"]*/)?([^\"/]+)\".*" "\\2" name "${line}")
    if(NOT DEFINED path_of_${name})
      list(APPEND complaints "${file} includes ${name}, which is nowhere in the tree")
      continue()
    endif()
    complaint(${file} ${path_of_${name}} wrong)
    if(wrong)
      list(APPEND complaints "${file} includes ${path_of_${name}}: ${wrong}")
    endif()
    math(EXPR checked "${checked} + 1")
  endforeach()
endforeach()

if(complaints)
  list(JOIN complaints "\n  " text)
  message(FATAL_ERROR "includes:\n  ${text}")
endif()
message(STATUS "${checked} includes point the right way")
