/* Every named problem and a run of random ones on a GPU, against the f64 reference; what a call
 * refuses; rotary and merge beside the CPU's; a captured graph that is replayed with other data.
 *
 *   test_cuda [seed] [random cases] [share] [shares]
 *
 * Of `shares` processes each takes its share of the cases, and the first one the rest too. */
#define _POSIX_C_SOURCE 200809L

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "case_cuda.h"
#include "convert.h"
#include "cuda_driver.h"
#include "expect.h"

enum { RANDOM_CASES = 150, SKIPPED = 77 };

static case_device gpu;
static double ratios; /* sum of errors over the plain computation's */
static int ratio_count;

static void run_case(attention_case *c, const char *repeat) {
    case_result result;
    tallow_status status = case_run(c, &gpu);
    EXPECT(status == TALLOW_OK, "%s: %s", repeat, tallow_last_error());
    if (status == TALLOW_OK) {
        case_check(c, &result);
        EXPECT(result.ok, "%s: %s", repeat, result.text);
        ratios += result.ratio;
        ratio_count += result.ratio > 0;
    }
    case_free(c);
}

static void run_cases(uint64_t seed, int count, int share, int shares) {
    attention_case c;
    char repeat[160];
    for (int i = share; i < case_count(); i += shares) {
        snprintf(repeat, sizeof repeat, "tallow check --device cuda --case %s --seed %" PRIu64,
                 case_at(i)->name, seed);
        case_build(&c, case_at(i), seed);
        run_case(&c, repeat);
    }
    for (int i = share; i < count; i += shares) {
        snprintf(repeat, sizeof repeat, "tallow check --device cuda --seed %" PRIu64 " --index %d",
                 seed, i);
        case_build_random(&c, seed, (uint64_t)i);
        run_case(&c, repeat);
    }
    printf("error %.3f of the plain computation's, over %d cases\n",
           ratio_count ? ratios / ratio_count : 0, ratio_count);
    EXPECT(ratios <= 1.2 * ratio_count, "mean ratio %.3f", ratios / ratio_count);
}

/* ---- other kernels than the GPU's own choice ---- */

typedef struct {
    const char *name;
    int family, multiprocessors; /* 0: those of the GPU */
    size_t shared_bytes;
    int32_t dtype; /* of the cases; 0: any */
} pretence;

static bool is_served(const pretence *as, const case_options *o) {
    if (as->dtype && (o->dtype != as->dtype || o->head_dim > 256 || o->head_dim_v > 256))
        return false;
    return as->family || o->dtype != TALLOW_F32;
}

/* The named cases on a GPU that passes for another. */
static void run_as(const pretence *as, uint64_t seed, int share, int shares) {
    cuda_scope scope;
    attention_case c;
    EXPECT(!tallow_cuda_enter(&scope, NULL, NULL, NULL), "%s", tallow_last_error());
    cuda_gpu *known = (cuda_gpu *)(uintptr_t)scope.gpu; /* the library's own */
    const cuda_gpu before = *known;
    if (as->family) known->family = as->family;
    if (as->multiprocessors) known->multiprocessors = as->multiprocessors;
    known->always_pairs = as->multiprocessors == 2;
    if (as->shared_bytes) known->shared_bytes = as->shared_bytes;
    for (int i = share; i < case_count(); i += shares) {
        char name[96];
        if (!is_served(as, case_at(i))) continue;
        snprintf(name, sizeof name, "%s: %s", as->name, case_at(i)->name);
        case_build(&c, case_at(i), seed);
        run_case(&c, name);
    }
    *known = before;
    tallow_cuda_leave(&scope);
}

static void run_pretences(uint64_t seed, int share, int shares) {
    static const pretence all[] = {
        {"as Turing", 75, 0, 64 * 1024, TALLOW_F16},
        {"as Ampere", 80, 0, 0, 0},
        {"on one multiprocessor", 0, 1, 0, 0}, /* one thread block has all tiles */
        {"on two", 0, 2, 0, 0},                /* a pair of thread blocks */
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) run_as(&all[i], seed, share, shares);
}

/* ---- what a call refuses ---- */

