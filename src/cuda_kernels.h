/* The kernels that are loaded: found by specialisation, loaded once for each GPU. */
#ifndef TALLOW_CUDA_KERNELS_H
#define TALLOW_CUDA_KERNELS_H

#include "cuda_driver.h"
#include "spec.h"

/* Entries of a loaded program: those of a forward kernel's, and those of rows.cu. */
enum { ENTRY_FORWARD, ENTRY_COMBINE, ENTRIES = 3, ENTRY_APPEND = 0, ENTRY_ROTATE, ENTRY_MERGE };

/* The entries of a specialisation on the current context's GPU. Waits for no lock, and reads no
 * `pack`, once loaded. */
tallow_status tallow_cuda_kernels(const spec *s, const cuda_gpu *gpu, const char *pack,
                                  void *const **entries);

#endif
