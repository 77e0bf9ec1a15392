/* Which tile a thread block computes, and which part of its keys. */
#ifndef SCHEDULE_CUH
#define SCHEDULE_CUH

#include "masks.cuh"

struct work {
    sequence seq;
    int b, head_kv;
    int row_block, row_begin, rows; /* rows of the tile; none: nothing to do */
    int part, parts;                /* of the tile's keys */
    interval blocks;                /* of keys, in this part */
    interval clean;                 /* keys that every row sees */
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
    uint32_t head = w.head_kv * a.sequences.group.by + packed - query * a.sequences.group.by;
    query_of_row q = {(int64_t)query, (int)head};
    return q;
}

/* Where the tile's rows lie in q or out. A loop over rows keeps this in registers, while what it
 * takes from `work` would be read again from shared memory beside every copy. */
struct tile_rows {
    char *data; /* query 0 of the tile's first head */
    uint32_t row_begin;
};

INLINE tile_rows rows_of_tile(const forward_args &a, const work &w, const rows_arg &view) {
    const int64_t head = (int64_t)w.head_kv * a.sequences.group.by;
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

/* Row block `row_block` of (b, key head) number `head`, all parts of it in one. */
INLINE work tile_of(const forward_args &a, int head, int row_block, int block_rows,
                    int block_keys) {
    work w;
    w.b = divide(head, a.sequences.heads_kv);
    w.head_kv = head - w.b * a.sequences.heads_kv.by;
    w.seq = sequence_of(a.sequences, w.b);
    w.row_block = row_block;
    w.row_begin = row_block * block_rows;
    int64_t rows = (int64_t)w.seq.seqlen_q * a.sequences.group.by - w.row_begin;
    w.rows = (int)clamp64(rows, 0, block_rows);
    w.part = 0;
    w.parts = 1;
    if (w.rows == 0) return w;

    interval positions = {position_of(a, w.seq, w.row_begin),
                          position_of(a, w.seq, w.row_begin + w.rows - 1) + 1};
    interval keys = visible_interval(a, w.b, w.seq.seqlen_k, positions);
    if (keys.begin >= keys.end) keys.begin = keys.end = 0;
    w.blocks.begin = keys.begin / block_keys;
    w.blocks.end = (keys.end + block_keys - 1) / block_keys;
    w.clean.begin = window_of(a, w.seq.seqlen_k, positions.end - 1).begin;
    w.clean.end = window_of(a, w.seq.seqlen_k, positions.begin).end;
    if (a.splits.by == 1) return w;
    int most_parts = (w.blocks.end - w.blocks.begin + a.split_blocks - 1) / a.split_blocks;
    w.parts = most(1, least(a.splits.by, most_parts));
    return w;
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

/* Thread blocks start in the order of their index: sections of heads, whose K and V should fit in
 * L2, one after the other; in a section the last row blocks first, which under a causal mask are
 * the longest; then heads; then parts. */
INLINE work work_of(const forward_args &a, int block_rows, int block_keys) {
    uint32_t item = divide(blockIdx.x, a.splits), part = blockIdx.x - item * a.splits.by;
    uint32_t section = divide(item, a.section_tiles), first = section * a.section.by;
    item -= section * a.section_tiles.by;
    bool last = first + a.section.by > a.sequences.batch * a.sequences.heads_kv.by;
    uint32_t rows_after = last ? divide(item, a.last_section) : divide(item, a.section);
    uint32_t in_section = last ? a.last_section.by : a.section.by;
    uint32_t head = first + item - rows_after * in_section;
    work w = tile_of(a, head, a.row_blocks - 1 - rows_after, block_rows, block_keys);
    if ((int)part >= w.parts) w.rows = 0;
    if (w.rows > 0) take_part(w, part);
    w.careful = false;
    w.k = head_of(a, w, a.k);
    w.v = head_of(a, w, a.v);
    return w;
}

/* The partial results of a tile's part: see args.h. */
INLINE float *partial_of(const forward_args &a, const work &w, int part, int block_rows) {
    int64_t tile =
        ((int64_t)w.b * a.sequences.heads_kv.by + w.head_kv) * a.row_blocks + w.row_block;
    return a.partial + (tile * a.splits.by + part) * block_rows * (a.head_dim_v + 2);
}

#endif
