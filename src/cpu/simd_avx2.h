/* AVX2 with FMA and F16C. */
#include <immintrin.h>

#define GEMM_ROWS 6
#define GEMM_VECS 2
#define HAS_DOT   0

/* Keeps an operand in a register; gcc would load it anew for each of its uses. */
INLINE void vf_hold(vf *x) { __asm__("" : "+x"(*x)); }

INLINE vf vf_max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }

INLINE vf vf_load_bf16(const char *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return (vf)_mm256_slli_epi32(wide, 16);
}
INLINE vf vf_load_f16(const char *p) {
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
INLINE void vf_store_bf16(char *p, vf v) {
    vu bits = (vu)v, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    vu quiet = (bits >> 16) | 0x40u; /* rounding could carry a NaN into infinity */
    vu half = (vu)vf_select(v != v, (vf)quiet, (vf)rounded);
    __m256i packed = _mm256_packus_epi32((__m256i)half, (__m256i)half);
    packed = _mm256_permute4x64_epi64(packed, 0x08);
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_castsi256_si128(packed));
}
INLINE void vf_store_f16(char *p, vf v) {
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
