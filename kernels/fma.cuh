/* S = Q K^T and O += P V for f32 elements, in the layout of tensor core accumulators but with plain
 * multiply-adds, whose error is that of f32 arithmetic. All operands come from shared memory. */
#ifndef FMA_CUH
#define FMA_CUH

#include "layout.cuh"

INLINE float4 shared_floats(uint32_t address) {
    uint4 c = shared_chunk(address);
    return make_float4(__uint_as_float(c.x), __uint_as_float(c.y), __uint_as_float(c.z),
                       __uint_as_float(c.w));
}

INLINE float dot(float sum, float4 a, float4 b) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

/* The address of a thread's two columns of block n of 8, in rows of floats. */
INLINE uint32_t column_pair_at(uint32_t base, int row, int n, const int chunks) {
    return chunk_at(base, row, 2 * n + lane_id() % 4 / 2, chunks) + lane_id() % 2 * 8;
}

INLINE uint32_t query_at(uint32_t q) { return q; }
INLINE uint32_t key_at(uint32_t k) { return k; }
INLINE uint32_t value_at(uint32_t v) { return v; }

typedef int query_block;
INLINE void keep_queries(query_block &, uint32_t) {}

template <class function>
INLINE void multiply_keys(score_block &s, query_block &, uint32_t q, uint32_t k,
                          function beside) {
    beside();
    UNROLL for (int m = 0; m < tile::row_parts; m++)
        UNROLL for (int n = 0; n < tile::key_parts; n++)
            UNROLL for (int c = 0; c < 4; c++) s[m][n][c] = 0;
    _Pragma("unroll 2") for (int chunk = 0; chunk < layout::k_chunks; chunk++) {
        float4 left[tile::row_states];
        UNROLL for (int i = 0; i < tile::row_states; i++)
            left[i] = shared_floats(chunk_at(q, row_in_tile(i), chunk, layout::q_chunks));
        UNROLL for (int n = 0; n < tile::key_parts; n++)
            UNROLL for (int c = 0; c < 2; c++) {
                int key = column_warp() * tile::warp_keys + n * 8 + lane_id() % 4 * 2 + c;
                float4 right = shared_floats(chunk_at(k, key, chunk, layout::k_chunks));
                UNROLL for (int i = 0; i < tile::row_states; i++) {
                    float &sum = s[i / 2][n][i % 2 * 2 + c];
                    sum = dot(sum, left[i], right);
                }
            }
    }
}

INLINE void share_weights(const score_block &s, uint32_t p) {
    UNROLL for (int i = 0; i < tile::row_states; i++)
        UNROLL for (int n = 0; n < tile::key_parts; n++) {
            uint32_t to = column_pair_at(p, row_in_tile(i), column_warp() * tile::key_parts + n,
                                         layout::p_chunks);
            set_shared_f32(to, s[i / 2][n][i % 2 * 2]);
            set_shared_f32(to + 4, s[i / 2][n][i % 2 * 2 + 1]);
        }
}

/* Keys are summed before O takes them: weights that fall from block to block, as blocks go from the
 * last key to the first, would each be rounded to a large O. So many at a time as registers allow.
 * */
constexpr int keys_summed = tile::column_parts > 24 ? 2 : 4;

template <class function>
INLINE void multiply_values(out_block &o, const score_block &, uint32_t p, uint32_t v,
                            function beside) {
    UNROLL for (int step = 0; step < tile::block_keys / 16; step++) beside(step);
    _Pragma("unroll 1") for (int key = 0; key < tile::block_keys; key += keys_summed) {
        float left[tile::row_states][keys_summed];
        UNROLL for (int i = 0; i < tile::row_states; i++)
            UNROLL for (int j = 0; j < keys_summed; j++)
                left[i][j] = shared_f32(chunk_at(p, row_in_tile(i), key / 4, layout::p_chunks) +
                                        (key % 4 + j) * 4);
        UNROLL for (int n = 0; n < tile::column_parts; n++) {
            if (!has_part(n)) break;
            UNROLL for (int c = 0; c < 2; c++) {
                float sum[tile::row_states] = {};
                UNROLL for (int j = 0; j < keys_summed; j++) {
                    float right = shared_f32(
                        column_pair_at(v, key + j, out_part(n), layout::v_chunks) + 4 * c);
                    UNROLL for (int i = 0; i < tile::row_states; i++)
                        sum[i] = fmaf(left[i][j], right, sum[i]);
                }
                UNROLL for (int i = 0; i < tile::row_states; i++)
                    o[i / 2][n][i % 2 * 2 + c] += sum[i];
            }
        }
    }
}

#endif
