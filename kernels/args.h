/* What the host hands to the kernels. Plain C for both sides: fixed widths, no padding that the
 * compiler chooses, no CUDA headers. Strides of rows are in bytes, of everything else in elements.
 * A kernel takes its struct by value; each fits the 4096 bytes that every driver accepts.
 *
 * Programs and their entry points
 *   forward_sm80.cu   tallow_forward(forward_args)
 *                     tallow_combine(forward_args)       parts of tiles into out and lse
 *   forward_sm90.cu   tallow_forward(forward_tma_args)
 *   rows.cu           tallow_append(append_args)         new keys into the cache, q rotated
 *                     tallow_rotate(rotate_args)         tallow_rotary
 *                     tallow_merge(merge_args)           tallow_merge
 * Grids and blocks stand above each entry point. */
#ifndef TALLOW_KERNEL_ARGS_H
#define TALLOW_KERNEL_ARGS_H

#ifdef __CUDACC_RTC__
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define ARGS_FUNCTION       __device__ __forceinline__
#define ARGS_ALIGNED(bytes) alignas(bytes)
#else
#include <stdint.h>
#define ARGS_FUNCTION       static inline
#define ARGS_ALIGNED(bytes) _Alignas(bytes)
#endif

enum {
    COMBINE_ROWS = 2,      /* of a tile, of a block of tallow_combine */
    COMBINE_THREADS = 128, /* of that */
    MERGE_ROWS = 4,        /* rows of a block of tallow_merge, one warp each */
    TOKEN_THREADS = 128,   /* threads of a block of tallow_append and tallow_rotate: one token */
    WARP_ROWS = 16,        /* of a tile, of each warp of the forward kernel of sm_90 */
    ROTATE_PAIRS = 320,    /* that one launch rotates; tallow_rotate is launched again for more */
    COUNT_BITS = 31        /* of a count that thread blocks share; those above are the tag's */
};

/* Division by a number that is known before the launch: n / by = n * multiplier >> (31 + shift),
 * exact for 0 <= n < 2^31. */
typedef struct {
    uint32_t by, multiplier, shift, zero;
} divisor;

ARGS_FUNCTION divisor divisor_of(uint32_t by) {
    divisor d = {by, 0, 0, 0};
    while (d.shift < 31 && ((uint64_t)1 << d.shift) < by) d.shift++;
    d.multiplier = (uint32_t)((((uint64_t)1 << 31 << d.shift) + by - 1) / by);
    return d;
}

ARGS_FUNCTION uint32_t divide(uint32_t n, divisor d) {
    return (uint32_t)((uint64_t)n * d.multiplier >> 31 >> d.shift);
}

/* Rows of heads: head h of row r of sequence (or page) b is at data + b * batch_stride + r *
 * row_stride + h * head_stride. */
typedef struct {
    char *data;
    int64_t batch_stride, row_stride, head_stride; /* bytes; batch_stride is 0 when packed */
} rows_arg;

typedef struct {
    const int32_t *data; /* null: absent */
    int64_t stride;
} ints_arg;

typedef struct {
    const float *data; /* null: absent */
    int64_t batch_stride, head_stride;
} floats_arg;

/* Where each sequence lies. The device never trusts what the vectors hold: every length, index and
 * page is clamped to these bounds before it is used. */
typedef struct {
    ints_arg cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new; /* null: dense */
    ints_arg seqused_k, leftpad_k, cache_batch_idx;
    const int32_t *block_table; /* null: not paged */
    int64_t table_batch_stride, table_stride;
    divisor page_size;
    int32_t rows_q, rows_k, rows_new; /* per sequence when dense, in all when packed; K's capacity
                                         when paged: columns * page_size, at most 2^31 - 1 */
    int32_t cache_rows, pages;        /* batch dimension of k and v: dense, paged */
    int32_t batch, heads, zero;
    divisor heads_kv, group; /* of tiles: heads, and query heads of each, whose rows are packed */
} sequences_arg;

