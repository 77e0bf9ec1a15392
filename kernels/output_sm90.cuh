/* Rows of the output: written from registers, or, where there is room, by way of shared memory,
 * from where each warp copies its own. */
#ifndef OUTPUT_SM90_CUH
#define OUTPUT_SM90_CUH

#include "output.cuh"
#include "tiles_sm90.cuh"

/* 1 / x, but for rows that see nothing 0. */
INLINE float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return x == 0 ? 0 : fmaf(fmaf(-x, y, 1), y, y);
}

/* Stores the lse of rows, and adds a sink to what normalises them. Each lane of a quad does one
 * row's arithmetic for all four. */
INLINE void finish_totals(row_values &factor, const softmax_state &state, const forward_args &a,
                          const work &w, const tile_end &end, float scale) {
    const int own = lane_id() % 2, row = row_in_tile(own);
    const uint32_t packed = w.row_begin + row, query = divide(packed, a.sequences.group);
    const uint32_t head = packed - query * a.sequences.group.by;
    const float base = base_of(own ? state.max[1] : state.max[0], scale);
    const row_total total = total_of(a, w.head * a.sequences.group.by + head, base,
                                     own ? state.sum[1] : state.sum[0]);
    if (end.lse && row < w.rows && lane_id() % 4 == own)
        end.lse[head * a.lse_head_stride + query] = lse_of(total);
    UNROLL for (int i = 0; i < tile::row_states && a.sinks.data; i++)
        factor[i] = __shfl_sync(~0u, total.factor, lane_id() / 4 * 4 + i);
}

/* What will normalise the rows of O; their lse is stored. */
INLINE void finish_rows(row_values &factor, const softmax_state &state, const forward_args &a,
                        const work &w, const tile_end &end, float scale) {
    UNROLL for (int i = 0; i < tile::row_states; i++) factor[i] = reciprocal(state.sum[i]);
    if (a.lse || a.sinks.data) finish_totals(factor, state, a, w, end, scale);
}

/* ---- rows of 16-bit elements ---- */

/* A pair of zeros for each of a thread's two rows; not 0 once an element was inf or NaN. */
typedef uint32_t row_zeros[2];

/* z + 0 * x of both elements of pairs. */
INLINE uint32_t add_nothing(uint32_t z, uint32_t x) {
    if (spec::f16)
        asm("fma.rn.f16x2 %0, %1, %2, %0;" : "+r"(z) : "r"(x), "r"(0));
    else
        asm("fma.rn.bf16x2 %0, %1, %2, %0;" : "+r"(z) : "r"(x), "r"(0));
    return z;
}

INLINE bool any_nonfinite(const row_zeros &zeros, const work &w) {
    bool any = false;
    UNROLL for (int i = 0; i < 2; i++) any |= row_in_tile(i) < w.rows && zeros[i] & 0x7fff7fffu;
    return any;
}

/* Two columns of row i, normalised. */
INLINE uint32_t finished_pair(const out_block &o, const row_values &factor, row_zeros &zeros,
                              const int n, const int i) {
    const float *pair = &o[0][n][i * 2];
    const uint32_t packed = pack(pair[0] * factor[i], pair[1] * factor[i]);
    zeros[i] = add_nothing(zeros[i], packed);
    return packed;
}

/* Register j of lane i of a quad becomes register i of lane j. */
INLINE void transpose_quad(uint32_t (&x)[4]) {
    UNROLL for (int bit = 1; bit < 4; bit *= 2)
        UNROLL for (int j = 0; j < 4; j++) {
            if (j & bit) continue;
            const bool upper = lane_id() & bit;
            uint32_t received = __shfl_xor_sync(~0u, upper ? x[j] : x[j | bit], bit);
            if (upper)
                x[j] = received;
            else
                x[j | bit] = received;
        }
}

/* Rows of 16-bit elements, straight from the accumulators: a quad writes 64 bytes. */
INLINE void store_quads(const out_block &o, const row_values &factor, row_zeros &zeros,
                        const forward_args &a, const work &w, const tile_end &end) {
    const tile_rows rows = {end.out, (uint32_t)w.row_begin};
    const int count = w.rows, lane = lane_id() % 4;
    UNROLL for (int i = 0; i < tile::row_states; i++) {
        const int row = row_in_tile(i);
        char *out = tile_row(a, rows, a.out, row) + lane * 16;
        UNROLL for (int n = 0; n < tile::column_parts; n += 4) {
            uint32_t pairs[4] = {0, 0, 0, 0};
            UNROLL for (int j = 0; j < 4; j++) {
                if (n + j >= tile::column_parts) break;
                pairs[j] = finished_pair(o, factor, zeros, n + j, i);
            }
            transpose_quad(pairs);
            const bool whole = (n + 4) * 8 <= spec::head_dim_v;
            if (row < count && (whole || (n + lane) * 8 < spec::head_dim_v))
                *(uint4 *)(out + n * 16) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        }
    }
}

