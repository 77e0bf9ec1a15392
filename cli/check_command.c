#define _POSIX_C_SOURCE 200809L

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "case.h"
#include "case_cuda.h"
#include "commands.h"
#include "options.h"
#include "output.h"
#include "tallow.h"

typedef struct {
    int64_t cases, seed, index;
    const char *name; /* a named case, or "all" of them; null: random ones */
    int device, level;
    bool as_json, list;
} request;

typedef struct {
    const request *r;
    text_line found;
    const char *level;         /* that runs */
    const case_device *device; /* null: the CPU */
    const char *flag;          /* that chooses the level, or the device */
    json j;
    int64_t cases, failed;
    double ratios; /* sum of errors over a plain computation's */
    int64_t ratio_count;
} tally;

static const char *const LEVELS[] = {"widest", "scalar", "avx2", "avx512", "avx512bf16"};

/* The level that the library runs. */
static bool find_level(text_line *level) {
    char text[8192];
    const char *at = text;
    if (tallow_system_describe(text, sizeof text) != TALLOW_OK) return false;
    while (next_line(&at, level))
        if (strcmp(level->name, "cpu_level") == 0) return true;
    return false;
}

static int choose_gpu(tally *t) {
    static case_device gpu;
    char why[256];
    if (!case_cuda_open(&gpu, why, sizeof why)) {
        fprintf(stderr, "tallow check: --device is cuda: %s\n", why);
        return EXIT_FAILED;
    }
    t->device = &gpu;
    t->level = "cuda";
    t->flag = "--device";
    return OPTIONS_OK;
}

static int choose_level(tally *t) {
    const char *wanted = LEVELS[t->r->level];
    if (t->r->level > 0) setenv("TALLOW_CPU", wanted, 1);
    if (!find_level(&t->found)) return command_failed("check");
    t->level = t->found.value;
    if (t->r->level > 0 && strcmp(t->level, wanted) != 0)
        return options_error("check", "--level is %s, which this CPU lacks; accepted: up to %s",
                             wanted, t->level);
    t->flag = "--level";
    return OPTIONS_OK;
}

static void print_failure(tally *t, const char *command, const char *text) {
    if (t->r->as_json) {
        json_open(&t->j, NULL, '{');
        json_string(&t->j, "command", command);
        json_string(&t->j, "text", text);
        json_close(&t->j, '}');
    } else {
        progress_end();
        printf("FAILED %s\n  repeat: %s\n", text, command);
    }
}

/* Runs a built case and frees it. */
static void check_case(tally *t, attention_case *c, const char *command) {
    case_result result = {0};
    if (case_run(c, t->device) == TALLOW_OK) {
        case_check(c, &result);
    } else {
        snprintf(result.text, sizeof result.text, "%s", tallow_last_error());
    }
    t->cases++;
    t->ratios += result.ratio;
    t->ratio_count += result.ratio > 0;
    if (!result.ok) {
        t->failed++;
        print_failure(t, command, result.text);
    }
    case_free(c);
}

static void check_named(tally *t) {
    const bool all = strcmp(t->r->name, "all") == 0;
    char command[256];
    attention_case c;
    for (int i = 0; i < case_count(); i++) {
        const case_options *o = case_at(i);
        if (!all && strcmp(o->name, t->r->name) != 0) continue;
        progress("check", i, case_count());
        snprintf(command, sizeof command, "tallow check --case %s --seed %" PRId64 " %s %s",
                 o->name, t->r->seed, t->flag, t->level);
        case_build(&c, o, (uint64_t)t->r->seed);
        check_case(t, &c, command);
    }
}

static void check_random(tally *t) {
    const request *r = t->r;
    int64_t first = r->index >= 0 ? r->index : 0, count = r->index >= 0 ? 1 : r->cases;
    char command[256];
    attention_case c;
    for (int64_t i = 0; i < count; i++) {
        progress("check", i, count);
        snprintf(command, sizeof command,
                 "tallow check --seed %" PRId64 " --index %" PRId64 " %s %s", r->seed, first + i,
                 t->flag, t->level);
        case_build_random(&c, (uint64_t)r->seed, (uint64_t)(first + i));
        check_case(t, &c, command);
    }
}

