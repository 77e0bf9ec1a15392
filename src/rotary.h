/* Exact angles at any integer position. A frequency is kept as a 64-bit fixed-point fraction of a
 * turn per position, so that position * frequency wraps modulo one turn by itself: the reduction is
 * exact for every position and costs one integer multiplication on any backend. */
#ifndef TALLOW_ROTARY_H
#define TALLOW_ROTARY_H

#include "problem.h"

/* Turns per position of every pair, as fractions of 2^64: turns[i] for i in [0, dim/2), each
 * within one unit. All zero with tables, which need none. */
void tallow_rotary_turns(const rotary_view *r, uint64_t *turns);

/* Which row of M-RoPE positions pair i takes: 0, 1 or 2 (0 without M-RoPE). */
int tallow_rotary_mrope_row(const rotary_view *r, int64_t pair);

/* cos and sin of 2 pi * turns / 2^64, to f32 rounding. */
void tallow_rotary_cos_sin(uint64_t turns, float *cos, float *sin);

/* The angles of one token: cos[i], sin[i] for i in [0, dim/2), attention factor included.
 * Positions are those of the token's three M-RoPE rows, all equal without M-RoPE. */
void tallow_rotary_token(const rotary_view *r, const uint64_t *turns, const int64_t position[3],
                         float *cos, float *sin);

/* Positions of the token in row `row` (counted in the whole tensor when packed) of sequence b;
 * `implicit` when the view is absent. */
void tallow_rotary_positions(const position_view *view, const rotary_view *r, int64_t b,
                             int64_t row, int64_t implicit, int64_t position[3]);

/* Rotates the first r->dim elements of `x` in place (f32). */
void tallow_rotary_apply(const rotary_view *r, const float *cos, const float *sin, float *x);

#endif
