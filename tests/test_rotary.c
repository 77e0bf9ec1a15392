/* Angles against values computed to 400 bits, and the choice of M-RoPE rows. */
#include <math.h>
#include <stdlib.h>

#include "expect.h"
#include "rotary.h"
#include "rotary_values.h"

enum {
    POSITIONS = sizeof rotary_positions / sizeof *rotary_positions,
    VALUES = sizeof rotary_values / sizeof *rotary_values
};

static const double two_pi = 6.283185307179586476925;

/* In radians: at most one unit of 2^-64 turn per position. */
static void test_turns(void) {
    double worst = 0;
    for (int v = 0; v < VALUES; v++) {
        rotary_view r = {.dim = rotary_values[v].dim, .theta = rotary_values[v].theta};
        float inv_freq = rotary_values[v].inv_freq;
        uint64_t turns[TALLOW_MAX_ROTARY_PAIRS];
        if (r.theta == 0) r.inv_freq = (float_view){&inv_freq, {1, 0}};
        tallow_rotary_turns(&r, turns);
        for (int k = 0; k < POSITIONS; k++) {
            uint64_t got = (uint64_t)rotary_positions[k] * turns[rotary_values[v].pair];
            double error = fabs((double)(int64_t)(got - rotary_values[v].turns[k]));
            double limit = (r.theta == 0 ? 0.5 : 1) * (double)rotary_positions[k] + 1;
            EXPECT(error <= limit, "theta %g, inv_freq %g, pair %d, position %d: %g units", r.theta,
                   (double)inv_freq, (int)rotary_values[v].pair, (int)rotary_positions[k], error);
            worst = fmax(worst, error * two_pi * 0x1p-64);
        }
    }
    printf("largest angle error before rounding: %.2g rad\n", worst);
    EXPECT(worst < 1e-9, "%g", worst);
}

/* Half a unit in the last place of f32. */
static double half_ulp(double value) {
    int exponent;
    frexp(value, &exponent);
    return ldexp(1, exponent - 25);
}

/* All round the circle, and close to the ends of the quarters: never more than the f32 rounding. */
static void test_cos_sin(void) {
    uint64_t random = 1;
    for (int i = 0; i < 200000; i++) {
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        uint64_t quarter = random & UINT64_C(3) << 62;
        int64_t rest = (int64_t)(random << 2) >> 2 >> i % 40;
        uint64_t turns = i % 2 ? random : quarter + (uint64_t)rest;
        double angle = (double)(int64_t)turns * two_pi * 0x1p-64, c = cos(angle), s = sin(angle);
        float c_got, s_got;
        tallow_rotary_cos_sin(turns, &c_got, &s_got);
        EXPECT(fabs((double)c_got - c) <= half_ulp(c) * (1 + 1e-6) + 1e-15 &&
                   fabs((double)s_got - s) <= half_ulp(s) * (1 + 1e-6) + 1e-15,
               "angle %.17g: (%.9g, %.9g)", angle, (double)c_got, (double)s_got);
    }
}

static void expect_cos_sin(int v, int k, float cos_got, float sin_got) {
    double angle = (double)(int64_t)rotary_values[v].turns[k] * two_pi * 0x1p-64;
    double c = cos(angle), s = sin(angle), slack = 1e-9;
    EXPECT(fabs((double)cos_got - c) <= half_ulp(c) + slack &&
               fabs((double)sin_got - s) <= half_ulp(s) + slack,
           "theta %g, inv_freq %g, dim %d, pair %d, position %d: (%.9g, %.9g), not (%.9g, %.9g)",
           rotary_values[v].theta, (double)rotary_values[v].inv_freq, (int)rotary_values[v].dim,
           (int)rotary_values[v].pair, (int)rotary_positions[k], (double)cos_got, (double)sin_got,
           c, s);
}

/* A row of ones, then zeros, turns into the cosines, then the sines. */
static void test_angles(void) {
    for (int v = 0; v < VALUES; v++) {
        int64_t dim = rotary_values[v].dim, pair = rotary_values[v].pair;
        float *x = calloc(POSITIONS * (size_t)dim, sizeof *x), inv_freq = rotary_values[v].inv_freq;
        for (int64_t k = 0; k < POSITIONS; k++)
            for (int64_t i = 0; i < dim / 2; i++) x[k * dim + i] = 1;
        tallow_rotary_params p = {
            .x = {.data = x, .dtype = TALLOW_F32, .shape = {1, POSITIONS, 1, dim}},
            .positions = {.data = (void *)(uintptr_t)rotary_positions,
                          .dtype = TALLOW_I64,
                          .shape = {1, POSITIONS}},
            .rotary.theta = rotary_values[v].theta};
        p.out = p.x;
        if (p.rotary.theta == 0)
            p.rotary.inv_freq =
                (tallow_tensor){.data = &inv_freq, .dtype = TALLOW_F32, .shape = {1}};
        EXPECT(tallow_rotary(&p, sizeof p) == TALLOW_OK, "%s", tallow_last_error());
        for (int k = 0; k < POSITIONS; k++)
            expect_cos_sin(v, k, x[k * dim + pair], x[k * dim + dim / 2 + pair]);
        free(x);
    }
}

