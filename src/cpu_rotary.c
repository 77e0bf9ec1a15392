#include <string.h>

#include "cpu.h"
#include "cpu_features.h"
#include "rotary.h"

/* The sequence that owns row `row` of a packed tensor: the last one that starts at or before it. */
static int64_t sequence_of_row(const rotary_problem *p, int64_t row) {
    int64_t first = 0, last = p->batch - 1;
    while (first < last) {
        int64_t middle = first + (last - first + 1) / 2;
        if (p->cu_seqlens.data[middle * p->cu_seqlens.stride[0]] <= row)
            first = middle;
        else
            last = middle - 1;
    }
    return first;
}

static int64_t implicit_position(const rotary_problem *p, int64_t b, int64_t row) {
    if (p->x_layout == LAYOUT_PACKED) {
        b = sequence_of_row(p, row);
        row -= p->cu_seqlens.data[b * p->cu_seqlens.stride[0]];
    }
    return row + (p->offset.data ? p->offset.data[b * p->offset.stride[0]] : 0);
}

/* All heads of one token. Elements beyond the rotary dimension are moved as they are. */
static void rotate_token(const rotary_problem *p, const uint64_t *turns, int64_t b, int64_t row) {
    float cos[TALLOW_MAX_ROTARY_PAIRS], sin[TALLOW_MAX_ROTARY_PAIRS],
        x[2 * TALLOW_MAX_ROTARY_PAIRS];
    int64_t dim = p->rotary.dim, position[3];
    size_t size = tallow_dtype_size(p->dtype);
    int64_t implicit = p->positions.data ? 0 : implicit_position(p, b, row);
    tallow_rotary_positions(&p->positions, &p->rotary, b, row, implicit, position);
    tallow_rotary_token(&p->rotary, turns, position, cos, sin);
    for (int64_t head = 0; head < p->heads; head++) {
        const char *from = tallow_rows_at(&p->x, b, row, head);
        char *to = tallow_rows_at(&p->out, b, row, head);
        tallow_load_row(from, p->dtype, dim, x);
        tallow_rotary_apply(&p->rotary, cos, sin, x);
        tallow_store_row(to, p->dtype, dim, x);
        if (to != from)
            memcpy(to + (size_t)dim * size, from + (size_t)dim * size,
                   (size_t)(p->head_dim - dim) * size);
    }
}

/* Packed rows that belong to no sequence are left alone. */
tallow_status tallow_cpu_rotary(const rotary_problem *p) {
    uint64_t turns[TALLOW_MAX_ROTARY_PAIRS];
    tallow_rotary_turns(&p->rotary, turns);
    int64_t first = 0, last = p->batch * p->rows;
    if (p->x_layout == LAYOUT_PACKED) {
        first = p->cu_seqlens.data[0];
        last = p->cu_seqlens.data[p->batch * p->cu_seqlens.stride[0]];
    }
#pragma omp parallel for num_threads(tallow_cpu_threads(p->threads))
    for (int64_t token = first; token < last; token++)
        rotate_token(p, turns, token / p->rows, token % p->rows);
    return TALLOW_OK;
}
