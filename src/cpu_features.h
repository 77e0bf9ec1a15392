/* Which instruction set the CPU backend uses. */
#ifndef TALLOW_CPU_FEATURES_H
#define TALLOW_CPU_FEATURES_H

#include "tallow.h"

typedef enum { CPU_SCALAR, CPU_AVX2, CPU_AVX512, CPU_AVX512BF16, CPU_LEVELS } cpu_level;

const char *tallow_cpu_level_name(cpu_level level);

/* The fastest level that this CPU has and the build holds. TALLOW_CPU names another, or a wider one
 * than the CPU has, which then gives the widest; a name that is no level is an error. */
tallow_status tallow_cpu_level(cpu_level *out);

/* CPU threads of a call that asks for `threads`: OpenMP's choice for 0, and never more than there
 * are processors, since a thread that cannot be created ends the process. */
int tallow_cpu_threads(int32_t threads);

#endif
