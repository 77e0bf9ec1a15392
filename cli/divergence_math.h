/* The arithmetic of `tallow divergence`: f32 products, f64 attention, bf16 rounding. Nothing here
 * uses the library: the reference must not share its errors. */
#ifndef DIVERGENCE_MATH_H
#define DIVERGENCE_MATH_H

#include <stdbool.h>
#include <stdint.h>

/* The nearest bf16, ties to even. */
uint16_t bf16_from_float(float x);
float bf16_to_float(uint16_t x);
float bf16_round(float x);

/* y (rows, n) = x (rows, k) w (k, n) [+ bias (n)], f32. */
void math_product(int64_t rows, int64_t k, int64_t n, const float *x, const float *w,
                  const float *bias, float *y);

/* Causal attention in f64 over f32 rows; each token's q, k and v lie at stride `row`. A query sees
 * its own token and `window_left` before it. out (tokens, heads, head_dim). False: out of memory.
 */
typedef struct {
    int64_t tokens, heads, heads_kv, head_dim, row, window_left;
    const float *q, *k, *v;
    float *out;
} attention_f64;

bool math_attention(const attention_f64 *a);

#endif
