/* A tile: one block of query rows of one sequence and key head, against one part of its keys.
 * Compiled once per instruction set; cpu.c cuts a plan into tiles and calls the level's function.
 */
#ifndef TALLOW_TILE_H
#define TALLOW_TILE_H

#include "plan.h"

typedef struct {
    const problem *p;
    const plan *plan;
    const uint64_t *turns; /* rotary of q: tallow_rotary_turns of every pair */
    sequence seq;
    int64_t b, head_kv;
    int64_t row_begin, rows;    /* row r is query r / group, head head_kv * group + r % group */
    int64_t key_begin, key_end; /* the part */
    char *scratch;              /* plan->thread_bytes */
    float *partial; /* null: write out and lse. Else row r's normalised out, then its lse, at
                       partial + r * partial_stride */
    int64_t partial_stride;
} tile;

#define TILE_KEYS  256 /* most keys of a block */
#define TILE_ALIGN 64
#define TILE_LANES 16 /* columns of scratch matrices are padded to the widest vector */

/* Scratch of one thread for a plan's tiles. */
size_t tallow_tile_bytes(const problem *p, const plan *plan);

/* Address of row `key` (of head 0) in k or v. */
static inline char *tallow_key_row(const problem *p, const rows_view *view, const sequence *seq,
                                   int64_t b, int64_t key) {
    int64_t row = seq->k_start + key, outer = seq->cache_row;
    if (p->k_layout == LAYOUT_PAGED) {
        const int_view *t = &p->block_table;
        outer = t->data[b * t->stride[0] + row / p->page_size * t->stride[1]];
        row %= p->page_size;
    }
    int64_t size = view->dtype == TALLOW_F32 ? 4 : 2;
    return view->data + (outer * view->batch_stride + row * view->row_stride) * size;
}

void tallow_tile_scalar(const tile *t);
void tallow_tile_avx2(const tile *t);
void tallow_tile_avx512(const tile *t);
void tallow_tile_avx512bf16(const tile *t);

#endif
