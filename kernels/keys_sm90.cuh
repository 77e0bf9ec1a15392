/* Copies of queries, keys and values ahead of their use, by the copier, one warp; and by the
 * mender, another, what must be done to V before it is used. */
#ifndef KEYS_SM90_CUH
#define KEYS_SM90_CUH

#include "nonfinite.cuh"
#include "tiles_sm90.cuh"

/* Where the rows of a block of keys lie, in pieces of key_rows rows: with pages, lane i knows the
 * page of piece i. */
struct key_place {
    int row, batch;
};

INLINE key_place place_of(const forward_tma_args &t, const work &w, int block) {
    const sequences_arg &s = t.forward.sequences;
    key_place at = {w.seq.k_start + block * tile::block_keys, w.seq.cache_row};
    if (s.cu_seqlens_k.data) at.batch = 0;
    if (spec::paged) {
        const int row = at.row + lane_id() * t.key_rows;
        at.batch = 0;
        if (lane_id() * t.key_rows < tile::block_keys && row < w.seq.k_start + w.seq.seqlen_k)
            at.batch = page_of(s, w.b, row).x;
        at.row -= (int)(divide(at.row, s.page_size) * s.page_size.by);
    }
    return at;
}

/* Starts the copy of a block of K or V, in one piece where there are no pages; in pairs, each of
 * its half. */
INLINE void copy_keys(const forward_tma_args &t, const tensor_map *map, key_place at, int head,
                      uint32_t to, uint32_t barrier, const int chunks) {
    const int rows = spec::paged ? t.key_rows : tile::block_keys / together;
    const int own = rank_in_pair() * rows;
    if (lane_id() == 0) arrive_and_expect(barrier, chunks * tile::block_keys * 128);
    for (int row = 0; row < tile::block_keys; row += rows * together) {
        int batch = spec::paged ? __shfl_sync(~0u, at.batch, row / rows) : at.batch;
        if (lane_id() != 0) continue;
        UNROLL for (int chunk = 0; chunk < chunks; chunk++)
            copy_box_to_both(to + chunk * tile::block_keys * 128 + (row + own) * 128, map, barrier,
                             chunk * 64, at.row + own, head, batch);
    }
}

INLINE void copy_queries(const forward_tma_args &t, const work &w, q_ring &q, uint32_t memory) {
    const int query = divide(w.row_begin, t.forward.sequences.group);
    const int b = t.forward.sequences.cu_seqlens_q.data ? 0 : w.b;
    const uint32_t to = memory + layout::q + q.slot() * layout::q_bytes;
    q.wait_empty();
    if (lane_id() == 0) {
        arrive_and_expect(q.full(), layout::q_bytes);
        UNROLL for (int chunk = 0; chunk < layout::q_chunks; chunk++)
            copy_box(to + chunk * tile::block_rows * 128, &t.q, q.full(), chunk * 64, 0,
                     w.seq.q_start + query, w.head, b);
    }
    q.next();
}

/* Queries of the tile after this one, if it has been found and their slot is empty: its first
 * product comes beside the last of this one. */
INLINE bool copy_next_queries(const forward_tma_args &t, tile_ring tiles, q_ring &q,
                              uint32_t memory) {
    tiles.next();
    if (tile::q_slots == 1 || !__all_sync(~0u, tiles.is_full() && q.is_empty())) return false;
    const work &w = slot_of(tiles).w;
    if (w.rows > 0) copy_queries(t, w, q, memory);
    return w.rows > 0;
}

/* Keys of a block from this one on are those whose V may hold what must not be multiplied. */
INLINE int first_to_mend(const tile_slot &slot, int block) {
    const work &w = slot.w;
    if (w.careful && !within(w.clean, block)) return 0;
    return slot.mend ? w.seq.seqlen_k - block * tile::block_keys : tile::block_keys;
}
INLINE bool is_mended(const tile_slot &slot, int block) {
    return first_to_mend(slot, block) < tile::block_keys;
}

/* Blocks of keys to be copied yet when the copier asks for the next tile: meanwhile it is found. */
constexpr int blocks_ahead = 2;

INLINE void ask_for_tile(uint32_t memory) {
    if (lane_id() == 0) arrive(memory + layout::need_barrier);
}

INLINE uint32_t landed_barrier(uint32_t memory, const key_ring &v) {
    return memory + layout::landed_barriers + v.slot() * 8;
}

INLINE void copy(const forward_tma_args &t, uint32_t memory) {
    tile_ring tiles(memory + layout::tile_barriers);
    q_ring q(memory + layout::q_barriers);
    key_ring k(memory + layout::k_barriers), v(memory + layout::v_barriers);
    bool has_queries = false; /* those of the tile are on their way */
    wait_for_kernel_before(); /* for all: what others read and write waits for these copies */
    for (;;) {
        tiles.wait_full();
        const tile_slot &slot = slot_of(tiles);
        const work &w = slot.w;
        if (w.rows == NO_MORE_TILES) break;
        const int first = w.blocks.begin, last = w.rows > 0 ? w.blocks.end - 1 : first - 2;
        const int soon = least(last, first + blocks_ahead);
        key_place before = {0, 0};
        if (w.rows <= 0) ask_for_tile(memory);
        for (int block = last; block >= first - 1; block--) {
            key_place at = before;
            if (block == soon) ask_for_tile(memory);
            if (block >= first) {
                at = place_of(t, w, block);
                k.wait_empty();
                copy_keys(t, &t.k, at, w.head_kv, memory + layout::k + k.slot() * layout::k_bytes,
                          k.full(), layout::q_chunks);
                k.next();
            }
            if (block == last && !has_queries) copy_queries(t, w, q, memory);
            if (block == last) has_queries = false;
            if (block <= soon && !has_queries)
                has_queries = copy_next_queries(t, tiles, q, memory);
            if (block < last) {
                v.wait_empty();
                copy_keys(t, &t.v, before, w.head_kv,
                          memory + layout::v + v.slot() * layout::v_bytes,
                          is_mended(slot, block + 1) ? landed_barrier(memory, v) : v.full(),
                          layout::v_chunks);
                v.next();
            }
            before = at;
        }
        leave_slot(tiles);
    }
}

/* Copies of V that it has to see arrive at `landed`; the slot is full when it has. */
INLINE void mend(uint32_t memory) {
    tile_ring tiles(memory + layout::tile_barriers);
    key_ring v(memory + layout::v_barriers);
    uint32_t landings = 0; /* a bit for each slot: odd or even */
    for (;;) {
        tiles.wait_full();
        const tile_slot &slot = slot_of(tiles);
        const work &w = slot.w;
        if (w.rows == NO_MORE_TILES) break;
        for (int block = w.blocks.end; w.rows > 0 && block-- > w.blocks.begin; v.next()) {
            if (!is_mended(slot, block)) continue;
            wait_phase(landed_barrier(memory, v), landings >> v.slot() & 1);
            landings ^= 1u << v.slot();
            remove_nonfinite(memory + layout::v + v.slot() * layout::v_bytes,
                             first_to_mend(slot, block), lane_id(), 32);
            release_to_copies();
            __syncwarp();
            if (lane_id() == 0) arrive(v.full());
        }
        leave_slot(tiles);
    }
}

#endif
