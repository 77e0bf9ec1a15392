/* The choices of this compilation as constants: spec::<axis>, tile::<number>. */
#ifndef SPEC_CUH
#define SPEC_CUH

#include "base.cuh"

namespace spec {
#define TALLOW_AXIS(name, ...) constexpr int name = SPEC_##name;
#define TALLOW_RULE(condition, sentence) static_assert(condition, sentence);
#include "spec.def"

constexpr bool f16 = dtype == 1, full = dtype == 3;
constexpr int element = full ? 4 : 2; /* bytes */
} // namespace spec

namespace tile {
constexpr int row_warps = TILE_row_warps, column_warps = TILE_column_warps;
constexpr int warp_rows = TILE_warp_rows, block_keys = TILE_block_keys;
constexpr int slots = TILE_slots, q_slots = TILE_q_slots, blocks = TILE_blocks;
constexpr bool stages_out = TILE_stages_out;
constexpr int block_rows = row_warps * warp_rows;
constexpr int threads = 32 * row_warps * column_warps; /* that compute: the first of the block's */

/* Rows are padded with zeros to whole steps of 16 elements; wgmma takes 8 columns of V. */
constexpr int head_dim = (spec::head_dim + 15) / 16 * 16;
constexpr int column_step = spec::family == 90 ? 8 : 16;
constexpr int head_dim_v = (spec::head_dim_v + column_step - 1) / column_step * column_step;

/* What a warp computes, in blocks of the products' accumulators: 16 rows by 8 columns. */
constexpr int row_parts = warp_rows / 16;
constexpr int warp_keys = block_keys / column_warps;
constexpr int key_parts = warp_keys / 8;
constexpr int column_steps = (head_dim_v / column_step + column_warps - 1) / column_warps;
constexpr int column_parts = column_steps * column_step / 8;
constexpr int row_states = 2 * row_parts; /* rows that a thread holds pieces of */

constexpr bool shares_p = column_warps > 1 || spec::full; /* P goes through shared memory */
/* Q stays in registers where they suffice for it, S and O. */
constexpr int product_registers = 4 * row_parts * (head_dim / 16 + key_parts + column_parts);
constexpr bool keeps_q = !shares_p && spec::rows == 0 && spec::scores == 0 && spec::p_parts == 1 &&
                         blocks <= 2 && product_registers <= (row_parts == 1 ? 224 : 160);
static_assert(warp_keys % 16 == 0 || warp_keys == 8, "Q K^T takes 16 keys at a time");
static_assert(block_keys % 16 == 0, "P V takes 16 keys at a time");
constexpr int seen_words = (block_keys + 63) / 64; /* the keys that a row sees, as bits of 64 */
static_assert(seen_words == 1 || column_warps == 1, "a group's warps share one word");
} // namespace tile

/* What a thread holds: element [m][n][c] of an accumulator is row 16 * m + 8 * (c / 2) + lane / 4
 * of the warp, and of its block n of 8 columns the column 2 * (lane % 4) + c % 2. Row state i
 * belongs to m = i / 2, c / 2 = i % 2. */
typedef float row_values[tile::row_states];
typedef float score_block[tile::row_parts][tile::key_parts][4];
typedef float out_block[tile::row_parts][tile::column_parts][4];

INLINE int column_warp() { return thread_id() / 32 % tile::column_warps; }
INLINE int row_warp() { return thread_id() / 32 / tile::column_warps; }

/* Row i of the thread, counted in the tile. */
INLINE int row_in_tile(int i) {
    return row_warp() * tile::warp_rows + i / 2 * 16 + i % 2 * 8 + lane_id() / 4;
}

/* Which 8 columns of O, counted in all, part n of the warp's is: pairs are dealt out in turn. */
INLINE int out_part(const int n) {
    return n / 2 * 2 * tile::column_warps + column_warp() * 2 + n % 2;
}

/* Whether there is such a part, when they do not divide evenly. */
INLINE bool has_part(const int n) {
    return tile::head_dim_v % (tile::column_step * tile::column_warps) == 0 ||
           out_part(n) < tile::head_dim_v / 8;
}

/* Two floats rounded to nearest even, the first in the low half; and back. */
INLINE uint32_t pack(float low, float high) {
    uint32_t pair;
    if (spec::family == 75)
        asm("{.reg .b16 l, h;\ncvt.rn.f16.f32 l, %2;\ncvt.rn.f16.f32 h, %1;\nmov.b32 %0, {l, h};}"
            : "=r"(pair)
            : "f"(high), "f"(low));
    else if (spec::f16)
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    else
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
INLINE float2 unpack(uint32_t pair) {
    if (!spec::f16) return make_float2(__uint_as_float(pair << 16),
                                       __uint_as_float(pair & 0xffff0000u));
    float low, high;
    asm("{.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;}"
        : "=f"(low), "=f"(high)
        : "r"(pair));
    return make_float2(low, high);
}

/* Part `part` of two weights: the rounded values, or what rounding to the parts before left. */
INLINE uint32_t pack_part(float low, float high, const int part) {
    UNROLL for (int i = 0; i < part; i++) {
        float2 rounded = unpack(pack(low, high));
        low -= rounded.x;
        high -= rounded.y;
    }
    return pack(low, high);
}

#endif
