/* Rows of the output, written from registers: shared memory is the next tile's. */
#ifndef OUTPUT_SM90_CUH
#define OUTPUT_SM90_CUH

#include "output.cuh"

/* Where the rows of a tile go, found by the scheduler. */
struct tile_end {
    char *out;  /* query 0 of the tile's first head */
    float *lse; /* the same; null: not wanted */
    int hides;  /* some key from some row */
};

INLINE tile_end end_of_tile(const forward_args &a, const work &w) {
    const int64_t head = (int64_t)w.head * a.sequences.group.by;
    tile_end end = {rows_of_tile(a, w, a.out).data, a.lse, hides_keys(w)};
    if (a.lse)
        end.lse += w.b * a.lse_batch_stride + head * a.lse_head_stride + w.seq.q_start;
    return end;
}

/* Rows are normalised, and their lse stored. Each lane of a quad does one row's arithmetic for all
 * four. */
INLINE void finish_rows(out_block &o, const softmax_state &state, const forward_args &a,
                        const work &w, const tile_end &end, float scale) {
    const int own = lane_id() % 2, row = row_in_tile(own);
    const uint32_t packed = w.row_begin + row, query = divide(packed, a.sequences.group);
    const uint32_t head = packed - query * a.sequences.group.by;
    const float base = base_of(own ? state.max[1] : state.max[0], scale);
    const row_total total = total_of(a, w.head * a.sequences.group.by + head, base,
                                     own ? state.sum[1] : state.sum[0]);
    if (end.lse && row < w.rows && lane_id() % 4 == own)
        end.lse[head * a.lse_head_stride + query] = total.lse;
    UNROLL for (int i = 0; i < tile::row_states; i++) {
        float factor = __shfl_sync(~0u, total.factor, lane_id() / 4 * 4 + i);
        UNROLL for (int n = 0; n < tile::column_parts; n++)
            UNROLL for (int c = 0; c < 2; c++) o[i / 2][n][i % 2 * 2 + c] *= factor;
    }
}

/* Register j of lane i of a quad becomes register i of lane j. */
INLINE void transpose_quad(uint32_t (&x)[4]) {
    UNROLL for (int bit = 1; bit < 4; bit *= 2)
        UNROLL for (int j = 0; j < 4; j++) {
            if (j & bit) continue;
            const bool upper = lane_id() & bit;
            uint32_t received = __shfl_xor_sync(~0u, upper ? x[j] : x[j | bit], bit);
            if (upper)
                x[j] = received;
            else
                x[j | bit] = received;
        }
}

/* Rows of 16-bit elements, straight from the accumulators: a quad writes 64 bytes. */
INLINE void store_quads(const out_block &o, const forward_args &a, const work &w,
                        const tile_end &end) {
    const tile_rows rows = {end.out, (uint32_t)w.row_begin};
    const int count = w.rows, lane = lane_id() % 4;
    UNROLL for (int i = 0; i < tile::row_states; i++) {
        const int row = row_in_tile(i);
        char *out = tile_row(a, rows, a.out, row) + lane * 16;
        UNROLL for (int n = 0; n < tile::column_parts; n += 4) {
            uint32_t pairs[4] = {0, 0, 0, 0};
            UNROLL for (int j = 0; j < 4; j++) {
                if (n + j >= tile::column_parts) break;
                const float *pair = &o[i / 2][n + j][i % 2 * 2];
                pairs[j] = pack(pair[0], pair[1]);
            }
            transpose_quad(pairs);
            const bool whole = (n + 4) * 8 <= spec::head_dim_v;
            if (row < count && (whole || (n + lane) * 8 < spec::head_dim_v))
                *(uint4 *)(out + n * 16) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        }
    }
}

#endif
