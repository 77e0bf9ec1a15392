/* Attention of tiles on tensor cores, with the instructions of sm_90a: wgmma, bulk copies, and
 * warps of different roles.
 *
 * A tile is block_rows packed rows against all their keys, in blocks from the last to the first. A
 * thread block stays on its multiprocessor and works on tiles in turn. Its first row_warps / 4
 * warpgroups compute, each 64 rows of the tile; of the last one, warp 0 chooses tiles and warp 1
 * starts copies. What they hand each other goes through rings of slots:
 *
 *   tiles    what to compute; from the scheduler to all
 *   q        the tile's queries; from the copier to the warpgroups
 *   k, v     blocks of keys and values; the same. V of a block comes after K of the block before it
 *
 * A slot's barrier `full` takes one arrival and the bytes of its copies, `empty` one from each
 * computing warp. Of a tile all threads that read or write the slot arrive: at `full` the
 * scheduler's, at `empty` the copier's and those that compute. Roles wait for nothing else of each
 * other: warpgroups run apart, and skip blocks that only rows of others see.
 *
 * While a warpgroup turns S of one block into weights, tensor cores multiply the weights of the
 * block before with V, and, where Q has two slots, at a tile's end Q of the next tile with its
 * keys. The tile's rows are then written beside the next tile's second product with keys.
 *
 * With a counter, the copier tells by the barrier `need` that it is coming to a tile's last blocks.
 *
 * Grid: at most one block for each multiprocessor; block: tile::threads + 128; dynamic shared
 * memory: tile.shared_bytes (src/spec.h). */
#include "mma_sm90.cuh"
#include "nonfinite.cuh"
#include "output_sm90.cuh"

extern __shared__ __align__(1024) char shared_memory[];

constexpr int consumer_warps = tile::row_warps;
/* Registers of a thread when the block starts, then of one that computes and of the others: they
 * have no more in all, else those that compute would wait for ever. One computing warpgroup leaves
 * enough for all. */
constexpr int started_registers = 65536 / (tile::threads + 128) / 8 * 8;
constexpr bool shares_registers = tile::row_warps > 4;
constexpr int consumer_registers = tile::row_warps == 8 ? 224 : 152;
constexpr int producer_registers = 56;
static_assert(!shares_registers ||
                  tile::threads * (consumer_registers - started_registers) <=
                      128 * (started_registers - producer_registers),
              "setmaxnreg would wait");

/* Whether products leave registers to do something else beside them. */
constexpr int product_registers =
    tile::head_dim_v / 2 + tile::block_keys / 2 + tile::block_keys / 4 * spec::p_parts;
constexpr bool has_room =
    (shares_registers ? consumer_registers : 255) - product_registers >= 40;

typedef ring<layout::tile_slots> tile_ring;
typedef ring<tile::q_slots> q_ring;
typedef ring<layout::stages> key_ring;

/* What a warpgroup's 64 rows see, and whether V may hold inf or NaN in keys that do not exist or
 * are hidden. */
struct rows_seen {
    view sees;
    int mend;
};

/* A tile, and each warpgroup's part of it. */
struct tile_slot {
    work w;
    tile_end end;
    rows_seen group[tile::row_warps / 4];
    int redo; /* set by those who compute it: once more, carefully */
};
static_assert(sizeof(tile_slot) <= layout::tile_bytes, "the host counts other bytes");

INLINE tile_slot &slot_of(const tile_ring &tiles) {
    return *(tile_slot *)(shared_memory + layout::tiles + tiles.slot() * layout::tile_bytes);
}

/* By all lanes, each for what it has read. */
INLINE void leave_slot(tile_ring &tiles) {
    arrive(tiles.empty());
    tiles.next();
}

/* ---- the scheduler: one warp ---- */

enum { NO_TILE = 0, NO_MORE_TILES = -1 }; /* in place of a tile's rows */

/* Packed sequences are looked at 32 at a time, one a lane, as items ascend. */
struct tile_finder {
    int first_b, first_item;
    int row_blocks, items_before; /* of the lane's sequence; in those of the lanes before */
};

