/* A plan says how a problem will run. It holds no pointers and touches no device, so it can be
 * printed, compared and tested anywhere. */
#ifndef TALLOW_PLAN_H
#define TALLOW_PLAN_H

#include "cpu_features.h"
#include "error.h"
#include "problem.h"

typedef struct {
    cpu_level level;
    int32_t threads;
    bool dot_bf16;      /* products of bf16 pairs, P rounded to bf16; else in f32 */
    int64_t block_rows; /* query rows of a tile: (query, head of the group) pairs of one key head */
    int64_t block_keys; /* keys taken at a time */
    int64_t block_heads; /* key heads that a tile takes side by side, block of keys by block */
    int64_t head_blocks; /* tiles over the key heads */
    int64_t row_blocks;  /* tiles of the longest sequence */
    int64_t splits;      /* most parts a sequence's keys are cut into */
    int64_t split_keys;  /* a sequence is cut into no more than seqlen_k / split_keys parts, rounded
                            up: a rule of its own length, not of the allocated cache */
    bool split_one_block; /* only sequences of a single tile of rows are split */
    size_t thread_bytes;  /* scratch per thread */
    size_t partial_bytes; /* partial results when splits > 1 */
    size_t workspace;     /* bytes in all */
} plan;

tallow_status tallow_plan_make(plan *out, const problem *p);

/* Parts that the keys of a sequence with `rows` query rows per key head are cut into. */
int64_t tallow_plan_parts(const plan *plan, int64_t rows, int64_t seqlen_k);

void tallow_plan_describe(const plan *plan, const problem *p, char *text, size_t text_size);

#endif