typedef struct {
    sequences_arg sequences;
    divisor kv_group; /* heads of tiles that share a key head */
    rows_arg q, k, v, out;
    float *lse; /* null: not wanted; (b, head, row), row counted in all when packed */
    int64_t lse_batch_stride, lse_head_stride;
    /* Splits > 1: for every (b, key head, block of rows) and part, block_rows rows of head_dim_v
     * floats (the weighted sum of V), then of each row the maximum, in units of log2(e), and the
     * sum of the weights. In all batch * heads_kv * row_blocks * splits * block_rows * (head_dim_v
     * + 2) floats. Only tiles that are cut in parts use it. */
    float *partial;
    /* With sm_80's instructions: of each tile, thread blocks that are done; null: tallow_combine
     * follows. With sm_90's: tiles that were taken as blocks got to them, and blocks that found no
     * more; null: tiles are taken in turn. */
    uint64_t *counts;
    uint64_t tag; /* what memory shows that holds a count: see count.cuh */

    /* Schedule. A tile is one block of rows of one (b, key head); row r of those is query r / group
     * of head key_head * group + r % group. A tile's visible blocks of keys are cut into
     * min(splits, ceil(blocks / split_blocks)) parts, at least one, as even as can be. */
    int32_t row_blocks;    /* blocks of rows of the longest sequence */
    int32_t split_blocks;  /* a part has at least so many blocks of keys, if there are as many */
    divisor splits;        /* most parts the keys of a tile are cut into */
    divisor section;       /* (batch, key head) pairs worked on at a time; 1 to all of them */
    divisor last_section;  /* the pairs that are left for the last section */
    divisor section_tiles; /* section * row_blocks */

    /* Scores. With the axis scores = 0 scale must be positive, softcap and slopes are not read. */
    float scale;   /* softmax_scale */
    float softcap; /* 0: off */
    floats_arg alibi_slopes, sinks;

    /* Mask: key j is seen from position i iff i - window_left <= j <= i + window_right, or both lie
     * in one range. Unlimited: INT64_MAX / 4, on both sides without a mask. */
    int64_t window_left, window_right;
    const int32_t *prefix_ranges;
    int64_t range_batch_stride, range_stride, range_end_stride;
    int32_t max_ranges;
    int32_t out_dtype; /* tallow_dtype */

    /* Dropout: a weight is kept iff its random word is at least the threshold; 0 keeps all */
    uint32_t dropout_threshold; /* ceil(dropout_p * 2^32) */
    float dropout_scale;        /* 1 / (1 - dropout_p): always read */
    uint64_t dropout_seed, dropout_offset;
} forward_args;

/* A tensor map as the driver encodes it, for copies by the tensor memory accelerator. */
typedef struct {
    ARGS_ALIGNED(64) uint64_t words[16];
} tensor_map;

/* Boxes of 64 elements by rows. q: (element, query head of the tile, query, head, sequence), with
 * all of a tile's rows; k and v: (element, row, key head, sequence or page), with key_rows rows. */
typedef struct {
    tensor_map q, k, v, out;
    forward_args forward;
    int32_t items;      /* tiles, or pairs of them; read when q is dense */
    int32_t blocks;     /* thread blocks, or pairs of them */
    int32_t key_rows;   /* block_keys, those of a page if it has fewer, or half of them in pairs */
    int32_t copies_out; /* 1: `out` is a map of it, in boxes of WARP_ROWS packed rows */
} forward_tma_args;

/* Positions of tokens: element (row of M-RoPE, b, t); null: counted up from where the sequence's
 * first token stands. */
typedef struct {
    const void *data;
    int64_t mrope_stride, batch_stride, row_stride;
    int32_t wide; /* 1: 64-bit integers */
    int32_t zero;
} positions_arg;

/* How positions become angles. Pair i turns by position * turns[i] / 2^64 of a full turn, which
 * wraps by itself; or cos and sin come from tables. */
typedef struct {
    uint64_t turns[ROTATE_PAIRS]; /* of pairs [first_pair, first_pair + pairs) */
    const void *cos, *sin;        /* null: computed */
    int64_t cos_stride, sin_stride, table_rows;
    int32_t table_dtype;
    int32_t first_pair, pairs; /* of this launch */
    int32_t half;              /* rotary_dim / 2 */
    int32_t pairing, mrope;    /* tallow_pairing, tallow_mrope */
    int32_t sections[3];
    float factor;
} angles_arg;

/* Rows [append_at, append_at + seqlen_new) of the cache become k_new and v_new; k_new and q rotated
 * when angles.pairs > 0. A sequence's first new row stands at position append_at. */
typedef struct {
    sequences_arg sequences;
    rows_arg k, v, k_new, v_new, q, q_out; /* q_out.data null: q is not rotated */
    positions_arg positions_q, positions_new;
    int32_t dtype, head_dim, head_dim_v;
    int32_t tokens; /* of the longest sequence, whichever of q and k_new has more */
    angles_arg angles;
} append_args;

typedef struct {
    rows_arg x, out;
    ints_arg cu_seqlens, offset;
    positions_arg positions;
    int32_t dtype, head_dim, heads, batch;
    int32_t rows; /* per sequence when dense, in all when packed */
    int32_t move; /* 1: also copy what is not rotated */
    angles_arg angles;
} rotate_args;

typedef struct {
    rows_arg out_a, out_b, out;
    const float *lse_a, *lse_b;
    float *lse;                                              /* null: not wanted */
    int64_t lse_a_stride[2], lse_b_stride[2], lse_stride[2]; /* batch, head */
    int32_t dtype_a, dtype_b, dtype_out;
    int32_t batch, heads, rows, head_dim_v;
    int32_t zero;
} merge_args;

#endif
