/* Fuzzes every exported function over its params struct. Bytes become a valid call, in memory that
 * is exactly as large as its shapes and strides say, so that a sanitizer sees every read or write
 * outside. Then a few fields and a few entries of vectors are broken. What must hold:
 *   - a call that nothing broke succeeds, twice with the same bits, the second time in a workspace
 * of exactly the size asked for;
 *   - a call that fails names a field and has written nothing;
 *   - inputs are never written.
 * With libFuzzer: -DFUZZ_LIBFUZZER -fsanitize=fuzzer. On its own: fuzz_params SECONDS [SEED
 * [CALL]], where CALL repeats one call of a seed. */
#define _POSIX_C_SOURCE 200809L
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tallow.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void failed(void); /* says which call it was, and ends */

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: not %s; last error \"%s\"\n", __FILE__, __LINE__, #condition,  \
                    tallow_last_error());                                                          \
            failed();                                                                              \
        }                                                                                          \
    } while (0)

/* --------------------------------------------------------------------------------------------
 * Choices come from the input's bytes
 * ------------------------------------------------------------------------------------------ */

static const uint8_t *input;
static size_t input_left;

/* 0 when the input is spent, so that a short input is a plain call. */
static uint64_t draw(uint64_t below) {
    uint64_t value = 0;
    for (uint64_t range = 1; range < below && input_left; range <<= 8, input_left--)
        value = value << 8 | *input++;
    return value % below;
}

static bool one_in(uint64_t n) { return draw(n) == n - 1; }

static uint64_t state; /* fills memory, where bytes of the input would be wasted */
static uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

/* --------------------------------------------------------------------------------------------
 * A call: its tensors, and the fields that are no tensors
 * ------------------------------------------------------------------------------------------ */

enum { BATCH = 3, MOST_COLUMNS = 16, TABLE_ROWS = 128 };

typedef enum { ATTENTION, ROTARY, MERGE } kind;
typedef enum { INT32, INT64, FLOAT, DOUBLE, POINTER } scalar;

typedef struct {
    kind kind;
    union {
        tallow_attention_params a;
        tallow_rotary_params r;
        tallow_merge_params m;
    } params;
    bool broken;

    int64_t batch, columns;
    int32_t rows_q[BATCH], used[BATCH], added[BATCH], leftpad[BATCH]; /* lengths */
    bool append;
} call;

/* An output (or the cache, when rows are appended), and a vector that no bits but finite ones suit.
 */
typedef enum { INPUT, OUTPUT, FINITE } use;

typedef struct {
    size_t offset;
    use use;
} tensor_field;

typedef struct {
    size_t offset;
    scalar type;
} scalar_field;

#define A(field, what)                                                                             \
    { offsetof(tallow_attention_params, field), what }
#define R(field, what)                                                                             \
    { offsetof(tallow_rotary_params, field), what }
#define M(field, what)                                                                             \
    { offsetof(tallow_merge_params, field), what }
#define END                                                                                        \
    { SIZE_MAX, 0 }

enum { MOST_TENSORS = 22 };

/* clang-format off */
static const tensor_field tensor_fields[][MOST_TENSORS + 1] = {
    {A(q, INPUT), A(k, OUTPUT), A(v, OUTPUT), A(out, OUTPUT), A(lse, OUTPUT),
     A(cu_seqlens_q, INPUT), A(cu_seqlens_k, INPUT), A(seqused_k, INPUT), A(leftpad_k, INPUT),
     A(block_table, INPUT), A(cache_batch_idx, INPUT), A(alibi_slopes, INPUT), A(sinks, INPUT),
     A(prefix_ranges, INPUT), A(k_new, INPUT), A(v_new, INPUT), A(cu_seqlens_k_new, INPUT),
     A(rotary.inv_freq, FINITE), A(rotary.cos, INPUT), A(rotary.sin, INPUT),
     A(positions_q, INPUT), A(positions_k_new, INPUT), END},
    {R(x, INPUT), R(out, OUTPUT), R(positions, INPUT), R(offset, INPUT), R(cu_seqlens, INPUT),
     R(rotary.inv_freq, FINITE), R(rotary.cos, INPUT), R(rotary.sin, INPUT), END},
    {M(out_a, INPUT), M(lse_a, INPUT), M(out_b, INPUT), M(lse_b, INPUT), M(out, OUTPUT),
     M(lse, OUTPUT), END},
};

