#include "reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool present(const tallow_tensor *t) { return t->dtype != 0; }

/* ---- numbers ---- */

size_t reference_size(int32_t dtype) {
    if (dtype == TALLOW_F16 || dtype == TALLOW_BF16) return 2;
    return dtype == TALLOW_I64 ? 8 : 4;
}

/* Significant bits and least exponent of a normal number, as frexp counts. */
static void format_of(int32_t dtype, int *digits, int *least, int *most) {
    *digits = dtype == TALLOW_F16 ? 11 : dtype == TALLOW_BF16 ? 8 : 24;
    *least = dtype == TALLOW_F16 ? -13 : -125;
    *most = dtype == TALLOW_F16 ? 16 : 128;
}

double reference_round(int32_t dtype, double value) {
    int digits, least, most, exponent;
    if (!isfinite(value) || value == 0) return value;
    format_of(dtype, &digits, &least, &most);
    frexp(value, &exponent);
    int last = (exponent > least ? exponent : least) - digits;
    double rounded = ldexp(rint(ldexp(value, -last)), last);
    return fabs(rounded) < ldexp(1, most) ? rounded : copysign(INFINITY, value);
}

double reference_load(const void *data, int32_t dtype, int64_t index) {
    if (dtype == TALLOW_F32) return ((const float *)data)[index];
    if (dtype == TALLOW_I32) return ((const int32_t *)data)[index];
    if (dtype == TALLOW_I64) return (double)((const int64_t *)data)[index];
    int bits = ((const uint16_t *)data)[index];
    int fraction_bits = dtype == TALLOW_F16 ? 10 : 7, bias = dtype == TALLOW_F16 ? 15 : 127;
    int fraction = bits & ((1 << fraction_bits) - 1), exponent = (bits & 0x7fff) >> fraction_bits;
    double value = ldexp(fraction, 1 - bias - fraction_bits);
    if (exponent > 0)
        value = ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
    if (exponent == 2 * bias + 1) value = fraction ? NAN : INFINITY;
    return bits & 0x8000 ? -value : value;
}

/* The bits of a value that the 16-bit format holds. */
static uint16_t encode(int32_t dtype, double value) {
    int fraction_bits = dtype == TALLOW_F16 ? 10 : 7, bias = dtype == TALLOW_F16 ? 15 : 127;
    int sign = signbit(value) ? 0x8000 : 0, exponent;
    value = fabs(value);
    if (isnan(value)) return 0x7fff;
    if (isinf(value)) return (uint16_t)(sign | (2 * bias + 1) << fraction_bits);
    frexp(value, &exponent);
    exponent += bias - 1;
    if (value == 0 || exponent < 1) exponent = 1;
    int fraction = (int)ldexp(value, bias + fraction_bits - exponent);
    /* The hidden bit, where there is one, is the exponent's last step from denormal. */
    return (uint16_t)(sign | (((exponent - 1) << fraction_bits) + fraction));
}

void reference_store(void *data, int32_t dtype, int64_t index, double value) {
    value = reference_round(dtype, value);
    if (dtype == TALLOW_F32)
        ((float *)data)[index] = (float)value;
    else
        ((uint16_t *)data)[index] = encode(dtype, value);
}

/* ---- places ---- */

int64_t reference_stride(const tallow_tensor *t, int dimension) {
    bool contiguous = !t->strides[0] && !t->strides[1] && !t->strides[2] && !t->strides[3];
    int64_t stride = 1;
    if (!contiguous) return t->strides[dimension];
    for (int d = dimension + 1; d < 4; d++) stride *= t->shape[d] ? t->shape[d] : 1;
    return stride;
}

void *reference_at(const tallow_tensor *t, int64_t a, int64_t b, int64_t c, int64_t d) {
    int64_t offset = a * reference_stride(t, 0) + b * reference_stride(t, 1) +
                     c * reference_stride(t, 2) + d * reference_stride(t, 3);
    return (char *)t->data + offset * (int64_t)reference_size(t->dtype);
}

