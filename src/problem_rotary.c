/* The rules of rotary angles and positions, of a tallow_rotary call and of a tallow_merge call. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "problem.h"

/* --------------------------------------------------------------------------------------------
 * Angles
 * ------------------------------------------------------------------------------------------ */

/* Without rotary its other fields must be zero: no option is silently ignored. */
static bool need_no_angles(const tallow_rotary_angles *a) {
    const char *field = a->theta != 0                  ? "theta"
                        : tallow_present(&a->inv_freq) ? "inv_freq"
                        : tallow_present(&a->cos)      ? "cos"
                        : tallow_present(&a->sin)      ? "sin"
                        : a->attention_factor != 0     ? "attention_factor"
                        : a->pairing                   ? "pairing"
                        : a->mrope                     ? "mrope"
                        : a->mrope_sections[0] || a->mrope_sections[1] || a->mrope_sections[2]
                            ? "mrope_sections"
                            : NULL;
    return tallow_need(!field, "rotary.%s is given: must be zero, as rotary.rotary_dim is 0",
                       field);
}

static bool need_inv_freq(rotary_view *r, const tallow_tensor *t, check_level level) {
    const tensor_rule rule =
        RULE("rotary.inv_freq", DTYPE(TALLOW_F32), "(rotary_dim/2)", r->dim / 2);
    if (!tallow_need_floats(&r->inv_freq, t, level, &rule)) return false;
    for (int64_t i = 0; r->inv_freq.data && level == CHECK_DATA && i < r->dim / 2; i++) {
        const float value = r->inv_freq.data[i * r->inv_freq.stride[0]];
        if (!tallow_need(isfinite(value), "rotary.inv_freq[" INT "] = %g: must be finite", i,
                         (double)value))
            return false;
    }
    return true;
}

static bool need_tables(rotary_view *r, const tallow_rotary_angles *a, check_level level) {
    const char *shape = "(max_position, rotary_dim/2)";
    tensor_view cos, sin;
    if (!tallow_present(&a->cos) && !tallow_present(&a->sin)) return true;
    if (!tallow_need_tensor(&cos, &a->cos, level,
                            &RULE("rotary.cos", ANY_FLOAT, shape, ANY, r->dim / 2)) ||
        !tallow_need_tensor(
            &sin, &a->sin, level,
            &RULE("rotary.sin", DTYPE(a->cos.dtype), shape, a->cos.shape[0], r->dim / 2)))
        return false;
    r->cos = cos.data;
    r->sin = sin.data;
    r->cos_stride = cos.strides[0];
    r->sin_stride = sin.strides[0];
    r->table_rows = a->cos.shape[0];
    r->table_dtype = a->cos.dtype;
    return true;
}

static bool need_sections(rotary_view *r, const int32_t sections[3]) {
    const int64_t wanted = r->mrope ? r->dim / 2 : 0;
    int64_t sum = 0;
    for (int i = 0; i < 3; i++) {
        r->sections[i] = sections[i];
        sum += sections[i];
        if (!tallow_need(sections[i] >= 0 && (r->mrope || !sections[i]),
                         "rotary.mrope_sections[%d] = %d: must be %s", i, (int)sections[i],
                         r->mrope ? "at least 0" : "0, as rotary.mrope is TALLOW_MROPE_NONE"))
            return false;
    }
    return tallow_need(sum == wanted,
                       "rotary.mrope_sections: sum = " INT ": must be rotary_dim/2, " INT, sum,
                       wanted);
}

/* What the frequencies come from: one source, or the default theta. */
static bool need_one_source(const tallow_rotary_angles *a) {
    const bool inv_freq = tallow_present(&a->inv_freq);
    const bool tables = tallow_present(&a->cos) || tallow_present(&a->sin);
    return tallow_need(!inv_freq || a->theta == 0,
                       "rotary.theta = %g: must be 0, as rotary.inv_freq is given", a->theta) &&
           tallow_need(!tables || a->theta == 0,
                       "rotary.theta = %g: must be 0, as rotary.cos and rotary.sin are given",
                       a->theta) &&
           tallow_need(!tables || !inv_freq,
                       "rotary.inv_freq is given: must be absent, as rotary.cos and rotary.sin are "
                       "given") &&
           tallow_need(a->theta == 0 || (isfinite(a->theta) && a->theta >= 1),
                       "rotary.theta = %g: must be finite and at least 1, or 0 for 10000",
                       a->theta);
}