static tallow_tensor f32(void *data, int64_t a, int64_t b, int64_t c, int64_t d) {
    return (tallow_tensor){.data = data, .shape = {a, b, c, d}, .dtype = TALLOW_F32};
}

static void *device_copy(const void *host, size_t bytes) {
    return gpu.upload(gpu.context, host, bytes);
}

static void expect_refusal(tallow_attention_params *p, tallow_status expected, const char *words) {
    tallow_status status = tallow_attention(p, sizeof *p);
    EXPECT(status == expected, "%s, expected %s: %s", tallow_status_name(status),
           tallow_status_name(expected), tallow_last_error());
    EXPECT(strstr(tallow_last_error(), words), "\"%s\" lacks %s", tallow_last_error(), words);
}

static void run_refusals(void) {
    enum { N = 512, D = 64 };
    static float host[N * D];
    char needed[32];
    size_t bytes = 0;
    float *q = device_copy(host, sizeof host), *k = device_copy(host, sizeof host);
    float *v = device_copy(host, sizeof host), *out = device_copy(host, sizeof host);
    tallow_attention_params p = {.q = f32(q, 1, 1, 1, D),
                                 .k = f32(k, 1, N, 1, D),
                                 .v = f32(v, 1, N, 1, D),
                                 .out = f32(out, 1, 1, 1, D),
                                 .num_splits = 2,
                                 .device = TALLOW_DEVICE_CUDA};
    EXPECT(!tallow_attention_workspace(&p, sizeof p, &bytes) && bytes > 0, "%s",
           tallow_last_error());
    snprintf(needed, sizeof needed, "%zu bytes", bytes);
    expect_refusal(&p, TALLOW_WORKSPACE_TOO_SMALL, needed);
    float *scratch = device_copy(host, bytes);
    p.workspace = scratch;
    p.workspace_size = bytes - 1;
    expect_refusal(&p, TALLOW_WORKSPACE_TOO_SMALL, needed);
    p.workspace_size = bytes;
    EXPECT(!tallow_attention(&p, sizeof p), "%s", tallow_last_error());
    p.q.data = host;
    expect_refusal(&p, TALLOW_INVALID_ARGUMENT, "q.data");
    p.q.data = q;
    p.v.data = host;
    expect_refusal(&p, TALLOW_INVALID_ARGUMENT, "v.data");
    p.v.data = v;
    p.q.dtype = p.k.dtype = p.v.dtype = p.out.dtype = TALLOW_F16;
    p.k.shape[3] = p.q.shape[3] = 24; /* a kernel that no case has left in memory */
    const char *set = getenv("TALLOW_CACHE_DIR");
    char *folder = set ? strdup(set) : NULL;
    setenv("TALLOW_CACHE_DIR", "/proc/nowhere", 1);
    setenv("TALLOW_NO_COMPILE", "1", 1);
    expect_refusal(&p, TALLOW_NO_COMPILER, "head_dim=24 head_dim_v=64");
    unsetenv("TALLOW_NO_COMPILE");
    EXPECT(!tallow_attention(&p, sizeof p), "%s", tallow_last_error());
    if (folder)
        setenv("TALLOW_CACHE_DIR", folder, 1);
    else
        unsetenv("TALLOW_CACHE_DIR");
    free(folder);
    gpu.download(gpu.context, host, q, sizeof host);
    gpu.download(gpu.context, host, k, sizeof host);
    gpu.download(gpu.context, host, v, sizeof host);
    gpu.download(gpu.context, host, out, sizeof host);
    gpu.download(gpu.context, host, scratch, bytes);
}

/* ---- rotary and merge ---- */

static void fill(float *x, int n, uint64_t seed) {
    for (int i = 0; i < n; i++) x[i] = (float)((double)(case_draw(&seed) >> 11) * 0x1p-53 * 4 - 2);
}

static double farthest(const float *a, const float *b, int n) {
    double most = 0;
    for (int i = 0; i < n; i++) {
        double far = a[i] > b[i] ? a[i] - b[i] : b[i] - a[i];
        if (!(far <= most)) most = far;
    }
    return most;
}

