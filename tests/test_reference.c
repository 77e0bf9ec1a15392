/* Each semantic worked out by hand on a few keys; both the reference and the library must say so.
 * Scores are logarithms of small integers, so that softmax weights are ratios of them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "expect.h"
#include "reference.h"

enum { MOST = 8, DIM = 8 };

static const float LOG1 = 0, LOG2 = 0.69314718f, LOG3 = 1.0986123f, LOG4 = 1.3862944f;
static const float QUARTER_TURN = 1.5707964f;

/* One dense call of up to eight rows each; a row's channel 0 says it all. The scale is 1. */
typedef struct {
    tallow_attention_params p;
    float q[MOST][DIM], k[MOST][DIM], v[MOST][DIM], k_new[MOST][DIM], v_new[MOST][DIM];
    float out[MOST * DIM], lse[MOST], vectors[4 * MOST];
    int32_t ints[4 * MOST];
    int used_ints, used_floats;
} tiny;

static tallow_tensor rows(void *data, int64_t batch, int64_t n, int64_t heads) {
    return (tallow_tensor){.data = data, .dtype = TALLOW_F32, .shape = {batch, n, heads, DIM}};
}

/* All queries ask for channel 0; keys score 0 until set. */
static tiny make(int64_t batch, int64_t seqlen_q, int64_t seqlen_k, int64_t heads,
                 int64_t heads_kv) {
    tiny t = {.p = {.softmax_scale = 1}};
    for (int i = 0; i < MOST; i++) t.q[i][0] = 1;
    t.p.q = rows(NULL, batch, seqlen_q, heads);
    t.p.k = t.p.v = rows(NULL, batch, seqlen_k, heads_kv);
    t.p.out = t.p.q;
    t.p.lse = (tallow_tensor){.dtype = TALLOW_F32, .shape = {batch, heads, seqlen_q}};
    return t;
}

static void set(float to[MOST][DIM], int n, const float *values) {
    for (int i = 0; i < n; i++) to[i][0] = values[i];
}
#define SET(to, ...)                                                                               \
    set(to, (int)(sizeof((const float[]){__VA_ARGS__}) / sizeof(float)),                           \
        (const float[]){__VA_ARGS__})

static tallow_tensor ints(tiny *t, int64_t n0, int64_t n1, int64_t n2, const int32_t *values) {
    int64_t count = n0 * (n1 ? n1 : 1) * (n2 ? n2 : 1);
    tallow_tensor tensor = {.dtype = TALLOW_I32, .shape = {n0, n1, n2}};
    tensor.data = t->ints + t->used_ints;
    memcpy(tensor.data, values, (size_t)count * sizeof *values);
    t->used_ints += (int)count;
    return tensor;
}
#define INTS(...)                                                                                  \
    (const int32_t[]) { __VA_ARGS__ }

static tallow_tensor floats(tiny *t, int64_t n0, int64_t n1, const float *values) {
    int64_t count = n0 * (n1 ? n1 : 1);
    tallow_tensor tensor = {.dtype = TALLOW_F32, .shape = {n0, n1}};
    tensor.data = t->vectors + t->used_floats;
    memcpy(tensor.data, values, (size_t)count * sizeof *values);
    t->used_floats += (int)count;
    return tensor;
}
#define FLOATS(...)                                                                                \
    (const float[]) { __VA_ARGS__ }

static bool near(double got, double expected) {
    return got == expected || fabs(got - expected) <= 2e-6 * (1 + fabs(expected));
}

/* Expects channel 0 of row i (in memory order of out) and its lse. */
static void expect_rows(const char *name, tiny *t, int n, const double *out, const double *lse) {
    double reference_out[MOST * DIM], reference_lse[MOST];
    t->p.q.data = t->q, t->p.k.data = t->k, t->p.v.data = t->v;
    t->p.out.data = t->out, t->p.lse.data = t->lse;
    if (t->p.k_new.dtype) t->p.k_new.data = t->k_new, t->p.v_new.data = t->v_new;
    reference_attention(&t->p, ARITHMETIC_F64, reference_out, reference_lse);
    tallow_status status = tallow_attention(&t->p, sizeof t->p);
    EXPECT(status == TALLOW_OK, "%s: %s", name, tallow_last_error());
    for (int i = 0; i < n; i++) {
        double said = reference_out[i * DIM], computed = (double)t->out[i * DIM];
        EXPECT(near(said, out[i]), "%s: reference row %d is %g, not %g", name, i, said, out[i]);
        EXPECT(near(computed, out[i]), "%s: row %d is %g, not %g", name, i, computed, out[i]);
        if (!lse) continue;
        EXPECT(near(reference_lse[i], lse[i]), "%s: reference lse %d is %g, not %g", name, i,
               reference_lse[i], lse[i]);
        EXPECT(near((double)t->lse[i], lse[i]), "%s: lse %d is %g, not %g", name, i,
               (double)t->lse[i], lse[i]);
    }
}
#define EXPECT_OUT(name, t, ...)                                                                   \
    expect_rows(name, t, (int)(sizeof((const double[]){__VA_ARGS__}) / sizeof(double)),            \
                (const double[]){__VA_ARGS__}, NULL)
