#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_cuda.h"
#include "commands.h"
#include "peaks.h"
#include "samples.h"
#include "shape.h"
#include "workload.h"

/* At or below this many operations per byte of K and V a call waits for memory, on any CPU of
 * today: one query of 8 heads per key head does 8 in bf16, a thousand queries do thousands. */
static const double MEMORY_BOUND_INTENSITY = 16;

enum { FEWEST_REPEATS = 3 };

/* The calls that have a name. */
#define CASE(name, ...)
#define BENCH(name, ...) {#name, __VA_ARGS__},
static const case_options NAMED[] = {
#include "cases.def"
};
enum { NAMED_COUNT = sizeof NAMED / sizeof NAMED[0] };

/* Runs of the call, and samples of the yardsticks taken between them. */
typedef struct {
    samples seconds, peak, read_seconds;
} measurement;

typedef struct {
    char level[32];
    int threads, repeats;
    bool memory_bound, bf16_peak;
    double seconds, gflops, gbytes, peak_gflops, read_gbytes, of_peak, of_read;
} report;

/* Samples the yardsticks for about `seconds`. */
static void measure_peaks(measurement *m, const attention_case *c, const workload *w, int threads,
                          double seconds) {
    double begin = seconds_now();
    do {
        samples_add(&m->peak, c->o.dtype == TALLOW_BF16 ? peak_bf16(threads) : peak_f32(threads));
        peak_evict(threads);
        samples_add(&m->read_seconds, peak_read(w->ranges, w->range_count, threads));
    } while (seconds_now() - begin < seconds);
}

/* Runs the call for `seconds`, each time with cold caches; the yardsticks get a tenth of the time,
 * spread evenly. */
static tallow_status measure(measurement *m, const attention_case *c, const workload *w,
                             int threads, double seconds) {
    tallow_status status = tallow_attention(&c->params, sizeof c->params); /* warms the code */
    double begin = seconds_now(), now = begin, last = 0;
    while (!status && m->seconds.count < MOST_SAMPLES &&
           (m->seconds.count < FEWEST_REPEATS || now - begin < seconds)) {
        measure_peaks(m, c, w, threads, last / 10);
        peak_evict(threads);
        double start = seconds_now();
        status = tallow_attention(&c->params, sizeof c->params);
        now = seconds_now();
        last = now - start;
        samples_add(&m->seconds, last);
        progress("bench, seconds", (int64_t)(now - begin), (int64_t)seconds);
    }
    progress_end();
    return status;
}

static void summarise(report *r, measurement *m, const attention_case *c, const workload *w) {
    double read = samples_median(&m->read_seconds);
    r->repeats = m->seconds.count;
    r->seconds = samples_median(&m->seconds);
    r->gflops = w->flops / r->seconds * 1e-9;
    r->gbytes = w->bytes / r->seconds * 1e-9;
    r->bf16_peak = c->o.dtype == TALLOW_BF16 && peak_has_bf16();
    r->peak_gflops = samples_median(&m->peak) * 1e-9;
    r->read_gbytes = w->kv_bytes / read * 1e-9;
    r->of_peak = r->gflops / r->peak_gflops;
    r->of_read = read / r->seconds;
    r->memory_bound = w->flops <= MEMORY_BOUND_INTENSITY * w->kv_bytes;
}

static void print_json(const case_options *o, const report *r) {
    json j = {0};
    json_open(&j, NULL, '{');
    shape_json(o, TALLOW_DEVICE_CPU, &j);
    json_string(&j, "level", r->level);
    json_integer(&j, "threads", r->threads);
    json_integer(&j, "repeats", r->repeats);
    json_number(&j, "seconds_median", r->seconds);
    json_number(&j, "gflops", r->gflops);
    json_number(&j, "gbytes_per_second", r->gbytes);
    json_string(&j, "bound", r->memory_bound ? "memory" : "compute");
    json_number(&j, "fraction_of_peak", r->memory_bound ? r->of_read : r->of_peak);
    json_number(&j, "fraction_of_arithmetic_peak", r->of_peak);
    json_number(&j, "fraction_of_read_rate", r->of_read);
    json_string(&j, "peak", r->bf16_peak ? "bf16_dot" : "f32_fma");
    json_number(&j, "peak_gflops", r->peak_gflops);
    json_number(&j, "read_gbytes_per_second", r->read_gbytes);
    json_close(&j, '}');
}

static void print_text(const case_options *o, const report *r) {
    shape_print(o);
    printf("level %s, %d threads, median of %d runs\n", r->level, r->threads, r->repeats);
    printf("  time        %.4g ms\n", 1e3 * r->seconds);
    printf("  arithmetic  %.4g GFLOP/s, %.1f %% of the %s peak of %.4g\n", r->gflops,
           100 * r->of_peak, r->bf16_peak ? "bf16" : "f32", r->peak_gflops);
    printf("  memory      %.4g GB/s, %.1f %% of a plain read at %.4g\n", r->gbytes,
           100 * r->of_read, r->read_gbytes);
    printf("  bound by %s: %.1f %% of what the machine can do\n",
           r->memory_bound ? "memory" : "arithmetic",
           100 * (r->memory_bound ? r->of_read : r->of_peak));
}