static void print_summary(tally *t) {
    double ratio = t->ratio_count > 0 ? t->ratios / (double)t->ratio_count : 0;
    if (t->r->as_json) {
        json_close(&t->j, ']');
        json_integer(&t->j, "cases", t->cases);
        json_integer(&t->j, "failed", t->failed);
        json_integer(&t->j, "seed", t->r->seed);
        json_string(&t->j, "device", t->device ? "cuda" : "cpu");
        json_string(&t->j, "level", t->level);
        json_number(&t->j, "mean_error_over_plain", ratio);
        json_close(&t->j, '}');
        return;
    }
    printf("%" PRId64 " checked, %" PRId64 " failed; seed %" PRId64 ", level %s\n"
           "error against f64: %.2f of a plain computation's, in the mean\n",
           t->cases, t->failed, t->r->seed, t->level, ratio);
}

static int check_rules(request *r) {
    if (r->name && r->index >= 0)
        return options_error("check", "--index is of random cases, --case of named ones: accepted: "
                                      "one of the two");
    if (r->name && strcmp(r->name, "all") != 0 && !case_named(r->name))
        return options_error("check", "--case is %s, accepted: all, or a name that --list prints",
                             r->name);
    if (r->seed < 0) r->seed = (int64_t)time(NULL);
    return OPTIONS_OK;
}

int check_main(int argc, char **argv) {
    request r = {.cases = 200, .seed = -1, .index = -1};
    const option options[] = {
        {"--cases", OPTION_INT, &r.cases, "how many random cases", 1, 1e9, {0}},
        {"--seed", OPTION_INT, &r.seed, "of cases and data; -1: from the clock", -1, 9e18, {0}},
        {"--index",
         OPTION_INT,
         &r.index,
         "only this one of the seed's cases; -1: all",
         -1,
         1e9,
         {0}},
        {"--case", OPTION_TEXT, &r.name, "a named case instead, or all of them", 0, 0, {0}},
        {"--list", OPTION_FLAG, &r.list, "print the names of cases", 0, 0, {0}},
        {"--device", OPTION_CHOICE, &r.device, "what computes", 0, 0, {"cpu", "cuda"}},
        {"--level",
         OPTION_CHOICE,
         &r.level,
         "instruction set",
         0,
         0,
         {"widest", "scalar", "avx2", "avx512", "avx512bf16"}},
        {"--json", OPTION_FLAG, &r.as_json, "print one JSON object", 0, 0, {0}},
        {0}};
    const option_help help = {
        argv[0],
        "Compares attention with plain f64 loops on random problems: layouts, lengths, masks,\n"
        "scores, rotary, appended keys, key splits. The error may be 1.2 times that of a plain\n"
        "computation in the same precision. Exit code 1: some case failed.",
        "  tallow check --cases 1000\n"
        "  tallow check --seed 7 --index 42 --level scalar\n"
        "  tallow check --case all --json\n",
        options};
    tally t = {.r = &r};
    int code = options_parse(&help, argc, argv);
    if (code == OPTIONS_OK) code = check_rules(&r);
    for (int i = 0; i < case_count() && code == OPTIONS_OK && r.list; i++) puts(case_at(i)->name);
    if (code != OPTIONS_OK || r.list) return code == OPTIONS_OK ? EXIT_DONE : code;
    code = r.device ? choose_gpu(&t) : choose_level(&t);
    if (code != OPTIONS_OK) return code;

    if (r.as_json) {
        json_open(&t.j, NULL, '{');
        json_open(&t.j, "failures", '[');
    }
    if (r.name)
        check_named(&t);
    else
        check_random(&t);
    progress_end();
    print_summary(&t);
    return t.failed > 0 ? EXIT_FAILED : EXIT_DONE;
}
