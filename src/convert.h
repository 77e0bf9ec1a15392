/* Conversions between f32 and the 16-bit formats: exact one way, rounded to nearest even the other.
 * Integer arithmetic without branches, so that loops over rows vectorise at every level. */
#ifndef TALLOW_CONVERT_H
#define TALLOW_CONVERT_H

#include <string.h>

#include "tallow.h"

static inline float tallow_bits_to_f32(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t tallow_f32_to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float tallow_f16_to_f32(uint16_t half) {
    uint32_t magnitude = half & 0x7fffu;
    /* The exponent's bias grows by 112, and once more by as much for inf and NaN. */
    uint32_t normal = (magnitude << 13) + (112u << 23) + (magnitude >= 0x7c00u ? 112u << 23 : 0u);
    uint32_t tiny = tallow_f32_to_bits((float)(int32_t)magnitude * 0x1p-24f);
    uint32_t bits = magnitude < 0x400u ? tiny : normal;
    return tallow_bits_to_f32(bits | (uint32_t)(half & 0x8000u) << 16);
}

static inline uint16_t tallow_f32_to_f16(float value) {
    uint32_t bits = tallow_f32_to_bits(value), magnitude = bits & 0x7fffffffu;
    uint32_t rebiased = magnitude - (112u << 23);
    uint32_t normal = (rebiased + 0xfffu + (rebiased >> 13 & 1u)) >> 13;
    /* f16 denormals are multiples of 2^-24, the spacing of f32 at 0.5: one addition rounds them. */
    uint32_t tiny = tallow_f32_to_bits(tallow_bits_to_f32(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t nan = 0x7e00u | (magnitude >> 13 & 0x3ffu); /* quiet: the payload is cut */
    uint32_t half = magnitude < 0x38800000u ? tiny : normal > 0x7c00u ? 0x7c00u : normal;
    half = magnitude > 0x7f800000u ? nan : half;
    return (uint16_t)(half | (bits >> 16 & 0x8000u));
}

static inline float tallow_bf16_to_f32(uint16_t half) {
    return tallow_bits_to_f32((uint32_t)half << 16);
}

static inline uint16_t tallow_f32_to_bf16(float value) {
    uint32_t bits = tallow_f32_to_bits(value);
    uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    uint32_t nan = bits >> 16 | 0x40u; /* quiet: the payload is cut */
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

/* Bytes of an element. */
static inline size_t tallow_dtype_size(int32_t dtype) {
    switch (dtype) {
    case TALLOW_F16:
    case TALLOW_BF16: return 2;
    case TALLOW_F32:
    case TALLOW_I32: return 4;
    case TALLOW_I64: return 8;
    default: return 0;
    }
}

/* Rows of n contiguous elements; dtype is f16, bf16 or f32. */
static inline void tallow_load_row(const void *data, int32_t dtype, int64_t n, float *row) {
    const uint16_t *halves = data;
    if (dtype == TALLOW_F16)
        for (int64_t i = 0; i < n; i++) row[i] = tallow_f16_to_f32(halves[i]);
    else if (dtype == TALLOW_BF16)
        for (int64_t i = 0; i < n; i++) row[i] = tallow_bf16_to_f32(halves[i]);
    else
        memcpy(row, data, (size_t)n * sizeof *row);
}

static inline void tallow_store_row(void *data, int32_t dtype, int64_t n, const float *row) {
    uint16_t *halves = data;
    if (dtype == TALLOW_F16)
        for (int64_t i = 0; i < n; i++) halves[i] = tallow_f32_to_f16(row[i]);
    else if (dtype == TALLOW_BF16)
        for (int64_t i = 0; i < n; i++) halves[i] = tallow_f32_to_bf16(row[i]);
    else
        memcpy(data, row, (size_t)n * sizeof *row);
}

/* One element, at an index in elements. */
static inline float tallow_load(const void *data, int32_t dtype, int64_t index) {
    float value;
    tallow_load_row((const char *)data + index * (int64_t)tallow_dtype_size(dtype), dtype, 1,
                    &value);
    return value;
}

static inline void tallow_store(void *data, int32_t dtype, int64_t index, float value) {
    tallow_store_row((char *)data + index * (int64_t)tallow_dtype_size(dtype), dtype, 1, &value);
}

#endif
