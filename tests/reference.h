/* Attention in plain loops, straight from the public struct: the truth that every backend is
 * compared with. Shares nothing with the library but its header. */
#ifndef REFERENCE_H
#define REFERENCE_H

#include <stdbool.h>

#include "tallow.h"

typedef enum {
    ARITHMETIC_F64,  /* nothing is rounded: the truth */
    ARITHMETIC_PLAIN /* the same loops with every operation rounded to f32; rotated rows, P (unless
                        the precision is high) and out rounded to their dtypes: the yardstick */
} arithmetic;

/* Lengths and places of one sequence. Key j is row leftpad + j of its K; rows from `used` on are
 * the new ones. */
typedef struct {
    int64_t q_start, seqlen_q;      /* first row of packed q; else 0 */
    int64_t k_start, leftpad, used; /* first row of packed k; rows in use before the call */
    int64_t new_start, seqlen_new;  /* first row of packed k_new; rows appended */
    int64_t cache_row;              /* batch index of dense k and v */
    int64_t seqlen_k;               /* used + seqlen_new - leftpad */
} lengths;

lengths reference_lengths(const tallow_attention_params *p, int64_t b);

/* The call's dimensions. Row r of out is b * seqlen_q + i, or the packed row. */
typedef struct {
    int64_t batch, rows, heads, heads_kv, head_dim, head_dim_v;
    bool packed_q, packed_k, packed_new, paged;
} dimensions;

dimensions reference_dimensions(const tallow_attention_params *p);

/* out[(row * heads + h) * head_dim_v + c] and lse[row * heads + h]; rows of no sequence are left
 * alone. The tensors are read as they stand before the call. Returns the largest scaled sum of
 * |q k| that a visible score is made of: what the rounding errors of scores are relative to. */
double reference_attention(const tallow_attention_params *p, arithmetic how, double *out,
                           double *lse);

/* K (or V) of key j and key head h, rotated if it is a new one. */
void reference_key(const tallow_attention_params *p, arithmetic how, bool value, int64_t b,
                   int64_t h, int64_t j, double *row);

/* Element (a, b, c, d) of a tensor; indices beyond its dimensions are 0. */
void *reference_at(const tallow_tensor *t, int64_t a, int64_t b, int64_t c, int64_t d);
int64_t reference_stride(const tallow_tensor *t, int dimension);
size_t reference_size(int32_t dtype);

/* Row `row` of head h, of sequence b when dense, of page b when paged. */
void *reference_row(const tallow_tensor *t, bool packed, int64_t b, int64_t row, int64_t h);

/* Where row `row` of sequence b's K or V lies in memory. */
void *reference_cache_row(const tallow_attention_params *p, const tallow_tensor *t, int64_t b,
                          int64_t row, int64_t h);

double reference_load(const void *data, int32_t dtype, int64_t index);
void reference_store(void *data, int32_t dtype, int64_t index, double value);
double reference_round(int32_t dtype, double value); /* to nearest even */

#endif
