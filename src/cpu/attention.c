/* Attention of one tile, compiled once per instruction set (LEVEL).
 *
 * For every block of keys: pack K, S = Q K^T, scale and mask S, fold its row maxima into the
 * running ones, P = exp2(S - max), pack V, O = O * correction + P V. Scores are kept in units of
 * log2(e), so that the exponential is a power of two. Products are register-blocked and take their
 * right operand packed in panels of GEMM_VECS vectors; an element of either operand is a 32-bit
 * word: a float, or with `dot` a pair of bf16.
 */
#include "tile.h"
#include "rotary.h"
#include "simd.h"

#define PANEL         (GEMM_VECS * LANES)
#define LOG2E         1.44269504088896341
#define LN2           0.693147180559945309
#define PREFETCH_KEYS 32 /* rows known beyond a block */

#if !HAS_DOT
#define vf_dot(sum, a, b) ((a) * (b) + (sum))
#endif

static int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t element_size(int32_t dtype) { return dtype == TALLOW_F32 ? 4 : 2; }

/* The thread's matrices, carved from the tile's scratch. Strides are in words. */
typedef struct {
    float *q, *s, *p, *o, *k, *v;
    int64_t q_stride, s_stride, p_stride, o_stride;
    int64_t depth;                 /* words of a head's row */
    bool split_q, split_o;         /* see direct.h */
    float *max, *sum, *correction; /* per row; max in log2 units */
} buffers;

/* One block of keys. */
typedef struct {
    int64_t begin, count, columns; /* columns: count rounded up to whole vectors */
    bool masked;                   /* some row does not see some key */
    const char **keys, **values;   /* rows of K and V at this key head; PREFETCH_KEYS more behind */
    const char *const *next_keys;  /* the rows of K that come after these, */
    int64_t next_offset;           /* so many bytes on */
} block;

/* ---- products ---------------------------------------------------------------------------------
 */

/* C = C * scale + A B for `rows` x `vecs` vectors, both compile-time constants; scale null: C = A
 * B. */
INLINE void product_block(int rows, int vecs, bool dot, const float *a, int64_t a_stride,
                          const float *b, int64_t depth, float *c, int64_t c_stride,
                          const float *scale) {
    vf sum[GEMM_ROWS][GEMM_VECS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vecs; v++)
            sum[r][v] = scale ? vf_load(c + r * c_stride + v * LANES) * scale[r] : vf_set(0);
#pragma GCC unroll 4
    for (int64_t w = 0; w < depth; w++, b += vecs * LANES) {
        vf right[GEMM_VECS];
        for (int v = 0; v < vecs; v++) right[v] = vf_load(b + v * LANES);
        for (int r = 0; r < rows; r++) {
            vf left = vf_set(a[r * a_stride + w]);
            for (int v = 0; v < vecs; v++)
                sum[r][v] = dot ? vf_dot(sum[r][v], left, right[v]) : left * right[v] + sum[r][v];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vecs; v++) vf_store(c + r * c_stride + v * LANES, sum[r][v]);
}

#define ROWS_VECS(R, V)                                                                            \
    case (R)*8 + (V):                                                                              \
        product_block(R, V, dot, a, a_stride, b, depth, c, c_stride, scale);                       \
        break;
#if GEMM_VECS == 4
#define ROWS(R) ROWS_VECS(R, 1) ROWS_VECS(R, 2) ROWS_VECS(R, 3) ROWS_VECS(R, 4)
#else
#define ROWS(R) ROWS_VECS(R, 1) ROWS_VECS(R, 2)
#endif

INLINE void product_rows(int rows, int vecs, bool dot, const float *a, int64_t a_stride,
                         const float *b, int64_t depth, float *c, int64_t c_stride,
                         const float *scale) {
    switch (rows * 8 + vecs) {
        ROWS(1)
        ROWS(2)
        ROWS(3)
        ROWS(4)
#if GEMM_ROWS == 6
        ROWS(5) ROWS(6)
#endif
    }
}

/* C (rows, columns) = C * scale + A (rows, depth) B, B packed in panels; columns whole vectors. */
INLINE void product_as(bool dot, int64_t rows, int64_t depth, int64_t columns, const float *a,
                       int64_t a_stride, const float *b, float *c, int64_t c_stride,
                       const float *scale) {
    int64_t blocks = (rows + GEMM_ROWS - 1) / GEMM_ROWS;
    for (int64_t column = 0; column < columns; column += PANEL) {
        int vecs = (int)(least(PANEL, columns - column) / LANES);
        for (int64_t i = 0; i < blocks; i++) { /* even blocks: 8 rows are 4 + 4, not 6 + 2 */
            int64_t r = rows * i / blocks, end = rows * (i + 1) / blocks;
            product_rows((int)(end - r), vecs, dot, a + r * a_stride, a_stride, b + column * depth,
                         depth, c + r * c_stride + column, c_stride, scale ? scale + r : NULL);
        }
    }
}

static void product(bool dot, int64_t rows, int64_t depth, int64_t columns, const float *a,
                    int64_t a_stride, const float *b, float *c, int64_t c_stride,
                    const float *scale) {
    if (HAS_DOT && dot)
        product_as(true, rows, depth, columns, a, a_stride, b, c, c_stride, scale);
    else
        product_as(false, rows, depth, columns, a, a_stride, b, c, c_stride, scale);
}

/* ---- packing ----------------------------------------------------------------------------------
 */

/* Stands for rows that are not there: beyond the last key, or set apart. */
static const char zero_row[4 * TALLOW_MAX_HEAD_DIM];

INLINE vf load_words(int32_t dtype, bool pairs, const char *row, int64_t word, int64_t words) {
    int64_t size = pairs ? 4 : element_size(dtype), count = words - word;
    if (count < LANES) return vf_load_part(pairs ? TALLOW_F32 : dtype, row + word * size, count);
    return vf_load_as(pairs ? TALLOW_F32 : dtype, row + word * size);
}

INLINE void prefetch_row(const char *row, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i);
}

