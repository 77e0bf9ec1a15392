# Writes the sources in FILES as a C table to OUT, so that a program carries its kernels:
#   cmake -DOUT=kernel_sources.c -DFILES=a.cu|b.cuh [-DTABLE=tallow_kernel_source]
#         [-DHEADER=kernel_sources.h] -P embed_kernels.cmake
if(NOT TABLE)
  set(TABLE tallow_kernel_source)
  set(HEADER kernel_sources.h)
endif()
string(REPLACE "|" ";" files "${FILES}")
set(table)
set(arrays)
set(count 0)
foreach(file IN LISTS files)
  cmake_path(GET file FILENAME name)
  file(READ ${file} bytes HEX)
  string(REGEX REPLACE "(................................)" "\\1\n" bytes "${bytes}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
  string(APPEND arrays "static const char text_${count}[] = {\n${bytes}0};\n")
  string(APPEND table "    {\"${name}\", text_${count}, sizeof text_${count} - 1},\n")
  math(EXPR count "${count} + 1")
endforeach()
file(WRITE ${OUT} "#include \"${HEADER}\"\n\n${arrays}
const kernel_source ${TABLE}s[] = {\n${table}};
const int ${TABLE}_count = ${count};\n")
