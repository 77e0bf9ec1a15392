#include "cpu_features.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "error.h"

static const char *const names[CPU_LEVELS] = {
    [CPU_SCALAR] = "scalar",
    [CPU_AVX2] = "avx2",
    [CPU_AVX512] = "avx512",
    [CPU_AVX512BF16] = "avx512bf16",
};

const char *tallow_cpu_level_name(cpu_level level) { return names[level]; }

/* The widest level of this CPU. Every CPU with AVX2 and FMA has F16C, which older compilers cannot
 * ask for by name. */
static cpu_level widest(void) {
#ifdef TALLOW_X86
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return CPU_SCALAR;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return CPU_AVX2;
    return __builtin_cpu_supports("avx512bf16") ? CPU_AVX512BF16 : CPU_AVX512;
#else
    return CPU_SCALAR;
#endif
}

/* Intel's cores multiply bf16 pairs at half the rate of f32 (Sapphire Rapids, two cores: 166
 * against 326 GFLOP/s), so there the pairs must be asked for by name. */
static bool slow_dot(void) {
#ifdef TALLOW_X86
    return __builtin_cpu_is("intel");
#else
    return false;
#endif
}

tallow_status tallow_cpu_level(cpu_level *out) {
    const char *wanted = getenv("TALLOW_CPU");
    *out = widest();
    if (!wanted || !*wanted) {
        if (*out == CPU_AVX512BF16 && slow_dot()) *out = CPU_AVX512;
        return TALLOW_OK;
    }
    for (int level = CPU_SCALAR; level < CPU_LEVELS; level++) {
        if (strcmp(wanted, names[level]) != 0) continue;
        if (level < (int)*out) *out = (cpu_level)level;
        return TALLOW_OK;
    }
    return tallow_fail(TALLOW_INVALID_ARGUMENT, "TALLOW_CPU = \"%s\": must be %s, %s, %s or %s",
                       wanted, names[0], names[1], names[2], names[3]);
}

int tallow_cpu_threads(int32_t threads) {
#ifdef _OPENMP
    int processors = omp_get_num_procs();
    if (threads == 0) return omp_get_max_threads();
    return threads < processors ? threads : processors;
#else
    (void)threads;
    return 1;
#endif
}
