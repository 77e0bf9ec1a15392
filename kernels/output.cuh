/* The end of a tile: rows are normalised and their lse written; or, when the keys are split, their
 * maxima and sums to the partial results. */
#ifndef OUTPUT_CUH
#define OUTPUT_CUH

#include "scores.cuh"
#include "softmax.cuh"
#include "total.cuh"

/* Of a part, maxima and sums; its rows stay as they are. */
INLINE void store_states(const softmax_state &state, const forward_args &a, const work &w,
                         float scale) {
    float *partial = partial_of(a, w, w.part);
    float2 *states = (float2 *)(partial + tile::block_rows * spec::head_dim_v);
    if (lane_id() % 4 != 0 || column_warp() != 0) return;
    UNROLL for (int i = 0; i < tile::row_states; i++)
        states[row_in_tile(i)] = make_float2(base_of(state.max[i], scale), state.sum[i]);
}

/* Rows of floats, straight from the accumulators: a quad writes 32 bytes. */
INLINE void store_floats(const out_block &o, const forward_args &a, const work &w) {
    float *partial = partial_of(a, w, w.part);
    const tile_rows rows = rows_of_tile(a, w, a.out);
    const int count = w.rows;
    const bool split = w.parts > 1;
    UNROLL for (int i = 0; i < tile::row_states; i++) {
        int row = row_in_tile(i);
        if (row >= count) continue;
        float *out = split ? partial + row * spec::head_dim_v
                           : (float *)tile_row(a, rows, a.out, row);
        UNROLL for (int n = 0; n < tile::column_parts; n++) {
            int column = out_part(n) * 8 + lane_id() % 4 * 2;
            const float *pair = &o[i / 2][n][i % 2 * 2];
            if (column >= spec::head_dim_v) break;
            if (spec::access == 0) {
                *(float2 *)(out + column) = make_float2(pair[0], pair[1]);
            } else {
                out[column] = pair[0];
                out[column + 1] = pair[1];
            }
        }
    }
}

#endif
