# The shared library exports what tallow.h declares and nothing else; the static one adds no global
# name outside tallow_*. Names that begin with two underscores are the compiler's and sanitizers'.
function(defined_symbols out)
  execute_process(COMMAND ${NM} ${ARGN} OUTPUT_VARIABLE text COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[0-9a-f]+ [A-TV-Zu] [^\n]+" lines "${text}")
  list(TRANSFORM lines REPLACE "^[^ ]+ . " "")
  list(FILTER lines EXCLUDE REGEX "^(__|_init$|_fini$)")
  list(REMOVE_DUPLICATES lines)
  list(SORT lines)
  set(${out} ${lines} PARENT_SCOPE)
endfunction()

file(READ ${HEADER} header)
string(REGEX MATCHALL "TALLOW_API [^;{]*[ *](tallow_[a-z0-9_]+)\\(" declared "${header}")
list(TRANSFORM declared REPLACE ".*[ *](tallow_[a-z0-9_]+)\\($" "\\1")
list(SORT declared)

defined_symbols(exported -D --defined-only ${SHARED})
if(NOT declared OR NOT exported STREQUAL declared)
  message(FATAL_ERROR "exported: ${exported}\ndeclared: ${declared}")
endif()

defined_symbols(global -g --defined-only ${STATIC})
list(FILTER global EXCLUDE REGEX "^tallow_")
if(global)
  message(FATAL_ERROR "global names outside tallow_*: ${global}")
endif()
list(LENGTH exported count)
message(STATUS "${count} symbols, as declared")