/* Stores a column of K^T, or the two that a column of bf16 pairs holds; returns where the next
 * goes. */
INLINE float *store_depth(float *to, int64_t width, bool split, vf x) {
    if (!split) {
        vf_store(to, x);
        return to + width;
    }
    vf_store(to, (vf)((vu)x << 16));
    vf_store(to + width, (vf)((vu)x & 0xffff0000u));
    return to + 2 * width;
}

/* K^T: columns are keys, depth the elements of a head. Rows of bf16 are transposed in pairs, and
 * stay pairs with `dot`. */
INLINE void pack_keys_as(int32_t dtype, bool dot, const block *keys, int64_t head_dim,
                         float *packed) {
    bool pairs = dtype == TALLOW_BF16, split = pairs && !dot;
    int64_t words = pairs ? head_dim / 2 : head_dim, depth = dot ? words : head_dim;
    for (int64_t column = 0; column < keys->columns; column += LANES) {
        const char **from = keys->keys + column;
        int64_t panel = column / PANEL * PANEL, width = least(PANEL, keys->columns - panel);
        float *to = packed + panel * depth + column - panel;
        for (int64_t l = 0; l < LANES; l++)
            prefetch_row(from[l + PREFETCH_KEYS], head_dim * element_size(dtype));
        for (int64_t word = 0; word < words; word += LANES) {
            vf rows[LANES];
            for (int l = 0; l < LANES; l++)
                rows[l] = load_words(dtype, pairs, from[l], word, words);
            vf_transpose(rows);
            if (word + LANES <= words)
                for (int i = 0; i < LANES; i++) to = store_depth(to, width, split, rows[i]);
            else
                for (int i = 0; i < words - word; i++) to = store_depth(to, width, split, rows[i]);
        }
    }
}

static void pack_keys(int32_t dtype, bool dot, const block *keys, int64_t head_dim, float *packed) {
    if (HAS_DOT && dot)
        pack_keys_as(TALLOW_BF16, true, keys, head_dim, packed);
    else if (dtype == TALLOW_BF16)
        pack_keys_as(TALLOW_BF16, false, keys, head_dim, packed);
    else if (dtype == TALLOW_F16)
        pack_keys_as(TALLOW_F16, false, keys, head_dim, packed);
    else
        pack_keys_as(TALLOW_F32, false, keys, head_dim, packed);
}

