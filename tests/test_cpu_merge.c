/* tallow_merge against attention over the union of the keys in double, in every layout and dtype;
 * empty sides, infinities and NaN. */
#include <math.h>
#include <stdlib.h>

#include "expect.h"
#include "problem.h"

enum { BATCH = 2, SEQLEN = 3, HEADS = 3, ROWS = BATCH * SEQLEN, KEYS = 7, MAX_DIM = 300 };

typedef enum { OUT_APART, OUT_OVER_A, OUT_OVER_B } place;

typedef struct {
    const char *name;
    int32_t dtype_a, dtype_b, dtype_out;
    int64_t dim;
    bool packed, padded, no_lse;
    place out;
    int32_t threads;
} setup;

#define DTYPES(a, b, o) .dtype_a = TALLOW_##a, .dtype_b = TALLOW_##b, .dtype_out = TALLOW_##o

static const setup setups[] = {
    {"f32", DTYPES(F32, F32, F32), .dim = 8},
    {"f16", DTYPES(F16, F16, F16), .dim = 8},
    {"bf16", DTYPES(BF16, BF16, BF16), .dim = 8},
    {"mixed", DTYPES(BF16, F32, F16), .dim = 8, .padded = true},
    {"long rows", DTYPES(F32, BF16, F32), .dim = MAX_DIM, .threads = 2},
    {"odd rows", DTYPES(F16, F16, F32), .dim = 257, .padded = true},
    {"packed", DTYPES(F32, F32, F32), .dim = 8, .packed = true},
    {"packed, padded", DTYPES(F32, F32, BF16), .dim = 8, .packed = true, .padded = true},
    {"padded", DTYPES(F32, F32, F32), .dim = 8, .padded = true, .threads = 4},
    {"no lse", DTYPES(F32, F32, F32), .dim = 8, .no_lse = true},
    {"over a", DTYPES(BF16, F32, BF16), .dim = 300, .out = OUT_OVER_A},
    {"over b", DTYPES(F32, F16, F16), .dim = 300, .out = OUT_OVER_B, .padded = true},
    {"over a, no lse", DTYPES(F32, F32, F32), .dim = 8, .out = OUT_OVER_A, .no_lse = true},
};

/* One side: attention over `keys` keys, some none, rounded to its dtype; rows are counted through
 * all sequences. */
typedef struct {
    rows_view rows;
    int64_t lse_batch, lse_head;
    float *lse;
    char *memory;
} side;

static uint32_t hash(int64_t i) {
    uint32_t h = (uint32_t)i * 0x9e3779b9u;
    h = (h ^ h >> 16) * 0x45d9f3bu;
    h = (h ^ h >> 16) * 0x45d9f3bu;
    return h ^ h >> 16;
}

static double random_unit(int64_t i) { return (double)hash(i) / 0x1p31 - 1; }

static double score(int64_t row, int64_t head, int64_t key) {
    return 6 * random_unit((row * HEADS + head) * 64 + key);
}

static double value(int64_t row, int64_t head, int64_t key, int64_t i) {
    return random_unit(100000 + ((row * HEADS + head) * 64 + key) * MAX_DIM + i);
}

/* Keys of the two sides: any split, an empty side and two empty sides included. */
static int64_t split(int64_t row, int64_t head) { return (row * HEADS + head) % (KEYS + 1); }
static int64_t keys_of(int64_t row, int64_t head) { return row == 4 && head == 1 ? 0 : KEYS; }

/* Attention over keys [first, last) in double. */
static void attend(int64_t row, int64_t head, int64_t first, int64_t last, int64_t dim, double *out,
                   double *lse) {
    double sum = 0;
    for (int64_t i = 0; i < dim; i++) out[i] = 0;
    for (int64_t key = first; key < last; key++) {
        double weight = exp(score(row, head, key));
        for (int64_t i = 0; i < dim; i++) out[i] += weight * value(row, head, key, i);
        sum += weight;
    }
    for (int64_t i = 0; i < dim && sum > 0; i++) out[i] /= sum;
    *lse = log(sum);
}

static side make_side(const setup *s, int32_t dtype) {
    int64_t head = s->dim + (s->padded ? 5 : 0), row = head * HEADS + (s->padded ? 3 : 0);
    int64_t gap = s->padded ? 9 : 0, lse_gap = s->padded ? 2 : 0;
    size_t bytes = (size_t)(ROWS * row + BATCH * gap) * 4;
    side made = {.memory = malloc(bytes), .lse = malloc(2 * ROWS * HEADS * sizeof(float) + 64)};
    made.rows = (rows_view){made.memory, s->packed ? 0 : SEQLEN * row + gap, row, head, dtype};
    made.lse_head = (s->packed ? ROWS : SEQLEN) + lse_gap;
    made.lse_batch = s->packed ? 0 : HEADS * made.lse_head + lse_gap;
    memset(made.memory, 0xff, bytes);
    return made;
}

