#include "bench_cuda.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "case_cuda.h"
#include "commands.h"
#include "cuda_gpu.h"
#include "samples.h"
#include "shape.h"
#include "workload.h"

/* At or below this many operations per byte of K and V a call waits for memory: GPUs do a few
 * hundred in bf16, and a decoding step of 8 heads per key head asks for 8. */
static const double MEMORY_BOUND_INTENSITY = 64;

/* A run of calls lasts about this long, so that what starting it costs does not count. */
static const double RUN_SECONDS = 2e-3;

enum { FEWEST_ROUNDS = 5, MOST_CALLS = 1000, HOST_CALLS = 5 };

typedef struct {
    tallow_attention_params params;
    tallow_status status; /* of the first call that failed */
} call;

static void run_call(void *context) {
    call *c = context;
    if (!c->status) c->status = tallow_attention(&c->params, sizeof c->params);
}

/* ---- what the GPU can do at best ---- */

enum { SIDE = 8192, PIECE = 1 << 20, COPY_BYTES = 1 << 29 };

typedef struct {
    gpu_matrices product; /* type of the call; c null: there is no cuBLAS */
    const char *why_none;
    char *from, *to; /* COPY_BYTES each */
} yardsticks;

static void run_product(void *context) { gpu_multiply(&((yardsticks *)context)->product); }

static void run_copy(void *context) {
    yardsticks *y = context;
    gpu_copy(y->to, y->from, COPY_BYTES);
}

/* A matrix of random numbers of size 1 to 2: zeros would let the GPU run faster than work does. */
static void *random_matrix_of(gpu_type type) {
    static uint32_t piece[PIECE];
    const size_t bytes = (size_t)SIDE * SIDE * (type == GPU_BF16 ? 2 : 4);
    uint64_t state = 1;
    for (int i = 0; i < PIECE; i++) {
        uint32_t bits = (uint32_t)case_draw(&state); /* for signs and mantissas */
        piece[i] =
            type == GPU_BF16 ? (bits & 0x807f807f) | 0x3f803f80 : (bits & 0x807fffff) | 0x3f800000;
    }
    char *matrix = gpu_take(bytes);
    for (size_t at = 0; matrix && at < bytes; at += sizeof piece)
        gpu_put(matrix + at, piece, sizeof piece);
    return matrix;
}

static void prepare_yardsticks(yardsticks *y, int32_t dtype) {
    const gpu_type type = dtype == TALLOW_F32 ? GPU_F32 : GPU_BF16;
    *y = (yardsticks){.product = {type, false, SIDE, SIDE, SIDE, .batch = 1},
                      .why_none = gpu_blas_open(),
                      .from = gpu_take(COPY_BYTES),
                      .to = gpu_take(COPY_BYTES)};
    if (y->why_none) return;
    y->product.a = random_matrix_of(type);
    y->product.b = random_matrix_of(type);
    y->product.c = gpu_take((size_t)SIDE * SIDE * sizeof(float));
    run_product(y); /* cuBLAS prepares itself */
    gpu_wait();
}

/* ---- measuring ---- */

/* Taken in turns. */
typedef struct {
    samples seconds, host, product, copy;
    int calls; /* per sample of seconds */
} measurement;

/* Calls that make up one run; the call is warm after this. */
static int calls_of(call *c) {
    enum { SOME = 10 };
    gpu_seconds(run_call, c, SOME);
    double each = gpu_seconds(run_call, c, SOME) / SOME;
    return (int)fmin(fmax(ceil(RUN_SECONDS / fmax(each, 1e-9)), 1), MOST_CALLS);
}

/* What a call costs this thread while the GPU has nothing else to do. */
static double host_seconds(call *c) {
    gpu_wait();
    double start = seconds_now();
    run_call(c);
    return seconds_now() - start;
}

static void measure(measurement *m, call *c, yardsticks *y, double seconds) {
    double begin = seconds_now();
    m->calls = calls_of(c);
    for (int round = 0; !c->status && !gpu_error() && round < MOST_SAMPLES &&
                        (round < FEWEST_ROUNDS || seconds_now() - begin < seconds);
         round++) {
        for (int i = 0; i < HOST_CALLS; i++) samples_add(&m->host, host_seconds(c));
        gpu_wait();
        samples_add(&m->seconds, gpu_seconds(run_call, c, m->calls) / m->calls);
        samples_add(&m->copy, gpu_seconds(run_copy, y, 1));
        if (!y->why_none) samples_add(&m->product, gpu_seconds(run_product, y, 1));
        progress("bench, seconds", (int64_t)(seconds_now() - begin), (int64_t)seconds);
    }
    progress_end();
}

/* ---- reporting ---- */

typedef struct {
    char gpu[96], kernel[8192]; /* kernel: the library's description of the call */
    int driver, rounds, calls;
    bool memory_bound;
    const char *peak;
    double seconds, host, gflops, gbytes, peak_gflops, copy_gbytes, of_peak, of_copy;
} report;