/* One row of V as row `index` of the packed operand; load(c, end) is the vector at column c of a
 * row that ends at `end`. The whole panels go first, in a loop of constant length. */
#define PACK_ROW(packed, depth, index, head_dim, load)                                             \
    do {                                                                                           \
        int64_t column = 0, step = (depth)*PANEL;                                                  \
        float *to = (packed) + (index)*PANEL;                                                      \
        for (; column + PANEL <= (head_dim); column += PANEL, to += step)                          \
            for (int v = 0; v < GEMM_VECS; v++)                                                    \
                vf_store(to + v * LANES, load(column + v * LANES, column + PANEL));                \
        to += (index) * (round_up(head_dim, LANES) - column - PANEL); /* a narrower panel */       \
        for (; column < (head_dim); column += LANES, to += LANES)                                  \
            vf_store(to, load(column, head_dim));                                                  \
    } while (0)

/* V: columns are the head's elements, depth the keys (with dot: pairs of keys). */
INLINE void pack_values_as(int32_t dtype, const block *keys, int64_t head_dim, float *packed) {
    for (int64_t key = 0; key < keys->count; key++) {
        const char *from = keys->values[key];
        prefetch_row(keys->values[key + PREFETCH_KEYS], head_dim * element_size(dtype));
#define LOAD(c, end) load_words(dtype, false, from, c, end)
        PACK_ROW(packed, keys->count, key, head_dim, LOAD);
#undef LOAD
    }
}

#if HAS_DOT
INLINE vf load_pairs(const char *low, const char *high, int64_t column, int64_t head_dim) {
    char part[2][2 * LANES] = {{0}};
    if (column + LANES <= head_dim) return vf_pair_bf16(low + column * 2, high + column * 2);
    memcpy(part[0], low + column * 2, (size_t)(head_dim - column) * 2);
    memcpy(part[1], high + column * 2, (size_t)(head_dim - column) * 2);
    return vf_pair_bf16(part[0], part[1]);
}

static void pack_value_pairs(const block *keys, int64_t head_dim, float *packed) {
    int64_t depth = (keys->count + 1) / 2;
    for (int64_t pair = 0; pair < depth; pair++) {
        const char *const *rows = keys->values + 2 * pair; /* an odd count has a zero row behind */
        prefetch_row(rows[PREFETCH_KEYS], head_dim * 2);
        prefetch_row(rows[PREFETCH_KEYS + 1], head_dim * 2);
#define LOAD(c, end) load_pairs(rows[0], rows[1], c, end)
        PACK_ROW(packed, depth, pair, head_dim, LOAD);
#undef LOAD
    }
}
#endif

static void pack_values(int32_t dtype, bool dot, const block *keys, int64_t head_dim,
                        float *packed) {
#if HAS_DOT
    if (dot) {
        pack_value_pairs(keys, head_dim, packed);
        return;
    }
#endif
    (void)dot;
    if (dtype == TALLOW_BF16)
        pack_values_as(TALLOW_BF16, keys, head_dim, packed);
    else if (dtype == TALLOW_F16)
        pack_values_as(TALLOW_F16, keys, head_dim, packed);
    else
        pack_values_as(TALLOW_F32, keys, head_dim, packed);
}

#include "direct.h"

/* ---- rows -------------------------------------------------------------------------------------
 */

typedef struct {
    int64_t query, head, position; /* position: the query's, in keys */
} row_id;

static row_id row_of(const tile *t, int64_t r) {
    int64_t packed = t->row_begin + r, group = t->p->group, query = packed / group;
    return (row_id){query, t->head_kv * group + packed % group,
                    query + t->seq.seqlen_k - t->seq.seqlen_q};
}

static char *query_row(const tile *t, const rows_view *view, row_id id) {
    return view->data +
           (t->b * view->batch_stride + (t->seq.q_start + id.query) * view->row_stride +
            id.head * view->head_stride) *
               element_size(view->dtype);
}