INLINE void look_at(tile_finder &f, const forward_args &a, int first_b, int first_item) {
    const int b = first_b + lane_id();
    int rows = 0;
    if (b < a.sequences.batch) rows = sequence_of(a.sequences, b).seqlen_q * a.sequences.group.by;
    f.first_b = first_b;
    f.first_item = first_item;
    f.row_blocks = (rows + tile::block_rows - 1) / tile::block_rows;
    int items = f.row_blocks * a.sequences.heads_kv.by, sum = items;
    UNROLL for (int lane = 1; lane < 32; lane *= 2) {
        int below = __shfl_up_sync(~0u, sum, lane);
        if (lane_id() >= lane) sum += below;
    }
    f.items_before = sum - items;
}

/* False: there is no such item. */
INLINE bool find_packed(tile_index &at, tile_finder &f, const forward_args &a, int item) {
    const int heads = a.sequences.heads_kv.by;
    for (;;) {
        const int items = __shfl_sync(~0u, f.items_before + f.row_blocks * heads, 31);
        if (item - f.first_item < items) break;
        if (f.first_b + 32 >= a.sequences.batch) return false;
        look_at(f, a, f.first_b + 32, f.first_item + items);
    }
    item -= f.first_item;
    const int lane = __popc(__ballot_sync(~0u, f.items_before <= item)) - 1;
    item -= __shfl_sync(~0u, f.items_before, lane);
    const int after = divide(item, a.sequences.heads_kv);
    at.b = f.first_b + lane;
    at.head = item - after * heads;
    at.row_block = __shfl_sync(~0u, f.row_blocks, lane) - 1 - after;
    return true;
}

/* The next item of this thread block: the next one that no block has taken, or, without a counter,
 * the one that is its turn. */
INLINE int next_item(const forward_tma_args &t, int round) {
    int item = round * gridDim.x + blockIdx.x;
    if (!t.counter || round == 0) return item;
    if (lane_id() == 0) item = gridDim.x + atomicAdd(t.counter, 1);
    return __shfl_sync(~0u, item, 0);
}

INLINE bool find_tile(tile_index &at, tile_finder &f, const forward_tma_args &t, int round) {
    const int item = next_item(t, round);
    if (t.forward.sequences.cu_seqlens_q.data) return find_packed(at, f, t.forward, item);
    if (item < t.items) at = tile_at(t.forward, item);
    return item < t.items;
}

/* Whether rows of V behind the last key exist, with whatever they hold. */
INLINE bool has_rows_behind(const forward_args &a, const work &w) {
    if (w.seq.seqlen_k % tile::block_keys == 0) return false;
    return spec::paged || w.seq.k_start + w.seq.seqlen_k < a.sequences.rows_k;
}

/* What the rows see is worked out side by side: by a lane for each warpgroup, and by one for the
 * whole tile. Of the tile's blocks a warpgroup has at least one, and the tile of all. */
INLINE void fill_slot(tile_slot &slot, const forward_args &a, tile_index at) {
    const int group = lane_id(), groups = tile::row_warps / 4;
    work w;
    enter_rows(w, a, at, tile::block_rows);
    const int first = group < groups ? group * 64 : 0;
    const int rows = group < groups ? clamp(w.rows - first, 1, 64) : w.rows;
    const view sees = view_of(a, w.seq, w.b, w.row_begin + first, rows, tile::block_keys);
    w.blocks.begin = __shfl_sync(~0u, sees.blocks.begin, groups);
    w.blocks.end = most(__shfl_sync(~0u, sees.blocks.end, groups), w.blocks.begin + 1);
    w.clean = sees.clean;
    if (group < groups) {
        rows_seen &own = slot.group[group];
        own.sees.blocks.begin = clamp(sees.blocks.begin, w.blocks.begin, w.blocks.end - 1);
        own.sees.blocks.end = clamp(sees.blocks.end, own.sees.blocks.begin + 1, w.blocks.end);
        own.sees.clean = sees.clean;
        own.mend = has_rows_behind(a, w);
    } else if (group == groups) {
        find_keys(w, a);
        slot.w = w;
        slot.end = end_of_tile(a, w);
    }
}

/* Tiles whose slot comes back flagged are computed once more, carefully. When there are no others,
 * a round of slots without a tile makes sure that all flags have been seen. With a counter no tile
 * is taken before the copier is about to need it: another thread block might come to it first. */
