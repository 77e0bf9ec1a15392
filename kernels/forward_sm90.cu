/* Attention of tiles on tensor cores, with the instructions of sm_90a: wgmma, bulk copies, and
 * warps of different roles.
 *
 * A tile is block_rows packed rows against all their keys, in blocks from the last to the first. A
 * thread block stays on its multiprocessor and works on tiles in turn. Its first row_warps / 4
 * warpgroups compute, each 64 rows of the tile; the warps of the last one are
 *
 *   0, the scheduler   finds the tiles                               tiles_sm90.cuh
 *   1, the copier      starts copies of queries, keys and values     keys_sm90.cuh
 *   2, the mender      takes inf and NaN out of V that must not be multiplied
 *
 * and one that has nothing to do.
 *
 * What they hand each other goes through rings of slots, each with a barrier `full` and one
 * `empty`:
 *
 *   tiles   what to compute. All threads that write or read a slot arrive: at `full` those of the
 *           scheduler, at `empty` all others
 *   q       the tile's queries. `full` takes one arrival and the bytes of the copies, `empty` one
 *           of each warp that computes
 *   k, v    blocks of keys and values; the same. V of a block comes after K of the block before it.
 *           V to be mended arrives at a barrier `landed`, and the mender at `full`
 *
 * Warpgroups run apart, and skip blocks that only rows of others see. If tiles are counted, the
 * copier tells the scheduler by the barrier `need` that it is coming to a tile's last blocks.
 *
 * While a warpgroup turns S of one block into weights, tensor cores multiply the weights of the
 * block before with V, and, where Q has two slots, at a tile's end Q of the next tile with its
 * keys. The tile's rows leave before the next product. On an H200, P V in two halves around the
 * maxima is 2 to 4 % behind, and so is O brought to new maxima beside exponentials; weights packed
 * beside them 1 to 5 %: what one warpgroup gains, the other waits for.
 *
 * In pairs (spec::pairs) two thread blocks, side by side, work on the same keys: copy_sm90.cuh.
 *
 * Grid: at most one block for each multiprocessor; block: tile::threads + 128; dynamic shared
 * memory: tile.shared_bytes (src/spec.h). */
#include "keys_sm90.cuh"
#include "mma_sm90.cuh"
#include "output_sm90.cuh"

constexpr int consumer_warps = tile::row_warps;
/* Registers of a thread when the block starts, then of one that computes and of the others: they
 * have no more in all, else those that compute would wait for ever. One computing warpgroup leaves
 * enough for all. */
constexpr int started_registers = 65536 / (tile::threads + 128) / 8 * 8;
constexpr bool shares_registers = tile::row_warps > 4;
constexpr int consumer_registers = tile::row_warps == 8 ? 224 : 160;
constexpr int producer_registers = tile::row_warps == 8 ? 56 : 32;
static_assert(!shares_registers ||
                  tile::threads * (consumer_registers - started_registers) <=
                      128 * (started_registers - producer_registers),
              "setmaxnreg would wait");

/* Choices that are made when the kernel is compiled, as arguments. */
struct yes {
    constexpr operator bool() const { return true; }
};
struct no {
    constexpr operator bool() const { return false; }
};

/* ---- the warpgroups that compute ---- */

/* A warp's place in the rings. All is the same for the warp's threads, and is made so where the
 * compiler could not tell: then it lies in uniform registers, from which wgmma takes its operands,
 * and branches need no care for threads that part. One loop whose count might differ is enough to
 * lose that. */
struct place {
    tile_ring tiles;
    q_ring q;
    key_ring k, v;
    int group;        /* of warps */
    tile_slot *slot;  /* the tile */
    int block, begin; /* whose weights P holds; the first that these rows see */
    interval clean;   /* those of which these rows see all */
    int behind;       /* the tile's blocks before that one */
    bool first;       /* V's product starts O */
    bool careful;     /* see nonfinite.cuh; and maxima are those of all keys */
};

