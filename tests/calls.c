#include "calls.h"

#include <stdbool.h>
#include <string.h>

tallow_tensor tensor(void *data, int32_t dtype, int64_t d0, int64_t d1, int64_t d2, int64_t d3) {
    return (tallow_tensor){.data = data, .shape = {d0, d1, d2, d3}, .dtype = dtype};
}

static void fill_floats(float *values, size_t bytes) {
    for (size_t i = 0; i < bytes / sizeof *values; i++)
        values[i] = (float)((i * 2654435761u) % 1024) / 512 - 1;
}
#define FILL(field) fill_floats(c->data.field, sizeof c->data.field)

static void fill(call *c) {
    FILL(q), FILL(k), FILL(v), FILL(lse), FILL(other), FILL(k_new), FILL(v_new), FILL(slopes);
    FILL(sinks), FILL(inv_freq), FILL(cos), FILL(sin);
    const int32_t cu_q[] = {0, 1, 3}, cu_k[] = {0, 2, 6}, cu_new[] = {0, 1, 3};
    const int32_t table[] = {6, 2, 4, 1, 0, 5}, ranges[] = {0, 2, 0, 0, 1, 3, 0, 0};
    memcpy(c->data.cu_q, cu_q, sizeof cu_q);
    memcpy(c->data.cu_k, cu_k, sizeof cu_k);
    memcpy(c->data.cu_new, cu_new, sizeof cu_new);
    memcpy(c->data.table, table, sizeof table);
    memcpy(c->data.ranges, ranges, sizeof ranges);
    for (int b = 0; b < BATCH; b++) {
        c->data.seqused[b] = 4 - b;
        c->data.leftpad[b] = b;
        c->data.cache_row[b] = CACHE - 1 - b;
    }
    for (int i = 0; i < 3 * BATCH * ROWS_Q; i++) c->data.positions_q[i] = i % 8;
    for (int i = 0; i < 3 * BATCH * NEW; i++) c->data.positions_new[i] = i % 8;
}

static void make_attention(call *c) {
    tallow_attention_params *a = &c->a;
    const bool packed = c->base == PACKED;
    a->q = packed ? F32(q, ROWS_Q, HEADS, DIM, 0) : F32(q, BATCH, ROWS_Q, HEADS, DIM);
    a->out = packed ? F32(out, ROWS_Q, HEADS, DIM_V, 0) : F32(out, BATCH, ROWS_Q, HEADS, DIM_V);
    a->lse = packed ? F32(lse, HEADS, ROWS_Q, 0, 0) : F32(lse, BATCH, HEADS, ROWS_Q, 0);
    a->k = F32(k, BATCH, ROWS_K, HEADS_KV, DIM);
    a->v = F32(v, BATCH, ROWS_K, HEADS_KV, DIM_V);
    if (packed) {
        a->k = F32(k, ROWS_K, HEADS_KV, DIM, 0);
        a->v = F32(v, ROWS_K, HEADS_KV, DIM_V, 0);
        a->cu_seqlens_q = I32(cu_q, BATCH + 1, 0, 0, 0);
        a->cu_seqlens_k = I32(cu_k, BATCH + 1, 0, 0, 0);
    }
    if (c->base == PAGED) {
        a->k = F32(k, PAGES, PAGE, HEADS_KV, DIM);
        a->v = F32(v, PAGES, PAGE, HEADS_KV, DIM_V);
        a->block_table = I32(table, BATCH, COLUMNS, 0, 0);
        a->seqused_k = I32(seqused, BATCH, 0, 0, 0);
    }
    if (c->base == CACHED) {
        a->k = F32(k, CACHE, ROWS_K, HEADS_KV, DIM);
        a->v = F32(v, CACHE, ROWS_K, HEADS_KV, DIM_V);
        a->cache_batch_idx = I32(cache_row, BATCH, 0, 0, 0);
        a->seqused_k = I32(seqused, BATCH, 0, 0, 0);
        a->leftpad_k = I32(leftpad, BATCH, 0, 0, 0);
        a->k_new = F32(k_new, BATCH, NEW, HEADS_KV, DIM);
        a->v_new = F32(v_new, BATCH, NEW, HEADS_KV, DIM_V);
        a->rotary.rotary_dim = DIM;
        a->positions_q = I32(positions_q, BATCH, ROWS_Q, 0, 0);
        a->positions_k_new = I64(positions_new, BATCH, NEW, 0, 0);
    }
}