INLINE void schedule(const forward_tma_args &t, uint32_t memory) {
    tile_ring tiles(memory + layout::tile_barriers);
    tile_finder finder;
    tile_index at;
    int round = 0, idle = 0;
    if (t.forward.sequences.cu_seqlens_q.data) look_at(finder, t.forward, 0, 0);
    while (idle <= layout::tile_slots) {
        tiles.wait_empty();
        if (t.counter && tiles.passed > 0)
            wait_phase(memory + layout::need_barrier, tiles.passed - 1 & 1);
        tile_slot &slot = slot_of(tiles);
        const bool again = slot.redo;
        const bool found = !again && idle == 0 && find_tile(at, finder, t, round++);
        __syncwarp();
        idle = again || found ? 0 : idle + 1;
        if (found) {
            fill_slot(slot, t.forward, at);
        } else if (lane_id() == 0) {
            slot.w.careful = again;
            for (rows_seen &own : slot.group) own.mend = true;
            if (!again) slot.w.rows = idle <= layout::tile_slots ? NO_TILE : NO_MORE_TILES;
        }
        if (lane_id() == 0) slot.redo = 0;
        arrive(tiles.full()); /* all lanes: each for what it has written */
        tiles.next();
    }
}

/* ---- the copier: one warp ---- */

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

/* Starts the copy of a block of K or V. */
INLINE void copy_keys(const forward_tma_args &t, const tensor_map *map, key_place at, int head,
                      uint32_t to, uint32_t barrier, const int chunks) {
    if (lane_id() == 0) arrive_and_expect(barrier, chunks * tile::block_keys * 128);
    for (int row = 0; row < tile::block_keys; row += t.key_rows) {
        int batch = spec::paged ? __shfl_sync(~0u, at.batch, row / t.key_rows) : at.batch;
        if (lane_id() != 0) continue;
        UNROLL for (int chunk = 0; chunk < chunks; chunk++)
            copy_box(to + chunk * tile::block_keys * 128 + row * 128, map, barrier, chunk * 64,
                     at.row, head, batch);
    }
}

INLINE void copy_queries(const forward_tma_args &t, const work &w, uint32_t to, uint32_t barrier) {
    const int query = divide(w.row_begin, t.forward.sequences.group);
    const int b = t.forward.sequences.cu_seqlens_q.data ? 0 : w.b;
    if (lane_id() != 0) return;
    arrive_and_expect(barrier, layout::q_bytes);
    UNROLL for (int chunk = 0; chunk < layout::q_chunks; chunk++)
        copy_box(to + chunk * tile::block_rows * 128, &t.q, barrier, chunk * 64, 0,
                 w.seq.q_start + query, w.head, b);
}

/* Blocks of keys to be copied yet when the copier asks for the next tile: meanwhile it is found. */
constexpr int blocks_ahead = 2;

INLINE void ask_for_tile(uint32_t memory) {
    if (lane_id() == 0) arrive(memory + layout::need_barrier);
}

INLINE void copy(const forward_tma_args &t, uint32_t memory) {
    tile_ring tiles(memory + layout::tile_barriers);
    q_ring q(memory + layout::q_barriers);
    key_ring k(memory + layout::k_barriers), v(memory + layout::v_barriers);
    for (;;) {
        tiles.wait_full();
        const work &w = slot_of(tiles).w;
        if (w.rows == NO_MORE_TILES) break;
        const int first = w.blocks.begin, last = w.rows > 0 ? w.blocks.end - 1 : first - 2;
        const int head = w.head_kv;
        const int soon = least(last, first + blocks_ahead);
        key_place before = {0, 0};
        if (w.rows <= 0) ask_for_tile(memory);
        for (int block = last; block >= first - 1; block--) {
            key_place at = before;
            if (block == soon) ask_for_tile(memory);
            if (block >= first) {
                at = place_of(t, w, block);
                k.wait_empty();
                copy_keys(t, &t.k, at, head, memory + layout::k + k.slot() * layout::k_bytes,
                          k.full(), layout::q_chunks);
                k.next();
            }
            if (block == last) {
                q.wait_empty();
                copy_queries(t, w, memory + layout::q + q.slot() * layout::q_bytes, q.full());
                q.next();
            } else {
                v.wait_empty();
                copy_keys(t, &t.v, before, head, memory + layout::v + v.slot() * layout::v_bytes,
                          v.full(), layout::v_chunks);
                v.next();
            }
            before = at;
        }
        leave_slot(tiles);
    }
}