static void rotate_query(const tile *t, row_id id, float *x) {
    float cosines[TALLOW_MAX_ROTARY_PAIRS], sines[TALLOW_MAX_ROTARY_PAIRS];
    int64_t position[3];
    const rotary_view *rotary = &t->p->rotary;
    int64_t batch = t->p->q_layout == LAYOUT_PACKED ? 0 : t->b;
    tallow_rotary_positions(&t->p->positions_q, rotary, batch, t->seq.q_start + id.query,
                            t->seq.append_at + id.query, position);
    tallow_rotary_token(rotary, t->turns, position, cosines, sines);
    tallow_rotary_apply(rotary, cosines, sines, x);
}

/* Q as the left operand: words of the product, rotated and rounded to q's dtype if asked. */
static void load_queries(const tile *t, const buffers *buf) {
    const problem *p = t->p;
    int64_t d = p->head_dim, size = element_size(p->dtype);
    for (int64_t r = 0; r < t->rows; r++) {
        row_id id = row_of(t, r);
        const char *from = query_row(t, &p->q, id);
        float *to = buf->q + r * buf->q_stride, x[TALLOW_MAX_HEAD_DIM + TILE_LANES];
        memset(to, 0, (size_t)buf->q_stride * sizeof(float));
        if (!t->plan->dot_bf16 || p->rotary.dim > 0) {
            for (int64_t i = 0; i < d; i += LANES)
                vf_store(x + i, load_words(p->dtype, false, from, i, d));
            if (p->rotary.dim > 0) rotate_query(t, id, x);
            for (int64_t i = 0; i < d && p->rotary.dim > 0; i += LANES) { /* round once */
                char rounded[4 * LANES];
                vf_store_as(p->dtype, rounded, vf_load(x + i));
                if (t->plan->dot_bf16)
                    memcpy((char *)to + i * 2, rounded, (size_t)least(LANES, d - i) * 2);
                vf_store(x + i, vf_load_as(p->dtype, rounded));
            }
            for (int64_t i = 0; i < d && !t->plan->dot_bf16; i++)
                to[buf->split_q ? split_at(i) : i] = x[i];
        } else {
            memcpy(to, from, (size_t)(d * size));
        }
    }
}

/* ---- visibility -------------------------------------------------------------------------------
 */

typedef struct {
    int64_t begin, end;
} interval;

/* Keys that the causal or window mask shows to a query at `position`. */
static interval window_of(const tile *t, int64_t position) {
    return (interval){most(0, position - t->p->window_left),
                      least(t->seq.seqlen_k, position + t->p->window_right + 1)};
}

/* Prefix range `i` of this sequence, cut to its keys; empty when unused. */
static interval prefix_range(const tile *t, int64_t i) {
    const int_view *v = &t->p->prefix_ranges;
    const int32_t *at = v->data + t->b * v->stride[0] + i * v->stride[1];
    return (interval){most(0, at[0]), least(t->seq.seqlen_k, at[v->stride[2]])};
}

/* prefix_range as it stands for queries: uncut, since a query's position may lie beyond any bound.
 */
static bool in_prefix_range(const tile *t, int64_t i, int64_t position) {
    const int_view *v = &t->p->prefix_ranges;
    const int32_t *at = v->data + t->b * v->stride[0] + i * v->stride[1];
    return at[0] <= position && position < at[v->stride[2]];
}

static bool visible(const tile *t, int64_t position, int64_t key) {
    interval w = window_of(t, position);
    if (w.begin <= key && key < w.end) return true;
    for (int64_t i = 0; i < t->p->max_ranges; i++) {
        interval range = prefix_range(t, i);
        if (range.begin <= key && key < range.end && in_prefix_range(t, i, position)) return true;
    }
    return false;
}

