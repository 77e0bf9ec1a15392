/* Every layout, pairing and source of positions and angles of tallow_rotary against plain loops in
 * long double; 16-bit results against the f32 result rounded once. */
#include <math.h>
#include <stdlib.h>

#include "expect.h"
#include "problem.h"

typedef enum { CONTIGUOUS, PADDED, HEADS_FIRST, REVERSED } arrangement;

typedef struct {
    const char *name;
    int64_t heads, head_dim, rotary_dim;
    int32_t pairing, mrope, sections[3];
    int32_t positions;   /* dtype; 0: implicit */
    int32_t table_dtype; /* 0: no tables */
    bool packed, offset, inv_freq, in_place;
    arrangement x, out;
    float factor;
    double theta;
    int32_t threads;
} setup;

#define SHAPE(h, d, r) .heads = h, .head_dim = d, .rotary_dim = r
#define INTERLEAVED    .pairing = TALLOW_PAIRING_INTERLEAVED
#define CHUNKED(...)   .mrope = TALLOW_MROPE_CHUNKED, .sections = {__VA_ARGS__}
#define SPREAD(...)    .mrope = TALLOW_MROPE_INTERLEAVED, .sections = {__VA_ARGS__}

static const setup setups[] = {
    {"plain", SHAPE(2, 16, 0)},
    {"interleaved", SHAPE(2, 16, 0), INTERLEAVED},
    {"partial", SHAPE(2, 24, 10)},
    {"partial interleaved", SHAPE(3, 24, 10), INTERLEAVED, .in_place = true},
    {"theta", SHAPE(1, 128, 0), .theta = 1e6, .positions = TALLOW_I64},
    {"odd head_dim", SHAPE(2, 7, 6)},
    {"widest", SHAPE(1, 1024, 0), .positions = TALLOW_I32},
    {"offset", SHAPE(2, 16, 0), .offset = true},
    {"i32 positions", SHAPE(2, 16, 0), .positions = TALLOW_I32},
    {"i64 positions", SHAPE(2, 16, 0), .positions = TALLOW_I64, .x = PADDED},
    {"packed", SHAPE(2, 16, 0), .packed = true},
    {"packed, offset", SHAPE(2, 16, 0), .packed = true, .offset = true, .threads = 3},
    {"packed, i32 positions", SHAPE(2, 16, 0), .packed = true, .positions = TALLOW_I32},
    {"packed, reversed", SHAPE(2, 16, 0), .packed = true, .out = REVERSED},
    {"padded", SHAPE(3, 16, 0), .x = PADDED, .out = PADDED, .offset = true},
    {"heads first", SHAPE(3, 16, 0), .x = HEADS_FIRST, .out = CONTIGUOUS},
    {"reversed", SHAPE(3, 16, 0), .x = REVERSED, .out = HEADS_FIRST},
    {"in place", SHAPE(2, 16, 0), .in_place = true},
    {"in place, reversed", SHAPE(2, 16, 0), .in_place = true, .x = REVERSED},
    {"inv_freq", SHAPE(2, 16, 0), .inv_freq = true, .positions = TALLOW_I32},
    {"factor", SHAPE(2, 16, 12), .factor = 1.25f},
    {"f32 tables", SHAPE(2, 16, 0), .table_dtype = TALLOW_F32},
    {"f16 tables", SHAPE(2, 16, 0), .table_dtype = TALLOW_F16, .offset = true},
    {"bf16 tables", SHAPE(2, 16, 8), .factor = 0.5f, .table_dtype = TALLOW_BF16,
     .positions = TALLOW_I64},
    {"chunked", SHAPE(2, 32, 0), CHUNKED(4, 6, 6), .positions = TALLOW_I32},
    {"chunked, tables", SHAPE(2, 32, 0), CHUNKED(4, 6, 6), .positions = TALLOW_I32,
     .table_dtype = TALLOW_F32},
    {"chunked, implicit", SHAPE(2, 32, 0), CHUNKED(4, 6, 6), .offset = true},
    {"spread", SHAPE(2, 32, 0), SPREAD(8, 5, 3), .positions = TALLOW_I64},
    {"spread, packed", SHAPE(2, 40, 32), SPREAD(6, 5, 5), INTERLEAVED, .positions = TALLOW_I32,
     .packed = true, .x = PADDED},
};