/* Row of every pair, as a string of digits. */
static void expect_mrope_rows(int32_t form, int32_t time, int32_t height, int32_t width,
                              const char *rows) {
    rotary_view r = {
        .dim = 2 * (time + height + width), .mrope = form, .sections = {time, height, width}};
    for (int64_t i = 0; i < r.dim / 2; i++)
        EXPECT(tallow_rotary_mrope_row(&r, i) == rows[i] - '0',
               "form %d, sections %d %d %d, pair %d", form, time, height, width, (int)i);
}

static void test_mrope_rows(void) {
    expect_mrope_rows(TALLOW_MROPE_NONE, 2, 2, 2, "000000");
    expect_mrope_rows(TALLOW_MROPE_CHUNKED, 2, 3, 3, "00111222");
    expect_mrope_rows(TALLOW_MROPE_CHUNKED, 0, 0, 2, "22");
    expect_mrope_rows(TALLOW_MROPE_INTERLEAVED, 2, 2, 2, "012012");
    expect_mrope_rows(TALLOW_MROPE_INTERLEAVED, 4, 2, 1, "0120100");
    expect_mrope_rows(TALLOW_MROPE_INTERLEAVED, 3, 1, 2, "012002");
    expect_mrope_rows(TALLOW_MROPE_INTERLEAVED, 24, 20, 20, /* Qwen3-VL */
                      "0120120120120120120120120120120120120120120120120120120120120000");
}

/* --------------------------------------------------------------------------------------------
 * The table in docs/rotary.md
 * ------------------------------------------------------------------------------------------ */

enum { TABLE_THETA = 1000000, TABLE_DIM = 128 };

/* `angle`, as its frequency at position 1: an f32 is reduced exactly. */
static uint64_t turns_of(float angle) {
    rotary_view r = {.dim = 2, .inv_freq = {&angle, {1, 0}}};
    uint64_t turns;
    tallow_rotary_turns(&r, &turns);
    return turns;
}

static float round_bf16(float value) { return tallow_bf16_to_f32(tallow_f32_to_bf16(value)); }

static double radians_between(uint64_t a, uint64_t b) {
    return fabs((double)(int64_t)(a - b)) * two_pi * 0x1p-64;
}

/* Largest error over all pairs at one position: as Tallow computes it, as one f32 product, and as a
 * table made in bf16. */
static void table_row(int k, double *exact, double *f32, double *bf16) {
    rotary_view r = {.dim = TABLE_DIM, .theta = TABLE_THETA};
    uint64_t turns[TABLE_DIM / 2];
    float position = (float)rotary_positions[k];
    tallow_rotary_turns(&r, turns);
    *exact = *f32 = *bf16 = 0;
    for (int v = 0; v < VALUES; v++) {
        if (rotary_values[v].theta != TABLE_THETA || rotary_values[v].dim != TABLE_DIM) continue;
        int64_t pair = rotary_values[v].pair;
        uint64_t truth = rotary_values[v].turns[k];
        float frequency = (float)pow(TABLE_THETA, -2.0 * (double)pair / TABLE_DIM);
        float coarse = round_bf16(round_bf16(position) * round_bf16(frequency));
        *exact = fmax(*exact, radians_between((uint64_t)rotary_positions[k] * turns[pair], truth));
        *f32 = fmax(*f32, radians_between(turns_of(position * frequency), truth));
        *bf16 = fmax(*bf16, radians_between(turns_of(coarse), truth));
    }
}

static void test_table_in_docs(void) {
    static const int64_t shown[] = {255, 257, 4096, 25000, 262144, 1000000, 16000000};
    char table[1000], docs[20000];
    int length = snprintf(table, sizeof table,
                          "| position | Tallow | f32 product | bf16 table |\n"
                          "|---:|---:|---:|---:|\n");
    for (int n = 0; n < 7; n++)
        for (int k = 0; k < POSITIONS; k++) {
            double exact, f32, bf16;
            if (rotary_positions[k] != shown[n]) continue;
            table_row(k, &exact, &f32, &bf16);
            length += snprintf(table + length, sizeof table - (size_t)length,
                               "| %d | %.0e | %.1e | %.2f |\n", (int)shown[n], exact, f32, bf16);
        }
    FILE *file = fopen(DOCS "/rotary.md", "r");
    EXPECT(file, "cannot open " DOCS "/rotary.md");
    if (!file) return;
    docs[fread(docs, 1, sizeof docs - 1, file)] = 0;
    fclose(file);
    EXPECT(strstr(docs, table), "docs/rotary.md must hold\n%s", table);
}

int main(void) {
    test_turns();
    test_cos_sin();
    test_angles();
    test_mrope_rows();
    test_table_in_docs();
    return expect_report();
}
