/* The running softmax of a thread's rows. Maxima are those of what lies in S: products when
 * spec::scores is 0, else scores; `scale` turns either into units of log2(e), in one rounding with
 * the subtraction of the maximum. */
#ifndef SOFTMAX_CUH
#define SOFTMAX_CUH

#include "layout.cuh"

/* 2^x: by the special function unit, within 2 ulp; for f32 by a polynomial, within 1 ulp. */
INLINE float power_of_two(float x) {
    float y;
    if (!spec::full) {
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
        return y;
    }
    x = x < -127.0f ? -127.0f : x; /* NaN stays */
    float t = x + 12582912.0f, f = x - (t - 12582912.0f);
    y = fmaf(0.0001537070482f, f, 0.001339984829f);
    y = fmaf(y, f, 0.009618373251f);
    y = fmaf(y, f, 0.05550329035f);
    y = fmaf(y, f, 0.2402264846f);
    y = fmaf(y, f, 0.6931472056f);
    y = fmaf(y, f, 1.0f);
    return y * __uint_as_float((__float_as_uint(t) + 127) << 23);
}

/* Weights of f16 are kept larger by 2^15, which their format just holds: else those that are small
 * beside the largest, and may be all that dropout leaves, would lose bits. Maxima that leave the
 * kernel are smaller by as much. */
constexpr float weight_bits = spec::f16 ? 15 : 0;

INLINE float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
INLINE float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

/* The warps of a row group wait for each other. Barrier 0 is the whole block's. */
INLINE void group_barrier() {
    if (tile::row_warps == 1)
        __syncthreads();
    else
        asm volatile("bar.sync %0, %1;" ::"r"(1 + row_warp()), "n"(32 * tile::column_warps)
                     : "memory");
}

/* What the warps of a group hold of a row, each in its place; read back in a fixed order. */
INLINE uint32_t exchange_at(uint32_t memory, int i, int warp) {
    return memory + layout::maxima + (row_in_tile(i) * tile::column_warps + warp) * 4;
}
INLINE void put_exchange(uint32_t memory, const row_values &x) {
    if (lane_id() % 4 == 0) {
        UNROLL for (int i = 0; i < tile::row_states; i++)
            set_shared_f32(exchange_at(memory, i, column_warp()), x[i]);
    }
    group_barrier();
}

struct softmax_state {
    row_values max, sum; /* sum: of this thread's keys */
};

/* What weights are relative to under a row's maximum, in units of log2(e). Whoever needs it takes
 * it from here: it is rounded, which does no harm as long as it is rounded alike. */
INLINE float base_of(float max, float scale) { return fmaf(max, scale, -weight_bits); }

INLINE void clear(softmax_state &state) {
    UNROLL for (int i = 0; i < tile::row_states; i++) {
        state.max[i] = MINUS_INFINITY;
        state.sum[i] = 0;
    }
}
INLINE void clear(out_block &o) {
    UNROLL for (int m = 0; m < tile::row_parts; m++)
        UNROLL for (int n = 0; n < tile::column_parts; n++)
            UNROLL for (int c = 0; c < 4; c++) o[m][n][c] = 0;
}

/* The largest score of each row among the keys that this thread, or with column warps the whole
 * group, holds. */
INLINE void row_maxima(row_values &largest, const score_block &s, uint32_t memory) {
    UNROLL for (int i = 0; i < tile::row_states; i++) {
        /* one chain of maxima, or where there are registers two that need not wait for each other
         * */
        const int second = spec::family == 90;
        float chain[2] = {s[i / 2][0][i % 2 * 2], s[i / 2][0][i % 2 * 2 + second]};
        UNROLL for (int n = 0; n < tile::key_parts; n++)
            UNROLL for (int c = 0; c < 2; c++)
                chain[c * second] = fmaxf(chain[c * second], s[i / 2][n][i % 2 * 2 + c]);
        largest[i] = second ? fmaxf(chain[0], chain[1]) : chain[0];
    }
    if constexpr (tile::column_warps > 1) {
        UNROLL for (int i = 0; i < tile::row_states; i++) largest[i] = quad_max(largest[i]);
        put_exchange(memory, largest);
        UNROLL for (int i = 0; i < tile::row_states; i++)
            UNROLL for (int warp = 0; warp < tile::column_warps; warp++)
                largest[i] = fmaxf(largest[i], shared_f32(exchange_at(memory, i, warp)));
    }
}