void *reference_row(const tallow_tensor *t, bool packed, int64_t b, int64_t row, int64_t h) {
    return packed ? reference_at(t, row, h, 0, 0) : reference_at(t, b, row, h, 0);
}

void *reference_cache_row(const tallow_attention_params *p, const tallow_tensor *t, int64_t b,
                          int64_t row, int64_t h) {
    lengths s = reference_lengths(p, b);
    if (!present(&p->block_table))
        return reference_row(t, present(&p->cu_seqlens_k), s.cache_row, s.k_start + row, h);
    int64_t page = *(int32_t *)reference_at(&p->block_table, b, row / t->shape[1], 0, 0);
    return reference_row(t, false, page, row % t->shape[1], h);
}

static int32_t entry(const tallow_tensor *t, int64_t i) {
    return *(int32_t *)reference_at(t, i, 0, 0, 0);
}

dimensions reference_dimensions(const tallow_attention_params *p) {
    dimensions d = {.packed_q = present(&p->cu_seqlens_q), .paged = present(&p->block_table)};
    d.packed_k = present(&p->cu_seqlens_k) && !d.paged;
    d.packed_new = present(&p->cu_seqlens_k_new);
    d.batch = d.packed_q ? p->cu_seqlens_q.shape[0] - 1 : p->q.shape[0];
    d.rows = d.packed_q ? p->q.shape[0] : d.batch * p->q.shape[1];
    d.heads = p->q.shape[d.packed_q ? 1 : 2];
    d.head_dim = p->q.shape[d.packed_q ? 2 : 3];
    d.heads_kv = p->k.shape[d.packed_k ? 1 : 2];
    d.head_dim_v = p->v.shape[d.packed_k ? 2 : 3];
    return d;
}

lengths reference_lengths(const tallow_attention_params *p, int64_t b) {
    bool paged = present(&p->block_table);
    lengths s = {.seqlen_q = p->q.shape[1], .used = p->k.shape[1], .cache_row = b};
    if (present(&p->cu_seqlens_q)) {
        s.q_start = entry(&p->cu_seqlens_q, b);
        s.seqlen_q = entry(&p->cu_seqlens_q, b + 1) - s.q_start;
    }
    if (paged) s.used = p->k.shape[1] * p->block_table.shape[1];
    if (present(&p->cu_seqlens_k)) {
        s.used = entry(&p->cu_seqlens_k, b + 1) - entry(&p->cu_seqlens_k, b);
        s.k_start = paged ? 0 : entry(&p->cu_seqlens_k, b);
    }
    if (present(&p->seqused_k)) s.used = entry(&p->seqused_k, b);
    if (present(&p->leftpad_k)) s.leftpad = entry(&p->leftpad_k, b);
    if (present(&p->cache_batch_idx)) s.cache_row = entry(&p->cache_batch_idx, b);
    if (present(&p->k_new)) s.seqlen_new = p->k_new.shape[1];
    if (present(&p->cu_seqlens_k_new)) {
        s.new_start = entry(&p->cu_seqlens_k_new, b);
        s.seqlen_new = entry(&p->cu_seqlens_k_new, b + 1) - s.new_start;
    }
    s.seqlen_k = s.used + s.seqlen_new - s.leftpad;
    return s;
}

/* ---- rotary ---- */

/* In f32 when plain. One operation rounded twice, f64 then f32, is correctly rounded to f32. */
static inline double rounded(arithmetic how, double x) {
    return how == ARITHMETIC_PLAIN ? (float)x : x;
}

/* The row of M-RoPE positions that a pair takes. */
static int mrope_row(const tallow_rotary_angles *r, int64_t pair) {
    if (r->mrope == TALLOW_MROPE_CHUNKED) {
        if (pair < r->mrope_sections[0]) return 0;
        return pair < r->mrope_sections[0] + r->mrope_sections[1] ? 1 : 2;
    }
    if (r->mrope == TALLOW_MROPE_INTERLEAVED && pair < 3 * r->mrope_sections[pair % 3])
        return (int)(pair % 3);
    return 0;
}

