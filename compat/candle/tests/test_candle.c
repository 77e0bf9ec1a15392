/* run_mha and run_mha_v3 as candle's wrappers call them, against the f64 reference: every Rust
 * function's argument pattern, the shapes and values of candle's own tests, packed causal calls,
 * and decoding over pages. */
#include "candle_model.h"

#include <math.h>
#include <stdlib.h>

#include "expect.h"
#include "reference.h"

#define CAUSAL .right = SOME(0)

/* clang-format off */
static const model_options calls[] = {
    {"flash_attn", .batch = 2, .heads = 4, .heads_kv = 2, .head_dim = 64, .seqlen_q = {37},
     .seqlen_k = {53}, .scale = 0.125f},
    {"flash_attn, causal, transposed", .batch = 2, .heads = 4, .heads_kv = 2, .head_dim = 64,
     .seqlen_q = {37}, .seqlen_k = {53}, .scale = 0.125f, CAUSAL, .heads_first = true},
    {"flash_attn, causal, more queries than keys", .batch = 2, .heads = 2, .heads_kv = 2,
     .head_dim = 32, .seqlen_q = {40}, .seqlen_k = {17}, .scale = 0.2f, CAUSAL, .bf16 = true},
    {"flash_attn, scale 0", .batch = 1, .heads = 2, .heads_kv = 1, .head_dim = 32,
     .seqlen_q = {9}, .seqlen_k = {33}, .scale = 0},
    {"flash_attn, one token of many", .batch = 2, .heads = 8, .heads_kv = 2, .head_dim = 128,
     .seqlen_q = {1}, .seqlen_k = {5000}, .scale = 0.088f, .bf16 = true},
    {"flash_attn_windowed", .batch = 2, .heads = 4, .heads_kv = 4, .head_dim = 40,
     .seqlen_q = {50}, .seqlen_k = {70}, .scale = 0.15f, .left = SOME(11), .right = SOME(3)},
    {"flash_attn_windowed, left only", .batch = 2, .heads = 4, .heads_kv = 4, .head_dim = 40,
     .seqlen_q = {50}, .seqlen_k = {70}, .scale = 0.15f, .left = SOME(11), .bf16 = true},
    {"flash_attn_windowed, right only", .batch = 2, .heads = 4, .heads_kv = 4, .head_dim = 40,
     .seqlen_q = {50}, .seqlen_k = {70}, .scale = 0.15f, .right = SOME(5)},
    {"flash_attn_windowed, beyond the keys", .batch = 2, .heads = 4, .heads_kv = 4,
     .head_dim = 40, .seqlen_q = {50}, .seqlen_k = {70}, .scale = 0.15f, .left = SOME(71),
     .right = SOME(0)},
    {"flash_attn_alibi", .batch = 2, .heads = 6, .heads_kv = 3, .head_dim = 96,
     .seqlen_q = {31}, .seqlen_k = {45}, .scale = 0.1f, CAUSAL, .alibi = true},
    {"flash_attn_alibi_windowed", .batch = 2, .heads = 6, .heads_kv = 3, .head_dim = 96,
     .seqlen_q = {31}, .seqlen_k = {45}, .scale = 0.1f, .left = SOME(9), .right = SOME(0),
     .alibi = true, .bf16 = true},
    {"flash_attn_alibi_windowed_softcap", .batch = 1, .heads = 4, .heads_kv = 2,
     .head_dim = 160, .seqlen_q = {31}, .seqlen_k = {45}, .scale = 0.3f, .left = SOME(20),
     .right = SOME(2), .alibi = true, .softcap = 2},
    {"flash_attn_varlen", .packed = true, .batch = 3, .heads = 4, .heads_kv = 1,
     .head_dim = 64, .seqlen_q = {5, 0, 33}, .seqlen_k = {7, 4, 40}, .scale = 0.125f},
    {"flash_attn_varlen, causal", .packed = true, .batch = 4, .heads = 4, .heads_kv = 2,
     .head_dim = 128, .seqlen_q = {17, 1, 44, 12}, .seqlen_k = {17, 30, 44, 5}, .scale = 0.09f,
     CAUSAL, .bf16 = true},
    {"flash_attn_varlen, causal, transposed, no keys", .packed = true, .batch = 3, .heads = 2,
     .heads_kv = 2, .head_dim = 24, .seqlen_q = {6, 8, 2}, .seqlen_k = {10, 0, 2}, .scale = 0.2f,
     CAUSAL, .heads_first = true},
    {"flash_attn_varlen, no keys at all", .packed = true, .batch = 2, .heads = 2, .heads_kv = 1,
     .head_dim = 32, .seqlen_q = {3, 4}, .seqlen_k = {0, 0}, .scale = 0.2f},
    {"flash_attn_varlen_windowed", .packed = true, .batch = 2, .heads = 4, .heads_kv = 2,
     .head_dim = 64, .seqlen_q = {20, 31}, .seqlen_k = {50, 31}, .scale = 0.125f,
     .left = SOME(7), .right = SOME(1)},
    {"flash_attn_varlen_alibi", .packed = true, .batch = 2, .heads = 4, .heads_kv = 2,
     .head_dim = 64, .seqlen_q = {20, 31}, .seqlen_k = {50, 31}, .scale = 0.125f,
     .alibi = true, CAUSAL, .bf16 = true},
    {"flash_attn_varlen_alibi_windowed", .packed = true, .batch = 2, .heads = 4,
     .heads_kv = 2, .head_dim = 256, .seqlen_q = {20, 31}, .seqlen_k = {50, 31},
     .scale = 0.06f, .alibi = true, .left = SOME(16), .right = SOME(0)},
    {"flash_attn_varlen_alibi_windowed_softcap", .packed = true, .batch = 2, .heads = 4,
     .heads_kv = 2, .head_dim = 64, .seqlen_q = {20, 31}, .seqlen_k = {50, 31},
     .scale = 0.5f, .softcap = 3, .left = SOME(16), .right = SOME(0)},

    /* Candle's own tests. */
    {"its dense test", .batch = 1, .heads = 3, .heads_kv = 3, .head_dim = 8, .seqlen_q = {2},
     .seqlen_k = {2}, .scale = 0.5f, .counting = true, .heads_first = true},
    {"its softcap test", .batch = 1, .heads = 3, .heads_kv = 3, .head_dim = 8,
     .seqlen_q = {2}, .seqlen_k = {2}, .scale = 0.5f, .softcap = 5, .counting = true,
     .heads_first = true},
    {"its packed test", .packed = true, .batch = 1, .heads = 3, .heads_kv = 3,
     .head_dim = 8, .seqlen_q = {2}, .seqlen_k = {2}, .max_seqlen = 32, .scale = 0.5f,
     .counting = true, .heads_first = true},

/* Of flash_attn_varlen_paged_windowed, which 0.11 brings. */
#if CANDLE_ARGUMENTS == 45
#define PAGED_TEST(dim)                                                                            \
    .packed = true, .bf16 = true, .page = 32, .batch = 1, .heads = 8, .heads_kv = 2,               \
    .head_dim = dim, .seqlen_q = {296}, .seqlen_k = {296}, .scale = 0.0625f, .left = SOME(1024),   \
    .right = SOME(0)
    {"its paged test, head_dim 256", PAGED_TEST(256)},
    {"its paged test, head_dim 512", PAGED_TEST(512)},
    {"its paged test with a prefix", PAGED_TEST(256), .ranges = {{{6, 262}}}, .max_ranges = 1},
    {"paged, decode", .packed = true, .page = 32, .batch = 3, .heads = 8, .heads_kv = 2,
     .head_dim = 128, .seqlen_q = {1, 1, 1}, .seqlen_k = {700, 33, 5000}, .scale = 0.088f,
     .bf16 = true},
    {"paged, causal, softcap", .packed = true, .page = 64, .batch = 2, .heads = 4,
     .heads_kv = 1, .head_dim = 80, .seqlen_q = {30, 3}, .seqlen_k = {200, 65}, .scale = 0.4f,
     CAUSAL, .softcap = 4},
    {"paged, window and two prefixes", .packed = true, .page = 96, .batch = 2, .heads = 4,
     .heads_kv = 2, .head_dim = 64, .seqlen_q = {90, 70}, .seqlen_k = {130, 70},
     .scale = 0.125f, .left = SOME(8), .right = SOME(0),
     .ranges = {{{3, 40}, {60, 110}}, {{10, 10}, {20, 64}}}, .max_ranges = 2},
    {"paged, a prefix without a mask", .packed = true, .page = 32, .batch = 1, .heads = 2,
     .heads_kv = 2, .head_dim = 64, .seqlen_q = {20}, .seqlen_k = {50}, .scale = 0.125f,
     .ranges = {{{3, 40}}}, .max_ranges = 1},
#endif

    /* run_mha_v3: no softcap, no pages; head_dim 64, 128, 256 or 512. */
    {"v3, dense", .v3 = true, .batch = 2, .heads = 4, .heads_kv = 2, .head_dim = 64, .seqlen_q = {33},
     .seqlen_k = {49}, .scale = 0.125f, .left = SOME(9), .right = SOME(2), .heads_first = true},
    {"v3, causal, alibi", .v3 = true, .batch = 2, .heads = 4, .heads_kv = 2, .head_dim = 128,
     .seqlen_q = {33}, .seqlen_k = {49}, .scale = 0.09f, .alibi = true, CAUSAL, .bf16 = true},
    {"v3, packed, no rows", .v3 = true, .packed = true, .batch = 2, .heads = 2, .heads_kv = 2,
     .head_dim = 64, .seqlen_q = {0, 0}, .seqlen_k = {5, 0}, .max_seqlen = 8, .scale = 0.125f},
    {"v3, packed, causal", .v3 = true, .packed = true, .batch = 2, .heads = 4, .heads_kv = 2,
     .head_dim = 256, .seqlen_q = {12, 30}, .seqlen_k = {40, 30}, .scale = 0.06f, CAUSAL},
};
/* clang-format on */