/* Whether some query of the tile may see a key of [begin, end), and whether all see all. */
static bool block_visible(const tile *t, int64_t begin, int64_t end, bool *all) {
    int64_t first = row_of(t, 0).position, last = row_of(t, t->rows - 1).position;
    interval low = window_of(t, first), high = window_of(t, last);
    *all = high.begin <= begin && end <= low.end;
    if (most(begin, low.begin) < least(end, high.end)) return true;
    for (int64_t i = 0; i < t->p->max_ranges; i++) {
        interval range = prefix_range(t, i);
        if (most(begin, range.begin) >= least(end, range.end)) continue;
        for (int64_t position = first; position <= last; position++)
            if (in_prefix_range(t, i, position)) return true;
    }
    return false;
}

/* The keys from the first to the last that some query of the tile may see. */
static interval tile_keys(const tile *t) {
    interval keys = {window_of(t, row_of(t, 0).position).begin,
                     window_of(t, row_of(t, t->rows - 1).position).end};
    for (int64_t i = 0; i < t->p->max_ranges; i++) {
        interval range = prefix_range(t, i);
        if (range.begin >= range.end) continue;
        bool empty = keys.begin >= keys.end;
        keys.begin = empty ? range.begin : least(keys.begin, range.begin);
        keys.end = empty ? range.end : most(keys.end, range.end);
    }
    return (interval){most(keys.begin, t->key_begin), least(keys.end, t->key_end)};
}

/* ---- softmax ----------------------------------------------------------------------------------
 */

INLINE vi lanes_within(vi lane, int64_t begin, int64_t end) {
    int32_t from = (int32_t)most(least(begin, INT32_MAX), 0);
    int32_t to = (int32_t)most(least(end, INT32_MAX), 0);
    return (lane >= from) & (lane < to);
}

/* Which of the block's columns [column, column + LANES) the row sees. */
INLINE vi visible_lanes(const tile *t, const block *keys, int64_t position, interval window,
                        int64_t column) {
    vi lane = vi_iota() + (int32_t)column;
    vi seen = lanes_within(lane, window.begin - keys->begin, window.end - keys->begin);
    for (int64_t i = 0; i < t->p->max_ranges; i++)
        if (in_prefix_range(t, i, position)) {
            interval range = prefix_range(t, i);
            seen |= lanes_within(lane, range.begin - keys->begin, range.end - keys->begin);
        }
    return seen & (lane < (int32_t)keys->count);
}

/* |position - key| of the block's columns, times -slope. */
INLINE vf alibi_bias(const block *keys, int64_t position, int64_t column, float slope) {
    vi distance = vi_iota() + (int32_t)(keys->begin + column - position);
    vf gap = __builtin_convertvector(distance, vf);
    return vf_max(gap, -gap) * -slope;
}

/* A row of products becomes a row of scores, in log2 units; returns the largest. */
static float score_row(const tile *t, const block *keys, row_id id, float *s) {
    const problem *p = t->p;
    vf largest = vf_set(-INFINITY);
    const float scale = (float)(p->softmax_scale * LOG2E), cap = (float)(p->softcap * LOG2E);
    if (p->softcap == 0 && !p->alibi_slopes.data && !keys->masked && keys->count == keys->columns) {
        for (int64_t c = 0; c < keys->columns; c += LANES) {
            vf x = vf_load(s + c) * scale;
            vf_store(s + c, x);
            largest = vf_max(largest, x);
        }
        return vf_largest(largest);
    }
    interval window = window_of(t, id.position);
    const float_view *slopes = &p->alibi_slopes;
    float slope = 0;
    if (slopes->data)
        slope =
            (float)(LOG2E * slopes->data[t->b * slopes->stride[0] + id.head * slopes->stride[1]]);
    for (int64_t c = 0; c < keys->columns; c += LANES) {
        vf x = vf_load(s + c);
        x = p->softcap > 0 ? cap * vf_tanh(x * p->softmax_scale / p->softcap) : x * scale;
        if (slopes->data) x += alibi_bias(keys, id.position, c, slope);
        x = vf_select(visible_lanes(t, keys, id.position, window, c), x, vf_set(-INFINITY));
        vf_store(s + c, x);
        largest = vf_max(largest, x);
    }
    return vf_largest(largest);
}

static uint32_t high_product(uint32_t a, uint32_t b) { return (uint32_t)((uint64_t)a * b >> 32); }