bool tallow_need_angles(rotary_view *r, const tallow_rotary_angles *a, int64_t head_dim,
                        int64_t default_dim, check_level level) {
    *r = (rotary_view){0};
    const int64_t dim = a->rotary_dim ? a->rotary_dim : default_dim;
    if (!dim) return need_no_angles(a);
    r->dim = dim;
    r->theta = a->theta != 0 ? a->theta : 10000;
    r->factor = a->attention_factor != 0 ? a->attention_factor : 1;
    r->pairing = a->pairing;
    r->mrope = a->mrope;
    return tallow_need(dim > 0 && dim <= head_dim && dim % 2 == 0,
                       "rotary.rotary_dim = " INT ": must be even, 2 to head_dim, " INT, dim,
                       head_dim) &&
           tallow_need(isfinite(a->attention_factor) && a->attention_factor >= 0,
                       "rotary.attention_factor = %g: must be finite and more than 0, or 0 for 1",
                       (double)a->attention_factor) &&
           tallow_need(a->pairing == TALLOW_PAIRING_HALF ||
                           a->pairing == TALLOW_PAIRING_INTERLEAVED,
                       "rotary.pairing = %d: must be TALLOW_PAIRING_HALF (0) or "
                       "TALLOW_PAIRING_INTERLEAVED (1)",
                       (int)a->pairing) &&
           tallow_need(a->mrope >= TALLOW_MROPE_NONE && a->mrope <= TALLOW_MROPE_INTERLEAVED,
                       "rotary.mrope = %d: must be TALLOW_MROPE_NONE (0), TALLOW_MROPE_CHUNKED (1) "
                       "or TALLOW_MROPE_INTERLEAVED (2)",
                       (int)a->mrope) &&
           need_sections(r, a->mrope_sections) && need_one_source(a) &&
           need_inv_freq(r, &a->inv_freq, level) && need_tables(r, a, level);
}

bool tallow_need_positions(position_view *out, const tallow_tensor *t, const char *name,
                           const rotary_view *r, layout rows_layout, int64_t batch, int64_t rows,
                           check_level level) {
    const unsigned dtypes = DTYPE(TALLOW_I32) | DTYPE(TALLOW_I64);
    const bool packed = rows_layout == LAYOUT_PACKED;
    const int token = (r->mrope ? 1 : 0) + (packed ? 0 : 1); /* dimension of the tokens */
    tensor_rule rule;
    tensor_view view;
    *out = (position_view){0};
    if (!tallow_present(t)) return true;
    if (r->mrope && packed)
        rule = RULE(name, dtypes, "(3, total)", 3, rows);
    else if (r->mrope)
        rule = RULE(name, dtypes, "(3, batch, seqlen)", 3, batch, rows);
    else if (packed)
        rule = RULE(name, dtypes, "(total)", rows);
    else
        rule = RULE(name, dtypes, "(batch, seqlen)", batch, rows);
    if (!tallow_need_strided(&view, t, level, &rule)) return false;
    out->data = view.data;
    out->dtype = t->dtype;
    out->row_stride = view.strides[token];
    out->batch_stride = packed ? 0 : view.strides[token - 1];
    out->mrope_stride = r->mrope ? view.strides[0] : 0;
    return true;
}

/* --------------------------------------------------------------------------------------------
 * tallow_rotary
 * ------------------------------------------------------------------------------------------ */