enum {
    BATCH = 3,
    SEQLEN = 5,
    ROWS = BATCH * SEQLEN,
    SPARE = 64,       /* elements before and after every tensor */
    TABLE_ROWS = 64,  /* positions stay below when there are tables */
    LARGEST = 100000, /* other positions */
    POSITION_ROW = ROWS + 8,
    MAX_PAIRS = 512
};

/* Packed: an empty sequence, and rows of no sequence at both ends. */
static int32_t cu_seqlens[BATCH + 1] = {1, 5, 5, ROWS - 2};
static int32_t offsets[BATCH] = {7, 1, 30};

/* Everything a call points to. */
typedef struct {
    const setup *s;
    int32_t dtype;
    tallow_rotary_params p;
    rows_view x, out;
    char *x_memory, *out_memory, *out_before;
    size_t bytes; /* of each */
    int32_t positions32[3 * POSITION_ROW];
    int64_t positions64[3 * POSITION_ROW];
    float inv_freq[MAX_PAIRS];
    char cos[TABLE_ROWS * (MAX_PAIRS + 3) * 4], sin[TABLE_ROWS * (MAX_PAIRS + 3) * 4];
} scene;

static int64_t pairs_of(const setup *s) {
    return (s->rotary_dim ? s->rotary_dim : s->head_dim) / 2;
}

static uint32_t hash(int64_t i) {
    uint32_t h = (uint32_t)i * 0x9e3779b9u;
    h = (h ^ h >> 16) * 0x45d9f3bu;
    h = (h ^ h >> 16) * 0x45d9f3bu;
    return h ^ h >> 16;
}

static rows_view arrange(const scene *c, arrangement how, char *memory) {
    const setup *s = c->s;
    int64_t head = s->head_dim, row = head * s->heads, batch = row * SEQLEN, first = SPARE;
    if (how == PADDED) head += 3, row = head * s->heads + 5, batch = row * SEQLEN + 7;
    if (how == HEADS_FIRST) row = s->head_dim, head = row * SEQLEN;
    if (how == REVERSED) first += row * (s->packed ? ROWS - 1 : SEQLEN - 1), row = -row;
    return (rows_view){memory + first * (int64_t)tallow_dtype_size(c->dtype), s->packed ? 0 : batch,
                       row, head, c->dtype};
}

static tallow_tensor tensor_of(const scene *c, const rows_view *v, arrangement how) {
    const setup *s = c->s;
    tallow_tensor dense = {v->data,
                           {BATCH, SEQLEN, s->heads, s->head_dim},
                           {v->batch_stride, v->row_stride, v->head_stride, 1},
                           c->dtype,
                           0};
    tallow_tensor packed = {
        v->data, {ROWS, s->heads, s->head_dim}, {v->row_stride, v->head_stride, 1}, c->dtype, 0};
    tallow_tensor t = s->packed ? packed : dense;
    if (how == CONTIGUOUS) memset(t.strides, 0, sizeof t.strides);
    return t;
}

/* Rows are counted through all sequences. */
static char *row_of(const scene *c, const rows_view *v, int64_t row, int64_t head) {
    int64_t b = c->s->packed ? 0 : row / SEQLEN;
    return tallow_rows_at(v, b, row - b * SEQLEN, head);
}

static bool owned(const setup *s, int64_t row) {
    return !s->packed || (row >= cu_seqlens[0] && row < cu_seqlens[BATCH]);
}

/* With gaps between M-RoPE rows and, when dense, between sequences. */
static void give_positions(scene *c) {
    const setup *s = c->s;
    uint32_t below = s->table_dtype ? TABLE_ROWS : LARGEST;
    for (int i = 0; i < 3 * POSITION_ROW; i++)
        c->positions64[i] = c->positions32[i] = (int32_t)(hash(i + 99) % below);
    tallow_tensor *t = &c->p.positions;
    *t = (tallow_tensor){.data = c->positions32, .dtype = s->positions};
    if (s->positions == TALLOW_I64) t->data = c->positions64;
    int n = 0;
    if (s->mrope) t->shape[n] = 3, t->strides[n++] = POSITION_ROW;
    if (!s->packed) t->shape[n] = BATCH, t->strides[n++] = SEQLEN + 1;
    t->shape[n] = s->packed ? ROWS : SEQLEN, t->strides[n] = 1;
}