/* Philox4x32-10 (Salmon et al.): four words from a counter and a key. */
static void philox(uint32_t counter[4], uint32_t key0, uint32_t key1) {
    const uint32_t m0 = 0xD2511F53u, m1 = 0xCD9E8D57u;
    for (int round = 0; round < 10; round++, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
        uint32_t c0 = counter[0], c2 = counter[2];
        counter[0] = high_product(m1, c2) ^ counter[1] ^ key0;
        counter[2] = high_product(m0, c0) ^ counter[3] ^ key1;
        counter[1] = m1 * c2;
        counter[3] = m0 * c0;
    }
}

/* The weights that stay are scaled by 1 / (1 - p) at the end, in f32, with the normalisation. */
static void drop_row(const tile *t, const block *keys, row_id id, float *weights) {
    const problem *p = t->p;
    uint64_t threshold = (uint64_t)ceil(p->dropout_p * 0x1p32);
    uint32_t word[4] = {0};
    for (int64_t c = 0; c < keys->count; c++) {
        int64_t key = keys->begin + c;
        if (c == 0 || key % 4 == 0) {
            word[0] = (uint32_t)(key / 4);
            word[1] = (uint32_t)id.query;
            word[2] = (uint32_t)(t->b * p->heads + id.head);
            word[3] = (uint32_t)p->dropout_offset;
            philox(word, (uint32_t)p->dropout_seed,
                   (uint32_t)(p->dropout_seed >> 32) ^ (uint32_t)(p->dropout_offset >> 32));
        }
        if (word[key % 4] < threshold) weights[c] = 0;
    }
}

/* S becomes P, the running maxima and sums take the block in, and `correction` is what O must be
 * multiplied by. */
static void softmax(const tile *t, const buffers *buf, const block *keys) {
    for (int64_t r = 0; r < t->rows; r++) {
        row_id id = row_of(t, r);
        float *s = buf->s + r * buf->s_stride, largest = score_row(t, keys, id, s);
        float old = buf->max[r], new = old > largest ? old : largest;
        float reference = new == -INFINITY ? 0 : new; /* no key seen yet: exp2(-inf - 0) is 0 */
        float correction = vf_exp2(vf_set(old - reference))[0];
        vf sum = vf_set(0);
        for (int64_t c = 0; c < keys->columns; c += LANES) {
            vf weight = vf_exp2(vf_load(s + c) - reference);
            sum += weight;
            vf_store(s + c, weight);
        }
        buf->max[r] = new;
        buf->sum[r] = buf->sum[r] * correction + vf_sum(sum);
        buf->correction[r] = correction;
        if (t->p->dropout_p > 0) drop_row(t, keys, id, s);
        if (t->plan->dot_bf16 && !t->direct)
            for (int64_t c = 0; c < keys->columns; c += LANES)
                vf_store_bf16((char *)(buf->p + r * buf->p_stride) + c * 2, vf_load(s + c));
    }
}

/* ---- values -----------------------------------------------------------------------------------
 */

static bool finite_row(int32_t dtype, const char *row, int64_t count) {
    vf zero = vf_set(0);
    for (int64_t i = 0; i < count; i += LANES)
        zero += load_words(dtype, false, row, i, count) * 0.0f;
    return vf_sum(zero) == 0;
}

/* O += P[:, column] V[key] for the rows that see the key: the others hold a weight of 0, and 0
 * times inf or NaN would leak. */
static void add_value(const tile *t, const buffers *buf, const block *keys, int64_t column,
                      const char *value) {
    const problem *p = t->p;
    for (int64_t r = 0; r < t->rows; r++) {
        if (!visible(t, row_of(t, r).position, keys->begin + column)) continue;
        float weight = buf->s[r * buf->s_stride + column], *o = buf->o + r * buf->o_stride;
        for (int64_t i = 0; i < p->head_dim_v; i += STEP) {
            vf x[2];
            load_step(p->dtype, buf->split_o, value + i * element_size(p->dtype), p->head_dim_v - i,
                      x);
            for (int v = 0; v < 2; v++)
                vf_store(o + i + v * LANES, vf_load(o + i + v * LANES) + weight * x[v]);
        }
    }
}

