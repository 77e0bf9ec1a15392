#include "cuda_args.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "rotary.h"

static_assert(sizeof(forward_tma_args) <= 4096 && sizeof(append_args) <= 4096 &&
                  sizeof(rotate_args) <= 4096 && sizeof(merge_args) <= 4096,
              "every driver accepts 4096 bytes of arguments");
static_assert(TALLOW_MAX_HEAD_DIM / 2 <= ROTATE_PAIRS, "one launch appends");

static rows_arg rows_of(const rows_view *view) {
    const int64_t size = (int64_t)tallow_dtype_size(view->dtype);
    return (rows_arg){view->data, view->batch_stride * size, view->row_stride * size,
                      view->head_stride * size};
}

static ints_arg ints_of(const int_view *view) { return (ints_arg){view->data, view->stride[0]}; }

static positions_arg positions_of(const position_view *view) {
    return (positions_arg){.data = view->data,
                           .mrope_stride = view->mrope_stride,
                           .batch_stride = view->batch_stride,
                           .row_stride = view->row_stride,
                           .wide = view->dtype == TALLOW_I64};
}

static void angles_of(angles_arg *out, const rotary_view *r, int64_t first) {
    uint64_t turns[TALLOW_MAX_ROTARY_PAIRS];
    const int64_t half = r->dim / 2, left = half - first;
    const int64_t pairs = left < ROTATE_PAIRS ? left : ROTATE_PAIRS;
    out->pairs = (int32_t)pairs;
    if (pairs == 0) return;
    tallow_rotary_turns(r, turns);
    memcpy(out->turns, turns + first, (size_t)pairs * sizeof *turns);
    out->cos = r->cos;
    out->sin = r->sin;
    out->cos_stride = r->cos_stride;
    out->sin_stride = r->sin_stride;
    out->table_rows = r->table_rows;
    out->table_dtype = r->table_dtype;
    out->first_pair = (int32_t)first;
    out->half = (int32_t)half;
    out->pairing = r->pairing;
    out->mrope = r->mrope;
    memcpy(out->sections, r->sections, sizeof out->sections);
    out->factor = r->factor;
}

static sequences_arg sequences_of(const problem *p) {
    const bool paged = p->k_layout == LAYOUT_PAGED;
    return (sequences_arg){
        .cu_seqlens_q = ints_of(&p->cu_seqlens_q),
        .cu_seqlens_k = ints_of(&p->cu_seqlens_k),
        .cu_seqlens_k_new = ints_of(&p->cu_seqlens_k_new),
        .seqused_k = ints_of(&p->seqused_k),
        .leftpad_k = ints_of(&p->leftpad_k),
        .cache_batch_idx = ints_of(&p->cache_batch_idx),
        .block_table = p->block_table.data,
        .table_batch_stride = p->block_table.stride[0],
        .table_stride = p->block_table.stride[1],
        .page_size = divisor_of(paged ? (uint32_t)p->page_size : 1),
        .rows_q = (int32_t)p->rows_q,
        .rows_k = (int32_t)p->rows_k,
        .rows_new = (int32_t)p->rows_new,
        .cache_rows = (int32_t)p->cache_rows,
        .pages = (int32_t)p->pages,
        .batch = (int32_t)p->batch,
        .heads = (int32_t)p->heads,
        .heads_kv = divisor_of((uint32_t)p->heads_kv),
        .group = divisor_of((uint32_t)p->group),
    };
}

/* What memory does not hold by chance: another number in each process. */
static uint64_t tag(void) {
    static _Atomic uint64_t chosen;
    uint64_t x = chosen, none = 0;
    struct timespec now;
    if (x) return x;
    timespec_get(&now, TIME_UTC);
    x = ((uint64_t)now.tv_sec << 32 ^ (uint64_t)now.tv_nsec) + (uintptr_t)&now;
    x = (x ^ x >> 31) * 0x9e3779b97f4a7c15u;
    x = x >> COUNT_BITS | 1;
    return atomic_compare_exchange_strong(&chosen, &none, x) ? x : none;
}

static uint64_t *counts(const problem *p, const cuda_plan *plan) {
    if (plan->count_bytes == 0) return NULL;
    return (uint64_t *)((char *)p->workspace + plan->partial_bytes + plan->rotated_bytes);
}

/* Q as it is, or rotated in the workspace behind the partial results, without gaps. */
static rows_arg queries(const problem *p, const cuda_plan *plan) {
    rows_arg q = rows_of(&p->q);
    if (!plan->rotates_q) return q;
    q.data = (char *)p->workspace + plan->partial_bytes;
    q.head_stride = p->head_dim * (int64_t)tallow_dtype_size(p->dtype);
    q.row_stride = q.head_stride * p->heads;
    q.batch_stride = p->q_layout == LAYOUT_PACKED ? 0 : q.row_stride * p->rows_q;
    return q;
}