static char *out_at(const setup *s, const side *x, int64_t row, int64_t head) {
    int64_t b = s->packed ? 0 : row / SEQLEN;
    return tallow_rows_at(&x->rows, b, row - b * SEQLEN, head);
}

static float *lse_at(const setup *s, const side *x, int64_t row, int64_t head) {
    int64_t b = s->packed ? 0 : row / SEQLEN;
    return &x->lse[b * x->lse_batch + head * x->lse_head + row - b * SEQLEN];
}

/* An empty side holds NaN: nothing may read it. */
static void fill_side(const setup *s, side *x, bool second) {
    for (int64_t row = 0; row < ROWS; row++)
        for (int64_t head = 0; head < HEADS; head++) {
            double out[MAX_DIM], lse;
            int64_t cut = split(row, head), keys = keys_of(row, head);
            if (cut > keys) cut = keys;
            attend(row, head, second ? cut : 0, second ? keys : cut, s->dim, out, &lse);
            *lse_at(s, x, row, head) = (float)lse;
            for (int64_t i = 0; i < s->dim; i++)
                tallow_store(out_at(s, x, row, head), x->rows.dtype, i,
                             lse == -INFINITY ? NAN : (float)out[i]);
        }
}

static tallow_tensor out_tensor(const setup *s, const side *x) {
    const rows_view *v = &x->rows;
    tallow_tensor dense = {
        .data = v->data, .dtype = v->dtype, .shape = {BATCH, SEQLEN, HEADS, s->dim}};
    tallow_tensor packed = {.data = v->data, .dtype = v->dtype, .shape = {ROWS, HEADS, s->dim}};
    int64_t strides[4] = {v->batch_stride, v->row_stride, v->head_stride, 1};
    if (s->padded) memcpy(dense.strides, strides, sizeof strides);
    if (s->padded) memcpy(packed.strides, strides + 1, 3 * sizeof *strides);
    return s->packed ? packed : dense;
}

static tallow_tensor lse_tensor(const setup *s, const side *x) {
    tallow_tensor dense = {.data = x->lse,
                           .dtype = TALLOW_F32,
                           .shape = {BATCH, HEADS, SEQLEN},
                           .strides = {x->lse_batch, x->lse_head, 1}};
    tallow_tensor packed = {
        .data = x->lse, .dtype = TALLOW_F32, .shape = {HEADS, ROWS}, .strides = {x->lse_head, 1}};
    return s->packed ? packed : dense;
}

/* Between the roundings of want - slack and want + slack. */
static bool close_to(float got, double want, double slack, int32_t dtype) {
    float low, high;
    char rounded[4];
    tallow_store(rounded, dtype, 0, (float)(want - slack));
    low = tallow_load(rounded, dtype, 0);
    tallow_store(rounded, dtype, 0, (float)(want + slack));
    high = tallow_load(rounded, dtype, 0);
    return got >= low && got <= high;
}

/* The formula, in double, on what the sides hold. */
static double merged(double lse_a, double a, double lse_b, double b) {
    double weight_a = exp(lse_a), weight_b = exp(lse_b);
    if (weight_a + weight_b == 0) return 0;
    return ((weight_a > 0 ? weight_a * a : 0) + (weight_b > 0 ? weight_b * b : 0)) /
           (weight_a + weight_b);
}

static void expect_row(const setup *s, const side *a, const side *b, const side *out, int64_t row,
                       int64_t head) {
    double whole[MAX_DIM], lse, rounding = 0;
    float lse_a = *lse_at(s, a, row, head), lse_b = *lse_at(s, b, row, head);
    attend(row, head, 0, keys_of(row, head), s->dim, whole, &lse);
    if (s->dtype_a != TALLOW_F32 || s->dtype_b != TALLOW_F32) rounding = 0x1p-8;
    for (int64_t i = 0; i < s->dim; i++) {
        float in_a = tallow_load(out_at(s, a, row, head), s->dtype_a, i);
        float in_b = tallow_load(out_at(s, b, row, head), s->dtype_b, i);
        float got = tallow_load(out_at(s, out, row, head), s->dtype_out, i);
        EXPECT(close_to(got, merged(lse_a, in_a, lse_b, in_b), 1e-6, s->dtype_out),
               "%s: row %d, head %d, element %d: %g", s->name, (int)row, (int)head, (int)i,
               (double)got);
        EXPECT(close_to(got, whole[i], 2e-6 + rounding, s->dtype_out),
               "%s: row %d, head %d, element %d: %g, not attention's %g", s->name, (int)row,
               (int)head, (int)i, (double)got, whole[i]);
    }
    if (s->no_lse) return;
    float got = *lse_at(s, out, row, head);
    EXPECT(got == lse || fabs(got - lse) < 1e-6 * fmax(1, fabs(lse)),
           "%s: row %d, head %d: lse %.9g, not %.9g", s->name, (int)row, (int)head, (double)got,
           lse);
}

