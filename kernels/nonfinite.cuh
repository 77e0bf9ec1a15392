/* A weight of 0 times inf or NaN is NaN, so that a value that some rows see would leak to the rows
 * of the tile that must not see it. This is too rare to look for: a tile whose output is not finite
 * is computed once more, carefully. Then every inf and NaN of V in a masked block of keys is taken
 * out, and in the end added to the rows that see it: whatever their weight, the sum is the same. */
#ifndef NONFINITE_CUH
#define NONFINITE_CUH

#include "scores.cuh"

INLINE bool any_nonfinite(const out_block &o, const work &w) {
    const int chains = spec::family == 90 ? 4 : 1; /* that need not wait for each other */
    float zero[4] = {0, 0, 0, 0};
    UNROLL for (int i = 0; i < tile::row_states; i++) {
        if (spec::family == 90 && row_in_tile(i) >= w.rows) continue; /* else they are zeros */
        UNROLL for (int n = 0; n < tile::column_parts; n++)
            UNROLL for (int c = 0; c < 2; c++) {
                float &chain = zero[(n * 2 + c) % chains];
                chain = fmaf(o[i / 2][n][i % 2 * 2 + c], 0, chain);
            }
    }
    return zero[0] + zero[1] + zero[2] + zero[3] != 0;
}

INLINE bool nonfinite_bits(uint32_t bits) {
    const uint32_t exponent = spec::full ? 0x7f800000u : spec::f16 ? 0x7c00u : 0x7f80u;
    return (bits & exponent) == exponent;
}

INLINE uint32_t finite_word(uint32_t word) {
    if (spec::full) return nonfinite_bits(word) ? 0 : word;
    return (nonfinite_bits(word) ? 0 : word & 0xffffu) |
           (nonfinite_bits(word >> 16) ? 0 : word & 0xffff0000u);
}

/* Takes inf and NaN out of rows [first_row, ...) of a block of V in shared memory. */
INLINE void remove_nonfinite(uint32_t v, int first_row, int thread, const int threads) {
    _Pragma("unroll 1") for (int i = thread; i < layout::v_pieces; i += threads) {
        if (spec::family == 90 && layout::piece_row(i) < first_row) continue;
        uint4 c = shared_chunk(v + i * 16);
        set_shared_chunk(v + i * 16, make_uint4(finite_word(c.x), finite_word(c.y),
                                                finite_word(c.z), finite_word(c.w)));
    }
}

/* Element `column` of a row of V: 0 if it is finite. */
INLINE float nonfinite_value(const char *row, int column) {
    if (column >= spec::head_dim_v) return 0;
    uint32_t bits = spec::full ? ((const uint32_t *)row)[column] : ((const uint16_t *)row)[column];
    if (!nonfinite_bits(bits)) return 0;
    if (spec::full) return __uint_as_float(bits);
    bool nan = bits & (spec::f16 ? 0x3ffu : 0x7fu);
    return __uint_as_float((bits & 0x8000u) << 16 | 0x7f800000u | (nan ? 0x400000u : 0));
}

INLINE const char *value_row(const forward_args &a, const work &w, int key) {
    if (!spec::paged) return w.v + key * a.v.row_stride;
    int2 at = page_of(a.sequences, w.b, w.seq.k_start + key);
    return w.v + at.x * a.v.batch_stride + at.y * a.v.row_stride;
}

/* Adds what was taken out of a block of keys to the rows that see it. */
INLINE void add_nonfinite(out_block &o, const forward_args &a, const work &w, uint32_t memory,
                          int first_key) {
#if SPEC_family == 90
    uint32_t rows; /* a bit for each that sees the key */
    const auto look_at = [&](int j) {
        rows = 0;
        UNROLL for (int i = 0; i < tile::row_states; i++)
            rows |= (uint32_t)(keys_of_row(a, w, i, first_key + j) & 1) << i;
    };
    const auto sees = [&](const int i, int) { return rows >> i & 1; };
#else
    const auto look_at = [](int) {};
    const auto sees = [&](const int i, int j) {
        return noted(memory, row_in_tile(i), j / 64) >> j % 64 & 1;
    };
    __syncthreads();
    note_visible(a, w, memory, first_key);
    __syncthreads();
#endif
    const int keys = least(tile::block_keys, w.seq.seqlen_k - first_key);
    _Pragma("unroll 1") for (int j = 0; j < keys; j++) {
        const char *row = value_row(a, w, first_key + j);
        bool seen[tile::row_states];
        look_at(j);
        UNROLL for (int i = 0; i < tile::row_states; i++) seen[i] = sees(i, j);
        UNROLL for (int n = 0; n < tile::column_parts; n++)
            UNROLL for (int c = 0; c < 2; c++) {
                float value = nonfinite_value(row, out_part(n) * 8 + lane_id() % 4 * 2 + c);
                UNROLL for (int i = 0; i < tile::row_states; i++)
                    if (seen[i] & (value != 0)) o[i / 2][n][i % 2 * 2 + c] += value;
            }
    }
}

#endif
