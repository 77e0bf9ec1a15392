#include "case.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "reference.h"

enum { GUARD = 256, UNUSED = 0xff }; /* bytes of UNUSED are NaN in every dtype */

/* ---- random numbers ---- */

static int32_t below(attention_case *c, int64_t n) {
    return (int32_t)(case_draw(&c->random) % (uint64_t)n);
}

static double uniform(attention_case *c) {
    return ((double)(case_draw(&c->random) >> 11) + 0.5) * 0x1p-53;
}

static double normal(attention_case *c) {
    double radius = sqrt(-2 * log(uniform(c)));
    return radius * cos(6.283185307179586 * uniform(c));
}

/* ---- options ---- */

#define CASE(name, ...) {#name, __VA_ARGS__},
static const case_options NAMED[] = {
#include "cases.def"
};
#undef CASE

int case_count(void) { return (int)(sizeof NAMED / sizeof NAMED[0]); }

const case_options *case_at(int index) { return &NAMED[index]; }

const case_options *case_named(const char *name) {
    for (int i = 0; i < case_count(); i++)
        if (strcmp(NAMED[i].name, name) == 0) return &NAMED[i];
    return NULL;
}

static void fill_lengths(int32_t *lengths, int batch, int32_t all) {
    for (int b = 0; b < batch; b++)
        if (lengths[b] != 0) return;
    for (int b = 0; b < batch; b++) lengths[b] = all == CASE_EMPTY ? 0 : all;
}

void case_defaults(case_options *o) {
    if (o->dtype == 0) o->dtype = TALLOW_F32;
    if (o->batch == 0) o->batch = 2;
    if (o->heads == 0) o->heads = 2;
    if (o->heads_kv == 0) o->heads_kv = o->heads;
    if (o->head_dim == 0) o->head_dim = 64;
    if (o->head_dim_v == 0) o->head_dim_v = o->head_dim;
    if (o->seqlen_q == 0) o->seqlen_q = 1;
    if (o->seqlen_k == 0) o->seqlen_k = 1;
    if (o->table_dtype == 0) o->table_dtype = TALLOW_F32;
    fill_lengths(o->lengths_q, o->batch, o->seqlen_q);
    fill_lengths(o->lengths_k, o->batch, o->seqlen_k);
}

static bool packed_new(const case_options *o) { return o->lengths_new[0] + o->lengths_new[1] > 0; }

static int32_t new_rows(const case_options *o, int b) {
    return packed_new(o) ? o->lengths_new[b] : o->seqlen_new;
}

static bool appends(const case_options *o) { return o->seqlen_new > 0 || packed_new(o); }

/* Rows of K in use before the call, leftpad included, and after it. */
static int32_t used_rows(const case_options *o, int b) {
    return (o->leftpad ? o->leftpad + b : 0) + o->lengths_k[b];
}

static int32_t final_rows(const case_options *o, int b) { return used_rows(o, b) + new_rows(o, b); }

static int32_t visible_rows(const case_options *o, int b) {
    return o->lengths_k[b] + new_rows(o, b);
}

static int32_t most_rows(const case_options *o) {
    int32_t most = 0;
    for (int b = 0; b < o->batch; b++)
        if (final_rows(o, b) > most) most = final_rows(o, b);
    return most;
}

/* ---- tensors ---- */

/* Reserves a tensor whose shape and strides are set: points it at memory full of NaN, with guard
 * zones around. */
static void place(attention_case *c, tallow_tensor *t, bool misaligned) {
    int64_t size = (int64_t)reference_size(t->dtype), extent = 1, lowest = 0;
    for (int d = 0; d < 4; d++) {
        int64_t reach = (t->shape[d] > 0 ? t->shape[d] - 1 : 0) * reference_stride(t, d);
        extent += llabs(reach);
        if (reach < 0) lowest -= reach;
    }
    case_block *block = &c->blocks[c->block_count++];
    block->begin = GUARD + (misaligned ? (size_t)size : 0);
    block->end = block->begin + (size_t)(extent * size);
    block->bytes = (block->end + 2 * GUARD - 1) / GUARD * GUARD;
    block->memory = aligned_alloc(GUARD, block->bytes);
    block->before = malloc(block->bytes);
    if (!block->memory || !block->before || c->block_count == CASE_BLOCKS) abort();
    if (!c->bare) memset(block->memory, UNUSED, block->bytes);
    t->data = block->memory + block->begin + lowest * size;
}

