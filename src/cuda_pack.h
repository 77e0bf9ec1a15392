/* Kernels compiled ahead of time, without a GPU, into packs. */
#ifndef TALLOW_CUDA_PACK_H
#define TALLOW_CUDA_PACK_H

#include "problem.h"

/* Adds what the problem needs on GPUs of `arch` to its pack, and says so in `text`. */
tallow_status tallow_cuda_pack(const problem *p, const char *arch, char *text, size_t text_size);

#endif
