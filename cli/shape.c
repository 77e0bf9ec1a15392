#include "shape.h"

#include <stdio.h>
#include <string.h>

#include "commands.h"

#define DEVICES    "cpu", "cuda"
#define DTYPES     "bf16", "f16", "f32"
#define MASKS      "none", "causal", "window"
#define PRECISIONS "default", "fast", "high"

static const char *const DEVICE_NAMES[] = {DEVICES}, *const DTYPE_NAMES[] = {DTYPES},
                         *const MASK_NAMES[] = {MASKS}, *const PRECISION_NAMES[] = {PRECISIONS};
static const tallow_dtype DTYPE_VALUES[] = {TALLOW_BF16, TALLOW_F16, TALLOW_F32};

#define MAX_SEQLEN 2147483647.0
#define MAX_HEADS  65536.0

static const shape DEFAULTS = {.mask = TALLOW_MASK_CAUSAL,
                               .batch = 1,
                               .seqlen = 4096,
                               .heads = 16,
                               .heads_kv = 2,
                               .head_dim = 128,
                               .window_left = -1};

void shape_options(shape *s, option *options) {
    *s = DEFAULTS;
    const option all[SHAPE_OPTIONS] = {
        {"--device", OPTION_CHOICE, &s->device, "where it runs", .choices = {DEVICES}},
        {"--dtype", OPTION_CHOICE, &s->dtype, "of q, k, v and out", .choices = {DTYPES}},
        {"--batch", OPTION_INT, &s->batch, "sequences", 1, CASE_BATCH},
        {"--seqlen", OPTION_INT, &s->seqlen, "query rows of a sequence", 1, MAX_SEQLEN},
        {"--seqlen-k", OPTION_INT, &s->seqlen_k, "keys of a sequence; 0: as --seqlen", 0,
         MAX_SEQLEN},
        {"--heads", OPTION_INT, &s->heads, "query heads", 1, MAX_HEADS},
        {"--heads-kv", OPTION_INT, &s->heads_kv, "key heads; divides --heads", 1, MAX_HEADS},
        {"--head-dim", OPTION_INT, &s->head_dim, "of q and k", 1, 1024},
        {"--head-dim-v", OPTION_INT, &s->head_dim_v, "of v; 0: as --head-dim", 0, 1024},
        {"--mask", OPTION_CHOICE, &s->mask, "keys that a query sees", .choices = {MASKS}},
        {"--window-left", OPTION_INT, &s->window_left, "keys before the query; -1: all", -1,
         MAX_SEQLEN},
        {"--window-right", OPTION_INT, &s->window_right, "keys after the query; -1: all", -1,
         MAX_SEQLEN},
        {"--softcap", OPTION_FLOAT, &s->softcap, "softcap * tanh(score / softcap); 0: off", 0, 1e9},
        {"--precision", OPTION_CHOICE, &s->precision, "of the products with v",
         .choices = {PRECISIONS}},
        {"--splits", OPTION_INT, &s->splits, "parts of the keys; 0: chosen, 1: off", 0, MAX_SEQLEN},
        {"--threads", OPTION_INT, &s->threads, "CPU threads; 0: all", 0, 4096},
    };
    memcpy(options, all, sizeof all);
}

int shape_check(const char *name, const shape *s) {
    bool window = s->mask == TALLOW_MASK_WINDOW;
    if (!window && (s->window_left != -1 || s->window_right != 0)) {
        return options_error(name, "--window-left and --window-right need --mask window");
    }
    if (s->heads % s->heads_kv != 0) {
        return options_error(name, "--heads-kv is %lld, accepted: a divisor of --heads %lld",
                             (long long)s->heads_kv, (long long)s->heads);
    }
    return OPTIONS_OK;
}

bool shape_is_default(const shape *s) {
    const shape *d = &DEFAULTS;
    return s->dtype == d->dtype && s->mask == d->mask && s->precision == d->precision &&
           s->batch == d->batch && s->seqlen == d->seqlen && s->seqlen_k == d->seqlen_k &&
           s->heads == d->heads && s->heads_kv == d->heads_kv && s->head_dim == d->head_dim &&
           s->head_dim_v == d->head_dim_v && s->window_left == d->window_left &&
           s->window_right == d->window_right && s->splits == d->splits && s->softcap == d->softcap;
}

