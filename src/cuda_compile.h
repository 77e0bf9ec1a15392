/* One specialisation from the library's own sources to code for a GPU. */
#ifndef TALLOW_CUDA_COMPILE_H
#define TALLOW_CUDA_COMPILE_H

#include "cuda_driver.h"
#include "sha256.h"
#include "spec.h"

/* Compiled code, and what the assembler says of it. */
typedef struct {
    void *image; /* the caller frees it */
    size_t size;
    bool spills;     /* registers go to memory, or the log does not say that none does */
    bool serialized; /* products wait for each other where they should overlap */
} cuda_code;

/* What a kernel's code follows from: sources, options, architecture, and the version of NVRTC; 0
 * where any version will do. */
void tallow_cuda_key(const spec *s, const char *arch, int nvrtc, uint8_t key[SHA256_BYTES]);

tallow_status tallow_cuda_compile(const spec *s, const char *arch, cuda_code *code);

/* Reads NVRTC's log into `code`. */
void tallow_cuda_read_log(const char *log, cuda_code *code);

#endif
