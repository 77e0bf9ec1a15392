/* TALLOW_CPU chooses among the levels that the CPU has, and must be a name. */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>

#include "calls.h"
#include "cpu_features.h"
#include "expect.h"

static cpu_level with(const char *name) {
    cpu_level level = CPU_LEVELS;
    setenv("TALLOW_CPU", name, 1);
    EXPECT(tallow_cpu_level(&level) == TALLOW_OK, "%s", tallow_last_error());
    return level;
}

/* A level that the CPU lacks gives its widest; unnamed, no more than that is chosen. */
static void levels(void) {
    const cpu_level widest = with("avx512bf16");
    for (int wanted = CPU_SCALAR; wanted < CPU_LEVELS; wanted++) {
        const char *name = tallow_cpu_level_name((cpu_level)wanted);
        const cpu_level level = with(name);
        EXPECT((int)level == (wanted < (int)widest ? wanted : (int)widest), "%s gives %s", name,
               tallow_cpu_level_name(level));
    }
    const cpu_level chosen = with("");
    cpu_level unset;
    unsetenv("TALLOW_CPU");
    EXPECT(tallow_cpu_level(&unset) == TALLOW_OK && unset == chosen, "%s", tallow_last_error());
    EXPECT(chosen <= widest && chosen + 1 >= widest, "chose %s of %s",
           tallow_cpu_level_name(chosen), tallow_cpu_level_name(widest));
}

static void threads(void) {
    const int all = tallow_cpu_threads(INT32_MAX);
    EXPECT(all >= 1 && all <= 4096, "%d", all);
    EXPECT(tallow_cpu_threads(0) >= 1, "%d", tallow_cpu_threads(0));
    EXPECT(tallow_cpu_threads(1) == 1, "%d", tallow_cpu_threads(1));
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
    threads();
    return expect_report();
}
