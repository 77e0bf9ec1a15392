/* Elements of rows whose dtype is known at run time. */
#ifndef ELEMENTS_CUH
#define ELEMENTS_CUH

#include "base.cuh"

enum { DTYPE_F16 = 1, DTYPE_BF16 = 2, DTYPE_F32 = 3 };

INLINE float load_element(const void *row, int dtype, int64_t i) {
    if (dtype == DTYPE_F32) return ((const float *)row)[i];
    uint16_t bits = ((const uint16_t *)row)[i];
    if (dtype == DTYPE_BF16) return __uint_as_float((uint32_t)bits << 16);
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

/* Rounds to nearest even; any NaN becomes one. */
INLINE uint16_t bf16_of(float x) {
#if __CUDA_ARCH__ >= 800
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(x));
    return (uint16_t)pair;
#else
    const uint32_t bits = __float_as_uint(x);
    return x == x ? (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : 0x7fff;
#endif
}

INLINE void store_element(void *row, int dtype, int64_t i, float x) {
    uint16_t bits;
    if (dtype == DTYPE_F32) {
        ((float *)row)[i] = x;
        return;
    }
    if (dtype == DTYPE_BF16) {
        bits = bf16_of(x);
    } else {
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    }
    ((uint16_t *)row)[i] = bits;
}

INLINE void copy_element(void *to, const void *from, int dtype, int64_t i) {
    if (dtype == DTYPE_F32)
        ((uint32_t *)to)[i] = ((const uint32_t *)from)[i];
    else
        ((uint16_t *)to)[i] = ((const uint16_t *)from)[i];
}

INLINE char *row_at(const rows_arg &view, int64_t b, int64_t row, int64_t head) {
    return view.data + b * view.batch_stride + row * view.row_stride + head * view.head_stride;
}

#endif