static void give_tables(scene *c) {
    int64_t pairs = pairs_of(c->s), stride = pairs + 3;
    tallow_tensor t = {
        .dtype = c->s->table_dtype, .shape = {TABLE_ROWS, pairs}, .strides = {stride, 1}};
    for (int64_t i = 0; i < TABLE_ROWS * stride; i++) {
        tallow_store(c->cos, t.dtype, i, (float)(hash(i) % 1000) / 500 - 1);
        tallow_store(c->sin, t.dtype, i, (float)(hash(i + 77777) % 1000) / 500 - 1);
    }
    c->p.rotary.cos = c->p.rotary.sin = t;
    c->p.rotary.cos.data = c->cos;
    c->p.rotary.sin.data = c->sin;
}

static void give_options(scene *c) {
    const setup *s = c->s;
    tallow_rotary_params *p = &c->p;
    p->threads = s->threads;
    p->rotary.rotary_dim = s->rotary_dim;
    p->rotary.theta = s->theta;
    p->rotary.attention_factor = s->factor;
    p->rotary.pairing = s->pairing;
    p->rotary.mrope = s->mrope;
    memcpy(p->rotary.mrope_sections, s->sections, sizeof s->sections);
    for (int i = 0; i < MAX_PAIRS; i++) c->inv_freq[i] = (float)(hash(i) % 1000) / 777;
    if (s->inv_freq)
        p->rotary.inv_freq =
            (tallow_tensor){.data = c->inv_freq, .dtype = TALLOW_F32, .shape = {pairs_of(s)}};
    if (s->offset)
        p->offset = (tallow_tensor){.data = offsets, .dtype = TALLOW_I32, .shape = {BATCH}};
    if (s->packed)
        p->cu_seqlens =
            (tallow_tensor){.data = cu_seqlens, .dtype = TALLOW_I32, .shape = {BATCH + 1}};
    if (s->positions) give_positions(c);
    if (s->table_dtype) give_tables(c);
}

/* Multiples of 1/64, which all dtypes hold. Beyond rotary_dim signalling NaNs, which no conversion
 * would leave as they are; in every gap NaN. */
static void fill(scene *c) {
    size_t size = tallow_dtype_size(c->dtype);
    memset(c->out_memory, 0x5a, c->bytes);
    memset(c->x_memory, 0xff, c->bytes);
    for (int64_t row = 0; row < ROWS; row++)
        for (int64_t head = 0; head < c->s->heads; head++)
            for (int64_t i = 0; i < c->s->head_dim; i++) {
                char *x = row_of(c, &c->x, row, head);
                uint32_t signalling = size == 2 ? 0x7f81 : 0x7f800001;
                float value = (float)(hash((row * 8 + head) * 2048 + i) % 255) / 64 - 2;
                tallow_store(x, c->dtype, i, value);
                if (i >= 2 * pairs_of(c->s)) memcpy(x + (size_t)i * size, &signalling, size);
            }
    memcpy(c->out_before, c->out_memory, c->bytes);
}

static scene *build(const setup *s, int32_t dtype) {
    scene *c = calloc(1, sizeof *c);
    c->s = s;
    c->dtype = dtype;
    c->bytes = (size_t)(2 * SPARE + ROWS * (s->heads * (s->head_dim + 3) + 12)) * 4;
    c->x_memory = malloc(c->bytes);
    c->out_memory = s->in_place ? c->x_memory : malloc(c->bytes);
    c->out_before = malloc(c->bytes);
    c->x = arrange(c, s->x, c->x_memory);
    c->out = s->in_place ? c->x : arrange(c, s->out, c->out_memory);
    c->p.x = tensor_of(c, &c->x, s->x);
    c->p.out = tensor_of(c, &c->out, s->in_place ? s->x : s->out);
    give_options(c);
    fill(c);
    return c;
}

static void discard(scene *c) {
    if (c->out_memory != c->x_memory) free(c->out_memory);
    free(c->x_memory);
    free(c->out_before);
    free(c);
}

