/* The decoder's steps as loops on the CPU. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "divergence_operations.h"

static const double NORM_EPSILON = 1e-6;
static bool out_of_memory;

static void *take(size_t size) { return calloc(1, size); }
static void copy(void *to, const void *from, size_t size) { memcpy(to, from, size); }
static void *scratch(size_t size) {
    (void)size; /* the library takes its own */
    return NULL;
}
static const char *error(void) { return out_of_memory ? "out of memory" : NULL; }

static void round_activations(bool round, int64_t count, float *x) {
    if (!round) return;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) x[i] = bf16_round(x[i]);
}

static void to_bf16(int64_t count, const float *x, uint16_t *y) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) y[i] = bf16_from_float(x[i]);
}

static void from_bf16(int64_t count, const uint16_t *x, float *y) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) y[i] = bf16_to_float(x[i]);
}

static void add(bool round, int64_t count, const float *x, float *sum) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) sum[i] += x[i];
    round_activations(round, count, sum);
}

static void rms_norm(bool round, int64_t rows, int64_t width, const float *x, float *y) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        double squares = 0;
        for (int64_t i = 0; i < width; i++)
            squares += (double)x[row * width + i] * x[row * width + i];
        float scale = (float)(1 / sqrt(squares / (double)width + NORM_EPSILON));
        for (int64_t i = 0; i < width; i++) y[row * width + i] = x[row * width + i] * scale;
    }
    round_activations(round, rows * width, y);
}

static void embed(const geometry *g, uint64_t document, int64_t tokens, float *hidden) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++)
        weights_embedding(g, weights_token(g, document, t), hidden + t * g->hidden);
}

static void project(const projection *p) {
    math_product(p->rows, p->k, p->n, p->x, p->w, p->bias, p->y);
    round_activations(p->round, p->rows * p->n, p->y);
}

/* Angles in f64, formed and applied. Positions are below 2^24 and angles at most that, so f64
 * leaves them 2^-29 exact. */
static void rotate(const geometry *g, int64_t tokens, float *qkv) {
    int64_t half = g->head_dim / 2, heads = g->heads + g->heads_kv, width = geometry_qkv_width(g);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t i = 0; i < half; i++) {
            double angle = (double)t * pow(g->theta, -(double)i / (double)half);
            double cosine = cos(angle), sine = sin(angle);
            for (int64_t head = 0; head < heads; head++) {
                float *x = qkv + t * width + head * g->head_dim + i;
                double a = x[0], b = x[half];
                x[0] = (float)(a * cosine - b * sine);
                x[half] = (float)(b * cosine + a * sine);
            }
        }
    }
}

static void attend(const attention_f64 *a) { out_of_memory = !math_attention(a) || out_of_memory; }

/* mlp = silu(gate) * up */
static void swiglu(bool round, int64_t rows, int64_t width, const float *gate_up, float *mlp) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const float *gate = gate_up + row * 2 * width, *up = gate + width;
        for (int64_t i = 0; i < width; i++) {
            float silu = gate[i] / (1 + expf(-gate[i]));
            mlp[row * width + i] = (round ? bf16_round(silu) : silu) * up[i];
        }
    }
    round_activations(round, rows * width, mlp);
}

static void pool(int64_t tokens, int64_t width, const float *hidden, float *mean) {
    enum { COLUMNS = 64 };
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < width; first += COLUMNS) {
        int64_t columns = width - first < COLUMNS ? width - first : COLUMNS;
        double sums[COLUMNS] = {0};
        for (int64_t t = 0; t < tokens; t++) {
            const float *row = hidden + t * width + first;
            for (int64_t i = 0; i < columns; i++) sums[i] += row[i];
        }
        for (int64_t i = 0; i < columns; i++) mean[first + i] = (float)(sums[i] / (double)tokens);
    }
}

const operations *operations_cpu(void) {
    static const operations cpu = {
        .device = TALLOW_DEVICE_CPU,
        .mlp_rows = 1024,
        .take = take,
        .give = free,
        .put = copy,
        .get = copy,
        .scratch = scratch,
        .weights = weights_layer,
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
    return &cpu;
}