static void make_others(call *c) {
    const bool packed = c->base == ROTARY_PACKED;
    c->r.x = packed ? F32(q, ROWS_Q, HEADS, DIM, 0) : F32(q, BATCH, ROWS_Q, HEADS, DIM);
    c->r.out = packed ? F32(out, ROWS_Q, HEADS, DIM, 0) : F32(out, BATCH, ROWS_Q, HEADS, DIM);
    if (packed) c->r.cu_seqlens = I32(cu_q, BATCH + 1, 0, 0, 0);
    if (c->base == MERGE_PACKED) {
        c->m.out_a = F32(q, ROWS_Q, HEADS, DIM_V, 0);
        c->m.out_b = F32(k, ROWS_Q, HEADS, DIM_V, 0);
        c->m.out = F32(out, ROWS_Q, HEADS, DIM_V, 0);
        c->m.lse_a = F32(slopes, HEADS, ROWS_Q, 0, 0);
        c->m.lse_b = F32(other, HEADS, ROWS_Q, 0, 0);
        c->m.lse = F32(lse, HEADS, ROWS_Q, 0, 0);
        c->m.lse_a.data = c->data.v;
    } else {
        c->m.out_a = F32(q, BATCH, ROWS_Q, HEADS, DIM_V);
        c->m.out_b = F32(k, BATCH, ROWS_Q, HEADS, DIM_V);
        c->m.out = F32(out, BATCH, ROWS_Q, HEADS, DIM_V);
        c->m.lse_a = F32(v, BATCH, HEADS, ROWS_Q, 0);
        c->m.lse_b = F32(other, BATCH, HEADS, ROWS_Q, 0);
        c->m.lse = F32(lse, BATCH, HEADS, ROWS_Q, 0);
    }
}

void make_call(call *c, base_call base) {
    memset(c, 0, sizeof *c);
    c->base = base;
    fill(c);
    make_attention(c);
    make_others(c);
}

tallow_status run_call(call *c) {
    if (c->base >= MERGE) return tallow_merge(&c->m, sizeof c->m);
    if (c->base >= ROTARY) return tallow_rotary(&c->r, sizeof c->r);
    return tallow_attention(&c->a, sizeof c->a);
}

void use_packed_new(call *c) {
    c->a.cu_seqlens_k_new = I32(cu_new, BATCH + 1, 0, 0, 0);
    c->a.k_new = F32(k_new, 3, HEADS_KV, DIM, 0);
    c->a.v_new = F32(v_new, 3, HEADS_KV, DIM_V, 0);
    c->a.positions_k_new = I64(positions_new, 3, 0, 0, 0);
}

void use_tables(call *c) {
    c->a.rotary.cos = F32(cos, 9, DIM / 2, 0, 0);
    c->a.rotary.sin = F32(sin, 9, DIM / 2, 0, 0);
}

void use_mrope(call *c) {
    c->a.rotary.mrope = TALLOW_MROPE_CHUNKED;
    c->a.rotary.mrope_sections[0] = 4;
    c->a.rotary.mrope_sections[1] = c->a.rotary.mrope_sections[2] = 2;
    c->a.positions_q = I32(positions_q, 3, BATCH, ROWS_Q, 0);
    c->a.positions_k_new = I64(positions_new, 3, BATCH, NEW, 0);
}

void drop_data(call *c) {
    tallow_attention_params *a = &c->a;
    tallow_tensor *const all[] = {&a->q,
                                  &a->k,
                                  &a->v,
                                  &a->out,
                                  &a->lse,
                                  &a->cu_seqlens_q,
                                  &a->cu_seqlens_k,
                                  &a->seqused_k,
                                  &a->leftpad_k,
                                  &a->block_table,
                                  &a->cache_batch_idx,
                                  &a->alibi_slopes,
                                  &a->sinks,
                                  &a->prefix_ranges,
                                  &a->k_new,
                                  &a->v_new,
                                  &a->cu_seqlens_k_new,
                                  &a->rotary.inv_freq,
                                  &a->rotary.cos,
                                  &a->rotary.sin,
                                  &a->positions_q,
                                  &a->positions_k_new};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) all[i]->data = NULL;
}
