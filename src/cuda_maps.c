#include "cuda_maps.h"

#include <string.h>

enum { CHUNK = 64, SETS = 32, WAYS = 4 }; /* elements of a row in a box; maps that a thread keeps */

/* Rows of heads as a tensor of `rank` dimensions, innermost first: elements of a row, then what
 * `dim` counts in steps of `stride` bytes. The driver wants no stride of 0, and reads none where
 * there is one of a kind. */
static void add_dimension(cuda_tensor *t, int64_t count, int64_t stride, int64_t box) {
    const int i = t->rank++;
    t->dim[i] = (uint64_t)count;
    t->box[i] = (uint32_t)box;
    if (i > 0) t->stride[i - 1] = count == 1 ? 16 : (uint64_t)stride;
}

static cuda_tensor row_elements(const rows_arg *rows, int64_t count, const problem *p) {
    cuda_tensor t;
    memset(&t, 0, sizeof t); /* compared as bytes */
    t.data = rows->data;
    t.f16 = p->dtype == TALLOW_F16;
    add_dimension(&t, count, 0, CHUNK);
    return t;
}

/* Rows of queries, or of what becomes of them: (element, query head of the tile, query, head of
 * tiles, sequence) */
static cuda_tensor queries(const rows_arg *q, int64_t width, const problem *p,
                           const cuda_plan *plan, int64_t box_rows) {
    cuda_tensor t = row_elements(q, width, p);
    add_dimension(&t, plan->group, q->head_stride, plan->group);
    add_dimension(&t, p->rows_q, q->row_stride, box_rows / plan->group);
    add_dimension(&t, plan->tile_heads, q->head_stride * plan->group, 1);
    add_dimension(&t, p->q_layout == LAYOUT_PACKED ? 1 : p->batch, q->batch_stride, 1);
    return t;
}

/* (element, row, key head, sequence or page) */
static cuda_tensor keys(const rows_arg *rows, int64_t width, const problem *p, int64_t box_rows) {
    const bool paged = p->k_layout == LAYOUT_PAGED, packed = p->k_layout == LAYOUT_PACKED;
    cuda_tensor t = row_elements(rows, width, p);
    add_dimension(&t, paged ? p->page_size : p->rows_k, rows->row_stride, box_rows);
    add_dimension(&t, p->heads_kv, rows->head_stride, 1);
    add_dimension(&t, paged ? p->pages : packed ? 1 : p->cache_rows, rows->batch_stride, 1);
    return t;
}

typedef struct {
    struct {
        cuda_tensor of;
        tensor_map map;
    } kept[WAYS];
    unsigned oldest;
} map_set;

/* A call's tensors may well fall into one set. */
static tallow_status find_map(tensor_map *out, const cuda_tensor *t) {
    static _Thread_local map_set sets[SETS];
    const uint64_t mixed = ((uintptr_t)t->data ^ t->dim[1] ^ t->dim[3] << 16) * 0x9e3779b97f4a7c15u;
    map_set *set = &sets[mixed >> 59];
    unsigned at = 0;
    while (at < WAYS && memcmp(&set->kept[at].of, t, sizeof *t)) at++;
    if (at == WAYS) {
        at = set->oldest;
        memset(&set->kept[at].of, 0, sizeof set->kept[at].of);
        tallow_status status = tallow_cuda_encode(&set->kept[at].map, t);
        if (status) return status;
        set->kept[at].of = *t;
        set->oldest = (at + 1) % WAYS;
    }
    *out = set->kept[at].map;
    return TALLOW_OK;
}

tallow_status tallow_cuda_maps(forward_tma_args *args, const problem *p, const cuda_plan *plan) {
    const forward_args *f = &args->forward;
    const cuda_tensor q = queries(&f->q, p->head_dim, p, plan, plan->tile.block_rows);
    const cuda_tensor k = keys(&f->k, p->head_dim, p, args->key_rows);
    const cuda_tensor v = keys(&f->v, p->head_dim_v, p, args->key_rows);
    tallow_status status = find_map(&args->q, &q);
    if (!status) status = find_map(&args->k, &k);
    if (!status) status = find_map(&args->v, &v);
    if (status || !args->copies_out) return status;
    const cuda_tensor out = queries(&f->out, p->head_dim_v, p, plan, WARP_ROWS);
    return find_map(&args->out, &out);
}
