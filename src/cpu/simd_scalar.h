/* Plain C: whatever the compiler makes of four floats on the baseline instruction set (SSE2, NEON).
 */
#define GEMM_ROWS 4
#define GEMM_VECS 2
#define HAS_DOT   0

INLINE void vf_hold(vf *x) { (void)x; }
INLINE vf vf_max(vf a, vf b) { return vf_select(a > b, a, b); }

INLINE vf vf_load_bf16(const char *p) {
    uint16_t h[LANES];
    memcpy(h, p, sizeof h);
    vf v;
    for (int l = 0; l < LANES; l++) v[l] = tallow_bf16_to_f32(h[l]);
    return v;
}
INLINE vf vf_load_f16(const char *p) {
    uint16_t h[LANES];
    memcpy(h, p, sizeof h);
    vf v;
    for (int l = 0; l < LANES; l++) v[l] = tallow_f16_to_f32(h[l]);
    return v;
}
INLINE void vf_store_bf16(char *p, vf v) {
    uint16_t h[LANES];
    for (int l = 0; l < LANES; l++) h[l] = tallow_f32_to_bf16(v[l]);
    memcpy(p, h, sizeof h);
}
INLINE void vf_store_f16(char *p, vf v) {
    uint16_t h[LANES];
    for (int l = 0; l < LANES; l++) h[l] = tallow_f32_to_f16(v[l]);
    memcpy(p, h, sizeof h);
}