/* ---- the warpgroups that compute ---- */

/* A warp's place in the rings, and what it knows ahead of the next products. All is the same for
 * the warp's threads, and is made so where the compiler could not tell: then branches need no care
 * for threads that part. */
struct place {
    tile_ring tiles;
    q_ring q;
    key_ring k, v;
    tile_slot *slot;           /* the tile */
    int block, begin;          /* whose weights P holds; the first that these rows see */
    uint32_t q_at, k_at, v_at; /* operands */
    bool first;                /* V's product starts O */
    bool masked, mend;         /* the block before needs a mask; V of this one a look */
    bool ready;                /* both have been seen to be there */
    bool exact;                /* maxima are those of all keys, whatever spec::maxima */
};

INLINE int same_for_all(int x) { return __shfl_sync(~0u, x, 0); }

INLINE const rows_seen &own_rows(const tile_slot &slot) { return slot.group[row_warp() / 4]; }

INLINE void look_at_queries(place &at, uint32_t memory) {
    const uint32_t rows = row_warp() / 4 * 64 * 128;
    at.q_at = operand_at(memory + layout::q + at.q.slot() * layout::q_bytes + rows, 16);
}
INLINE void look_at_keys(place &at, uint32_t memory) {
    at.k_at = operand_at(memory + layout::k + at.k.slot() * layout::k_bytes, 16);
    at.masked = __any_sync(~0u, !is_clean(own_rows(*at.slot).sees.clean, at.block - 1));
}
INLINE void look_at_values(place &at, uint32_t memory) {
    at.v_at = operand_at(memory + layout::v + at.v.slot() * layout::v_bytes,
                         tile::block_keys * 128);
    at.mend = __any_sync(~0u, own_rows(*at.slot).mend);
}

/* Blocks of keys that the tile has and these rows do not see. */
INLINE void pass_by(place &at, int blocks) {
    for (; blocks > 0; blocks--) {
        at.k.wait_full();
        at.k.release();
        at.v.wait_full();
        at.v.release();
    }
}

INLINE void enter_tile(place &at, tile_slot *slot, const forward_args &a, uint32_t memory) {
    const rows_seen &own = own_rows(*slot);
    at.slot = slot;
    at.block = same_for_all(own.sees.blocks.end);
    at.begin = same_for_all(own.sees.blocks.begin);
    at.exact = spec::maxima == 1 && __any_sync(~0u, slot->w.careful);
    if (spec::scores == 1) {
        __syncwarp();
        note_rows(a, slot->w, memory);
        __syncwarp();
    }
}

/* V of the block, which has come. */
INLINE void mend_values(const place &at, const work &w, uint32_t memory) {
    const int left = w.seq.seqlen_k - at.block * tile::block_keys;
    const bool hides = w.careful && !is_clean(w.clean, at.block);
    if (hides || left < tile::block_keys)
        remove_nonfinite(memory + layout::v + at.v.slot() * layout::v_bytes, hides ? 0 : left);
}

INLINE void wait_values(const place &at, const work &w, uint32_t memory) {
    at.v.wait_full();
    if (at.mend) mend_values(at, w, memory);
}

/* What each row sees of the block before it, if that is masked. */
INLINE void note_masked(const place &at, const forward_args &a, const work &w, uint32_t memory) {
    if (at.masked) note_visible(a, w, memory, (at.block - 1) * tile::block_keys);
}

/* For K of the block before it. */
INLINE void wait_keys(const place &at, const forward_args &a, const work &w, uint32_t memory) {
    at.k.wait_full();
    if (!has_room) note_masked(at, a, w, memory);
}

/* S is of the block before; K of it has been read, and with the first block's Q. */
INLINE void leave_keys(place &at) {
    at.k.release();
    at.block--;
    if (at.block == at.begin) at.q.release();
}

/* Of a careful tile, what was taken out of V. */
INLINE void put_back(const place &at, out_block &o, const forward_args &a, const work &w,
                     uint32_t memory) {
    const int last = same_for_all(own_rows(*at.slot).sees.blocks.end) - 1;
    for (int block = last; block >= at.begin; block--)
        if (!is_clean(w.clean, block)) add_nonfinite(o, a, w, memory, block * tile::block_keys);
}

