/* S = Q K^T and O += P V for 16-bit elements on tensor cores: mma m16n8k16, operands from shared
 * memory by ldmatrix. */
#ifndef MMA_SM80_CUH
#define MMA_SM80_CUH

#include "layout.cuh"

INLINE void load_matrices(uint32_t (&m)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(address)
                 : "memory");
}
INLINE void load_two_matrices(uint32_t (&m)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(m[0]), "=r"(m[1])
                 : "r"(address)
                 : "memory");
}
INLINE void load_transposed(uint32_t (&m)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(address)
                 : "memory");
}

/* c (16 x 8) += a (16 x 8) b (8 x 8), all that Turing has */
INLINE void multiply_add_half(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, "
                 "{%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(b));
}

/* c (16 x 8) += a (16 x 16) b (16 x 8) */
INLINE void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#define MMA(TYPE)                                                                                  \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE                            \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"            \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
    if (spec::family == 75) {
        multiply_add_half(c, a[0], a[1], b0);
        multiply_add_half(c, a[2], a[3], b1);
    } else if (spec::f16) {
        MMA("f16");
    } else {
        MMA("bf16");
    }
#undef MMA
}

/* The warp's rows of Q as left operands, 16 elements a step, if the tile keeps them. */
typedef uint32_t query_block[tile::keeps_q ? tile::head_dim / 16 : 1][tile::row_parts][4];

/* ---- what a lane tells ldmatrix, of the operands in shared memory ---- */

constexpr bool key_pairs = tile::key_parts % 2 == 0; /* 16 keys at a time, or 8 */

INLINE uint32_t query_at(uint32_t q) {
    return chunk_at(q, row_warp() * tile::warp_rows + lane_id() % 16, lane_id() / 16,
                    layout::q_chunks);
}
INLINE uint32_t key_at(uint32_t k) {
    const int lane = lane_id(), key = column_warp() * tile::warp_keys;
    return chunk_at(k, key + lane % 8 + (key_pairs ? lane / 16 * 8 : 0), lane / 8 % 2,
                    layout::k_chunks);
}
INLINE uint32_t value_at(uint32_t v) {
    return chunk_at(v, lane_id() % 16, out_part(0) + lane_id() / 16, layout::v_chunks);
}

/* ---- products ---- */

INLINE void load_queries(uint32_t (&left)[tile::row_parts][4], uint32_t q_at, const int step) {
    uint32_t from = chunk_further(q_at, 2 * step, layout::q_chunks);
    UNROLL for (int m = 0; m < tile::row_parts; m++)
        load_matrices(left[m], from + m * 16 * layout::q_chunks * 16);
}

INLINE void keep_queries(query_block &kept, uint32_t q) {
    UNROLL for (int step = 0; tile::keeps_q && step < tile::head_dim / 16; step++)
        load_queries(kept[step], query_at(q), step);
}

/* S = Q K^T for the warp's rows and keys. beside() is other work, to run beside the products. */
template <class function>
INLINE void multiply_keys(score_block &s, query_block &q_kept, uint32_t q_at, uint32_t k_at,
                          function beside) {
    UNROLL for (int m = 0; m < tile::row_parts; m++)
        UNROLL for (int n = 0; n < tile::key_parts; n++)
            UNROLL for (int c = 0; c < 4; c++) s[m][n][c] = 0;
    UNROLL for (int step = 0; step < tile::head_dim / 16; step++) {
        uint32_t right[4], (&left)[tile::row_parts][4] = q_kept[tile::keeps_q ? step : 0];
        uint32_t k_chunk = chunk_further(k_at, 2 * step, layout::k_chunks);
        if (!tile::keeps_q) load_queries(left, q_at, step);
        UNROLL for (int n = 0; n < tile::key_parts; n += 2) {
            uint32_t from = k_chunk + n * 8 * layout::k_chunks * 16;
            if (key_pairs)
                load_matrices(right, from);
            else
                load_two_matrices(right, from);
            UNROLL for (int m = 0; m < tile::row_parts; m++) {
                multiply_add(s[m][n], left[m], right[0], right[1]);
                if (key_pairs) multiply_add(s[m][n + 1], left[m], right[2], right[3]);
            }
        }
        if (step == 0) beside();
    }
}