static const scalar_field scalar_fields[][24] = {
    {A(max_seqlen_q, INT64), A(max_seqlen_k, INT64), A(softmax_scale, FLOAT), A(softcap, FLOAT),
     A(window_left, INT64), A(window_right, INT64), A(mask, INT32), A(dropout_p, FLOAT),
     A(rotary.rotary_dim, INT64), A(rotary.theta, DOUBLE), A(rotary.attention_factor, FLOAT),
     A(rotary.pairing, INT32), A(rotary.mrope, INT32), A(rotary.mrope_sections[1], INT32),
     A(num_splits, INT64), A(precision, INT32), A(batch_invariant, INT32), A(device, INT32),
     A(threads, INT32), A(stream, POINTER), A(workspace_size, INT64), A(pack, POINTER), END},
    {R(rotary.rotary_dim, INT64), R(rotary.theta, DOUBLE), R(rotary.attention_factor, FLOAT),
     R(rotary.pairing, INT32), R(rotary.mrope, INT32), R(rotary.mrope_sections[0], INT32),
     R(stream, POINTER), R(device, INT32), R(threads, INT32), R(pack, POINTER), END},
    {M(stream, POINTER), M(device, INT32), M(threads, INT32), M(pack, POINTER), END},
};
/* clang-format on */

static const size_t params_sizes[] = {sizeof(tallow_attention_params), sizeof(tallow_rotary_params),
                                      sizeof(tallow_merge_params)};

/* --------------------------------------------------------------------------------------------
 * Memory: one block for each tensor, as large as it says
 * ------------------------------------------------------------------------------------------ */

typedef struct {
    tallow_tensor *tensor;
    bool written;
    char *memory, *before;
    size_t size;
} block;

static block blocks[MOST_TENSORS];
static int block_count;

static size_t dtype_size(int32_t dtype) {
    return dtype == TALLOW_I64 ? 8 : dtype == TALLOW_F32 || dtype == TALLOW_I32 ? 4 : 2;
}

static bool is_zero(const tallow_tensor *t) {
    static const tallow_tensor zero;
    return !memcmp(t, &zero, sizeof zero);
}

static int rank_of(const tallow_tensor *t) {
    int rank = 4;
    while (rank > 0 && !t->shape[rank - 1]) rank--;
    return rank;
}

/* Strides as the library resolves them; false when they could need too much memory. */
static bool resolve(const tallow_tensor *t, int64_t strides[4]) {
    bool contiguous = true;
    int64_t span = 1;
    for (int i = 0; i < 4; i++) contiguous = contiguous && !t->strides[i];
    for (int i = rank_of(t) - 1; i >= 0; i--) {
        const int64_t size = t->shape[i];
        strides[i] = contiguous ? span : t->strides[i];
        if (size < 0 || size > 4096 || span > 1 << 22) return false;
        if (size > 1 && (strides[i] > 1 << 20 || strides[i] < -(1 << 20))) return false;
        span *= size ? size : 1;
    }
    return true;
}

/* Floats between -1 and 1, or any bits at all; integers from 0 to 7. */
static void fill(char *memory, size_t size, int32_t dtype, bool wild) {
    const size_t step = dtype_size(dtype);
    for (size_t i = 0; i + step <= size; i += step) {
        const uint64_t bits = next();
        const float x = (float)(int64_t)(bits % 4096) / 2048 - 1;
        const uint16_t half = (uint16_t)((bits & 0x83ff) | (dtype == TALLOW_F16 ? 0x3400 : 0x3e00));
        const uint64_t small = bits % 8;
        memcpy(memory + i, &bits, step);
        if (dtype == TALLOW_I32 || dtype == TALLOW_I64) memcpy(memory + i, &small, step);
        if (wild) continue;
        if (dtype == TALLOW_F32) memcpy(memory + i, &x, sizeof x);
        if (dtype == TALLOW_F16 || dtype == TALLOW_BF16) memcpy(memory + i, &half, sizeof half);
    }
}

/* A tensor too large to allocate stays null, which the library must refuse. */
static void allocate(block *b, bool wild) {
    tallow_tensor *t = b->tensor;
    const int64_t step = (int64_t)dtype_size(t->dtype);
    int64_t strides[4], below = 0, above = 0;
    bool empty = !rank_of(t);
    *b = (block){.tensor = t, .written = b->written};
    t->data = NULL;
    if (is_zero(t) || !resolve(t, strides)) return;
    for (int i = 0; i < rank_of(t); i++) {
        if (t->shape[i] > 1 && strides[i] < 0) below -= (t->shape[i] - 1) * strides[i];
        if (t->shape[i] > 1 && strides[i] > 0) above += (t->shape[i] - 1) * strides[i];
        empty = empty || !t->shape[i];
    }
    if (empty) below = 0;
    b->size = empty ? 0 : (size_t)((below + above + 1) * step);
    b->memory = malloc(b->size);
    fill(b->memory, b->size, t->dtype, wild);
    t->data = b->memory + below * step;
}

