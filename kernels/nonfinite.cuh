/* A weight of 0 times inf or NaN is NaN, so that a value that some rows see would leak to the rows
 * of the tile that must not see it. This is too rare to look for: a tile whose output is not finite
 * is computed once more, carefully. Then every inf and NaN of V in a masked block of keys is taken
 * out, and in the end added to the written rows that see it: whatever their weight, the sum is the
 * same. */
#ifndef NONFINITE_CUH
#define NONFINITE_CUH

#include "elements.cuh"
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

/* ---- putting back ---- */

/* A bit for each of 32 keys from this one on, up to `end`: its value has inf or NaN. */
INLINE uint32_t nonfinite_keys(const forward_args &a, const work &w, int first_key, int end) {
    const int key = first_key + lane_id();
    bool any = false;
    if (key < end) {
        const char *row = value_row(a, w, key);
        _Pragma("unroll 4") for (int column = 0; column < spec::head_dim_v; column++)
            any |= nonfinite_value(row, column) != 0;
    }
    return __ballot_sync(~0u, any);
}

/* Where a row of the tile, or of its part, is written, and as what. */
INLINE char *written_row(const forward_args &a, const work &w, int row) {
    if (w.parts > 1) return (char *)(partial_of(a, w, w.part) + row * spec::head_dim_v);
    return tile_row(a, rows_of_tile(a, w, a.out), a.out, row);
}
INLINE int written_dtype(const forward_args &a, const work &w) {
    return w.parts > 1 ? DTYPE_F32 : a.out_dtype;
}

/* Adds inf and NaN of a row of V to those rows from `first` on that have a bit. */
INLINE void add_nonfinite(const forward_args &a, const work &w, const char *value_row, int first,
                          uint32_t rows) {
    const int dtype = written_dtype(a, w);
    _Pragma("unroll 1") for (int column = lane_id(); column < spec::head_dim_v; column += 32) {
        const float value = nonfinite_value(value_row, column);
        if (value == 0) continue;
        _Pragma("unroll 1") for (uint32_t left = rows; left; left &= left - 1) {
            char *row = written_row(a, w, first + __ffs(left) - 1);
            store_element(row, dtype, column, load_element(row, dtype, column) + value);
        }
    }
}

/* Of a careful tile, what was taken out of V is added to the rows that see it, once those are
 * written: by each warp to as many of them. On sm_90 they are those that it has written itself. */
INLINE void put_back(const forward_args &a, const work &w) {
    constexpr int rows = tile::block_rows / (tile::threads / 32);
    static_assert(rows <= 32, "a lane for each");
    const int first = thread_id() / 32 * rows, row = first + lane_id();
    const int position = position_of(a, w.seq, w.row_begin + row);
    const bool exists = lane_id() < rows && row < w.rows;
    _Pragma("unroll 1") for (int block = w.blocks.begin; block < w.blocks.end; block++) {
        const int begin = block * tile::block_keys;
        const int end = least(begin + tile::block_keys, w.seq.seqlen_k);
        if (within(w.clean, block)) continue;
        _Pragma("unroll 1") for (int key = begin; key < end; key += 32) {
            _Pragma("unroll 1") for (uint32_t left = nonfinite_keys(a, w, key, end); left;
                                     left &= left - 1) {
                const int at = key + __ffs(left) - 1;
                const bool sees =
                    exists && (visible_keys(a, w.b, w.seq.seqlen_k, position, at) & 1);
                add_nonfinite(a, w, value_row(a, w, at), first, __ballot_sync(~0u, sees));
            }
        }
    }
}

#endif
