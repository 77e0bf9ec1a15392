/* The decoder's steps on a GPU: cuBLAS and the kernels of divergence_cuda.cu. */
#include <math.h>
#include <stdlib.h>

#include "cuda_gpu.h"
#include "divergence_operations.h"

static const double NORM_EPSILON = 1e-6;

#define KERNELS(F)                                                                                 \
    F(narrow)                                                                                      \
    F(widen)                                                                                       \
    F(fill)                                                                                        \
    F(embed)                                                                                       \
    F(rms_norm)                                                                                    \
    F(finish)                                                                                      \
    F(add)                                                                                         \
    F(swiglu)                                                                                      \
    F(pool)                                                                                        \
    F(rotate)                                                                                      \
    F(split_heads)                                                                                 \
    F(softmax)                                                                                     \
    F(join_heads)
#define ENUMERATOR(name) KERNEL_##name,
#define STRING(name)     #name,
enum { KERNELS(ENUMERATOR) KERNEL_COUNT };

enum { THREADS = 256, MOST_BLOCKS = 1 << 20, POOL_COLUMNS = 32, POOL_THREADS = 1024 };

static void *kernels[KERNEL_COUNT];

/* Memory that grows with what is asked of it and is good until the next time. */
typedef struct {
    void *memory;
    size_t size;
} room;

static void *room_for(room *r, size_t size) {
    if (r->size < size) {
        gpu_give(r->memory);
        r->memory = gpu_take(size);
        r->size = r->memory ? size : 0;
    }
    return r->memory;
}

static void *scratch(size_t size) {
    static room workspace;
    return room_for(&workspace, size);
}

/* One thread an element. */
static void launch_each(int kernel, int64_t count, void **args) {
    int64_t blocks = (count + THREADS - 1) / THREADS;
    gpu_launch(kernels[kernel], blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS, 1, THREADS, args);
}

static void to_bf16(int64_t count, const float *x, uint16_t *y) {
    launch_each(KERNEL_narrow, count, (void *[]){&count, &x, &y});
}

static void from_bf16(int64_t count, const uint16_t *x, float *y) {
    launch_each(KERNEL_widen, count, (void *[]){&count, &x, &y});
}

/* ---- weights ---- */

static void put_bias(const geometry *g, int64_t layer, float *bias) {
    size_t size = (size_t)geometry_qkv_width(g) * sizeof *bias;
    float *host = malloc(size);
    if (!host) {
        gpu_fail("out of memory");
        return;
    }
    weights_bias(g, layer, host);
    gpu_put(bias, host, size);
    free(host);
}

static void weights(const geometry *g, int64_t layer, const layer_weights *w) {
    random_matrix matrices[LAYER_MATRICES];
    weights_matrices(g, layer, w, matrices);
    for (int i = 0; i < LAYER_MATRICES; i++) {
        random_matrix *m = &matrices[i];
        int64_t count = m->inputs * m->outputs;
        launch_each(
            KERNEL_fill, count,
            (void *[]){&m->key, &count, &m->outputs, &m->scaled, &m->scale, &m->unit, &m->w});
    }
    put_bias(g, layer, w->qkv_bias);
}

static void embed(const geometry *g, uint64_t document, int64_t tokens, float *hidden) {
    uint64_t token_key = weights_token_key(g, document), key = weights_embedding_key(g);
    int64_t vocab = g->vocab, width = g->hidden;
    double scale = WEIGHTS_EMBEDDING;
    launch_each(KERNEL_embed, tokens * width,
                (void *[]){&token_key, &key, &vocab, &tokens, &width, &scale, &hidden});
}

/* ---- activations ---- */

static void rms_norm(bool round, int64_t rows, int64_t width, const float *x, float *y) {
    int to_round = round;
    double epsilon = NORM_EPSILON;
    gpu_launch(kernels[KERNEL_rms_norm], rows, 1, THREADS,
               (void *[]){&to_round, &width, &epsilon, &x, &y});
}

/* With rounding x and w are numbers of bf16: nothing is lost when they become bf16. */
static void project(const projection *p) {
    static room narrow_x, narrow_w;
    const float *bias = p->bias;
    float *y = p->y;
    int64_t width = p->n, count = p->rows * p->n;
    int to_round = p->round;
    gpu_matrices m = {.type = p->round ? GPU_BF16 : GPU_F32,
                      .rows = p->rows,
                      .n = p->n,
                      .k = p->k,
                      .a = p->x,
                      .b = p->w,
                      .c = p->y,
                      .batch = 1};
    if (p->round) {
        uint16_t *x = room_for(&narrow_x, (size_t)(p->rows * p->k) * sizeof *x);
        uint16_t *w = room_for(&narrow_w, (size_t)(p->k * p->n) * sizeof *w);
        to_bf16(p->rows * p->k, p->x, x);
        to_bf16(p->k * p->n, p->w, w);
        m.a = x;
        m.b = w;
    }
    gpu_multiply(&m);
    if (bias || p->round)
        launch_each(KERNEL_finish, count, (void *[]){&to_round, &count, &width, &bias, &y});
}

static void add(bool round, int64_t count, const float *x, float *sum) {
    int to_round = round;
    launch_each(KERNEL_add, count, (void *[]){&to_round, &count, &x, &sum});
}

static void swiglu(bool round, int64_t rows, int64_t width, const float *gate_up, float *mlp) {
    int to_round = round;
    int64_t count = rows * width;
    launch_each(KERNEL_swiglu, count, (void *[]){&to_round, &count, &width, &gate_up, &mlp});
}

