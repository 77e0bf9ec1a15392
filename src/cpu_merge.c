#include <math.h>

#include "cpu.h"
#include "cpu_features.h"

enum { PIECE = 256 }; /* elements of a row held at a time */

/* Weights of the two sides, which sum to 1, and the log-sum-exp of the union. */
typedef struct {
    float a, b, lse;
} merge_weights;

/* One of the two exponentials is exactly 1, so that their product is the smaller one, or NaN. Two
 * empty sides weigh a half each, of zeros. */
static merge_weights weigh(float lse_a, float lse_b) {
    float top = fmaxf(lse_a, lse_b);
    float a = lse_a == top ? 1 : expf(lse_a - top), b = lse_b == top ? 1 : expf(lse_b - top);
    return (merge_weights){a / (a + b), b / (a + b), top + log1pf(a * b)};
}

/* A side without keys counts as zeros: whatever its memory holds must not get in. */
static void load_side(const char *row, int32_t dtype, float lse, int64_t start, int64_t count,
                      float *values) {
    if (lse == -INFINITY)
        memset(values, 0, (size_t)count * sizeof *values);
    else
        tallow_load_row(row + start * (int64_t)tallow_dtype_size(dtype), dtype, count, values);
}

static void merge_row(const merge_problem *p, int64_t b, int64_t row, int64_t head) {
    float lse_a = p->lse_a[b * p->lse_a_stride[0] + head * p->lse_a_stride[1] + row];
    float lse_b = p->lse_b[b * p->lse_b_stride[0] + head * p->lse_b_stride[1] + row];
    merge_weights weights = weigh(lse_a, lse_b);
    const char *row_a = tallow_rows_at(&p->out_a, b, row, head);
    const char *row_b = tallow_rows_at(&p->out_b, b, row, head);
    char *out = tallow_rows_at(&p->out, b, row, head);
    for (int64_t start = 0; start < p->head_dim_v; start += PIECE) {
        int64_t left = p->head_dim_v - start, count = left < PIECE ? left : PIECE;
        float side_a[PIECE], side_b[PIECE];
        load_side(row_a, p->out_a.dtype, lse_a, start, count, side_a);
        load_side(row_b, p->out_b.dtype, lse_b, start, count, side_b);
        for (int64_t i = 0; i < count; i++)
            side_a[i] = weights.a * side_a[i] + weights.b * side_b[i];
        tallow_store_row(out + start * (int64_t)tallow_dtype_size(p->out.dtype), p->out.dtype,
                         count, side_a);
    }
    if (p->lse) p->lse[b * p->lse_stride[0] + head * p->lse_stride[1] + row] = weights.lse;
}

tallow_status tallow_cpu_merge(const merge_problem *p) {
#pragma omp parallel for num_threads(tallow_cpu_threads(p->threads))
    for (int64_t token = 0; token < p->batch * p->seqlen_q; token++)
        for (int64_t head = 0; head < p->heads; head++)
            merge_row(p, token / p->seqlen_q, token % p->seqlen_q, head);
    return TALLOW_OK;
}
