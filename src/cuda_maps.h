/* Tensor maps: what copies by the tensor memory accelerator of sm_90 read. */
#ifndef TALLOW_CUDA_MAPS_H
#define TALLOW_CUDA_MAPS_H

#include "cuda_args.h"

/* Fills the maps of the arguments from what forward says of q, k and v. Encoding takes the driver
 * about a microsecond each: a thread keeps its latest. */
tallow_status tallow_cuda_maps(forward_tma_args *args, const problem *p, const cuda_plan *plan);

#endif