/* 64 bits of significand leave a position below 2^31 an error of 1e-10 rad. */
static void cos_sin(const tallow_rotary_angles *r, int64_t pair, int64_t position, double *c,
                    double *s) {
    long double theta = r->theta != 0 ? (long double)r->theta : 10000.0L;
    long double frequency = powl(theta, -2.0L * (long double)pair / (long double)r->rotary_dim);
    if (present(&r->inv_freq)) frequency = *(float *)reference_at(&r->inv_freq, pair, 0, 0, 0);
    double factor = r->attention_factor != 0 ? (double)r->attention_factor : 1;
    *c = (double)cosl((long double)position * frequency) * factor;
    *s = (double)sinl((long double)position * frequency) * factor;
    if (present(&r->cos)) {
        *c = reference_load(reference_at(&r->cos, position, pair, 0, 0), r->cos.dtype, 0) * factor;
        *s = reference_load(reference_at(&r->sin, position, pair, 0, 0), r->sin.dtype, 0) * factor;
    }
}

/* Position of token t (packed row `row`) in one row of M-RoPE. */
static int64_t position_of(const tallow_tensor *t, const tallow_rotary_angles *r, bool packed,
                           int mrope, int64_t b, int64_t token, int64_t implicit) {
    if (!present(t)) return implicit;
    bool three = r->mrope != TALLOW_MROPE_NONE;
    const void *at =
        packed  ? three ? reference_at(t, mrope, token, 0, 0) : reference_at(t, token, 0, 0, 0)
         : three ? reference_at(t, mrope, b, token, 0)
                : reference_at(t, b, token, 0, 0);
    return t->dtype == TALLOW_I64 ? *(const int64_t *)at : *(const int32_t *)at;
}

static void rotate(const tallow_attention_params *p, arithmetic how, const tallow_tensor *positions,
                   bool packed, int64_t b, int64_t token, int64_t implicit, double *x) {
    const tallow_rotary_angles *r = &p->rotary;
    for (int64_t pair = 0; pair < r->rotary_dim / 2; pair++) {
        int64_t position =
            position_of(positions, r, packed, mrope_row(r, pair), b, token, implicit);
        bool half = r->pairing == TALLOW_PAIRING_HALF;
        double *first = x + (half ? pair : 2 * pair),
               *second = first + (half ? r->rotary_dim / 2 : 1);
        double c, s, a = *first, z = *second;
        cos_sin(r, pair, position, &c, &s);
        c = rounded(how, c), s = rounded(how, s);
        *first = rounded(how, rounded(how, a * c) - rounded(how, z * s));
        *second = rounded(how, rounded(how, z * c) + rounded(how, a * s));
        if (how == ARITHMETIC_PLAIN) {
            *first = reference_round(p->q.dtype, *first);
            *second = reference_round(p->q.dtype, *second);
        }
    }
}

void reference_key(const tallow_attention_params *p, arithmetic how, bool value, int64_t b,
                   int64_t h, int64_t j, double *row) {
    dimensions d = reference_dimensions(p);
    lengths s = reference_lengths(p, b);
    const tallow_tensor *cache = value ? &p->v : &p->k, *fresh = value ? &p->v_new : &p->k_new;
    int64_t t = s.leftpad + j - s.used, token = d.packed_new ? s.new_start + t : t;
    const void *data = t < 0 ? reference_cache_row(p, cache, b, s.leftpad + j, h)
                             : reference_row(fresh, d.packed_new, b, token, h);
    int64_t n = value ? d.head_dim_v : d.head_dim;
    for (int64_t c = 0; c < n; c++) row[c] = reference_load(data, cache->dtype, c);
    if (t >= 0 && !value)
        rotate(p, how, &p->positions_k_new, d.packed_new, b, token, s.used + t, row);
}

/* ---- attention ---- */

/* One sequence and key head, decoded: k and v hold seqlen_k rows; scores and sees are scratch. */
typedef struct {
    const tallow_attention_params *p;
    dimensions d;
    lengths s;
    int64_t b, h, i; /* the query row at work */
    double *q, *k, *v, *scores;
    bool *sees;
    double magnitude; /* see reference_attention */
} work;

