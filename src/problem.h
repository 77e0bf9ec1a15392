/* A problem is a checked call: valid, every default filled, every stride resolved. Backends read
 * nothing else. All complaints about a call's arguments are written in problem.c. */
#ifndef TALLOW_PROBLEM_H
#define TALLOW_PROBLEM_H

#include <stdbool.h>

#include "convert.h"
#include "tallow.h"

#define TALLOW_MAX_HEAD_DIM     576
#define TALLOW_MAX_ROTARY_PAIRS 512 /* tallow_rotary takes heads of twice as many elements */

typedef enum { LAYOUT_DENSE, LAYOUT_PACKED, LAYOUT_PAGED } layout;

/* Rows of heads. Packed: batch_stride is 0. Paged: the batch is the page, the row a row in it. */
typedef struct {
    char *data;
    int64_t batch_stride, row_stride, head_stride; /* elements */
    int32_t dtype;
} rows_view;

static inline char *tallow_rows_at(const rows_view *view, int64_t b, int64_t row, int64_t head) {
    int64_t index = b * view->batch_stride + row * view->row_stride + head * view->head_stride;
    return view->data + index * (int64_t)tallow_dtype_size(view->dtype);
}

/* A vector or matrix of 32-bit integers or floats; data is null when absent. */
typedef struct {
    const int32_t *data;
    int64_t stride[3];
} int_view;

typedef struct {
    const float *data;
    int64_t stride[2];
} float_view;

/* Positions of tokens: element (row of M-RoPE, b, t); packed: b is 0. data null: seqused_k[b] + t.
 */
typedef struct {
    const void *data;
    int64_t mrope_stride, batch_stride, row_stride;
    int32_t dtype; /* TALLOW_I32 or TALLOW_I64 */
} position_view;

/* How positions become angles, checked. */
typedef struct {
    int64_t dim; /* 0: no rotary */
    double theta;
    float_view inv_freq;   /* data null: theta */
    const void *cos, *sin; /* tables; null: computed */
    int64_t cos_stride, sin_stride, table_rows;
    int32_t table_dtype;
    float factor;
    int32_t pairing, mrope;
    int32_t sections[3];
} rotary_view;

typedef struct {
    int64_t batch, heads, heads_kv, group; /* group: query heads per key head */
    int64_t head_dim, head_dim_v;
    int32_t dtype, out_dtype;
    int32_t device, threads;

    layout q_layout, k_layout, new_layout;
    rows_view q, k, v, out, k_new, v_new;
    float *lse; /* null: not wanted. Element (b, h, i) is lse[b * lse_batch + h * lse_head + i] */
    int64_t lse_batch_stride,
        lse_head_stride; /* packed: the row is cu_seqlens_q[b] + i, batch stride 0 */

    int64_t rows_q, rows_k,
        rows_new;       /* per sequence when dense, in all when packed; K's capacity when paged */
    bool open_ended;    /* memory may end before the last of these rows; params never say so */
    int64_t cache_rows; /* dense K: its batch dimension */
    int64_t pages, page_size, columns;
    int64_t max_seqlen_q, max_seqlen_k,
        max_seqlen_new; /* bounds that hold; new keys counted in k's */
    int_view cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new, seqused_k, leftpad_k, cache_batch_idx;
    int_view block_table;

    float softmax_scale, softcap;
    float_view alibi_slopes; /* stride[0] over batch (0 when (heads)), stride[1] over heads */
    float_view sinks;        /* stride[0] over heads */

    bool masked;                       /* left or right limits some row, or ranges exist */
    int64_t window_left, window_right; /* INT64_MAX / 4: unlimited. Causal: unlimited, 0 */
    int_view prefix_ranges;            /* (batch, max_ranges, 2) */
    int64_t max_ranges;

    double dropout_p;
    uint64_t dropout_seed, dropout_offset;

    rotary_view rotary;
    position_view positions_q, positions_new;

    int64_t num_splits;
    int32_t precision;
    bool batch_invariant;
    void *stream, *workspace;
    size_t workspace_size;
    const char *pack; /* null: none */
} problem;

typedef enum {
    CHECK_SHAPES, /* pointers may be null: plan only */
    CHECK_DATA    /* pointers must be there, and on the CPU their contents valid */
} check_level;

/* Fills *out from the caller's params; on failure *out is unspecified and the message is set. */
tallow_status tallow_problem_init(problem *out, const tallow_attention_params *params,
                                  size_t params_size, check_level level);

/* The lengths of one sequence, after cu_seqlens, seqused and leftpad. CPU only: reads the vectors.
 */
typedef struct {
    int64_t q_start, seqlen_q; /* first row of q (packed; else 0) */
    int64_t k_start,
        seqlen_k; /* first row of k, leftpad included; keys to attend to, new ones included */
    int64_t new_start, seqlen_new; /* first row of k_new (packed; else 0), rows to append */
    int64_t append_at; /* row of k where the first new row goes; also its rotary position */
    int64_t cache_row; /* batch index into dense k */
} sequence;

sequence tallow_problem_sequence(const problem *p, int64_t b);

/* A checked tallow_rotary call. */
typedef struct {
    int64_t batch, heads, head_dim, rows; /* rows: per sequence when dense, in all when packed */
    int32_t dtype, device, threads;
    layout x_layout; /* LAYOUT_DENSE or LAYOUT_PACKED */
    rows_view x, out;
    int_view cu_seqlens, offset;
    position_view positions;
    rotary_view rotary;
    void *stream;
    const char *pack;
} rotary_problem;

tallow_status tallow_rotary_problem_init(rotary_problem *out, const tallow_rotary_params *params,
                                         size_t params_size);

/* A checked tallow_merge call. Packed inputs have batch 1. */
typedef struct {
    int64_t batch, heads, seqlen_q, head_dim_v;
    int32_t device, threads;
    rows_view out_a, out_b, out;
    const float *lse_a, *lse_b;
    float *lse;                                              /* null: not wanted */
    int64_t lse_a_stride[2], lse_b_stride[2], lse_stride[2]; /* batch, head */
    void *stream;
    const char *pack;
} merge_problem;

tallow_status tallow_merge_problem_init(merge_problem *out, const tallow_merge_params *params,
                                        size_t params_size);

#endif