#define ROWS(...)                                                                                  \
    (const double[]) { __VA_ARGS__ }

static void test_softmax(void) {
    tiny t = make(1, 1, 2, 1, 1);
    SET(t.k, LOG1, LOG3);
    SET(t.v, 4, 8);
    expect_rows("weights 1, 3", &t, 1, ROWS(7), ROWS(log(4)));
    t.p.softmax_scale = 2;
    expect_rows("scale 2", &t, 1, ROWS(7.6), ROWS(log(10)));
    t.p.softmax_scale = -1;
    expect_rows("scale -1", &t, 1, ROWS(5), ROWS(log(4.0 / 3)));
    t.p.softmax_scale = 0;
    SET(t.k, LOG1, LOG3 * 2.8284271f);
    expect_rows("scale 1 / sqrt(8)", &t, 1, ROWS(7), ROWS(log(4)));
}

static void test_scores(void) {
    tiny t = make(1, 1, 2, 1, 1);
    SET(t.k, LOG1, LOG3); /* 2 tanh(log(3) / 2) = 1 */
    SET(t.v, 4, 8);
    t.p.softcap = 2;
    expect_rows("softcap", &t, 1, ROWS((4 + 8 * exp(1)) / (1 + exp(1))), ROWS(log(1 + exp(1))));

    t = make(1, 1, 3, 1, 1);
    t.p.alibi_slopes = floats(&t, 1, 0, FLOATS(LOG2));
    SET(t.v, 7, 14, 28);
    expect_rows("alibi 1/4, 1/2, 1", &t, 1, ROWS(21), ROWS(log(1.75)));

    t = make(1, 2, 2, 1, 1);
    t.p.alibi_slopes = floats(&t, 1, 0, FLOATS(LOG2));
    SET(t.v, 3, 6);
    expect_rows("alibi on both sides", &t, 2, ROWS(4, 5), ROWS(log(1.5), log(1.5)));

    t = make(2, 1, 2, 2, 2);
    t.p.alibi_slopes = floats(&t, 2, 2, FLOATS(0, LOG2, LOG3, LOG4));
    SET(t.v, 60, 60, 0, 0, 60, 60, 0, 0);
    EXPECT_OUT("alibi (batch, heads)", &t, 30, 20, 15, 12);

    t = make(1, 1, 2, 1, 1);
    SET(t.k, LOG1, LOG3);
    SET(t.v, 4, 8);
    t.p.sinks = floats(&t, 1, 0, FLOATS(LOG4));
    expect_rows("sink", &t, 1, ROWS(3.5), ROWS(log(8)));
    t.p.sinks = floats(&t, 1, 0, FLOATS(2000)); /* beyond what exp reaches in f64 */
    expect_rows("sink above all", &t, 1, ROWS(0), ROWS(2000));
    t.p.sinks = floats(&t, 1, 0, FLOATS(-2000));
    expect_rows("sink below all", &t, 1, ROWS(7), ROWS(log(4)));
}

