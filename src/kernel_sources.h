/* The sources of the GPU kernels as the library carries them: generated at build time by
 * cmake/embed_kernels.cmake from kernels/ and the .def files that kernels include. */
#ifndef TALLOW_KERNEL_SOURCES_H
#define TALLOW_KERNEL_SOURCES_H

#include <stddef.h>

typedef struct {
    const char *name, *text; /* text ends with a NUL that `size` does not count */
    size_t size;
} kernel_source;

extern const kernel_source tallow_kernel_sources[];
extern const int tallow_kernel_source_count;

#endif
