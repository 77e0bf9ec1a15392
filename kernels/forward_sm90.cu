/* Attention of tiles on tensor cores, with the instructions of sm_90a: wgmma, bulk copies, and warps
 * of different roles.
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
 * A slot's barrier `full` takes one arrival, and the bytes of its copies; `empty` takes one from each
 * computing warp, for tiles also from the copier. Roles wait for nothing else of each other:
 * warpgroups run apart, and skip blocks that only rows of others see.
 *
 * While a warpgroup turns S of one block into weights, tensor cores multiply the weights of the block
 * before with V, and, where Q has two slots, at a tile's end Q of the next tile with its keys.
 *
 * Grid: at most one block for each multiprocessor; block: tile::threads + 128; dynamic shared memory:
 * tile.shared_bytes (src/spec.h). */
#include "mma_sm90.cuh"
#include "nonfinite.cuh"
#include "output_sm90.cuh"

extern __shared__ __align__(1024) char shared_memory[];

constexpr int consumer_warps = tile::row_warps;
/* Registers of a thread that computes and of the others: 64 Ki of a multiprocessor, in eights. */
constexpr int consumer_registers = tile::row_warps == 4 ? 240 : tile::row_warps == 8 ? 224 : 152;
constexpr int producer_registers = 56;

typedef ring<layout::tiles> tile_ring;
typedef ring<tile::q_slots> q_ring;
typedef ring<layout::stages> key_ring;

