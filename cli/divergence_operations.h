/* The steps that the decoder is made of, and what computes them. All memory but `host` is that of
 * the device. With `round` activations are rounded to bf16, as the variants' are; without it they
 * stay f32, as the reference's do. */
#ifndef DIVERGENCE_OPERATIONS_H
#define DIVERGENCE_OPERATIONS_H

#include "divergence_math.h"
#include "divergence_weights.h"
#include "tallow.h"

/* y (rows, n) = x (rows, k) w (k, n) [+ bias (n)] */
typedef struct {
    bool round;
    int64_t rows, k, n;
    const float *x, *w, *bias;
    float *y;
} projection;

typedef struct {
    tallow_device device;
    int64_t mlp_rows;           /* tokens that are in the MLP at once */
    void *(*take)(size_t size); /* zeroed; null: no memory */
    void (*give)(void *memory);
    void (*put)(void *to, const void *host, size_t size);
    void (*get)(void *host, const void *from, size_t size);
    void *(*scratch)(size_t size); /* of the library's calls, until the next one; null: no need */

    void (*weights)(const geometry *g, int64_t layer, const layer_weights *w);
    void (*embed)(const geometry *g, uint64_t document, int64_t tokens, float *hidden);
    void (*rms_norm)(bool round, int64_t rows, int64_t width, const float *x, float *y);
    void (*project)(const projection *p);
    void (*add)(bool round, int64_t count, const float *x, float *sum);
    void (*swiglu)(bool round, int64_t rows, int64_t width, const float *gate_up, float *mlp);
    void (*to_bf16)(int64_t count, const float *x, uint16_t *y);
    void (*from_bf16)(int64_t count, const uint16_t *x, float *y);

    /* The reference's: q and k of qkv turned by angles in f64; attention in f64. */
    void (*rotate)(const geometry *g, int64_t tokens, float *qkv);
    void (*attend)(const attention_f64 *a);

    /* mean (width), on the host, of the first `tokens` rows */
    void (*pool)(int64_t tokens, int64_t width, const float *hidden, float *host);

    const char *(*error)(void); /* the first that any step met; null: none */
} operations;

const operations *operations_cpu(void);

/* Null: there is no GPU that can; `why` says why. */
const operations *operations_cuda(const char **why);

#endif