/* Rows of heads: (outer, rows, heads, dim), or packed (rows, heads, dim). */
static void place_rows(attention_case *c, tallow_tensor *t, bool packed, int64_t outer,
                       int64_t rows, int64_t heads, int64_t dim) {
    int64_t height = rows ? rows : 1; /* no stride is 0 by accident */
    int64_t head = dim, row = heads * dim, batch = height * row;
    int32_t kind = c->o.strides;
    if (kind == STRIDES_ODD) head = dim + 3, row = heads * head + 5, batch = height * row + 7;
    if (kind == STRIDES_HEADS_FIRST) row = dim, head = height * dim;
    if (kind == STRIDES_REVERSED) row = -row;
    if (kind == STRIDES_BROADCAST && (t == &c->params.k || t == &c->params.v)) batch = 0;
    const int64_t shape[4] = {outer, rows, heads, dim}, strides[4] = {batch, row, head, 1};
    t->dtype = t->dtype ? t->dtype : c->o.dtype;
    for (int d = packed; d < 4; d++) t->shape[d - packed] = shape[d];
    for (int d = packed; d < 4 && kind != STRIDES_CONTIGUOUS; d++)
        t->strides[d - packed] = strides[d];
    place(c, t, kind == STRIDES_ODD);
}

/* A table of one to three dimensions (0: no more). Odd strides leave gaps in its first one. */
static void place_table(attention_case *c, tallow_tensor *t, int32_t dtype, int64_t n0, int64_t n1,
                        int64_t n2) {
    *t = (tallow_tensor){.dtype = dtype, .shape = {n0, n1, n2}};
    if (c->o.strides == STRIDES_ODD) {
        t->strides[2] = n2 ? 1 : 0;
        t->strides[1] = n1 ? (n2 ? n2 : 1) : 0;
        t->strides[0] = (n1 ? n1 * t->strides[1] : 1) + 3;
    }
    place(c, t, false);
}

static int32_t *int_at(tallow_tensor *t, int64_t a, int64_t b, int64_t c) {
    return reference_at(t, a, b, c, 0);
}

static float *float_at(tallow_tensor *t, int64_t a, int64_t b) {
    return reference_at(t, a, b, 0, 0);
}

static void place_vector(attention_case *c, tallow_tensor *t, int64_t n) {
    place_table(c, t, TALLOW_I32, n, 0, 0);
}

/* Sequences behind one another after `first` rows of none, each with `slack` rows to spare. Returns
 * how many rows that takes. */
static int64_t place_starts(attention_case *c, tallow_tensor *t, const int32_t *lengths,
                            int32_t first, int32_t slack) {
    place_vector(c, t, c->o.batch + 1);
    *int_at(t, 0, 0, 0) = first;
    for (int b = 0; b < c->o.batch; b++)
        *int_at(t, b + 1, 0, 0) = *int_at(t, b, 0, 0) + lengths[b] + slack;
    return *int_at(t, c->o.batch, 0, 0);
}

static void place_queries(attention_case *c) {
    tallow_attention_params *p = &c->params;
    const case_options *o = &c->o;
    int64_t rows = o->lengths_q[0];
    if (o->packed_q) {
        rows = place_starts(c, &p->cu_seqlens_q, o->lengths_q, o->slack, 0) + o->slack;
    }
    c->rows = o->packed_q ? rows : rows * o->batch;
    p->out.dtype = o->out_f32 ? TALLOW_F32 : o->dtype;
    place_rows(c, &p->q, o->packed_q, o->batch, rows, o->heads, o->head_dim);
    place_rows(c, &p->out, o->packed_q, o->batch, rows, o->heads, o->head_dim_v);
    if (o->no_lse) return;
    if (o->packed_q) {
        place_table(c, &p->lse, TALLOW_F32, o->heads, rows, 0);
    } else {
        place_table(c, &p->lse, TALLOW_F32, o->batch, o->heads, rows);
    }
}

