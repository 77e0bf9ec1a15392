/* The binary interface as literals: once released they never change, but for enums that gain values
 * and params that grow at the end. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "calls.h"
#include "expect.h"

/* --------------------------------------------------------------------------------------------
 * Structs, on 64-bit machines
 * ------------------------------------------------------------------------------------------ */

/* A field where it is and where it must be; the last of a struct has no name: its end. */
typedef struct {
    const char *name;
    size_t offset, is_at, size, is_size;
} field;

#define FIELD(name, offset, size)                                                                  \
    { #name, offset, offsetof(STRUCT, name), size, sizeof(((STRUCT *)0)->name) }

static const field tensor_fields[] = {
#define STRUCT tallow_tensor
    FIELD(data, 0, 8),
    FIELD(shape, 8, 32),
    FIELD(strides, 40, 32),
    FIELD(dtype, 72, 4),
    FIELD(reserved, 76, 4),
#undef STRUCT
    {NULL, 0, 0, 80, sizeof(tallow_tensor)},
};

static const field rotary_angles[] = {
#define STRUCT tallow_rotary_angles
    FIELD(rotary_dim, 0, 8),
    FIELD(theta, 8, 8),
    FIELD(inv_freq, 16, 80),
    FIELD(cos, 96, 80),
    FIELD(sin, 176, 80),
    FIELD(attention_factor, 256, 4),
    FIELD(pairing, 260, 4),
    FIELD(mrope, 264, 4),
    FIELD(mrope_sections, 268, 12),
#undef STRUCT
    {NULL, 0, 0, 280, sizeof(tallow_rotary_angles)},
};

static const field rotary_params[] = {
#define STRUCT tallow_rotary_params
    FIELD(x, 0, 80),
    FIELD(out, 80, 80),
    FIELD(positions, 160, 80),
    FIELD(offset, 240, 80),
    FIELD(cu_seqlens, 320, 80),
    FIELD(rotary, 400, 280),
    FIELD(stream, 680, 8),
    FIELD(device, 688, 4),
    FIELD(threads, 692, 4),
    FIELD(pack, 696, 8),
#undef STRUCT
    {NULL, 0, 0, 704, sizeof(tallow_rotary_params)},
};

static const field attention_params[] = {
#define STRUCT tallow_attention_params
    FIELD(q, 0, 80),
    FIELD(k, 80, 80),
    FIELD(v, 160, 80),
    FIELD(out, 240, 80),
    FIELD(lse, 320, 80),
    FIELD(cu_seqlens_q, 400, 80),
    FIELD(cu_seqlens_k, 480, 80),
    FIELD(seqused_k, 560, 80),
    FIELD(leftpad_k, 640, 80),
    FIELD(block_table, 720, 80),
    FIELD(cache_batch_idx, 800, 80),
    FIELD(max_seqlen_q, 880, 8),
    FIELD(max_seqlen_k, 888, 8),
    FIELD(alibi_slopes, 896, 80),
    FIELD(sinks, 976, 80),
    FIELD(softmax_scale, 1056, 4),
    FIELD(softcap, 1060, 4),
    FIELD(window_left, 1064, 8),
    FIELD(window_right, 1072, 8),
    FIELD(prefix_ranges, 1080, 80),
    FIELD(mask, 1160, 4),
    FIELD(dropout_p, 1164, 4),
    FIELD(dropout_seed, 1168, 8),
    FIELD(dropout_offset, 1176, 8),
    FIELD(k_new, 1184, 80),
    FIELD(v_new, 1264, 80),
    FIELD(cu_seqlens_k_new, 1344, 80),
    FIELD(rotary, 1424, 280),
    FIELD(positions_q, 1704, 80),
    FIELD(positions_k_new, 1784, 80),
    FIELD(num_splits, 1864, 8),
    FIELD(precision, 1872, 4),
    FIELD(batch_invariant, 1876, 4),
    FIELD(device, 1880, 4),
    FIELD(threads, 1884, 4),
    FIELD(stream, 1888, 8),
    FIELD(workspace, 1896, 8),
    FIELD(workspace_size, 1904, 8),
    FIELD(pack, 1912, 8),
#undef STRUCT
    {NULL, 0, 0, 1920, sizeof(tallow_attention_params)},
};

static const field merge_params[] = {
#define STRUCT tallow_merge_params
    FIELD(out_a, 0, 80),
    FIELD(lse_a, 80, 80),
    FIELD(out_b, 160, 80),
    FIELD(lse_b, 240, 80),
    FIELD(out, 320, 80),
    FIELD(lse, 400, 80),
    FIELD(stream, 480, 8),
    FIELD(device, 488, 4),
    FIELD(threads, 492, 4),
    FIELD(pack, 496, 8),
#undef STRUCT
    {NULL, 0, 0, 504, sizeof(tallow_merge_params)},
};

/* Fields follow each other without padding. */
static void expect_layout(const char *name, const field *f) {
    size_t end = 0;
    for (; f->name; f++) {
        EXPECT(f->is_at == f->offset && f->is_size == f->size, "%s.%s: at %zu, %zu bytes", name,
               f->name, f->is_at, f->is_size);
        EXPECT(f->offset == end, "%s.%s: padding before it", name, f->name);
        end = f->offset + f->size;
    }
    EXPECT(f->is_size == f->size && f->size == end, "%s: %zu bytes", name, f->is_size);
}

/* --------------------------------------------------------------------------------------------
 * Enums
 * ------------------------------------------------------------------------------------------ */

#define VALUE(name, value) _Static_assert((name) == (value), #name " moved")

VALUE(TALLOW_OK, 0);
VALUE(TALLOW_INVALID_ARGUMENT, 1);
VALUE(TALLOW_UNSUPPORTED, 2);
VALUE(TALLOW_OUT_OF_MEMORY, 3);
VALUE(TALLOW_WORKSPACE_TOO_SMALL, 4);
VALUE(TALLOW_NO_DEVICE, 5);
VALUE(TALLOW_NO_COMPILER, 6);
VALUE(TALLOW_COMPILE_FAILED, 7);
VALUE(TALLOW_DEVICE_ERROR, 8);
VALUE(TALLOW_F16, 1);
VALUE(TALLOW_BF16, 2);
VALUE(TALLOW_F32, 3);
VALUE(TALLOW_I32, 4);
VALUE(TALLOW_I64, 5);
VALUE(TALLOW_PAIRING_HALF, 0);
VALUE(TALLOW_PAIRING_INTERLEAVED, 1);
VALUE(TALLOW_MROPE_NONE, 0);
VALUE(TALLOW_MROPE_CHUNKED, 1);
VALUE(TALLOW_MROPE_INTERLEAVED, 2);
VALUE(TALLOW_DEVICE_CPU, 0);
VALUE(TALLOW_DEVICE_CUDA, 1);
VALUE(TALLOW_MASK_NONE, 0);
VALUE(TALLOW_MASK_CAUSAL, 1);
VALUE(TALLOW_MASK_WINDOW, 2);
VALUE(TALLOW_PRECISION_DEFAULT, 0);
VALUE(TALLOW_PRECISION_FAST, 1);
VALUE(TALLOW_PRECISION_HIGH, 2);
VALUE(TALLOW_VERSION_MAJOR, 0);
VALUE(TALLOW_VERSION_MINOR, 1);
VALUE(TALLOW_VERSION_PATCH, 0);

static void status_names(void) {
    static const char *const names[] = {"TALLOW_OK",
                                        "TALLOW_INVALID_ARGUMENT",
                                        "TALLOW_UNSUPPORTED",
                                        "TALLOW_OUT_OF_MEMORY",
                                        "TALLOW_WORKSPACE_TOO_SMALL",
                                        "TALLOW_NO_DEVICE",
                                        "TALLOW_NO_COMPILER",
                                        "TALLOW_COMPILE_FAILED",
                                        "TALLOW_DEVICE_ERROR"};
    for (int i = 0; i <= TALLOW_DEVICE_ERROR; i++)
        EXPECT(!strcmp(tallow_status_name((tallow_status)i), names[i]), "%d: %s", i,
               tallow_status_name((tallow_status)i));
    EXPECT(tallow_status_name((tallow_status)99) && *tallow_status_name((tallow_status)99), "%s",
           "an unknown status has no name");
    EXPECT(tallow_version() == 1000, "%u", (unsigned)tallow_version());
}

/* --------------------------------------------------------------------------------------------
 * Sized structs
 * ------------------------------------------------------------------------------------------ */

typedef tallow_status (*sized_call)(const void *params, size_t size);

static tallow_status attention(const void *params, size_t size) {
    return tallow_attention(params, size);
}
static tallow_status workspace(const void *params, size_t size) {
    size_t bytes;
    return tallow_attention_workspace(params, size, &bytes);
}
static tallow_status prepare(const void *params, size_t size) {
    return tallow_attention_prepare(params, size);
}
static tallow_status describe(const void *params, size_t size) {
    char text[16];
    return tallow_attention_describe(params, size, text, sizeof text);
}
static tallow_status rotary(const void *params, size_t size) { return tallow_rotary(params, size); }
static tallow_status merge(const void *params, size_t size) { return tallow_merge(params, size); }

static void expect_sized(sized_call run, const void *params, size_t size, size_t bytes,
                         tallow_status status, const char *text) {
    const tallow_status got = run(params, size);
    EXPECT(got == status && strstr(tallow_last_error(), text), "%zu of %zu bytes: %s: %s", size,
           bytes, tallow_status_name(got), tallow_last_error());
}

/* The copies are exactly as long as the size given, so that a read past them is a sanitizer's.
 * `oldest`: without the fields that the struct has grown by. */
static void sized(sized_call run, const void *params, size_t size, size_t oldest) {
    enum { TAIL = 40 };
    char known[32];
    unsigned char *larger = calloc(1, size + TAIL), *smaller = malloc(oldest - 1);
    unsigned char *old = malloc(oldest);
    memcpy(larger, params, size);
    memcpy(old, params, oldest);
    memcpy(smaller, params, oldest - 1);
    snprintf(known, sizeof known, "at least %zu", oldest);
    expect_sized(run, NULL, size, size, TALLOW_INVALID_ARGUMENT, "params is null");
    expect_sized(run, smaller, oldest - 1, size, TALLOW_INVALID_ARGUMENT, known);
    expect_sized(run, smaller, 0, size, TALLOW_INVALID_ARGUMENT, "params_size = 0");
    expect_sized(run, old, oldest, size, TALLOW_OK, "");
    expect_sized(run, larger, size, size, TALLOW_OK, "");
    expect_sized(run, larger, size + TAIL, size, TALLOW_OK, "");
    for (size_t i = size; i < size + TAIL; i++) {
        larger[i] = 1;
        expect_sized(run, larger, size + TAIL, size, TALLOW_UNSUPPORTED, "must be zero");
        expect_sized(run, larger, i, size, TALLOW_OK, "");
        larger[i] = 0;
    }
    free(smaller);
    free(old);
    free(larger);
}

static void sized_structs(void) {
    WITH(DENSE, (void)0,
         sized(attention, &c->a, sizeof c->a, offsetof(tallow_attention_params, pack)));
    WITH(DENSE, (void)0,
         sized(workspace, &c->a, sizeof c->a, offsetof(tallow_attention_params, pack)));
    WITH(DENSE, (void)0,
         sized(prepare, &c->a, sizeof c->a, offsetof(tallow_attention_params, pack)));
    WITH(DENSE, (void)0,
         sized(describe, &c->a, sizeof c->a, offsetof(tallow_attention_params, pack)));
    WITH(ROTARY, (void)0, sized(rotary, &c->r, sizeof c->r, offsetof(tallow_rotary_params, pack)));
    WITH(MERGE, (void)0, sized(merge, &c->m, sizeof c->m, offsetof(tallow_merge_params, pack)));
}

/* --------------------------------------------------------------------------------------------
 * Messages and texts
 * ------------------------------------------------------------------------------------------ */

static void messages(void) {
    WITH(DENSE, c->a.mask = 9, {
        EXPECT(run_call(c) == TALLOW_INVALID_ARGUMENT, "%s", "mask");
        EXPECT(strstr(tallow_last_error(), "mask = 9"), "%s", tallow_last_error());
        tallow_version();
        EXPECT(*tallow_last_error(), "%s", "a call that cannot fail lost the message");
        c->a.mask = 0;
        EXPECT(run_call(c) == TALLOW_OK && !*tallow_last_error(), "%s", tallow_last_error());
        EXPECT(tallow_attention_workspace(&c->a, sizeof c->a, NULL) == TALLOW_INVALID_ARGUMENT &&
                   strstr(tallow_last_error(), "bytes is null"),
               "%s", tallow_last_error());
    });
}

/* Cut at any size, a text is the beginning of the whole and ends with a NUL. */
static void cut(tallow_status (*write)(const call *c, char *text, size_t size), const call *c) {
    static char whole[4096];
    EXPECT(write(c, whole, sizeof whole) == TALLOW_OK && *whole, "%s", tallow_last_error());
    const size_t length = strlen(whole);
    EXPECT(whole[length - 1] == '\n', "%s", whole);
    for (size_t size = 1; size < length + 3; size += size < 40 ? 1 : 13) {
        char *text = malloc(size);
        EXPECT(write(c, text, size) == TALLOW_OK, "%s", tallow_last_error());
        const size_t kept = size - 1 < length ? size - 1 : length;
        EXPECT(!memcmp(text, whole, kept) && !text[kept], "cut to %zu bytes", size);
        free(text);
    }
    EXPECT(write(c, NULL, 8) == TALLOW_INVALID_ARGUMENT, "%s", "null text");
    EXPECT(write(c, whole, 0) == TALLOW_INVALID_ARGUMENT, "%s", "no room for the NUL");
}

static tallow_status write_plan(const call *c, char *text, size_t size) {
    return tallow_attention_describe(&c->a, sizeof c->a, text, size);
}

static tallow_status write_system(const call *c, char *text, size_t size) {
    (void)c;
    return tallow_system_describe(text, size);
}

static void system_lines(void) {
    static const char *const names[] = {"cpu_level ", "threads ", "gpu ", "driver ",
                                        "nvrtc ",     "cache ",   "pack "};
    static char text[4096];
    const char *at = text;
    EXPECT(tallow_system_describe(text, sizeof text) == TALLOW_OK, "%s", tallow_last_error());
    EXPECT(!strncmp(text, "version 0.1.0\n", 14), "%s", text);
    for (size_t i = 0; i < sizeof names / sizeof *names && at; i++) {
        char start[32];
        snprintf(start, sizeof start, "\n%s", names[i]);
        at = strstr(at, start);
        EXPECT(at, "no line \"%s\" in its place", names[i]);
    }
}

int main(void) {
    if (sizeof(void *) == 8) {
        expect_layout("tallow_tensor", tensor_fields);
        expect_layout("tallow_rotary_angles", rotary_angles);
        expect_layout("tallow_rotary_params", rotary_params);
        expect_layout("tallow_attention_params", attention_params);
        expect_layout("tallow_merge_params", merge_params);
    }
    status_names();
    sized_structs();
    messages();
    WITH(DENSE, (void)0, cut(write_plan, c));
    WITH(DENSE, (void)0, cut(write_system, c));
    system_lines();
    return expect_report();
}
