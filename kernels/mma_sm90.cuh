/* S = Q K^T and O += P V for 16-bit elements by wgmma: 64 rows of a warpgroup at a time. Q, K and V
 * lie in shared memory as the tensor memory accelerator writes them: chunks of 64 columns, each a
 * list of rows of 128 bytes whose 16-byte pieces are permuted by an exclusive or with the row.
 *
 * A product runs on after the statement that starts it. From start_products() until
 * finish_products() for it, its accumulators and register operands must not be touched. */
#ifndef MMA_SM90_CUH
#define MMA_SM90_CUH

#include "layout.cuh"
#include "operands_sm90.cuh"

#define PASTE2(a, b) a##b
#define PASTE(a, b) PASTE2(a, b)
#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)
#if SPEC_dtype == 1
#define WGMMA_TYPES ".f32.f16.f16"
#else
#define WGMMA_TYPES ".f32.bf16.bf16"
#endif
#define WGMMA(columns) "wgmma.mma_async.sync.aligned.m64n" TEXT(columns) "k16" WGMMA_TYPES
#define SCORE_SUMS(s) PASTE(SUMS_, TILE_block_keys)(s[0])
#define OUT_SUMS(o) PASTE(SUMS_, SPEC_head_dim_v)(o[0])

/* Weights as the left operand of wgmma: of 16 keys, 4 pairs. */
typedef uint32_t weight_block[spec::p_parts][tile::block_keys / 16][4];

/* ---- operands in shared memory ---- */

/* The two words of a descriptor. In the first, which says where the operand starts, offsets are
 * added; it is the same for all threads, and ptxas is told so, as wgmma takes it from a uniform
 * register: a word that might differ would be moved there for each product. */
INLINE uint32_t operand_at(uint32_t address, int chunk_bytes) {
    if (spec::pairs) address &= 0x3ffff; /* above stands which of the two it is */
    return __shfl_sync(~0u, address >> 4 | chunk_bytes >> 4 << 16, 0);
}
INLINE uint64_t operand(uint32_t at, const uint32_t further) {
    const uint32_t groups_of_8_rows = 1024 >> 4, permutation_of_128_bytes = 1u << 30;
    return (uint64_t)(groups_of_8_rows | permutation_of_128_bytes) << 32 | (at + further);
}

/* A step of 16 columns further in chunks of `rows` rows; or 16 rows further. */
INLINE constexpr uint32_t columns_further(int step, int rows) {
    return (step / 4 * rows * 128 + step % 4 * 32) >> 4;
}
INLINE constexpr uint32_t rows_further(int step) { return step * 16 * 128 >> 4; }

/* ---- products ---- */

/* s (+)= a b^T for 16 columns of Q and K. The operands that are not read give both kinds of product
 * the same numbers. */
INLINE void multiply_step(score_block &s, uint64_t q, uint64_t k, int accumulate) {
    uint32_t unread[3] = {0, 0, 0};
    asm volatile("{.reg .pred add;\nsetp.ne.b32 add, %5, 0;\n" WGMMA(TILE_block_keys)
                 " {" PASTE(REGISTERS_, TILE_block_keys) "}, %0, %4, add, 1, 1, 0, 0;}"
                 : "+l"(q), "+r"(unread[0]), "+r"(unread[1]), "+r"(unread[2]), "+l"(k),
                   "+r"(accumulate), SCORE_SUMS(s));
}

/* o (+)= p v for 16 keys. */
INLINE void multiply_step(out_block &o, uint32_t (&p)[4], uint64_t v, int accumulate) {
    asm volatile("{.reg .pred add;\nsetp.ne.b32 add, %5, 0;\n" WGMMA(SPEC_head_dim_v)
                 " {" PASTE(REGISTERS_, SPEC_head_dim_v) "}, {%0, %1, %2, %3}, %4, add, 1, 1, 1;}"
                 : "+r"(p[0]), "+r"(p[1]), "+r"(p[2]), "+r"(p[3]), "+l"(v), "+r"(accumulate),
                   OUT_SUMS(o));
}

/* What the products to come read and write has been computed. */
INLINE void start_products(score_block &s, out_block &o, weight_block &p) {
    asm volatile("" : SCORE_SUMS(s)::"memory");
    asm volatile("" : OUT_SUMS(o)::"memory");
    UNROLL for (int part = 0; part < spec::p_parts; part++)
        UNROLL for (int step = 0; step < tile::block_keys / 16; step++)
            UNROLL for (int r = 0; r < 4; r++) asm volatile("" : "+r"(p[part][step][r])::"memory");
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/* Ends a group of products. */
INLINE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/* Waits for the groups of products before the last one; S may be used. */
INLINE void finish_keys(score_block &s) {
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
    asm volatile("" : SCORE_SUMS(s)::"memory");
}

/* Waits for all products; S, O and P may be used. */
INLINE void finish_products(score_block &s, out_block &o, weight_block &p) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    asm volatile("" : SCORE_SUMS(s)::"memory");
    asm volatile("" : OUT_SUMS(o)::"memory");
    UNROLL for (int part = 0; part < spec::p_parts; part++)
        UNROLL for (int step = 0; step < tile::block_keys / 16; step++)
            UNROLL for (int r = 0; r < 4; r++) asm volatile("" : "+r"(p[part][step][r])::"memory");
}

/* S = Q K^T of the warpgroup's rows, a group of products. */
INLINE void multiply_keys(score_block &s, uint32_t q, uint32_t k) {
    UNROLL for (int step = 0; step < tile::head_dim / 16; step++)
        multiply_step(s, operand(q, columns_further(step, tile::block_rows)),
                      operand(k, columns_further(step, tile::block_keys)), step != 0);
    commit_products();
}

/* O (+)= P V of the warpgroup's rows, a group of products. */
INLINE void multiply_values(out_block &o, weight_block &p, uint32_t v, bool accumulate) {
    UNROLL for (int step = 0; step < tile::block_keys / 16; step++)
        UNROLL for (int part = 0; part < spec::p_parts; part++)
            multiply_step(o, p[part][step], operand(v, rows_further(step)),
                          step + part != 0 || accumulate);
    commit_products();
}

/* The layout of an accumulator is that of the left operand. */
INLINE void pack_weights(weight_block &p, const score_block &s) {
    UNROLL for (int part = 0; part < spec::p_parts; part++)
        UNROLL for (int step = 0; step < tile::block_keys / 16; step++)
            UNROLL for (int r = 0; r < 4; r++) {
                const float *pair = &s[0][2 * step + r / 2][r % 2 * 2];
                p[part][step][r] = pack_part(pair[0], pair[1], part);
            }
}

#endif