static bool rotated(rotary_problem *p, const tallow_rotary_params *a) {
    const bool packed = tallow_present(&a->cu_seqlens);
    const int64_t *shape = a->x.shape, starts = a->cu_seqlens.shape[0];
    const char *text =
        packed ? "packed (total, heads, head_dim)" : "(batch, seqlen, heads, head_dim)";
    tensor_rule x = RULE("x", ANY_FLOAT, text, ANY, ANY, ANY, ANY);
    tensor_rule out = RULE("out", DTYPE(a->x.dtype), text, 0);
    out.written = true;
    memcpy(out.sizes, shape, sizeof out.sizes);
    p->x_layout = packed ? LAYOUT_PACKED : LAYOUT_DENSE;
    p->batch = !packed ? shape[0] : starts > 0 ? starts - 1 : 0;
    p->rows = shape[packed ? 0 : 1];
    p->heads = shape[packed ? 1 : 2];
    p->head_dim = shape[packed ? 2 : 3];
    p->dtype = a->x.dtype;
    return tallow_need_rows(&p->x, &a->x, CHECK_DATA, &x) &&
           tallow_need_ints(&p->cu_seqlens, &a->cu_seqlens, CHECK_DATA,
                            &RULE("cu_seqlens", DTYPE(TALLOW_I32), "(batch + 1)", p->batch + 1)) &&
           tallow_need(p->head_dim >= 2 && p->head_dim <= 1024,
                       "x.shape[%d] = " INT ": head_dim must be 2 to 1024", packed ? 2 : 3,
                       p->head_dim) &&
           tallow_need_rows(&p->out, &a->out, CHECK_DATA, &out) &&
           tallow_need_same_place("out", &p->out, "x", &p->x);
}

static bool turned(rotary_problem *p, const tallow_rotary_params *a) {
    return tallow_need_angles(&p->rotary, &a->rotary, p->head_dim, p->head_dim, CHECK_DATA) &&
           tallow_need_positions(&p->positions, &a->positions, "positions", &p->rotary, p->x_layout,
                                 p->batch, p->rows, CHECK_DATA) &&
           tallow_need_ints(&p->offset, &a->offset, CHECK_DATA,
                            &RULE("offset", DTYPE(TALLOW_I32), "(batch)", p->batch)) &&
           tallow_need(!p->offset.data || !p->positions.data,
                       "offset is given: must be absent, as positions is given");
}

static bool rotary_data(const rotary_problem *p) {
    if (!tallow_need_starts("cu_seqlens", &p->cu_seqlens, p->batch, p->rows)) return false;
    for (int64_t b = 0; b < p->batch; b++) {
        const bool packed = p->x_layout == LAYOUT_PACKED;
        const int64_t row = packed ? int_at(&p->cu_seqlens, b) : 0;
        const int64_t end = packed ? int_at(&p->cu_seqlens, b + 1) : p->rows;
        const int64_t offset = p->offset.data ? int_at(&p->offset, b) : 0;
        if (!tallow_need(offset >= 0, "offset[" INT "] = " INT ": must be at least 0", b, offset) ||
            !tallow_need_position_values("positions", &p->positions, &p->rotary, b, row, end - row,
                                         offset))
            return false;
    }
    return true;
}

tallow_status tallow_rotary_problem_init(rotary_problem *p, const tallow_rotary_params *caller,
                                         size_t params_size) {
    enum { OLDEST = sizeof(void *) == 8 ? 696 : sizeof(tallow_rotary_params) }; /* in version 0.1 */
    _Static_assert(sizeof(tallow_rotary_params) >= OLDEST, "params only grow");
    tallow_rotary_params a;
    tallow_status status = tallow_copy_params(&a, sizeof a, OLDEST, caller, params_size);
    if (status) return status;
    *p = (rotary_problem){
        .device = a.device, .threads = a.threads, .stream = a.stream, .pack = a.pack};
    const bool ok = tallow_need_device(a.device, a.threads, a.stream, a.pack) && rotated(p, &a) &&
                    turned(p, &a) && (a.device == TALLOW_DEVICE_CUDA || rotary_data(p));
    return ok ? TALLOW_OK : TALLOW_INVALID_ARGUMENT;
}

/* --------------------------------------------------------------------------------------------
 * tallow_merge
 * ------------------------------------------------------------------------------------------ */

