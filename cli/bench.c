#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "commands.h"
#include "peaks.h"
#include "shape.h"

/* At or below this many operations per byte of K and V a call waits for memory, on any CPU of
 * today: one query of 8 heads per key head does 8 in bf16, a thousand queries do thousands. */
static const double MEMORY_BOUND_INTENSITY = 16;

enum { FEWEST_REPEATS = 3, MOST_REPEATS = 2000 };

/* One call's memory. K and V exist in several copies, used in turn, so that each run reads them
 * from memory and not from the cache the run before left behind. */
typedef struct {
    void *q, *out, *workspace;
    char *kv;
    size_t k_bytes, kv_bytes;
    int copies, turn;
    byte_range *ranges; /* room for what peak_read takes */
} buffers;

typedef struct {
    double value[MOST_REPEATS];
    int count;
} samples;

/* Runs of the call, and samples of the yardsticks taken between them. */
typedef struct {
    samples seconds, peak, read_seconds;
} measurement;

/* What a run costs, from its shape. */
typedef struct {
    double flops, bytes, kv_bytes;
    int64_t first_key; /* keys before it are seen by no query */
} cost;

typedef struct {
    char level[64];
    int threads;
    bool memory_bound, bf16_peak;
    double seconds, gflops, gbytes, peak_gflops, read_gbytes, of_peak, of_read;
    int repeats;
} report;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static size_t element_size(const tallow_tensor *t) { return t->dtype == TALLOW_F32 ? 4 : 2; }

/* In floating point: flags can ask for more than any integer counts. */
static double bytes_wanted(const tallow_tensor *t) {
    double elements = 1;
    for (int i = 0; i < 4; i++) elements *= (double)t->shape[i];
    return elements * (double)element_size(t);
}

static size_t tensor_bytes(const tallow_tensor *t) { return (size_t)bytes_wanted(t); }

/* (query, key) pairs that are computed; by convention a causal square counts as exactly half. */
static double visible_pairs(const shape *s) {
    double sq = (double)s->seqlen, sk = (double)s->seqlen_k, pairs = 0;
    if (s->mask == TALLOW_MASK_NONE) return sq * sk;
    if (s->mask == TALLOW_MASK_CAUSAL) return sq <= sk ? sq * sk - sq * sq / 2 : sk * sk / 2;
    int64_t left = s->window_left < 0 ? INT64_MAX / 4 : s->window_left;
    int64_t right = s->window_right < 0 ? INT64_MAX / 4 : s->window_right;
    for (int64_t i = 0; i < s->seqlen; i++) {
        int64_t center = i + s->seqlen_k - s->seqlen;
        int64_t first = larger(0, center - left), last = smaller(s->seqlen_k - 1, center + right);
        pairs += (double)larger(0, last - first + 1);
    }
    return pairs;
}

static cost call_cost(const shape *s, const tallow_attention_params *p) {
    cost c = {0};
    double pairs = visible_pairs(s) * (double)(s->batch * s->heads);
    c.flops = 2 * pairs * (double)(s->head_dim + s->head_dim_v);
    if (s->mask == TALLOW_MASK_WINDOW && s->window_left >= 0) {
        c.first_key = larger(0, s->seqlen_k - s->seqlen - s->window_left);
    }
    double share = (double)(s->seqlen_k - c.first_key) / (double)s->seqlen_k;
    c.kv_bytes = share * (bytes_wanted(&p->k) + bytes_wanted(&p->v));
    c.bytes = c.kv_bytes + bytes_wanted(&p->q) + bytes_wanted(&p->out);
    return c;
}