static void allocate_all(call *c) {
    const tensor_field *f = tensor_fields[c->kind];
    const bool wild = one_in(4);
    for (block_count = 0; f->offset != SIZE_MAX; f++, block_count++) {
        block *b = &blocks[block_count];
        b->tensor = (tallow_tensor *)((char *)&c->params + f->offset);
        b->written = f->use == OUTPUT;
        if (c->kind == ATTENTION && f->use == OUTPUT && block_count < 3)
            b->written = !is_zero(&c->params.a.k_new);
        allocate(b, wild && f->use != FINITE);
    }
}

static void remember_all(void) {
    for (int i = 0; i < block_count; i++) {
        blocks[i].before = malloc(blocks[i].size);
        if (blocks[i].size) memcpy(blocks[i].before, blocks[i].memory, blocks[i].size);
    }
}

static void restore_all(void) {
    for (int i = 0; i < block_count; i++)
        if (blocks[i].size) memcpy(blocks[i].memory, blocks[i].before, blocks[i].size);
}

static void free_all(void) {
    for (int i = 0; i < block_count; i++) {
        free(blocks[i].memory);
        free(blocks[i].before);
    }
}

static bool unwritten(bool outputs_too) {
    for (int i = 0; i < block_count; i++)
        if ((outputs_too || !blocks[i].written) && blocks[i].size &&
            memcmp(blocks[i].memory, blocks[i].before, blocks[i].size))
            return false;
    return true;
}

/* --------------------------------------------------------------------------------------------
 * Valid calls
 * ------------------------------------------------------------------------------------------ */

static tallow_tensor tensor(int32_t dtype, int64_t d0, int64_t d1, int64_t d2, int64_t d3) {
    return (tallow_tensor){.shape = {d0, d1, d2, d3}, .dtype = dtype};
}

/* Any order of the dimensions in memory, gaps, backwards; inputs may repeat. The last dimension
 * stays contiguous. */
static void strided(tallow_tensor *t, bool written) {
    int64_t order[4] = {0, 1, 2, 3}, span;
    const int rank = rank_of(t);
    if (rank < 2 || one_in(2)) return;
    for (int i = 0; i < rank - 1; i++) {
        const int other = (int)draw((uint64_t)(rank - 1));
        const int64_t swapped = order[i];
        order[i] = order[other];
        order[other] = swapped;
    }
    t->strides[rank - 1] = 1;
    span = t->shape[rank - 1] + (int64_t)draw(3);
    for (int i = rank - 2; i >= 0; i--) {
        const int64_t size = t->shape[order[i]];
        t->strides[order[i]] = one_in(4) ? -span : span;
        if (!written && one_in(8)) t->strides[order[i]] = 0;
        span = span * (size ? size : 1) + (int64_t)draw(3);
    }
}

static int64_t draw_dim(bool value) {
    static const int64_t dims[] = {8, 16, 24, 40, 64, 128, 160, 256, 512, 576};
    return dims[draw(one_in(8) ? (value ? 9 : 10) : 5)];
}

static int64_t sum(const int32_t *lengths, int64_t batch) {
    int64_t total = 0;
    for (int64_t b = 0; b < batch; b++) total += lengths[b];
    return total;
}

/* Writes an entry of a vector or matrix of integers, if the tensor holds it. */
static void put(const tallow_tensor *t, int64_t i, int64_t j, int64_t value) {
    int64_t strides[4] = {0};
    const int rank = rank_of(t);
    if (!t->data || t->dtype != TALLOW_I32 || !resolve(t, strides)) return;
    if (rank > 2 || i >= t->shape[0] || j >= (rank == 2 ? t->shape[1] : 1)) return;
    ((int32_t *)t->data)[i * strides[0] + j * strides[1]] = (int32_t)value;
}

static void put_starts(const tallow_tensor *t, const int32_t *lengths, int64_t batch) {
    for (int64_t b = 0; b <= batch; b++) put(t, b, 0, sum(lengths, b));
}

