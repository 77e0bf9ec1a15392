/* Rotary embedding of one token's heads by one thread block. Angles are exact at any position: a
 * position times the fixed-point turns of a pair wraps modulo one turn by itself. */
#ifndef ROTARY_CUH
#define ROTARY_CUH

#include "elements.cuh"

/* Position in row `mrope` of a token: of row `row` (counted in all when packed) of sequence b. */
INLINE int64_t token_position(const positions_arg &p, int mrope, int64_t b, int64_t row,
                              int64_t implicit) {
    int64_t index = mrope * p.mrope_stride + b * p.batch_stride + row * p.row_stride;
    if (!p.data) return implicit;
    return p.wide ? ((const int64_t *)p.data)[index] : ((const int32_t *)p.data)[index];
}

/* Which row of M-RoPE positions a pair takes. */
INLINE int mrope_row(const angles_arg &r, int pair) {
    if (r.mrope == 1) return (pair >= r.sections[0]) + (pair >= r.sections[0] + r.sections[1]);
    int row = pair % 3;
    int section = row == 0 ? r.sections[0] : row == 1 ? r.sections[1] : r.sections[2];
    return r.mrope == 2 && pair < 3 * section ? row : 0;
}

/* cos and sin of 2 pi * turns / 2^64: the nearest quarter turn, and polynomials on the rest, at
 * most an eighth of a turn. */
INLINE float2 cos_sin(uint64_t turns) {
    uint32_t quarter = (uint32_t)((turns + ((uint64_t)1 << 61)) >> 62);
    float x = (float)(int64_t)(turns - ((uint64_t)quarter << 62)) * 0x1.921fb6p-62f, z = x * x;
    float c = fmaf(z, 2.44331571e-5f, -1.38873162e-3f);
    c = fmaf(c, z, 4.16666456e-2f);
    c = fmaf(c, z, -0.5f);
    c = fmaf(c, z, 1.0f);
    float s = fmaf(z, -1.95152959e-4f, 8.33216087e-3f);
    s = fmaf(s, z, -1.66666546e-1f);
    s = fmaf(s * z, x, x);
    float2 turned = quarter & 1 ? make_float2(s, c) : make_float2(c, s);
    if ((quarter + 1) & 2) turned.x = -turned.x;
    if (quarter & 2) turned.y = -turned.y;
    return turned;
}

/* The factors of a launch's pairs, by all threads into shared memory. */
INLINE void find_angles(const angles_arg &r, const positions_arg &p, int64_t b, int64_t row,
                        int64_t implicit, float2 *angles) {
    __syncthreads(); /* those of the previous token have been read */
    for (int i = threadIdx.x; i < r.pairs; i += blockDim.x) {
        int pair = r.first_pair + i;
        int64_t position = token_position(p, mrope_row(r, pair), b, row, implicit);
        float2 turned;
        if (r.cos) {
            position = clamp64(position, 0, r.table_rows - 1);
            turned.x = load_element(r.cos, r.table_dtype, position * r.cos_stride + pair);
            turned.y = load_element(r.sin, r.table_dtype, position * r.sin_stride + pair);
        } else {
            turned = cos_sin((uint64_t)position * r.turns[i]);
        }
        angles[i] = make_float2(turned.x * r.factor, turned.y * r.factor);
    }
    __syncthreads();
}

/* Rotates the launch's pairs of `heads` heads in f32 and rounds once. `move`: also copies the rest
 * of each head, of head_dim elements. */
INLINE void rotate_heads(const angles_arg &r, const float2 *angles, const char *from,
                         int64_t from_stride, char *to, int64_t to_stride, int heads, int head_dim,
                         int dtype, bool move) {
    const int first = 2 * r.half, rest = move ? head_dim - first : 0, work = r.pairs + rest;
    for (int i = threadIdx.x; i < heads * work; i += blockDim.x) {
        int head = i / work, item = i - head * work;
        const char *x = from + head * from_stride;
        char *out = to + head * to_stride;
        if (item >= r.pairs) {
            copy_element(out, x, dtype, first + item - r.pairs);
            continue;
        }
        int pair = r.first_pair + item;
        int low = r.pairing == 1 ? 2 * pair : pair, high = r.pairing == 1 ? low + 1 : pair + r.half;
        float a = load_element(x, dtype, low), b = load_element(x, dtype, high);
        float2 turn = angles[item];
        store_element(out, dtype, low, a * turn.x - b * turn.y);
        store_element(out, dtype, high, b * turn.x + a * turn.y);
    }
}

#endif
