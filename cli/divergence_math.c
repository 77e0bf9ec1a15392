#include "divergence_math.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Inner loops are written on 32-byte vectors and compiled twice on x86: for any CPU, and for AVX2
 * with FMA. Other CPUs get what the compiler makes of the vectors. */
typedef float f32x8 __attribute__((vector_size(32)));
typedef double f64x4 __attribute__((vector_size(32)));
typedef int64_t i64x4 __attribute__((vector_size(32)));
typedef uint64_t u64x4 __attribute__((vector_size(32)));

#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__)
#define BOTH_LEVELS(name, parameters, arguments)                                                   \
    __attribute__((target("avx2,fma"))) static void name##_avx2 parameters {                       \
        name##_body arguments;                                                                     \
    }                                                                                              \
    static void name##_any parameters { name##_body arguments; }                                   \
    static void name parameters {                                                                  \
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {                     \
            name##_avx2 arguments;                                                                 \
        } else {                                                                                   \
            name##_any arguments;                                                                  \
        }                                                                                          \
    }
#else
#define BOTH_LEVELS(name, parameters, arguments)                                                   \
    static void name parameters { name##_body arguments; }
#endif

uint16_t bf16_from_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float bf16_to_float(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

float bf16_round(float x) { return bf16_to_float(bf16_from_float(x)); }

/* c (ROWS, 2 vectors) += a (ROWS, k) b (k, 2 vectors): the one inner loop of all products. `b` is
 * contiguous, rows of `a` are `lda` apart, those of `c` `ldc`. */
#define DEFINE_PRODUCT(name, scalar, vector)                                                       \
    INLINE void name##_rows(int64_t k, const scalar *a, int64_t lda, const scalar *b, scalar *c,   \
                            int64_t ldc, int rows) {                                               \
        enum { LANES = sizeof(vector) / sizeof(scalar) };                                          \
        vector low[4], high[4];                                                                    \
        for (int i = 0; i < rows; i++) {                                                           \
            memcpy(&low[i], c + i * ldc, sizeof(vector));                                          \
            memcpy(&high[i], c + i * ldc + LANES, sizeof(vector));                                 \
        }                                                                                          \
        for (int64_t t = 0; t < k; t++) {                                                          \
            vector b_low, b_high;                                                                  \
            memcpy(&b_low, b + t * 2 * LANES, sizeof(vector));                                     \
            memcpy(&b_high, b + t * 2 * LANES + LANES, sizeof(vector));                            \
            for (int i = 0; i < rows; i++) {                                                       \
                low[i] += a[i * lda + t] * b_low;                                                  \
                high[i] += a[i * lda + t] * b_high;                                                \
            }                                                                                      \
        }                                                                                          \
        for (int i = 0; i < rows; i++) {                                                           \
            memcpy(c + i * ldc, &low[i], sizeof(vector));                                          \
            memcpy(c + i * ldc + LANES, &high[i], sizeof(vector));                                 \
        }                                                                                          \
    }                                                                                              \
    INLINE void name(int64_t rows, int64_t k, const scalar *a, int64_t lda, const scalar *b,       \
                     scalar *c, int64_t ldc) {                                                     \
        int64_t i = 0;                                                                             \
        for (; i + 4 <= rows; i += 4) name##_rows(k, a + i * lda, lda, b, c + i * ldc, ldc, 4);    \
        for (; i < rows; i++) name##_rows(k, a + i * lda, lda, b, c + i * ldc, ldc, 1);            \
    }

DEFINE_PRODUCT(product_f32, float, f32x8)
DEFINE_PRODUCT(product_f64, double, f64x4)

enum {
    PANEL = 16,  /* columns of y computed at once: two vectors */
    BAND = 128,  /* rows of y that share a packed panel */
    DEPTH = 512, /* rows of w packed at once */
    KEYS = 8,    /* keys of a packed panel of K, columns of one of V: two vectors */
    BLOCK = 64   /* queries and keys of an attention tile; a multiple of KEYS */
};

typedef struct {
    int64_t k, n;
    const float *x, *w, *bias;
    float *y;
} f32_product;

/* Rows [row, row + rows) and columns [column, column + width) of y, at most BAND by PANEL. */
INLINE void panel_body(const f32_product *p, int64_t row, int64_t rows, int64_t column,
                       int64_t width) {
    float packed[DEPTH * PANEL], sums[BAND * PANEL];
    for (int64_t i = 0; i < rows * PANEL; i++) {
        int64_t j = i % PANEL;
        sums[i] = p->bias && j < width ? p->bias[column + j] : 0;
    }
    for (int64_t start = 0; start < p->k; start += DEPTH) {
        int64_t depth = p->k - start < DEPTH ? p->k - start : DEPTH;
        if (width < PANEL) memset(packed, 0, sizeof packed);
        for (int64_t t = 0; t < depth; t++) {
            memcpy(packed + t * PANEL, p->w + (start + t) * p->n + column,
                   (size_t)width * sizeof(float));
        }
        product_f32(rows, depth, p->x + row * p->k + start, p->k, packed, sums, PANEL);
    }
    for (int64_t i = 0; i < rows; i++) {
        memcpy(p->y + (row + i) * p->n + column, sums + i * PANEL, (size_t)width * sizeof(float));
    }
}

BOTH_LEVELS(panel, (const f32_product *p, int64_t row, int64_t rows, int64_t column, int64_t width),
            (p, row, rows, column, width))

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

void math_product(int64_t rows, int64_t k, int64_t n, const float *x, const float *w,
                  const float *bias, float *y) {
    f32_product p = {.k = k, .n = n, .x = x, .w = w, .bias = bias, .y = y};
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t row = 0; row < rows; row += BAND) {
        for (int64_t column = 0; column < n; column += PANEL) {
            panel(&p, row, least(BAND, rows - row), column, least(PANEL, n - column));
        }
    }
}

