/* Conversions between f32 and the 16-bit formats: exact one way, rounded to nearest even the other.
 * No branches, and no arithmetic that a compiler could move into one, so that loops over rows
 * vectorise everywhere. Denormals are right even where the processor flushes its own to zero. */
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

/* The exponent's bias grows by 112, and once more by as much for inf and NaN. A denormal is read
 * 2^-14 too large, which is then taken off. */
static inline float tallow_f16_to_f32(uint16_t half) {
    uint32_t magnitude = half & 0x7fffu;
    uint32_t rebias = (magnitude < 0x400u ? 113u : magnitude >= 0x7c00u ? 224u : 112u) << 23;
    uint32_t excess = magnitude < 0x400u ? 113u << 23 : 0u;
    float value = tallow_bits_to_f32((magnitude << 13) + rebias) - tallow_bits_to_f32(excess);
    return tallow_bits_to_f32(tallow_f32_to_bits(value) | (uint32_t)(half & 0x8000u) << 16);
}

/* Adding the power of two whose f32 spacing is the f16 spacing here, 2^-24 or more, rounds: what
 * the sum exceeds it by is the mantissa. From 2^16 on everything is inf. */
static inline uint16_t tallow_f32_to_f16(float value) {
    uint32_t bits = tallow_f32_to_bits(value), magnitude = bits & 0x7fffffffu;
    uint32_t exponent = magnitude & 0x7f800000u;
    exponent = exponent < 113u << 23 ? 113u << 23 : exponent > 143u << 23 ? 143u << 23 : exponent;
    uint32_t power = exponent + (13u << 23);
    float sum = tallow_bits_to_f32(magnitude) + tallow_bits_to_f32(power);
    uint32_t half = tallow_f32_to_bits(sum) - power + ((exponent - (113u << 23)) >> 13);
    half = half > 0x7c00u ? 0x7c00u : half;
    half |= magnitude > 0x7f800000u ? 0x200u | (magnitude >> 13 & 0x3ffu) : 0u; /* a quiet NaN */
    return (uint16_t)(half | (bits >> 16 & 0x8000u));
}

static inline float tallow_bf16_to_f32(uint16_t half) {
    return tallow_bits_to_f32((uint32_t)half << 16);
}

static inline uint16_t tallow_f32_to_bf16(float value) {
    uint32_t bits = tallow_f32_to_bits(value);
    uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    uint32_t nan = bits >> 16 | 0x40u; /* a quiet NaN */
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