static void summarise(report *r, measurement *m, const workload *w, const yardsticks *y) {
    r->rounds = m->seconds.count;
    r->calls = m->calls;
    r->seconds = samples_median(&m->seconds);
    r->host = samples_median(&m->host);
    r->gflops = w->flops / r->seconds * 1e-9;
    r->gbytes = w->bytes / r->seconds * 1e-9;
    r->peak = y->why_none ? NULL : y->product.type == GPU_F32 ? "f32_product" : "bf16_product";
    r->peak_gflops =
        y->why_none ? NAN : 2.0 * SIDE * SIDE * SIDE / samples_median(&m->product) * 1e-9;
    r->copy_gbytes = 2.0 * COPY_BYTES / samples_median(&m->copy) * 1e-9;
    r->of_peak = r->gflops / r->peak_gflops;
    r->of_copy = r->gbytes / r->copy_gbytes;
    r->memory_bound = w->flops <= MEMORY_BOUND_INTENSITY * w->kv_bytes;
}

static void print_json(const case_options *o, const report *r) {
    const char *text = r->kernel;
    text_line line;
    json j = {0};
    json_open(&j, NULL, '{');
    shape_json(o, TALLOW_DEVICE_CUDA, &j);
    json_string(&j, "gpu", r->gpu);
    json_integer(&j, "driver", r->driver);
    json_integer(&j, "repeats", r->rounds);
    json_integer(&j, "calls_per_repeat", r->calls);
    json_number(&j, "seconds_median", r->seconds);
    json_number(&j, "host_microseconds", 1e6 * r->host);
    json_number(&j, "gflops", r->gflops);
    json_number(&j, "gbytes_per_second", r->gbytes);
    json_string(&j, "bound", r->memory_bound ? "memory" : "compute");
    json_number(&j, "fraction_of_peak", r->memory_bound ? r->of_copy : r->of_peak);
    json_number(&j, "fraction_of_arithmetic_peak", r->of_peak);
    json_number(&j, "fraction_of_copy_rate", r->of_copy);
    json_string(&j, "peak", r->peak);
    json_number(&j, "peak_gflops", r->peak_gflops);
    json_number(&j, "copy_gbytes_per_second", r->copy_gbytes);
    json_open(&j, "kernel", '{');
    while (next_line(&text, &line)) json_line(&j, &line);
    json_close(&j, '}');
    json_close(&j, '}');
}

static void print_text(const case_options *o, const report *r, const char *why_none) {
    const char *text = r->kernel;
    text_line line;
    shape_print(o);
    printf("%s, CUDA %d, median of %d runs of %d calls\n", r->gpu, r->driver, r->rounds, r->calls);
    printf("  time        %.4g us on the GPU, %.3g us on the host\n", 1e6 * r->seconds,
           1e6 * r->host);
    if (why_none) {
        printf("  arithmetic  %.4g GFLOP/s; no peak: %s\n", r->gflops, why_none);
    } else {
        printf("  arithmetic  %.4g GFLOP/s, %.1f %% of the %s at %.4g\n", r->gflops,
               100 * r->of_peak, r->peak, r->peak_gflops);
    }
    printf("  memory      %.4g GB/s, %.1f %% of a copy at %.4g\n", r->gbytes, 100 * r->of_copy,
           r->copy_gbytes);
    while (next_line(&text, &line)) printf("  %-11s %s\n", line.name, line.value);
}

static tallow_status time_call(report *r, call *c, const workload *w, double seconds,
                               const char **why_none) {
    static measurement m;
    yardsticks y;
    tallow_status status =
        tallow_attention_describe(&c->params, sizeof c->params, r->kernel, sizeof r->kernel);
    if (status) return status;
    prepare_yardsticks(&y, c->params.q.dtype);
    *why_none = y.why_none;
    measure(&m, c, &y, seconds);
    if (!c->status && !gpu_error()) summarise(r, &m, w, &y);
    return c->status;
}

static int failed(const char *name, const char *why) {
    fprintf(stderr, "tallow %s: %s\n", name, why);
    return EXIT_FAILED;
}

/* The process ends with the GPU's memory in use: the driver frees it. */
static int time_case(const char *name, attention_case *built, const workload *w, double seconds,
                     bool as_json) {
    static report r;
    const char *why_none = NULL;
    uint8_t *copies[CASE_BLOCKS];
    case_device device;
    call c = {.status = TALLOW_OK};
    char why[256];
    if (!case_cuda_open(&device, why, sizeof why)) return failed(name, why);
    if (!gpu_open()) return failed(name, gpu_error());
    gpu_describe(r.gpu, sizeof r.gpu, &r.driver);
    if (case_upload(built, &device, &c.params, copies)) return command_failed(name);
    if (time_call(&r, &c, w, seconds, &why_none)) return command_failed(name);
    if (gpu_error()) return failed(name, gpu_error());
    if (as_json) {
        print_json(&built->o, &r);
    } else {
        print_text(&built->o, &r, why_none);
    }
    return EXIT_DONE;
}

int bench_cuda(const char *name, const case_options *o, double seconds, bool as_json) {
    attention_case c;
    workload w;
    int code;
    case_build_tensors(&c, o, 1);
    if (workload_measure(&w, &c)) {
        code = time_case(name, &c, &w, seconds, as_json);
    } else {
        code = failed(name, "out of memory");
    }
    workload_free(&w);
    case_free(&c);
    return code;
}
