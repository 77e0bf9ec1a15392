#include "candle_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "reference.h"

/* As candle declares them, in its own order. */
void run_mha(const void *q, const void *k, const void *v, const void *o, const void *softmax_lse,
             const void *alibi_slopes, const int32_t *cu_seqlens_q, const int32_t *cu_seqlens_k,
             uint32_t q_batch_stride, uint32_t k_batch_stride, uint32_t v_batch_stride,
             uint32_t o_batch_stride, uint32_t alibi_slopes_batch_stride, uint32_t q_row_stride,
             uint32_t k_row_stride, uint32_t v_row_stride, uint32_t o_row_stride,
             uint32_t q_head_stride, uint32_t k_head_stride, uint32_t v_head_stride,
             uint32_t o_head_stride, uint32_t b, uint32_t h, uint32_t h_k, uint32_t d,
             uint32_t d_rounded, float softmax_scale, uint32_t seqlen_q, uint32_t seqlen_k,
             uint32_t seqlen_q_rounded, uint32_t seqlen_k_rounded,
#if CANDLE_ARGUMENTS == 45
             uint32_t total_q, int is_bf16, int is_causal, int unpadded_lse, int window_size_left,
             int window_size_right, float softcap, const int32_t *block_table,
             uint32_t block_table_batch_stride, int page_block_size,
             const int32_t *mm_prefix_ranges, uint32_t mm_prefix_range_batch_stride,
             int max_mm_prefix_ranges, void *stream);
#else
             int is_bf16, int is_causal, int unpadded_lse, int window_size_left,
             int window_size_right, float softcap);
#endif
void run_mha_v3(const void *q, const void *k, const void *v, const void *o, const void *softmax_lse,
                const void *alibi_slopes, const void *tile_count_semaphore,
                const int32_t *cu_seqlens_q, const int32_t *cu_seqlens_k, uint32_t q_batch_stride,
                uint32_t k_batch_stride, uint32_t v_batch_stride, uint32_t o_batch_stride,
                uint32_t alibi_slopes_batch_stride, uint32_t q_row_stride, uint32_t k_row_stride,
                uint32_t v_row_stride, uint32_t o_row_stride, uint32_t q_head_stride,
                uint32_t k_head_stride, uint32_t v_head_stride, uint32_t o_head_stride, uint32_t b,
                uint32_t h, uint32_t h_k, uint32_t d, uint32_t d_rounded, float softmax_scale,
                uint32_t seqlen_q, uint32_t seqlen_k, uint32_t seqlen_q_rounded,
                uint32_t seqlen_k_rounded, int is_bf16, int is_causal, int unpadded_lse,
                int use_gqa_packing, int window_size_left, int window_size_right, uint32_t total_q,
                uint32_t total_k, void *stream);

static void *must(void *memory) {
    if (!memory) abort();
    return memory;
}

static int32_t dtype_of(const model *m) { return m->o.bf16 ? TALLOW_BF16 : TALLOW_F16; }

/* ---- building ---- */

static uint16_t *values(const model *m, size_t count, double divisor, uint64_t seed) {
    uint16_t *x = must(malloc((count + 1) * sizeof *x));
    for (size_t i = 0; i < count; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        double random = ((double)(seed >> 33) * 0x1p-31 - 0.5) * 4;
        reference_store(x, dtype_of(m), (int64_t)i, m->o.counting ? (double)i / divisor : random);
    }
    return x;
}

static int cumulate(int32_t *cu, const int *lengths, int batch, bool packed, int *longest) {
    *longest = 0;
    for (int b = 0; b < batch; b++) {
        const int length = lengths[packed ? b : 0];
        cu[b + 1] = cu[b] + length;
        if (length > *longest) *longest = length;
    }
    return cu[batch];
}

/* Candle's test transposes (heads, rows, d) that count; its heads are our rows. */
static void transpose(uint16_t *x, int rows, int heads, int d) {
    const size_t bytes = (size_t)rows * (size_t)heads * (size_t)d * sizeof *x;
    uint16_t *from = must(malloc(bytes));
    memcpy(from, x, bytes);
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < heads; h++)
            memcpy(x + (r * heads + h) * d, from + (h * rows + r) * d, (size_t)d * sizeof *x);
    free(from);
}

