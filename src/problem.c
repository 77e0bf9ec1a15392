/* The rules of a tallow_attention call, in the order of its fields. What the vectors hold is
 * checked in problem_data.c. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "problem.h"

typedef tallow_attention_params params; /* our own copy of the caller's */

#define UNLIMITED (INT64_MAX / 4)

#define GIVEN(field) tallow_present(&a->field)
#define ROWS(field, dtypes, text, ...)                                                             \
    tallow_need_rows(&p->field, &a->field, level, &RULE(#field, dtypes, text, __VA_ARGS__))
/* Optional; as most calls give few, the rule is made when it is needed. */
#define INTS(field, text, ...)                                                                     \
    (!GIVEN(field) || tallow_need_ints(&p->field, &a->field, level,                                \
                                       &RULE(#field, DTYPE(TALLOW_I32), text, __VA_ARGS__)))
#define FLOATS(field, text, ...)                                                                   \
    (!GIVEN(field) || tallow_need_floats(&p->field, &a->field, level,                              \
                                         &RULE(#field, DTYPE(TALLOW_F32), text, __VA_ARGS__)))

static bool need_range(const char *name, int64_t value, int64_t least, int64_t most) {
    return tallow_need(value >= least && value <= most, "%s = " INT ": must be " INT " to " INT,
                       name, value, least, most);
}

static bool options(problem *p, const params *a) {
    p->device = a->device;
    p->threads = a->threads;
    p->stream = a->stream;
    p->pack = a->pack;
    p->workspace = a->workspace;
    p->workspace_size = a->workspace_size;
    p->num_splits = a->num_splits;
    p->precision = a->precision;
    p->batch_invariant = a->batch_invariant != 0;
    return tallow_need_device(a->device, a->threads, a->stream, a->pack) &&
           need_range("num_splits", a->num_splits, 0, MOST_SPLITS) &&
           need_range("precision", a->precision, TALLOW_PRECISION_DEFAULT, TALLOW_PRECISION_HIGH) &&
           need_range("batch_invariant", a->batch_invariant, 0, 1) &&
           tallow_need((uintptr_t)a->workspace % 256 == 0,
                       "workspace = %p: must be a multiple of 256", a->workspace) &&
           tallow_need(a->workspace || !a->workspace_size,
                       "workspace_size = %zu: must be 0, as workspace is null", a->workspace_size);
}

/* --------------------------------------------------------------------------------------------
 * Tensors and layouts
 * ------------------------------------------------------------------------------------------ */

static bool is_head_dim(int64_t dim, int64_t largest) {
    return (dim % 8 == 0 && dim >= 8 && dim <= 256) || dim == 512 || dim == largest;
}

/* q says the batch, the heads and the dtype of everything. */
static bool queries(problem *p, const params *a, check_level level) {
    const bool packed = GIVEN(cu_seqlens_q);
    const int64_t *shape = a->q.shape, starts = a->cu_seqlens_q.shape[0];
    p->q_layout = packed ? LAYOUT_PACKED : LAYOUT_DENSE;
    p->batch = !packed ? shape[0] : starts > 0 ? starts - 1 : 0;
    p->rows_q = shape[packed ? 0 : 1];
    p->heads = shape[packed ? 1 : 2];
    p->head_dim = shape[packed ? 2 : 3];
    p->dtype = a->q.dtype;
    return (packed
                ? ROWS(q, ANY_FLOAT, "packed (total_q, heads, head_dim)", ANY, ANY, ANY)
                : ROWS(q, ANY_FLOAT, "(batch, seqlen_q, heads, head_dim)", ANY, ANY, ANY, ANY)) &&
           INTS(cu_seqlens_q, "(batch + 1)", p->batch + 1) &&
           tallow_need(p->heads >= 1, "q.shape[%d] = 0: heads must be at least 1",
                       packed ? 1 : 2) &&
           tallow_need(p->batch * p->heads <= INT32_MAX,
                       "q.shape[%d] = " INT ": batch * heads must be at most 2147483647",
                       packed ? 1 : 2, p->heads) &&
           tallow_need(is_head_dim(p->head_dim, 576),
                       "q.shape[%d] = " INT
                       ": head_dim must be a multiple of 8 from 8 to 256, 512 or 576",
                       packed ? 2 : 3, p->head_dim);
}

static bool keys_and_values(problem *p, const params *a, check_level level) {
    static const char *const shapes[][2] = {
        [LAYOUT_DENSE] = {"(batch, seqlen_k, heads_kv, head_dim)",
                          "(batch, seqlen_k, heads_kv, head_dim_v)"},
        [LAYOUT_PACKED] = {"packed (total_k, heads_kv, head_dim)",
                           "packed (total_k, heads_kv, head_dim_v)"},
        [LAYOUT_PAGED] = {"paged (pages, page_size, heads_kv, head_dim)",
                          "paged (pages, page_size, heads_kv, head_dim_v)"},
    };
    const int last = p->k_layout == LAYOUT_PACKED ? 2 : 3;
    tensor_rule k = RULE("k", DTYPE(p->dtype), shapes[p->k_layout][0], ANY, ANY, ANY);
    tensor_rule v = RULE("v", DTYPE(p->dtype), shapes[p->k_layout][1], 0);
    k.written = v.written = GIVEN(k_new);
    if (p->k_layout == LAYOUT_DENSE && !GIVEN(cache_batch_idx)) k.sizes[0] = p->batch;
    memcpy(v.sizes, a->k.shape, sizeof v.sizes);
    k.sizes[last] = p->head_dim;
    v.sizes[last] = ANY;
    p->heads_kv = a->k.shape[last - 1];
    p->head_dim_v = a->v.shape[last];
    return tallow_need_rows(&p->k, &a->k, level, &k) && tallow_need_rows(&p->v, &a->v, level, &v) &&
           tallow_need(p->heads_kv >= 1 && p->heads % p->heads_kv == 0,
                       "k.shape[%d] = " INT ": heads_kv must divide q's heads, " INT, last - 1,
                       p->heads_kv, p->heads) &&
           tallow_need(is_head_dim(p->head_dim_v, 512),
                       "v.shape[%d] = " INT
                       ": head_dim_v must be a multiple of 8 from 8 to 256, or 512",
                       last, p->head_dim_v);
}

static bool pages(problem *p, const params *a, check_level level) {
    p->pages = a->k.shape[0];
    p->page_size = a->k.shape[1];
    p->columns = a->block_table.shape[1];
    if (!INTS(block_table, "(batch, columns)", p->batch, ANY)) return false;
    p->rows_k = p->columns * p->page_size;
    return tallow_need(p->page_size >= 1, "k.shape[1] = 0: page_size must be at least 1") &&
           tallow_need(p->rows_k <= INT32_MAX,
                       "block_table.shape[1] = " INT
                       ": columns * page_size must be at most 2147483647",
                       p->columns);
}

static bool keys(problem *p, const params *a, check_level level) {
    p->k_layout = GIVEN(block_table)    ? LAYOUT_PAGED
                  : GIVEN(cu_seqlens_k) ? LAYOUT_PACKED
                                        : LAYOUT_DENSE;
    if (!keys_and_values(p, a, level)) return false;
    p->group = p->heads / p->heads_kv;
    p->cache_rows = p->k_layout == LAYOUT_DENSE ? a->k.shape[0] : 0;
    p->rows_k = a->k.shape[p->k_layout == LAYOUT_DENSE ? 1 : 0];
    return (p->k_layout != LAYOUT_PAGED || pages(p, a, level)) &&
           tallow_need(!GIVEN(cache_batch_idx) || p->k_layout == LAYOUT_DENSE,
                       "cache_batch_idx is given: must be absent, as k is %s",
                       p->k_layout == LAYOUT_PAGED ? "paged" : "packed");
}

static bool outputs(problem *p, const params *a, check_level level) {
    const unsigned dtypes = DTYPE(p->dtype) | DTYPE(TALLOW_F32), f32 = DTYPE(TALLOW_F32);
    tensor_rule out = RULE("out", dtypes, "(batch, seqlen_q, heads, head_dim_v)", p->batch,
                           p->rows_q, p->heads, p->head_dim_v);
    tensor_rule lse = RULE("lse", f32, "(batch, heads, seqlen_q)", p->batch, p->heads, p->rows_q);
    int64_t strides[2] = {0};
    if (p->q_layout == LAYOUT_PACKED) {
        out = RULE("out", dtypes, "packed (total_q, heads, head_dim_v)", p->rows_q, p->heads,
                   p->head_dim_v);
        lse = RULE("lse", f32, "packed (heads, total_q)", p->heads, p->rows_q);
    }
    out.written = lse.written = true;
    p->out_dtype = a->out.dtype;
    if (!tallow_need_rows(&p->out, &a->out, level, &out) ||
        (GIVEN(lse) && !tallow_need_lse(&p->lse, strides, &a->lse, level, &lse)))
        return false;
    p->lse_batch_stride = strides[0];
    p->lse_head_stride = strides[1];
    return true;
}

/* --------------------------------------------------------------------------------------------
 * Lengths
 * ------------------------------------------------------------------------------------------ */

static bool lengths(problem *p, const params *a, check_level level) {
    return INTS(cu_seqlens_k, "(batch + 1)", p->batch + 1) &&
           INTS(seqused_k, "(batch)", p->batch) && INTS(leftpad_k, "(batch)", p->batch) &&
           INTS(cache_batch_idx, "(batch)", p->batch);
}

/* The caller's bound, or what the shapes allow. `exact`: every sequence has that length. */
static bool bound(int64_t *out, const char *name, int64_t given, int64_t possible, bool exact) {
    *out = given && given < possible ? given : possible;
    return tallow_need(given >= 0, "%s = " INT ": must be at least 0", name, given) &&
           tallow_need(!exact || *out == possible,
                       "%s = " INT ": must be 0 or at least " INT
                       ", as the sequences are that long",
                       name, given, possible);
}

static bool bounds(problem *p, const params *a) {
    const bool all_rows = p->batch && p->q_layout == LAYOUT_DENSE;
    const bool all_keys =
        p->batch && !GIVEN(cu_seqlens_k) && !GIVEN(seqused_k) && !GIVEN(leftpad_k);
    p->max_seqlen_new = p->rows_new;
    return bound(&p->max_seqlen_q, "max_seqlen_q", a->max_seqlen_q, p->rows_q, all_rows) &&
           bound(&p->max_seqlen_k, "max_seqlen_k", a->max_seqlen_k, p->rows_k, all_keys);
}

/* --------------------------------------------------------------------------------------------
 * Scores, mask, dropout
 * ------------------------------------------------------------------------------------------ */

static bool scores(problem *p, const params *a, check_level level) {
    const bool per_head = !a->alibi_slopes.shape[1];
    p->softcap = a->softcap;
    p->softmax_scale =
        a->softmax_scale != 0 ? a->softmax_scale : (float)(1 / sqrt((double)p->head_dim));
    if (!(per_head ? FLOATS(alibi_slopes, "(heads)", p->heads)
                   : FLOATS(alibi_slopes, "(batch, heads)", p->batch, p->heads)) ||
        !FLOATS(sinks, "(heads)", p->heads) ||
        !tallow_need(isfinite(a->softmax_scale), "softmax_scale = %g: must be finite",
                     (double)a->softmax_scale) ||
        !tallow_need(isfinite(a->softcap) && a->softcap >= 0,
                     "softcap = %g: must be finite and at least 0", (double)a->softcap))
        return false;
    if (per_head) {
        p->alibi_slopes.stride[1] = p->alibi_slopes.stride[0];
        p->alibi_slopes.stride[0] = 0;
    }
    return true;
}

static bool window_side(int64_t *out, const char *name, int64_t given) {
    *out = given == -1 || given > UNLIMITED ? UNLIMITED : given;
    return tallow_need(given >= -1, "%s = " INT ": must be -1, for unlimited, or more", name,
                       given);
}

static bool need_no_window(const char *name, int64_t given) {
    return tallow_need(!given,
                       "%s = " INT ": must be 0 unless mask is TALLOW_MASK_WINDOW (2); a causal "
                       "sliding window is that mask with window_right = 0",
                       name, given);
}

static bool mask(problem *p, const params *a, check_level level) {
    p->max_ranges = a->prefix_ranges.shape[1];
    if (!need_range("mask", a->mask, TALLOW_MASK_NONE, TALLOW_MASK_WINDOW) ||
        !tallow_need(!GIVEN(prefix_ranges) || a->mask != TALLOW_MASK_NONE,
                     "prefix_ranges is given: must be absent unless mask is TALLOW_MASK_CAUSAL (1) "
                     "or TALLOW_MASK_WINDOW (2)") ||
        !INTS(prefix_ranges, "(batch, max_ranges, 2)", p->batch, ANY, 2))
        return false;
    p->window_left = p->window_right = UNLIMITED;
    if (a->mask == TALLOW_MASK_WINDOW)
        return window_side(&p->window_left, "window_left", a->window_left) &&
               window_side(&p->window_right, "window_right", a->window_right);
    if (a->mask == TALLOW_MASK_CAUSAL) p->window_right = 0;
    return need_no_window("window_left", a->window_left) &&
           need_no_window("window_right", a->window_right);
}

static bool dropout(problem *p, const params *a) {
    p->dropout_p = a->dropout_p;
    p->dropout_seed = a->dropout_seed;
    p->dropout_offset = a->dropout_offset;
    return tallow_need(a->dropout_p >= 0 && a->dropout_p < 1,
                       "dropout_p = %g: must be at least 0 and less than 1", (double)a->dropout_p);
}

/* --------------------------------------------------------------------------------------------
 * Cache step and rotary
 * ------------------------------------------------------------------------------------------ */

static bool append(problem *p, const params *a, check_level level) {
    const unsigned dtype = DTYPE(p->dtype);
    const bool packed = GIVEN(cu_seqlens_k_new);
    if (!tallow_need(GIVEN(k_new) || !GIVEN(v_new),
                     "v_new is given: must be absent without k_new") ||
        !tallow_need(GIVEN(k_new) || !packed,
                     "cu_seqlens_k_new is given: must be absent without k_new"))
        return false;
    if (!GIVEN(k_new)) return true;
    p->new_layout = packed ? LAYOUT_PACKED : LAYOUT_DENSE;
    p->rows_new = a->k_new.shape[packed ? 0 : 1];
    return tallow_need(p->k_layout != LAYOUT_PACKED,
                       "k_new is given: must be absent, as cu_seqlens_k makes k packed") &&
           tallow_need(GIVEN(seqused_k), "seqused_k is absent: must be given with k_new") &&
           INTS(cu_seqlens_k_new, "(batch + 1)", p->batch + 1) &&
           (packed ? ROWS(k_new, dtype, "packed (total_new, heads_kv, head_dim)", ANY, p->heads_kv,
                          p->head_dim) &&
                         ROWS(v_new, dtype, "packed (total_new, heads_kv, head_dim_v)", p->rows_new,
                              p->heads_kv, p->head_dim_v)
                   : ROWS(k_new, dtype, "(batch, seqlen_new, heads_kv, head_dim)", p->batch, ANY,
                          p->heads_kv, p->head_dim) &&
                         ROWS(v_new, dtype, "(batch, seqlen_new, heads_kv, head_dim_v)", p->batch,
                              p->rows_new, p->heads_kv, p->head_dim_v));
}

static bool rotary(problem *p, const params *a, check_level level) {
    const rotary_view *r = &p->rotary;
    return tallow_need_angles(&p->rotary, &a->rotary, p->head_dim, 0, level) &&
           tallow_need(!r->dim || GIVEN(k_new),
                       "rotary.rotary_dim = " INT
                       ": must be 0 without k_new; tallow_rotary rotates on its own",
                       r->dim) &&
           tallow_need(r->dim || !GIVEN(positions_q),
                       "positions_q is given: must be absent, as rotary.rotary_dim is 0") &&
           tallow_need(r->dim || !GIVEN(positions_k_new),
                       "positions_k_new is given: must be absent, as rotary.rotary_dim is 0") &&
           tallow_need_positions(&p->positions_q, &a->positions_q, "positions_q", r, p->q_layout,
                                 p->batch, p->rows_q, level) &&
           tallow_need_positions(&p->positions_new, &a->positions_k_new, "positions_k_new", r,
                                 p->new_layout, p->batch, p->rows_new, level);
}

tallow_status tallow_problem_init(problem *p, const params *caller, size_t params_size,
                                  check_level level) {
    enum { OLDEST = sizeof(void *) == 8 ? 1912 : sizeof(params) }; /* in version 0.1 */
    _Static_assert(sizeof(params) >= OLDEST, "params only grow");
    params copy;
    const params *a = &copy;
    tallow_status status = tallow_copy_params(&copy, sizeof copy, OLDEST, caller, params_size);
    if (status) return status;
    *p = (problem){0};
    const bool ok = options(p, a) && queries(p, a, level) && keys(p, a, level) &&
                    outputs(p, a, level) && lengths(p, a, level) && scores(p, a, level) &&
                    mask(p, a, level) && dropout(p, a) && append(p, a, level) &&
                    rotary(p, a, level) && bounds(p, a);
    if (!ok) return TALLOW_INVALID_ARGUMENT;
    p->masked = p->window_left < UNLIMITED || p->window_right < UNLIMITED;
    return level == CHECK_DATA && p->device == TALLOW_DEVICE_CPU ? tallow_problem_check_data(p)
                                                                 : TALLOW_OK;
}