static void test_setup(const setup *s) {
    side a = make_side(s, s->dtype_a), b = make_side(s, s->dtype_b),
         apart = make_side(s, s->dtype_out);
    side a_before = make_side(s, s->dtype_a), b_before = make_side(s, s->dtype_b);
    side *out = s->out == OUT_OVER_A ? &a : s->out == OUT_OVER_B ? &b : &apart;
    fill_side(s, &a, false);
    fill_side(s, &a_before, false);
    fill_side(s, &b, true);
    fill_side(s, &b_before, true);
    tallow_merge_params p = {.out_a = out_tensor(s, &a),
                             .lse_a = lse_tensor(s, &a),
                             .out_b = out_tensor(s, &b),
                             .lse_b = lse_tensor(s, &b),
                             .out = out_tensor(s, out),
                             .threads = s->threads};
    if (!s->no_lse) p.lse = lse_tensor(s, out);
    EXPECT(tallow_merge(&p, sizeof p) == TALLOW_OK, "%s: %s", s->name, tallow_last_error());
    for (int64_t row = 0; row < ROWS; row++)
        for (int64_t head = 0; head < HEADS; head++)
            expect_row(s, &a_before, &b_before, out, row, head);
    side *all[] = {&a, &b, &apart, &a_before, &b_before};
    for (int i = 0; i < 5; i++) free(all[i]->memory), free(all[i]->lse);
}

/* --------------------------------------------------------------------------------------------
 * Special values
 * ------------------------------------------------------------------------------------------ */

typedef struct {
    float lse_a, out_a, lse_b, out_b, lse, out; /* what goes in, and what must come out */
} special;

static const special specials[] = {
    {-INFINITY, NAN, -INFINITY, INFINITY, -INFINITY, 0},
    {-INFINITY, NAN, 2.5f, 0.3f, 2.5f, 0.3f},
    {2.5f, 0.3f, -INFINITY, INFINITY, 2.5f, 0.3f},
    {2.5f, NAN, -INFINITY, 1, 2.5f, NAN},
    {-200, NAN, 200, 1, 200, NAN}, /* a tiny weight is no empty side */
    {200, INFINITY, -200, 1, 200, INFINITY},
    {-200, 5, 200, 0.7f, 200, 0.7f},
    {3e38f, 5, -3e38f, 1, 3e38f, 5},
    {0, 1, -17.5f, 0, 2.5109991e-8f, 1}, /* below f32's spacing at 1 */
    {1e-3f, 1, 1e-3f, 3, 0.69414718f, 2},
    {NAN, 1, 2, 1, NAN, NAN},
    {2, 1, NAN, 1, NAN, NAN},
    {NAN, 1, -INFINITY, 1, NAN, NAN},
    {-INFINITY, 1, NAN, 1, NAN, NAN},
    {NAN, 1, NAN, 1, NAN, NAN},
    {INFINITY, 7, 3, 1, INFINITY, 7},
    {3, 1, INFINITY, 7, INFINITY, 7},
    {INFINITY, NAN, -INFINITY, 1, INFINITY, NAN},
};

static bool same(float got, float want) {
    return isnan(want) ? isnan(got) : got == want || fabsf(got - want) <= 2e-7f * fabsf(want);
}

static void test_special(const special *x) {
    float out = -9, lse = -9, out_a = x->out_a, out_b = x->out_b, lse_a = x->lse_a,
          lse_b = x->lse_b;
    tallow_tensor row = {.dtype = TALLOW_F32, .shape = {1, 1, 1, 1}};
    tallow_tensor number = {.dtype = TALLOW_F32, .shape = {1, 1, 1}};
    tallow_merge_params p = {row, number, row, number, row, number, NULL, 0, 0};
    p.out_a.data = &out_a, p.out_b.data = &out_b, p.out.data = &out;
    p.lse_a.data = &lse_a, p.lse_b.data = &lse_b, p.lse.data = &lse;
    EXPECT(tallow_merge(&p, sizeof p) == TALLOW_OK, "%s", tallow_last_error());
    EXPECT(same(out, x->out) && same(lse, x->lse), "(%g, %g) and (%g, %g) gave (%g, %.9g)",
           (double)x->lse_a, (double)x->out_a, (double)x->lse_b, (double)x->out_b, (double)lse,
           (double)out);
}

int main(void) {
    for (size_t i = 0; i < sizeof setups / sizeof *setups; i++) test_setup(&setups[i]);
    for (size_t i = 0; i < sizeof specials / sizeof *specials; i++) test_special(&specials[i]);
    return expect_report();
}
