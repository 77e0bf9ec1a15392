/* Specialisations without a GPU: every kernel that exists has a tile that fits, a key and options
 * of its own; what the host and the kernels share is laid out the same on both sides. */
#include <stdlib.h>
#include <string.h>

#include "../kernels/args.h"
#include "expect.h"
#include "spec.h"

/* No padding that a compiler chose. */
#define ENDS(type, last)                                                                           \
    _Static_assert(offsetof(type, last) + sizeof((type *)0)->last == sizeof(type), #type)
_Static_assert(sizeof(divisor) == 16 && sizeof(rows_arg) == 32 && sizeof(ints_arg) == 16, "args");
_Static_assert(sizeof(sequences_arg) == 6 * sizeof(ints_arg) + 24 + 3 * sizeof(divisor) + 32, "");
_Static_assert(sizeof(forward_args) == sizeof(sequences_arg) + 4 * sizeof(rows_arg) + 32 + 32 +
                                           5 * sizeof(divisor) + 2 * sizeof(floats_arg) + 16 + 32 +
                                           8 + 24,
               "forward_args");
_Static_assert(sizeof(angles_arg) == 8 * ROTATE_PAIRS + 40 + 40, "angles_arg");
ENDS(forward_args, dropout_offset);
ENDS(append_args, angles);
ENDS(rotate_args, angles);
ENDS(merge_args, zero);
_Static_assert(sizeof(forward_args) <= 4096 && sizeof(append_args) <= 4096 &&
                   sizeof(rotate_args) <= 4096 && sizeof(merge_args) <= 4096,
               "a launch takes 4096 bytes");

static void check_divisors(void) {
    const uint32_t edges[] = {1, 2, 3, 5, 7, 16, 17, 64, 641, 65535, 65537, 1u << 30, INT32_MAX};
    uint64_t state = 1;
    for (int i = 0; i < 3000; i++) {
        state = state * UINT64_C(6364136223846793005) + 1442695040888963407;
        uint32_t by = i < 13 ? edges[i] : (uint32_t)(state >> 33) >> i % 31 | 1;
        divisor d = divisor_of(by);
        for (int j = 0; j < 400; j++) {
            state = state * UINT64_C(6364136223846793005) + 1442695040888963407;
            uint32_t n = (uint32_t)(state >> 33) >> j % 31;
            uint32_t most =
                INT32_MAX / by * by; /* multiples and their neighbours are the hard ones */
            if (j % 4 == 1) n = n / by * by;
            if (j % 4 == 2) n = n < by ? n : n / by * by - 1;
            if (j % 4 == 3) n = j % 8 == 3 ? most : most - 1;
            EXPECT(divide(n, d) == n / by, "%u / %u = %u", n, by, divide(n, d));
        }
    }
}

static bool power_of_two(int32_t x) { return (x & (x - 1)) == 0; }

static void check_tile(const spec *s, const spec_tile *t, const char *key) {
    EXPECT(t->shared_bytes <= s->shared_memory * 1024, "%s: %d bytes", key, t->shared_bytes);
    EXPECT(t->threads >= 32 && t->threads <= 1024, "%s: %d threads", key, t->threads);
    EXPECT(t->warp_rows == 16 || t->warp_rows == 32, "%s: %d", key, t->warp_rows);
    EXPECT(power_of_two(t->column_warps) && t->slots >= 2, "%s", key);
    EXPECT(s->rows == 0 || t->block_rows == (s->rows == 1 ? 16 : 64), "%s: %d rows", key,
           t->block_rows);
}

/* Every kernel, and how many there are with each value of each axis. */
static void check_all(void) {
    static int seen[SPEC_AXES][64];
    char key[SPEC_KEY], before[SPEC_KEY] = "";
    spec s = {0};
    spec_tile tile;
    do {
        tallow_spec_key(&s, key);
        EXPECT(tallow_spec_check(&s) == TALLOW_OK, "%s: %s", key, tallow_last_error());
        EXPECT(strcmp(key, before), "%s twice", key);
        EXPECT(tallow_spec_tile(&s, &tile), "%s", key);
        if (s.family) check_tile(&s, &tile, key);
        for (int i = 0; i < SPEC_AXES && s.family; i++)
            for (int v = 0; v < tallow_spec_axes[i].count; v++)
                seen[i][v] += tallow_spec_axes[i].values[v] == tallow_spec_value(&s, i);
        memcpy(before, key, sizeof before);
    } while (tallow_spec_next(&s));
    for (int i = 0; i < SPEC_AXES; i++)
        for (int v = 0; v < tallow_spec_axes[i].count; v++)
            EXPECT(seen[i][v] > 0, "no kernel with %s = %d", tallow_spec_axes[i].name,
                   (int)tallow_spec_axes[i].values[v]);
}

/* Whatever the options, Turing has a tile for heads of up to 256 elements. */
static void check_turing(void) {
    spec_tile tile;
    for (int i = 0; i < 32 * 32 * 2 * 2 * 3 * 2 * 2; i++) {
        const int options = i / 1024;
        spec s = {.family = 75,
                  .dtype = TALLOW_F16,
                  .head_dim = 8 * (i % 32 + 1),
                  .head_dim_v = 8 * (i / 32 % 32 + 1),
                  .rows = options % 2,
                  .scores = options / 2 % 2,
                  .p_parts = options / 4 % 3 + 1,
                  .paged = options / 12 % 2,
                  .access = options / 24,
                  .shared_memory = 64};
        EXPECT(tallow_spec_check(&s) == TALLOW_OK && tallow_spec_tile(&s, &tile), "%s",
               tallow_last_error());
    }
}

static const spec usual = {.family = 80,
                           .dtype = TALLOW_BF16,
                           .head_dim = 128,
                           .head_dim_v = 128,
                           .p_parts = 1,
                           .shared_memory = 227};

static void check_options(void) {
    spec_options options;
    tallow_spec_options(&(spec){0}, &options);
    EXPECT(options.count == 0 && !strcmp(tallow_spec_source(&(spec){0}), "rows.cu"), "rows");
    tallow_spec_options(&usual, &options);
    EXPECT(options.count > SPEC_AXES && options.count <= SPEC_OPTIONS, "%d", options.count);
    for (int i = 0; i < SPEC_AXES; i++) {
        char wanted[SPEC_OPTION];
        snprintf(wanted, sizeof wanted, "-DSPEC_%s=%d", tallow_spec_axes[i].name,
                 (int)tallow_spec_value(&usual, i));
        EXPECT(!strcmp(options.text[i], wanted), "%s, not %s", options.text[i], wanted);
    }
}

static void check_complaint(spec s, const char *words) {
    EXPECT(tallow_spec_check(&s) == TALLOW_UNSUPPORTED, "%s", words);
    EXPECT(strstr(tallow_last_error(), words), "'%s' lacks '%s'", tallow_last_error(), words);
}

static void check_complaints(void) {
    spec s = usual;
    EXPECT(tallow_spec_check(&s) == TALLOW_OK, "%s", tallow_last_error());
    s.head_dim = 260;
    check_complaint(s, "head_dim = 260");
    check_complaint(s, "256, 512 or 576");
    s = usual;
    s.dtype = TALLOW_F32;
    s.p_parts = 2;
    check_complaint(s, "p_parts must be 1");
    s = usual;
    s.family = 75;
    check_complaint(s, "compute capability 7.5 take f16 alone");
    s.dtype = TALLOW_F16;
    check_complaint(s, "64 KiB of shared memory");
    s = usual;
    s.dtype = TALLOW_F32;
    s.head_dim = 576, s.head_dim_v = 512;
    s.shared_memory = 99;
    check_complaint(s, "no tile fits in 99 KiB");
}

static void check_classes(void) {
    EXPECT(tallow_spec_shared_memory(232448) == 227, "%d", tallow_spec_shared_memory(232448));
    EXPECT(tallow_spec_shared_memory(166912) == 163, "%d", tallow_spec_shared_memory(166912));
    EXPECT(tallow_spec_shared_memory(101376) == 99, "%d", tallow_spec_shared_memory(101376));
    EXPECT(tallow_spec_shared_memory(65536) == 64, "%d", tallow_spec_shared_memory(65536));
    EXPECT(tallow_spec_shared_memory(49152) == 0, "%d", tallow_spec_shared_memory(49152));
}

int main(void) {
    check_divisors();
    check_all();
    check_turing();
    check_options();
    check_complaints();
    check_classes();
    return expect_report();
}