/* Whether sums have left the range in which they and weights are as good as others. */
INLINE bool overflows(const softmax_state &state, const work &w) {
    bool some = false;
    UNROLL for (int i = 0; i < tile::row_states; i++)
        some |= !(state.sum[i] < 1e30f) && row_in_tile(i) < w.rows;
    return spec::maxima == 1 && some;
}

/* Rows are written; the tile is handed back if what it hides has made them inf or NaN, or if it must
 * know its maxima. */
INLINE void leave_tile(place &at, out_block &o, softmax_state state, const forward_args &a,
                       float scale) {
    tile_slot &slot = slot_of(at.tiles);
    const work &w = slot.w;
    const bool redo = overflows(state, w) || (slot.end.hides && any_nonfinite(o, w));
    if (!w.careful && __any_sync(~0u, redo) && lane_id() == 0) slot.redo = 1;
    finish_sums(state.sum, 0);
    finish_rows(o, state, a, w, slot.end, scale);
    if (a.out_dtype == 3)
        store_floats(o, a, w);
    else
        store_quads(o, a, w, slot.end);
    leave_slot(at.tiles);
}

/* The next tile to begin; null: there are no more. */
INLINE tile_slot *next_tile(place &at) {
    for (;;) {
        at.tiles.wait_full();
        tile_slot &slot = slot_of(at.tiles);
        if (slot.w.rows > 0) return &slot;
        if (slot.w.rows == NO_MORE_TILES) return nullptr;
        leave_slot(at.tiles);
    }
}

/* The tile after this one, if its first product can run beside the last of this one: copies that
 * this one still has to take do not stand before it. */
INLINE tile_slot *tile_to_follow(const place &at) {
    tile_ring next = at.tiles;
    const work &w = at.slot->w;
    if (tile::q_slots == 1 || w.careful || at.begin > w.blocks.begin)
        return nullptr;
    next.next();
    next.wait_full();
    tile_slot &slot = slot_of(next);
    if (slot.w.rows <= 0) return nullptr;
    const int passed = slot.w.blocks.end - own_rows(slot).sees.blocks.end;
    return __any_sync(~0u, passed <= layout::stages) ? &slot : nullptr;
}

