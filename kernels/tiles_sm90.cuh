/* The tiles that a thread block computes, one after the other, as the scheduler finds them: one
 * warp for all. */
#ifndef TILES_SM90_CUH
#define TILES_SM90_CUH

#include "count.cuh"
#include "layout.cuh"
#include "scores.cuh"

extern __shared__ __align__(1024) char shared_memory[];

typedef ring<layout::tile_slots> tile_ring;
typedef ring<tile::q_slots> q_ring;
typedef ring<layout::stages> key_ring;

/* Where the rows of a tile go, found by the scheduler. */
struct tile_end {
    char *out;  /* query 0 of the tile's first head */
    float *lse; /* the same; null: not wanted */
    int query;  /* of row 0, in the map of the output */
    int hides;  /* some key from some row */
};

INLINE tile_end end_of_tile(const forward_args &a, const work &w) {
    const int64_t head = (int64_t)w.head * a.sequences.group.by;
    const int query = w.seq.q_start + divide(w.row_begin, a.sequences.group);
    tile_end end = {rows_of_tile(a, w, a.out).data, a.lse, query, hides_keys(w)};
    if (a.lse)
        end.lse += w.b * a.lse_batch_stride + head * a.lse_head_stride + w.seq.q_start;
    return end;
}

/* What the 64 rows of a warpgroup see. */
struct share {
    view sees;
    int before, behind; /* blocks of the tile that come before and after, and only others see */
};

/* A tile, as the scheduler hands it to all others. */
struct tile_slot {
    work w;
    tile_end end;
    share shares[tile::row_warps / 4];
    int mend; /* V may hold inf or NaN in keys that do not exist or are hidden */
    int redo; /* set by those who compute it: once more, carefully */
};
static_assert(sizeof(tile_slot) <= layout::tile_bytes, "the host counts other bytes");

INLINE tile_slot &slot_of(const tile_ring &tiles) {
    return *(tile_slot *)(shared_memory + layout::tiles + tiles.slot() * layout::tile_bytes);
}

/* By all lanes, each for what it has read. */
INLINE void leave_slot(tile_ring &tiles) {
    arrive_for_both(tiles.empty());
    tiles.next();
}

/* The tile is to be computed once more. */
INLINE void ask_again(tile_slot &slot) { set_at_leader(slot.redo, 1); }

enum { NO_TILE = 0, NO_MORE_TILES = -1 }; /* in place of a tile's rows */

/* Packed sequences are looked at 32 at a time, one a lane, as items ascend. */
struct tile_finder {
    int first_b, first_item;
    int items; /* of the sequences up to the lane's */
};

INLINE void look_at(tile_finder &f, const forward_args &a, int first_b, int first_item) {
    const int b = first_b + lane_id();
    int rows = 0;
    if (b < a.sequences.batch) rows = sequence_of(a.sequences, b).seqlen_q * a.sequences.group.by;
    f.first_b = first_b;
    f.first_item = first_item;
    f.items = (rows + tile::block_rows - 1) / tile::block_rows * a.sequences.heads_kv.by;
    UNROLL for (int lane = 1; lane < 32; lane *= 2) {
        int below = __shfl_up_sync(~0u, f.items, lane);
        if (lane_id() >= lane) f.items += below;
    }
}

INLINE bool find_packed(tile_index &at, tile_finder &f, const forward_args &a, int item) {
    for (;;) {
        const int items = __shfl_sync(~0u, f.items, 31);
        if (item - f.first_item < items) break;
        if (f.first_b + 32 >= a.sequences.batch) return false;
        look_at(f, a, f.first_b + 32, f.first_item + items);
    }
    item -= f.first_item;
    const int heads = a.sequences.heads_kv.by, lane = __popc(__ballot_sync(~0u, f.items <= item));
    const int after = __shfl_sync(~0u, f.items, lane) - 1 - item; /* of the sequence's */
    at.b = f.first_b + lane;
    at.row_block = divide(after, a.sequences.heads_kv);
    at.head = heads - 1 - (after - at.row_block * heads);
    return true;
}

/* The item of this thread block after `item`: the next one that no block has taken, or the one that
 * is its turn. */
INLINE int item_after(const forward_tma_args &t, int item) {
    if (!t.forward.counts) return item + t.blocks;
    if (lane_id() == 0) item = t.blocks + (int)count_one(t.forward.counts, t.forward.tag);
    return __shfl_sync(~0u, item, 0);
}

/* False: there is no such item. */
INLINE bool find_tile(tile_index &at, tile_finder &f, const forward_tma_args &t, int item) {
    if (t.forward.sequences.cu_seqlens_q.data) return find_packed(at, f, t.forward, item);
    if (item >= t.items) return false;
    at = tile_at(t.forward, item);
    at.row_block = at.row_block * together + rank_in_pair();
    return true;
}

/* Once by each thread block, when there are no more tiles: the last of all leaves no count. */
INLINE void end_count(const forward_tma_args &t) {
    uint64_t *taken = t.forward.counts, *ended = taken + 1;
    if (!taken || lane_id() != 0) return;
    if ((int)count_one(ended, t.forward.tag) < t.blocks - 1) return;
    leave_none(taken, t.forward.tag);
    leave_none(ended, t.forward.tag);
}

/* Whether rows of V behind the last key exist, with whatever they hold. */
INLINE bool has_rows_behind(const forward_args &a, const work &w) {
    if (w.seq.seqlen_k % tile::block_keys == 0) return false;
    return spec::paged || w.seq.k_start + w.seq.seqlen_k < a.sequences.rows_k;
}

