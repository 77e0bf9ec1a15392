/* Problems and plans in the words of kernels/args.h. */
#ifndef TALLOW_CUDA_ARGS_H
#define TALLOW_CUDA_ARGS_H

#include "../kernels/args.h"
#include "plan_cuda.h"

void tallow_cuda_forward_args(forward_args *out, const problem *p, const cuda_plan *plan);
/* All of it but the maps. */
void tallow_cuda_tma_args(forward_tma_args *out, const problem *p, const cuda_plan *plan);
void tallow_cuda_append_args(append_args *out, const problem *p, const cuda_plan *plan);

/* The launch that rotates pairs from `first` on. */
void tallow_cuda_rotate_args(rotate_args *out, const rotary_problem *p, int64_t first);
void tallow_cuda_merge_args(merge_args *out, const merge_problem *p);

#endif
