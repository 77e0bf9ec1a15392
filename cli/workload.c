#include "workload.h"

#include <stdlib.h>

#include "reference.h"

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Keys [first, last] that query i of a sequence sees by its mask. */
static void visible(const tallow_attention_params *p, const lengths *s, int64_t i, int64_t *first,
                    int64_t *last) {
    int64_t center = i + s->seqlen_k - s->seqlen_q;
    *first = 0;
    *last = s->seqlen_k - 1;
    if (p->mask == TALLOW_MASK_CAUSAL) *last = smaller(*last, center);
    if (p->mask == TALLOW_MASK_WINDOW) {
        if (p->window_left >= 0) *first = larger(0, center - p->window_left);
        if (p->window_right >= 0) *last = smaller(*last, center + p->window_right);
    }
}

/* Pairs of a sequence; by convention half of a key counts for the diagonal of a causal mask, so
 * that a square counts as exactly half. */
static double pairs(const tallow_attention_params *p, const lengths *s) {
    double all = 0;
    for (int64_t i = 0; i < s->seqlen_q; i++) {
        int64_t first, last;
        visible(p, s, i, &first, &last);
        if (last < first) continue;
        all += (double)(last - first + 1) - (p->mask == TALLOW_MASK_CAUSAL ? 0.5 : 0);
    }
    return all;
}

/* Appends `bytes` at `data`, to the last range when they follow it. */
static void add_range(workload *w, const char *data, size_t bytes) {
    byte_range *last = w->range_count ? &w->ranges[w->range_count - 1] : NULL;
    if (last && (const char *)last->data + last->bytes == data) {
        last->bytes += bytes;
    } else {
        w->ranges[w->range_count++] = (byte_range){data, bytes};
    }
    w->kv_bytes += (double)bytes;
}

static void add_rows(workload *w, const tallow_attention_params *p, const tallow_tensor *t,
                     int64_t b, const lengths *s, int64_t first, int64_t width) {
    dimensions d = reference_dimensions(p);
    size_t bytes = (size_t)width * reference_size(t->dtype);
    for (int64_t key = first; key < s->seqlen_k; key++) {
        for (int64_t h = 0; h < d.heads_kv; h++) {
            add_range(w, reference_cache_row(p, t, b, s->leftpad + key, h), bytes);
        }
    }
}

bool workload_measure(workload *w, const attention_case *c) {
    const tallow_attention_params *p = &c->params;
    const bool shared = c->o.shared_kv; /* V lies in K's rows */
    dimensions d = reference_dimensions(p);
    double rows = 0, all_pairs = 0;
    int64_t keys = 0;

    for (int64_t b = 0; b < d.batch; b++) keys += reference_lengths(p, b).seqlen_k;
    *w = (workload){.ranges = calloc((size_t)(2 * keys * d.heads_kv + 1), sizeof *w->ranges)};
    if (!w->ranges) return false;
    for (int64_t b = 0; b < d.batch; b++) {
        lengths s = reference_lengths(p, b);
        int64_t first, last;
        visible(p, &s, 0, &first, &last);
        add_rows(w, p, &p->k, b, &s, first, d.head_dim);
        if (!shared) add_rows(w, p, &p->v, b, &s, first, d.head_dim_v);
        rows += (double)s.seqlen_q;
        all_pairs += pairs(p, &s);
    }
    w->flops = 2 * all_pairs * (double)(d.heads * (d.head_dim + d.head_dim_v));
    w->bytes = w->kv_bytes + rows * (double)d.heads *
                                 (double)(d.head_dim * (int64_t)reference_size(p->q.dtype) +
                                          d.head_dim_v * (int64_t)reference_size(p->out.dtype));
    return true;
}

void workload_free(workload *w) { free(w->ranges); }
