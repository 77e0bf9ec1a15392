/* Rows of the output, written from registers: shared memory is the next tile's. */
#ifndef OUTPUT_SM90_CUH
#define OUTPUT_SM90_CUH

#include "output.cuh"

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
INLINE void store_quads(const out_block &o, const forward_args &a, const work &w) {
    const tile_rows rows = rows_of_tile(a, w, a.out);
    UNROLL for (int i = 0; i < tile::row_states; i++) {
        const int row = row_in_tile(i);
        char *out = tile_row(a, rows, a.out, row);
        UNROLL for (int n = 0; n < tile::column_parts; n += 4) {
            const int column = (n + lane_id() % 4) * 8;
            uint32_t pairs[4] = {0, 0, 0, 0};
            UNROLL for (int j = 0; j < 4; j++) {
                if (n + j >= tile::column_parts) break;
                const float *pair = &o[i / 2][n + j][i % 2 * 2];
                pairs[j] = pack(pair[0], pair[1]);
            }
            transpose_quad(pairs);
            if (row < w.rows && column < spec::head_dim_v)
                *(uint4 *)(out + column * 2) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        }
    }
}

#endif
