/* The CUDA driver and NVRTC of this machine. Both are opened at run time, so that one binary serves
 * machines with and without them; cuda_driver.c is the only file that names their symbols. Whatever
 * they refuse becomes a status whose message has the call and the error's name. */
#ifndef TALLOW_CUDA_DRIVER_H
#define TALLOW_CUDA_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

enum { CUDA_MAX_GPUS = 16, CUDA_ARCH = 32 };

typedef struct {
    int ordinal;
    char name[96];
    int capability; /* 10 * major + minor */
    int multiprocessors;
    size_t shared_bytes; /* that one thread block may have */
    size_t l2_bytes;
    bool starts_early; /* kernels that wait by themselves start beside those before them */
    bool pairs;        /* of thread blocks may copy for each other, in clusters */
    bool always_pairs; /* wherever they can, also where they do not pay: for tests */
    int family;        /* of the kernels to run, as in spec.def; 0: the latest that it has */
} cuda_gpu;

typedef struct {
    int driver; /* CUDA version that the driver serves, such as 12080; 0: no driver */
    int nvrtc;  /* version of NVRTC, the same way; 0: none */
    int gpus;
    cuda_gpu gpu[CUDA_MAX_GPUS];
    char no_gpu[256]; /* why gpus, or nvrtc, is 0 */
    char no_nvrtc[256];
} cuda_facts;

void tallow_cuda_find(cuda_facts *out);

/* ---- contexts ---- */

/* The GPU of a call, its context current on this thread until tallow_cuda_leave. */
typedef struct {
    const cuda_gpu *gpu;
    bool pushed;
    uint64_t start, size; /* the allocation that was found last: tensors often share one */
} cuda_scope;

/* The GPU that `pointer` lies on. When the driver does not know the pointer it is an error that
 * names the tensor, or, with a null name, the GPU of the stream, of the current context, or the
 * first. */
tallow_status tallow_cuda_enter(cuda_scope *scope, const char *name, const void *pointer,
                                void *stream);
void tallow_cuda_leave(const cuda_scope *scope);

/* Whether kernels may follow the pointer. While the stream is captured any will do: the driver does
 * not know memory that the graph is going to allocate. */
bool tallow_cuda_knows(cuda_scope *scope, const void *pointer, void *stream);

/* Bytes from a pointer to the end of its allocation; 0: the driver does not know. Of a GPU that was
 * entered. */
int64_t tallow_cuda_room(const void *pointer);

/* ---- kernels ---- */

/* A compiled program, cubin or PTX, and the entries it was loaded for. Libraries stay loaded. */
tallow_status tallow_cuda_load(void **library, const void *image, const char *what);
tallow_status tallow_cuda_entry(void **entry, void *library, const char *name, int shared_bytes,
                                const cuda_gpu *gpu);

typedef struct {
    unsigned blocks, threads[2], shared_bytes;
    bool early; /* the kernel waits by itself for the one before it */
} cuda_shape;

tallow_status tallow_cuda_launch(void *entry, cuda_shape shape, void *stream, const void *args);

/* A tensor of up to 5 dimensions of 16-bit elements, innermost first, and the box of it that one
 * copy takes; strides in bytes, of the dimensions from the second on. */
typedef struct {
    const void *data;
    uint64_t dim[5], stride[4];
    uint32_t box[5];
    int32_t rank, f16, zero;
} cuda_tensor;

/* Encodes it for the tensor memory accelerator: 128 bytes, at a multiple of 64. Boxes lie in shared
 * memory with the permutation of 128 bytes; what is outside the tensor becomes zeros. */
tallow_status tallow_cuda_encode(void *map, const cuda_tensor *tensor);

/* ---- memory ---- */

/* Scratch on a GPU, there for the work that is put on the stream between the two calls; either may
 * be captured. It comes from a pool of the library, which keeps a little between calls and is freed
 * at exit. */
tallow_status tallow_cuda_allocate(void **memory, size_t bytes, const cuda_scope *scope,
                                   void *stream);
tallow_status tallow_cuda_free(void *memory, void *stream);

/* Writes one value to a matrix of 16-bit elements whose rows are `pitch` bytes apart. */
tallow_status tallow_cuda_fill(void *to, size_t pitch, uint16_t value, size_t columns, size_t rows,
                               void *stream);

/* Waits for the bytes. */
tallow_status tallow_cuda_read(void *host, const void *from, size_t bytes);

/* ---- compiling ---- */

/* Version of NVRTC as in cuda_facts; without one a status that says why. */
tallow_status tallow_nvrtc_version(int *version);

/* The architecture of a GPU: "sm_80"; "sm_90a" has instructions that no other GPU has. */
void tallow_cuda_arch(int capability, char arch[CUDA_ARCH]);

/* The architecture to compile for: "sm_80", or, for a GPU newer than NVRTC, the PTX of the newest
 * that it knows, "compute_120". */
tallow_status tallow_nvrtc_arch(int capability, char arch[CUDA_ARCH]);

typedef struct {
    const char *name, *text; /* of the program */
    int headers;
    const char *const *header_names, *const *header_texts;
    int options;
    const char *const *option;
    bool ptx;
} nvrtc_job;

/* Compiles; the caller frees the image. The log, cut to its size, is there either way. */
tallow_status tallow_nvrtc_compile(const nvrtc_job *job, void **image, size_t *size, char *log,
                                   size_t log_size);

#endif
