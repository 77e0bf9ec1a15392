/* Which tile a thread block computes, and which part of its keys. */
#ifndef SCHEDULE_CUH
#define SCHEDULE_CUH

#include "masks.cuh"
#include "spec.cuh"

struct work {
    sequence seq;
    int b, head, head_kv; /* head: of the tile's, group query heads each */
    int row_block, row_begin, rows; /* rows of the tile; none: nothing to do */
    int part, parts;                /* of the tile's keys */
    interval blocks;                /* of keys, in this part */
    interval clean;                 /* those of which every row sees all */
    const char *k, *v;              /* the key head's row of key 0; paged: of page 0 */
    bool careful;                   /* see nonfinite.cuh */
};

/* Position of packed row r of a sequence: its query's, in keys. */
INLINE int position_of(const forward_args &a, const sequence &seq, int r) {
    return (int)divide(r, a.sequences.group) + seq.seqlen_k - seq.seqlen_q;
}

/* Query and head of a row of the tile. */
struct query_of_row {
    int64_t query;
    int head;
};

INLINE query_of_row query_of(const forward_args &a, const work &w, int row) {
    uint32_t packed = w.row_begin + row, query = divide(packed, a.sequences.group);
    uint32_t head = w.head * a.sequences.group.by + packed - query * a.sequences.group.by;
    query_of_row q = {(int64_t)query, (int)head};
    return q;
}

INLINE float *lse_at(const forward_args &a, const work &w, query_of_row q) {
    return a.lse + w.b * a.lse_batch_stride + q.head * a.lse_head_stride + w.seq.q_start + q.query;
}

/* Where the tile's rows lie in q or out. A loop over rows keeps this in registers, while what it
 * takes from `work` would be read again from shared memory beside every copy. */
struct tile_rows {
    char *data; /* query 0 of the tile's first head */
    uint32_t row_begin;
};

INLINE tile_rows rows_of_tile(const forward_args &a, const work &w, const rows_arg &view) {
    const int64_t head = (int64_t)w.head * a.sequences.group.by;
    tile_rows rows = {view.data + w.b * view.batch_stride + w.seq.q_start * view.row_stride +
                          head * view.head_stride,
                      (uint32_t)w.row_begin};
    return rows;
}

INLINE char *tile_row(const forward_args &a, const tile_rows &rows, const rows_arg &view, int row) {
    uint32_t packed = rows.row_begin + row, query = divide(packed, a.sequences.group);
    uint32_t head = packed - query * a.sequences.group.by;
    return rows.data + query * view.row_stride + head * view.head_stride;
}

/* Blocks of keys that a run of packed rows sees, and those of which each row sees every key. */
struct view {
    interval blocks, clean;
};

INLINE view view_of(const forward_args &a, const sequence &seq, int b, int first_row, int rows) {
    const int block_keys = tile::block_keys;
    view v;
    interval positions = {position_of(a, seq, first_row),
                          position_of(a, seq, first_row + rows - 1) + 1};
    interval keys = visible_interval(a, b, seq.seqlen_k, positions);
    if (keys.begin >= keys.end) keys.begin = keys.end = 0;
    v.blocks.begin = keys.begin / block_keys;
    v.blocks.end = (keys.end + block_keys - 1) / block_keys;
    v.clean.begin =
        (window_of(a, seq.seqlen_k, positions.end - 1).begin + block_keys - 1) / block_keys;
    v.clean.end = window_of(a, seq.seqlen_k, positions.begin).end / block_keys;
    return v;
}

/* Which tile: row block `row_block` of head `head` of sequence b. */
struct tile_index {
    int b, head, row_block;
};

/* The tile's rows and where they and their keys lie; not yet what they see. */
INLINE void enter_rows(work &w, const forward_args &a, tile_index at) {
    w.b = at.b;
    w.head = at.head;
    w.head_kv = divide(at.head, a.kv_group);
    w.seq = sequence_of(a.sequences, at.b);
    w.row_block = at.row_block;
    w.row_begin = at.row_block * tile::block_rows;
    int64_t rows = (int64_t)w.seq.seqlen_q * a.sequences.group.by - w.row_begin;
    w.rows = (int)clamp64(rows, 0, tile::block_rows);
    w.part = 0;
    w.parts = 1;
    w.careful = false;
}

/* All parts of a tile in one. `w` may lie in shared memory: then little has to be in registers. */
INLINE void enter_work(work &w, const forward_args &a, tile_index at) {
    enter_rows(w, a, at);
    if (w.rows == 0) return;
    view v = view_of(a, w.seq, w.b, w.row_begin, w.rows);
    w.blocks = v.blocks;
    w.clean = v.clean;
    if (a.splits.by == 1) return;
    int most_parts = (w.blocks.end - w.blocks.begin + a.split_blocks - 1) / a.split_blocks;
    w.parts = most(1, least(a.splits.by, most_parts));
}

/* Keeps one part of the tile's blocks of keys: the first few have one more than the others. */
INLINE void take_part(work &w, int part) {
    const int blocks = w.blocks.end - w.blocks.begin;
    w.part = part;
    if (w.parts == 1) return;
    const int each = blocks / w.parts, longer = blocks - each * w.parts;
    w.blocks.begin += part * each + least(part, longer);
    w.blocks.end = w.blocks.begin + each + (part < longer);
}

INLINE const char *head_of(const forward_args &a, const work &w, const rows_arg &view) {
    const char *head = view.data + w.head_kv * view.head_stride;
    if (a.sequences.block_table) return head;
    return head + w.seq.cache_row * view.batch_stride + w.seq.k_start * view.row_stride;
}

/* Tiles come in the order of their index: sections of heads, whose K and V should fit in L2, one
 * after the other; in a section the last row blocks first, which under a causal mask are the
 * longest; then heads. */
INLINE tile_index tile_at(const forward_args &a, uint32_t item) {
    uint32_t section = divide(item, a.section_tiles), first = section * a.section.by;
    item -= section * a.section_tiles.by;
    bool last = first + a.section.by > a.sequences.batch * a.sequences.heads_kv.by;
    uint32_t rows_after = last ? divide(item, a.last_section) : divide(item, a.section);
    uint32_t in_section = last ? a.last_section.by : a.section.by;
    uint32_t head = first + item - rows_after * in_section, b = divide(head, a.sequences.heads_kv);
    tile_index at = {(int)b, (int)(head - b * a.sequences.heads_kv.by),
                     (int)(a.row_blocks - 1 - rows_after)};
    return at;
}

/* Where K and V of the tile's sequence and key head lie. */
INLINE void find_keys(work &w, const forward_args &a) {
    w.k = head_of(a, w, a.k);
    w.v = head_of(a, w, a.v);
}

/* What thread block `block` computes: a part of a tile, if there are as many. Parts of a tile are
 * next to each other. */
INLINE void work_of(work &w, const forward_args &a, uint32_t block) {
    uint32_t item = divide(block, a.splits), part = block - item * a.splits.by;
    enter_work(w, a, tile_at(a, item));
    take_part(w, part);
    find_keys(w, a);
}

/* The partial results of a tile's part: see args.h. */
INLINE float *partial_of(const forward_args &a, const work &w, int part) {
    int64_t item =
        ((int64_t)w.b * a.sequences.heads_kv.by + w.head) * a.row_blocks + w.row_block;
    return a.partial + (item * a.splits.by + part) * tile::block_rows * (spec::head_dim_v + 2);
}

#endif
