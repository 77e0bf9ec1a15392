/* A call as candle's wrappers make it, whatever the form of run_mha that it came through, and its
 * translation: the only place that knows both candle's conventions and Tallow's. */
#ifndef CANDLE_CALL_H
#define CANDLE_CALL_H

#include <stdbool.h>

#include "tallow.h"

enum { TOTAL_UNKNOWN = -1 };

/* Named as in candle. Strides are in elements, the last dimension is contiguous. What only sizes
 * candle's tiles (d and the lengths, rounded up) is left out. */
typedef struct {
    void *q, *k, *v, *o, *softmax_lse, *alibi_slopes;
    int32_t *cu_seqlens_q, *cu_seqlens_k; /* null: dense */
    uint32_t q_batch_stride, k_batch_stride, v_batch_stride, o_batch_stride;
    uint32_t alibi_slopes_batch_stride;
    uint32_t q_row_stride, k_row_stride, v_row_stride, o_row_stride;
    uint32_t q_head_stride, k_head_stride, v_head_stride, o_head_stride;
    uint32_t b, h, h_k, d;
    float softmax_scale;
    uint32_t seqlen_q, seqlen_k; /* packed: of the longest sequence */
    int64_t total_q, total_k;    /* rows of packed tensors, or TOTAL_UNKNOWN */
    int64_t most_q, most_k;      /* then: as many as their memory has, or 0 if nobody knows */
    int is_bf16, is_causal, unpadded_lse;
    int window_size_left, window_size_right; /* -1: unlimited */
    float softcap;
    int32_t *block_table; /* null: not paged */
    uint32_t block_table_batch_stride;
    int page_block_size;
    int32_t *mm_prefix_ranges;
    uint32_t mm_prefix_range_batch_stride;
    int max_mm_prefix_ranges;
    void *stream;
} candle_call;

/* The fields that every form takes from arguments of their names. */
#define CANDLE_SHARED                                                                              \
    .q = q, .k = k, .v = v, .o = o, .softmax_lse = softmax_lse, .alibi_slopes = alibi_slopes,      \
    .cu_seqlens_q = cu_seqlens_q, .cu_seqlens_k = cu_seqlens_k, .q_batch_stride = q_batch_stride,  \
    .k_batch_stride = k_batch_stride, .v_batch_stride = v_batch_stride,                            \
    .o_batch_stride = o_batch_stride, .alibi_slopes_batch_stride = alibi_slopes_batch_stride,      \
    .q_row_stride = q_row_stride, .k_row_stride = k_row_stride, .v_row_stride = v_row_stride,      \
    .o_row_stride = o_row_stride, .q_head_stride = q_head_stride, .k_head_stride = k_head_stride,  \
    .v_head_stride = v_head_stride, .o_head_stride = o_head_stride, .b = b, .h = h, .h_k = h_k,    \
    .d = d, .softmax_scale = softmax_scale, .seqlen_q = seqlen_q, .seqlen_k = seqlen_k,            \
    .is_bf16 = is_bf16, .is_causal = is_causal, .unpadded_lse = unpadded_lse,                      \
    .window_size_left = window_size_left, .window_size_right = window_size_right

/* Whether the call has anything to write. */
bool tallow_candle_has_rows(const candle_call *c);

/* The same call in Tallow's terms; `device` is a tallow_device. */
tallow_status tallow_candle_params(tallow_attention_params *out, const candle_call *c,
                                   int32_t device);

/* Runs it on the GPU. run_mha returns nothing, so a call that fails leaves NaN in its output, and
 * the reason in tallow_last_error(). It aborts with the reason on stderr when TALLOW_CANDLE_ABORT
 * is 1, or when not even NaN can be written. */
void tallow_candle_run(const candle_call *c);

#endif
