/* Rows of the output, written through shared memory. */
#ifndef OUTPUT_SM80_CUH
#define OUTPUT_SM80_CUH

#include "output.cuh"

INLINE void store_chunk(char *out, uint4 c) {
    if (spec::access == 0) {
        *(uint4 *)out = c;
    } else {
        uint32_t words[4] = {c.x, c.y, c.z, c.w};
        UNROLL for (int e = 0; e < 8; e++)
            ((uint16_t *)out)[e] = (uint16_t)(words[e / 2] >> e % 2 * 16);
    }
}

/* Rows of 16-bit elements, gathered in shared memory to be written in whole chunks. */
INLINE void store_halves(const out_block &o, const forward_args &a, const work &w,
                         uint32_t memory) {
    UNROLL for (int i = 0; i < tile::row_states; i++)
        UNROLL for (int n = 0; n < tile::column_parts; n++) {
            if (!has_part(n)) break;
            const float *pair = &o[i / 2][n][i % 2 * 2];
            set_shared_i32(chunk_at(memory + layout::out, row_in_tile(i), out_part(n),
                                    layout::v_chunks) + lane_id() % 4 * 4,
                           pack(pair[0], pair[1]));
        }
    __syncthreads();
    const tile_rows rows = rows_of_tile(a, w, a.out);
    const int count = w.rows;
    _Pragma("unroll 1") for (int row = thread_id() / 4; row < count; row += tile::threads / 4) {
        char *out = tile_row(a, rows, a.out, row);
        uint32_t from = chunk_at(memory + layout::out, row, lane_id() % 4, layout::v_chunks);
        UNROLL for (int step = 0; step < layout::v_chunks; step += 4) {
            int chunk = step + lane_id() % 4;
            if (chunk * 8 >= spec::head_dim_v) break;
            store_chunk(out + chunk * 16,
                        shared_chunk(chunk_further(from, step, layout::v_chunks)));
        }
    }
}

/* Rows are normalised, and their lse stored. Each lane of a quad does one row's arithmetic for all
 * four. */
INLINE void finish_rows(out_block &o, const softmax_state &state, const forward_args &a,
                        const work &w, float scale) {
    const int own = lane_id() % tile::row_states, row = row_in_tile(own);
    float base = base_of(state.max[0], scale), sum = state.sum[0];
    UNROLL for (int i = 1; i < tile::row_states; i++) {
        base = own == i ? base_of(state.max[i], scale) : base;
        sum = own == i ? state.sum[i] : sum;
    }
    const query_of_row q = query_of(a, w, row);
    const row_total total = total_of(a, q.head, base, sum);
    if (a.lse && row < w.rows && lane_id() % 4 == own && column_warp() == 0)
        *lse_at(a, w, q) = lse_of(total);
    UNROLL for (int i = 0; i < tile::row_states; i++) {
        float factor = __shfl_sync(~0u, total.factor, lane_id() / 4 * 4 + i);
        UNROLL for (int n = 0; n < tile::column_parts; n++)
            UNROLL for (int c = 0; c < 2; c++) o[i / 2][n][i % 2 * 2 + c] *= factor;
    }
}

INLINE void finish_tile(out_block &o, softmax_state &state, const forward_args &a, const work &w,
                        float scale, uint32_t memory) {
    finish_sums(state.sum, memory);
    __syncthreads(); /* Q and the ring are no longer read */
    if (w.parts > 1)
        store_states(state, a, w, scale);
    else
        finish_rows(o, state, a, w, scale);
    if (spec::full || w.parts > 1 || a.out_dtype == 3)
        store_floats(o, a, w);
    else
        store_halves(o, a, w, memory);
}

#endif