static void test_masks(void) {
    double none = -INFINITY;
    tiny t = make(1, 2, 3, 1, 1);
    t.p.mask = TALLOW_MASK_CAUSAL;
    SET(t.v, 3, 6, 12);
    expect_rows("causal", &t, 2, ROWS(4.5, 7), ROWS(log(2), log(3)));

    t = make(1, 3, 2, 1, 1);
    t.p.mask = TALLOW_MASK_CAUSAL;
    SET(t.v, 3, 6);
    expect_rows("causal, more queries", &t, 3, ROWS(0, 3, 4.5), ROWS(none, 0, log(2)));
    t.p.sinks = floats(&t, 1, 0, FLOATS(LOG2));
    expect_rows("empty row with a sink", &t, 3, ROWS(0, 1, 2.25), ROWS(none, log(3), log(4)));

    t = make(1, 4, 4, 1, 1);
    SET(t.v, 1, 2, 4, 8);
    t.p.mask = TALLOW_MASK_WINDOW;
    t.p.window_left = 1;
    EXPECT_OUT("window 1, 0", &t, 1, 1.5, 3, 6);
    t.p.window_left = 0, t.p.window_right = 1;
    EXPECT_OUT("window 0, 1", &t, 1.5, 3, 6, 8);
    t.p.window_left = -1, t.p.window_right = 0;
    EXPECT_OUT("window -1, 0", &t, 1, 1.5, 7.0 / 3, 3.75);
    t.p.window_left = 0, t.p.window_right = -1;
    EXPECT_OUT("window 0, -1", &t, 3.75, 14.0 / 3, 6, 8);

    t = make(1, 4, 4, 1, 1);
    SET(t.v, 1, 2, 4, 8);
    t.p.mask = TALLOW_MASK_CAUSAL;
    t.p.prefix_ranges = ints(&t, 1, 3, 2, INTS(3, 3, 1, 3, 4, 0));
    EXPECT_OUT("prefix range", &t, 1, 7.0 / 3, 7.0 / 3, 3.75);

    t = make(1, 2, 4, 1, 1); /* positions 2 and 3 */
    SET(t.v, 1, 2, 4, 8);
    t.p.mask = TALLOW_MASK_WINDOW;
    t.p.prefix_ranges = ints(&t, 1, 1, 2, INTS(1, 3));
    EXPECT_OUT("prefix range of the first position", &t, 3, 8);
}

/* Keys worth 1, 2, 4, ..., so that the output spells which were kept. */
static void test_dropout(void) {
    tiny t = make(1, 1, 4, 1, 1);
    SET(t.v, 1, 2, 4, 8);
    t.p.dropout_p = 0.5f; /* words 6627e8d5 e169c58d bc57ac4c 9b00dbd8, as published */
    expect_rows("dropout 1/2", &t, 1, ROWS(7), ROWS(log(4)));
    t.p.dropout_p = 0.75f;
    expect_rows("dropout 3/4", &t, 1, ROWS(2), ROWS(log(4)));

    t = make(2, 2, 4, 2, 2);
    t.p.dropout_p = 0.5f;
    t.p.dropout_seed = UINT64_C(0x0123456789abcdef);
    t.p.dropout_offset = UINT64_C(0xfedcba9876543210);
    t.p.v.strides[1] = DIM, t.p.v.strides[3] = 1; /* both sequences and heads read the same */
    t.p.k = t.p.v;
    SET(t.v, 1, 2, 4, 8);
    EXPECT_OUT("dropout counters", &t, 4, 3.5, 1, 5.5, 3.5, 5, 3, 0);
}