static int64_t keys(const shape *s) { return s->seqlen_k ? s->seqlen_k : s->seqlen; }
static int64_t head_dim_v(const shape *s) { return s->head_dim_v ? s->head_dim_v : s->head_dim; }

static tallow_tensor rows(const shape *s, int64_t seqlen, int64_t heads, int64_t dim) {
    return (tallow_tensor){.shape = {s->batch, seqlen, heads, dim},
                           .dtype = DTYPE_VALUES[s->dtype]};
}

tallow_attention_params shape_params(const shape *s) {
    return (tallow_attention_params){
        .q = rows(s, s->seqlen, s->heads, s->head_dim),
        .k = rows(s, keys(s), s->heads_kv, s->head_dim),
        .v = rows(s, keys(s), s->heads_kv, head_dim_v(s)),
        .out = rows(s, s->seqlen, s->heads, head_dim_v(s)),
        .softcap = (float)s->softcap,
        .mask = s->mask,
        .window_left = s->mask == TALLOW_MASK_WINDOW ? s->window_left : 0,
        .window_right = s->window_right,
        .num_splits = s->splits,
        .precision = s->precision,
        .device = s->device,
        .threads = (int32_t)s->threads,
    };
}

case_options shape_case(const shape *s) {
    return (case_options){
        .dtype = DTYPE_VALUES[s->dtype],
        .batch = (int32_t)s->batch,
        .heads = (int32_t)s->heads,
        .heads_kv = (int32_t)s->heads_kv,
        .head_dim = (int32_t)s->head_dim,
        .head_dim_v = (int32_t)head_dim_v(s),
        .seqlen_q = (int32_t)s->seqlen,
        .seqlen_k = (int32_t)keys(s),
        .softcap = (float)s->softcap,
        .mask = s->mask,
        .window_left = s->mask == TALLOW_MASK_WINDOW ? (int32_t)s->window_left : 0,
        .window_right = (int32_t)s->window_right,
        .num_splits = (int32_t)s->splits,
        .precision = s->precision,
        .threads = (int32_t)s->threads,
    };
}

double shape_bytes(const shape *s) {
    double q = (double)s->seqlen * (double)s->heads, k = (double)keys(s) * (double)s->heads_kv;
    double size = DTYPE_VALUES[s->dtype] == TALLOW_F32 ? 4 : 2;
    return size * (double)s->batch * (q + k) * (double)(s->head_dim + head_dim_v(s));
}

static const char *dtype_name(int32_t dtype) {
    int i = 0;
    while (DTYPE_VALUES[i] != (tallow_dtype)dtype) i++;
    return DTYPE_NAMES[i];
}

static int32_t longest(const int32_t *lengths, int32_t batch) {
    int32_t most = 0;
    for (int32_t b = 0; b < batch; b++) most = lengths[b] > most ? lengths[b] : most;
    return most;
}

void shape_json(const case_options *o, tallow_device device, json *j) {
    json_string(j, "case", o->name);
    json_string(j, "device", DEVICE_NAMES[device]);
    json_string(j, "dtype", dtype_name(o->dtype));
    json_integer(j, "batch", o->batch);
    json_integer(j, "seqlen", longest(o->lengths_q, o->batch));
    json_integer(j, "seqlen_k", longest(o->lengths_k, o->batch));
    json_integer(j, "heads", o->heads);
    json_integer(j, "heads_kv", o->heads_kv);
    json_integer(j, "head_dim", o->head_dim);
    json_integer(j, "head_dim_v", o->head_dim_v);
    json_string(j, "mask", MASK_NAMES[o->mask]);
    if (o->mask == TALLOW_MASK_WINDOW) {
        json_integer(j, "window_left", o->window_left);
        json_integer(j, "window_right", o->window_right);
    }
    json_number(j, "softcap", (double)o->softcap);
    json_string(j, "precision", PRECISION_NAMES[o->precision]);
}

void shape_print(const case_options *o) {
    if (o->name) printf("%s: ", o->name);
    printf("%s, batch %d, %d queries, %d keys, %d/%d heads, head_dim %d/%d, mask %s\n",
           dtype_name(o->dtype), (int)o->batch, (int)longest(o->lengths_q, o->batch),
           (int)longest(o->lengths_k, o->batch), (int)o->heads, (int)o->heads_kv, (int)o->head_dim,
           (int)o->head_dim_v, MASK_NAMES[o->mask]);
}