/* ---- comparing ---- */

static void compare_out(const model *m, const double *expected) {
    const int64_t count = (int64_t)m->total_q * m->o.heads * m->o.head_dim;
    const double most = m->o.bf16 ? 5e-3 : 7e-4;
    double error = 0, norm = 1e-30;
    for (int64_t i = 0; i < count; i++) {
        double got = reference_load(m->out, m->o.bf16 ? TALLOW_BF16 : TALLOW_F16, i);
        error += (got - expected[i]) * (got - expected[i]);
        norm += expected[i] * expected[i];
    }
    EXPECT(sqrt(error / norm) < most, "%s: out is off by %g", m->o.name, sqrt(error / norm));
}

/* Without total_q the lse of packed rows has no place, and stays as it was. */
static void compare_lse(const model *m, const double *expected, bool written) {
    for (int b = 0; b < m->o.batch; b++)
        for (int row = m->cu_q[b]; row < m->cu_q[b + 1]; row++)
            for (int h = 0; h < m->o.heads; h++) {
                double e = written ? expected[row * m->o.heads + h] : 0;
                double got = (double)m->lse[model_lse_at(m, b, row - m->cu_q[b], h)];
                EXPECT(got == e || fabs(got - e) < 1e-3, "%s: lse of row %d, head %d is %g, not %g",
                       m->o.name, row, h, got, e);
            }
}