INLINE work &tile_slot(const tile_ring &tiles) {
    return *(work *)(shared_memory + layout::work + tiles.slot * work_bytes);
}
INLINE uint32_t redo_flag(const tile_ring &tiles, uint32_t memory) {
    return memory + layout::redo + tiles.slot * 4;
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

/* Thread blocks take items in turn, every other time in reverse: with the longest first, each gets
 * as much to do. */
INLINE int item_of(int round) {
    return round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
}

INLINE bool find_tile(tile_index &at, tile_finder &f, const forward_tma_args &t, int round) {
    const int item = item_of(round);
    if (t.forward.sequences.cu_seqlens_q.data) return find_packed(at, f, t.forward, item);
    if (item < t.items) at = tile_at(t.forward, item);
    return item < t.items;
}

INLINE void fill_slot(work &w, const forward_args &a, tile_index at) {
    enter_work(w, a, at, tile::block_rows, tile::block_keys);
    find_keys(w, a);
    if (w.blocks.begin < w.blocks.end) return;
    w.blocks.begin = 0; /* a block that is hidden from all */
    w.blocks.end = 1;
}

/* Tiles whose slot comes back flagged are computed once more, carefully. When there are no others, a
 * round of slots without a tile makes sure that all flags have been seen. */
INLINE void schedule(const forward_tma_args &t, uint32_t memory) {
    tile_ring tiles(memory + layout::tile_barriers, 1);
    tile_finder finder;
    tile_index at;
    int round = 0, idle = 0;
    if (t.forward.sequences.cu_seqlens_q.data) look_at(finder, t.forward, 0, 0);
    while (idle <= layout::tiles) {
        tiles.wait_empty();
        const bool again = shared_i32(redo_flag(tiles, memory));
        const bool found = !again && idle == 0 && find_tile(at, finder, t, round++);
        idle = again || found ? 0 : idle + 1;
        if (lane_id() == 0) {
            work &w = tile_slot(tiles);
            if (again)
                w.careful = true;
            else if (found)
                fill_slot(w, t.forward, at);
            else
                w.rows = idle <= layout::tiles ? NO_TILE : NO_MORE_TILES;
            set_shared_i32(redo_flag(tiles, memory), 0);
            arrive(tiles.full());
        }
        __syncwarp();
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

INLINE void copy(const forward_tma_args &t, uint32_t memory) {
    tile_ring tiles(memory + layout::tile_barriers);
    q_ring q(memory + layout::q_barriers, 1);
    key_ring k(memory + layout::k_barriers, 1), v(memory + layout::v_barriers, 1);
    for (;;) {
        tiles.wait_full();
        const work &w = tile_slot(tiles);
        if (w.rows == NO_MORE_TILES) break;
        const int first = w.blocks.begin, last = w.rows > 0 ? w.blocks.end - 1 : first - 2;
        const int head = w.head_kv;
        key_place before = {0, 0};
        for (int block = last; block >= first - 1; block--) {
            key_place at = before;
            if (block >= first) {
                at = place_of(t, w, block);
                k.wait_empty();
                copy_keys(t, &t.k, at, head, memory + layout::k + k.slot * layout::k_bytes, k.full(),
                          layout::q_chunks);
                k.next();
            }
            if (block == last) {
                q.wait_empty();
                copy_queries(t, w, memory + layout::q + q.slot * layout::q_bytes, q.full());
                q.next();
            } else {
                v.wait_empty();
                copy_keys(t, &t.v, before, head, memory + layout::v + v.slot * layout::v_bytes,
                          v.full(), layout::v_chunks);
                v.next();
            }
            before = at;
        }
        tiles.release();
    }
}

/* ---- the warpgroups that compute ---- */

/* A warpgroup's place in the rings, and what its rows of the tile see. */
struct place {
    tile_ring tiles;
    q_ring q;
    key_ring k, v;
    view own;
    int block;   /* the last one that S was of */
    bool mend;   /* a block of V may hold inf or NaN in keys that do not exist or are hidden */
};

/* Blocks of keys that the tile has and these rows do not see. */
INLINE void pass_by(place &at, int blocks) {
    for (; blocks > 0; blocks--) {
        at.k.wait_full();
        at.k.release();
        at.v.wait_full();
        at.v.release();
    }
}

/* Of a tile's blocks those that its 64 rows see, at least one. */
INLINE view own_view(const forward_args &a, const work &w) {
    const int first = row_warp() / 4 * 64, rows = clamp(w.rows - first, 1, 64);
    view own = view_of(a, w.seq, w.b, w.row_begin + first, rows, tile::block_keys);
    own.blocks.begin = clamp(own.blocks.begin, w.blocks.begin, w.blocks.end - 1);
    own.blocks.end = clamp(own.blocks.end, own.blocks.begin + 1, w.blocks.end);
    return own;
}

/* Whether rows of V behind the last key exist, with whatever they hold. */
INLINE bool has_rows_behind(const forward_args &a, const work &w) {
    if (w.seq.seqlen_k % tile::block_keys == 0) return false;
    return spec::paged || w.seq.k_start + w.seq.seqlen_k < a.sequences.rows_k;
}

INLINE void enter_tile(place &at, const view &own, const forward_args &a, const work &w,
                       uint32_t memory) {
    at.own = own;
    at.block = at.own.blocks.end;
    at.mend = w.careful || has_rows_behind(a, w);
    if (spec::scores == 1) note_rows(a, w, memory);
    __syncwarp();
}

/* Waits for V of the block. */
INLINE uint32_t wait_values(const place &at, const work &w, uint32_t memory) {
    const uint32_t v = memory + layout::v + at.v.slot * layout::v_bytes;
    at.v.wait_full();
    if (at.mend) {
        const int left = w.seq.seqlen_k - at.block * tile::block_keys;
        const bool hides = w.careful && !is_clean(w.clean, at.block);
        if (hides || left < tile::block_keys) remove_nonfinite(v, hides ? 0 : left);
    }
    return v;
}

/* Starts S = Q K^T of the block before `at.block`. */
INLINE void start_keys(place &at, score_block &s, uint32_t memory) {
    at.block--;
    multiply_keys(s, memory + layout::q + at.q.slot * layout::q_bytes,
                  memory + layout::k + at.k.slot * layout::k_bytes);
}

/* K of that block has been read, and with the first block's Q. */
INLINE void release_keys(place &at) {
    at.k.release();
    if (at.block == at.own.blocks.begin) at.q.release();
}

/* S becomes weights. True: maxima were raised, O must be brought to them. */
INLINE bool weigh_block(score_block &s, softmax_state &state, row_values &factor, const place &at,
                        const forward_args &a, const work &w, uint32_t memory, float scale) {
    const int first_key = at.block * tile::block_keys;
    if (spec::scores == 1) bias_scores(s, a, memory, first_key);
    if (!is_clean(at.own.clean, at.block)) mask_scores(s, a, w, memory, first_key);
    const bool raised = raise_maxima(factor, s, state, scale, memory);
    weigh(s, state, scale, 0, tile::key_parts);
    return raised;
}

/* Of a careful tile, what was taken out of V. */
INLINE void put_back(const place &at, out_block &o, const forward_args &a, const work &w) {
    for (int block = at.own.blocks.end - 1; block >= at.own.blocks.begin; block--)
        if (!is_clean(w.clean, block)) add_nonfinite(o, a, w, block * tile::block_keys);
}

/* Rows are written; the tile is handed back if what it hides has made them inf or NaN. */
INLINE void leave_tile(place &at, out_block &o, softmax_state state, const forward_args &a,
                       const work &w, uint32_t memory, float scale) {
    if (!w.careful && hides_keys(w) && any_nonfinite(o, w))
        set_shared_i32(redo_flag(at.tiles, memory), 1);
    finish_sums(state.sum, memory);
    finish_rows(o, state, a, w, scale);
    if (a.out_dtype == 3)
        store_floats(o, a, w);
    else
        store_quads(o, a, w);
    __syncwarp();
    at.tiles.release();
}

/* The next tile to begin; null: there are no more. */
INLINE const work *next_tile(place &at) {
    for (;;) {
        at.tiles.wait_full();
        const work &w = tile_slot(at.tiles);
        if (w.rows > 0) return &w;
        if (w.rows == NO_MORE_TILES) return nullptr;
        __syncwarp();
        at.tiles.release();
    }
}

/* The tile after this one, and what the warpgroup's rows see of it, if its first product can run
 * beside the last of this one: copies that this one still has to take do not stand before it. */
INLINE const work *tile_to_follow(view &ahead, const place &at, const forward_args &a,
                                  const work &w) {
    tile_ring next = at.tiles;
    if (tile::q_slots == 1 || w.careful || at.own.blocks.begin > w.blocks.begin) return nullptr;
    next.next();
    next.wait_full();
    const work &following = tile_slot(next);
    if (following.rows <= 0) return nullptr;
    ahead = own_view(a, following);
    return following.blocks.end - ahead.blocks.end <= layout::stages ? &following : nullptr;
}

INLINE void compute(const forward_args &a, uint32_t memory) {
    const float scale = (spec::scores == 1 ? 1 : a.scale) * LOG2E;
    place at = {memory + layout::tile_barriers, memory + layout::q_barriers,
                memory + layout::k_barriers, memory + layout::v_barriers};
    score_block s;
    weight_block p;
    out_block o;
    softmax_state state;
    row_values factor;
    const work *w;

    /* S = Q K^T of a tile's first block, alone */
    auto begin = [&] {
        enter_tile(at, own_view(a, *w), a, *w, memory);
        pass_by(at, w->blocks.end - at.own.blocks.end);
        at.q.wait_full();
        at.k.wait_full();
        start_products(s, o, p);
        start_keys(at, s, memory);
        finish_products(s, o, p);
        release_keys(at);
        clear(state);
        weigh_block(s, state, factor, at, a, *w, memory, scale);
        pack_weights(p, s);
    };
    /* S = Q K^T of the next block beside O += P V of the last one */
    auto step = [&] {
        const bool first = at.block == at.own.blocks.end - 1;
        const uint32_t v = wait_values(at, *w, memory);
        at.k.wait_full();
        start_products(s, o, p);
        start_keys(at, s, memory);
        multiply_values(o, p, v, !first);
        finish_keys(s);
        release_keys(at);
        const bool raised = weigh_block(s, state, factor, at, a, *w, memory, scale);
        finish_products(s, o, p);
        at.v.release();
        pack_weights(p, s);
        if (raised) rescale(o, factor);
    };
    /* the same, of the next tile beside this one */
    auto turn_to = [&](const work *next, const view &ahead) {
        const softmax_state done = state;
        const bool first = at.block == at.own.blocks.end - 1;
        const uint32_t v = wait_values(at, *w, memory);
        const int passed = next->blocks.end - ahead.blocks.end;
        enter_tile(at, ahead, a, *next, memory);
        for (int i = 0; i < passed; i++) {
            at.k.wait_full();
            at.k.release();
        }
        at.q.wait_full();
        at.k.wait_full();
        start_products(s, o, p);
        start_keys(at, s, memory);
        multiply_values(o, p, v, !first);
        finish_keys(s);
        release_keys(at);
        clear(state);
        weigh_block(s, state, factor, at, a, *next, memory, scale);
        finish_products(s, o, p);
        at.v.release();
        for (int i = 0; i < passed; i++) {
            at.v.wait_full();
            at.v.release();
        }
        pack_weights(p, s);
        leave_tile(at, o, done, a, *w, memory, scale);
    };
    /* O += P V of a tile's last block, alone */
    auto end = [&] {
        const bool first = at.block == at.own.blocks.end - 1;
        const uint32_t v = wait_values(at, *w, memory);
        start_products(s, o, p);
        multiply_values(o, p, v, !first);
        finish_products(s, o, p);
        at.v.release();
        pass_by(at, at.own.blocks.begin - w->blocks.begin);
        if (w->careful) put_back(at, o, a, *w);
        leave_tile(at, o, state, a, *w, memory, scale);
    };

    while ((w = next_tile(at))) {
        begin();
        for (const work *next = w; next; w = next ? next : w) {
            view ahead;
            while (at.block > at.own.blocks.begin) step();
            next = tile_to_follow(ahead, at, a, *w);
            if (next)
                turn_to(next, ahead);
            else
                end();
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
        init(layout::tile_barriers, layout::tiles, 1, consumer_warps + 1);
        init(layout::q_barriers, tile::q_slots, 1, consumer_warps);
        init(layout::k_barriers, layout::stages, 1, consumer_warps);
        init(layout::v_barriers, layout::stages, 1, consumer_warps);
        for (int i = 0; i < layout::tiles; i++) set_shared_i32(memory + layout::redo + i * 4, 0);
        publish_barriers();
    }
    __syncthreads();
    if (threadIdx.x < tile::threads) {
        take_registers<consumer_registers>();
        compute(t.forward, memory);
    } else {
        give_registers<producer_registers>();
        const int warp = (threadIdx.x - tile::threads) / 32;
        if (warp == 0) schedule(t, memory);
        if (warp == 1) copy(t, memory);
    }
}