static void test_layouts(void) {
    tiny t = make(1, 1, 2, 4, 2);
    SET(t.v, 1, 10, 3, 30); /* key 0 of both heads, then key 1 */
    EXPECT_OUT("grouped heads", &t, 2, 2, 20, 20);

    t = make(1, 5, 6, 1, 1);
    t.p.q.shape[0] = t.p.out.shape[0] = 5, t.p.k.shape[0] = t.p.v.shape[0] = 6;
    for (int i = 0; i < 4; i++) {
        tallow_tensor *each[] = {&t.p.q, &t.p.out, &t.p.k, &t.p.v};
        each[i]->shape[1] = 1, each[i]->shape[2] = DIM, each[i]->shape[3] = 0;
    }
    t.p.lse = (tallow_tensor){.dtype = TALLOW_F32, .shape = {1, 5}};
    t.p.cu_seqlens_q = ints(&t, 4, 0, 0, INTS(0, 2, 2, 5));
    t.p.cu_seqlens_k = ints(&t, 4, 0, 0, INTS(0, 3, 4, 6));
    t.p.mask = TALLOW_MASK_CAUSAL;
    SET(t.v, 3, 6, 12, 100, 40, 60);
    expect_rows("packed", &t, 5, ROWS(4.5, 7, 0, 40, 50),
                ROWS(log(2), log(3), -INFINITY, 0, log(2)));

    t = make(2, 1, 4, 1, 1);
    SET(t.v, 1, 3, 5, 7, 10, 30, 50, 70);
    t.p.seqused_k = ints(&t, 2, 0, 0, INTS(2, 3));
    expect_rows("seqused", &t, 2, ROWS(2, 30), ROWS(log(2), log(3)));
    t.p.leftpad_k = ints(&t, 2, 0, 0, INTS(1, 0));
    expect_rows("leftpad", &t, 2, ROWS(3, 30), ROWS(0, log(3)));
    t.p.cache_batch_idx = ints(&t, 2, 0, 0, INTS(1, 0));
    expect_rows("cache_batch_idx", &t, 2, ROWS(30, 3), ROWS(0, log(3)));

    t = make(2, 1, 2, 1, 1); /* four pages of two keys */
    t.p.k = t.p.v = rows(NULL, 4, 2, 1);
    SET(t.v, 1, 3, 5, 7, 10, 30, 50, 70);
    t.p.block_table = ints(&t, 2, 2, 0, INTS(3, 0, 1, -7));
    t.p.seqused_k = ints(&t, 2, 0, 0, INTS(3, 1));
    expect_rows("paged", &t, 2, ROWS(121.0 / 3, 5), ROWS(log(3), 0));
}

/* A quarter turn takes channel 0 to the channel it is paired with. */
static void test_rotary(void) {
    tiny t = make(1, 1, 4, 1, 1);
    t.p.k_new = t.p.v_new = rows(NULL, 1, 1, 1);
    t.p.seqused_k = ints(&t, 1, 0, 0, INTS(1));
    SET(t.k, LOG3);
    SET(t.k_new, LOG4);
    SET(t.v, 1);
    SET(t.v_new, 8);
    expect_rows("append", &t, 1, ROWS(5), ROWS(log(7)));
    EXPECT(t.k[1][0] == LOG4 && t.v[1][0] == 8, "append: wrote %g, %g", (double)t.k[1][0],
           (double)t.v[1][0]);

    /* q and k_new are both at position 1: their product is 1; the old key lies along 0. */
    t.p.rotary.rotary_dim = 4;
    t.p.rotary.inv_freq = floats(&t, 2, 0, FLOATS(QUARTER_TURN, 0));
    expect_rows("rotary, half", &t, 1, ROWS(33.0 / 5), ROWS(log(5)));
    EXPECT(near((double)t.k[1][2], log(4)) && near((double)t.k[1][0], 0), "rotary, half: k %g, %g",
           (double)t.k[1][0], (double)t.k[1][2]);
    t.p.rotary.pairing = TALLOW_PAIRING_INTERLEAVED;
    expect_rows("rotary, interleaved", &t, 1, ROWS(33.0 / 5), ROWS(log(5)));
    EXPECT(near((double)t.k[1][1], log(4)) && near((double)t.k[1][0], 0),
           "rotary, interleaved: k %g, %g", (double)t.k[1][0], (double)t.k[1][1]);
    t.p.positions_q = ints(&t, 1, 1, 0, INTS(4));
    t.p.positions_k_new = ints(&t, 1, 1, 0, INTS(2));
    expect_rows("rotary, half a turn apart", &t, 1, ROWS((3 + 2) / 3.25), ROWS(log(3.25)));
    t.p.rotary.attention_factor = 2; /* of q and of k_new */
    expect_rows("attention factor", &t, 1, ROWS((9 + 8.0 / 256) / (9 + 1.0 / 256)),
                ROWS(log(9 + 1.0 / 256)));
}