static void run_rotary(int64_t dim, int32_t pairing, bool in_place) {
    enum { TOKENS = 2 * 37, HEADS = 3 };
    const int n = TOKENS * HEADS * (int)dim;
    const size_t bytes = (size_t)n * sizeof(float);
    float *host = malloc(bytes), *expected = malloc(bytes);
    if (!host || !expected) abort();
    fill(host, n, 7);
    int32_t offsets[2] = {1 << 20, 3};
    tallow_rotary_params p = {.x = f32(host, 2, 37, HEADS, dim),
                              .out = f32(expected, 2, 37, HEADS, dim),
                              .offset = {.data = offsets, .shape = {2}, .dtype = TALLOW_I32},
                              .rotary = {.pairing = pairing, .rotary_dim = dim - 2}};
    EXPECT(!tallow_rotary(&p, sizeof p), "%s", tallow_last_error());
    p.x.data = device_copy(host, bytes);
    p.out.data = in_place ? p.x.data : device_copy(host, bytes);
    p.offset.data = device_copy(offsets, sizeof offsets);
    p.device = TALLOW_DEVICE_CUDA;
    EXPECT(!tallow_rotary(&p, sizeof p), "%s", tallow_last_error());
    gpu.download(gpu.context, offsets, p.offset.data, sizeof offsets);
    if (!in_place) {
        float *unchanged = malloc(bytes);
        if (!unchanged) abort();
        gpu.download(gpu.context, unchanged, p.x.data, bytes);
        EXPECT(!memcmp(unchanged, host, bytes), "x changed");
        free(unchanged);
    }
    gpu.download(gpu.context, host, p.out.data, bytes);
    EXPECT(farthest(host, expected, n) < 2e-6, "rotary of %d: off by %g", (int)dim,
           farthest(host, expected, n));
    free(host);
    free(expected);
}

static void run_merge(void) {
    enum { ROWS = 2 * 19 * 3, D = 40, N = ROWS * D };
    static float a[N], b[N], expected[N], lse[3][ROWS], lse_expected[ROWS];
    fill(a, N, 1);
    fill(b, N, 2);
    fill(lse[0], ROWS, 3);
    fill(lse[1], ROWS, 4);
    tallow_merge_params p = {.out_a = f32(a, 2, 19, 3, D),
                             .lse_a = f32(lse[0], 2, 3, 19, 0),
                             .out_b = f32(b, 2, 19, 3, D),
                             .lse_b = f32(lse[1], 2, 3, 19, 0),
                             .out = f32(expected, 2, 19, 3, D),
                             .lse = f32(lse_expected, 2, 3, 19, 0)};
    EXPECT(!tallow_merge(&p, sizeof p), "%s", tallow_last_error());
    p.out_a.data = p.out.data = device_copy(a, sizeof a);
    p.lse_a.data = p.lse.data = device_copy(lse[0], sizeof lse[0]);
    p.out_b.data = device_copy(b, sizeof b);
    p.lse_b.data = device_copy(lse[1], sizeof lse[1]);
    p.device = TALLOW_DEVICE_CUDA;
    EXPECT(!tallow_merge(&p, sizeof p), "%s", tallow_last_error());
    gpu.download(gpu.context, a, p.out.data, sizeof a);
    gpu.download(gpu.context, lse[2], p.lse.data, sizeof lse[2]);
    gpu.download(gpu.context, b, p.out_b.data, sizeof b);
    gpu.download(gpu.context, lse[1], p.lse_b.data, sizeof lse[1]);
    EXPECT(farthest(a, expected, N) < 2e-6, "merged out: off by %g", farthest(a, expected, N));
    EXPECT(farthest(lse[2], lse_expected, ROWS) < 2e-6, "merged lse: off by %g",
           farthest(lse[2], lse_expected, ROWS));
}

/* ---- packed ---- */

