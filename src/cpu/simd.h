/* Vectors of LANES floats. The arithmetic is the compiler's (vector extensions); what it cannot
 * express well comes from simd_<level>.h:
 *
 *   LANES         floats in a vector
 *   GEMM_ROWS     rows and
 *   GEMM_VECS     vectors of the register block of a matrix product
 *   HAS_DOT       1 when vf_dot exists: products of bf16 pairs
 *   vf_max(a, b)  the larger; b when either is NaN
 *   vf_hold(&x)   x is used from a register
 *   vf_load_f16, vf_load_bf16, vf_store_f16, vf_store_bf16
 */
#ifndef TALLOW_SIMD_H
#define TALLOW_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "convert.h"

#define CONCAT2(a, b) a##b
#define CONCAT(a, b)  CONCAT2(a, b)
#define STRING2(a)    #a
#define STRING(a)     STRING2(a)
#define INLINE        static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#define LANES 16
#define EACH_LANE(f)                                                                               \
    f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), \
        f(15)
#elif defined(__AVX2__)
#define LANES        8
#define EACH_LANE(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)
#else
#define LANES        4
#define EACH_LANE(f) f(0), f(1), f(2), f(3)
#endif

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));

#define SAME(l) x
INLINE vf vf_set(float x) { return (vf){EACH_LANE(SAME)}; }
INLINE vi vi_set(int32_t x) { return (vi){EACH_LANE(SAME)}; }
#undef SAME
INLINE vf vf_load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vf vf_select(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
INLINE vi vi_iota(void) {
#define LANE_INDEX(l) l
    return (vi){EACH_LANE(LANE_INDEX)};
#undef LANE_INDEX
}

#if defined(__AVX512F__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#else
#include "simd_scalar.h"
#endif

INLINE float vf_sum(vf v) {
    float lanes[LANES], sum = 0;
    vf_store(lanes, v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int l = 0; l < width; l++) lanes[l] += lanes[l + width];
    sum = lanes[0];
    return sum;
}

/* The largest lane; NaN when a NaN is found, which is fine for a maximum of scores. */
INLINE float vf_largest(vf v) {
    float lanes[LANES];
    vf_store(lanes, v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int l = 0; l < width; l++)
            lanes[l] = lanes[l] > lanes[l + width] ? lanes[l] : lanes[l + width];
    return lanes[0];
}

/* 2^n for integral n in [-127, 127] held in the low mantissa bits of t = n + 1.5 * 2^23; 2^-127 is
 * 0. */
#define ROUND_MAGIC 12582912.0f
INLINE vf vf_power_of_two(vf t) { return (vf)(((vu)t + 127u) << 23); }

/* 2^x for x <= 127, within 1 ulp; 0 below 2^-126; NaN stays NaN. */
INLINE vf vf_exp2(vf x) {
    x = vf_max(vf_set(-127.0f), x);
    vf t = x + ROUND_MAGIC, f = x - (t - ROUND_MAGIC);
    vf p = 0.0001537070482f * f + 0.001339984829f;
    p = p * f + 0.009618373251f;
    p = p * f + 0.05550329035f;
    p = p * f + 0.2402264846f;
    p = p * f + 0.6931472056f;
    p = p * f + 1.0f;
    return p * vf_power_of_two(t);
}

/* tanh to a few ulp everywhere: with e = exp(2|x|) - 1 formed without cancellation, tanh = e / (e +
 * 2). */
INLINE vf vf_tanh(vf x) {
    const vi sign = vi_set(INT32_MIN);
    vf y = 2.0f * (vf)(~sign & (vi)x);
    y = vf_select(y > 20.0f, vf_set(20.0f), y); /* tanh(10) rounds to 1; NaN stays */
    vf t = y * 1.44269504f + ROUND_MAGIC, n = t - ROUND_MAGIC;
    vf r = (y - n * 0.693145751953125f) - n * 1.42860677e-6f;
    vf p = 0.0001985159065f * r + 0.001394097978f;
    p = p * r + 0.008333378566f;
    p = p * r + 0.04166635483f;
    p = p * r + 0.1666666642f;
    p = p * r + 0.5f;
    p = p * r * r + r;
    vf two_n = vf_power_of_two(t), e = two_n * p + (two_n - 1.0f);
    return (vf)((vi)(e / (e + 2.0f)) | (sign & (vi)x));
}

/* rows[i] lane l <-> rows[l] lane i: 4 x 4 inside every group of four lanes, then whole groups. */
#define FOUR(l)              ((l) / 4 * 4)
#define EVEN(l)              (FOUR(l) + (l) % 4 / 2 + (l) % 2 * LANES) /* a0 b0 a1 b1 */
#define ODD(l)               (EVEN(l) + 2)                             /* a2 b2 a3 b3 */
#define FRONT(l)             (FOUR(l) + (l) % 2 + (l) % 4 / 2 * LANES) /* a0 a1 b0 b1 */
#define BACK(l)              (FRONT(l) + 2)                            /* a2 a3 b2 b3 */
#define LOW(l)               (((l)&STEP) ? LANES + (l)-STEP : (l))
#define HIGH(l)              (((l)&STEP) ? LANES + (l) : (l) + STEP)
#define SHUFFLE(a, b, which) __builtin_shufflevector(a, b, EACH_LANE(which))
#define EXCHANGE_GROUPS                                                                            \
    for (int i = 0; i < LANES; i++)                                                                \
        if (!(i & STEP)) {                                                                         \
            vf a = rows[i], b = rows[(i + STEP) % LANES];                                          \
            rows[i] = SHUFFLE(a, b, LOW);                                                          \
            rows[(i + STEP) % LANES] = SHUFFLE(a, b, HIGH);                                        \
        }
INLINE void vf_transpose(vf rows[LANES]) {
    for (int i = 0; i < LANES; i += 4) {
        vf a = SHUFFLE(rows[i], rows[i + 1], EVEN), b = SHUFFLE(rows[i], rows[i + 1], ODD);
        vf c = SHUFFLE(rows[i + 2], rows[i + 3], EVEN), d = SHUFFLE(rows[i + 2], rows[i + 3], ODD);
        rows[i] = SHUFFLE(a, c, FRONT);
        rows[i + 1] = SHUFFLE(a, c, BACK);
        rows[i + 2] = SHUFFLE(b, d, FRONT);
        rows[i + 3] = SHUFFLE(b, d, BACK);
    }
#if LANES > 4
#define STEP 4
    EXCHANGE_GROUPS
#undef STEP
#endif
#if LANES > 8
#define STEP 8
    EXCHANGE_GROUPS
#undef STEP
#endif
}
#undef EXCHANGE_GROUPS
#undef SHUFFLE
#undef HIGH
#undef LOW
#undef BACK
#undef FRONT
#undef ODD
#undef EVEN
#undef FOUR

/* LANES elements of any floating dtype, and `count` < LANES of them with zeros behind. */
INLINE vf vf_load_as(int32_t dtype, const char *p) {
    if (dtype == TALLOW_BF16) return vf_load_bf16(p);
    if (dtype == TALLOW_F16) return vf_load_f16(p);
    return vf_load((const float *)(const void *)p);
}
INLINE vf vf_load_part(int32_t dtype, const char *p, int64_t count) {
    char part[4 * LANES] = {0};
    memcpy(part, p, (size_t)count * tallow_dtype_size(dtype));
    return vf_load_as(dtype, part);
}
INLINE void vf_store_as(int32_t dtype, char *p, vf v) {
    if (dtype == TALLOW_BF16)
        vf_store_bf16(p, v);
    else if (dtype == TALLOW_F16)
        vf_store_f16(p, v);
    else
        memcpy(p, &v, sizeof v);
}
INLINE void vf_store_part(int32_t dtype, char *p, vf v, int64_t count) {
    char part[4 * LANES];
    vf_store_as(dtype, part, v);
    memcpy(p, part, (size_t)count * tallow_dtype_size(dtype));
}

#endif
