/* Products of few query rows with K and V where they lie: packing would cost more than it saves.
 * Rows are read in steps of two vectors. Of bf16, a step comes apart as its even elements, then its
 * odd ones (half the work of widening them in order); `split` says that the other operand or the
 * result is in this order too.
 */
#define STEP        (2 * LANES)
#define DIRECT_ROWS 4 /* of a register block */
#define DIRECT_SUMS 8 /* of a register block: enough to hide an addition's latency */

/* Where element i of a row is when split. */
INLINE int64_t split_at(int64_t i) { return i / STEP * STEP + i % 2 * LANES + i % STEP / 2; }

/* `count` elements of a row, STEP at most, and zeros behind them. */
INLINE void load_step(int32_t dtype, bool split, const char *row, int64_t count, vf x[2]) {
    char part[4 * STEP] = {0};
    if (count < STEP) {
        memcpy(part, row, (size_t)(count * element_size(dtype)));
        row = part;
    }
    if (split) {
        vu pairs = (vu)vf_load((const float *)(const void *)row);
        x[0] = (vf)(pairs << 16);
        x[1] = (vf)(pairs & 0xffff0000u);
    } else {
        x[0] = vf_load_as(dtype, row);
        x[1] = vf_load_as(dtype, row + LANES * element_size(dtype));
    }
}

/* out[i]: the sum of x[i]'s lanes. Every fold halves the vectors and what a lane has left to add.
 */
INLINE void vf_sums(vf x[DIRECT_SUMS], float *out) {
#if LANES >= DIRECT_SUMS
    float lanes[LANES];
#define LOW(l)  (((l)&HALF) ? LANES + (l)-HALF : (l))
#define HIGH(l) (((l)&HALF) ? LANES + (l) : (l) + HALF)
#define FOLD(count)                                                                                \
    for (int i = 0; i < (count); i++)                                                              \
        x[i] = __builtin_shufflevector(x[i], x[i + (count)], EACH_LANE(LOW)) +                     \
               __builtin_shufflevector(x[i], x[i + (count)], EACH_LANE(HIGH));
#define HALF (LANES / 2)
    FOLD(4)
#undef HALF
#define HALF (LANES / 4)
    FOLD(2)
#undef HALF
#define HALF (LANES / 8)
    FOLD(1)
#undef HALF
#undef FOLD
#undef HIGH
#undef LOW
    vf_store(lanes, x[0]);
    for (int i = 0; i < DIRECT_SUMS; i++)
        out[i] = LANES == 8 ? lanes[i] : lanes[2 * i] + lanes[2 * i + 1];
#else
    for (int i = 0; i < DIRECT_SUMS; i++) out[i] = vf_sum(x[i]);
#endif
}

/* sum[r][key] += Q K^T over the step at element `at`, the row's last when `cut`. */
INLINE void direct_scores_step(int rows, int keys, bool cut, int32_t dtype, bool dot,
                               int64_t q_stride, const float *q, const char *const *k, int64_t at,
                               int64_t head_dim, vf *sum) {
    int64_t count = cut ? head_dim - at : STEP;
    vf right[DIRECT_SUMS][2];
    for (int i = 0; i < keys; i++) {
        const char *from = k[i] + at * element_size(dtype);
        if (dot)
            right[i][0] = load_words(TALLOW_F32, false, from, 0, count / 2);
        else
            load_step(dtype, dtype == TALLOW_BF16, from, count, right[i]);
    }
    for (int half = 0; half < (dot ? 1 : 2); half++)
        for (int r = 0; r < rows; r++) {
            vf left = vf_load(q + r * q_stride + (dot ? at / 2 : at + half * LANES));
            vf_hold(&left);
            for (int i = 0; i < keys; i++) {
                vf *to = sum + r * keys + i;
                *to = dot ? vf_dot(*to, left, right[i][0]) : left * right[i][half] + *to;
            }
        }
}

/* S[r][key] of `rows` x `keys` constants, DIRECT_SUMS at most. */
INLINE void direct_scores_block(int rows, int keys, int32_t dtype, bool dot, const buffers *buf,
                                const float *q, const char *const *k, int64_t head_dim, float *s) {
    int64_t q_stride = buf->q_stride, s_stride = buf->s_stride, at = 0;
    vf sum[DIRECT_SUMS];
    float sums[DIRECT_SUMS];
    for (int i = 0; i < DIRECT_SUMS; i++) sum[i] = vf_set(0);
#pragma GCC unroll 2
    for (; at + STEP <= head_dim; at += STEP)
        direct_scores_step(rows, keys, false, dtype, dot, q_stride, q, k, at, head_dim, sum);
    if (at < head_dim)
        direct_scores_step(rows, keys, true, dtype, dot, q_stride, q, k, at, head_dim, sum);
    vf_sums(sum, sums);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < keys; i++) s[r * s_stride + i] = sums[r * keys + i];
}

/* Fetches row by row, the last when the work is done: rows [done, end) of `count` are due. */
INLINE int64_t fetch_rows(const char *const *rows, int64_t offset, int64_t bytes, int64_t done,
                          int64_t end) {
    for (; done < end; done++)
        prefetch_row((const char *)((uintptr_t)rows[done] + (uintptr_t)offset), bytes);
    return end;
}

/* Scores of rows [r, r + rows) with a block of keys, while its values from row `fetched` to row
 * `fetch` come from memory. */