static bool visible(const work *w, int64_t j) {
    const tallow_attention_params *p = w->p;
    int64_t diagonal = w->i + w->s.seqlen_k - w->s.seqlen_q;
    bool causal = p->mask == TALLOW_MASK_CAUSAL;
    bool left = causal || p->window_left < 0 || diagonal - j <= p->window_left;
    bool right = causal ? j <= diagonal : p->window_right < 0 || j - diagonal <= p->window_right;
    if (p->mask == TALLOW_MASK_NONE || (left && right)) return true;
    for (int64_t r = 0; present(&p->prefix_ranges) && r < p->prefix_ranges.shape[1]; r++) {
        int32_t start = *(int32_t *)reference_at(&p->prefix_ranges, w->b, r, 0, 0);
        int32_t end = *(int32_t *)reference_at(&p->prefix_ranges, w->b, r, 1, 0);
        if (start <= diagonal && diagonal < end && start <= j && j < end) return true;
    }
    return false;
}

/* Philox4x32-10 (Salmon et al.): the key moves by Weyl constants between ten rounds. */
static uint32_t philox(uint32_t key[2], uint32_t counter[4], int word) {
    for (int round = 0; round < 10; round++) {
        uint64_t a = UINT64_C(0xD2511F53) * counter[0], c = UINT64_C(0xCD9E8D57) * counter[2];
        uint32_t next[4] = {(uint32_t)(c >> 32) ^ counter[1] ^ key[0], (uint32_t)c,
                            (uint32_t)(a >> 32) ^ counter[3] ^ key[1], (uint32_t)a};
        memcpy(counter, next, sizeof next);
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return counter[word];
}

static bool dropped(const work *w, int64_t j) {
    const tallow_attention_params *p = w->p;
    uint64_t seed = p->dropout_seed, offset = p->dropout_offset;
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32) ^ (uint32_t)(offset >> 32)};
    uint32_t counter[4] = {(uint32_t)(j / 4), (uint32_t)w->i, (uint32_t)(w->b * w->d.heads + w->h),
                           (uint32_t)offset};
    return p->dropout_p > 0 && philox(key, counter, (int)(j % 4)) < p->dropout_p * 0x1p32;
}

static inline double score(work *w, arithmetic how, int64_t j) {
    const tallow_attention_params *p = w->p;
    double s = 0, sum = 0, scale = (double)p->softmax_scale;
    if (scale == 0) scale = 1 / sqrt((double)w->d.head_dim);
    const double *k = w->k + j * w->d.head_dim;
    for (int64_t c = 0; c < w->d.head_dim; c++) {
        s = rounded(how, s + rounded(how, w->q[c] * k[c]));
        sum += fabs(w->q[c] * k[c]);
    }
    if (isfinite(sum)) w->magnitude = fmax(w->magnitude, sum * fabs(scale));
    s = rounded(how, s * rounded(how, scale));
    if (p->softcap > 0)
        s = rounded(how, p->softcap * rounded(how, tanh(rounded(how, s / p->softcap))));
    if (present(&p->alibi_slopes)) {
        bool batched = p->alibi_slopes.shape[1] != 0;
        float slope = *(float *)(batched ? reference_at(&p->alibi_slopes, w->b, w->h, 0, 0)
                                         : reference_at(&p->alibi_slopes, w->h, 0, 0, 0));
        int64_t distance = w->i + w->s.seqlen_k - w->s.seqlen_q - j;
        s = rounded(how, s - rounded(how, slope * fabs((double)distance)));
    }
    return s;
}

