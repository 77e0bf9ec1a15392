#include "candle_call.h"

#include <float.h>

#include "error.h"

typedef tallow_attention_params params;

/* Rows that a tensor may have when nothing says how many it has: as many as its memory, or as
 * addresses reach. */
static int64_t most_rows(int64_t known, uint32_t stride) {
    if (known) return known;
    const int64_t reach = ((int64_t)1 << 47) / (stride ? stride : 1);
    return reach < INT32_MAX ? reach : INT32_MAX;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static tallow_tensor ints(int32_t *data, int64_t size) {
    return (tallow_tensor){.data = data, .shape = {size}, .dtype = TALLOW_I32};
}

/* Dense or paged: (batch or pages, rows, heads, d). */
static tallow_tensor rows(void *data, const candle_call *c, int64_t batch, int64_t count,
                          int64_t heads, uint32_t batch_stride, uint32_t row_stride,
                          uint32_t head_stride) {
    return (tallow_tensor){.data = data,
                           .dtype = c->is_bf16 ? TALLOW_BF16 : TALLOW_F16,
                           .shape = {batch, count, heads, c->d},
                           .strides = {batch_stride, row_stride, head_stride, 1}};
}

/* Packed: (total, heads, d). */
static tallow_tensor packed(void *data, const candle_call *c, int64_t total, int64_t heads,
                            uint32_t row_stride, uint32_t head_stride) {
    return (tallow_tensor){.data = data,
                           .dtype = c->is_bf16 ? TALLOW_BF16 : TALLOW_F16,
                           .shape = {total, heads, c->d},
                           .strides = {row_stride, head_stride, 1}};
}

bool tallow_candle_has_rows(const candle_call *c) {
    const bool counted = c->cu_seqlens_q && c->total_q != TOTAL_UNKNOWN;
    return c->b && c->h && (counted ? c->total_q > 0 : c->seqlen_q > 0);
}

static tallow_status queries(params *p, const candle_call *c) {
    const uint32_t stride = c->q_row_stride > c->o_row_stride ? c->q_row_stride : c->o_row_stride;
    int64_t total = c->total_q == TOTAL_UNKNOWN ? most_rows(c->most_q, stride) : c->total_q;
    if (!c->cu_seqlens_q) {
        p->q = rows(c->q, c, c->b, c->seqlen_q, c->h, c->q_batch_stride, c->q_row_stride,
                    c->q_head_stride);
        p->out = rows(c->o, c, c->b, c->seqlen_q, c->h, c->o_batch_stride, c->o_row_stride,
                      c->o_head_stride);
        return TALLOW_OK;
    }
    if (!c->seqlen_q && tallow_candle_has_rows(c))
        return tallow_fail(TALLOW_INVALID_ARGUMENT,
                           "seqlen_q = 0: must be that of the longest sequence, as total_q = %lld",
                           (long long)c->total_q);
    if (!c->seqlen_q) total = 0; /* Tallow would read a bound of 0 as none given */
    p->q = packed(c->q, c, total, c->h, c->q_row_stride, c->q_head_stride);
    p->out = packed(c->o, c, total, c->h, c->o_row_stride, c->o_head_stride);
    p->cu_seqlens_q = ints(c->cu_seqlens_q, (int64_t)c->b + 1);
    p->max_seqlen_q = c->seqlen_q;
    return TALLOW_OK;
}

/* The batch strides are those of pages. Columns that no sequence reaches are never read. */
static tallow_status pages(params *p, const candle_call *c) {
    const int64_t size = c->page_block_size;
    if (!c->cu_seqlens_k)
        return tallow_fail(TALLOW_UNSUPPORTED,
                           "cu_seqlens_k is null: must be given, as block_table is");
    if (size < 1)
        return tallow_fail(TALLOW_INVALID_ARGUMENT,
                           "page_block_size = %d: must be at least 1, as block_table is given",
                           c->page_block_size);
    const uint32_t stride =
        c->k_batch_stride > c->v_batch_stride ? c->k_batch_stride : c->v_batch_stride;
    const int64_t columns = larger(c->block_table_batch_stride, (c->seqlen_k + size - 1) / size);
    p->k = rows(c->k, c, most_rows(0, stride), size, c->h_k, c->k_batch_stride, c->k_row_stride,
                c->k_head_stride);
    p->v = rows(c->v, c, most_rows(0, stride), size, c->h_k, c->v_batch_stride, c->v_row_stride,
                c->v_head_stride);
    p->block_table = (tallow_tensor){.data = c->block_table,
                                     .dtype = TALLOW_I32,
                                     .shape = {c->b, columns},
                                     .strides = {c->block_table_batch_stride, 1}};
    return TALLOW_OK;
}

static tallow_status keys(params *p, const candle_call *c) {
    const uint32_t stride = c->k_row_stride > c->v_row_stride ? c->k_row_stride : c->v_row_stride;
    int64_t total = c->total_k == TOTAL_UNKNOWN ? most_rows(c->most_k, stride) : c->total_k;
    if (!c->seqlen_k && !c->k) total = 0;
    if (c->cu_seqlens_k) {
        p->cu_seqlens_k = ints(c->cu_seqlens_k, (int64_t)c->b + 1);
        p->max_seqlen_k = c->seqlen_k;
    }
    if (c->block_table) return pages(p, c);
    if (c->page_block_size > 0)
        return tallow_fail(TALLOW_INVALID_ARGUMENT,
                           "block_table is null: must be given, as page_block_size = %d",
                           c->page_block_size);
    if (c->cu_seqlens_k) {
        p->k = packed(c->k, c, total, c->h_k, c->k_row_stride, c->k_head_stride);
        p->v = packed(c->v, c, total, c->h_k, c->v_row_stride, c->v_head_stride);
    } else {
        p->k = rows(c->k, c, c->b, c->seqlen_k, c->h_k, c->k_batch_stride, c->k_row_stride,
                    c->k_head_stride);
        p->v = rows(c->v, c, c->b, c->seqlen_k, c->h_k, c->v_batch_stride, c->v_row_stride,
                    c->v_head_stride);
    }
    return TALLOW_OK;
}

/* (batch, heads, seqlen_q) when dense, (heads, rows of all sequences) when unpadded. Without the
 * number of rows nobody knows where a head's begin, so nothing is written then. */
static tallow_status lse(params *p, const candle_call *c) {
    const int64_t row_count = (int64_t)c->b * c->seqlen_q;
    if (!c->softmax_lse || (c->cu_seqlens_q && c->total_q == TOTAL_UNKNOWN)) return TALLOW_OK;
    if (c->cu_seqlens_q && !c->unpadded_lse)
        return tallow_fail(TALLOW_UNSUPPORTED,
                           "unpadded_lse = 0: must be 1, as cu_seqlens_q makes q packed");
    p->lse = (tallow_tensor){.data = c->softmax_lse, .dtype = TALLOW_F32};
    if (c->cu_seqlens_q)
        p->lse.shape[0] = c->h, p->lse.shape[1] = p->q.shape[0];
    else
        p->lse.shape[0] = c->b, p->lse.shape[1] = c->h, p->lse.shape[2] = c->seqlen_q;
    if (!c->cu_seqlens_q && c->unpadded_lse)
        p->lse.strides[0] = c->seqlen_q, p->lse.strides[1] = row_count, p->lse.strides[2] = 1;
    return TALLOW_OK;
}

static void scores(params *p, const candle_call *c) {
    p->softcap = c->softcap;
    /* 0 is Tallow's default scale and candle's uniform attention. */
    p->softmax_scale = c->softmax_scale == 0 ? FLT_MIN : c->softmax_scale;
    if (!c->alibi_slopes) return;
    p->alibi_slopes = (tallow_tensor){.data = c->alibi_slopes, .dtype = TALLOW_F32};
    if (c->alibi_slopes_batch_stride) {
        p->alibi_slopes.shape[0] = c->b, p->alibi_slopes.shape[1] = c->h;
        p->alibi_slopes.strides[0] = c->alibi_slopes_batch_stride, p->alibi_slopes.strides[1] = 1;
    } else {
        p->alibi_slopes.shape[0] = c->h;
    }
}

/* A causal call comes with a window too, which must say nothing new: -1 or seqlen_k, and 0. */
static tallow_status mask(params *p, const candle_call *c) {
    const int left = c->window_size_left, right = c->window_size_right;
    if (c->is_causal) {
        p->mask = TALLOW_MASK_CAUSAL;
        if ((left != -1 && left < (int64_t)c->seqlen_k) || right < -1 || right > 0)
            return tallow_fail(TALLOW_INVALID_ARGUMENT,
                               "window_size_left = %d, window_size_right = %d: must be -1 or at "
                               "least seqlen_k, %u, and -1 or 0, as is_causal is set",
                               left, right, (unsigned)c->seqlen_k);
    } else if (left != -1 || right != -1) {
        p->mask = TALLOW_MASK_WINDOW;
        p->window_left = left, p->window_right = right;
    }
    return TALLOW_OK;
}

/* They widen a mask; where there is none they are ignored. */
static tallow_status ranges(params *p, const candle_call *c) {
    const int most = c->max_mm_prefix_ranges;
    if (most < 0 || (most > 0 && !c->mm_prefix_ranges))
        return tallow_fail(TALLOW_INVALID_ARGUMENT,
                           "max_mm_prefix_ranges = %d: must be at least 0, and 0 where "
                           "mm_prefix_ranges is null",
                           most);
    if (p->mask != TALLOW_MASK_NONE && most > 0)
        p->prefix_ranges = (tallow_tensor){.data = c->mm_prefix_ranges,
                                           .dtype = TALLOW_I32,
                                           .shape = {c->b, most, 2},
                                           .strides = {c->mm_prefix_range_batch_stride, 2, 1}};
    return TALLOW_OK;
}

tallow_status tallow_candle_params(params *p, const candle_call *c, int32_t device) {
    *p = (params){.device = device, .stream = c->stream};
    if (c->is_bf16 != 0 && c->is_bf16 != 1)
        return tallow_fail(TALLOW_INVALID_ARGUMENT, "is_bf16 = %d: must be 0 or 1", c->is_bf16);
    scores(p, c);
    tallow_status status = queries(p, c);
    if (!status) status = mask(p, c);
    if (!status) status = ranges(p, c);
    if (!status) status = keys(p, c);
    return status ? status : lse(p, c);
}