/* e^x to f64 rounding for x <= 0; 0 below -708 and for NaN, which is how a hidden score
 * (-inf - -inf) is dropped. The exponent lands in the low bits of `shifted`. */
INLINE f64x4 exp_f64(f64x4 x) {
    static const double FACTORS[] = {
        1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
        1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5,         1,          1};
    const double magic = 0x1.8p52;
    f64x4 shifted = x * 0x1.71547652b82fep0 + magic;
    f64x4 n = shifted - magic;
    f64x4 r = x - n * 0x1.62e42fefa38p-1 - n * 0x1.ef35793c7673p-45;
    f64x4 sum = r * 0 + 1.0 / 479001600;
    for (int i = 0; i < 12; i++) sum = sum * r + FACTORS[i];
    u64x4 bits = (u64x4)sum + ((u64x4)shifted << 52);
    return (f64x4)(bits & (u64x4)(x > -708.0));
}

/* K and V of every head, packed in f64: K (head, panel of KEYS keys, head_dim, KEYS), V (head,
 * panel of KEYS columns, tokens, KEYS). `tokens` is padded to a multiple of BLOCK with zeros. */
typedef struct {
    const attention_f64 *a;
    int64_t tokens, columns;
    double scale;
    double *k, *v;
} packed_kv;

static void pack_kv(packed_kv *p) {
    const attention_f64 *a = p->a;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t head = 0; head < a->heads_kv; head++) {
        for (int64_t j = 0; j < a->tokens; j++) {
            const float *k = a->k + j * a->row + head * a->head_dim;
            const float *v = a->v + j * a->row + head * a->head_dim;
            double *k_out = p->k + (head * p->tokens + j - j % KEYS) * a->head_dim + j % KEYS;
            double *v_out = p->v + head * p->tokens * a->head_dim + j * KEYS;
            for (int64_t c = 0; c < a->head_dim; c++) {
                k_out[c * KEYS] = k[c];
                v_out[c / KEYS * p->tokens * KEYS + c % KEYS] = v[c];
            }
        }
    }
}

typedef struct {
    double q[BLOCK * 256], out[BLOCK * 256], scores[BLOCK * BLOCK], max[BLOCK], sum[BLOCK];
} attention_tile;

/* The largest of a row of scores and `top`. */
INLINE double row_max(const double *scores, double top) {
    f64x4 best = (f64x4){0} + top;
    for (int64_t j = 0; j < BLOCK; j += 4) {
        f64x4 s;
        memcpy(&s, scores + j, sizeof s);
        i64x4 more = s > best;
        best = (f64x4)(((i64x4)s & more) | ((i64x4)best & ~more));
    }
    for (int i = 0; i < 4; i++) top = best[i] > top ? best[i] : top;
    return top;
}