INLINE uint32_t queries_at(const place &at, uint32_t memory) {
    return operand_at(memory + layout::q + at.q.slot() * layout::q_bytes + at.group * 64 * 128, 16);
}
INLINE uint32_t keys_at(const place &at, uint32_t memory) {
    return operand_at(memory + layout::k + at.k.slot() * layout::k_bytes, 16);
}
INLINE uint32_t values_at(const place &at, uint32_t memory) {
    return operand_at(memory + layout::v + at.v.slot() * layout::v_bytes, tile::block_keys * 128);
}

/* Whether the next block's maxima must be known: weights are relative to those of blocks before only
 * where a row has any. */
INLINE bool needs_maxima(const place &at, const softmax_state &state) {
    return spec::maxima == 0 || at.careful || !all_have_maxima(state.max);
}

/* How many of the tile's steps that come next need no mask, nor look at what is negative. */
INLINE int plain_steps(const place &at, const softmax_state &state) {
    const bool above = spec::maxima == 1 ? !needs_maxima(at, state)
                                         : __all_sync(~0u, none_negative(state.max));
    const bool some = above && !at.careful && within(at.clean, at.block - 1);
    return same_for_all(some ? at.block - most(at.begin, at.clean.begin) : 0);
}

/* Blocks of keys that the tile has and these rows do not see. */
INLINE void pass_blocks(key_ring &ring, int blocks) {
    _Pragma("unroll 1") for (; blocks > 0; blocks--) {
        ring.wait_full();
        ring.release_to_both();
    }
}
/* Of both, as they come. */
INLINE void pass_blocks(key_ring &k, key_ring &v, int blocks) {
    _Pragma("unroll 1") for (; blocks > 0; blocks--) {
        pass_blocks(k, 1);
        pass_blocks(v, 1);
    }
}

/* To a tile's blocks, past those that only others see; of these V is still to be passed. */
INLINE int enter_tile(place &at, tile_slot *slot, const forward_args &a, uint32_t memory) {
    const share own = slot->shares[at.group];
    const int passed = same_for_all(own.before);
    at.slot = slot;
    at.block = same_for_all(own.sees.blocks.end);
    at.begin = same_for_all(own.sees.blocks.begin);
    at.clean.begin = same_for_all(own.sees.clean.begin);
    at.clean.end = same_for_all(own.sees.clean.end);
    at.behind = same_for_all(own.behind);
    at.first = true;
    at.careful = __any_sync(~0u, slot->w.careful);
    if (spec::scores == 1) {
        __syncwarp();
        note_rows(a, slot->w, memory);
        __syncwarp();
    }
    pass_blocks(at.k, passed);
    return passed;
}

/* Whether the block before needs a mask. */
INLINE bool is_masked(const place &at) { return !within(at.clean, at.block - 1); }

/* S is of the block before; K of it has been read, and with the first block's Q. */
INLINE void leave_keys(place &at) {
    at.k.release_to_both();
    at.block--;
    if (at.block == at.begin) at.q.release();
}

/* Whether sums have left the range in which they and weights are as good as others. */
INLINE bool overflows(const softmax_state &state, const work &w) {
    bool some = false;
    UNROLL for (int i = 0; i < tile::row_states; i++)
        some |= !(state.sum[i] < 1e30f) && row_in_tile(i) < w.rows;
    return spec::maxima == 1 && some;
}

/* Rows are written; the tile is handed back if what it hides has made them inf or NaN, or if it
 * must know its maxima. */
