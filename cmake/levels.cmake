# TALLOW_LEVELS: the instruction sets that the tile code is compiled for, narrowest first.
# TALLOW_FLAGS_<level>: the compiler's flags for one of them.
set(TALLOW_LEVELS scalar)
set(TALLOW_FLAGS_scalar)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
  set(TALLOW_X86 ON)
  set(TALLOW_FLAGS_avx2 -mavx2 -mfma -mf16c)
  set(TALLOW_FLAGS_avx512 ${TALLOW_FLAGS_avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq
      -mprefer-vector-width=512)
  set(TALLOW_FLAGS_avx512bf16 ${TALLOW_FLAGS_avx512} -mavx512bf16)
  list(APPEND TALLOW_LEVELS avx2 avx512 avx512bf16)
endif()