/* What the rows see is worked out side by side: by a lane for each warpgroup, and by one for the
 * whole tile. Of the tile's blocks a warpgroup has at least one, and the tile those of all. The
 * slot takes what is known as it comes: the scheduler has few registers. */
INLINE void fill_slot(tile_slot &slot, const forward_args &a, tile_index at) {
    const int group = lane_id(), groups = tile::row_warps / 4;
    work &w = slot.w;
    if (group == 0) enter_rows(w, a, at);
    __syncwarp();
    /* a pair's keys are those that rows of either see */
    const int before = rank_in_pair() * tile::block_rows;
    const int64_t all = (int64_t)w.seq.seqlen_q * a.sequences.group.by - w.row_begin;
    const int first = group < groups ? group * 64 : -before;
    const int rows = group < groups
                         ? clamp(w.rows - first, 1, 64)
                         : before + (int)clamp64(all, 0, together * tile::block_rows - before);
    const view sees = view_of(a, w.seq, w.b, w.row_begin + first, rows);
    const int begin = __shfl_sync(~0u, sees.blocks.begin, groups);
    const int end = most(__shfl_sync(~0u, sees.blocks.end, groups), begin + 1);
    if (group < groups) {
        share &own = slot.shares[group];
        const int own_begin = clamp(sees.blocks.begin, begin, end - 1);
        const int own_end = clamp(sees.blocks.end, own_begin + 1, end);
        own.sees.blocks.begin = own_begin;
        own.sees.blocks.end = own_end;
        own.sees.clean = sees.clean;
        own.before = end - own_end;
        own.behind = own_begin - begin;
    } else if (group == groups) {
        w.blocks.begin = begin;
        w.blocks.end = end;
        w.clean = sees.clean;
        find_keys(w, a);
        slot.end = end_of_tile(a, w);
        slot.mend = has_rows_behind(a, w);
    }
}

/* What the next slot is for: item `item`, see schedule(), or its tile once more. */
struct order {
    int item, again;
};

/* A slot has come back: what is next. The other block of a pair is told. */
INLINE order decide(const forward_tma_args &t, const tile_ring &tiles, tile_slot &slot, int item,
                    uint32_t memory) {
    if (t.forward.counts && tiles.passed > 0)
        wait_phase(memory + layout::need_barrier, tiles.passed - 1 & 1);
    const int again = __any_sync(~0u, slot.redo);
    __syncwarp();
    if (lane_id() == 0) slot.redo = 0;
    if (again)
        item = most(item, -1);
    else if (item < 0)
        item--;
    else if (tiles.passed > 0)
        item = item_after(t, item);
    if (lane_id() == 0)
        send(memory + layout::told + tiles.slot() * 8,
             memory + layout::told_barriers + tiles.slot() * 8, item, again);
    const order next = {item, again};
    return next;
}

/* By the other block of a pair, whose slot has come back, too. */
INLINE order hear(const tile_ring &tiles, uint32_t memory) {
    if (lane_id() == 0 && tiles.passed >= layout::tile_slots) arrive_at_leader(tiles.empty());
    const uint32_t barrier = memory + layout::told_barriers + tiles.slot() * 8;
    const uint32_t told = memory + layout::told + tiles.slot() * 8;
    if (lane_id() == 0) arrive_and_expect(barrier, 8);
    wait_phase(barrier, tiles.parity());
    const order next = {shared_i32(told), shared_i32(told + 4)};
    __syncwarp();
    return next;
}

/* Whether of a tile something is read before its keys are: where it lies, what it sees, slopes. */
INLINE bool reads_ahead(const forward_args &a) {
    const sequences_arg &s = a.sequences;
    return s.cu_seqlens_q.data || s.cu_seqlens_k.data || s.seqused_k.data || s.leftpad_k.data ||
           s.cache_batch_idx.data || s.cu_seqlens_k_new.data || a.max_ranges > 0 ||
           a.alibi_slopes.data;
}

/* Tiles whose slot comes back flagged are computed once more, carefully. When there are no others,
 * a round of slots without a tile makes sure that all flags have been seen. If they are counted, no
 * tile is taken before the copier is about to need it: another block might come to it first. */
INLINE void schedule(const forward_tma_args &t, uint32_t memory) {
    tile_ring tiles(memory + layout::tile_barriers);
    tile_finder finder;
    /* below 0: of none, and -1 - item slots without a tile since the last */
    int item = blockIdx.x / together;
    if (reads_ahead(t.forward)) wait_for_kernel_before();
    if (t.forward.sequences.cu_seqlens_q.data) look_at(finder, t.forward, 0, 0);
    while (item >= -layout::tile_slots) {
        tile_slot &slot = slot_of(tiles);
        wait_for_both(tiles.empty(), tiles.parity() ^ 1);
        const order next = rank_in_pair() == 0 ? decide(t, tiles, slot, item, memory)
                                               : hear(tiles, memory);
        const bool again = next.again;
        tile_index at = {0, 0, 0};
        item = next.item;
        const bool found = !again && item >= 0 && find_tile(at, finder, t, item);
        if (!again && item >= 0 && !found) {
            if (rank_in_pair() == 0) end_count(t);
            item = -2;
        }
        if (found) {
            fill_slot(slot, t.forward, at);
        } else if (lane_id() == 0) {
            slot.w.careful = again;
            slot.mend = true;
            if (!again) slot.w.rows = item >= -layout::tile_slots ? NO_TILE : NO_MORE_TILES;
        }
        arrive(tiles.full()); /* all lanes: each for what it has written */
        tiles.next();
        if (tiles.passed == 1) { /* the first tile has been found while that was at work */
            wait_for_kernel_before();
            allow_next_kernel();
        }
    }
}

#endif
