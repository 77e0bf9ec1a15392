# Runs `tallow` as people and programs do: exit codes, complaints, and JSON that parses.
cmake_minimum_required(VERSION 3.25)

# Runs a command line and fails unless it exits with `code`; sets `out` and `err`.
macro(run code)
  execute_process(COMMAND ${TALLOW} ${ARGN} RESULT_VARIABLE result
                  OUTPUT_VARIABLE out ERROR_VARIABLE err)
  if(NOT result EQUAL ${code})
    message(FATAL_ERROR "tallow ${ARGN}: exit ${result}, wanted ${code}\n${out}\n${err}")
  endif()
endmacro()

# The same for a wrong command line, whose complaint holds `text`.
function(refuses code text)
  run(${code} ${ARGN})
  string(FIND "${err}" "${text}" at)
  if(at EQUAL -1 OR NOT out STREQUAL "")
    message(FATAL_ERROR "tallow ${ARGN}: wanted '${text}' on stderr alone, got '${err}' and '${out}'")
  endif()
endfunction()

function(member_is value)
  string(JSON found GET "${out}" ${ARGN})
  if(NOT found STREQUAL value)
    message(FATAL_ERROR "${ARGN} is '${found}', wanted '${value}' in ${out}")
  endif()
endfunction()

function(member_is_positive)
  string(JSON found GET "${out}" ${ARGN})
  if(NOT found GREATER 0)
    message(FATAL_ERROR "${ARGN} is '${found}', wanted more than 0 in ${out}")
  endif()
endfunction()

run(0 --version)
if(NOT out STREQUAL "tallow ${VERSION}\n")
  message(FATAL_ERROR "--version: ${out}")
endif()

foreach(command IN ITEMS info plan check bench compile divergence)
  run(0 ${command} --help)
  if(NOT out MATCHES "usage: tallow ${command}.*--json.*examples:\n  tallow ${command}")
    message(FATAL_ERROR "tallow ${command} --help:\n${out}")
  endif()
  refuses(2 "unknown flag --jsn; did you mean --json?" ${command} --jsn)
endforeach()

refuses(2 "usage: tallow COMMAND")
refuses(2 "unknown command bend" bend)
refuses(2 "--mask is diagonal, accepted: none|causal|window" bench --mask diagonal)
refuses(2 "--seqlen is 0, accepted: an integer from 1 to 2147483647" plan --seqlen 0)
refuses(2 "--seqlen needs a value" plan --seqlen)
refuses(2 "--json takes no value" plan --json=1)
refuses(2 "--heads-kv is 3, accepted: a divisor of --heads 16" plan --heads-kv 3)
refuses(2 "need --mask window" plan --window-left 4)
refuses(2 "--case is nothing" bench --case nothing)
refuses(2 "--case says the shape" bench --case decode_bf16 --seqlen 3)
refuses(1 "head_dim" plan --head-dim 12)
refuses(1 "out of memory" bench --seqlen 2147483647 --batch 64 --head-dim 256)

run(0 info --json)
member_is(${VERSION} version)
member_is_positive(threads)

run(0 plan --json --seqlen 1 --seqlen-k 32k --head-dim-v 64 --dtype f16)
member_is(f16 dtype)
member_is(64 head_dim_v)
member_is(32768 max_seqlen_k)

# A call small enough for a sanitizer, each bound once.
run(0 bench --json --seconds 0 --threads 1 --seqlen 64 --head-dim 64)
member_is(compute bound)
member_is(1 threads)
member_is(64 seqlen_k)
foreach(name IN ITEMS seconds_median gflops gbytes_per_second fraction_of_peak peak_gflops
        read_gbytes_per_second repeats)
  member_is_positive(${name})
endforeach()
run(0 bench --json --seconds 0 --seqlen 1 --seqlen-k 512 --dtype f32 --mask none)
member_is(memory bound)

# On a GPU where there is one, else why not.
execute_process(COMMAND ${TALLOW} bench --json --seconds 0 --device cuda --seqlen 64
                RESULT_VARIABLE result OUTPUT_VARIABLE out ERROR_VARIABLE err)
if(result EQUAL 0)
  member_is(cuda device)
  foreach(name IN ITEMS seconds_median host_microseconds gflops gbytes_per_second driver repeats
          copy_gbytes_per_second)
    member_is_positive(${name})
  endforeach()
  member_is(cuda kernel backend)
elseif(NOT result EQUAL 1 OR NOT err MATCHES "libcuda|driver|NVRTC" OR NOT out STREQUAL "")
  message(FATAL_ERROR "bench --device cuda: exit ${result}\n${out}\n${err}")
endif()

run(0 bench --list)
if(NOT out MATCHES "(^|\n)decode_paged\n")
  message(FATAL_ERROR "bench --list: ${out}")
endif()
