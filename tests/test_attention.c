/* Every named problem and a run of random ones, at every CPU level, against the f64 reference.
 *
 *   test_attention [seed] [random cases]
 */
#define _POSIX_C_SOURCE 200809L

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "case.h"
#include "expect.h"

enum { LEVELS = 4, RANDOM_CASES = 150 };

typedef struct {
    const char *name;
    bool present;
    double ratios; /* sum of error over the plain computation's */
    int count;
} level;

static level levels[LEVELS] = {{"scalar"}, {"avx2"}, {"avx512"}, {"avx512bf16"}};

/* What the library runs when a level is asked for: the widest that the CPU has, at most that. */
static void find_levels(void) {
    char text[4096], wanted[64];
    for (int i = 0; i < LEVELS; i++) {
        setenv("TALLOW_CPU", levels[i].name, 1);
        snprintf(wanted, sizeof wanted, "cpu_level %s\n", levels[i].name);
        tallow_status status = tallow_system_describe(text, sizeof text);
        levels[i].present = status == TALLOW_OK && strstr(text, wanted);
        if (!levels[i].present) printf("level %s: skipped, not on this CPU\n", levels[i].name);
    }
}

static void run_case(attention_case *c, const char *repeat) {
    case_result result;
    for (level *l = levels; l < levels + LEVELS; l++) {
        if (!l->present) continue;
        setenv("TALLOW_CPU", l->name, 1);
        tallow_status status = case_run(c, NULL);
        EXPECT(status == TALLOW_OK, "%s --level %s: %s", repeat, l->name, tallow_last_error());
        if (status != TALLOW_OK) continue;
        case_check(c, &result);
        EXPECT(result.ok, "%s --level %s: %s", repeat, l->name, result.text);
        l->ratios += result.ratio;
        l->count += result.ratio > 0;
    }
    case_free(c);
}

int main(int argc, char **argv) {
    attention_case c;
    char repeat[128];
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)time(NULL);
    int count = argc > 2 ? atoi(argv[2]) : RANDOM_CASES;
    find_levels();
    for (int i = 0; i < case_count(); i++) {
        snprintf(repeat, sizeof repeat, "tallow check --case %s --seed %" PRIu64, case_at(i)->name,
                 seed);
        case_build(&c, case_at(i), seed);
        run_case(&c, repeat);
    }
    printf("seed %" PRIu64 "\n", seed);
    for (int i = 0; i < count; i++) {
        snprintf(repeat, sizeof repeat, "tallow check --seed %" PRIu64 " --index %d", seed, i);
        case_build_random(&c, seed, (uint64_t)i);
        run_case(&c, repeat);
    }
    /* What a single case is granted for being a small sample, all together are not. */
    for (level *l = levels; l < levels + LEVELS; l++) {
        if (!l->present) continue;
        printf("level %s: error %.3f of the plain computation's, over %d cases\n", l->name,
               l->ratios / l->count, l->count);
        EXPECT(l->ratios <= 1.2 * l->count, "level %s: mean ratio %.3f", l->name,
               l->ratios / l->count);
    }
    return expect_report();
}
