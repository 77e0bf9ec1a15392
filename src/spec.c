#include "spec.h"

#include <stdio.h>
#include <string.h>

#define TALLOW_AXIS(name, meaning, ...) static const int32_t values_of_##name[] = {__VA_ARGS__};
#include "spec.def"

#define COUNT(array) (int)(sizeof(array) / sizeof *(array))

const spec_axis tallow_spec_axes[SPEC_AXES] = {
#define TALLOW_AXIS(name, meaning, ...) {#name, meaning, values_of_##name, COUNT(values_of_##name)},
#include "spec.def"
};

static const size_t axis_offsets[SPEC_AXES] = {
#define TALLOW_AXIS(name, ...) offsetof(spec, name),
#include "spec.def"
};

static int32_t *axis_of(spec *s, int i) { return (int32_t *)(void *)((char *)s + axis_offsets[i]); }

int32_t tallow_spec_value(const spec *s, int i) {
    int32_t value;
    memcpy(&value, (const char *)s + axis_offsets[i], sizeof value);
    return value;
}

static bool is_zero(const spec *s) {
    if (s->family) return false;
    for (int i = 0; i < SPEC_AXES; i++)
        if (tallow_spec_value(s, i)) return false;
    return true;
}

static int index_of(const spec_axis *axis, int32_t value) {
    for (int v = 0; v < axis->count; v++)
        if (axis->values[v] == value) return v;
    return -1;
}

static tallow_status refuse_value(const spec_axis *axis, int32_t value) {
    char accepted[256] = "";
    size_t used = 0;
    for (int v = 0; v < axis->count; v++)
        used += (size_t)snprintf(accepted + used, sizeof accepted - used, "%s%d",
                                 v == 0                 ? ""
                                 : v == axis->count - 1 ? " or "
                                                        : ", ",
                                 (int)axis->values[v]);
    return tallow_fail(TALLOW_UNSUPPORTED, "kernel axis %s = %d (%s): must be %s", axis->name,
                       (int)value, axis->meaning, accepted);
}

/* The first rule that a spec breaks; null: none. */
static const char *broken_rule(const spec *s) {
#define TALLOW_AXIS(name, ...) const int32_t name = s->name;
#include "spec.def"
#define TALLOW_AXIS(name, ...) (void)name;
#include "spec.def"
#define TALLOW_RULE(condition, sentence)                                                           \
    if (!(condition)) return sentence;
#include "spec.def"
    return NULL;
}

tallow_status tallow_spec_check(const spec *s) {
    spec_tile tile;
    if (is_zero(s)) return TALLOW_OK;
    for (int i = 0; i < SPEC_AXES; i++)
        if (index_of(&tallow_spec_axes[i], tallow_spec_value(s, i)) < 0)
            return refuse_value(&tallow_spec_axes[i], tallow_spec_value(s, i));
    const char *rule = broken_rule(s);
    if (rule) return tallow_fail(TALLOW_UNSUPPORTED, "%s", rule);
    if (!tallow_spec_tile(s, &tile))
        return tallow_fail(
            TALLOW_UNSUPPORTED,
            "head_dim = %d, head_dim_v = %d: no tile fits in %d KiB of shared memory",
            (int)s->head_dim, (int)s->head_dim_v, (int)s->shared_memory);
    return TALLOW_OK;
}

bool tallow_spec_exists(const spec *s) {
    if (tallow_spec_check(s) == TALLOW_OK) return true;
    tallow_clear_error();
    return false;
}

/* ---- tiles ---- */

enum { WORK_BYTES = 112, TILE_END_BYTES = 24, TILE_SLOTS = 4 };

static int32_t round_up(int32_t x, int32_t unit) { return (x + unit - 1) / unit * unit; }
static int32_t most(int32_t a, int32_t b) { return a > b ? a : b; }

/* As the kernels lay it out: kernels/layout.cuh. Of 80: Q, the ring of K and V, P, the maxima that
 * warps exchange and what is known of each row, or in their place O; then what is known of the
 * tile, and pages of blocks of keys. */
static int32_t shared_bytes_80(const spec *s, const spec_tile *t) {
    int32_t size = s->dtype == TALLOW_F32 ? 4 : 2;
    int32_t q_row = round_up(s->head_dim, 16) * size, v_row = round_up(s->head_dim_v, 16) * size;
    bool shares_p = t->column_warps > 1 || s->dtype == TALLOW_F32;
    int32_t bytes = t->block_rows * q_row + t->slots * t->block_keys * most(q_row, v_row);
    if (shares_p) bytes += t->block_rows * t->block_keys * size * s->p_parts;
    if (t->column_warps > 1) bytes += t->block_rows * t->column_warps * 4;
    bytes += t->block_rows * (8 + (t->block_keys + 63) / 64 * 8);
    bytes = most(bytes, t->block_rows * v_row) + WORK_BYTES;
    return s->paged ? bytes + (t->slots / 2 + 1) * t->block_keys * 4 : bytes;
}