/* --------------------------------------------------------------------------------------------
 * The same in plain loops
 * ------------------------------------------------------------------------------------------ */

static int64_t position_of(const scene *c, int64_t row, int mrope_row) {
    const setup *s = c->s;
    int64_t b = row / SEQLEN, t = row % SEQLEN;
    if (s->positions) {
        int64_t index = s->packed ? row : b * (SEQLEN + 1) + t;
        if (s->mrope) index += mrope_row * POSITION_ROW;
        return s->positions == TALLOW_I64 ? c->positions64[index] : c->positions32[index];
    }
    if (s->packed)
        for (b = 0; row >= cu_seqlens[b + 1]; b++) continue;
    if (s->packed) t = row - cu_seqlens[b];
    return t + (s->offset ? offsets[b] : 0);
}

static int mrope_row_of(const setup *s, int64_t pair) {
    if (s->mrope == TALLOW_MROPE_CHUNKED)
        return pair < s->sections[0] ? 0 : pair < s->sections[0] + s->sections[1] ? 1 : 2;
    if (s->mrope != TALLOW_MROPE_INTERLEAVED) return 0;
    if (pair % 3 == 1 && pair < 3 * s->sections[1]) return 1;
    if (pair % 3 == 2 && pair < 3 * s->sections[2]) return 2;
    return 0;
}

static void angle_of(const scene *c, int64_t row, int64_t pair, long double *cos_out,
                     long double *sin_out) {
    const setup *s = c->s;
    int64_t position = position_of(c, row, mrope_row_of(s, pair)), pairs = pairs_of(s);
    long double factor = s->factor != 0 ? (long double)s->factor : 1;
    if (s->table_dtype) {
        int64_t index = position * (pairs + 3) + pair;
        *cos_out = factor * tallow_load(c->cos, s->table_dtype, index);
        *sin_out = factor * tallow_load(c->sin, s->table_dtype, index);
        return;
    }
    long double theta = s->theta != 0 ? s->theta : 10000;
    long double frequency = powl(theta, -(long double)pair / pairs);
    if (s->inv_freq) frequency = c->inv_freq[pair];
    *cos_out = factor * cosl(position * frequency);
    *sin_out = factor * sinl(position * frequency);
}

static void expect_head(const scene *c, const scene *before, int64_t row, int64_t head) {
    const setup *s = c->s;
    int64_t pairs = pairs_of(s);
    const char *x = row_of(before, &before->x, row, head), *out = row_of(c, &c->out, row, head);
    for (int64_t pair = 0; pair < pairs; pair++) {
        bool half = s->pairing == TALLOW_PAIRING_HALF;
        int64_t i = half ? pair : 2 * pair, j = half ? pair + pairs : 2 * pair + 1;
        long double a = tallow_load(x, TALLOW_F32, i), b = tallow_load(x, TALLOW_F32, j);
        long double cosine, sine;
        angle_of(c, row, pair, &cosine, &sine);
        double wrong =
            fmax(fabs(tallow_load(out, TALLOW_F32, i) - (double)(a * cosine - b * sine)),
                 fabs(tallow_load(out, TALLOW_F32, j) - (double)(b * cosine + a * sine)));
        EXPECT(wrong < 4e-7 * 2, "%s: row %d, head %d, pair %d: off by %g", s->name, (int)row,
               (int)head, (int)pair, wrong);
    }
}

/* --------------------------------------------------------------------------------------------
 * Tests
 * ------------------------------------------------------------------------------------------ */

static void call(scene *c) {
    tallow_status status = tallow_rotary(&c->p, sizeof c->p);
    EXPECT(status == TALLOW_OK, "%s: %s", c->s->name, tallow_last_error());
}