/* Turns the scores [from, to) of a row into weights, the others into 0, and brings what the row has
 * summed so far to its new maximum. */
INLINE void softmax_row(double *scores, double *max, double *sum, double *out, int64_t head_dim,
                        int64_t from, int64_t to) {
    for (int64_t j = 0; j < from && j < BLOCK; j++) scores[j] = -INFINITY;
    for (int64_t j = to > 0 ? to : 0; j < BLOCK; j++) scores[j] = -INFINITY;
    double top = row_max(scores, *max);
    f64x4 total = {0};
    for (int64_t j = 0; j < BLOCK; j += 4) {
        f64x4 s;
        memcpy(&s, scores + j, sizeof s);
        s = exp_f64(s - top);
        total += s;
        memcpy(scores + j, &s, sizeof s);
    }
    if (top > *max) {
        f64x4 change = exp_f64((f64x4){0} + (*max - top));
        for (int64_t c = 0; c < head_dim; c++) out[c] *= change[0];
        *sum *= change[0];
        *max = top;
    }
    *sum += total[0] + total[1] + total[2] + total[3];
}

/* One block of queries of one head against all keys it can see. */
INLINE void attend_body(const packed_kv *p, attention_tile *t, int64_t head, int64_t first) {
    const attention_f64 *a = p->a;
    int64_t d = a->head_dim, rows = least(BLOCK, a->tokens - first);
    int64_t head_kv = head / (a->heads / a->heads_kv);
    const double *k = p->k + head_kv * p->tokens * d, *v = p->v + head_kv * p->tokens * d;
    memset(t, 0, sizeof *t);
    for (int64_t i = 0; i < rows; i++) {
        t->max[i] = -INFINITY;
        for (int64_t c = 0; c < d; c++) {
            t->q[i * d + c] = p->scale * a->q[(first + i) * a->row + head * d + c];
        }
    }
    int64_t start = first > a->window_left ? first - a->window_left : 0;
    for (int64_t j = start - start % BLOCK; j < first + rows; j += BLOCK) {
        memset(t->scores, 0, sizeof t->scores);
        for (int64_t n = 0; n < BLOCK; n += KEYS) {
            product_f64(rows, d, t->q, d, k + (j + n) * d, t->scores + n, BLOCK);
        }
        for (int64_t i = 0; i < rows; i++) {
            softmax_row(t->scores + i * BLOCK, t->max + i, t->sum + i, t->out + i * d, d,
                        first + i - a->window_left - j, first + i + 1 - j);
        }
        for (int64_t c = 0; c < d; c += KEYS) {
            product_f64(rows, BLOCK, t->scores, BLOCK, v + (c / KEYS * p->tokens + j) * KEYS,
                        t->out + c, d);
        }
    }
    for (int64_t i = 0; i < rows; i++) {
        float *out = a->out + ((first + i) * a->heads + head) * d;
        for (int64_t c = 0; c < d; c++) out[c] = (float)(t->out[i * d + c] / t->sum[i]);
    }
}

BOTH_LEVELS(attend, (const packed_kv *p, attention_tile *t, int64_t head, int64_t first),
            (p, t, head, first))

bool math_attention(const attention_f64 *a) {
    int64_t tokens = (a->tokens + BLOCK - 1) / BLOCK * BLOCK;
    size_t count = (size_t)(a->heads_kv * tokens * a->head_dim);
    packed_kv p = {.a = a,
                   .tokens = tokens,
                   .scale = 1 / sqrt((double)a->head_dim),
                   .k = calloc(count, sizeof(double)),
                   .v = calloc(count, sizeof(double))};
    bool ready = p.k && p.v;
    if (ready) pack_kv(&p);
    int64_t blocks = ready ? tokens / BLOCK : 0;
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < blocks * a->heads; i++) {
        attention_tile *tile = malloc(sizeof *tile);
        if (tile) {
            attend(&p, tile, i % a->heads, (blocks - 1 - i / a->heads) * BLOCK);
        } else {
#pragma omp atomic write
            ready = false;
        }
        free(tile);
    }
    free(p.k);
    free(p.v);
    return ready;
}