void tallow_cuda_forward_args(forward_args *out, const problem *p, const cuda_plan *plan) {
    const int64_t left = p->batch * plan->tile_heads % plan->section;
    const int64_t row_blocks = plan->row_blocks / tallow_cuda_together(plan);
    *out = (forward_args){
        .sequences = sequences_of(p),
        .kv_group = divisor_of((uint32_t)(plan->tile_heads / p->heads_kv)),
        .q = queries(p, plan),
        .k = rows_of(&p->k),
        .v = rows_of(&p->v),
        .out = rows_of(&p->out),
        .lse = p->lse,
        .lse_batch_stride = p->lse_batch_stride,
        .lse_head_stride = p->lse_head_stride,
        .partial = p->workspace,
        .counts = counts(p, plan),
        .tag = tag(),
        .row_blocks = (int32_t)row_blocks,
        .split_blocks = (int32_t)plan->split_blocks,
        .splits = divisor_of((uint32_t)plan->splits),
        .section = divisor_of((uint32_t)plan->section),
        .last_section = divisor_of((uint32_t)(left ? left : plan->section)),
        .section_tiles = divisor_of((uint32_t)(plan->section * row_blocks)),
        .scale = p->softmax_scale,
        .softcap = p->softcap,
        .alibi_slopes = {p->alibi_slopes.data, p->alibi_slopes.stride[0],
                         p->alibi_slopes.stride[1]},
        .sinks = {p->sinks.data, 0, p->sinks.stride[0]},
        .window_left = p->window_left,
        .window_right = p->window_right,
        .prefix_ranges = p->prefix_ranges.data,
        .range_batch_stride = p->prefix_ranges.stride[0],
        .range_stride = p->prefix_ranges.stride[1],
        .range_end_stride = p->prefix_ranges.stride[2],
        .max_ranges = (int32_t)p->max_ranges,
        .out_dtype = p->out_dtype,
        .dropout_threshold = (uint32_t)ceil(p->dropout_p * 4294967296.0),
        .dropout_scale = (float)(1 / (1 - p->dropout_p)),
        .dropout_seed = p->dropout_seed,
        .dropout_offset = p->dropout_offset,
    };
    out->sequences.heads_kv = divisor_of((uint32_t)plan->tile_heads);
    out->sequences.group = divisor_of((uint32_t)plan->group);
}

/* Whether rows of the output are those of the query in all but their width. */
static bool copies_out(const problem *p, const cuda_plan *plan) {
    return plan->tile.stages_out && p->out_dtype == p->dtype && WARP_ROWS % plan->group == 0 &&
           tallow_cuda_strides_reach(&p->out);
}

void tallow_cuda_tma_args(forward_tma_args *out, const problem *p, const cuda_plan *plan) {
    tallow_cuda_forward_args(&out->forward, p, plan);
    out->items = (int32_t)(plan->tiles / tallow_cuda_together(plan));
    out->blocks = (int32_t)(plan->blocks / tallow_cuda_together(plan));
    out->key_rows = (int32_t)plan->key_rows;
    out->copies_out = copies_out(p, plan);
}

void tallow_cuda_append_args(append_args *out, const problem *p, const cuda_plan *plan) {
    *out = (append_args){
        .sequences = sequences_of(p),
        .k = rows_of(&p->k),
        .v = rows_of(&p->v),
        .k_new = rows_of(&p->k_new),
        .v_new = rows_of(&p->v_new),
        .q = rows_of(&p->q),
        .positions_q = positions_of(&p->positions_q),
        .positions_new = positions_of(&p->positions_new),
        .dtype = p->dtype,
        .head_dim = (int32_t)p->head_dim,
        .head_dim_v = (int32_t)p->head_dim_v,
        .tokens = (int32_t)plan->tokens,
    };
    if (plan->rotates_q) out->q_out = queries(p, plan);
    angles_of(&out->angles, &p->rotary, 0);
}

void tallow_cuda_rotate_args(rotate_args *out, const rotary_problem *p, int64_t first) {
    *out = (rotate_args){
        .x = rows_of(&p->x),
        .out = rows_of(&p->out),
        .cu_seqlens = ints_of(&p->cu_seqlens),
        .offset = ints_of(&p->offset),
        .positions = positions_of(&p->positions),
        .dtype = p->dtype,
        .head_dim = (int32_t)p->head_dim,
        .heads = (int32_t)p->heads,
        .batch = (int32_t)p->batch,
        .rows = (int32_t)p->rows,
        .move = first == 0 && p->x.data != p->out.data,
    };
    angles_of(&out->angles, &p->rotary, first);
}

void tallow_cuda_merge_args(merge_args *out, const merge_problem *p) {
    *out = (merge_args){
        .out_a = rows_of(&p->out_a),
        .out_b = rows_of(&p->out_b),
        .out = rows_of(&p->out),
        .lse_a = p->lse_a,
        .lse_b = p->lse_b,
        .lse = p->lse,
        .dtype_a = p->out_a.dtype,
        .dtype_b = p->out_b.dtype,
        .dtype_out = p->out.dtype,
        .batch = (int32_t)p->batch,
        .heads = (int32_t)p->heads,
        .rows = (int32_t)p->seqlen_q,
        .head_dim_v = (int32_t)p->head_dim_v,
    };
    memcpy(out->lse_a_stride, p->lse_a_stride, sizeof out->lse_a_stride);
    memcpy(out->lse_b_stride, p->lse_b_stride, sizeof out->lse_b_stride);
    memcpy(out->lse_stride, p->lse_stride, sizeof out->lse_stride);
}
