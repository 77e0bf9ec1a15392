# Writes the sources in FILES as a C table to OUT, so that the library carries its kernels:
#   cmake -DOUT=kernel_sources.c -DFILES=a.cu|b.cuh -P embed_kernels.cmake
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
file(WRITE ${OUT} "#include \"kernel_sources.h\"\n\n${arrays}
const kernel_source tallow_kernel_sources[] = {\n${table}};
const int tallow_kernel_source_count = ${count};\n")