static void draw_angles(call *c, tallow_rotary_angles *r, int64_t head_dim) {
    r->rotary_dim = 2 + 2 * (int64_t)draw((uint64_t)head_dim / 2);
    const uint64_t source = draw(4);
    const int32_t dtype = (int32_t)(1 + draw(3));
    if (source == 1) r->theta = 5e5;
    if (source == 2) r->inv_freq = tensor(TALLOW_F32, r->rotary_dim / 2, 0, 0, 0);
    if (source == 3) {
        r->cos = r->sin = tensor(dtype, TABLE_ROWS, r->rotary_dim / 2, 0, 0);
        strided(&r->cos, false);
    }
    r->attention_factor = one_in(2) ? 1.25f : 0;
    r->pairing = (int32_t)draw(2);
    r->mrope = (int32_t)draw(3);
    if (r->mrope) {
        r->mrope_sections[0] = (int32_t)draw((uint64_t)r->rotary_dim / 2 + 1);
        r->mrope_sections[2] = (int32_t)r->rotary_dim / 2 - r->mrope_sections[0];
    }
    (void)c;
}

static tallow_tensor draw_positions(const tallow_rotary_angles *r, bool packed, int64_t batch,
                                    int64_t rows) {
    const int32_t dtype = one_in(2) ? TALLOW_I32 : TALLOW_I64;
    tallow_tensor t = packed ? tensor(dtype, rows, 0, 0, 0) : tensor(dtype, batch, rows, 0, 0);
    if (!r->mrope) return t;
    return packed ? tensor(dtype, 3, rows, 0, 0) : tensor(dtype, 3, batch, rows, 0);
}

static void draw_lengths(call *c, bool dense_q, bool dense_new) {
    const uint64_t most_q = one_in(4) ? 40 : 4, most_k = one_in(4) ? 80 : 9;
    c->batch = (int64_t)draw(BATCH + 1);
    for (int64_t b = 0; b < c->batch; b++) {
        c->rows_q[b] = dense_q && b ? c->rows_q[0] : (int32_t)draw(most_q);
        c->used[b] = (int32_t)draw(most_k);
        c->added[b] = !c->append ? 0 : dense_new && b ? c->added[0] : (int32_t)draw(4);
    }
}

static void draw_query(call *c, tallow_attention_params *a, bool packed, int64_t heads, int64_t dim,
                       int64_t dim_v) {
    const int32_t dtype = (int32_t)(1 + draw(3)), out = one_in(2) ? dtype : TALLOW_F32;
    const int64_t total = sum(c->rows_q, c->batch), rows = c->batch ? c->rows_q[0] : 2;
    a->q = packed ? tensor(dtype, total, heads, dim, 0) : tensor(dtype, c->batch, rows, heads, dim);
    a->out =
        packed ? tensor(out, total, heads, dim_v, 0) : tensor(out, c->batch, rows, heads, dim_v);
    if (packed) a->cu_seqlens_q = tensor(TALLOW_I32, c->batch + 1, 0, 0, 0);
    if (one_in(2))
        a->lse = packed ? tensor(TALLOW_F32, heads, total, 0, 0)
                        : tensor(TALLOW_F32, c->batch, heads, rows, 0);
    strided(&a->q, false);
    strided(&a->out, true);
    strided(&a->lse, true);
}

static void draw_keys(call *c, tallow_attention_params *a, int layout, int64_t heads, int64_t dim,
                      int64_t dim_v) {
    const int32_t dtype = a->q.dtype;
    int64_t rows = 0, first = c->batch;
    for (int64_t b = 0; b < c->batch; b++) {
        const int64_t all = c->used[b] + c->added[b];
        rows = all > rows ? all : rows;
    }
    rows += (int64_t)draw(3);
    if (layout == 1) { /* packed */
        first = sum(c->used, c->batch);
        a->k = tensor(dtype, first, heads, dim, 0);
        a->v = tensor(dtype, first, heads, dim_v, 0);
        a->cu_seqlens_k = tensor(TALLOW_I32, c->batch + 1, 0, 0, 0);
    } else if (layout == 2) { /* paged; a page for every column of every sequence, none shared */
        const int64_t page = 1 + (int64_t)draw(rows > 30 ? 16 : 5) + rows / MOST_COLUMNS;
        const int64_t columns = c->columns = (rows + page - 1) / page;
        first = c->batch * columns + (int64_t)draw(3);
        a->k = tensor(dtype, first, page, heads, dim);
        a->v = tensor(dtype, first, page, heads, dim_v);
        a->block_table = tensor(TALLOW_I32, c->batch, columns, 0, 0);
        strided(&a->block_table, true);
        rows = columns * page;
    } else {
        if (one_in(2)) a->cache_batch_idx = tensor(TALLOW_I32, first, 0, 0, 0);
        if (!is_zero(&a->cache_batch_idx)) first += (int64_t)draw(2);
        a->k = tensor(dtype, first, rows, heads, dim);
        a->v = tensor(dtype, first, rows, heads, dim_v);
    }
    if (layout != 1 && (c->append || one_in(2)))
        a->seqused_k = tensor(TALLOW_I32, c->batch, 0, 0, 0);
    if (layout == 2 && !c->append && one_in(2))
        a->cu_seqlens_k = tensor(TALLOW_I32, c->batch + 1, 0, 0, 0);
    if (is_zero(&a->cu_seqlens_k) && is_zero(&a->seqused_k))
        for (int64_t b = 0; b < c->batch; b++) c->used[b] = (int32_t)rows; /* all there are */
    strided(&a->k, c->append);
    strided(&a->v, c->append);
}