/* ---- by way of shared memory ---- */

/* 8 x 8 matrices as the accumulators hold them: of eight lanes, lane i tells where row i of theirs
 * goes. */
INLINE void store_matrices(uint32_t address, const uint32_t (&m)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3])
                 : "memory");
}

/* Whether the warp's rows leave by copies: those behind a tensor's end do not, but those of the
 * next sequence would. */
INLINE bool copied_out(const forward_tma_args &t, const work &w) {
    const bool packed = t.forward.sequences.cu_seqlens_q.data;
    return __all_sync(~0u, t.copies_out && (!packed || w.rows >= (row_warp() + 1) * WARP_ROWS));
}

/* In chunks and permuted as queries are. */
INLINE void stage_rows(const out_block &o, const row_values &factor, row_zeros &zeros,
                       uint32_t memory) {
    const int row = row_warp() * WARP_ROWS + lane_id() % 16, upper = lane_id() / 16;
    UNROLL for (int n = 0; n < tile::column_parts; n += 2) {
        uint32_t pairs[4] = {0, 0, 0, 0};
        UNROLL for (int j = 0; j < 4; j++) {
            if (n + j / 2 >= tile::column_parts) break;
            pairs[j] = finished_pair(o, factor, zeros, n + j / 2, j % 2);
        }
        const uint32_t chunk = memory + layout::out + n / 8 * tile::block_rows * 128;
        store_matrices(chunk + row * 128 + ((n % 8 + upper ^ row % 8) << 4), pairs);
    }
}

/* What says where they go is the same for all lanes; one copies. */
INLINE void start_rows(const forward_tma_args &t, const tile_slot &slot, uint32_t memory) {
    const int first = same_for_all(row_warp() * WARP_ROWS);
    const int query = same_for_all(slot.end.query + divide(first, t.forward.sequences.group));
    const int head = same_for_all(slot.w.head);
    const int b = same_for_all(t.forward.sequences.cu_seqlens_q.data ? 0 : slot.w.b);
    if (lane_id() != 0) return;
    UNROLL for (int chunk = 0; chunk < layout::v_chunks; chunk++)
        copy_box_out(&t.out, memory + layout::out + (chunk * tile::block_rows + first) * 128,
                     chunk * 64, 0, query, head, b);
    commit_boxes();
}

/* Rows that the warp's lanes write, in pieces of 8 elements. */
INLINE void store_rows(const forward_args &a, const tile_slot &slot, uint32_t memory) {
    const int pieces = spec::head_dim_v / 8, first = row_warp() * WARP_ROWS;
    const tile_rows rows = {slot.end.out, (uint32_t)slot.w.row_begin};
    const int count = slot.w.rows;
    _Pragma("unroll 2") for (int i = lane_id(); i < WARP_ROWS * pieces; i += 32) {
        const int row = first + i / pieces, piece = i % pieces;
        if (row >= count) break;
        const uint32_t chunk = memory + layout::out + piece / 8 * tile::block_rows * 128;
        *(uint4 *)(tile_row(a, rows, a.out, row) + piece * 16) =
            shared_chunk(chunk + row * 128 + ((piece ^ row) % 8 << 4));
    }
}

/* Once the warp's rows before have left their place; and arrived, if these are the same. Those of a
 * careful tile are not copied: they are read again. */
INLINE void write_staged(const out_block &o, const row_values &factor, row_zeros &zeros,
                         const forward_tma_args &t, const tile_slot &slot, const bool careful,
                         uint32_t memory) {
    if (careful)
        wait_boxes();
    else
        wait_boxes_read();
    __syncwarp();
    stage_rows(o, factor, zeros, memory);
    if (!careful && copied_out(t, slot.w)) {
        release_to_copies();
        __syncwarp();
        start_rows(t, slot, memory);
    } else {
        __syncwarp();
        store_rows(t.forward, slot, memory);
    }
}

#endif
