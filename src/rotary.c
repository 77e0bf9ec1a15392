#include "rotary.h"

#include <math.h>

/* The bits of 1 / (2 pi) after the binary point, behind 128 zero bits: enough for every finite
 * f32. */
static const uint64_t inverse_two_pi[] = {
    0, 0, 0x28be60db9391054a, 0x7f09d5f47d4d3770, 0x36d8a5664f10e410, 0x7f9458eaf7aef158};

static uint64_t bits_at(int start) {
    const uint64_t *word = inverse_two_pi + start / 64;
    int shift = start % 64;
    return word[0] << shift | word[1] >> 1 >> (63 - shift);
}

static uint64_t multiply_high(uint64_t a, uint64_t b) {
    uint64_t a_low = (uint32_t)a, a_high = a >> 32, b_low = (uint32_t)b, b_high = b >> 32;
    uint64_t middle = a_high * b_low + (a_low * b_low >> 32);
    uint64_t carry = a_low * b_high + (uint32_t)middle;
    return a_high * b_high + (middle >> 32) + (carry >> 32);
}

/* radians / (2 pi) modulo one turn, to the nearest 2^-64 turn: an integer mantissa times the 128
 * bits of 1 / (2 pi) that straddle the wanted 64; the bits above them are whole turns. */
static uint64_t fraction_of_turn(double radians) {
    int exponent;
    uint64_t mantissa = (uint64_t)ldexp(frexp(fabs(radians), &exponent), 53);
    int start = exponent - 53 + 128;
    if (start < 0 || start > 203) return 0; /* far below 2^-64 turn; above: beyond f32 */
    uint64_t high = bits_at(start), low = bits_at(start + 64);
    uint64_t turns = mantissa * high + multiply_high(mantissa, low) + (mantissa * low >> 63);
    return radians < 0 ? 0 - turns : turns;
}

/* The unevaluated sum hi + lo, about 106 bits: theta's powers in plain double would be off by 1e-7
 * rad at position 2^31. */
typedef struct {
    double hi, lo;
} double_double;

static double_double multiply(double_double a, double_double b) {
    double product = a.hi * b.hi;
    double error = fma(a.hi, b.hi, -product) + (a.hi * b.lo + a.lo * b.hi);
    double sum = product + error;
    return (double_double){sum, error - (sum - product)};
}

/* theta^(-1/n): one Newton step from pow's result doubles its digits. */
static double_double inverse_root(double theta, int64_t n) {
    double_double root = {pow(theta, -1.0 / (double)n), 0};
    double_double one = {theta, 0}; /* becomes theta * root^n */
    double_double square = root;
    for (int64_t bits = n; bits > 0; bits >>= 1) {
        if (bits & 1) one = multiply(one, square);
        square = multiply(square, square);
    }
    root.lo = -root.hi * ((one.hi - 1) + one.lo) / (double)n;
    return root;
}

void tallow_rotary_turns(const rotary_view *r, uint64_t *turns) {
    int64_t pairs = r->dim / 2;
    double_double root = {0, 0}, frequency = {1, 0};
    if (!r->cos && !r->inv_freq.data) root = inverse_root(r->theta, pairs);
    for (int64_t i = 0; i < pairs; i++) {
        if (r->cos) {
            turns[i] = 0;
        } else if (r->inv_freq.data) {
            turns[i] = fraction_of_turn(r->inv_freq.data[i * r->inv_freq.stride[0]]);
        } else {
            turns[i] = fraction_of_turn(frequency.hi) + fraction_of_turn(frequency.lo);
            frequency = multiply(frequency, root);
        }
    }
}

int tallow_rotary_mrope_row(const rotary_view *r, int64_t pair) {
    if (r->mrope == TALLOW_MROPE_CHUNKED)
        return (pair >= r->sections[0]) + (pair >= (int64_t)r->sections[0] + r->sections[1]);
    int row = (int)(pair % 3);
    return r->mrope == TALLOW_MROPE_INTERLEAVED && pair < 3 * (int64_t)r->sections[row] ? row : 0;
}

/* Taylor series on [-pi/4, pi/4], 2e-14 from the truth, and the same bits on every machine. */
static double cosine(double x) {
    double z = x * x, sum = 1 - z * (1. / 182);
    sum = 1 - z * (1. / 132) * sum;
    sum = 1 - z * (1. / 90) * sum;
    sum = 1 - z * (1. / 56) * sum;
    sum = 1 - z * (1. / 30) * sum;
    sum = 1 - z * (1. / 12) * sum;
    return 1 - z * (1. / 2) * sum;
}

static double sine(double x) {
    double z = x * x, sum = 1 - z * (1. / 156);
    sum = 1 - z * (1. / 110) * sum;
    sum = 1 - z * (1. / 72) * sum;
    sum = 1 - z * (1. / 42) * sum;
    sum = 1 - z * (1. / 20) * sum;
    return x * (1 - z * (1. / 6) * sum);
}

void tallow_rotary_cos_sin(uint64_t turns, float *cos, float *sin) {
    uint64_t quarter = (turns + (UINT64_C(1) << 61)) >> 62;
    int64_t rest = (int64_t)(turns - (quarter << 62)); /* at most an eighth of a turn either way */
    double angle = (double)rest * 0x1.921fb54442d18p-62; /* 2 pi / 2^64 */
    float c = (float)cosine(angle), s = (float)sine(angle);
    *cos = quarter & 1 ? s : c;
    *sin = quarter & 1 ? c : s;
    if ((quarter + 1) & 2) *cos = -*cos;
    if (quarter & 2) *sin = -*sin;
}

void tallow_rotary_token(const rotary_view *r, const uint64_t *turns, const int64_t position[3],
                         float *cos, float *sin) {
    for (int64_t i = 0; i < r->dim / 2; i++) {
        int64_t at = position[tallow_rotary_mrope_row(r, i)];
        if (r->cos) {
            cos[i] = tallow_load(r->cos, r->table_dtype, at * r->cos_stride + i);
            sin[i] = tallow_load(r->sin, r->table_dtype, at * r->sin_stride + i);
        } else {
            tallow_rotary_cos_sin((uint64_t)at * turns[i], &cos[i], &sin[i]);
        }
        cos[i] *= r->factor;
        sin[i] *= r->factor;
    }
}

void tallow_rotary_positions(const position_view *view, const rotary_view *r, int64_t b,
                             int64_t row, int64_t implicit, int64_t position[3]) {
    for (int i = 0; i < 3; i++) {
        int64_t mrope_row = r->mrope == TALLOW_MROPE_NONE ? 0 : i;
        int64_t index =
            mrope_row * view->mrope_stride + b * view->batch_stride + row * view->row_stride;
        if (!view->data)
            position[i] = implicit;
        else if (view->dtype == TALLOW_I64)
            position[i] = ((const int64_t *)view->data)[index];
        else
            position[i] = ((const int32_t *)view->data)[index];
    }
}

void tallow_rotary_apply(const rotary_view *r, const float *cos, const float *sin, float *x) {
    int64_t pairs = r->dim / 2;
    if (r->pairing == TALLOW_PAIRING_INTERLEAVED) {
        for (int64_t i = 0; i < pairs; i++) {
            float a = x[2 * i], b = x[2 * i + 1];
            x[2 * i] = a * cos[i] - b * sin[i];
            x[2 * i + 1] = b * cos[i] + a * sin[i];
        }
    } else {
        for (int64_t i = 0; i < pairs; i++) {
            float a = x[i], b = x[pairs + i];
            x[i] = a * cos[i] - b * sin[i];
            x[pairs + i] = b * cos[i] + a * sin[i];
        }
    }
}