/* Pages in no order, each used once; unused columns name no page. */
static int64_t place_pages(attention_case *c) {
    const case_options *o = &c->o;
    int64_t columns = (most_rows(o) + o->page_size - 1) / o->page_size + (o->slack > 0);
    int64_t pages = o->batch * columns + 2, taken = 0;
    int32_t *shuffled = malloc((size_t)pages * sizeof *shuffled);
    if (!shuffled) abort();
    for (int32_t i = 0; i < pages; i++) {
        int32_t at = below(c, i + 1);
        shuffled[i] = shuffled[at];
        shuffled[at] = i;
    }
    columns = columns ? columns : 1;
    place_table(c, &c->params.block_table, TALLOW_I32, o->batch, columns, 0);
    for (int b = 0; b < o->batch; b++) {
        int32_t first = final_rows(o, b) - visible_rows(o, b);
        for (int64_t i = 0; i < columns; i++) {
            bool used = i * o->page_size < final_rows(o, b) && (i + 1) * o->page_size > first;
            *int_at(&c->params.block_table, b, i, 0) = used ? shuffled[taken++] : INT32_MIN;
        }
    }
    free(shuffled);
    return pages;
}

static void place_keys(attention_case *c) {
    tallow_attention_params *p = &c->params;
    const case_options *o = &c->o;
    bool packed = o->k_layout == K_PACKED, uneven = false;
    int64_t outer = o->batch + (o->cache_batch_idx ? 2 : 0), rows = most_rows(o) + o->slack;
    int32_t lengths[CASE_BATCH];

    for (int b = 0; b < o->batch; b++) lengths[b] = final_rows(o, b);
    if (packed) {
        rows = place_starts(c, &p->cu_seqlens_k, lengths, o->slack, o->slack);
    } else if (o->k_layout == K_PAGED) {
        outer = place_pages(c);
        rows = o->page_size;
        if (o->page_lengths_by_cu) place_starts(c, &p->cu_seqlens_k, lengths, 0, 0);
    }
    int64_t capacity = o->k_layout == K_PAGED ? p->block_table.shape[1] * rows : rows;
    for (int b = 0; b < o->batch && !packed; b++) uneven = uneven || lengths[b] != capacity;
    uneven = uneven && !o->page_lengths_by_cu;
    if (o->seqused || appends(o) || uneven || (packed && o->slack > 0)) {
        place_vector(c, &p->seqused_k, o->batch);
        for (int b = 0; b < o->batch; b++) *int_at(&p->seqused_k, b, 0, 0) = used_rows(o, b);
    }
    place_rows(c, &p->k, packed, outer, rows, o->heads_kv, o->head_dim);
    if (o->shared_kv) {
        p->v = p->k;
        for (int d = 0; d < 4; d++) p->v.strides[d] = reference_stride(&p->k, d);
        p->v.shape[packed ? 2 : 3] = o->head_dim_v;
        if (packed) p->v.strides[3] = 0;
    } else {
        place_rows(c, &p->v, packed, outer, rows, o->heads_kv, o->head_dim_v);
    }
}

static void place_vectors(attention_case *c) {
    tallow_attention_params *p = &c->params;
    const case_options *o = &c->o;
    if (o->leftpad) {
        place_vector(c, &p->leftpad_k, o->batch);
        for (int b = 0; b < o->batch; b++) *int_at(&p->leftpad_k, b, 0, 0) = o->leftpad + b;
    }
    if (o->cache_batch_idx) { /* every sequence its own row, none at its own index */
        place_vector(c, &p->cache_batch_idx, o->batch);
        for (int b = 0; b < o->batch; b++) *int_at(&p->cache_batch_idx, b, 0, 0) = o->batch + 1 - b;
    }
    if (o->alibi == 1) {
        place_table(c, &p->alibi_slopes, TALLOW_F32, o->heads, 0, 0);
        for (int h = 0; h < o->heads; h++)
            *float_at(&p->alibi_slopes, h, 0) = (float)exp2(-8 * uniform(c));
    } else if (o->alibi == 2) {
        place_table(c, &p->alibi_slopes, TALLOW_F32, o->batch, o->heads, 0);
        for (int i = 0; i < o->batch * o->heads; i++)
            *float_at(&p->alibi_slopes, i / o->heads, i % o->heads) = (float)exp2(-8 * uniform(c));
    }
    if (o->sinks) {
        place_table(c, &p->sinks, TALLOW_F32, o->heads, 0, 0);
        for (int h = 0; h < o->heads; h++) *float_at(&p->sinks, h, 0) = (float)(2 * normal(c) + 1);
    }
}