/* More sequences than a warp has lanes, some of them empty: the same numbers as on the CPU. */
static void run_many_sequences(void) {
    enum { BATCH = 70, HEADS = 4, HEADS_KV = 2, DIM = 64 };
    int32_t starts[BATCH + 1] = {0};
    for (int b = 0; b < BATCH; b++)
        starts[b + 1] = starts[b] + (b * 37 % 150 < 20 ? 0 : b * 37 % 150);
    const int rows = starts[BATCH], n = rows * HEADS * DIM, n_kv = rows * HEADS_KV * DIM;
    float *host = malloc((size_t)n * sizeof *host),
          *expected = malloc((size_t)n * sizeof *expected);
    uint16_t *half = malloc((size_t)n * sizeof *half);
    if (!host || !expected || !half) abort();
    fill(host, n, 11);
    for (int i = 0; i < n; i++) half[i] = tallow_f32_to_f16(host[i]);
    const tallow_tensor q = {.data = half, .shape = {rows, HEADS, DIM}, .dtype = TALLOW_F16};
    const tallow_tensor k = {.data = half, .shape = {rows, HEADS_KV, DIM}, .dtype = TALLOW_F16};
    const tallow_tensor cu = {.data = starts, .shape = {BATCH + 1}, .dtype = TALLOW_I32};
    tallow_attention_params p = {
        .q = q,
        .k = k,
        .v = k,
        .cu_seqlens_q = cu,
        .cu_seqlens_k = cu,
        .out = {.data = expected, .shape = {rows, HEADS, DIM}, .dtype = TALLOW_F32},
        .max_seqlen_q = 150,
        .max_seqlen_k = 150,
        .mask = TALLOW_MASK_CAUSAL};
    EXPECT(!tallow_attention(&p, sizeof p), "%s", tallow_last_error());
    p.q.data = device_copy(half, (size_t)n * sizeof *half);
    p.k.data = p.v.data = device_copy(half, (size_t)n_kv * sizeof *half);
    p.cu_seqlens_q.data = p.cu_seqlens_k.data = device_copy(starts, sizeof starts);
    p.out.data = device_copy(host, (size_t)n * sizeof *host);
    p.device = TALLOW_DEVICE_CUDA;
    EXPECT(!tallow_attention_workspace(&p, sizeof p, &p.workspace_size), "%s", tallow_last_error());
    if (p.workspace_size) p.workspace = device_copy(host, p.workspace_size);
    EXPECT(!tallow_attention(&p, sizeof p), "%s", tallow_last_error());
    gpu.download(gpu.context, host, p.out.data, (size_t)n * sizeof *host);
    EXPECT(farthest(host, expected, n) < 2e-3, "packed: off by %g", farthest(host, expected, n));
    free(host);
    free(expected);
    free(half);
}

/* ---- counted tiles ---- */

/* Two thread blocks that count the tiles they take, in memory that holds anything, and then in what
 * the first call has left there. */
static void run_counted(void) {
    enum { ROWS = 1536, DIM = 64, N = ROWS * DIM };
    static float host[N], expected[N], again[N];
    static uint16_t half[N];
    cuda_scope scope;
    EXPECT(!tallow_cuda_enter(&scope, NULL, NULL, NULL), "%s", tallow_last_error());
    cuda_gpu *known = (cuda_gpu *)(uintptr_t)scope.gpu; /* the library's own */
    const cuda_gpu before = *known;
    fill(host, N, 12);
    for (int i = 0; i < N; i++) half[i] = tallow_f32_to_f16(host[i]);
    const tallow_tensor q = {.data = half, .shape = {1, ROWS, 1, DIM}, .dtype = TALLOW_F16};
    tallow_attention_params p = {
        .q = q, .k = q, .v = q, .out = f32(expected, 1, ROWS, 1, DIM), .mask = TALLOW_MASK_CAUSAL};
    EXPECT(!tallow_attention(&p, sizeof p), "%s", tallow_last_error());
    p.q.data = p.k.data = p.v.data = device_copy(half, sizeof half);
    p.out.data = device_copy(host, sizeof host);
    p.device = TALLOW_DEVICE_CUDA;
    known->multiprocessors = 2;
    EXPECT(!tallow_attention_workspace(&p, sizeof p, &p.workspace_size), "%s", tallow_last_error());
    EXPECT(before.capability != 90 || p.workspace_size > 0, "tiles are not counted");
    if (p.workspace_size) p.workspace = device_copy(host, p.workspace_size);
    EXPECT(!tallow_attention(&p, sizeof p), "%s", tallow_last_error());
    gpu.download(gpu.context, host, p.out.data, sizeof host);
    EXPECT(farthest(host, expected, N) < 2e-3, "counted: off by %g", farthest(host, expected, N));
    p.out.data = device_copy(again, sizeof again);
    EXPECT(!tallow_attention(&p, sizeof p), "%s", tallow_last_error());
    gpu.download(gpu.context, again, p.out.data, sizeof again);
    EXPECT(!memcmp(again, host, sizeof again), "counted again: other bits");
    *known = before;
    tallow_cuda_leave(&scope);
}

