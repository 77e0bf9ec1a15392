/* Where a sequence lies, read from the vectors of the call. Nothing they hold is trusted: every
 * value is clamped to the memory there is. */
#ifndef SEQUENCE_CUH
#define SEQUENCE_CUH

#include "base.cuh"

struct sequence {
    int q_start, seqlen_q;     /* first row of q (packed; else 0) */
    int k_start, seqlen_k;     /* first row of k, leftpad included; keys, new ones included */
    int new_start, seqlen_new; /* first row of k_new (packed; else 0); rows to append */
    int append_at; /* row of k where the first new row goes; also its position */
    int cache_row; /* batch index into dense k */
};

INLINE int entry(ints_arg list, int i) { return list.data[i * list.stride]; }

/* First row and length of sequence b in a packed tensor of `rows` rows. */
INLINE int2 packed_rows(ints_arg cu_seqlens, int b, int rows) {
    int start = clamp(entry(cu_seqlens, b), 0, rows);
    return make_int2(start, clamp(entry(cu_seqlens, b + 1), start, rows) - start);
}

INLINE sequence sequence_of(const sequences_arg &s, int b) {
    int2 q = s.cu_seqlens_q.data ? packed_rows(s.cu_seqlens_q, b, s.rows_q)
                                 : make_int2(0, s.rows_q);
    int2 added = s.cu_seqlens_k_new.data ? packed_rows(s.cu_seqlens_k_new, b, s.rows_new)
                                         : make_int2(0, s.rows_new);
    int2 k = make_int2(0, s.rows_k);
    if (s.cu_seqlens_k.data && s.block_table) /* tells lengths alone */
        k.y = clamp(entry(s.cu_seqlens_k, b + 1) - entry(s.cu_seqlens_k, b), 0, s.rows_k);
    else if (s.cu_seqlens_k.data)
        k = packed_rows(s.cu_seqlens_k, b, s.rows_k);
    int used = s.seqused_k.data ? clamp(entry(s.seqused_k, b), 0, k.y) : k.y;
    int appended = least(added.y, k.y - used);
    int leftpad = s.leftpad_k.data ? clamp(entry(s.leftpad_k, b), 0, used) : 0;
    int cache_row = s.cache_batch_idx.data ? entry(s.cache_batch_idx, b) : b;
    sequence seq = {q.x,     q.y,      k.x + leftpad, used + appended - leftpad,
                    added.x, appended, used,          clamp(cache_row, 0, s.cache_rows - 1)};
    return seq;
}

/* The page that holds a row, and the row in it. */
INLINE int2 page_of(const sequences_arg &s, int b, int row) {
    int column = divide(row, s.page_size);
    int page = s.block_table[b * s.table_batch_stride + column * s.table_stride];
    return make_int2(clamp(page, 0, s.pages - 1), row - column * (int)s.page_size.by);
}

#endif
