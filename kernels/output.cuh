/* The end of a tile: rows are normalised and written, with their lse, to the output or, when the
 * keys are split, to the partial results. */
#ifndef OUTPUT_CUH
#define OUTPUT_CUH

#include "softmax.cuh"
#include "scores.cuh"

INLINE void store_lse(const forward_args &a, const work &w, int row, float lse) {
    if (w.parts > 1) {
        float *partial = partial_of(a, w, w.part, tile::block_rows);
        partial[tile::block_rows * spec::head_dim_v + row] = lse;
    } else if (a.lse) {
        query_of_row q = query_of(a, w, row);
        a.lse[w.b * a.lse_batch_stride + q.head * a.lse_head_stride + w.seq.q_start + q.query] =
            lse;
    }
}

/* Normalises row i of the thread and returns its lse. A sink is one more logit without a value; of
 * a split tile it is left to tallow_combine. */
INLINE float finish_row(out_block &o, const forward_args &a, const work &w, int i, int row,
                        float max, float sum) {
    float factor = 1;
    bool empty = max == MINUS_INFINITY && sum == 0;
    if (a.sinks.data && w.parts == 1 && !empty && row < w.rows) {
        float sink = LOG2E * a.sinks.data[query_of(a, w, row).head * a.sinks.head_stride];
        float top = fmaxf(max, sink);
        factor = exp2f(max - top);
        sum = fmaf(sum, factor, exp2f(sink - top));
        max = top;
    }
    factor = empty ? 0 : factor / sum;
    if (spec::scores == 1) factor *= a.dropout_scale;
    UNROLL for (int n = 0; n < tile::column_parts; n++)
        UNROLL for (int c = 0; c < 2; c++) o[i / 2][n][i % 2 * 2 + c] *= factor;
    return empty ? MINUS_INFINITY : (max + log2f(sum)) * LN2;
}

/* Rows of floats, straight from the accumulators: a quad writes 32 bytes. */
INLINE void store_floats(const out_block &o, const forward_args &a, const work &w,
                         uint32_t memory) {
    float *partial = partial_of(a, w, w.part, tile::block_rows);
    UNROLL for (int i = 0; i < tile::row_states; i++) {
        int row = row_in_tile(i);
        if (row >= w.rows) continue;
        float *out = w.parts > 1 ? partial + row * spec::head_dim_v
                                 : (float *)noted(memory, row);
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
    for (int i = threadIdx.x; i < w.rows * layout::v_chunks; i += tile::threads) {
        int row = i / layout::v_chunks, chunk = i % layout::v_chunks;
        if (chunk * 8 >= spec::head_dim_v) continue;
        char *out = (char *)noted(memory, row) + chunk * 16;
        uint4 c = shared_chunk(chunk_at(memory + layout::out, row, chunk, layout::v_chunks));
        if (spec::access == 0) {
            *(uint4 *)out = c;
        } else {
            uint32_t words[4] = {c.x, c.y, c.z, c.w};
            UNROLL for (int e = 0; e < 8; e++)
                ((uint16_t *)out)[e] = (uint16_t)(words[e / 2] >> e % 2 * 16);
        }
    }
}

INLINE void finish_tile(out_block &o, softmax_state &state, const forward_args &a, const work &w,
                        float scale, uint32_t memory) {
    finish_sums(state.sum, memory);
    note_addresses(a, w, memory, a.out);
    __syncthreads(); /* addresses are there; Q and the ring are no longer read */
    UNROLL for (int i = 0; i < tile::row_states; i++) {
        int row = row_in_tile(i);
        float lse = finish_row(o, a, w, i, row, state.max[i] * scale, state.sum[i]);
        if (row < w.rows && lane_id() % 4 == 0 && column_warp() == 0) store_lse(a, w, row, lse);
    }
    if (spec::full || w.parts > 1 || a.out_dtype == 3)
        store_floats(o, a, w, memory);
    else
        store_halves(o, a, w, memory);
}

#endif
