# Runs `tallow compile` with a stand-in for NVRTC, found where the real one would be: packs, exit
# codes, and what is left when something is wrong.
cmake_minimum_required(VERSION 3.25)

set(folder ${WORK}/compile)
set(out ${folder}/out)
file(REMOVE_RECURSE ${folder})
file(MAKE_DIRECTORY ${out})

function(install library folder_in name)
  file(MAKE_DIRECTORY ${folder}/${folder_in})
  file(COPY_FILE ${library} ${folder}/${folder_in}/${name})
endfunction()
install(${FAKE} cuda/lib64 libnvrtc.so)
install(${FAKE} venv12/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib libnvrtc.so.12)
install(${FAKE} venv13/lib/python3.12/site-packages/nvidia/cu13/lib libnvrtc.so.13)
install(${FAKE} conda/lib libnvrtc.so.13)
install(${OTHER} lacking/lib64 libnvrtc.so)

# Runs a command with some of the environment set, and fails unless it exits with `code`; sets
# `stdout` and `stderr`.
set(nowhere CUDA_HOME=${folder} VIRTUAL_ENV=${folder} CONDA_PREFIX=${folder})
set(cuda ${nowhere} CUDA_HOME=${folder}/cuda)
macro(run_in environment code)
  execute_process(COMMAND ${CMAKE_COMMAND} -E env ${${environment}} ${ARGN} RESULT_VARIABLE result
                  OUTPUT_VARIABLE stdout ERROR_VARIABLE stderr)
  if(NOT result STREQUAL "${code}")
    message(FATAL_ERROR "${ARGN}: ended with ${result}, wanted ${code}\n${stdout}\n${stderr}")
  endif()
endmacro()

macro(expect_text text words)
  string(FIND "${${text}}" "${words}" at)
  if(at EQUAL -1)
    message(FATAL_ERROR "no '${words}' in: ${${text}}")
  endif()
endmacro()