/* Scores, then a softmax with its true maximum, then the weighted sum of V. */
static inline void attend(work *w, arithmetic how, double *out, double *lse) {
    const tallow_attention_params *p = w->p;
    int64_t seen = 0, n = w->d.head_dim_v;
    double sink = present(&p->sinks) ? *(float *)reference_at(&p->sinks, w->h, 0, 0, 0) : -INFINITY;
    double max = sink, sum = 0;
    bool round_p = how == ARITHMETIC_PLAIN && p->precision != TALLOW_PRECISION_HIGH;

    for (int64_t j = 0; j < w->s.seqlen_k; j++) {
        w->sees[j] = visible(w, j);
        if (!w->sees[j]) continue;
        w->scores[j] = score(w, how, j);
        if (w->scores[j] > max) max = w->scores[j];
        seen++;
    }
    for (int64_t c = 0; c < n; c++) out[c] = 0;
    *lse = -INFINITY;
    if (seen == 0) return; /* even with a sink */

    if (present(&p->sinks)) sum = rounded(how, exp(rounded(how, sink - max)));
    for (int64_t j = 0; j < w->s.seqlen_k; j++) {
        if (!w->sees[j]) continue;
        double weight = rounded(how, exp(rounded(how, w->scores[j] - max)));
        sum = rounded(how, sum + weight);
        if (dropped(w, j)) continue;
        if (round_p) weight = reference_round(p->q.dtype, weight);
        const double *v = w->v + j * n;
        for (int64_t c = 0; c < n; c++) out[c] = rounded(how, out[c] + rounded(how, weight * v[c]));
    }
    double divisor = rounded(how, sum * rounded(how, 1 - (double)p->dropout_p));
    for (int64_t c = 0; c < n; c++) {
        out[c] /= divisor;
        if (how == ARITHMETIC_PLAIN) out[c] = reference_round(p->out.dtype, out[c]);
    }
    *lse = rounded(how, max + rounded(how, log(sum)));
}

static void load_query(const work *w, arithmetic how) {
    int64_t row = w->d.packed_q ? w->s.q_start + w->i : w->i;
    const void *data = reference_row(&w->p->q, w->d.packed_q, w->b, row, w->h);
    for (int64_t c = 0; c < w->d.head_dim; c++) w->q[c] = reference_load(data, w->p->q.dtype, c);
    rotate(w->p, how, &w->p->positions_q, w->d.packed_q, w->b, row, w->s.used + w->i, w->q);
}

/* All query rows of one sequence that read one key head. */
static void attend_head(work *w, arithmetic how, int64_t head_kv, double *out, double *lse) {
    int64_t group = w->d.heads / w->d.heads_kv;
    for (int64_t j = 0; j < w->s.seqlen_k; j++) {
        reference_key(w->p, how, false, w->b, head_kv, j, w->k + j * w->d.head_dim);
        reference_key(w->p, how, true, w->b, head_kv, j, w->v + j * w->d.head_dim_v);
    }
    for (w->h = head_kv * group; w->h < (head_kv + 1) * group; w->h++) {
        for (w->i = 0; w->i < w->s.seqlen_q; w->i++) {
            int64_t first = w->d.packed_q ? w->s.q_start : w->b * w->s.seqlen_q;
            int64_t at = (first + w->i) * w->d.heads + w->h;
            load_query(w, how);
            if (how == ARITHMETIC_F64)
                attend(w, ARITHMETIC_F64, out + at * w->d.head_dim_v, lse + at);
            else
                attend(w, ARITHMETIC_PLAIN, out + at * w->d.head_dim_v, lse + at);
        }
    }
}

double reference_attention(const tallow_attention_params *p, arithmetic how, double *out,
                           double *lse) {
    work w = {.p = p, .d = reference_dimensions(p)};
    for (w.b = 0; w.b < w.d.batch; w.b++) {
        w.s = reference_lengths(p, w.b);
        size_t keys = (size_t)w.s.seqlen_k, dim = (size_t)w.d.head_dim,
               dim_v = (size_t)w.d.head_dim_v;
        w.q = malloc(dim * sizeof *w.q);
        w.k = malloc((keys * dim + 1) * sizeof *w.k);
        w.v = malloc((keys * dim_v + 1) * sizeof *w.v);
        w.scores = malloc((keys + 1) * sizeof *w.scores);
        w.sees = malloc(keys + 1);
        if (!w.q || !w.k || !w.v || !w.scores || !w.sees) abort();
        for (int64_t head_kv = 0; head_kv < w.d.heads_kv; head_kv++)
            attend_head(&w, how, head_kv, out, lse);
        free(w.q), free(w.k), free(w.v), free(w.scores), free(w.sees);
    }
    return w.magnitude;
}