static void expect_result(const model *m) {
    const size_t rows = (size_t)(m->total_q * m->o.heads);
    double *out = calloc(rows * (size_t)m->o.head_dim + 1, sizeof *out);
    double *lse = calloc(rows + 1, sizeof *lse);
    if (!out || !lse) abort();
    model_reference(m, out, lse);
    compare_out(m, out);
    compare_lse(m, lse, !m->o.packed || m->o.v3 || CANDLE_ARGUMENTS == 45);
    free(out);
    free(lse);
}

void expect_call(const case_device *device, const model_options *o, model_during during) {
    model m;
    model_build(&m, o);
    model_run(&m, device, during);
    expect_result(&m);
    model_free(&m);
}

/* The first channel of each row and head of candle's dense test, as published; an f16 apart at
 * most. */
static void expect_published(const case_device *device) {
    static const double published[3][2] = {{0.0837, 0.0922}, {0.4204, 0.4280}, {0.7554, 0.7622}};
    model m;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        if (!calls[i].counting || calls[i].softcap > 0) continue;
        model_build(&m, &calls[i]);
        model_run(&m, device, NULL);
        for (int h = 0; h < 3; h++)
            for (int row = 0; row < 2; row++) {
                double got = reference_load(m.out, TALLOW_F16, (row * 3 + h) * 8);
                EXPECT(fabs(got - published[h][row]) < 6e-4, "%s: head %d, row %d is %g, not %g",
                       m.o.name, h, row, got, published[h][row]);
            }
        model_free(&m);
    }
}

int main(void) {
    case_device device;
    char why[256];
    int failed = model_before();
    if (!model_device(&device, why, sizeof why)) {
        printf("skipped: %s\n", why);
        return failed ? 1 : 77;
    }
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) expect_call(&device, &calls[i], NULL);
    expect_published(&device);
    failed += model_after(&device);
    return expect_report() || failed;
}