/* Prefix ranges, about a quarter of them unused slots. */
static void place_ranges(attention_case *c) {
    tallow_tensor *t = &c->params.prefix_ranges;
    const case_options *o = &c->o;
    if (o->ranges == 0) return;
    place_table(c, t, TALLOW_I32, o->batch, o->ranges, 2);
    for (int b = 0; b < o->batch; b++) {
        int32_t keys = visible_rows(o, b);
        for (int r = 0; r < o->ranges; r++) {
            int32_t start = below(c, keys + 1);
            *int_at(t, b, r, 0) = start;
            *int_at(t, b, r, 1) = start + below(c, keys / 2 + 4) - (keys / 8 + 1);
        }
    }
}

/* ---- append and rotary ---- */

/* (batch, rows) or packed (rows), with M-RoPE three times that; its rows differ. */
static void place_positions(attention_case *c, tallow_tensor *t, bool packed, int64_t rows) {
    const case_options *o = &c->o;
    int64_t shape[4] = {3, o->batch, rows}, *first = shape + (o->mrope ? 0 : 1);
    if (packed && o->mrope) shape[1] = rows, shape[2] = 0;
    if (packed && !o->mrope) first = shape + 2;
    place_table(c, t, o->positions, first[0], first[1], first == shape ? first[2] : 0);
    int64_t n1 = t->shape[1] ? t->shape[1] : 1, n2 = t->shape[2] ? t->shape[2] : 1;
    for (int64_t i = 0; i < t->shape[0] * n1 * n2; i++) {
        void *at = reference_at(t, i / (n1 * n2), i / n2 % n1, i % n2, 0);
        int64_t position = o->position + i % 40 + 5 * (i / 40);
        position = position > INT32_MAX ? INT32_MAX - i : position;
        if (o->positions == TALLOW_I64)
            *(int64_t *)at = position;
        else
            *(int32_t *)at = (int32_t)position;
    }
}

static void place_frequencies(attention_case *c) {
    tallow_rotary_angles *r = &c->params.rotary;
    const case_options *o = &c->o;
    int64_t pairs = o->rotary_dim / 2;
    int64_t rows = most_rows(o) + o->position + c->rows + 512; /* more than any position */
    if (o->frequencies == FREQUENCIES_INV_FREQ) {
        place_table(c, &r->inv_freq, TALLOW_F32, pairs, 0, 0);
        for (int64_t i = 0; i < pairs; i++)
            *float_at(&r->inv_freq, i, 0) = (float)exp(-9 * uniform(c));
    } else if (o->frequencies == FREQUENCIES_TABLES) {
        place_table(c, &r->cos, o->table_dtype, rows, pairs, 0);
        r->sin = (tallow_tensor){.dtype = o->table_dtype, .shape = {rows, pairs}};
        place(c, &r->sin, false); /* contiguous, whatever the strides of cos */
        for (int64_t i = 0; i < rows * pairs; i++) {
            double angle = 7 * uniform(c);
            void *cos_at = reference_at(&r->cos, i / pairs, i % pairs, 0, 0);
            void *sin_at = reference_at(&r->sin, i / pairs, i % pairs, 0, 0);
            reference_store(cos_at, o->table_dtype, 0, cos(angle));
            reference_store(sin_at, o->table_dtype, 0, sin(angle));
        }
    }
}