INLINE void leave_tile(place &at, out_block &o, softmax_state state, const forward_tma_args &t,
                       float scale, const bool careful, uint32_t memory) {
    const forward_args &a = t.forward;
    tile_slot &slot = slot_of(at.tiles);
    const work &w = slot.w;
    bool redo = overflows(state, w);
    row_values factor;
    finish_sums(state.sum, 0);
    finish_rows(factor, state, a, w, slot.end, scale);
    if (a.out_dtype == 3) {
        UNROLL for (int i = 0; i < tile::row_states; i++) rescale(o, i, factor[i]);
        redo |= slot.end.hides && any_nonfinite(o, w);
        store_floats(o, a, w);
    } else {
        row_zeros zeros = {0, 0};
        if (tile::stages_out)
            write_staged(o, factor, zeros, t, slot, careful, memory);
        else
            store_quads(o, factor, zeros, a, w, slot.end);
        redo |= slot.end.hides && any_nonfinite(zeros, w);
    }
    if (careful) {
        __syncwarp();
        put_back(a, w);
    } else if (__any_sync(~0u, redo) && lane_id() == 0) {
        ask_again(slot);
    }
    leave_slot(at.tiles);
}

/* The tile after this one, if its first product can run beside the last of this one: its queries
 * have a slot of their own, copies that this one still has to take do not stand before it, and this
 * one is not careful. */