/* out_a says the sizes; it is packed when its fourth size is 0, which no head_dim_v can be. */
static bool merged_rows(merge_problem *p, const tallow_merge_params *a) {
    const int64_t *shape = a->out_a.shape;
    const bool packed = !shape[3];
    const char *text =
        packed ? "packed (total_q, heads, head_dim_v)" : "(batch, seqlen_q, heads, head_dim_v)";
    tensor_rule first = RULE("out_a", ANY_FLOAT, text, ANY, ANY, ANY, ANY);
    tensor_rule second = RULE("out_b", ANY_FLOAT, text, 0);
    tensor_rule result = RULE("out", ANY_FLOAT, text, 0);
    result.written = true;
    memcpy(second.sizes, shape, sizeof second.sizes);
    memcpy(result.sizes, shape, sizeof result.sizes);
    p->batch = packed ? 1 : shape[0];
    p->seqlen_q = shape[packed ? 0 : 1];
    p->heads = shape[packed ? 1 : 2];
    p->head_dim_v = shape[packed ? 2 : 3];
    return tallow_need_rows(&p->out_a, &a->out_a, CHECK_DATA, &first) &&
           tallow_need(p->head_dim_v >= 1, "out_a.shape[2] = 0: head_dim_v must be at least 1") &&
           tallow_need_rows(&p->out_b, &a->out_b, CHECK_DATA, &second) &&
           tallow_need_rows(&p->out, &a->out, CHECK_DATA, &result) &&
           tallow_need_same_place("out", &p->out, "out_a", &p->out_a) &&
           tallow_need_same_place("out", &p->out, "out_b", &p->out_b);
}

static bool need_same_lse(const merge_problem *p, const char *name, const float *data,
                          const int64_t strides[2]) {
    const bool empty = !p->batch || !p->heads || !p->seqlen_q;
    return tallow_need(p->lse != data || empty ||
                           (p->lse_stride[0] == strides[0] && p->lse_stride[1] == strides[1]),
                       "lse.data = %s.data: must have the same strides to be written over it",
                       name);
}

static bool merged_lse(merge_problem *p, const tallow_merge_params *a) {
    const bool packed = !a->out_a.shape[3];
    tensor_rule rule = RULE("lse_a", DTYPE(TALLOW_F32), "(batch, heads, seqlen_q)", p->batch,
                            p->heads, p->seqlen_q);
    float *lse_a, *lse_b;
    if (packed) rule = RULE("lse_a", DTYPE(TALLOW_F32), "(heads, total_q)", p->heads, p->seqlen_q);
    if (!tallow_need_lse(&lse_a, p->lse_a_stride, &a->lse_a, CHECK_DATA, &rule)) return false;
    rule.name = "lse_b";
    if (!tallow_need_lse(&lse_b, p->lse_b_stride, &a->lse_b, CHECK_DATA, &rule)) return false;
    rule.name = "lse";
    rule.written = true;
    p->lse_a = lse_a;
    p->lse_b = lse_b;
    return !tallow_present(&a->lse) ||
           (tallow_need_lse(&p->lse, p->lse_stride, &a->lse, CHECK_DATA, &rule) &&
            need_same_lse(p, "lse_a", lse_a, p->lse_a_stride) &&
            need_same_lse(p, "lse_b", lse_b, p->lse_b_stride));
}

tallow_status tallow_merge_problem_init(merge_problem *p, const tallow_merge_params *caller,
                                        size_t params_size) {
    enum { OLDEST = sizeof(void *) == 8 ? 496 : sizeof(tallow_merge_params) }; /* in version 0.1 */
    _Static_assert(sizeof(tallow_merge_params) >= OLDEST, "params only grow");
    tallow_merge_params a;
    tallow_status status = tallow_copy_params(&a, sizeof a, OLDEST, caller, params_size);
    if (status) return status;
    *p = (merge_problem){
        .device = a.device, .threads = a.threads, .stream = a.stream, .pack = a.pack};
    const bool ok = tallow_need_device(a.device, a.threads, a.stream, a.pack) &&
                    merged_rows(p, &a) && merged_lse(p, &a);
    return ok ? TALLOW_OK : TALLOW_INVALID_ARGUMENT;
}
