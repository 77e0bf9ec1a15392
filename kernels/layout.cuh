/* Shared memory of a thread block, region by region. */
#ifndef LAYOUT_CUH
#define LAYOUT_CUH

#include "copy_sm80.cuh"
#include "schedule.cuh"

namespace layout {
constexpr int q_chunks = tile::head_dim * spec::element / 16;
constexpr int k_chunks = q_chunks;
constexpr int v_chunks = tile::head_dim_v * spec::element / 16;
constexpr int p_chunks = tile::block_keys * spec::element / 16;
constexpr int wide_chunks = k_chunks > v_chunks ? k_chunks : v_chunks;

constexpr int q = 0;
constexpr int ring = q + tile::block_rows * q_chunks * 16; /* slots of one block of K or V */
constexpr int slot_bytes = tile::block_keys * wide_chunks * 16;
constexpr int p = ring + tile::slots * slot_bytes; /* weights, if warps share them */
constexpr int p_bytes = tile::block_rows * p_chunks * 16; /* of each of the p_parts */
constexpr int maxima = p + (tile::shares_p ? spec::p_parts * p_bytes : 0);
constexpr int maxima_bytes = tile::column_warps > 1 ? tile::block_rows * tile::column_warps * 4 : 0;
constexpr int rows = maxima + maxima_bytes; /* what is known of each row of the tile */
constexpr int row_bytes = 8 + 8 * tile::seen_words;
constexpr int work = rows + tile::block_rows * row_bytes; /* what is known of the tile: costs no registers */
constexpr int pages = work + 112;
static_assert(sizeof(struct work) <= 112, "the host counts 112 bytes");
constexpr int page_lists = tile::slots / 2 + 1; /* lists of pages, one for a block of keys */
constexpr int bytes = pages + (spec::paged ? page_lists * tile::block_keys * 4 : 0);

/* O leaves through the same memory, from its start. */
constexpr int out = 0;
static_assert(tile::block_rows * v_chunks * 16 <= bytes, "O must fit");
static_assert(bytes == TILE_shared_bytes, "the host counts other bytes");
} // namespace layout

#endif
