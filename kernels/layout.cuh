/* Shared memory of a thread block, region by region. */
#ifndef LAYOUT_CUH
#define LAYOUT_CUH

#include "schedule.cuh"

constexpr int work_bytes = 112; /* what is known of a tile: kept here, it costs no registers */
static_assert(sizeof(work) <= work_bytes, "the host counts 112 bytes");

#if SPEC_family == 90
#include "copy_sm90.cuh"

namespace layout {
/* Chunks of 64 columns, each a list of rows of 128 bytes. All of them start at multiples of 1024
 * bytes, which the permutation of wgmma counts from. */
constexpr int q_chunks = (spec::head_dim + 63) / 64, v_chunks = (spec::head_dim_v + 63) / 64;
constexpr int q_bytes = q_chunks * tile::block_rows * 128;
constexpr int k_bytes = q_chunks * tile::block_keys * 128;
constexpr int v_bytes = v_chunks * tile::block_keys * 128;
constexpr int stages = tile::slots / 2; /* of K and of V */

constexpr int q = 0;
constexpr int k = q + tile::q_slots * q_bytes;
constexpr int v = k + stages * k_bytes;
constexpr int out = v + stages * v_bytes; /* in chunks, too */
constexpr int out_bytes = tile::stages_out ? v_chunks * tile::block_rows * 128 : 0;
constexpr int rows = out + out_bytes; /* what is known of each row of the tile */
constexpr int row_bytes = spec::scores == 1 ? 8 : 0;
constexpr int tiles = rows + tile::block_rows * row_bytes;
constexpr int tile_slots = 4; /* short ones take longer to find than to compute */
constexpr int tile_end_bytes = 24;
constexpr int tile_bytes = work_bytes + tile_end_bytes + tile::row_warps / 4 * 24 + 8;
constexpr int tile_barriers = tiles + tile_slots * tile_bytes;
constexpr int q_barriers = tile_barriers + 2 * tile_slots * 8;
constexpr int k_barriers = q_barriers + 2 * tile::q_slots * 8;
constexpr int v_barriers = k_barriers + 2 * stages * 8;
constexpr int landed_barriers = v_barriers + 2 * stages * 8;
constexpr int need_barrier = landed_barriers + stages * 8;
constexpr int told = need_barrier + 8; /* of a pair's other block: what its leader says, ... */
constexpr int told_barriers = told + spec::pairs * tile_slots * 8; /* ... in a slot of 8 bytes */
constexpr int bytes = told_barriers + spec::pairs * tile_slots * 8;
constexpr int maxima = 0; /* not exchanged */
constexpr int v_pieces = v_bytes / 16; /* 16 bytes each */
INLINE constexpr int piece_row(int piece) { return piece / 8 % tile::block_keys; }
static_assert(bytes == TILE_shared_bytes, "the host counts other bytes");
} // namespace layout

#else
#include "copy_sm80.cuh"

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
constexpr int row_seen = 8, row_bytes = row_seen + 8 * tile::seen_words;
constexpr int rows_end = rows + tile::block_rows * row_bytes;

/* O leaves through the same memory, from its start. */
constexpr int out = 0, out_end = tile::block_rows * v_chunks * 16;

constexpr int work = rows_end > out_end ? rows_end : out_end;
constexpr int pages = work + work_bytes;
constexpr int v_pieces = tile::block_keys * v_chunks; /* 16 bytes each */
INLINE constexpr int piece_row(int piece) { return piece / v_chunks; }
constexpr int page_lists = tile::slots / 2 + 1; /* lists of pages, one for a block of keys */
constexpr int bytes = pages + (spec::paged ? page_lists * tile::block_keys * 4 : 0);
static_assert(bytes == TILE_shared_bytes, "the host counts other bytes");
} // namespace layout
#endif

#endif
