/* Where a kernel's code comes from: a pack, the disk, else the compiler. */
#ifndef TALLOW_CUDA_CACHE_H
#define TALLOW_CUDA_CACHE_H

#include "cuda_driver.h"
#include "spec.h"

enum { CUDA_CACHE_PATH = 4096 };

/* The folder that compiled kernels are kept in, whether or not it exists; false: the environment
 * names none. */
bool tallow_cuda_cache_folder(char path[CUDA_CACHE_PATH]);

/* Where a pack would lie beside the library; false: nobody can say. */
bool tallow_cuda_own_pack(char path[CUDA_CACHE_PATH]);

/* Code of a specialisation for a GPU; the caller frees it. `pack`: a file to look into first; null:
 * none. */
tallow_status tallow_cuda_image(const spec *s, int capability, const char *pack, void **image);

#endif