static void place_rotary(attention_case *c, int64_t rows_new) {
    tallow_rotary_angles *r = &c->params.rotary;
    const case_options *o = &c->o;
    r->rotary_dim = o->rotary_dim;
    r->theta = (double)o->theta;
    r->attention_factor = o->factor;
    r->pairing = o->pairing;
    r->mrope = o->mrope;
    if (o->mrope) { /* time, height, width, as 24, 20, 20 of 64 */
        r->mrope_sections[1] = r->mrope_sections[2] = o->rotary_dim / 2 * 5 / 16;
        r->mrope_sections[0] = o->rotary_dim / 2 - 2 * r->mrope_sections[1];
    }
    place_frequencies(c);
    if (!o->positions) return;
    place_positions(c, &c->params.positions_q, o->packed_q, c->params.q.shape[!o->packed_q]);
    place_positions(c, &c->params.positions_k_new, packed_new(o), rows_new);
}

static void place_new(attention_case *c) {
    tallow_attention_params *p = &c->params;
    const case_options *o = &c->o;
    int64_t rows = o->seqlen_new;
    if (!appends(o)) return;
    if (packed_new(o)) {
        rows = place_starts(c, &p->cu_seqlens_k_new, o->lengths_new, o->slack, 0);
    }
    place_rows(c, &p->k_new, packed_new(o), o->batch, rows, o->heads_kv, o->head_dim);
    place_rows(c, &p->v_new, packed_new(o), o->batch, rows, o->heads_kv, o->head_dim_v);
    if (o->rotary_dim > 0) place_rotary(c, rows);
}

/* ---- data ---- */

typedef enum { VALUE_Q, VALUE_K, VALUE_V } value_kind;

static double value(attention_case *c, value_kind kind, int64_t row, int64_t channel) {
    const case_options *o = &c->o;
    double x = normal(c);
    bool slope = o->data == DATA_RISING || o->data == DATA_FALLING;
    if (o->data == DATA_PEAKY && kind == VALUE_Q) return 6 * x;
    if (o->data == DATA_OUTLIERS && (kind == VALUE_V ? row : channel) % 11 == 3)
        return kind == VALUE_V ? 30 * x : 5 * x;
    if (slope && kind == VALUE_Q) return fabs(x);
    if (slope && kind == VALUE_K) /* scores move by about 0.2 from key to key */
        return 0.5 * x + (o->data == DATA_RISING ? 0.25 : -0.25) / sqrt(o->head_dim) * (double)row;
    return x;
}

static void fill_row(attention_case *c, value_kind kind, void *data, int64_t row, int64_t n) {
    for (int64_t i = 0; i < n; i++) reference_store(data, c->o.dtype, i, value(c, kind, row, i));
}

static void fill_sequence(attention_case *c, int b) {
    const tallow_attention_params *p = &c->params;
    const case_options *o = &c->o;
    dimensions d = reference_dimensions(p);
    lengths s = reference_lengths(p, b);
    for (int64_t i = 0; i < s.seqlen_q * d.heads; i++)
        fill_row(c, VALUE_Q,
                 reference_row(&p->q, d.packed_q, b, s.q_start + i / d.heads, i % d.heads),
                 i / d.heads, o->head_dim);
    for (int64_t i = s.leftpad * d.heads_kv; i < s.used * d.heads_kv; i++) {
        int64_t row = i / d.heads_kv, h = i % d.heads_kv;
        fill_row(c, VALUE_K, reference_cache_row(p, &p->k, b, row, h), row, o->head_dim);
        if (!o->shared_kv)
            fill_row(c, VALUE_V, reference_cache_row(p, &p->v, b, row, h), row, o->head_dim_v);
    }
    for (int64_t i = 0; i < s.seqlen_new * d.heads_kv; i++) {
        int64_t t = i / d.heads_kv, h = i % d.heads_kv, row = s.new_start + t;
        fill_row(c, VALUE_K, reference_row(&p->k_new, d.packed_new, b, row, h), s.used + t,
                 o->head_dim);
        fill_row(c, VALUE_V, reference_row(&p->v_new, d.packed_new, b, row, h), s.used + t,
                 o->head_dim_v);
    }
}

static void store_special(void *data, int32_t dtype, case_plant plant) {
    static const uint16_t F16[2] = {0x7e00, 0x7c00}, BF16[2] = {0x7fc0, 0x7f80};
    bool inf = plant == PLANT_INF_K || plant == PLANT_INF_V;
    if (dtype == TALLOW_F32)
        *(float *)data = inf ? INFINITY : NAN;
    else
        *(uint16_t *)data = dtype == TALLOW_F16 ? F16[inf] : BF16[inf];
}