/* The level and the threads that the library will use, from its description of the call. */
static void read_plan(report *r, const char *text) {
    text_line line;
    while (next_line(&text, &line)) {
        if (strcmp(line.name, "threads") == 0) r->threads = atoi(line.value);
        if (strcmp(line.name, "level") == 0) {
            snprintf(r->level, sizeof r->level, "%.*s", (int)sizeof r->level - 1, line.value);
        }
    }
}

static tallow_status time_case(report *r, const attention_case *c, const workload *w,
                               double seconds) {
    static measurement m;
    char text[8192];
    tallow_status status =
        tallow_attention_describe(&c->params, sizeof c->params, text, sizeof text);
    if (status) return status;
    read_plan(r, text);
    status = measure(&m, c, w, r->threads, seconds);
    if (!status) summarise(r, &m, c, w);
    return status;
}

static int run(const char *name, const case_options *o, double seconds, bool as_json) {
    attention_case c;
    workload w;
    report r = {0};
    int code = EXIT_DONE;
    case_build_tensors(&c, o, 1);
    if (!workload_measure(&w, &c)) {
        fprintf(stderr, "tallow %s: out of memory\n", name);
        code = EXIT_FAILED;
    } else if (time_case(&r, &c, &w, seconds)) {
        code = command_failed(name);
    } else if (as_json) {
        print_json(&c.o, &r);
    } else {
        print_text(&c.o, &r);
    }
    workload_free(&w);
    case_free(&c);
    return code;
}

/* What the flags of the shape ask for, once the library would take it and memory could hold it. */
static int shaped_call(const char *name, const shape *s, case_options *out) {
    char text[1];
    tallow_attention_params p = shape_params(s);
    if (tallow_attention_describe(&p, sizeof p, text, sizeof text)) return command_failed(name);
    double bytes = 3 * shape_bytes(s); /* the case keeps a copy of its tensors */
    void *room = bytes < 1e15 ? malloc((size_t)bytes) : NULL;
    free(room);
    if (!room) {
        fprintf(stderr, "tallow %s: out of memory: %.3g GB\n", name, bytes * 1e-9);
        return EXIT_FAILED;
    }
    *out = shape_case(s);
    return OPTIONS_OK;
}

/* A row of the problem matrix, as it is there. */
static int named_call(const char *name, const char *row, const shape *s, case_options *out) {
    for (int i = 0; i < NAMED_COUNT; i++) {
        if (strcmp(NAMED[i].name, row) != 0) continue;
        if (!shape_is_default(s)) {
            return options_error(name, "--case says the shape: only --device and --threads may "
                                       "change");
        }
        *out = NAMED[i];
        out->threads = (int32_t)s->threads;
        return OPTIONS_OK;
    }
    return options_error(name, "--case is %s, accepted: a name from --list", row);
}

static int print_names(void) {
    for (int i = 0; i < NAMED_COUNT; i++) puts(NAMED[i].name);
    return EXIT_DONE;
}

int bench_main(int argc, char **argv) {
    double seconds = 3;
    const char *row = NULL;
    bool as_json = false, list = false;
    shape s;
    case_options o;
    option options[SHAPE_OPTIONS + 5] = {0}, *own = options + SHAPE_OPTIONS;
    shape_options(&s, options);
    own[0] = (option){"--case", OPTION_TEXT, &row, "a named call instead of a shape"};
    own[1] = (option){"--list", OPTION_FLAG, &list, "print the names that --case takes"};
    own[2] = (option){"--seconds", OPTION_FLOAT, &seconds, "time to spend measuring", 0, 3600};
    own[3] = (option){"--json", OPTION_FLAG, &as_json, "print one JSON object"};
    const option_help help = {
        argv[0],
        "Times one attention call on random normal data, and puts it beside what this machine can\n"
        "do at best, measured in the same run: multiply-adds in registers, and a plain read of "
        "the\n"
        "same K and V. The caches are emptied before each run and each read. On a GPU: one call\n"
        "after the other, beside a matrix product and a copy; and what a call costs the host.",
        "  tallow bench                                       bf16 causal prefill of 4096 tokens\n"
        "  tallow bench --seqlen 1 --seqlen-k 32k             decode\n"
        "  tallow bench --dtype f32 --head-dim 64 --json\n"
        "  tallow bench --mask window --window-left 1023 --seqlen 16k --threads 1\n"
        "  tallow bench --case decode_paged\n"
        "  tallow bench --case prefill_bf16 --device cuda\n",
        options};
    int code = options_parse(&help, argc, argv);
    if (code != OPTIONS_OK) return code;
    if (list) return print_names();
    code = shape_check(argv[0], &s);
    if (code != OPTIONS_OK) return code;
    code = row ? named_call(argv[0], row, &s, &o) : shaped_call(argv[0], &s, &o);
    if (code != OPTIONS_OK) return code;
    o.workspace = o.no_lse = true; /* the call allocates nothing, and gives what attention needs */
    return (s.device == TALLOW_DEVICE_CUDA ? bench_cuda : run)(argv[0], &o, seconds, as_json);
}
