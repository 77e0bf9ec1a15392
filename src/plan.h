/* A plan says how a problem will run. It holds no pointers and touches no device, so it can be
 * printed, compared and tested anywhere. */
#ifndef TALLOW_PLAN_H
#define TALLOW_PLAN_H

#include "cpu_features.h"
#include "problem.h"

typedef struct {
    cpu_level level;
    int32_t threads;
    bool dot_bf16;      /* products in bf16 pairs (P rounded to bf16); else in f32 */
    int64_t block_rows; /* query rows of a tile: (row, head of the group) pairs of one key head */
    int64_t block_keys;
    int64_t row_blocks;   /* tiles of the longest sequence */
    int64_t splits;       /* most parts any sequence's keys are cut into */
    int64_t split_keys;   /* > 0: every part has this many keys; 0: keys are cut into `splits` equal
                             parts */
    size_t thread_bytes;  /* scratch per thread */
    size_t partial_bytes; /* partial results when splits > 1 */
    size_t workspace;     /* threads * thread_bytes + partial_bytes */
} plan;

tallow_status tallow_plan_make(plan *out, const problem *p);
void tallow_plan_describe(const plan *plan, const problem *p, char *text, size_t text_size);

#endif
