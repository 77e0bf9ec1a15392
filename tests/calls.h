/* Small valid calls of every kind, with their memory, for tests to break or to vary. */
#ifndef CALLS_H
#define CALLS_H

#include "tallow.h"

enum {
    BATCH = 2,
    ROWS_Q = 3,
    ROWS_K = 6,
    HEADS = 4,
    HEADS_KV = 2,
    DIM = 16,
    DIM_V = 8,
    CACHE = 3, /* rows of the cache in CACHED */
    PAGES = 7,
    PAGE = 2,
    COLUMNS = 3,
    NEW = 2
};

typedef enum { DENSE, PACKED, PAGED, CACHED, ROTARY, ROTARY_PACKED, MERGE, MERGE_PACKED } base_call;

typedef struct {
    base_call base;
    tallow_attention_params a;
    tallow_rotary_params r;
    tallow_merge_params m;
    struct {
        float q[BATCH * ROWS_Q * HEADS * DIM], k[PAGES * ROWS_K * HEADS_KV * DIM];
        float v[PAGES * ROWS_K * HEADS_KV * DIM_V], out[BATCH * ROWS_Q * HEADS * DIM];
        float lse[BATCH * HEADS * ROWS_Q], other[BATCH * HEADS * ROWS_Q];
        float k_new[BATCH * NEW * HEADS_KV * DIM], v_new[BATCH * NEW * HEADS_KV * DIM_V];
        float slopes[BATCH * HEADS], sinks[HEADS], inv_freq[DIM], cos[9 * DIM], sin[9 * DIM];
        int32_t cu_q[BATCH + 1], cu_k[BATCH + 1], cu_new[BATCH + 1];
        int32_t seqused[BATCH], leftpad[BATCH], cache_row[BATCH], table[BATCH * COLUMNS];
        int32_t ranges[BATCH * 2 * 2], offset[BATCH];
        int32_t positions_q[3 * BATCH * ROWS_Q];
        int64_t positions_new[3 * BATCH * NEW];
        _Alignas(256) char workspace[256];
    } data;
} call;

tallow_tensor tensor(void *data, int32_t dtype, int64_t d0, int64_t d1, int64_t d2, int64_t d3);

/* Tensors in the memory of `call *c`. */
#define F32(field, ...) tensor(c->data.field, TALLOW_F32, __VA_ARGS__)
#define I32(field, ...) tensor(c->data.field, TALLOW_I32, __VA_ARGS__)
#define I64(field, ...) tensor(c->data.field, TALLOW_I64, __VA_ARGS__)

void make_call(call *c, base_call base);
tallow_status run_call(call *c);

/* Variations of CACHED: new rows packed, rotary tables, M-RoPE. */
void use_packed_new(call *c);
void use_tables(call *c);
void use_mrope(call *c);

/* Makes every pointer of a tallow_attention call null, as its planning calls allow. */
void drop_data(call *c);

/* Runs `action` on a fresh call `c` after `mutation`. */
#define WITH(base, mutation, action)                                                               \
    do {                                                                                           \
        call fresh, *c = &fresh;                                                                   \
        make_call(c, base);                                                                        \
        mutation;                                                                                  \
        action;                                                                                    \
    } while (0)

#endif