/* ---- capture ---- */

static void entry(const char *name, void *pointer) {
    void *function = case_cuda_function(name);
    memcpy(pointer, &function, sizeof function);
}

enum { KEYS = 700, WIDTH = 64 };

/* The answer of the CPU for the first `used` keys. */
static void expect_attention(const float *q, const float *k, const float *v, int32_t used,
                             const float *got, const char *when) {
    float expected[WIDTH];
    tallow_attention_params p = {.q = f32((void *)(uintptr_t)q, 1, 1, 1, WIDTH),
                                 .k = f32((void *)(uintptr_t)k, 1, KEYS, 1, WIDTH),
                                 .v = f32((void *)(uintptr_t)v, 1, KEYS, 1, WIDTH),
                                 .out = f32(expected, 1, 1, 1, WIDTH),
                                 .seqused_k = {.data = &used, .shape = {1}, .dtype = TALLOW_I32}};
    EXPECT(!tallow_attention(&p, sizeof p), "%s", tallow_last_error());
    EXPECT(farthest(got, expected, WIDTH) < 1e-5, "%s: off by %g", when,
           farthest(got, expected, WIDTH));
}

static void run_capture(void) {
    int (*create_stream)(void **, unsigned), (*begin)(void *, int), (*end)(void *, void **);
    int (*instantiate)(void **, void *, unsigned long long), (*launch)(void *, void *);
    int (*to_device)(uintptr_t, const void *, size_t), (*to_host)(void *, uintptr_t, size_t);
    int (*wait)(void);
    static float q[WIDTH], k[KEYS * WIDTH], v[KEYS * WIDTH], out[WIDTH];
    int32_t used = KEYS;
    void *stream, *graph, *executable;
    entry("cuStreamCreate", &create_stream);
    entry("cuStreamBeginCapture_v2", &begin);
    entry("cuStreamEndCapture", &end);
    entry("cuGraphInstantiateWithFlags", &instantiate);
    entry("cuGraphLaunch", &launch);
    entry("cuMemcpyHtoD_v2", &to_device);
    entry("cuMemcpyDtoH_v2", &to_host);
    entry("cuCtxSynchronize", &wait);
    fill(q, WIDTH, 1);
    fill(k, KEYS * WIDTH, 2);
    fill(v, KEYS * WIDTH, 3);
    EXPECT(!create_stream(&stream, 1), "no stream");
    tallow_attention_params p = {
        .q = f32(device_copy(q, sizeof q), 1, 1, 1, WIDTH),
        .k = f32(device_copy(k, sizeof k), 1, KEYS, 1, WIDTH),
        .v = f32(device_copy(v, sizeof v), 1, KEYS, 1, WIDTH),
        .out = f32(device_copy(out, sizeof out), 1, 1, 1, WIDTH),
        .seqused_k = {.data = device_copy(&used, sizeof used), .shape = {1}, .dtype = TALLOW_I32},
        .device = TALLOW_DEVICE_CUDA,
        .num_splits = 3,
        .stream = stream};
    EXPECT(!tallow_attention_workspace(&p, sizeof p, &p.workspace_size), "%s", tallow_last_error());
    p.workspace = device_copy(k, p.workspace_size);
    EXPECT(!tallow_attention_prepare(&p, sizeof p), "%s", tallow_last_error());
    EXPECT(!begin(stream, 0), "capture does not begin"); /* global: nothing unsafe may be called */
    EXPECT(!tallow_attention(&p, sizeof p), "%s", tallow_last_error());
    EXPECT(!end(stream, &graph), "capture does not end");
    EXPECT(!instantiate(&executable, graph, 0), "no graph");
    for (int replay = 0; replay < 3; replay++) {
        EXPECT(!launch(executable, stream) && !wait(), "the graph does not run");
        EXPECT(!to_host(out, (uintptr_t)p.out.data, sizeof out), "no result");
        expect_attention(q, k, v, used, out, replay ? "replayed" : "captured");
        fill(q, WIDTH, (uint64_t)replay + 10);
        used = 300 >> replay;
        EXPECT(!to_device((uintptr_t)p.q.data, q, sizeof q) &&
                   !to_device((uintptr_t)p.seqused_k.data, &used, sizeof used),
               "no new data");
    }
}

