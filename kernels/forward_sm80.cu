/* Attention of one tile on tensor cores, with the instructions of sm_80.
 *
 * A tile is block_rows packed rows, (query, head of the group) pairs of one key head, against a
 * part of their keys. Blocks of keys are taken from the last to the first, so that under a causal
 * mask the masked ones come first:
 *
 *   S = Q K^T;  scores;  P = 2^(S - max), O and sums brought to the new max;  O += P V
 *
 * Weights are powers of two. Grid: (batch * heads_kv * row_blocks * splits); block:
 * tile.threads; dynamic shared memory: tile.shared_bytes (src/spec.h). With splits > 1 the last
 * block of a tile of few rows puts its parts together, or else tallow_combine does. */
#if SPEC_dtype == 3
#include "fma.cuh"
#else
#include "mma_sm80.cuh"
#endif
#include "combine.cuh"
#include "keys.cuh"
#include "nonfinite.cuh"
#include "output_sm80.cuh"

/* Starts the copy of the tile's rows of Q, four threads a row; rows that do not exist become
 * zeros. */
INLINE void copy_queries(const forward_args &a, const work &w, uint32_t memory) {
    const tile_rows rows = rows_of_tile(a, w, a.q);
    const int count = w.rows;
    _Pragma("unroll 1") for (int row = thread_id() / 4; row < tile::block_rows;
                             row += tile::threads / 4) {
        const char *from = row < count ? tile_row(a, rows, a.q, row) : a.q.data;
        uint32_t to = chunk_at(memory + layout::q, row, lane_id() % 4, layout::q_chunks);
        UNROLL for (int step = 0; step < layout::q_chunks; step += 4) {
            int chunk = step + lane_id() % 4;
            bool there = row < count && chunk * 16 < spec::head_dim * spec::element;
            if (layout::q_chunks % 4 != 0 && chunk >= layout::q_chunks) break;
            copy_chunk(chunk_further(to, step, layout::q_chunks), from + chunk * 16, there);
        }
    }
}

/* Of the steps of P V, 16 keys each, the one that a copy starts beside: not the first, so that
 * products run, but where P comes from shared memory and registers are needed for more of it; later
 * where O or P takes more registers, to have those of used weights. */
constexpr bool wide_out = tile::column_parts > 8;
constexpr int copy_step = tile::shares_p                       ? 0
                          : tile::block_keys == 128            ? 4
                          : wide_out && tile::block_keys == 64 ? 2
                                                               : tile::block_keys > 16;

/* All blocks of keys, from the last to the first. */
INLINE void attend(out_block &o, softmax_state &state, const forward_args &a, const work &w,
                   uint32_t memory, float scale) {
    query_block queries;
    uint32_t q_at, k_at;
    bool masked;
    auto look_at = [&](int block) {
        masked = !within(w.clean, block);
        q_at = query_at(memory + layout::q);
        k_at = key_at(slot_of_block(w, memory, block, false));
    };
    start_ring(a, w, memory);
    look_at(w.blocks.end - 1);
    for (int block = w.blocks.end - 1; block >= w.blocks.begin; block--) {
        const int first_key = block * tile::block_keys;
        score_block s;

        if (true_for_all(masked)) note_visible(a, w, memory, first_key);
        wait_slot();
        if (block == w.blocks.end - 1) keep_queries(queries, memory + layout::q);
        multiply_keys(s, queries, q_at, k_at, [&] { copy_ahead(a, w, memory, block, false); });
        const uint32_t v = slot_of_block(w, memory, block, true), v_at = value_at(v);
        if (spec::scores == 1) bias_scores(s, a, memory, first_key);
        if (true_for_all(masked)) {
            mask_scores(s, memory);
            if (w.careful) {
                wait_copies<0>();
                __syncthreads();
                remove_nonfinite(v, 0, thread_id(), tile::threads);
            }
        }
        raise_maxima(s, state, false, scale, memory,
                     [&](const int i, float factor) { rescale(o, i, factor); });
        auto weigh_keys = [&](const int begin, const int end) {
            weigh(s, state, scale, begin, end);
            if (spec::scores == 1 && a.dropout_threshold > 0)
                drop_weights(s, a, w, first_key, begin, end);
        };
        if (tile::shares_p) {
            weigh_keys(0, tile::key_parts);
            share_weights(s, memory + layout::p);
        }

        wait_slot();
        auto beside = [&](const int step) {
            if (!tile::shares_p) weigh_keys(2 * step, 2 * step + 2);
            if (step == copy_step) copy_ahead(a, w, memory, block, true);
        };
        multiply_values(o, s, memory + layout::p, v_at, beside);
        look_at(block - 1); /* the next, beside the last products */
    }
    wait_copies<0>(); /* without a block of keys, Q may still be on its way */
}

/* A part of a tile. */
INLINE void compute(const forward_args &a, work &w, uint32_t memory) {
    const float scale = (spec::scores == 1 ? 1 : a.scale) * LOG2E;
    softmax_state state;
    out_block o;

    note_rows(a, w, memory);
    copy_queries(a, w, memory);
    for (;;) {
        clear(state);
        clear(o);
        attend(o, state, a, w, memory, scale);
        if (!__syncthreads_or(!w.careful && hides_keys(w) && any_nonfinite(o, w))) break;
        if (threadIdx.x == 0) w.careful = true;
    }
    finish_tile(o, state, a, w, scale, memory);
    if (!w.careful) return;
    __syncthreads();
    put_back(a, w);
}

extern "C" __global__ void __launch_bounds__(tile::threads, tile::blocks)
tallow_forward(const __grid_constant__ forward_args a) {
    extern __shared__ __align__(128) char shared_memory[];
    const uint32_t memory = same_for_all(shared_address(shared_memory)); /* kept, not found again */
    wait_for_kernel_before();
    allow_next_kernel();
    work &w = *(work *)shared_pointer(memory + layout::work);
    static_assert(tile::threads * sizeof(combined_rows) <= layout::work, "work is still read");
    if (threadIdx.x == 0) work_of(w, a, blockIdx.x);
    __syncthreads();
    if (w.rows > 0 && w.part < w.parts) compute(a, w, memory);
    if (spec::rows == 1 && a.counts && comes_last(a) && w.parts > 1)
        combine_tile(a, w, (combined_rows *)shared_memory);
}

/* Grid: (batch * heads_kv * row_blocks * block_rows / COMBINE_ROWS); block: COMBINE_THREADS. The
 * kernel before is tallow_forward, which has waited for what wrote the lengths. */
extern "C" __global__ void __launch_bounds__(COMBINE_THREADS)
tallow_combine(const __grid_constant__ forward_args a) {
    __shared__ combined_rows shared[COMBINE_THREADS];
    const int runs = tile::block_rows / COMBINE_ROWS;
    const int item = blockIdx.x / runs, first_row = blockIdx.x % runs * COMBINE_ROWS;
    work w;
    enter_work(w, a, tile_at(a, item));
    wait_for_kernel_before();
    if (w.parts > 1 && first_row < w.rows)
        combine_rows(a, w, first_row, COMBINE_THREADS / 32, shared);
}
