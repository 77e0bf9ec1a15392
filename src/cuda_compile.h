/* One specialisation from the library's own sources to code for a GPU. */
#ifndef TALLOW_CUDA_COMPILE_H
#define TALLOW_CUDA_COMPILE_H

#include "cuda_driver.h"
#include "sha256.h"
#include "spec.h"

enum { CUDA_LOG = 3072 };

/* What a kernel's code follows from: sources, options, architecture, and the version of NVRTC; 0
 * where any version will do. */
void tallow_cuda_key(const spec *s, const char *arch, int nvrtc, uint8_t key[SHA256_BYTES]);

/* The caller frees the image. */
tallow_status tallow_cuda_compile(const spec *s, const char *arch, void **image, size_t *size,
                                  char log[CUDA_LOG]);

#endif