/* Elements beyond rotary_dim arrive bit for bit, and nothing else is written. */
static void expect_rest(const scene *c, const scene *before) {
    size_t size = tallow_dtype_size(c->dtype), rotated = 2 * (size_t)pairs_of(c->s) * size;
    size_t all = (size_t)c->s->head_dim * size;
    for (int64_t row = 0; row < ROWS; row++)
        for (int64_t head = 0; head < c->s->heads; head++) {
            const char *x = row_of(before, &before->x, row, head);
            char *out = row_of(c, &c->out, row, head);
            if (!owned(c->s, row)) continue;
            EXPECT(!memcmp(x + rotated, out + rotated, all - rotated),
                   "%s, dtype %d: tail of row %d", c->s->name, c->dtype, (int)row);
            memcpy(c->out_before + (out - c->out_memory), out, all);
        }
    EXPECT(!memcmp(c->out_before, c->out_memory, c->bytes), "%s, dtype %d: wrote outside",
           c->s->name, c->dtype);
}

/* The 16-bit result is the f32 result rounded once. */
static void expect_rounded(const scene *narrow, const scene *wide) {
    for (int64_t row = 0; row < ROWS; row++)
        for (int64_t head = 0; head < wide->s->heads && owned(wide->s, row); head++)
            for (int64_t i = 0; i < 2 * pairs_of(wide->s); i++) {
                const char *exact = row_of(wide, &wide->out, row, head);
                char rounded[4];
                tallow_store(rounded, narrow->dtype, 0, tallow_load(exact, TALLOW_F32, i));
                EXPECT(!memcmp(rounded, row_of(narrow, &narrow->out, row, head) + 2 * i, 2),
                       "%s, dtype %d: row %d, head %d, element %d", wide->s->name, narrow->dtype,
                       (int)row, (int)head, (int)i);
            }
}

static void test_setup(const setup *s) {
    scene *wide = build(s, TALLOW_F32), *before = build(s, TALLOW_F32);
    call(wide);
    for (int64_t row = 0; row < ROWS; row++)
        for (int64_t head = 0; head < s->heads && owned(s, row); head++)
            expect_head(wide, before, row, head);
    expect_rest(wide, before);
    for (int32_t dtype = TALLOW_F16; dtype <= TALLOW_BF16; dtype++) {
        scene *narrow = build(s, dtype), *narrow_before = build(s, dtype);
        call(narrow);
        expect_rounded(narrow, wide);
        expect_rest(narrow, narrow_before);
        discard(narrow);
        discard(narrow_before);
    }
    discard(wide);
    discard(before);
}

/* Text has three equal rows of positions: the bits of plain rotary. */
static void test_equal_rows(void) {
    static const setup plain = {"text", SHAPE(2, 32, 0), .positions = TALLOW_I32, .packed = true};
    for (int32_t form = TALLOW_MROPE_CHUNKED; form <= TALLOW_MROPE_INTERLEAVED; form++) {
        setup text = plain;
        text.mrope = form;
        memcpy(text.sections, (int32_t[]){6, 5, 5}, sizeof text.sections);
        scene *a = build(&plain, TALLOW_BF16), *b = build(&text, TALLOW_BF16);
        b->p.positions.strides[0] = 0;
        call(a);
        call(b);
        EXPECT(!memcmp(a->out_memory, b->out_memory, a->bytes), "form %d", form);
        discard(a);
        discard(b);
    }
}

/* Any number of threads gives the same bits. */
static void test_threads(void) {
    static const setup one = {"threads", SHAPE(3, 64, 0), .offset = true, .threads = 1};
    for (int32_t threads = 2; threads <= 5; threads++) {
        setup many = one;
        many.threads = threads;
        scene *a = build(&one, TALLOW_F32), *b = build(&many, TALLOW_F32);
        call(a);
        call(b);
        EXPECT(!memcmp(a->out_memory, b->out_memory, a->bytes), "%d threads", threads);
        discard(a);
        discard(b);
    }
}

static void test_nothing_to_do(void) {
    static const setup s = {"no tokens", SHAPE(2, 16, 0)};
    for (int i = 0; i < 2; i++) {
        scene *c = build(&s, TALLOW_F32);
        c->p.x.shape[i] = c->p.out.shape[i] = 0;
        call(c);
        EXPECT(!memcmp(c->out_before, c->out_memory, c->bytes), "dimension %d is 0", i);
        discard(c);
    }
}

int main(void) {
    for (size_t i = 0; i < sizeof setups / sizeof *setups; i++) test_setup(&setups[i]);
    test_equal_rows();
    test_threads();
    test_nothing_to_do();
    return expect_report();
}