static void draw_append(call *c, tallow_attention_params *a, bool packed_q, bool packed_new,
                        int64_t heads, int64_t dim, int64_t dim_v) {
    const int32_t dtype = a->q.dtype;
    const int64_t total = sum(c->added, c->batch), rows = c->batch ? c->added[0] : 1;
    if (!c->append) return;
    a->k_new = packed_new ? tensor(dtype, total, heads, dim, 0)
                          : tensor(dtype, c->batch, rows, heads, dim);
    a->v_new = packed_new ? tensor(dtype, total, heads, dim_v, 0)
                          : tensor(dtype, c->batch, rows, heads, dim_v);
    if (packed_new) a->cu_seqlens_k_new = tensor(TALLOW_I32, c->batch + 1, 0, 0, 0);
    strided(&a->k_new, false);
    strided(&a->v_new, false);
    if (one_in(2)) return;
    draw_angles(c, &a->rotary, dim);
    if (one_in(2))
        a->positions_q = draw_positions(&a->rotary, packed_q, c->batch,
                                        packed_q ? sum(c->rows_q, c->batch) : a->q.shape[1]);
    if (one_in(2))
        a->positions_k_new =
            draw_positions(&a->rotary, packed_new, c->batch, packed_new ? total : rows);
}

static void draw_options(call *c, tallow_attention_params *a, int64_t heads) {
    a->mask = (int32_t)draw(3);
    if (a->mask == TALLOW_MASK_WINDOW) {
        a->window_left = (int64_t)draw(8) - 1;
        a->window_right = (int64_t)draw(8) - 1;
    }
    if (a->mask && one_in(2))
        a->prefix_ranges = tensor(TALLOW_I32, c->batch, (int64_t)draw(3), 2, 0);
    if (one_in(4)) a->alibi_slopes = tensor(TALLOW_F32, heads, 0, 0, 0);
    if (one_in(4)) a->alibi_slopes = tensor(TALLOW_F32, c->batch, heads, 0, 0);
    if (one_in(4)) a->sinks = tensor(TALLOW_F32, heads, 0, 0, 0);
    if (one_in(4)) a->softcap = 3;
    if (one_in(4)) a->dropout_p = 0.25f;
    if (one_in(4)) a->leftpad_k = tensor(TALLOW_I32, c->batch, 0, 0, 0);
    a->num_splits = one_in(2) ? 0 : (int64_t)draw(6);
    a->precision = (int32_t)draw(3);
    a->batch_invariant = (int32_t)draw(2);
    a->threads = 1 + (int32_t)draw(3);
    if (!one_in(4)) return;
    a->max_seqlen_q = a->max_seqlen_k = 1; /* no sequence is longer */
    for (int64_t b = 0; b < c->batch; b++) {
        const int64_t keys = c->used[b] + c->added[b];
        if (c->rows_q[b] > a->max_seqlen_q) a->max_seqlen_q = c->rows_q[b];
        if (keys > a->max_seqlen_k) a->max_seqlen_k = keys;
    }
}

static void draw_attention(call *c) {
    tallow_attention_params *a = &c->params.a;
    const bool packed_q = one_in(2), packed_new = one_in(2);
    const int layout = (int)draw(3);
    const int64_t heads_kv = 1 + (int64_t)draw(3), heads = heads_kv * (1 + (int64_t)draw(4));
    const int64_t dim = draw_dim(false), dim_v = draw_dim(true);
    c->append = layout != 1 && one_in(2);
    draw_lengths(c, !packed_q, !packed_new);
    draw_query(c, a, packed_q, heads, dim, dim_v);
    draw_keys(c, a, layout, heads_kv, dim, dim_v);
    draw_append(c, a, packed_q, packed_new, heads_kv, dim, dim_v);
    draw_options(c, a, heads);
    for (int64_t b = 0; b < c->batch; b++) c->leftpad[b] = (int32_t)draw((uint64_t)c->used[b] + 1);
}