INLINE tile_slot *tile_to_follow(const place &at) {
    if (tile::q_slots == 1 || at.behind >= layout::stages || at.careful) return nullptr;
    tile_ring next = at.tiles;
    next.next();
    next.wait_full();
    tile_slot &slot = slot_of(next);
    const int passed = slot.shares[at.group].before;
    return __all_sync(~0u, slot.w.rows > 0 && passed <= layout::stages) ? &slot : nullptr;
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

INLINE void compute(const forward_tma_args &t, uint32_t memory) {
    const forward_args &a = t.forward;
    const float scale = (spec::scores == 1 ? 1 : a.scale) * LOG2E;
    place at = {memory + layout::tile_barriers, memory + layout::q_barriers,
                memory + layout::k_barriers, memory + layout::v_barriers,
                same_for_all(row_warp() / 4)};
    score_block s;
    weight_block p;
    out_block o;
    softmax_state state;
    row_values factor;
    bool ready; /* K and V of the next step have been seen to be there */

    /* S becomes weights; true: maxima were raised, O must be brought to them. With spec::maxima
     * most blocks are taken to raise none: weights and sums are then larger than 1, and what
     * becomes too large is found at the end */
    auto weigh_next = [&](const bool masked, const bool knows_maxima, const bool above) {
        leave_keys(at);
        if (spec::scores == 1) bias_scores(s, a, memory, at.block * tile::block_keys);
        if (masked) mask_scores(s, a, at.slot->w, at.block * tile::block_keys);
        bool raised = false;
        if (spec::maxima == 0 || knows_maxima)
            raised = raise_maxima(s, state, above, scale, memory,
                                  [&](const int i, float by) { factor[i] = by; });
        weigh(s, state, scale, 0, tile::key_parts);
        return raised;
    };
    /* S = Q K^T of a tile's first block, alone */
    auto begin = [&](tile_slot *slot) {
        const int passed = enter_tile(at, slot, a, memory);
        const bool masked = is_masked(at);
        at.q.wait_full();
        at.k.wait_full();
        start_products(s, o, p);
        multiply_keys(s, queries_at(at, memory), keys_at(at, memory));
        finish_products(s, o, p);
        clear(state);
        weigh_next(masked, true, false);
        pass_blocks(at.v, passed);
        pack_weights(p, s);
    };
    /* S = Q K^T of the next block beside O += P V of the last one. It may be the first of the next
     * tile: then the one before is to be left */
    auto step = [&](const auto plain, tile_slot *next) {
        const bool turns = tile::q_slots == 2 && !plain && next;
        const bool accumulate = !at.first;
        const uint32_t v = values_at(at, memory);
        int rest = 0, passed = 0;
        if (!plain || !ready) at.v.wait_full();
        if (turns) {
            key_ring behind = at.v;
            behind.next();
            rest = at.behind;
            pass_blocks(at.k, behind, rest);
            passed = enter_tile(at, next, a, memory);
            at.q.wait_full();
        }
        if (!plain || !ready) at.k.wait_full();
        const bool masked = !plain && is_masked(at);
        start_products(s, o, p);
        multiply_keys(s, queries_at(at, memory), keys_at(at, memory));
        multiply_values(o, p, v, accumulate);
        finish_keys(s);
        if (turns) clear(state);
        const bool known = !plain && (masked || needs_maxima(at, state));
        const bool raised = weigh_next(masked, known, plain);
        finish_products(s, o, p);
        at.v.release_to_both();
        if (turns) {
            at.v.passed += rest;
            pass_blocks(at.v, passed);
        }
        if (plain) ready = __all_sync(~0u, at.k.is_full() & at.v.is_full());
        pack_weights(p, s);
        if (turns) return;
        at.first = false;
        UNROLL for (int i = 0; i < tile::row_states && raised; i++) rescale(o, i, factor[i]);
    };
    /* O += P V of a tile's last block, alone */
    auto end = [&] {
        at.v.wait_full();
        start_products(s, o, p);
        multiply_values(o, p, values_at(at, memory), !at.first);
        finish_products(s, o, p);
        at.v.release_to_both();
        pass_blocks(at.k, at.v, at.behind);
    };

    while (tile_slot *slot = next_tile(at)) {
        begin(slot);
        for (;;) {
            ready = false;
            for (int plain = plain_steps(at, state); plain > 0; plain--) step(yes(), nullptr);
            const bool last = at.block == at.begin;
            tile_slot *next = last ? tile_to_follow(at) : nullptr;
            const softmax_state done = state;
            if (last && !next)
                end();
            else
                step(no(), next);
            if (!last) continue;
            leave_tile(at, o, done, t, scale, !next && at.careful, memory);
            if (!next) break;
        }
    }
    wait_boxes();
}

extern "C" __global__ void TOGETHER __launch_bounds__(tile::threads + 128, 1)
tallow_forward(const __grid_constant__ forward_tma_args t) {
    const uint32_t memory = shared_address(shared_memory);
    if (threadIdx.x == tile::threads) {
        prefetch_map(&t.q);
        prefetch_map(&t.k);
        prefetch_map(&t.v);
    }
    if (threadIdx.x == 0) {
        auto init = [&](int at, int slots, int fills, int releases) {
            for (int i = 0; i < slots; i++) {
                init_barrier(memory + at + i * 8, fills);
                init_barrier(memory + at + (slots + i) * 8, releases);
            }
        };
        const int other = together - 1 - rank_in_pair(); /* its scheduler, at the leader */
        init(layout::tile_barriers, layout::tile_slots, 32, 32 * (consumer_warps + 2) + other);
        init_barrier(memory + layout::need_barrier, 1);
        init(layout::q_barriers, tile::q_slots, 1, consumer_warps);
        init(layout::k_barriers, layout::stages, 1, together * consumer_warps);
        init(layout::v_barriers, layout::stages, 1, together * consumer_warps);
        for (int i = 0; i < spec::pairs * layout::tile_slots; i++)
            init_barrier(memory + layout::told_barriers + i * 8, 1);
        for (int i = 0; i < layout::stages; i++)
            init_barrier(memory + layout::landed_barriers + i * 8, 1);
        for (int i = 0; i < layout::tile_slots; i++)
            ((tile_slot *)(shared_memory + layout::tiles + i * layout::tile_bytes))->redo = 0;
        publish_barriers();
    }
    __syncthreads();
    meet();
    if (threadIdx.x < tile::threads) {
        if (shares_registers) take_registers<consumer_registers>();
        compute(t, memory);
    } else {
        if (shares_registers) give_registers<producer_registers>();
        const int warp = (threadIdx.x - tile::threads) / 32;
        if (warp == 0) schedule(t, memory);
        if (warp == 1) copy(t, memory);
        if (warp == 2) mend(memory);
    }
    meet(); /* neither leaves while the other still copies to it */
}
