/* Matrix products by cuBLAS, whose matrices are column-major: a row-major product c = a b is to it
 * the product of b and a, in this order. */
#include "cuda_find.h"
#include "cuda_gpu.h"

typedef struct {
    int in, out, compute; /* cudaDataType_t, the same, cublasComputeType_t */
} blas_types;

/* Pedantic f32 may not be computed in TF32 or in pieces of bf16. */
static const blas_types TYPES[] = {
    [GPU_BF16] = {14, 0, 68}, [GPU_F32] = {0, 0, 69}, [GPU_F64] = {1, 1, 70}};

enum { KEEP = 0, TRANSPOSE = 1, DEFAULT_ALGORITHM = -1 };

static struct {
    void *handle;
    int (*create)(void **);
    int (*multiply)(void *, int, int, int, int, int, const void *, const void *, int, int,
                    long long, const void *, int, int, long long, const void *, void *, int, int,
                    long long, int, int, int);
} blas;

const char *gpu_blas_open(void) {
    if (blas.handle) return NULL;
    void *library = cuda_find_library("libcublas");
    if (!library) {
        return "libcublas.so is neither where the loader looks nor in CUDA_HOME, /usr/local/cuda "
               "or a Python wheel";
    }
    if (!cuda_find_function(library, "cublasCreate_v2", &blas.create) ||
        !cuda_find_function(library, "cublasGemmStridedBatchedEx", &blas.multiply))
        return "libcublas.so lacks cublasGemmStridedBatchedEx";
    if (!blas.create(&blas.handle)) return NULL;
    blas.handle = NULL;
    return "libcublas.so: cublasCreate fails";
}

void gpu_multiply(const gpu_matrices *m) {
    static const float one_f32 = 1, zero_f32 = 0;
    static const double one_f64 = 1, zero_f64 = 0;
    const bool f64 = m->type == GPU_F64;
    const void *one = f64 ? (const void *)&one_f64 : &one_f32;
    const void *zero = f64 ? (const void *)&zero_f64 : &zero_f32;
    blas_types t = TYPES[m->type];
    if (gpu_error() || m->rows == 0) return;
    int code =
        blas.multiply(blas.handle, m->transposed ? TRANSPOSE : KEEP, KEEP, (int)m->n, (int)m->rows,
                      (int)m->k, one, m->b, t.in, (int)(m->transposed ? m->k : m->n), m->b_stride,
                      m->a, t.in, (int)m->k, m->a_stride, zero, m->c, t.out, (int)m->n, m->c_stride,
                      (int)m->batch, t.compute, DEFAULT_ALGORITHM);
    if (code) gpu_fail("cublasGemmStridedBatchedEx: error %d", code);
}