INLINE void compute(const forward_args &a, uint32_t memory) {
    const float scale = (spec::scores == 1 ? 1 : a.scale) * LOG2E;
    place at = {memory + layout::tile_barriers, memory + layout::q_barriers,
                memory + layout::k_barriers, memory + layout::v_barriers};
    score_block s;
    weight_block p;
    out_block o;
    softmax_state state, done; /* done: of the tile to be left, whose slot at.tiles stands at */
    row_values factor;

    /* S becomes weights; true: maxima were raised, O must be brought to them. With spec::maxima most
     * blocks are taken to raise none: weights and sums are then larger than 1, and what becomes
     * too large is found at the end */
    auto weigh_next = [&](const bool opens) {
        const bool masked = at.masked;
        leave_keys(at);
        if (spec::scores == 1) bias_scores(s, a, memory, at.block * tile::block_keys);
        if (masked) mask_scores(s, memory);
        bool raised = false;
        if (spec::maxima == 0 || opens || masked || at.exact)
            raised = raise_maxima(s, state, scale, memory,
                                  [&](const int i, float by) { factor[i] = by; });
        look_at_keys(at, memory);
        weigh(s, state, scale, 0, tile::key_parts);
        return raised;
    };
    /* S = Q K^T of a tile's first block, alone */
    auto begin = [&](tile_slot *slot) {
        const work &w = slot->w;
        enter_tile(at, slot, a, memory);
        pass_by(at, w.blocks.end - at.block);
        look_at_queries(at, memory);
        look_at_keys(at, memory);
        look_at_values(at, memory);
        at.first = true;
        at.ready = false;
        at.q.wait_full();
        wait_keys(at, a, w, memory);
        start_products(s, o, p);
        multiply_keys(s, at.q_at, at.k_at);
        if (has_room) note_masked(at, a, w, memory);
        finish_products(s, o, p);
        clear(state);
        weigh_next(true);
        pack_weights(p, s);
    };
    auto leave = [&] { leave_tile(at, o, done, a, scale); };
    /* S = Q K^T of the next block beside O += P V of the last one; and beside the former, after a
     * tile's first block, the tile before is left */
    auto step = [&](const bool leaves) {
        const work &w = at.slot->w;
        if (!at.ready || at.mend || (at.masked && !has_room)) {
            wait_values(at, w, memory);
            wait_keys(at, a, w, memory);
        }
        start_products(s, o, p);
        multiply_keys(s, at.q_at, at.k_at);
        if (leaves) {
            leave();
            start_values(o);
        }
        multiply_values(o, p, at.v_at, !at.first);
        if (has_room) note_masked(at, a, w, memory);
        finish_keys(s);
        const bool raised = weigh_next(false);
        finish_products(s, o, p);
        at.v.release();
        look_at_values(at, memory);
        at.ready = __all_sync(~0u, at.k.is_full() && at.v.is_full());
        at.first = false;
        pack_weights(p, s);
        UNROLL for (int i = 0; i < tile::row_states && raised; i++) rescale(o, i, factor[i]);
    };
    /* the same, of the next tile beside this one */
    auto turn_to = [&](tile_slot *slot) {
        const work &next = slot->w;
        wait_values(at, at.slot->w, memory);
        enter_tile(at, slot, a, memory);
        const int passed = next.blocks.end - at.block;
        for (int i = 0; i < passed; i++) {
            at.k.wait_full();
            at.k.release();
        }
        look_at_queries(at, memory);
        look_at_keys(at, memory);
        at.q.wait_full();
        wait_keys(at, a, next, memory);
        start_products(s, o, p);
        multiply_keys(s, at.q_at, at.k_at);
        multiply_values(o, p, at.v_at, !at.first);
        if (has_room) note_masked(at, a, next, memory);
        finish_keys(s);
        clear(state);
        weigh_next(true);
        finish_products(s, o, p);
        at.v.release();
        for (int i = 0; i < passed; i++) {
            at.v.wait_full();
            at.v.release();
        }
        look_at_values(at, memory);
        at.first = true;
        at.ready = false;
        pack_weights(p, s);
    };
    /* O += P V of a tile's last block, alone */
    auto end = [&] {
        const work &w = at.slot->w;
        wait_values(at, w, memory);
        start_products(s, o, p);
        multiply_values(o, p, at.v_at, !at.first);
        finish_products(s, o, p);
        at.v.release();
        pass_by(at, at.begin - w.blocks.begin);
        if (w.careful) put_back(at, o, a, w, memory);
    };

    while (tile_slot *slot = next_tile(at)) {
        begin(slot);
        while (slot) {
            while (at.block > at.begin) step(false);
            done = state;
            slot = tile_to_follow(at);
            if (slot)
                turn_to(slot);
            else
                end();
            if (has_room && slot && at.block > at.begin)
                step(true);
            else
                leave();
        }
    }
}

extern "C" __global__ void __launch_bounds__(tile::threads + 128, 1)
tallow_forward(const __grid_constant__ forward_tma_args t) {
    const uint32_t memory = shared_address(shared_memory);
    allow_next_kernel();
    if (threadIdx.x == 0) {
        auto init = [&](int at, int slots, int fills, int releases) {
            for (int i = 0; i < slots; i++) {
                init_barrier(memory + at + i * 8, fills);
                init_barrier(memory + at + (slots + i) * 8, releases);
            }
        };
        init(layout::tile_barriers, layout::tile_slots, 32, 32 * (consumer_warps + 1));
        init_barrier(memory + layout::need_barrier, 1);
        init(layout::q_barriers, tile::q_slots, 1, consumer_warps);
        init(layout::k_barriers, layout::stages, 1, consumer_warps);
        init(layout::v_barriers, layout::stages, 1, consumer_warps);
        for (int i = 0; i < layout::tile_slots; i++)
            ((tile_slot *)(shared_memory + layout::tiles + i * layout::tile_bytes))->redo = 0;
        publish_barriers();
    }
    __syncthreads();
    if (threadIdx.x < tile::threads) {
        if (shares_registers) take_registers<consumer_registers>();
        compute(t.forward, memory);
    } else {
        if (shares_registers) give_registers<producer_registers>();
        const int warp = (threadIdx.x - tile::threads) / 32;
        if (warp == 0) schedule(t, memory);
        if (warp == 1) copy(t, memory);
    }
}
