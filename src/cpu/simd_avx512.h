/* AVX-512 F, BW, VL and DQ; with BF16, products of bf16 pairs. */
#include <immintrin.h>

#define GEMM_ROWS 6
#define GEMM_VECS 4

/* Keeps an operand in a register; gcc would load it anew for each of its uses. */
INLINE void vf_hold(vf *x) { __asm__("" : "+v"(*x)); }

INLINE vf vf_max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }

INLINE vf vf_load_bf16(const char *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return (vf)_mm512_slli_epi32(wide, 16);
}
INLINE vf vf_load_f16(const char *p) {
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
INLINE void vf_store_f16(char *p, vf v) {
    _mm256_storeu_si256((__m256i *)(void *)p,
                        _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
INLINE void vf_store_bf16(char *p, vf v) {
    vu bits = (vu)v, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    vu quiet = (bits >> 16) | 0x40u; /* rounding could carry a NaN into infinity */
    vu half = (vu)vf_select(v != v, (vf)quiet, (vf)rounded);
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16((__m512i)half));
}

#ifdef __AVX512BF16__
#define HAS_DOT 1
/* sum + a0 * b0 + a1 * b1 in every lane, where a and b hold two bf16 (a0 in the low half). */
INLINE vf vf_dot(vf sum, vf a, vf b) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
/* LANES pairs from two rows of bf16. */
INLINE vf vf_pair_bf16(const char *low, const char *high) {
    __m512i l = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)low));
    __m512i h = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)high));
    return (vf)_mm512_or_si512(l, _mm512_slli_epi32(h, 16));
}
#else
#define HAS_DOT 0
#endif