static void accumulate(const tile *t, const buffers *buf, block *keys) {
    const problem *p = t->p;
    bool dot = t->plan->dot_bf16;
    const char *apart[TILE_KEYS]; /* rows with inf or NaN that some query must not see */
    int64_t parted = 0;
    if (keys->masked)
        for (int64_t c = 0; c < keys->count; c++) {
            apart[c] = NULL;
            if (finite_row(p->dtype, keys->values[c], p->head_dim_v)) continue;
            apart[c] = keys->values[c];
            keys->values[c] = zero_row;
            parted++;
        }
    if (t->direct) {
        direct_values(p, t->rows, buf, keys);
    } else {
        pack_values(p->dtype, dot, keys, p->head_dim_v, buf->v);
        product(dot, t->rows, dot ? (keys->count + 1) / 2 : keys->count,
                round_up(p->head_dim_v, LANES), dot ? buf->p : buf->s,
                dot ? buf->p_stride : buf->s_stride, buf->v, buf->o, buf->o_stride,
                buf->correction);
    }
    for (int64_t c = 0; parted > 0 && c < keys->count; c++)
        if (apart[c]) add_value(t, buf, keys, c, apart[c]);
}

/* ---- the tile ---------------------------------------------------------------------------------
 */

static float *carve(char **scratch, int64_t words) {
    float *at = (float *)(void *)*scratch;
    *scratch += round_up(words * (int64_t)sizeof(float), TILE_ALIGN);
    return at;
}

static buffers carve_buffers(const tile *t) {
    const problem *p = t->p;
    bool dot = t->plan->dot_bf16;
    int64_t rows = t->plan->block_rows, keys = t->plan->block_keys,
            all = rows * t->plan->block_heads;
    char *at = t->scratch;
    buffers b;
    b.depth = dot ? p->head_dim / 2 : p->head_dim;
    b.q_stride = round_up(b.depth, TILE_LANES);
    b.s_stride = keys;
    b.p_stride = keys / 2;
    b.o_stride = round_up(p->head_dim_v, TILE_LANES);
    b.q = carve(&at, all * b.q_stride);
    b.s = carve(&at, rows * b.s_stride);
    b.p = carve(&at, dot ? rows * b.p_stride : 0);
    b.o = carve(&at, all * b.o_stride);
    b.k = carve(&at, keys * b.depth);
    b.v = carve(&at, (dot ? keys / 2 : keys) * b.o_stride);
    b.max = carve(&at, all);
    b.sum = carve(&at, all);
    b.correction = carve(&at, all);
    b.split_o = t->direct && p->dtype == TALLOW_BF16;
    b.split_q = b.split_o && !dot;
    return b;
}

/* Writes row r and its lse to the output, or what it has come to so far to the partial results. */
static void finish_row(const tile *t, const buffers *buf, int64_t r) {
    const problem *p = t->p;
    row_id id = row_of(t, r);
    float *o = buf->o + r * buf->o_stride, whole[TALLOW_MAX_HEAD_DIM + TILE_LANES];
    if (buf->split_o) {
        for (int64_t i = 0; i < p->head_dim_v; i++) whole[i] = o[split_at(i)];
        o = whole;
    }
    if (t->partial) {
        float *part = t->partial + r * t->partial_stride;
        memcpy(part, o, (size_t)p->head_dim_v * sizeof(float));
        part[p->head_dim_v] = buf->max[r];
        part[p->head_dim_v + 1] = buf->sum[r];
        return;
    }
    tallow_total all = tallow_tile_total(p, id.head, buf->max[r], buf->sum[r]);
    char *out = query_row(t, &p->out, id);
    for (int64_t i = 0; i < p->head_dim_v; i += LANES) {
        vf x = vf_load(o + i) * all.scale;
        char *to = out + i * element_size(p->out_dtype);
        if (i + LANES <= p->head_dim_v)
            vf_store_as(p->out_dtype, to, x);
        else
            vf_store_part(p->out_dtype, to, x, p->head_dim_v - i);
    }
    if (p->lse)
        p->lse[t->b * p->lse_batch_stride + id.head * p->lse_head_stride + t->seq.q_start +
               id.query] = all.lse;
}