void model_build(model *m, const model_options *o) {
    *m = (model){.o = *o};
    m->total_q = cumulate(m->cu_q, o->seqlen_q, o->batch, o->packed, &m->max_q);
    m->total_k = cumulate(m->cu_k, o->seqlen_k, o->batch, o->packed, &m->max_k);
    if (o->max_seqlen) m->max_q = m->max_k = o->max_seqlen;
    const size_t rows_q = (size_t)(m->total_q * o->heads), d = (size_t)o->head_dim;
    const size_t rows_k = (size_t)(m->total_k * o->heads_kv);
    m->q = values(m, rows_q * d, 30, 1);
    m->k = values(m, rows_k * d, 40, 2);
    m->v = values(m, rows_k * d, 50, 3);
    if (o->counting) {
        transpose(m->q, m->total_q, o->heads, o->head_dim);
        transpose(m->k, m->total_k, o->heads_kv, o->head_dim);
        transpose(m->v, m->total_k, o->heads_kv, o->head_dim);
    }
    for (int h = 0; h < o->heads; h++) m->slopes[h] = exp2f(-(float)(h + 1)) * 0.5f;
    m->out = must(malloc((rows_q * d + 1) * sizeof *m->out));
    m->lse = must(calloc(rows_q + 1, sizeof *m->lse));
}

void model_free(model *m) { free(m->q), free(m->k), free(m->v), free(m->out), free(m->lse); }

/* ---- what the result should be ---- */

static tallow_tensor packed(const model *m, void *data, int rows, int heads) {
    return (tallow_tensor){
        .data = data, .dtype = dtype_of(m), .shape = {rows, heads, m->o.head_dim}};
}

static tallow_tensor ints(void *data, int64_t size) {
    return (tallow_tensor){.data = data, .dtype = TALLOW_I32, .shape = {size}};
}

void model_reference(const model *m, double *out, double *lse) {
    const model_options *o = &m->o;
    int32_t cu_q[MODEL_BATCH + 1], cu_k[MODEL_BATCH + 1], ranges[MODEL_BATCH][MODEL_RANGES][2];
    float slopes[64];
    memcpy(cu_q, m->cu_q, sizeof cu_q);
    memcpy(cu_k, m->cu_k, sizeof cu_k);
    memcpy(ranges, o->ranges, sizeof ranges);
    memcpy(slopes, m->slopes, sizeof slopes);
    tallow_attention_params p = {.q = packed(m, m->q, m->total_q, o->heads),
                                 .k = packed(m, m->k, m->total_k, o->heads_kv),
                                 .v = packed(m, m->v, m->total_k, o->heads_kv),
                                 .cu_seqlens_q = ints(cu_q, o->batch + 1),
                                 .cu_seqlens_k = ints(cu_k, o->batch + 1),
                                 .softmax_scale = o->scale != 0 ? o->scale : 1e-30f,
                                 .softcap = o->softcap};
    if (o->left || o->right) {
        p.mask = TALLOW_MASK_WINDOW;
        p.window_left = o->left - SOME(0);
        p.window_right = o->right - SOME(0);
        if (o->max_ranges)
            p.prefix_ranges = (tallow_tensor){.data = ranges,
                                              .dtype = TALLOW_I32,
                                              .shape = {o->batch, o->max_ranges, 2},
                                              .strides = {2 * MODEL_RANGES, 2, 1}};
    }
    if (o->alibi)
        p.alibi_slopes = (tallow_tensor){.data = slopes, .dtype = TALLOW_F32, .shape = {o->heads}};
    p.out = p.q;
    reference_attention(&p, ARITHMETIC_F64, out, lse);
}

size_t model_lse_at(const model *m, int b, int row, int head) {
    if (m->o.packed) return (size_t)(head * m->total_q + m->cu_q[b] + row);
    return (size_t)((b * m->o.heads + head) * m->o.seqlen_q[0] + row);
}

/* ---- the arguments ---- */

typedef struct {
    uint16_t *host;
    size_t count;
    uint32_t batch, row, head; /* strides */
} laid_out;

/* Rows in candle's memory: dense (batch, rows, heads, d) or packed (rows, heads, d), or the same
 * with heads outside the rows. What no row lies in is NaN. */
