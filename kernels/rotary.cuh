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

/* cos and sin of 2 pi * turns / 2^64, rounded once: in f64, as f32 would cost an output in f32 more
 * than the rest of a call, and a token has few pairs. */
INLINE float2 cos_sin(uint64_t turns) {
    double cosine, sine;
    sincospi((double)(int64_t)turns * 0x1p-63, &sine, &cosine);
    return make_float2((float)cosine, (float)sine);
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