static void write_attention(call *c) {
    const tallow_attention_params *a = &c->params.a;
    put_starts(&a->cu_seqlens_q, c->rows_q, c->batch);
    put_starts(&a->cu_seqlens_k, c->used, c->batch);
    put_starts(&a->cu_seqlens_k_new, c->added, c->batch);
    for (int64_t b = 0; b < c->batch; b++) {
        put(&a->seqused_k, b, 0, c->used[b]);
        put(&a->leftpad_k, b, 0, c->leftpad[b]);
        put(&a->cache_batch_idx, b, 0, c->batch - 1 - b);
        for (int64_t j = 0; j < MOST_COLUMNS; j++) put(&a->block_table, b, j, b * c->columns + j);
    }
}

static void draw_rotary(call *c) {
    tallow_rotary_params *r = &c->params.r;
    const bool packed = one_in(2);
    const int32_t dtype = (int32_t)(1 + draw(3));
    const int64_t heads = (int64_t)draw(4), dim = 2 + (int64_t)draw(one_in(8) ? 1023 : 40);
    draw_lengths(c, !packed, true);
    const int64_t total = sum(c->rows_q, c->batch), rows = c->batch ? c->rows_q[0] : 1;
    r->x = packed ? tensor(dtype, total, heads, dim, 0) : tensor(dtype, c->batch, rows, heads, dim);
    r->out = r->x;
    if (packed) r->cu_seqlens = tensor(TALLOW_I32, c->batch + 1, 0, 0, 0);
    strided(&r->x, false);
    strided(&r->out, true);
    draw_angles(c, &r->rotary, dim);
    if (one_in(2))
        r->positions = draw_positions(&r->rotary, packed, c->batch, packed ? total : rows);
    else if (one_in(2))
        r->offset = tensor(TALLOW_I32, c->batch, 0, 0, 0);
    r->threads = 1 + (int32_t)draw(3);
}

static void write_rotary(call *c) {
    put_starts(&c->params.r.cu_seqlens, c->rows_q, c->batch);
    for (int64_t b = 0; b < c->batch; b++)
        put(&c->params.r.offset, b, 0, c->params.r.rotary.cos.dtype ? 7 : INT32_MAX - 99);
}

static void draw_merge(call *c) {
    tallow_merge_params *m = &c->params.m;
    const bool packed = one_in(2);
    const int64_t batch = (int64_t)draw(3), rows = (int64_t)draw(20), heads = 1 + (int64_t)draw(3);
    const int64_t dim = 1 + (int64_t)draw(70);
    tallow_tensor *const outs[] = {&m->out_a, &m->out_b, &m->out};
    tallow_tensor *const lses[] = {&m->lse_a, &m->lse_b, &m->lse};
    for (int i = 0; i < 3; i++) {
        const int32_t dtype = (int32_t)(1 + draw(3));
        *outs[i] =
            packed ? tensor(dtype, rows, heads, dim, 0) : tensor(dtype, batch, rows, heads, dim);
        strided(outs[i], i == 2);
        if (i == 2 && one_in(4)) break;
        *lses[i] = packed ? tensor(TALLOW_F32, heads, rows, 0, 0)
                          : tensor(TALLOW_F32, batch, heads, rows, 0);
        strided(lses[i], i == 2);
    }
    m->threads = 1 + (int32_t)draw(3);
    (void)c;
}

/* --------------------------------------------------------------------------------------------
 * Breaking them
 * ------------------------------------------------------------------------------------------ */

static int64_t hostile(int64_t now) {
    static const int64_t values[] = {0,
                                     1,
                                     -1,
                                     2,
                                     7,
                                     64,
                                     INT32_MAX,
                                     INT32_MIN,
                                     INT64_MAX,
                                     INT64_MIN,
                                     INT64_C(1) << 31,
                                     INT64_C(1) << 32,
                                     INT64_MAX / 2,
                                     INT64_MAX / 8,
                                     4096,
                                     4097};
    switch (draw(4)) {
    case 0: return (int64_t)((uint64_t)now + 1);
    case 1: return (int64_t)((uint64_t)now - 1);
    default: return values[draw(sizeof values / sizeof *values)];
    }
}