INLINE void direct_scores_rows(int rows, int32_t dtype, bool dot, const problem *p,
                               const buffers *buf, int64_t r, const block *keys, int64_t fetched,
                               int64_t fetch) {
    int64_t step = DIRECT_SUMS / rows, bytes = p->head_dim_v * element_size(dtype), first = fetched;
    for (int64_t c = 0; c < keys->count; c += step) { /* the keys behind the last are there too */
        fetched = fetch_rows(keys->values, 0, bytes, fetched,
                             first + (fetch - first) * least(c + step, keys->count) / keys->count);
        direct_scores_block(rows, (int)step, dtype, dot, buf, buf->q + r * buf->q_stride,
                            keys->keys + c, p->head_dim, buf->s + r * buf->s_stride + c);
    }
}

/* O = O * correction + P V for `rows` x `steps` constants; `last` is a step that may be cut. */
INLINE void direct_values_block(int rows, int steps, bool last, int32_t dtype, const buffers *buf,
                                int64_t first, const block *keys, int64_t column,
                                int64_t head_dim) {
    vf sum[DIRECT_ROWS][DIRECT_SUMS];
    float *o = buf->o + first * buf->o_stride + column;
    const float *weights = buf->s + first * buf->s_stride;
    int vecs = 2 * steps;
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vecs; v++)
            sum[r][v] = vf_load(o + r * buf->o_stride + v * LANES) * buf->correction[first + r];
#pragma GCC unroll 2
    for (int64_t c = 0; c < keys->count; c++) {
        const char *row = keys->values[c] + column * element_size(dtype);
        vf right[DIRECT_SUMS];
        for (int i = 0; i < steps; i++)
            load_step(dtype, dtype == TALLOW_BF16, row + i * STEP * element_size(dtype),
                      last ? head_dim - column : STEP, right + 2 * i);
        for (int r = 0; r < rows; r++) {
            vf left = vf_set(weights[r * buf->s_stride + c]);
            for (int v = 0; v < vecs; v++) sum[r][v] = left * right[v] + sum[r][v];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vecs; v++) vf_store(o + r * buf->o_stride + v * LANES, sum[r][v]);
}

/* Rows [r, r + rows) of O take a block of values in, while rows [fetched, fetch) of the next keys
 * come from memory. */
INLINE void direct_values_rows(int rows, int32_t dtype, const problem *p, const buffers *buf,
                               int64_t r, const block *keys, int64_t fetched, int64_t fetch) {
    int steps = DIRECT_SUMS / 2 / rows ? DIRECT_SUMS / 2 / rows : 1;
    int64_t column = 0, bytes = p->head_dim * element_size(dtype), first = fetched;
    for (; column + steps * STEP <= p->head_dim_v; column += steps * STEP) {
        fetched = fetch_rows(keys->next_keys, keys->next_offset, bytes, fetched,
                             first + (fetch - first) * (column + steps * STEP) / p->head_dim_v);
        direct_values_block(rows, steps, false, dtype, buf, r, keys, column, p->head_dim_v);
    }
    for (; column < p->head_dim_v; column += STEP)
        direct_values_block(rows, 1, true, dtype, buf, r, keys, column, p->head_dim_v);
}

#define EACH_DTYPE(f)                                                                              \
    switch (p->dtype) {                                                                            \
    case TALLOW_BF16: f(TALLOW_BF16) break;                                                        \
    case TALLOW_F16: f(TALLOW_F16) break;                                                          \
    default: f(TALLOW_F32)                                                                         \
    }
#define EACH_ROWS(f, dtype)                                                                        \
    switch (end - r) {                                                                             \
    case 1: f(1, dtype); break;                                                                    \
    case 2: f(2, dtype); break;                                                                    \
    case 3: f(3, dtype); break;                                                                    \
    default: f(4, dtype);                                                                          \
    }

static void direct_scores(const problem *p, bool dot, int64_t rows, const buffers *buf,
                          const block *keys) {
    int64_t blocks = (rows + DIRECT_ROWS - 1) / DIRECT_ROWS;
    for (int64_t i = 0; i < blocks; i++) {
        int64_t r = rows * i / blocks, end = rows * (i + 1) / blocks;
        int64_t fetched = keys->count * i / blocks, fetch = keys->count * (i + 1) / blocks;
#define ROWS_OF(n, dtype)  direct_scores_rows(n, dtype, false, p, buf, r, keys, fetched, fetch)
#define DOT_ROWS(n, dtype) direct_scores_rows(n, dtype, true, p, buf, r, keys, fetched, fetch)
#define BLOCK(dtype)       EACH_ROWS(ROWS_OF, dtype)
        if (HAS_DOT && dot)
            EACH_ROWS(DOT_ROWS, TALLOW_BF16)
        else
            EACH_DTYPE(BLOCK)
#undef BLOCK
#undef DOT_ROWS
#undef ROWS_OF
    }
}

static void direct_values(const problem *p, int64_t rows, const buffers *buf, const block *keys) {
    int64_t blocks = (rows + DIRECT_ROWS - 1) / DIRECT_ROWS;
    for (int64_t i = 0; i < blocks; i++) {
        int64_t r = rows * i / blocks, end = rows * (i + 1) / blocks;
        int64_t fetched = keys->count * i / blocks, fetch = keys->count * (i + 1) / blocks;
#define ROWS_OF(n, dtype) direct_values_rows(n, dtype, p, buf, r, keys, fetched, fetch)
#define BLOCK(dtype)      EACH_ROWS(ROWS_OF, dtype)
        EACH_DTYPE(BLOCK)
#undef BLOCK
#undef ROWS_OF
    }
}