/* Weights to shared memory, for all warps of the group. */
INLINE void share_weights(const score_block &s, uint32_t p) {
    const int column = column_warp() * tile::key_parts;
    UNROLL for (int i = 0; i < tile::row_states; i++)
        UNROLL for (int n = 0; n < tile::key_parts; n++) {
            uint32_t to = chunk_at(p, row_in_tile(i), column + n, layout::p_chunks);
            const float *pair = &s[i / 2][n][i % 2 * 2];
            UNROLL for (int part = 0; part < spec::p_parts; part++)
                set_shared_i32(to + part * layout::p_bytes + lane_id() % 4 * 4,
                               pack_part(pair[0], pair[1], part));
        }
}

/* The weights of 16 keys as left operand: an accumulator's layout is the operand's. */
INLINE void take_weights(uint32_t (&left)[4], const score_block &s, uint32_t p, const int m,
                         const int step, const int part) {
    if (tile::shares_p) {
        uint32_t at = chunk_at(p, row_warp() * tile::warp_rows + lane_id() % 16, lane_id() / 16,
                               layout::p_chunks);
        load_matrices(left, chunk_further(at, 2 * step, layout::p_chunks) +
                                m * 16 * layout::p_chunks * 16 + part * layout::p_bytes);
    } else {
        UNROLL for (int r = 0; r < 4; r++) {
            const float *pair = &s[m][2 * step + r / 2][r % 2 * 2];
            left[r] = pack_part(pair[0], pair[1], part);
        }
    }
}

/* o += the product of weights and 16 values. Tensor cores truncate where they add: with three
 * parts, for an output in f32, the product is a sum of its own, and o takes it by an addition that
 * rounds. */
INLINE void add_product(float (&o)[4], const uint32_t (&left)[spec::p_parts][tile::row_parts][4],
                        const int m, uint32_t v0, uint32_t v1) {
    float product[4] = {0, 0, 0, 0};
    UNROLL for (int part = spec::p_parts - 1; part >= 0; part--)
        multiply_add(spec::p_parts == 3 ? product : o, left[part][m], v0, v1);
    UNROLL for (int c = 0; c < 4 && spec::p_parts == 3; c++) /* at once: waiting takes registers */
        asm volatile("add.f32 %0, %0, %1;" : "+f"(o[c]) : "f"(product[c]));
}

/* O += P V for the warp's rows and columns. beside(step) comes before the products of 16 keys: it
 * may make their weights, whose arithmetic runs beside the products of the keys before. */
template <class function>
INLINE void multiply_values(out_block &o, const score_block &s, uint32_t p, uint32_t v_at,
                            function beside) {
    UNROLL for (int step = 0; step < tile::block_keys / 16; step++) {
        uint32_t left[spec::p_parts][tile::row_parts][4], right[4];
        beside(step);
        UNROLL for (int part = 0; part < spec::p_parts; part++)
            UNROLL for (int m = 0; m < tile::row_parts; m++)
                take_weights(left[part][m], s, p, m, step, part);
        UNROLL for (int n = 0; n < tile::column_parts; n += 2) {
            if (!has_part(n)) break;
            load_transposed(right, chunk_further(v_at, n * tile::column_warps, layout::v_chunks) +
                                       step * 16 * layout::v_chunks * 16);
            UNROLL for (int m = 0; m < tile::row_parts; m++) {
                add_product(o[m][n], left, m, right[0], right[1]);
                add_product(o[m][n + 1], left, m, right[2], right[3]);
            }
        }
    }
}

#endif