static laid_out lay_out(const model *m, const uint16_t *rows, const int32_t *cu, int heads) {
    const model_options *o = &m->o;
    const int total = cu[o->batch], d = o->head_dim, length = o->packed ? total : cu[1];
    laid_out t = {.count = (size_t)(total * heads * d)};
    t.row = (uint32_t)(o->heads_first ? d : heads * d);
    t.head = (uint32_t)(o->heads_first ? length * d : d);
    t.batch = o->packed ? 0 : (uint32_t)(length * heads * d);
    t.host = must(malloc((t.count + 1) * sizeof *t.host));
    for (int r = 0; r < total; r++)
        for (int h = 0; h < heads; h++)
            memcpy(t.host + (length ? r / length : 0) * (int)t.batch +
                       (length ? r % length : 0) * (int)t.row + h * (int)t.head,
                   rows + (r * heads + h) * d, (size_t)d * sizeof *rows);
    return t;
}

enum { COLUMNS = 192 };

/* The page of a column: no two alike, far from each other. */
static int page_of(const model *m, int b, int column) {
    const int pages = m->o.batch * COLUMNS;
    return (b * COLUMNS + column) * 77 % pages; /* 77 has no factor in common with 192 b */
}

static laid_out lay_out_pages(const model *m, const uint16_t *rows) {
    const model_options *o = &m->o;
    const int d = o->head_dim, heads = o->heads_kv, row = heads * d;
    laid_out t = {.batch = (uint32_t)(o->page * row), .row = (uint32_t)row, .head = (uint32_t)d};
    t.count = (size_t)(o->batch * COLUMNS) * t.batch;
    t.host = must(malloc(t.count * sizeof *t.host));
    memset(t.host, 0xff, t.count * sizeof *t.host); /* NaN */
    for (int b = 0; b < o->batch; b++)
        for (int j = 0; j < m->cu_k[b + 1] - m->cu_k[b]; j++)
            memcpy(t.host + (size_t)page_of(m, b, j / o->page) * t.batch + j % o->page * row,
                   rows + (size_t)(m->cu_k[b] + j) * (size_t)row, (size_t)row * sizeof *rows);
    return t;
}

/* Everything that candle passes, made as its wrappers make it. */
typedef struct {
    const model *m;
    laid_out q, k, v, o;
    void *q_data, *k_data, *v_data, *o_data, *lse, *slopes, *cu_q, *cu_k, *table, *ranges, *counter;
    int left, right, is_causal;
    void *stream;
} arguments;

static void windows(arguments *a) {
    const model *m = a->m;
    const int left = m->o.left - SOME(0), right = m->o.right - SOME(0);
    a->left = left <= m->max_k ? left : -1;
    a->right = right <= m->max_k ? right : -1;
    if (m->o.max_ranges && a->left < 0 && a->right == 0) a->left = m->max_k;
    a->is_causal = a->left < 0 && a->right == 0;
    if (a->left < 0 && a->right >= 0) a->left = m->max_k;
    if (a->left >= 0 && a->right < 0) a->right = m->max_k;
}

static uint32_t up(int x, int multiple) {
    return (uint32_t)((x + multiple - 1) / multiple * multiple);
}

static void call_v3(const arguments *a) {
    const model *m = a->m;
    const model_options *o = &m->o;
    run_mha_v3(a->q_data, a->k_data, a->v_data, a->o_data, a->lse, a->slopes, a->counter, a->cu_q,
               a->cu_k, a->q.batch, a->k.batch, a->v.batch, a->o.batch, 0, a->q.row, a->k.row,
               a->v.row, a->o.row, a->q.head, a->k.head, a->v.head, a->o.head, (uint32_t)o->batch,
               (uint32_t)o->heads, (uint32_t)o->heads_kv, (uint32_t)o->head_dim,
               up(o->head_dim, 32), o->scale, (uint32_t)m->max_q, (uint32_t)m->max_k,
               up(m->max_q, 128), up(m->max_k, 128), o->bf16, a->is_causal, o->packed, 1, a->left,
               a->right, o->packed ? (uint32_t)m->total_q : 0, o->packed ? (uint32_t)m->total_k : 0,
               a->stream);
}