# The only files of the folder.
macro(expect_files)
  file(GLOB files RELATIVE ${out} ${out}/*)
  if(NOT "${files}" STREQUAL "${ARGN}")
    message(FATAL_ERROR "left: '${files}', wanted '${ARGN}'")
  endif()
endmacro()

# A command that fails, says why, and leaves nothing.
function(refuses environment code words)
  run_in(${environment} ${code} ${ARGN})
  expect_text(stderr "${words}")
  if(NOT stdout STREQUAL "")
    message(FATAL_ERROR "${ARGN}: said ${stdout}")
  endif()
  expect_files()
endfunction()

# ---- where NVRTC is ----

foreach(place IN ITEMS CUDA_HOME=${folder}/cuda VIRTUAL_ENV=${folder}/venv12
        VIRTUAL_ENV=${folder}/venv13 CONDA_PREFIX=${folder}/venv12 CONDA_PREFIX=${folder}/conda)
  set(found ${nowhere} ${place})
  run_in(found 0 ${TALLOW} info)
  expect_text(stdout "\nnvrtc 99.1\n")
endforeach()

# ---- packs ----

set(compile ${TALLOW} compile -o ${out}/kernels.pack)
run_in(cuda 0 ${compile} --arch sm_80,sm_90a --json)
foreach(member IN ITEMS spilled serialized)
  string(JSON number GET "${stdout}" ${member})
  if(NOT number EQUAL 0)
    message(FATAL_ERROR "${member} is ${number}: ${stdout}")
  endif()
endforeach()
string(JSON kernels GET "${stdout}" kernels)
string(JSON seconds GET "${stdout}" seconds)
if(kernels LESS 100 OR NOT seconds GREATER_EQUAL 0)
  message(FATAL_ERROR "two GPUs of every case: ${stdout}")
endif()
expect_files(kernels.pack)
file(SHA256 ${out}/kernels.pack before)

# One process or five: the same kernels once each. A pack is replaced whole.
file(SIZE ${out}/kernels.pack size)
foreach(processes IN ITEMS 1 5)
  run_in(cuda 0 ${compile} --arch sm_80,sm_90a --cases --processes ${processes})
  expect_text(stdout "${kernels} kernels in ${out}/kernels.pack, 0 spill registers, 0 serialize;")
  file(SIZE ${out}/kernels.pack now)
  if(NOT now EQUAL size)
    message(FATAL_ERROR "${processes} processes: ${now} bytes, not ${size}")
  endif()
endforeach()
run_in(cuda 0 ${compile} --arch sm_86,sm_86 --all --json)
string(JSON all GET "${stdout}" kernels)
if(all LESS 1500)
  message(FATAL_ERROR "all kernels of sm_86: ${stdout}")
endif()

# What fails leaves the pack that was there.
file(SHA256 ${out}/kernels.pack before)
set(failing ${cuda} FAKE_NVRTC=fail)
run_in(failing 1 ${compile})
file(SHA256 ${out}/kernels.pack after)
if(NOT before STREQUAL after)
  message(FATAL_ERROR "a failure changed the pack")
endif()
expect_files(kernels.pack)
file(REMOVE ${out}/kernels.pack)

# ---- what the compiler says ----

set(some ${compile} --arch sm_80)
set(dying ${cuda} FAKE_NVRTC=die)
set(lacking ${nowhere} CUDA_HOME=${folder}/lacking)
refuses(failing 1 "NVRTC refuses it: error: no such thing" ${some})
refuses(dying 1 "ended before its work was done" ${some})
refuses(lacking 1 "no NVRTC: libnvrtc.so lacks nvrtcVersion" ${some})
refuses(cuda 1 "arch = sm_120: this NVRTC does not know it" ${compile} --arch sm_80,sm_120)
foreach(told IN ITEMS spill serialize)
  string(REPLACE "ee" "e" member ${told}ed)
  set(telling ${cuda} FAKE_NVRTC=${told})
  run_in(telling 0 ${some})
  expect_text(stderr " dtype=2 head_dim=128 head_dim_v=128 ")
  expect_text(stderr " for sm_80: ${told}s")
  run_in(telling 1 ${some} --json --strict)
  string(JSON number GET "${stdout}" ${member})
  string(JSON kernels GET "${stdout}" kernels)
  if(kernels EQUAL 0 OR NOT number EQUAL kernels)
    message(FATAL_ERROR "all kernels ${told}: ${stdout}")
  endif()
  file(REMOVE ${out}/kernels.pack)
endforeach()

# Of a call's kernels, the one that spills is named.
set(telling ${cuda} FAKE_NVRTC=spill FAKE_NVRTC_ONLY=-DSPEC_large=1)
run_in(telling 0 ${compile} --arch sm_90a)
expect_text(stderr " large=1 ")
if(stderr MATCHES " large=0 ")
  message(FATAL_ERROR "only large=1 spills: ${stderr}")
endif()
file(REMOVE ${out}/kernels.pack)

# ---- command lines, disks and signals ----

refuses(cuda 2 "accepted: one of them" ${some} --cases --all)
refuses(cuda 2 "--arch is , accepted" ${compile} --arch=)
refuses(cuda 2 "--arch is sm_80,, accepted" ${compile} --arch sm_80,)
refuses(cuda 2 "--processes is 0" ${some} --processes 0)
refuses(cuda 2 "-o is empty" ${TALLOW} compile -o=)
refuses(cuda 1 "arch = sm_90: must be sm_75, " ${compile} --arch sm_90)
refuses(cuda 1 "-o is /proc/nowhere/x.pack: No such file" ${TALLOW} compile -o /proc/nowhere/x.pack)
refuses(cuda 1 "-o is ${out}: Is a directory" ${TALLOW} compile --arch sm_80 -o ${out})
file(WRITE ${folder}/full.sh "trap '' XFSZ\nulimit -f 8\nexec \"$@\"\n")
refuses(cuda 1 ": File too large" sh ${folder}/full.sh ${some})
file(WRITE ${folder}/stop.sh "\"$@\" & sleep 0.7; kill -TERM $!; wait $!; test $? = 143\n")
set(slow ${cuda} FAKE_NVRTC=slow)
run_in(slow 0 sh ${folder}/stop.sh ${some})
expect_files()
