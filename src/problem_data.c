/* What the vectors of a call hold: lengths, page and cache indices, positions. All of it is checked
 * before anything is written. */
#include <stdlib.h>

#include "check.h"
#include "error.h"
#include "problem.h"

static int64_t length_at(const int_view *cu_seqlens, int64_t b) {
    return int_at(cu_seqlens, b + 1) - int_at(cu_seqlens, b);
}

/* Keys of sequence b before any are appended, leftpad included. */
static int64_t used_keys(const problem *p, int64_t b) {
    if (p->seqused_k.data) return int_at(&p->seqused_k, b);
    return p->cu_seqlens_k.data ? length_at(&p->cu_seqlens_k, b) : p->rows_k;
}

sequence tallow_problem_sequence(const problem *p, int64_t b) {
    const int64_t used = used_keys(p, b);
    const int64_t leftpad = p->leftpad_k.data ? int_at(&p->leftpad_k, b) : 0;
    sequence s = {.seqlen_q = p->rows_q, .seqlen_new = p->rows_new, .append_at = used};
    if (p->q_layout == LAYOUT_PACKED) {
        s.q_start = int_at(&p->cu_seqlens_q, b);
        s.seqlen_q = length_at(&p->cu_seqlens_q, b);
    }
    if (p->new_layout == LAYOUT_PACKED) {
        s.new_start = int_at(&p->cu_seqlens_k_new, b);
        s.seqlen_new = length_at(&p->cu_seqlens_k_new, b);
    }
    s.k_start = leftpad + (p->k_layout == LAYOUT_PACKED ? int_at(&p->cu_seqlens_k, b) : 0);
    s.seqlen_k = used - leftpad + s.seqlen_new;
    s.cache_row = p->cache_batch_idx.data ? int_at(&p->cache_batch_idx, b) : b;
    return s;
}

/* --------------------------------------------------------------------------------------------
 * Vectors of any call
 * ------------------------------------------------------------------------------------------ */

bool tallow_need_starts(const char *name, const int_view *cu_seqlens, int64_t batch,
                        int64_t total) {
    int64_t before = 0;
    for (int64_t i = 0; cu_seqlens->data && i <= batch; i++) {
        const int64_t start = int_at(cu_seqlens, i);
        if (!tallow_need(start >= before && start <= total,
                         "%s[" INT "] = " INT ": must be " INT " to " INT
                         ", as entries never decrease nor pass the rows there are",
                         name, i, start, before, total))
            return false;
        before = start;
    }
    return true;
}

bool tallow_need_position_values(const char *name, const position_view *view, const rotary_view *r,
                                 int64_t b, int64_t row, int64_t count, int64_t implicit) {
    const int64_t limit = r->cos ? r->table_rows : (int64_t)INT32_MAX + 1;
    if (!view->data)
        return tallow_need(
            !count || implicit + count <= limit,
            "%s is absent: sequence " INT " reaches position " INT ", must be at most " INT "%s",
            name, b, implicit + count - 1, limit - 1, r->cos ? ", the last row of rotary.cos" : "");
    for (int m = 0; m < (r->mrope ? 3 : 1); m++) {
        for (int64_t i = 0; i < count; i++) {
            const int64_t at =
                m * view->mrope_stride + b * view->batch_stride + (row + i) * view->row_stride;
            const int64_t position = view->dtype == TALLOW_I64 ? ((const int64_t *)view->data)[at]
                                                               : ((const int32_t *)view->data)[at];
            if (!tallow_need(position >= 0 && position < limit,
                             "%s = " INT " (row %d, sequence " INT ", token " INT
                             "): must be 0 to " INT "%s",
                             name, position, m, b, i, limit - 1,
                             r->cos ? ", the last row of rotary.cos" : ""))
                return false;
        }
    }
    return true;
}

/* --------------------------------------------------------------------------------------------
 * Attention
 * ------------------------------------------------------------------------------------------ */

static bool starts(const problem *p) {
    return tallow_need_starts("cu_seqlens_q", &p->cu_seqlens_q, p->batch, p->rows_q) &&
           tallow_need_starts("cu_seqlens_k", &p->cu_seqlens_k, p->batch,
                              p->k_layout == LAYOUT_PACKED ? p->rows_k : INT32_MAX) &&
           tallow_need_starts("cu_seqlens_k_new", &p->cu_seqlens_k_new, p->batch, p->rows_new);
}