static uint64_t next_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* 16 bits of a normal number of moderate size; f16 keeps its normal range only. */
static uint16_t to_half(float x, int32_t dtype) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (dtype == TALLOW_BF16) return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude < 0x38800000) return (uint16_t)sign;
    return (uint16_t)(sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

/* Standard normal numbers, drawn from a table of 65536 of them. */
static void fill_normal(void *data, size_t bytes, int32_t dtype, uint64_t seed) {
    enum { TABLE = 65536 };
    static float table[TABLE];
    uint64_t random = 0;
    for (int i = 0; i < TABLE; i++) {
        double u = (double)(next_random(&seed) >> 11) * 0x1p-53, v = (double)i / TABLE;
        table[i] = (float)(sqrt(-2 * log(1 - u)) * cos(6.283185307179586 * v));
    }
    size_t count = bytes / (dtype == TALLOW_F32 ? 4 : 2);
    for (size_t i = 0; i < count; i++) {
        random = i % 4 ? random >> 16 : next_random(&seed);
        float x = table[random & (TABLE - 1)];
        if (dtype == TALLOW_F32) {
            ((float *)data)[i] = x;
        } else {
            ((uint16_t *)data)[i] = to_half(x, dtype);
        }
    }
}

/* Copies of K and V that together outgrow the caches of all cores. */
static int copies_needed(size_t kv_bytes, int threads) {
    double level3 = 32 << 20;
#ifdef _SC_LEVEL3_CACHE_SIZE
    if (sysconf(_SC_LEVEL3_CACHE_SIZE) > 0) level3 = (double)sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    double wanted = 2 * level3 * threads;
    if (wanted > 1 << 30) wanted = 1 << 30;
    double copies = ceil(wanted / (double)kv_bytes);
    return copies < 3 ? 3 : copies > 100000 ? 100000 : (int)copies;
}

static void *allocate(size_t bytes) { return aligned_alloc(256, (bytes + 255) / 256 * 256 + 256); }

static void free_buffers(buffers *b) {
    free(b->q);
    free(b->out);
    free(b->workspace);
    free(b->kv);
    free(b->ranges);
}

/* Allocates and fills; false when memory ran out. */
static bool make_buffers(buffers *b, tallow_attention_params *p, size_t workspace, int threads) {
    if (bytes_wanted(&p->q) + bytes_wanted(&p->k) + bytes_wanted(&p->v) > 1e14) return false;
    size_t q_bytes = tensor_bytes(&p->q), v_bytes = tensor_bytes(&p->v);
    b->k_bytes = (tensor_bytes(&p->k) + 255) / 256 * 256;
    b->kv_bytes = b->k_bytes + (v_bytes + 255) / 256 * 256;
    b->copies = copies_needed(b->kv_bytes, threads);
    b->q = allocate(q_bytes);
    b->out = allocate(tensor_bytes(&p->out));
    b->workspace = allocate(workspace);
    b->kv = allocate(b->kv_bytes * (size_t)b->copies);
    b->ranges = calloc((size_t)(2 * p->k.shape[0]), sizeof *b->ranges);
    if (!b->q || !b->out || !b->workspace || !b->kv || !b->ranges) return false;
    fill_normal(b->q, q_bytes, p->q.dtype, 1);
    fill_normal(b->kv, b->kv_bytes, p->k.dtype, 2);
    for (int i = 1; i < b->copies; i++) {
        memcpy(b->kv + (size_t)i * b->kv_bytes, b->kv, b->kv_bytes);
    }
    p->q.data = b->q;
    p->out.data = b->out;
    p->workspace = b->workspace;
    p->workspace_size = workspace;
    return true;
}

static void use_next_copy(buffers *b, tallow_attention_params *p) {
    char *copy = b->kv + (size_t)(b->turn++ % b->copies) * b->kv_bytes;
    p->k.data = copy;
    p->v.data = copy + b->k_bytes;
}

/* Seconds to read, in a plain loop, the rows of K and V that the call reads. */
static double read_seconds(const tallow_attention_params *p, const cost *c, byte_range *ranges,
                           int threads) {
    const tallow_tensor *tensors[2] = {&p->k, &p->v};
    int count = 0;
    for (int t = 0; t < 2; t++) {
        size_t batch_bytes = tensor_bytes(tensors[t]) / (size_t)p->k.shape[0];
        size_t row_bytes = batch_bytes / (size_t)p->k.shape[1];
        size_t skipped = row_bytes * (size_t)c->first_key;
        for (int64_t b = 0; b < p->k.shape[0]; b++) {
            const char *rows = (const char *)tensors[t]->data + (size_t)b * batch_bytes;
            ranges[count++] = (byte_range){rows + skipped, batch_bytes - skipped};
        }
    }
    return peak_read(ranges, count, threads);
}

static void add_sample(samples *s, double value) {
    if (s->count < MOST_REPEATS) s->value[s->count++] = value;
}

/* Samples the yardsticks for about `seconds`. */
static void measure_peaks(measurement *m, tallow_attention_params *p, buffers *b, const cost *c,
                          int threads, double seconds) {
    double begin = seconds_now();
    do {
        add_sample(&m->peak, p->q.dtype == TALLOW_BF16 ? peak_bf16(threads) : peak_f32(threads));
        use_next_copy(b, p);
        add_sample(&m->read_seconds, read_seconds(p, c, b->ranges, threads));
    } while (seconds_now() - begin < seconds);
}

/* Runs the call for `seconds`; the yardsticks get a tenth of the time, spread evenly. */
static tallow_status measure(measurement *m, tallow_attention_params *p, buffers *b, const cost *c,
                             int threads, double seconds) {
    use_next_copy(b, p);
    tallow_status status = tallow_attention(p, sizeof *p); /* warms the code, touches q and out */
    double begin = seconds_now(), now = begin, last = 0;
    while (!status && m->seconds.count < MOST_REPEATS &&
           (m->seconds.count < FEWEST_REPEATS || now - begin < seconds)) {
        measure_peaks(m, p, b, c, threads, last / 10);
        use_next_copy(b, p);
        double start = seconds_now();
        status = tallow_attention(p, sizeof *p);
        now = seconds_now();
        last = now - start;
        add_sample(&m->seconds, last);
        progress("bench, seconds", (int64_t)(now - begin), (int64_t)seconds);
    }
    progress_end();
    return status;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(samples *s) {
    qsort(s->value, (size_t)s->count, sizeof *s->value, ascending);
    return (s->value[(s->count - 1) / 2] + s->value[s->count / 2]) / 2;
}

static void summarise(report *r, measurement *m, const cost *c) {
    double read = median(&m->read_seconds);
    r->repeats = m->seconds.count;
    r->seconds = median(&m->seconds);
    r->gflops = c->flops / r->seconds * 1e-9;
    r->gbytes = c->bytes / r->seconds * 1e-9;
    r->peak_gflops = median(&m->peak) * 1e-9;
    r->read_gbytes = c->kv_bytes / read * 1e-9;
    r->of_peak = r->gflops / r->peak_gflops;
    r->of_read = read / r->seconds;
    r->memory_bound = c->flops / c->kv_bytes <= MEMORY_BOUND_INTENSITY;
}

static void print_json(const shape *s, const report *r) {
    json j = {0};
    json_open(&j, NULL, '{');
    shape_json(s, &j);
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

static void print_text(const shape *s, const report *r) {
    shape_print(s);
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
        if (strcmp(line.name, "level") == 0) {
            snprintf(r->level, sizeof r->level, "%.*s", (int)sizeof r->level - 1, line.value);
        }
        if (strcmp(line.name, "threads") == 0) r->threads = atoi(line.value);
    }
}

static int run(const char *name, const shape *s, double seconds, bool as_json) {
    static measurement m;
    report r = {0};
    char text[8192];
    size_t workspace;
    tallow_attention_params p = shape_params(s);
    if (tallow_attention_describe(&p, sizeof p, text, sizeof text) ||
        tallow_attention_workspace(&p, sizeof p, &workspace)) {
        return command_failed(name);
    }
    read_plan(&r, text);
    const cost c = call_cost(s, &p);

    buffers b = {0};
    if (!make_buffers(&b, &p, workspace, r.threads)) {
        fprintf(stderr, "tallow %s: out of memory\n", name);
    } else if (measure(&m, &p, &b, &c, r.threads, seconds)) {
        command_failed(name);
    } else {
        r.bf16_peak = p.q.dtype == TALLOW_BF16 && peak_has_bf16();
        summarise(&r, &m, &c);
        as_json ? print_json(s, &r) : print_text(s, &r);
    }
    free_buffers(&b);
    return r.repeats ? EXIT_DONE : EXIT_FAILED;
}

int bench_main(int argc, char **argv) {
    double seconds = 3;
    bool as_json = false;
    shape s;
    option options[SHAPE_OPTIONS + 3] = {0};
    shape_options(&s, options);
    options[SHAPE_OPTIONS] =
        (option){"--seconds", OPTION_FLOAT, &seconds, "time to spend measuring", 0, 3600};
    options[SHAPE_OPTIONS + 1] = (option){"--json", OPTION_FLAG, &as_json, "print one JSON object"};
    const option_help help = {
        argv[0],
        "Times one attention call on random normal data, and puts it beside what this machine can\n"
        "do at best, measured in the same run: multiply-adds in registers, and a plain read of "
        "the\n"
        "same K and V. K and V come from memory, not from a cache that a run before warmed.",
        "  tallow bench                                       bf16 causal prefill of 4096 tokens\n"
        "  tallow bench --seqlen 1 --seqlen-k 32k             decode\n"
        "  tallow bench --dtype f32 --head-dim 64 --json\n"
        "  tallow bench --mask window --window-left 1023 --seqlen 16k --threads 1\n",
        options};
    int code = options_parse(&help, argc, argv);
    if (code == OPTIONS_OK) code = shape_check(argv[0], &s);
    return code == OPTIONS_OK ? run(argv[0], &s, seconds, as_json) : code;
}