static void plant(attention_case *c) {
    const tallow_attention_params *p = &c->params;
    case_plant kind = (case_plant)c->o.plant;
    for (int b = 0; b < c->o.batch && kind != PLANT_NONE; b++) {
        lengths s = reference_lengths(p, b);
        bool query = kind == PLANT_NAN_Q;
        int64_t count = query ? s.seqlen_q : s.used - s.leftpad;
        int64_t at = c->o.plant_at < 0 ? count + c->o.plant_at : c->o.plant_at;
        if (at < 0 || at >= count) continue;
        const tallow_tensor *t = kind == PLANT_NAN_V || kind == PLANT_INF_V ? &p->v : &p->k;
        void *data = query ? reference_row(&p->q, c->o.packed_q, b, s.q_start + at, 0)
                           : reference_cache_row(p, t, b, s.leftpad + at, 0);
        store_special(data, c->o.dtype, kind);
    }
}

static void set_scalars(attention_case *c) {
    tallow_attention_params *p = &c->params;
    const case_options *o = &c->o;
    p->softmax_scale = o->scale;
    p->softcap = o->softcap;
    p->mask = o->mask;
    p->window_left = o->window_left;
    p->window_right = o->window_right;
    p->dropout_p = o->dropout;
    p->dropout_seed = o->dropout > 0 ? case_draw(&c->random) : 0;
    p->dropout_offset = o->dropout > 0 ? case_draw(&c->random) : 0;
    p->num_splits = o->num_splits;
    p->precision = o->precision;
    p->batch_invariant = o->batch_invariant;
    p->threads = o->threads;
    for (int b = 0; b < o->batch && o->bounds; b++) {
        lengths s = reference_lengths(p, b);
        if (s.seqlen_q > p->max_seqlen_q) p->max_seqlen_q = s.seqlen_q;
        if (s.seqlen_k > p->max_seqlen_k) p->max_seqlen_k = s.seqlen_k;
    }
}

/* ---- the case ---- */

static void compute_reference(attention_case *c) {
    size_t rows = (size_t)(c->rows * c->o.heads), n = rows * (size_t)c->o.head_dim_v;
    double **outs[4] = {&c->out, &c->plain_out, &c->lse, &c->plain_lse};
    for (int i = 0; i < 4; i++) {
        *outs[i] = malloc(((i < 2 ? n : rows) + 1) * sizeof **outs[i]);
        if (!*outs[i]) abort();
    }
    c->magnitude = reference_attention(&c->params, ARITHMETIC_F64, c->out, c->lse);
    reference_attention(&c->params, ARITHMETIC_PLAIN, c->plain_out, c->plain_lse);
}

static void place_tensors(attention_case *c, const case_options *o, uint64_t seed, bool bare) {
    *c = (attention_case){.o = *o, .random = seed, .bare = bare};
    case_defaults(&c->o);
    place_queries(c);
    place_keys(c);
    place_vectors(c);
    place_ranges(c);
    place_new(c);
}

void case_build_shapes(attention_case *c, const case_options *o) {
    place_tensors(c, o, 0, true);
    set_scalars(c);
}

void case_build_tensors(attention_case *c, const case_options *o, uint64_t seed) {
    place_tensors(c, o, seed, false);
    for (int b = 0; b < c->o.batch; b++) fill_sequence(c, b);
    plant(c);
    set_scalars(c);
    for (int i = 0; i < c->block_count; i++)
        memcpy(c->blocks[i].before, c->blocks[i].memory, c->blocks[i].bytes);
}

void case_build(attention_case *c, const case_options *o, uint64_t seed) {
    case_build_tensors(c, o, seed);
    compute_reference(c);
}

void case_build_random(attention_case *c, uint64_t seed, uint64_t index) {
    case_options o = case_random(seed, index);
    case_build(c, &o, seed + index);
}

void case_free(attention_case *c) {
    for (int i = 0; i < c->block_count; i++) {
        case_block *block = &c->blocks[i];
        free(block->memory);
        free(block->before);
    }
    free(c->out), free(c->lse), free(c->plain_out), free(c->plain_lse);
}