/* Looks up the rows of the block's keys in K or V, and of those to prefetch. */
static void find_rows(const tile *t, const rows_view *view, const block *keys, int64_t end,
                      const char **rows) {
    int64_t size = element_size(view->dtype), head = t->head_kv * view->head_stride * size;
    int64_t most_rows = keys->columns + PREFETCH_KEYS, known = least(end - keys->begin, most_rows);
    if (t->p->k_layout == LAYOUT_PAGED) {
        for (int64_t c = 0; c < known; c++)
            rows[c] = tallow_key_row(t->p, view, &t->seq, t->b, keys->begin + c) + head;
    } else {
        const char *first = tallow_key_row(t->p, view, &t->seq, t->b, keys->begin) + head;
        for (int64_t c = 0; c < known; c++) rows[c] = first + c * view->row_stride * size;
    }
    for (int64_t c = known; c < most_rows; c++) rows[c] = zero_row;
    for (int64_t c = keys->count; c < keys->columns; c++) rows[c] = zero_row;
}

/* The tile's next key head. */
static void next_head(tile *t, buffers *buf) {
    int64_t rows = t->plan->block_rows;
    t->head_kv++;
    if (t->partial) t->partial += t->partial_head_stride;
    buf->q += rows * buf->q_stride;
    buf->o += rows * buf->o_stride;
    buf->max += rows;
    buf->sum += rows;
    buf->correction += rows;
}

/* One block of keys of one head. */
static void take_block(const tile *t, const buffers *buf, block *keys, int64_t end) {
    const problem *p = t->p;
    bool dot = t->plan->dot_bf16;
    find_rows(t, &p->k, keys, end, keys->keys);
    find_rows(t, &p->v, keys, end, keys->values);
    if (t->direct) {
        direct_scores(p, dot, t->rows, buf, keys);
    } else {
        pack_keys(p->dtype, dot, keys, p->head_dim, buf->k);
        product(dot, t->rows, buf->depth, keys->columns, buf->q, buf->q_stride, buf->k, buf->s,
                buf->s_stride, NULL);
    }
    softmax(t, buf, keys);
    accumulate(t, buf, keys);
}

void CONCAT(tallow_tile_, LEVEL)(const tile *whole) {
    const char *key_rows[TILE_KEYS + PREFETCH_KEYS], *value_rows[TILE_KEYS + PREFETCH_KEYS];
    int64_t block_keys = whole->direct ? FEW_KEYS : whole->plan->block_keys;
    int64_t head_bytes = whole->p->k.head_stride * element_size(whole->p->dtype);
    buffers all = carve_buffers(whole), buf = all;
    tile t = *whole;
    for (int64_t h = 0; h < whole->heads_kv; h++, next_head(&t, &buf)) {
        for (int64_t r = 0; r < t.rows; r++) {
            buf.max[r] = -INFINITY;
            buf.sum[r] = 0;
        }
        memset(buf.o, 0, (size_t)(t.rows * buf.o_stride) * sizeof(float));
        load_queries(&t, &buf);
    }
    interval range = tile_keys(whole);
    for (int64_t begin = range.begin; begin < range.end; begin += block_keys) {
        int64_t count = least(block_keys, range.end - begin);
        bool unmasked;
        if (!block_visible(whole, begin, begin + count, &unmasked)) continue;
        t = *whole;
        buf = all;
        for (int64_t h = 0; h < whole->heads_kv; h++, next_head(&t, &buf)) {
            int64_t columns = round_up(count, LANES);
            block keys = {begin,    count,      columns,  !unmasked,
                          key_rows, value_rows, key_rows, head_bytes};
            if (h == whole->heads_kv - 1) {
                keys.next_keys += columns;
                keys.next_offset *= -h;
            }
            take_block(&t, &buf, &keys, range.end);
        }
    }
    t = *whole;
    buf = all;
    for (int64_t h = 0; h < whole->heads_kv; h++, next_head(&t, &buf))
        for (int64_t r = 0; r < t.rows; r++) finish_row(&t, &buf, r);
}
