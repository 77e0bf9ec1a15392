#define _POSIX_C_SOURCE 200809L

#include "case.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "reference.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(SANITIZED)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size)   ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

/* Every tensor of a call that lies in device memory; rotary.inv_freq stays in the host's. */
#define FIELD(name)                                                                                \
    { #name, offsetof(tallow_attention_params, name) }
static const struct {
    const char *name;
    size_t offset;
} FIELDS[] = {
    FIELD(q),
    FIELD(k),
    FIELD(v),
    FIELD(out),
    FIELD(lse),
    FIELD(cu_seqlens_q),
    FIELD(cu_seqlens_k),
    FIELD(seqused_k),
    FIELD(leftpad_k),
    FIELD(block_table),
    FIELD(cache_batch_idx),
    FIELD(alibi_slopes),
    FIELD(sinks),
    FIELD(prefix_ranges),
    FIELD(k_new),
    FIELD(v_new),
    FIELD(cu_seqlens_k_new),
    FIELD(rotary.cos),
    FIELD(rotary.sin),
    FIELD(positions_q),
    FIELD(positions_k_new),
};
enum { UNTOUCHED = 0xa5, FIELD_COUNT = sizeof FIELDS / sizeof FIELDS[0] };

static tallow_tensor *field(tallow_attention_params *p, int i) {
    return (tallow_tensor *)(void *)((char *)p + FIELDS[i].offset);
}

/* The block that an address lies in; -1: none. */
static int block_of(const attention_case *c, const void *data) {
    for (int i = 0; i < c->block_count; i++) {
        const uint8_t *memory = c->blocks[i].memory, *at = data;
        if (at >= memory && at < memory + c->blocks[i].bytes) return i;
    }
    return -1;
}

/* ---- running ---- */

static void guard(const attention_case *c, bool closed) {
    for (int i = 0; i < c->block_count; i++) {
        const case_block *block = &c->blocks[i];
        ASAN_UNPOISON_MEMORY_REGION(block->memory, block->bytes);
        if (!closed) continue;
        ASAN_POISON_MEMORY_REGION(block->memory, block->begin);
        ASAN_POISON_MEMORY_REGION(block->memory + block->end, block->bytes - block->end);
    }
}

/* With a workspace of just the bytes that the call asks for, nothing behind it may be touched. */
static tallow_status run_in_workspace(tallow_attention_params *p, bool *intact) {
    enum { BEHIND = 256 };
    void *memory = NULL;
    size_t bytes;
    tallow_status status = tallow_attention_workspace(p, sizeof *p, &bytes);
    if (status != TALLOW_OK) return status;
    if (posix_memalign(&memory, 256, bytes + BEHIND) != 0) abort();
    memset(memory, UNTOUCHED, bytes + BEHIND);
    p->workspace = memory;
    p->workspace_size = bytes;
    ASAN_POISON_MEMORY_REGION((char *)memory + bytes, BEHIND);
    status = tallow_attention(p, sizeof *p);
    ASAN_UNPOISON_MEMORY_REGION((char *)memory + bytes, BEHIND);
    for (size_t i = bytes; i < bytes + BEHIND; i++)
        *intact = *intact && ((unsigned char *)memory)[i] == UNTOUCHED;
    free(memory);
    return status;
}

static tallow_status run_on_cpu(attention_case *c) {
    tallow_attention_params p = c->params;
    guard(c, true);
    tallow_status status = c->o.workspace ? run_in_workspace(&p, &c->workspace_intact)
                                          : tallow_attention(&p, sizeof p);
    guard(c, false);
    return status;
}

tallow_status case_upload(const attention_case *c, const case_device *device,
                          tallow_attention_params *p, uint8_t *copies[CASE_BLOCKS]) {
    *p = c->params;
    p->device = TALLOW_DEVICE_CUDA;
    p->stream = device->stream;
    tallow_status status = tallow_attention_workspace(p, sizeof *p, &p->workspace_size);
    if (status != TALLOW_OK) return status;
    void *scratch = malloc(p->workspace_size + 1);
    if (!scratch) abort();
    memset(scratch, 0xff, p->workspace_size + 1); /* a workspace may hold anything */
    p->workspace = device->upload(device->context, scratch, p->workspace_size + 1);
    free(scratch);
    for (int i = 0; i < c->block_count; i++)
        copies[i] = device->upload(device->context, c->blocks[i].memory, c->blocks[i].bytes);
    for (int i = 0; i < FIELD_COUNT; i++) {
        tallow_tensor *t = field(p, i);
        int block = t->data ? block_of(c, t->data) : -1;
        if (block >= 0) t->data = copies[block] + ((uint8_t *)t->data - c->blocks[block].memory);
    }
    return TALLOW_OK;
}

static tallow_status run_on_device(const attention_case *c, const case_device *device) {
    tallow_attention_params p;
    uint8_t *copies[CASE_BLOCKS];
    tallow_status status = case_upload(c, device, &p, copies);
    if (status != TALLOW_OK) return status;
    status = tallow_attention(&p, sizeof p);
    for (int i = 0; i < c->block_count; i++)
        device->download(device->context, c->blocks[i].memory, copies[i], c->blocks[i].bytes);
    void *scratch = malloc(p.workspace_size + 1);
    if (!scratch) abort();
    device->download(device->context, scratch, p.workspace, p.workspace_size + 1);
    free(scratch);
    return status;
}

tallow_status case_run(attention_case *c, const case_device *device) {
    for (int i = 0; i < c->block_count; i++)
        memcpy(c->blocks[i].memory, c->blocks[i].before, c->blocks[i].bytes);
    c->workspace_intact = true;
    return device ? run_on_device(c, device) : run_on_cpu(c);
}

/* ---- comparing ---- */

typedef struct {
    const attention_case *c;
    dimensions d;
    lengths s;
    int64_t b, i, h, at; /* at: of the reference's lse */
    double error2, plain2, norm2;
    double spread;    /* sum over rows of the square of both squared errors */
    double plain_lse; /* worst absolute error */
    case_result *result;
} comparison;

static void complain(comparison *w, const char *what, int64_t channel, double got,
                     double expected) {
    case_result *r = w->result;
    if (r->ok)
        snprintf(r->text, sizeof r->text,
                 "%s of sequence %d, query %d, head %d, channel %d is %.9g, expected %.9g", what,
                 (int)w->b, (int)w->i, (int)w->h, (int)channel, got, expected);
    r->ok = false;
}

/* What a row of out may be when its weights lie below the normal numbers, and may be 0: at least
 * the smallest of those times the largest row of V. */
static double smallest_row(const comparison *w, double norm) {
    const tallow_attention_params *p = &w->c->params;
    double largest = 1, *value;
    if (norm > FLT_MIN * 1e20) return 0; /* V is never so large */
    value = malloc((size_t)w->d.head_dim_v * sizeof *value);
    if (!value) abort();
    for (int64_t j = 0; j < w->s.seqlen_k; j++) {
        double norm2 = 0;
        reference_key(p, ARITHMETIC_F64, true, w->b, w->h / (w->d.heads / w->d.heads_kv), j, value);
        for (int64_t c = 0; c < w->d.head_dim_v; c++) norm2 += value[c] * value[c];
        if (isfinite(norm2)) largest = fmax(largest, sqrt(norm2));
    }
    free(value);
    return FLT_MIN * largest / (1 - (double)p->dropout_p);
}

/* Adds one row of out to the norms; what is not finite, or exactly 0, must be so. */
static void compare_row(comparison *w) {
    const tallow_tensor *out = &w->c->params.out;
    const double *expected = w->c->out + w->at * w->d.head_dim_v;
    const double *plain = w->c->plain_out + w->at * w->d.head_dim_v;
    const void *row = reference_row(out, w->d.packed_q, w->b, w->s.q_start + w->i, w->h);
    double error2 = 0, plain2 = 0, norm2 = 0;

    for (int64_t c = 0; c < w->d.head_dim_v; c++) {
        double got = reference_load(row, out->dtype, c), e = expected[c];
        bool same = isnan(e) ? isnan(got) : got == e;
        if (!isfinite(e) || !isfinite(got)) {
            if (!same) complain(w, "out", c, got, e);
            continue;
        }
        error2 += (got - e) * (got - e);
        plain2 += (plain[c] - e) * (plain[c] - e);
        norm2 += e * e;
    }
    if (norm2 == 0) {
        if (error2 > 0) complain(w, "out (a row of zeros)", 0, sqrt(error2), 0);
        return;
    }
    const double smallest = smallest_row(w, sqrt(norm2));
    if (sqrt(norm2) < smallest) {
        if (sqrt(error2) > smallest)
            complain(w, "out (a row of subnormal weights)", 0, sqrt(error2), 0);
        return;
    }
    w->spread += (error2 + plain2) * (error2 + plain2);
    w->error2 += error2, w->plain2 += plain2, w->norm2 += norm2;
    w->result->row_error = fmax(w->result->row_error, sqrt(error2 / norm2));
    w->result->plain_row_error = fmax(w->result->plain_row_error, sqrt(plain2 / norm2));
}

/* Within 1e-5, plus what rounding to f32 (and of rotated rows) costs a plain computation. */
static void compare_lse(comparison *w) {
    const tallow_tensor *lse = &w->c->params.lse;
    double e = w->c->lse[w->at];
    if (lse->dtype == 0) return;
    double got = *(float *)(w->d.packed_q ? reference_at(lse, w->h, w->s.q_start + w->i, 0, 0)
                                          : reference_at(lse, w->b, w->h, w->i, 0));
    if (!isfinite(e) || !isfinite(got)) {
        if (isnan(e) ? !isnan(got) : got != e) complain(w, "lse", 0, got, e);
        return;
    }
    double share = fabs(got - e) / (1e-5 * fabs(e) + 1e-6 + 2 * w->plain_lse);
    if (share > 1) complain(w, "lse", 0, got, e);
    w->result->lse_error = fmax(w->result->lse_error, share);
}

static void plain_lse(comparison *w) {
    double error = fabs(w->c->plain_lse[w->at] - w->c->lse[w->at]);
    if (isfinite(error) && error > w->plain_lse) w->plain_lse = error;
}

static void each_row(comparison *w, void (*visit)(comparison *)) {
    for (w->b = 0; w->b < w->d.batch; w->b++) {
        w->s = reference_lengths(&w->c->params, w->b);
        int64_t first = w->d.packed_q ? w->s.q_start : w->b * w->s.seqlen_q;
        for (w->i = 0; w->i < w->s.seqlen_q; w->i++) {
            for (w->h = 0; w->h < w->d.heads; w->h++) {
                w->at = (first + w->i) * w->d.heads + w->h;
                visit(w);
            }
        }
    }
}

static double rounding_unit(int32_t dtype) {
    return dtype == TALLOW_F16 ? 0x1p-11 : dtype == TALLOW_BF16 ? 0x1p-8 : 0x1p-24;
}

/* At most 1.2 times the error of the plain computation (1.45 when precision gives way to speed).
 * Both are norms of a sample of rounding errors, often of a few rows that dwarf the rest. The ratio
 * of two such norms scatters by 1 / sqrt(rows that count), of which twice is granted; and rows may
 * be so few that the plain computation's errors happen to be tiny, hence as much of one rounding:
 * of the 16-bit numbers, or of the products that scores sum up. */
static void judge_norms(comparison *w) {
    const case_options *o = &w->c->o;
    case_result *r = w->result;
    double both = w->error2 + w->plain2, unit = rounding_unit(w->c->params.out.dtype);
    unit = fmax(unit, rounding_unit(TALLOW_F32) * (1 + w->c->magnitude));
    if (o->precision != TALLOW_PRECISION_HIGH) unit = fmax(unit, rounding_unit(o->dtype));
    if (w->norm2 == 0) return;
    double scatter = both > 0 ? sqrt(w->spread) / both : 1; /* both^2 / spread: rows that count */
    double factor = (o->precision == TALLOW_PRECISION_FAST ? 1.45 : 1.2) + 2 * scatter;
    r->error = sqrt(w->error2 / w->norm2);
    r->plain_error = sqrt(w->plain2 / w->norm2);
    if (r->plain_error >= rounding_unit(TALLOW_F32)) r->ratio = r->error / r->plain_error;
    double limit = factor * r->plain_error + unit * scatter;
    double row_limit = (factor + 1) * r->plain_row_error + 2 * unit;
    bool whole = r->error <= limit, worst = r->row_error <= row_limit;
    if ((whole && worst) || !r->ok) return;
    r->ok = false;
    snprintf(r->text, sizeof r->text, "relative error of %s is %.3g, above %.3g (plain: %.3g)",
             whole ? "the worst row" : "out", whole ? r->row_error : r->error,
             whole ? row_limit : limit, whole ? r->plain_row_error : r->plain_error);
}

/* ---- what may be written, and what was ---- */

/* Appended rows: V bit by bit, K within the rounding of an angle error of 1e-6. */
static void compare_appended(comparison *w, int64_t t, int64_t h) {
    const tallow_attention_params *p = &w->c->params;
    double *expected = malloc((size_t)w->d.head_dim * sizeof *expected), reach = 0;
    const void *k = reference_cache_row(p, &p->k, w->b, w->s.used + t, h);
    const void *v = reference_cache_row(p, &p->v, w->b, w->s.used + t, h);
    const void *v_new = reference_row(&p->v_new, w->d.packed_new, w->b, w->s.new_start + t, h);
    if (!expected) abort();

    reference_key(p, ARITHMETIC_F64, false, w->b, h, w->s.used + t - w->s.leftpad, expected);
    for (int64_t c = 0; c < w->d.head_dim; c++) reach = fmax(reach, fabs(expected[c]));
    if (p->rotary.rotary_dim == 0) reach = 0;
    for (int64_t c = 0; c < w->d.head_dim; c++) {
        double got = reference_load(k, p->k.dtype, c);
        double low = reference_round(p->k.dtype, expected[c] - 1e-6 * reach);
        double high = reference_round(p->k.dtype, expected[c] + 1e-6 * reach);
        if (!(got >= low && got <= high)) complain(w, "appended k", c, got, expected[c]);
    }
    if (memcmp(v, v_new, (size_t)w->d.head_dim_v * reference_size(p->v.dtype)) != 0)
        complain(w, "appended v", 0, reference_load(v, p->v.dtype, 0),
                 reference_load(v_new, p->v.dtype, 0));
    free(expected);
}

/* Takes a written place back, in the copy of its block. */
static void forgive(const attention_case *c, uint8_t *const *copies, const void *data, int64_t n,
                    int32_t dtype) {
    int i = block_of(c, data);
    size_t offset = (size_t)((const uint8_t *)data - c->blocks[i].memory);
    memcpy(copies[i] + offset, c->blocks[i].before + offset, (size_t)n * reference_size(dtype));
}

static void forgive_sequence(comparison *w, uint8_t *const *copies) {
    const attention_case *c = w->c;
    const tallow_attention_params *p = &c->params;
    for (int64_t n = 0; n < w->s.seqlen_q * w->d.heads; n++) {
        int64_t row = w->s.q_start + n / w->d.heads, h = n % w->d.heads;
        const void *out = reference_row(&p->out, w->d.packed_q, w->b, row, h);
        forgive(c, copies, out, w->d.head_dim_v, p->out.dtype);
        if (p->lse.dtype == 0) continue;
        const void *lse = w->d.packed_q ? reference_at(&p->lse, h, row, 0, 0)
                                        : reference_at(&p->lse, w->b, h, row, 0);
        forgive(c, copies, lse, 1, TALLOW_F32);
    }
    for (int64_t n = 0; n < w->s.seqlen_new * w->d.heads_kv; n++) {
        w->i = n / w->d.heads_kv, w->h = n % w->d.heads_kv;
        const void *k = reference_cache_row(p, &p->k, w->b, w->s.used + w->i, w->h);
        const void *v = reference_cache_row(p, &p->v, w->b, w->s.used + w->i, w->h);
        compare_appended(w, w->i, w->h);
        forgive(c, copies, k, w->d.head_dim, p->k.dtype);
        forgive(c, copies, v, w->d.head_dim_v, p->v.dtype);
    }
}

/* The name of the tensor in a block. */
static const char *block_name(const attention_case *c, int block) {
    tallow_attention_params p = c->params;
    for (int i = 0; i < FIELD_COUNT; i++)
        if (field(&p, i)->data && block_of(c, field(&p, i)->data) == block) return FIELDS[i].name;
    return "rotary.inv_freq";
}

/* Outside of the rows of out, lse and the appended ones, every byte is as it was. */
static void compare_memory(comparison *w) {
    const attention_case *c = w->c;
    uint8_t *copies[CASE_BLOCKS];
    for (int i = 0; i < c->block_count; i++) {
        copies[i] = malloc(c->blocks[i].bytes);
        if (!copies[i]) abort();
        memcpy(copies[i], c->blocks[i].memory, c->blocks[i].bytes);
    }
    for (w->b = 0; w->b < w->d.batch; w->b++) {
        w->s = reference_lengths(&c->params, w->b);
        forgive_sequence(w, copies);
    }
    for (int i = 0; i < c->block_count; i++) {
        size_t at = 0;
        while (at < c->blocks[i].bytes && copies[i][at] == c->blocks[i].before[at]) at++;
        free(copies[i]);
        if (at == c->blocks[i].bytes) continue;
        snprintf(w->result->text, sizeof w->result->text,
                 "a byte that is not the call's to write changed: %s, byte %lld of its data",
                 block_name(c, i), (long long)at - (long long)c->blocks[i].begin);
        w->result->ok = false;
    }
}

static void compare_workspace(comparison *w) {
    if (w->c->workspace_intact) return;
    w->result->ok = false;
    snprintf(w->result->text, sizeof w->result->text, "memory behind the workspace was written");
}

void case_check(const attention_case *c, case_result *result) {
    comparison w = {.c = c, .d = reference_dimensions(&c->params), .result = result};
    *result = (case_result){.ok = true};
    each_row(&w, plain_lse);
    each_row(&w, compare_row);
    each_row(&w, compare_lse);
    judge_norms(&w);
    compare_memory(&w);
    compare_workspace(&w);
}