static bool lengths(const problem *p, int64_t b, const sequence *s) {
    const int64_t room = p->cu_seqlens_k.data ? length_at(&p->cu_seqlens_k, b) : p->rows_k;
    const int64_t used = used_keys(p, b), leftpad = used + s->seqlen_new - s->seqlen_k;
    return tallow_need(room <= p->rows_k,
                       "cu_seqlens_k[" INT "]: sequence " INT " has " INT
                       " keys, must be at most columns * page_size, " INT,
                       b + 1, b, room, p->rows_k) &&
           tallow_need(used >= 0 && used + s->seqlen_new <= room,
                       "seqused_k[" INT "] = " INT ": must be at least 0 and, with " INT
                       " new keys, at most " INT,
                       b, used, s->seqlen_new, room) &&
           tallow_need(leftpad >= 0 && leftpad <= used,
                       "leftpad_k[" INT "] = " INT ": must be 0 to " INT ", the keys in use", b,
                       leftpad, used) &&
           tallow_need(s->seqlen_q <= p->max_seqlen_q,
                       "max_seqlen_q = " INT ": must be 0 or at least " INT
                       ", the length of sequence " INT,
                       p->max_seqlen_q, s->seqlen_q, b) &&
           tallow_need(s->seqlen_k <= p->max_seqlen_k,
                       "max_seqlen_k = " INT ": must be 0 or at least " INT
                       ", the keys of sequence " INT,
                       p->max_seqlen_k, s->seqlen_k, b);
}

/* Entries of columns that hold no key may be anything. */
static bool pages(const problem *p, int64_t b, const sequence *s) {
    if (p->k_layout != LAYOUT_PAGED || !s->seqlen_k) return true;
    const int64_t last = (s->k_start + s->seqlen_k - 1) / p->page_size;
    for (int64_t column = s->k_start / p->page_size; column <= last; column++) {
        const int64_t page =
            p->block_table.data[b * p->block_table.stride[0] + column * p->block_table.stride[1]];
        if (!tallow_need(page >= 0 && page < p->pages,
                         "block_table[" INT "][" INT "] = " INT ": must be 0 to " INT
                         ", the last page",
                         b, column, page, p->pages - 1))
            return false;
    }
    return true;
}

static bool positions(const problem *p, int64_t b, const sequence *s) {
    return !p->rotary.dim ||
           (tallow_need_position_values("positions_q", &p->positions_q, &p->rotary, b, s->q_start,
                                        s->seqlen_q, s->append_at) &&
            tallow_need_position_values("positions_k_new", &p->positions_new, &p->rotary, b,
                                        s->new_start, s->seqlen_new, s->append_at));
}

static bool sequences(const problem *p) {
    for (int64_t b = 0; b < p->batch; b++) {
        const sequence s = tallow_problem_sequence(p, b);
        if (!lengths(p, b, &s) ||
            !tallow_need(
                p->k_layout != LAYOUT_DENSE || (s.cache_row >= 0 && s.cache_row < p->cache_rows),
                "cache_batch_idx[" INT "] = " INT ": must be 0 to " INT ", the last row of k", b,
                s.cache_row, p->cache_rows - 1) ||
            !pages(p, b, &s) || !positions(p, b, &s))
            return false;
    }
    return true;
}

/* Two sequences that append to one row of the cache would race. */
static tallow_status own_cache_rows(const problem *p) {
    if (!p->k_new.data || !p->cache_batch_idx.data) return TALLOW_OK;
    const size_t bytes = (size_t)p->cache_rows / 8 + 1;
    unsigned char *taken = calloc(bytes, 1);
    tallow_status status = TALLOW_OK;
    if (!taken)
        return tallow_fail(TALLOW_OUT_OF_MEMORY, "cache_batch_idx: no %zu bytes to check it",
                           bytes);
    for (int64_t b = 0; b < p->batch && !status; b++) {
        const int64_t row = int_at(&p->cache_batch_idx, b);
        if (taken[row / 8] >> row % 8 & 1)
            status = tallow_fail(TALLOW_INVALID_ARGUMENT,
                                 "cache_batch_idx[" INT "] = " INT
                                 ": must differ from the entries before it, as k_new is given",
                                 b, row);
        taken[row / 8] |= (unsigned char)(1 << row % 8);
    }
    free(taken);
    return status;
}

tallow_status tallow_problem_check_data(const problem *p) {
    return starts(p) && sequences(p) ? own_cache_rows(p) : TALLOW_INVALID_ARGUMENT;
}