static void pool(int64_t tokens, int64_t width, const float *hidden, float *host) {
    static room means;
    size_t size = (size_t)width * sizeof *host;
    float *mean = room_for(&means, size);
    gpu_launch(kernels[KERNEL_pool], (width + POOL_COLUMNS - 1) / POOL_COLUMNS, 1, POOL_THREADS,
               (void *[]){&tokens, &width, &hidden, &mean});
    gpu_get(host, mean, size);
}

/* ---- the reference's attention ---- */

static void rotate(const geometry *g, int64_t tokens, float *qkv) {
    int64_t heads = g->heads + g->heads_kv, half = g->head_dim / 2, row = geometry_qkv_width(g);
    double theta = g->theta;
    launch_each(KERNEL_rotate, tokens * half,
                (void *[]){&tokens, &heads, &half, &row, &theta, &qkv});
}

/* Tokens by heads of a projection to heads by tokens, in f64. */
static double *split(room *r, const attention_f64 *a, const float *x, int64_t heads, double scale) {
    int64_t tokens = a->tokens, head_dim = a->head_dim, row = a->row,
            count = heads * tokens * head_dim;
    double *y = room_for(r, (size_t)count * sizeof *y);
    launch_each(KERNEL_split_heads, count,
                (void *[]){&count, &tokens, &head_dim, &row, &scale, &x, &y});
    return y;
}

enum { BLOCK = 1024 }; /* queries of a head whose scores exist at once */

/* What the reference's attention works on; a group is the query heads that share a key head. */
typedef struct {
    const attention_f64 *a;
    int64_t group;
    double *q, *k, *v;           /* (heads, tokens, head_dim), (heads_kv, tokens, head_dim) */
    double *scores, *sums, *out; /* (group, rows, keys), (group, rows), (group, rows, head_dim) */
} attention_work;

/* Queries [first, first + rows) of a group: no key beyond the last of them is ever touched. */
static void attend_block(const attention_work *w, int64_t head_kv, int64_t first) {
    const attention_f64 *a = w->a;
    int64_t d = a->head_dim, rows = a->tokens - first < BLOCK ? a->tokens - first : BLOCK;
    int64_t window = a->window_left, start = first > window ? first - window : 0;
    int64_t keys = first + rows - start, count = w->group * rows * d, row = a->heads * d;
    double *scores = w->scores, *sums = w->sums, *x = w->out;
    float *out = a->out + first * row + head_kv * w->group * d;
    gpu_multiply(&(gpu_matrices){.type = GPU_F64,
                                 .transposed = true,
                                 .rows = rows,
                                 .n = keys,
                                 .k = d,
                                 .a = w->q + (head_kv * w->group * a->tokens + first) * d,
                                 .b = w->k + (head_kv * a->tokens + start) * d,
                                 .c = scores,
                                 .batch = w->group,
                                 .a_stride = a->tokens * d,
                                 .c_stride = rows * keys});
    gpu_launch(kernels[KERNEL_softmax], rows, w->group, THREADS,
               (void *[]){&keys, &first, &start, &window, &scores, &sums});
    gpu_multiply(&(gpu_matrices){.type = GPU_F64,
                                 .rows = rows,
                                 .n = d,
                                 .k = keys,
                                 .a = scores,
                                 .b = w->v + (head_kv * a->tokens + start) * d,
                                 .c = x,
                                 .batch = w->group,
                                 .a_stride = rows * keys,
                                 .c_stride = rows * d});
    launch_each(KERNEL_join_heads, count, (void *[]){&count, &rows, &d, &row, &x, &sums, &out});
}

static void attend(const attention_f64 *a) {
    static room q, k, v, scores, sums, out;
    int64_t group = a->heads / a->heads_kv, rows = a->tokens < BLOCK ? a->tokens : BLOCK;
    attention_work w = {
        .a = a,
        .group = group,
        .q = split(&q, a, a->q, a->heads, 1 / sqrt((double)a->head_dim)),
        .k = split(&k, a, a->k, a->heads_kv, 1),
        .v = split(&v, a, a->v, a->heads_kv, 1),
        .scores = room_for(&scores, (size_t)(group * rows * a->tokens) * sizeof(double)),
        .sums = room_for(&sums, (size_t)(group * rows) * sizeof(double)),
        .out = room_for(&out, (size_t)(group * rows * a->head_dim) * sizeof(double))};
    for (int64_t head_kv = 0; head_kv < a->heads_kv; head_kv++) {
        for (int64_t first = 0; first < a->tokens; first += BLOCK) attend_block(&w, head_kv, first);
    }
}

/* Waits, so that an error is reported by the layer that met it. */
static const char *error(void) {
    gpu_wait();
    return gpu_error();
}

const operations *operations_cuda(const char **why) {
    static const char *const names[] = {KERNELS(STRING)};
    static const operations cuda = {
        .device = TALLOW_DEVICE_CUDA,
        .mlp_rows = 8192,
        .take = gpu_take,
        .give = gpu_give,
        .put = gpu_put,
        .get = gpu_get,
        .scratch = scratch,
        .weights = weights,
        .embed = embed,
        .rms_norm = rms_norm,
        .project = project,
        .add = add,
        .swiglu = swiglu,
        .to_bf16 = to_bf16,
        .from_bf16 = from_bf16,
        .rotate = rotate,
        .attend = attend,
        .pool = pool,
        .error = error,
    };
    *why = NULL;
    if (gpu_open()) *why = gpu_blas_open();
    if (!*why && !gpu_error()) gpu_kernels("divergence_cuda.cu", KERNEL_COUNT, names, kernels);
    if (!*why) *why = gpu_error();
    return *why ? NULL : &cuda;
}