/* Positions time 1, height 2, width 0 at a quarter turn each: k_new tells which pair took which. */
static void test_mrope(void) {
    static const int turns[3][4] = {
        [TALLOW_MROPE_CHUNKED] = {1, 1, 2, 0}, [TALLOW_MROPE_INTERLEAVED] = {1, 2, 0, 1}};
    for (int form = TALLOW_MROPE_CHUNKED; form <= TALLOW_MROPE_INTERLEAVED; form++) {
        tiny t = make(1, 1, 4, 1, 1);
        t.p.k_new = t.p.v_new = rows(NULL, 1, 1, 1);
        t.p.seqused_k = ints(&t, 1, 0, 0, INTS(0));
        t.p.rotary.rotary_dim = 8;
        t.p.rotary.inv_freq =
            floats(&t, 4, 0, FLOATS(QUARTER_TURN, QUARTER_TURN, QUARTER_TURN, QUARTER_TURN));
        t.p.rotary.mrope = form;
        memcpy(t.p.rotary.mrope_sections, INTS(2, 1, 1), 3 * sizeof(int32_t));
        t.p.positions_q = t.p.positions_k_new = ints(&t, 3, 1, 1, INTS(1, 2, 0));
        for (int i = 0; i < 4; i++) t.k_new[0][i] = 1;
        SET(t.v_new, 8);
        EXPECT_OUT("mrope", &t, 8);
        for (int i = 0; i < 4; i++) {
            double angle = turns[form][i] * (double)QUARTER_TURN, key[DIM];
            reference_key(&t.p, ARITHMETIC_F64, false, 0, 0, 0, key);
            EXPECT(near(key[i], cos(angle)) && near(key[i + 4], sin(angle)),
                   "mrope %d: reference turns pair %d to %g, %g", form, i, key[i], key[i + 4]);
            EXPECT(near((double)t.k[0][i], cos(angle)) && near((double)t.k[0][i + 4], sin(angle)),
                   "mrope %d: pair %d turns to %g, %g", form, i, (double)t.k[0][i],
                   (double)t.k[0][i + 4]);
        }
    }
}

static void test_propagation(void) {
    tiny t = make(1, 3, 3, 1, 1);
    t.p.mask = TALLOW_MASK_CAUSAL;
    SET(t.v, 2, NAN, 4);
    EXPECT_OUT("hidden NaN", &t, 2);
    EXPECT(isnan(t.out[DIM]) && isnan(t.out[2 * DIM]), "visible NaN: %g, %g", (double)t.out[DIM],
           (double)t.out[2 * DIM]);
    SET(t.v, 2, 4, 6);
    SET(t.k, 0, 0, NAN);
    expect_rows("hidden NaN in k", &t, 2, ROWS(2, 3), ROWS(0, log(2)));
    EXPECT(isnan(t.out[2 * DIM]) && isnan(t.lse[2]), "visible NaN in k: %g",
           (double)t.out[2 * DIM]);
    SET(t.k, 0, 0, -INFINITY);
    expect_rows("a key at -inf", &t, 3, ROWS(2, 3, 3), ROWS(0, log(2), log(2)));
}

/* Every 16-bit pattern: loading, storing and rounding agree with each other and the formats. */
static void test_formats(void) {
    static const int32_t dtypes[] = {TALLOW_F16, TALLOW_BF16};
    for (int f = 0; f < 2; f++) {
        for (uint32_t i = 0; i < 65536; i++) {
            uint16_t bits = (uint16_t)i, back = 0;
            double value = reference_load(&bits, dtypes[f], 0);
            if (isnan(value)) continue;
            reference_store(&back, dtypes[f], 0, value);
            EXPECT(back == bits, "dtype %d: %04x is %g, stored as %04x", (int)dtypes[f], i, value,
                   back);
        }
    }
    EXPECT(reference_round(TALLOW_BF16, 1.00390625) == 1, "a tie goes to even, down");
    EXPECT(reference_round(TALLOW_BF16, 1.01171875) == 1.015625, "a tie goes to even, up");
    EXPECT(reference_round(TALLOW_F16, 65519) == 65504, "below the tie with infinity");
    EXPECT(isinf(reference_round(TALLOW_F16, 65520)), "beyond the largest");
    EXPECT(reference_round(TALLOW_F16, 0x1.8p-24) == 0x1p-23, "denormals round to even");
    EXPECT(reference_round(TALLOW_F16, 0x1p-26) == 0, "below half the least denormal");
    uint16_t two = 0x4000, third = 0x3eab;
    EXPECT(reference_load(&two, TALLOW_F16, 0) == 2, "f16 4000 is 2");
    EXPECT(reference_load(&two, TALLOW_BF16, 0) == 2, "bf16 4000 is 2");
    EXPECT(reference_load(&third, TALLOW_BF16, 0) == 0.333984375, "bf16 3eab is 171/512");
}

int main(void) {
    test_softmax();
    test_scores();
    test_masks();
    test_dropout();
    test_layouts();
    test_rotary();
    test_mrope();
    test_propagation();
    test_formats();
    return expect_report();
}