/* The same beside maxima that are not negative: as integers, three at a time. What is negative then
 * compares wrong, but below them all the same; and NaN above, which the sum shows anyway. */
INLINE void row_maxima_above(row_values &largest, const score_block &s, const row_values &max) {
    UNROLL for (int i = 0; i < tile::row_states; i++) {
        int chain[2] = {__float_as_int(max[i]), __float_as_int(max[i])};
        UNROLL for (int n = 0; n < tile::key_parts; n++) {
            const float *pair = &s[i / 2][n][i % 2 * 2];
            chain[n % 2] = __vimax3_s32(chain[n % 2], __float_as_int(pair[0]),
                                        __float_as_int(pair[1]));
        }
        largest[i] = __int_as_float(most(chain[0], chain[1]));
    }
}

/* Whether all of the warp's rows have seen a key. */
INLINE bool all_have_maxima(const row_values &max) {
    bool all = true;
    UNROLL for (int i = 0; i < tile::row_states; i++) all &= max[i] != MINUS_INFINITY;
    return __all_sync(~0u, all);
}

INLINE bool none_negative(const row_values &max) {
    bool none = true;
    UNROLL for (int i = 0; i < tile::row_states; i++) none &= max[i] >= 0;
    return none;
}

/* Raises the maxima to those of S, brings sums to them, and tells of each row by which factor, so
 * that O follows; false when none of the warp's rows had a larger score, as in most blocks of keys.
 * Then nothing is exchanged and O stays as it is, which changes no bit: the factor would be 1.
 * `above`: no maximum is negative. */
template <class function>
INLINE bool raise_maxima(const score_block &s, softmax_state &state, const bool above, float scale,
                         uint32_t memory, function tell) {
    row_values largest;
    bool raised = false;
    if (above)
        row_maxima_above(largest, s, state.max);
    else
        row_maxima(largest, s, memory);
    UNROLL for (int i = 0; i < tile::row_states; i++) raised |= largest[i] > state.max[i];
    if (!__any_sync(~0u, raised)) return false;
    UNROLL for (int i = 0; i < tile::row_states; i++) {
        float new_max = quad_max(fmaxf(largest[i], state.max[i]));
        float factor = power_of_two(base_of(state.max[i], scale) - base_of(new_max, scale));
        if (state.max[i] == new_max) factor = 1; /* both may be -inf */
        state.max[i] = new_max;
        state.sum[i] *= factor;
        tell(i, factor);
    }
    return true;
}

/* Brings row i of O to a new maximum. */
INLINE void rescale(out_block &o, const int i, float factor) {
    UNROLL for (int n = 0; n < tile::column_parts; n++) {
        o[i / 2][n][i % 2 * 2] *= factor;
        o[i / 2][n][i % 2 * 2 + 1] *= factor;
    }
}

/* Scores of the warp's keys [8 * begin, 8 * end) become weights. */
INLINE void weigh(score_block &s, softmax_state &state, float scale, const int begin,
                  const int end) {
    UNROLL for (int i = 0; i < tile::row_states; i++) {
        float base = state.max[i] == MINUS_INFINITY ? 0 : base_of(state.max[i], scale);
        UNROLL for (int n = begin; n < end; n++)
            UNROLL for (int c = 0; c < 2; c++) {
                float &x = s[i / 2][n][i % 2 * 2 + c];
                x = power_of_two(fmaf(x, scale, -base));
            }
        UNROLL for (int n = begin; n < end; n++)
            state.sum[i] += s[i / 2][n][i % 2 * 2] + s[i / 2][n][i % 2 * 2 + 1];
    }
}

/* Sums over all of a row's keys. */
INLINE void finish_sums(row_values &sum, uint32_t memory) {
    UNROLL for (int i = 0; i < tile::row_states; i++) sum[i] = quad_sum(sum[i]);
    if constexpr (tile::column_warps > 1) {
        group_barrier(); /* maxima have been read */
        put_exchange(memory, sum);
        UNROLL for (int i = 0; i < tile::row_states; i++) {
            sum[i] = 0;
            UNROLL for (int warp = 0; warp < tile::column_warps; warp++)
                sum[i] += shared_f32(exchange_at(memory, i, warp));
        }
    }
}

#endif
