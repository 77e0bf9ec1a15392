/* The CUDA backend: plans a problem for the GPU that its tensors lie on and runs it there, on the
 * caller's stream. Nothing waits for the GPU and nothing is allocated on it. */
#ifndef TALLOW_CUDA_H
#define TALLOW_CUDA_H

#include "plan_cuda.h"

tallow_status tallow_cuda_attention(const problem *p);
tallow_status tallow_cuda_rotary(const rotary_problem *p);
tallow_status tallow_cuda_merge(const merge_problem *p);

/* Of a call whose pointers may be null. */
tallow_status tallow_cuda_workspace(const problem *p, size_t *bytes);
tallow_status tallow_cuda_prepare(const problem *p);
tallow_status tallow_cuda_describe(const problem *p, char *text, size_t text_size);

#endif
