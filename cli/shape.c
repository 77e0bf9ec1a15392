#include "shape.h"

#include <stdio.h>
#include <string.h>

#include "commands.h"

#define DEVICES    "cpu"
#define DTYPES     "bf16", "f16", "f32"
#define MASKS      "none", "causal", "window"
#define PRECISIONS "default", "fast", "high"

static const char *const DEVICE_NAMES[] = {DEVICES}, *const DTYPE_NAMES[] = {DTYPES},
                         *const MASK_NAMES[] = {MASKS}, *const PRECISION_NAMES[] = {PRECISIONS};
static const tallow_dtype DTYPE_VALUES[] = {TALLOW_BF16, TALLOW_F16, TALLOW_F32};

#define MAX_SEQLEN 2147483647.0
#define MAX_HEADS  65536.0

void shape_options(shape *s, option *options) {
    *s = (shape){.mask = 1,
                 .batch = 1,
                 .seqlen = 4096,
                 .heads = 16,
                 .heads_kv = 2,
                 .head_dim = 128,
                 .window_left = -1};
    const option all[SHAPE_OPTIONS] = {
        {"--device", OPTION_CHOICE, &s->device, "where it runs", .choices = {DEVICES}},
        {"--dtype", OPTION_CHOICE, &s->dtype, "of q, k, v and out", .choices = {DTYPES}},
        {"--batch", OPTION_INT, &s->batch, "sequences", 1, MAX_HEADS},
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

int shape_check(const char *name, shape *s) {
    bool window = s->mask == TALLOW_MASK_WINDOW;
    if (!window && (s->window_left != -1 || s->window_right != 0)) {
        return options_error(name, "--window-left and --window-right need --mask window");
    }
    if (s->heads % s->heads_kv != 0) {
        return options_error(name, "--heads-kv is %lld, accepted: a divisor of --heads %lld",
                             (long long)s->heads_kv, (long long)s->heads);
    }
    if (s->seqlen_k == 0) s->seqlen_k = s->seqlen;
    if (s->head_dim_v == 0) s->head_dim_v = s->head_dim;
    return OPTIONS_OK;
}

static tallow_tensor rows(const shape *s, int64_t seqlen, int64_t heads, int64_t dim) {
    return (tallow_tensor){.shape = {s->batch, seqlen, heads, dim},
                           .dtype = DTYPE_VALUES[s->dtype]};
}

tallow_attention_params shape_params(const shape *s) {
    return (tallow_attention_params){
        .q = rows(s, s->seqlen, s->heads, s->head_dim),
        .k = rows(s, s->seqlen_k, s->heads_kv, s->head_dim),
        .v = rows(s, s->seqlen_k, s->heads_kv, s->head_dim_v),
        .out = rows(s, s->seqlen, s->heads, s->head_dim_v),
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

const char *shape_dtype_name(const shape *s) { return DTYPE_NAMES[s->dtype]; }

void shape_json(const shape *s, json *j) {
    json_string(j, "device", DEVICE_NAMES[s->device]);
    json_string(j, "dtype", DTYPE_NAMES[s->dtype]);
    json_integer(j, "batch", s->batch);
    json_integer(j, "seqlen", s->seqlen);
    json_integer(j, "seqlen_k", s->seqlen_k);
    json_integer(j, "heads", s->heads);
    json_integer(j, "heads_kv", s->heads_kv);
    json_integer(j, "head_dim", s->head_dim);
    json_integer(j, "head_dim_v", s->head_dim_v);
    json_string(j, "mask", MASK_NAMES[s->mask]);
    if (s->mask == TALLOW_MASK_WINDOW) {
        json_integer(j, "window_left", s->window_left);
        json_integer(j, "window_right", s->window_right);
    }
    json_number(j, "softcap", s->softcap);
    json_string(j, "precision", PRECISION_NAMES[s->precision]);
}

void shape_print(const shape *s) {
    printf(
        "%s, batch %lld, %lld queries, %lld keys, %lld/%lld heads, head_dim %lld/%lld, mask %s\n",
        DTYPE_NAMES[s->dtype], (long long)s->batch, (long long)s->seqlen, (long long)s->seqlen_k,
        (long long)s->heads, (long long)s->heads_kv, (long long)s->head_dim,
        (long long)s->head_dim_v, MASK_NAMES[s->mask]);
}