/* ---- threads ---- */

enum { THREADS = 6 };

/* One call of a thread that has no current context; the call must leave none behind. */
static void *call_once(void *params) {
    int (*current)(void **);
    void *context = NULL;
    tallow_attention_params *p = params;
    entry("cuCtxGetCurrent", &current);
    tallow_status status = tallow_attention(p, sizeof *p);
    if (status) fprintf(stderr, "a thread's call: %s\n", tallow_last_error());
    bool left = !current(&context) && context;
    if (left) fprintf(stderr, "a context was left current\n");
    return status || left ? p : NULL;
}

/* Many threads call at once. */
static void run_threads(void) {
    int (*wait)(void), (*to_host)(void *, uintptr_t, size_t);
    static float q[WIDTH], k[KEYS * WIDTH], v[KEYS * WIDTH], out[WIDTH];
    tallow_attention_params p[THREADS];
    pthread_t threads[THREADS];
    entry("cuCtxSynchronize", &wait);
    entry("cuMemcpyDtoH_v2", &to_host);
    fill(q, WIDTH, 5);
    fill(k, KEYS * WIDTH, 6);
    fill(v, KEYS * WIDTH, 7);
    void *on_gpu[3] = {device_copy(q, sizeof q), device_copy(k, sizeof k),
                       device_copy(v, sizeof v)};
    for (int i = 0; i < THREADS; i++) {
        p[i] = (tallow_attention_params){.q = f32(on_gpu[0], 1, 1, 1, WIDTH),
                                         .k = f32(on_gpu[1], 1, KEYS, 1, WIDTH),
                                         .v = f32(on_gpu[2], 1, KEYS, 1, WIDTH),
                                         .out = f32(device_copy(out, sizeof out), 1, 1, 1, WIDTH),
                                         .softcap = 1000, /* a kernel not loaded yet */
                                         .num_splits = 1,
                                         .device = TALLOW_DEVICE_CUDA};
        EXPECT(!pthread_create(&threads[i], NULL, call_once, &p[i]), "no thread");
    }
    for (int i = 0; i < THREADS; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        EXPECT(!failed && !wait(), "thread %d", i);
    }
    for (int i = 1; i < THREADS; i++) {
        float first[WIDTH];
        EXPECT(!to_host(first, (uintptr_t)p[0].out.data, sizeof first) &&
                   !to_host(out, (uintptr_t)p[i].out.data, sizeof out) &&
                   !memcmp(first, out, sizeof out) && out[0] != 0,
               "thread %d has other bits", i);
    }
}

int main(int argc, char **argv) {
    char why[256];
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)time(NULL);
    int count = argc > 2 ? atoi(argv[2]) : RANDOM_CASES;
    int share = argc > 3 ? atoi(argv[3]) : 0, shares = argc > 4 ? atoi(argv[4]) : 1;
    if (!case_cuda_open(&gpu, why, sizeof why)) {
        printf("skipped: %s\n", why);
        return SKIPPED;
    }
    printf("seed %" PRIu64 "\n", seed);
    if (share == 0) {
        run_rotary(128, TALLOW_PAIRING_HALF, false);
        run_rotary(1024, TALLOW_PAIRING_INTERLEAVED, true);
        run_rotary(1000, TALLOW_PAIRING_HALF, false);
        run_merge();
        run_many_sequences();
        run_counted();
        run_capture();
        run_threads();
        run_refusals();
    }
    run_cases(seed, count, share, shares);
    run_pretences(seed, share, shares);
    return expect_report();
}
