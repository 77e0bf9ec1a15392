/* A GPU for the work that the command line does itself: memory, kernels, matrix products, time.
 *
 * The first error stays, in words, until the process ends; what is called after it does nothing. */
#ifndef CUDA_GPU_H
#define CUDA_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Makes the first GPU current on this thread. */
bool gpu_open(void);
const char *gpu_error(void); /* null: none */

/* Records an error if there is none yet. */
void gpu_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* "NVIDIA H200" and so on; the driver as the CUDA version that it serves, such as 13000. */
void gpu_describe(char *name, size_t size, int *driver);

/* ---- memory ---- */

void *gpu_take(size_t bytes); /* zeroed; null: an error */
void gpu_give(void *memory);
void gpu_put(void *to, const void *host, size_t bytes);
void gpu_get(void *host, const void *from, size_t bytes); /* waits for what was launched before */
void gpu_copy(void *to, const void *from, size_t bytes);
void gpu_wait(void);

/* ---- kernels ---- */

/* A compiled program; the caller frees the image. Null: `why` says why. */
void *gpu_compile(const char *source, const char *arch, char *why, size_t why_size);

/* The kernels of a source that the command carries, in order of `names`. */
bool gpu_kernels(const char *source, int count, const char *const *names, void **kernels);
void gpu_launch(void *kernel, int64_t blocks, int64_t blocks_y, int threads, void **args);

/* ---- matrix products ---- */

typedef enum { GPU_BF16, GPU_F32, GPU_F64 } gpu_type;

/* c (rows, n) = a (rows, k) b, all row-major; b is (k, n), or (n, k) when transposed. bf16 sums
 * into an f32 c, f32 stays f32 without shortcuts, f64 is f64. `batch` products at strides. */
typedef struct {
    gpu_type type;
    bool transposed;
    int64_t rows, n, k;
    const void *a, *b;
    void *c;
    int64_t batch, a_stride, b_stride, c_stride;
} gpu_matrices;

/* Null: ready; else why there is no cuBLAS, which is no gpu_error yet. */
const char *gpu_blas_open(void);
void gpu_multiply(const gpu_matrices *m);

/* ---- time ---- */

/* Seconds that the GPU takes for `count` times `run`, one after the other. */
double gpu_seconds(void (*run)(void *context), void *context, int count);

#endif
