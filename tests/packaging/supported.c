/* The table of README.md, asked from the library: prints it, or, given the README, compares. Every
 * entry is a call that tallow_attention_describe accepts, on any machine. */
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tallow.h"

static char table[8192];

static void add(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void add(const char *format, ...) {
    size_t used = strlen(table);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(table + used, sizeof table - used, format, arguments);
    va_end(arguments);
}

static tallow_tensor tensor(int32_t dtype, int64_t a, int64_t b, int64_t c, int64_t d) {
    return (tallow_tensor){.shape = {a, b, c, d}, .dtype = dtype};
}

/* A plain call: 2 sequences of 8 queries and 32 keys, 4 heads on 2. */
static tallow_attention_params plain(void) {
    return (tallow_attention_params){.q = tensor(TALLOW_F32, 2, 8, 4, 64),
                                     .k = tensor(TALLOW_F32, 2, 32, 2, 64),
                                     .v = tensor(TALLOW_F32, 2, 32, 2, 64),
                                     .out = tensor(TALLOW_F32, 2, 8, 4, 64)};
}

/* Whether the library can do it, be the device there or not. */
static bool accepted(const tallow_attention_params *p) {
    char text[1];
    tallow_status status = tallow_attention_describe(p, sizeof *p, text, sizeof text);
    return status == TALLOW_OK || status == TALLOW_NO_DEVICE || status == TALLOW_NO_COMPILER;
}

static bool dtype_accepted(int32_t in, int32_t out) {
    tallow_attention_params p = plain();
    p.q.dtype = p.k.dtype = p.v.dtype = in;
    p.out.dtype = out;
    return accepted(&p);
}

static bool head_dim_accepted(int64_t dim) {
    tallow_attention_params p = plain();
    p.q.shape[3] = p.k.shape[3] = dim;
    return accepted(&p);
}

static bool head_dim_v_accepted(int64_t dim) {
    tallow_attention_params p = plain();
    p.v.shape[3] = p.out.shape[3] = dim;
    return accepted(&p);
}

/* "8 to 256 by 8, 512": the accepted numbers up to 1024, in runs of equal steps. */
static void add_numbers(bool (*is_accepted)(int64_t)) {
    int64_t found[1025];
    int count = 0, end;
    for (int64_t n = 1; n <= 1024; n++) {
        if (is_accepted(n)) found[count++] = n;
    }
    for (int i = 0; i < count; i = end + 1) {
        for (end = i; end + 1 < count && found[end + 1] - found[end] == found[i + 1] - found[i];) {
            end++;
        }
        if (end < i + 2) end = i;
        add("%s%d", i ? ", " : "", (int)found[i]);
        if (end > i) add(" to %d by %d", (int)found[end], (int)(found[i + 1] - found[i]));
    }
}

static void add_dtypes(void) {
    static const char *const names[] = {"", "f16", "bf16", "f32", "i32", "i64"};
    const char *comma = "";
    add("| dtype of q, k, v → out | ");
    for (int in = 1; in <= 5; in++) {
        for (int out = 1; out <= 5; out++) {
            if (!dtype_accepted(in, out)) continue;
            add("%s%s → %s", comma, names[in], names[out]);
            comma = ", ";
        }
    }
    add(" |\n");
}

/* Features: each turns itself on in a plain call. */
static void mask_causal(tallow_attention_params *p) { p->mask = TALLOW_MASK_CAUSAL; }
static void mask_window(tallow_attention_params *p) {
    p->mask = TALLOW_MASK_WINDOW;
    p->window_left = 7;
}
static void prefix_ranges(tallow_attention_params *p) {
    p->mask = TALLOW_MASK_CAUSAL;
    p->prefix_ranges = tensor(TALLOW_I32, 2, 3, 2, 0);
}
static void packed_q(tallow_attention_params *p) {
    p->q = tensor(TALLOW_F32, 16, 4, 64, 0);
    p->out = tensor(TALLOW_F32, 16, 4, 64, 0);
    p->cu_seqlens_q = tensor(TALLOW_I32, 3, 0, 0, 0);
}
static void packed_k(tallow_attention_params *p) {
    p->k = p->v = tensor(TALLOW_F32, 64, 2, 64, 0);
    p->cu_seqlens_k = tensor(TALLOW_I32, 3, 0, 0, 0);
}
static void paged(tallow_attention_params *p) {
    p->k = p->v = tensor(TALLOW_F32, 9, 7, 2, 64);
    p->block_table = tensor(TALLOW_I32, 2, 5, 0, 0);
    p->seqused_k = tensor(TALLOW_I32, 2, 0, 0, 0);
}
static void used(tallow_attention_params *p) { p->seqused_k = tensor(TALLOW_I32, 2, 0, 0, 0); }
static void leftpad(tallow_attention_params *p) {
    used(p);
    p->leftpad_k = tensor(TALLOW_I32, 2, 0, 0, 0);
}
static void cache_rows(tallow_attention_params *p) {
    used(p);
    p->k.shape[0] = p->v.shape[0] = 5;
    p->cache_batch_idx = tensor(TALLOW_I32, 2, 0, 0, 0);
}
static void append(tallow_attention_params *p) {
    used(p);
    p->k_new = p->v_new = tensor(TALLOW_F32, 2, 8, 2, 64);
}
static void rotary(tallow_attention_params *p) {
    append(p);
    p->rotary.rotary_dim = 64;
}
static void mrope(tallow_attention_params *p) {
    rotary(p);
    p->rotary.mrope = TALLOW_MROPE_INTERLEAVED;
    p->rotary.mrope_sections[0] = 12;
    p->rotary.mrope_sections[1] = p->rotary.mrope_sections[2] = 10;
    p->positions_q = p->positions_k_new = tensor(TALLOW_I64, 3, 2, 8, 0);
}
static void softcap(tallow_attention_params *p) { p->softcap = 30; }
static void alibi(tallow_attention_params *p) { p->alibi_slopes = tensor(TALLOW_F32, 2, 4, 0, 0); }
static void sinks(tallow_attention_params *p) { p->sinks = tensor(TALLOW_F32, 4, 0, 0, 0); }
static void dropout(tallow_attention_params *p) { p->dropout_p = 0.1f; }
static void lse(tallow_attention_params *p) { p->lse = tensor(TALLOW_F32, 2, 4, 8, 0); }
static void splits(tallow_attention_params *p) { p->num_splits = 3; }
static void invariant(tallow_attention_params *p) { p->batch_invariant = 1; }
static void fast(tallow_attention_params *p) { p->precision = TALLOW_PRECISION_FAST; }
static void high(tallow_attention_params *p) { p->precision = TALLOW_PRECISION_HIGH; }
static void cuda(tallow_attention_params *p) { p->device = TALLOW_DEVICE_CUDA; }
static void nothing(tallow_attention_params *p) { (void)p; }

typedef struct {
    const char *row, *name;
    void (*turn_on)(tallow_attention_params *p);
} feature;

static const feature FEATURES[] = {
    {"masks", "none", nothing},
    {"masks", "causal", mask_causal},
    {"masks", "window", mask_window},
    {"masks", "prefix ranges", prefix_ranges},
    {"scores", "softcap", softcap},
    {"scores", "ALiBi", alibi},
    {"scores", "sinks", sinks},
    {"scores", "dropout", dropout},
    {"layout of q", "dense", nothing},
    {"layout of q", "packed", packed_q},
    {"layout of k, v", "dense", nothing},
    {"layout of k, v", "packed", packed_k},
    {"layout of k, v", "paged with any page size", paged},
    {"cache", "seqused", used},
    {"cache", "leftpad", leftpad},
    {"cache", "batch index", cache_rows},
    {"cache", "append", append},
    {"cache", "append with rotary", rotary},
    {"cache", "append with M-RoPE", mrope},
    {"results", "log-sum-exp", lse},
    {"results", "fast precision", fast},
    {"results", "high precision", high},
    {"results", "batch invariance", invariant},
    {"results", "key splits", splits},
    {"devices", "CPU", nothing},
    {"devices", "CUDA", cuda},
};

static void make_table(void) {
    const char *row = NULL;
    add("| | |\n|---|---|\n");
    add_dtypes();
    add("| head_dim of q, k | ");
    add_numbers(head_dim_accepted);
    add(" |\n| head_dim of v | ");
    add_numbers(head_dim_v_accepted);
    for (size_t i = 0; i < sizeof FEATURES / sizeof FEATURES[0]; i++) {
        const feature *f = &FEATURES[i];
        tallow_attention_params p = plain();
        f->turn_on(&p);
        if (!accepted(&p)) continue;
        bool same_row = row && strcmp(row, f->row) == 0;
        if (same_row) {
            add(", %s", f->name);
        } else {
            add(" |\n| %s | %s", f->row, f->name);
        }
        row = f->row;
    }
    add(" |\n");
}

/* Whether the file holds the table, whole. */
static bool holds_table(const char *path) {
    static char text[1 << 17];
    FILE *file = fopen(path, "rb");
    if (!file) return false;
    size_t length = fread(text, 1, sizeof text - 1, file);
    text[length] = '\0';
    fclose(file);
    return strstr(text, table) != NULL;
}

int main(int argc, char **argv) {
    make_table();
    if (argc < 2) {
        fputs(table, stdout);
        return 0;
    }
    if (holds_table(argv[1])) return 0;
    fprintf(stderr, "%s does not hold this table:\n%s", argv[1], table);
    return 1;
}
