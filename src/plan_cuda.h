/* How a problem runs on a GPU. Like a plan it holds no pointers and touches no device. */
#ifndef TALLOW_PLAN_CUDA_H
#define TALLOW_PLAN_CUDA_H

#include "cuda_driver.h"
#include "problem.h"
#include "spec.h"

typedef struct {
    spec kernel;
    spec_tile tile;
    const char *why; /* on a GPU of sm_90 other instructions are used; null: they are not */
    int64_t tile_heads,
        group;            /* tiles are of so many heads, with so many query heads packed each */
    int64_t key_rows;     /* of one copy: block_keys, or those of a page if it has fewer */
    int64_t row_blocks;   /* tiles of the longest sequence and one head */
    int64_t splits;       /* most parts that a tile's keys are cut into */
    int64_t split_blocks; /* a part has at least so many blocks of keys */
    int64_t section;      /* (batch, head of tiles) pairs worked on at a time */
    int64_t tiles;
    int64_t blocks; /* thread blocks of the forward kernel; 0: nothing to compute */
    int64_t tokens; /* of each sequence that are appended or rotated first; 0: none */
    bool rotates_q;
    bool combines;                                    /* parts, by a kernel of its own */
    size_t partial_bytes, rotated_bytes, count_bytes; /* of the workspace, one behind the other */
    size_t workspace;
} cuda_plan;

/* Thread blocks, and row blocks, that go together: 2 in pairs, else 1. */
static inline int64_t tallow_cuda_together(const cuda_plan *plan) { return 1 + plan->kernel.pairs; }

/* Whether tensor maps reach as far as the strides do. */
bool tallow_cuda_strides_reach(const rows_view *view);

tallow_status tallow_cuda_plan_make(cuda_plan *out, const problem *p, const cuda_gpu *gpu);

/* The kernels that the call may take: how long its sequences are and how many, and the number of
 * multiprocessors, choose among them. How many there are. */
enum { PLAN_KERNELS = 6 };
int tallow_cuda_plan_kernels(spec out[PLAN_KERNELS], const problem *p, const cuda_gpu *gpu);

void tallow_cuda_plan_describe(const cuda_plan *plan, const problem *p, const cuda_gpu *gpu,
                               char *text, size_t text_size);

#endif