static void call(void *argument) {
    const arguments *a = argument;
    const model *m = a->m;
    const model_options *o = &m->o;
    if (o->v3) {
        call_v3(a);
        return;
    }
    run_mha(a->q_data, a->k_data, a->v_data, a->o_data, a->lse, a->slopes, a->cu_q, a->cu_k,
            a->q.batch, a->k.batch, a->v.batch, a->o.batch, 0, a->q.row, a->k.row, a->v.row,
            a->o.row, a->q.head, a->k.head, a->v.head, a->o.head, (uint32_t)o->batch,
            (uint32_t)o->heads, (uint32_t)o->heads_kv, (uint32_t)o->head_dim, up(o->head_dim, 32),
            o->scale, (uint32_t)m->max_q, (uint32_t)m->max_k, up(m->max_q, 128), up(m->max_k, 128),
#if CANDLE_ARGUMENTS == 45
            (uint32_t)m->total_q, o->bf16, a->is_causal, o->packed, a->left, a->right, o->softcap,
            a->table, a->table ? COLUMNS : 0, o->packed ? o->page : -1, a->ranges,
            a->ranges ? 2 * MODEL_RANGES : 0, o->max_ranges, a->stream);
#else
            o->bf16, a->is_causal, o->packed, a->left, a->right, o->softcap);
#endif
}

/* ---- running ---- */

/* Nothing has no address. */
static void *send(const case_device *d, const void *host, size_t bytes) {
    return bytes ? d->upload(d->context, host, bytes) : NULL;
}

static void take(const case_device *d, void *host, void *memory, size_t bytes) {
    if (memory) d->download(d->context, host, memory, bytes);
}

/* What was only read. */
static void drop(const case_device *d, void *memory) {
    char byte;
    take(d, &byte, memory, 1);
}

static void send_lists(arguments *a, const case_device *d) {
    const model *m = a->m;
    int32_t table[MODEL_BATCH * COLUMNS], zero = 0;
    if (m->o.packed) {
        a->cu_q = send(d, m->cu_q, sizeof m->cu_q);
        a->cu_k = send(d, m->cu_k, sizeof m->cu_k);
    }
    for (int b = 0; b < m->o.batch; b++)
        for (int c = 0; c < COLUMNS; c++)
            table[b * COLUMNS + c] =
                c * m->o.page < m->cu_k[b + 1] - m->cu_k[b] ? page_of(m, b, c) : 1 << 30;
    if (m->o.page) a->table = send(d, table, sizeof table);
    if (m->o.max_ranges) a->ranges = send(d, m->o.ranges, sizeof m->o.ranges);
    if (m->o.alibi) a->slopes = send(d, m->slopes, sizeof m->slopes);
    a->counter = send(d, &zero, sizeof zero);
}

void model_run(model *m, const case_device *d, model_during during) {
    const size_t lse_bytes = (size_t)(m->total_q * m->o.heads) * sizeof *m->lse;
    arguments a = {.m = m, .stream = d->stream};
    a.q = lay_out(m, m->q, m->cu_q, m->o.heads);
    a.k = m->o.page ? lay_out_pages(m, m->k) : lay_out(m, m->k, m->cu_k, m->o.heads_kv);
    a.v = m->o.page ? lay_out_pages(m, m->v) : lay_out(m, m->v, m->cu_k, m->o.heads_kv);
    a.o = (laid_out){.count = a.q.count,
                     .batch = a.q.batch,
                     .row = (uint32_t)(m->o.heads * m->o.head_dim),
                     .head = (uint32_t)m->o.head_dim};
    windows(&a);
    memset(m->out, 0xff, a.o.count * sizeof *m->out);
    memset(m->lse, 0, lse_bytes);
    a.q_data = send(d, a.q.host, a.q.count * sizeof *a.q.host);
    a.k_data = send(d, a.k.host, a.k.count * sizeof *a.k.host);
    a.v_data = send(d, a.v.host, a.v.count * sizeof *a.v.host);
    a.o_data = send(d, m->out, a.o.count * sizeof *m->out);
    a.lse = send(d, m->lse, lse_bytes);
    send_lists(&a, d);
    if (during)
        during(call, &a);
    else
        call(&a);
    take(d, m->out, a.o_data, a.o.count * sizeof *m->out);
    take(d, m->lse, a.lse, lse_bytes);
    void *const read[] = {a.q_data, a.k_data, a.v_data, a.cu_q,   a.cu_k,
                          a.table,  a.ranges, a.slopes, a.counter};
    for (size_t i = 0; i < sizeof read / sizeof *read; i++) drop(d, read[i]);
    free(a.q.host), free(a.k.host), free(a.v.host);
}
