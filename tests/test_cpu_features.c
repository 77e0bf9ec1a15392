/* TALLOW_CPU lowers the instruction set, never raises it, and must be a name. */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>

#include "calls.h"
#include "cpu_features.h"
#include "expect.h"

static void levels(void) {
    cpu_level widest, level;
    unsetenv("TALLOW_CPU");
    EXPECT(tallow_cpu_level(&widest) == TALLOW_OK && widest < CPU_LEVELS, "%s",
           tallow_last_error());
    for (int wanted = CPU_SCALAR; wanted < CPU_LEVELS; wanted++) {
        const int expected = wanted < (int)widest ? wanted : (int)widest;
        setenv("TALLOW_CPU", tallow_cpu_level_name((cpu_level)wanted), 1);
        EXPECT(tallow_cpu_level(&level) == TALLOW_OK && (int)level == expected, "%s gives %s",
               tallow_cpu_level_name((cpu_level)wanted), tallow_cpu_level_name(level));
    }
    setenv("TALLOW_CPU", "", 1);
    EXPECT(tallow_cpu_level(&level) == TALLOW_OK && level == widest, "empty gives %s",
           tallow_cpu_level_name(level));
}

/* The variable is read in every call, and said in what describes it. */
static void calls(call *c) {
    char text[4096];
    setenv("TALLOW_CPU", "scalar", 1);
    EXPECT(tallow_attention_describe(&c->a, sizeof c->a, text, sizeof text) == TALLOW_OK &&
               strstr(text, "level scalar\n"),
           "%s", text);
    EXPECT(tallow_system_describe(text, sizeof text) == TALLOW_OK &&
               strstr(text, "cpu_level scalar\n"),
           "%s", text);
    setenv("TALLOW_CPU", "sse9", 1);
    EXPECT(run_call(c) == TALLOW_INVALID_ARGUMENT &&
               !strcmp(tallow_last_error(), "TALLOW_CPU = \"sse9\": must be scalar, avx2, avx512 "
                                            "or avx512bf16"),
           "%s", tallow_last_error());
    EXPECT(tallow_system_describe(text, sizeof text) == TALLOW_INVALID_ARGUMENT, "%s", text);
}

int main(void) {
    levels();
    WITH(DENSE, (void)0, calls(c));
    EXPECT(tallow_cpu_threads(0) >= 1, "%d", tallow_cpu_threads(0));
#ifdef _OPENMP
    EXPECT(tallow_cpu_threads(3) == 3, "%d", tallow_cpu_threads(3));
#endif
    return expect_report();
}
