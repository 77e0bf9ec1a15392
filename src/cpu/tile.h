/* A tile: one block of query rows of one sequence and key head, against one part of its keys.
 * Few rows take several key heads, whose keys are neighbours in memory.
 * Compiled once per instruction set; cpu.c cuts a plan into tiles and calls the level's function.
 */
#ifndef TALLOW_TILE_H
#define TALLOW_TILE_H

#include <math.h>

#include "plan.h"

typedef struct {
    const problem *p;
    const plan *plan;
    const uint64_t *turns; /* rotary of q: tallow_rotary_turns of every pair */
    sequence seq;
    int64_t b, head_kv, heads_kv; /* heads_kv key heads from head_kv on, one after the other */
    int64_t row_begin, rows;      /* row r is query r / group, head head_kv * group + r % group */
    int64_t key_begin, key_end;   /* the part */
    bool direct;                  /* few rows: K and V are not packed */
    char *scratch;                /* plan->thread_bytes */
    float *partial; /* null: write out and lse. Else of row r, at partial + r * partial_stride: the
                       weighted sum of V, the maximum (log2 units) and the sum of the weights */
    int64_t partial_stride, partial_head_stride;
} tile;

#define TILE_KEYS  256 /* most keys of a block */
#define FEW_ROWS   16  /* a sequence's, so few that K and V are used where they lie (direct.h) */
#define FEW_KEYS   32  /* of a block then: K and V of one head stay in the first cache */
#define TILE_ALIGN 64
#define TILE_LANES 32 /* columns of scratch matrices are padded to two of the widest vectors */

#define PART_WIDTH(head_dim_v) ((head_dim_v) + 2)

/* What is left once a row has seen all its keys: the factor that normalises it (and
 * makes up for dropout), and its lse. */
typedef struct {
    float scale, lse;
} tallow_total;

static inline tallow_total tallow_tile_total(const problem *p, int64_t head, double max,
                                             double sum) {
    const double log2e = 1.44269504088896341, ln2 = 0.693147180559945309;
    double weight = 1;
    if (sum == 0) return (tallow_total){0, -INFINITY}; /* a visible key adds 1, or NaN */
    if (p->sinks.data) {
        double sink = p->sinks.data[head * p->sinks.stride[0]] * log2e, top = fmax(max, sink);
        weight = exp2(max - top);
        sum = sum * weight + exp2(sink - top);
        max = top;
    }
    return (tallow_total){(float)(weight / (sum * (1 - p->dropout_p))),
                          (float)((max + log2(sum)) * ln2)};
}

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
