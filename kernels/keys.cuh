/* Blocks of K and V, copied into a ring of slots ahead of their use: K and V of the last block,
 * then of the one before it, and so on. One barrier per slot says both that the oldest copy has
 * arrived and that the slot before it may be written again. */
#ifndef KEYS_CUH
#define KEYS_CUH

#include "layout.cuh"
#include "schedule.cuh"

/* ---- pages ---- */

/* Lists of pages run slots / 2 blocks ahead of the copies that read them. */
INLINE uint32_t page_list(const work &w, uint32_t memory, int block) {
    int list = (w.blocks.end - 1 - block) % layout::page_lists;
    return memory + layout::pages + list * tile::block_keys * 4;
}

/* Starts the copy of a block's entries of the block table, one for every key. */
INLINE void list_pages(const forward_args &a, const work &w, uint32_t memory, int block) {
    const sequences_arg &s = a.sequences;
    const int32_t *table = s.block_table + w.b * s.table_batch_stride;
    if (block < w.blocks.begin) return;
    for (int j = threadIdx.x; j < tile::block_keys; j += tile::threads) {
        int key = block * tile::block_keys + j;
        if (key < w.seq.seqlen_k)
            copy_word(page_list(w, memory, block) + j * 4,
                      table + divide(w.seq.k_start + key, s.page_size) * s.table_stride);
    }
}

/* Where key j of a block lies. */
INLINE const char *paged_key(const forward_args &a, const work &w, uint32_t memory,
                             const rows_arg &view, const char *base, int block, int j) {
    const sequences_arg &s = a.sequences;
    int row = w.seq.k_start + block * tile::block_keys + j;
    int page = shared_i32(page_list(w, memory, block) + j * 4);
    int in_page = row - (int)(divide(row, s.page_size) * s.page_size.by);
    return base + clamp(page, 0, s.pages - 1) * view.batch_stride + in_page * view.row_stride;
}

/* ---- copies ---- */

/* Starts the copy of a block of K or V into a slot. Keys that do not exist become zeros, and so
 * does the padding of rows. Before the first block there are no keys: zeros are cheaper than a
 * branch, beside which no products could run. */
INLINE void copy_block(const forward_args &a, const work &w, uint32_t memory, uint32_t slot,
                       int block, const rows_arg &view, const char *base, const int chunks,
                       const int row_bytes) {
    const int columns = chunks > tile::threads ? chunks / 2 : chunks; /* copied side by side */
    const int pass = tile::threads / columns, passes = (tile::block_keys + pass - 1) / pass;
    int first = block * tile::block_keys;
    int count = block >= w.blocks.begin ? w.seq.seqlen_k - first : 0;
    int row = thread_id() / columns, chunk = thread_id() % columns;
    if (tile::threads % columns != 0 && row >= pass) return;
    const char *from = base + (int64_t)(first + row) * view.row_stride;
    UNROLL for (int i = 0; i < passes; i++, row += pass, from += pass * view.row_stride) {
        if (tile::block_keys % pass != 0 && row >= tile::block_keys) break;
        if (spec::paged && row < count) from = paged_key(a, w, memory, view, base, block, row);
        UNROLL for (int c = 0; c < chunks; c += columns) {
            bool there = row < count && (chunk + c) * 16 < row_bytes;
            copy_chunk(chunk_at(slot, row, chunk + c, chunks), from + (chunk + c) * 16, there);
        }
    }
}

INLINE void copy_next(const forward_args &a, const work &w, uint32_t memory, uint32_t slot,
                      int block, const bool value) {
    if (value)
        copy_block(a, w, memory, slot, block, a.v, w.v, layout::v_chunks,
                   spec::head_dim_v * spec::element);
    else
        copy_block(a, w, memory, slot, block, a.k, w.k, layout::k_chunks,
                   spec::head_dim * spec::element);
    if (spec::paged && !value) list_pages(a, w, memory, block - tile::slots / 2);
    commit_copies();
}

/* ---- the ring ---- */

/* Copies are counted from K of the tile's last block on: K, V, K, V, ... */
INLINE uint32_t slot_of(uint32_t memory, uint32_t copy) {
    return memory + layout::ring + copy % tile::slots * layout::slot_bytes;
}

/* Starts the first slots - 1 copies. */
INLINE void start_ring(const forward_args &a, const work &w, uint32_t memory) {
    const int last = w.blocks.end - 1;
    if (spec::paged) {
        for (int i = 0; i < tile::slots / 2; i++) list_pages(a, w, memory, last - i);
        commit_copies();
        wait_copies<0>();
        __syncthreads();
    }
    UNROLL for (int i = 0; i < tile::slots - 1; i++) {
        copy_next(a, w, memory, slot_of(memory, i), last - i / 2, i % 2 != 0);
        if (spec::paged) __syncthreads(); /* the next copy may write over the list just read */
    }
}

/* Where K (or V) of a block is. */
INLINE uint32_t slot_of_block(const work &w, uint32_t memory, int block, const bool value) {
    return slot_of(memory, 2 * (w.blocks.end - 1 - block) + value);
}

/* Waits for the oldest copy. From then on the slot before it may be written again. */
INLINE void wait_slot() {
    wait_copies<tile::slots - 2>();
    __syncthreads();
}

/* Then starts the copy that runs slots - 1 ahead. */
INLINE void copy_ahead(const forward_args &a, const work &w, uint32_t memory, int block,
                       const bool value) {
    const int ahead = value + tile::slots - 1; /* counted from K of this block */
    const uint32_t copy = 2 * (w.blocks.end - 1 - block) + value + tile::slots - 1;
    copy_next(a, w, memory, slot_of(memory, copy), block - ahead / 2, ahead % 2 != 0);
}

#endif