/* Of 90: Q, K, V, rows of the output, what is known of each row, tiles, and barriers. */
static int32_t shared_bytes_90(const spec *s, const spec_tile *t) {
    int32_t q_row = round_up(s->head_dim, 64) * 2, v_row = round_up(s->head_dim_v, 64) * 2;
    int32_t bytes = t->q_slots * t->block_rows * q_row;
    bytes += t->slots / 2 * t->block_keys * (q_row + v_row);
    bytes += t->stages_out * t->block_rows * v_row;
    bytes += t->block_rows * s->scores * 8;
    bytes += TILE_SLOTS * (WORK_BYTES + TILE_END_BYTES + t->row_warps / 4 * 24 + 8);
    bytes += 8 * 2 * (TILE_SLOTS + t->q_slots + t->slots); /* full, empty */
    bytes += 8 * (t->slots / 2 + 1);                       /* landed, need */
    return bytes + s->pairs * TILE_SLOTS * 16;             /* what a pair's leader says */
}

/* A multiprocessor has 1 KiB more than a block may use, and keeps 1 KiB for each block. */
static bool fits(const spec *s, const spec_tile *t) {
    return t->blocks * (t->shared_bytes + 1024) <= (s->shared_memory + 1) * 1024;
}

/* What follows from the choices of tiles.def. */
static void complete_tile(const spec *s, spec_tile *t) {
    const bool roles = s->family == 90;
    t->block_rows = t->row_warps * t->warp_rows;
    t->threads = 32 * t->row_warps * t->column_warps + (roles ? 128 : 0);
    for (int places = roles ? 3 : 1; places > 0; places--) {
        t->q_slots = places > 1 ? 2 : 1;
        t->stages_out = places > 2;
        t->shared_bytes = roles ? shared_bytes_90(s, t) : shared_bytes_80(s, t);
        if (fits(s, t)) return;
    }
}

bool tallow_spec_tile(const spec *s, spec_tile *out) {
    const bool roles = s->family == 90, full = s->dtype == TALLOW_F32, few = s->rows == 1;
    const bool highest = s->p_parts == 3;
    const int32_t load = s->scores + s->paged + s->access + (s->p_parts == 2);
    const bool light = load <= 1 && !s->access && s->p_parts == 1;
    const int32_t wide = most(s->head_dim, s->head_dim_v);
    memset(out, 0, sizeof *out);
    if (is_zero(s)) return true;
#define TALLOW_TILE(condition, ...)                                                                \
    if (condition) {                                                                               \
        *out = (spec_tile){__VA_ARGS__, 0, 0, 0, 0, 0};                                            \
        complete_tile(s, out);                                                                     \
        if (fits(s, out)) return true;                                                             \
    }
#include "tiles.def"
    return false;
}

int32_t tallow_spec_shared_memory(size_t bytes) {
    const spec_axis *axis = &tallow_spec_axes[SPEC_AXIS_shared_memory];
    int32_t best = 0;
    for (int v = 0; v < axis->count; v++)
        if (bytes >= (size_t)axis->values[v] * 1024) best = axis->values[v];
    return best;
}

/* ---- text ---- */

const char *tallow_spec_source(const spec *s) {
    return is_zero(s) ? "rows.cu" : s->family == 90 ? "forward_sm90.cu" : "forward_sm80.cu";
}

static void option(spec_options *out, const char *kind, const char *name, int32_t value) {
    snprintf(out->text[out->count++], SPEC_OPTION, "-D%s_%s=%d", kind, name, (int)value);
}

void tallow_spec_options(const spec *s, spec_options *out) {
    spec_tile tile;
    out->count = 0;
    if (is_zero(s)) return;
    for (int i = 0; i < SPEC_AXES; i++)
        option(out, "SPEC", tallow_spec_axes[i].name, tallow_spec_value(s, i));
    tallow_spec_tile(s, &tile);
    option(out, "TILE", "row_warps", tile.row_warps);
    option(out, "TILE", "column_warps", tile.column_warps);
    option(out, "TILE", "warp_rows", tile.warp_rows);
    option(out, "TILE", "block_keys", tile.block_keys);
    option(out, "TILE", "slots", tile.slots);
    option(out, "TILE", "q_slots", tile.q_slots);
    option(out, "TILE", "stages_out", tile.stages_out);
    option(out, "TILE", "blocks", tile.blocks);
    option(out, "TILE", "shared_bytes", tile.shared_bytes);
}

void tallow_spec_key(const spec *s, char key[SPEC_KEY]) {
    size_t used = 0;
    if (is_zero(s)) used = (size_t)snprintf(key, SPEC_KEY, "rows");
    for (int i = 0; i < SPEC_AXES && !is_zero(s); i++)
        used += (size_t)snprintf(key + used, SPEC_KEY - used, "%s%s=%d", i ? " " : "",
                                 tallow_spec_axes[i].name, (int)tallow_spec_value(s, i));
}

/* ---- all of them ---- */

/* The next combination of values, whether or not such a kernel exists. */
static bool next_values(spec *s) {
    bool first = is_zero(s);
    for (int i = SPEC_AXES - 1; i >= 0; i--) {
        const spec_axis *axis = &tallow_spec_axes[i];
        int v = first ? -1 : index_of(axis, *axis_of(s, i));
        bool more = v + 1 < axis->count;
        *axis_of(s, i) = axis->values[more ? v + 1 : 0];
        if (more && !first) return true;
    }
    return first;
}

bool tallow_spec_next(spec *s) {
    spec_tile tile;
    while (next_values(s))
        if (!broken_rule(s) && tallow_spec_tile(s, &tile)) return true;
    return false;
}