static float hostile_float(void) {
    const uint32_t bits = (uint32_t)draw(UINT64_C(1) << 32);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static tallow_tensor *draw_tensor(call *c) {
    const tensor_field *fields = tensor_fields[c->kind];
    uint64_t count = 0;
    while (fields[count].offset != SIZE_MAX) count++;
    return (tallow_tensor *)((char *)&c->params + fields[draw(count)].offset);
}

static void break_tensor(call *c) {
    tallow_tensor *t = draw_tensor(c);
    const uint64_t i = draw(4);
    switch (draw(6)) {
    case 0: t->shape[i] = hostile(t->shape[i]); break;
    case 1: t->strides[i] = hostile(t->strides[i]); break;
    case 2: t->dtype = (int32_t)hostile(t->dtype); break;
    case 3: t->reserved = (int32_t)draw(2); break;
    case 4: *t = (tallow_tensor){0}; break;
    default: *t = *draw_tensor(c); break;
    }
}

static void break_scalar(call *c) {
    const scalar_field *fields = scalar_fields[c->kind];
    uint64_t count = 0;
    while (fields[count].offset != SIZE_MAX) count++;
    const scalar_field f = fields[draw(count)];
    char *at = (char *)&c->params + f.offset;
    int64_t wide = 0;
    int32_t narrow;
    memcpy(&narrow, at, sizeof narrow);
    if (f.type == INT64) memcpy(&wide, at, sizeof wide);
    const int64_t value = hostile(f.type == INT64 ? wide : narrow);
    const float real = hostile_float();
    const double real_wide = real;
    narrow = (int32_t)value;
    if (f.type == INT32) memcpy(at, &narrow, sizeof narrow);
    if (f.type == INT64 || f.type == POINTER) memcpy(at, &value, sizeof(void *));
    if (f.type == FLOAT) memcpy(at, &real, sizeof real);
    if (f.type == DOUBLE) memcpy(at, &real_wide, sizeof real_wide);
}

/* Any entry of any vector of integers; now and then a pointer itself. */
static void break_data(void) {
    const int start = (int)draw((uint64_t)block_count);
    for (int i = 0; i < block_count; i++) {
        const block *b = &blocks[(start + i) % block_count];
        const int32_t dtype = b->tensor->dtype;
        if (!b->size || (dtype != TALLOW_I32 && dtype != TALLOW_I64)) continue;
        const size_t entry = (size_t)draw(b->size / dtype_size(dtype));
        char *at = b->memory + entry * dtype_size(dtype);
        int32_t now;
        memcpy(&now, at, sizeof now);
        const int64_t value = hostile(now);
        memcpy(at, &value, dtype_size(dtype));
        break;
    }
    if (!one_in(8)) return;
    tallow_tensor *t = blocks[start].tensor;
    t->data = one_in(2) || !t->data ? NULL : (void *)((uintptr_t)t->data | 1); /* misaligned */
}

/* --------------------------------------------------------------------------------------------
 * Running them
 * ------------------------------------------------------------------------------------------ */

static tallow_status run(kind what, const void *params, size_t size) {
    if (what == MERGE) return tallow_merge(params, size);
    return what == ROTARY ? tallow_rotary(params, size) : tallow_attention(params, size);
}

static void check_message(tallow_status status) {
    const char *message = tallow_last_error();
    CHECK((status == TALLOW_OK) == !*message);
    CHECK(status != TALLOW_INVALID_ARGUMENT || strstr(message, "must"));
}

/* What a GPU would run, without one. */
static void plan_gpu(const tallow_attention_params *a, size_t size) {
    static const char *const archs[] = {"sm_80", "sm_86", "sm_90a"};
    char text[512];
    tallow_attention_params gpu = {0};
    memcpy(&gpu, a, size < sizeof gpu ? size : sizeof gpu);
    gpu.device = TALLOW_DEVICE_CUDA;
    gpu.pack = NULL;
    const tallow_status status =
        tallow_attention_compile(&gpu, sizeof gpu, archs[draw(3)], text, sizeof text);
    check_message(status);
    CHECK(status == TALLOW_OK || status == TALLOW_UNSUPPORTED);
    CHECK(status != TALLOW_OK || strstr(text, "\ncompiled 0\n"));
}

/* The calls that plan: what they refuse is refused with data too. */
static void plan(const tallow_attention_params *a, size_t size, tallow_status status) {
    char text[4096], *cut = malloc(1 + draw(64));
    size_t bytes = 0;
    const tallow_status planned = tallow_attention_prepare(a, size);
    check_message(planned);
    CHECK(planned == TALLOW_OK || status != TALLOW_OK);
    CHECK(tallow_attention_workspace(a, size, &bytes) == planned);
    CHECK(tallow_attention_describe(a, size, text, sizeof text) == planned);
    CHECK(planned != TALLOW_OK || strlen(text) < sizeof text);
    CHECK(tallow_attention_describe(a, size, cut, 1) == planned);
    free(cut);
    if (planned == TALLOW_OK) plan_gpu(a, size);
}

/* Again, with scratch of exactly the size asked for, then with a byte too little. */
static void run_again(const call *c) {
    tallow_attention_params a = c->params.a;
    char *kept[MOST_TENSORS];
    size_t bytes = 0;
    for (int i = 0; i < block_count; i++) {
        kept[i] = malloc(blocks[i].size);
        if (blocks[i].size) memcpy(kept[i], blocks[i].memory, blocks[i].size);
    }
    restore_all();
    CHECK(tallow_attention_workspace(&a, sizeof a, &bytes) == TALLOW_OK);
    char *workspace = bytes ? aligned_alloc(256, (bytes + 255) / 256 * 256) : NULL;
    a.workspace = workspace;
    a.workspace_size = bytes;
    CHECK(tallow_attention(&a, sizeof a) == TALLOW_OK);
    for (int i = 0; i < block_count; i++) {
        CHECK(!blocks[i].size || !memcmp(kept[i], blocks[i].memory, blocks[i].size));
        free(kept[i]);
    }
    restore_all();
    if (bytes) {
        a.workspace_size = bytes - 1;
        CHECK(tallow_attention(&a, sizeof a) == TALLOW_WORKSPACE_TOO_SMALL);
        CHECK(unwritten(true));
    }
    free(workspace);
}

static void check_call(const call *c) {
    /* A copy exactly as long as said; a longer one has a tail that may be anything. */
    size_t size = params_sizes[c->kind];
    if (c->broken && one_in(16)) size = draw(2 * size);
    char *params = calloc(1, size ? size : 1);
    const size_t known = size < params_sizes[c->kind] ? size : params_sizes[c->kind];
    memcpy(params, &c->params, known);
    if (size > known && one_in(2)) params[known + draw(size - known)] = 1;

    const tallow_status status = run(c->kind, params, size);
    check_message(status);
    CHECK(unwritten(status != TALLOW_OK));
    CHECK(c->broken || status == TALLOW_OK);
    if (c->kind == ATTENTION) plan((const tallow_attention_params *)params, size, status);
    if (c->kind == ATTENTION && !c->broken) run_again(c);
    free(params);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char text[300];
    call c = {0};
    input = data;
    input_left = size;
    state = 1 + draw(UINT64_C(1) << 32);
    c.kind = (kind)(draw(4) % 3);
    if (c.kind == ATTENTION) draw_attention(&c);
    if (c.kind == ROTARY) draw_rotary(&c);
    if (c.kind == MERGE) draw_merge(&c);
    const uint64_t tensors = one_in(2) ? draw(3) : 0, scalars = one_in(2) ? draw(3) : 0;
    const uint64_t entries = one_in(2) ? draw(3) : 0;
    c.broken = tensors || scalars || entries;
    for (uint64_t i = 0; i < tensors; i++) break_tensor(&c);
    for (uint64_t i = 0; i < scalars; i++) break_scalar(&c);
    allocate_all(&c);
    if (c.kind == ATTENTION) write_attention(&c);
    if (c.kind == ROTARY) write_rotary(&c);
    for (uint64_t i = 0; i < entries; i++) break_data();
    remember_all();
    check_call(&c);
    free_all();
    if (one_in(64)) CHECK(tallow_system_describe(text, 1 + draw(sizeof text)) == TALLOW_OK);
    return 0;
}

#ifdef FUZZ_LIBFUZZER
static void failed(void) { abort(); }
#else
static uint64_t seed = 1, at;

static void one(void) {
    static uint8_t bytes[1024];
    uint64_t x =
        (seed + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ (at + 1) * UINT64_C(0xbf58476d1ce4e5b9);
    for (size_t i = 0; i < sizeof bytes; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes[i] = (uint8_t)(x >> 32);
    }
    LLVMFuzzerTestOneInput(bytes, sizeof bytes);
}

/* A sanitizer calls it before it ends the process. */
static void say_where(void) {
    fprintf(stderr, "repeat with: fuzz_params 0 %llu %llu\n", (unsigned long long)seed,
            (unsigned long long)at);
}
static void failed(void) {
    say_where();
    abort();
}

__attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)(void));

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int main(int argc, char **argv) {
    const double end = seconds() + (argc > 1 ? atof(argv[1]) : 30);
    if (argc > 2) seed = strtoull(argv[2], NULL, 10);
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(say_where);
    if (argc > 3) at = strtoull(argv[3], NULL, 10);
    if (argc > 3) return one(), 0;
    for (; seconds() < end; at++) one();
    printf("seed %llu: %llu calls\n", (unsigned long long)seed, (unsigned long long)at);
    return 0;
}
#endif
