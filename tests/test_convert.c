/* convert.h against the definition of the formats, in double arithmetic. */
#include <math.h>
#include <stdbool.h>

#include "convert.h"
#include "expect.h"

typedef struct {
    int32_t dtype;
    int digits, fraction_bits, lowest; /* the smallest denormal is 2^lowest */
    double largest;
} format;

static const format formats[] = {{TALLOW_F16, 11, 10, -24, 65504},
                                 {TALLOW_BF16, 8, 7, -133, 0x1.fep127}};

static double value_of(const format *f, uint16_t half) {
    int exponent = (half & 0x7fff) >> f->fraction_bits;
    int fraction = half & ((1 << f->fraction_bits) - 1);
    int implied = 1 << f->fraction_bits;
    double sign = half & 0x8000 ? -1 : 1;
    if (exponent == 0x7fff >> f->fraction_bits) return fraction ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * ldexp(fraction, f->lowest);
    return sign * ldexp(fraction + implied, f->lowest + exponent - 1);
}

/* The nearest number of the format, ties to even. */
static double nearest(const format *f, double value) {
    int exponent;
    if (!isfinite(value)) return value;
    frexp(value, &exponent);
    int quantum = exponent - f->digits > f->lowest ? exponent - f->digits : f->lowest;
    double rounded = ldexp(nearbyint(ldexp(value, -quantum)), quantum);
    return fabs(rounded) > f->largest ? copysign(INFINITY, value) : rounded;
}

static bool same(double a, double b) {
    return isnan(a) ? isnan(b) : a == b && !signbit(a) == !signbit(b);
}

static float widen(const format *f, uint16_t half) {
    return f->dtype == TALLOW_F16 ? tallow_f16_to_f32(half) : tallow_bf16_to_f32(half);
}

static uint16_t narrow(const format *f, float value) {
    return f->dtype == TALLOW_F16 ? tallow_f32_to_f16(value) : tallow_f32_to_bf16(value);
}

static void expect_narrow(const format *f, float value) {
    double got = value_of(f, narrow(f, value)), want = nearest(f, value);
    EXPECT(same(got, want), "dtype %d: %a became %a", f->dtype, (double)value, got);
    EXPECT(!signbit(value) == !(narrow(f, value) & 0x8000), "dtype %d: sign of %a", f->dtype,
           (double)value);
}

static void test_every_pattern(const format *f) {
    for (uint32_t i = 0; i <= 0xffff; i++) {
        uint16_t half = (uint16_t)i;
        float value = widen(f, half);
        EXPECT(same(value, value_of(f, half)), "dtype %d: pattern %04x became %a", f->dtype, i,
               (double)value);
        if (!isnan(value))
            EXPECT(narrow(f, value) == half, "dtype %d: pattern %04x does not survive", f->dtype,
                   i);
        expect_narrow(f, value);
        /* Half way to the next number, and just beside it: where rounding turns. */
        float middle = (float)((value_of(f, half) + value_of(f, (uint16_t)(half + 1))) / 2);
        expect_narrow(f, middle);
        expect_narrow(f, nextafterf(middle, INFINITY));
        expect_narrow(f, nextafterf(middle, -INFINITY));
    }
    expect_narrow(f, tallow_bits_to_f32(0x7f800001)); /* NaN whose payload does not fit */
    expect_narrow(f, tallow_bits_to_f32(0xffffffff));
    expect_narrow(f, 65520);
    expect_narrow(f, 3.4028234e38f);
}

static void test_random_patterns(const format *f) {
    uint32_t bits = 1;
    for (int i = 0; i < 2000000; i++) {
        bits = bits * 1664525u + 1013904223u;
        expect_narrow(f, tallow_bits_to_f32(bits));
    }
}

static void test_elements_and_rows(void) {
    static const int32_t dtypes[] = {TALLOW_F16, TALLOW_BF16, TALLOW_F32};
    static const size_t sizes[] = {2, 2, 4};
    for (int d = 0; d < 3; d++) {
        unsigned char data[8 * sizeof(float)] = {0};
        float row[3] = {1.5f, -2, 0.25f}, back[3];
        EXPECT(tallow_dtype_size(dtypes[d]) == sizes[d], "dtype %d", dtypes[d]);
        tallow_store(data, dtypes[d], 5, -0.75f);
        tallow_store_row(data + sizes[d], dtypes[d], 3, row);
        tallow_load_row(data + sizes[d], dtypes[d], 3, back);
        EXPECT(!memcmp(row, back, sizeof row), "dtype %d", dtypes[d]);
        EXPECT(tallow_load(data, dtypes[d], 5) == -0.75f, "dtype %d", dtypes[d]);
        EXPECT(tallow_load(data, dtypes[d], 2) == -2, "dtype %d", dtypes[d]);
        EXPECT(tallow_load(data, dtypes[d], 0) == 0, "dtype %d", dtypes[d]);
        EXPECT(tallow_load(data, dtypes[d], 4) == 0, "dtype %d", dtypes[d]);
    }
    EXPECT(tallow_dtype_size(TALLOW_I32) == 4 && tallow_dtype_size(TALLOW_I64) == 8, "integers");
    EXPECT(tallow_dtype_size(0) == 0, "no dtype");
}

int main(void) {
    for (int i = 0; i < 2; i++) {
        test_every_pattern(&formats[i]);
        test_random_patterns(&formats[i]);
    }
    test_elements_and_rows();
    return expect_report();
}
