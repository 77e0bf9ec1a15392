/* Runs a plan on threads: append the new keys, compute the tiles, combine the parts. */
#include "cpu.h"

#include <stdlib.h>
#include <math.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "convert.h"
#include "cpu/tile.h"
#include "rotary.h"

typedef struct {
    const problem *p;
    const plan *plan;
    uint64_t turns[TALLOW_MAX_ROTARY_PAIRS];
    char *scratch;  /* plan->threads times plan->thread_bytes */
    float *partial; /* slot (row, part) of PART_WIDTH floats */
} run;

static int thread_index(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/* ---- append -----------------------------------------------------------------------------------
 */

static const char *new_row(const rows_view *view, const sequence *seq, int64_t b, int64_t t) {
    return view->data + (b * view->batch_stride + (seq->new_start + t) * view->row_stride) *
                            (int64_t)tallow_dtype_size(view->dtype);
}

static void rotate_row(const problem *p, const float *cosines, const float *sines, const char *from,
                       char *to) {
    float x[TALLOW_MAX_HEAD_DIM];
    for (int64_t i = 0; i < p->head_dim; i++) x[i] = tallow_load(from, p->dtype, i);
    tallow_rotary_apply(&p->rotary, cosines, sines, x);
    for (int64_t i = 0; i < p->head_dim; i++) tallow_store(to, p->dtype, i, x[i]);
}

/* Writes new token t of sequence b, all its heads, to the cache. */
static void append_token(const run *r, int64_t b, const sequence *seq, int64_t t) {
    const problem *p = r->p;
    float cosines[TALLOW_MAX_ROTARY_PAIRS], sines[TALLOW_MAX_ROTARY_PAIRS];
    int64_t position[3], size = (int64_t)tallow_dtype_size(p->dtype);
    int64_t key =
        seq->append_at + t - seq->k_start; /* tallow_key_row counts from the first valid key */
    char *k = tallow_key_row(p, &p->k, seq, b, key), *v = tallow_key_row(p, &p->v, seq, b, key);
    const char *k_new = new_row(&p->k_new, seq, b, t), *v_new = new_row(&p->v_new, seq, b, t);
    if (p->rotary.dim > 0) {
        tallow_rotary_positions(&p->positions_new, &p->rotary,
                                p->new_layout == LAYOUT_PACKED ? 0 : b, seq->new_start + t,
                                seq->append_at + t, position);
        tallow_rotary_token(&p->rotary, r->turns, position, cosines, sines);
    }
    for (int64_t h = 0; h < p->heads_kv; h++) {
        const char *from = k_new + h * p->k_new.head_stride * size;
        char *to = k + h * p->k.head_stride * size;
        if (p->rotary.dim > 0)
            rotate_row(p, cosines, sines, from, to);
        else
            memcpy(to, from, (size_t)(p->head_dim * size));
        memcpy(v + h * p->v.head_stride * size, v_new + h * p->v_new.head_stride * size,
               (size_t)(p->head_dim_v * size));
    }
}

static void append(const run *r) {
    const problem *p = r->p;
    int64_t most = p->max_seqlen_new, tokens = p->batch * most;
#pragma omp parallel for schedule(static) num_threads(r->plan->threads) if (tokens > 64)
    for (int64_t i = 0; i < tokens; i++) {
        sequence seq = tallow_problem_sequence(p, i / most);
        if (i % most < seq.seqlen_new) append_token(r, i / most, &seq, i % most);
    }
}

/* ---- tiles ------------------------------------------------------------------------------------
 */

/* Rows of one key head that partial results are kept for. */
static int64_t partial_rows(const run *r) {
    return r->plan->split_one_block ? r->plan->block_rows : r->p->max_seqlen_q * r->p->group;
}

/* Partial results of packed row `row` of (b, head_kv). */
static float *partial_slot(const run *r, int64_t b, int64_t head_kv, int64_t row) {
    const problem *p = r->p;
    int64_t slot = (b * p->heads_kv + head_kv) * partial_rows(r) + row;
    return r->partial + slot * r->plan->splits * PART_WIDTH(p->head_dim_v);
}

/* Item i of the work list: row blocks from the last (the longest under a causal mask) to the first
 * in every block of key heads, and the blocks of one part side by side, since their keys are
 * neighbours.
 */
static void run_item(const run *r, int64_t i, char *scratch) {
    static void (*const tiles[CPU_LEVELS])(const tile *) = {
        [CPU_SCALAR] = tallow_tile_scalar,
#ifdef TALLOW_X86
        [CPU_AVX2] = tallow_tile_avx2,
        [CPU_AVX512] = tallow_tile_avx512,
        [CPU_AVX512BF16] = tallow_tile_avx512bf16,
#endif
    };
    const problem *p = r->p;
    const plan *plan = r->plan;
    int64_t block = i % plan->row_blocks, heads = i / plan->row_blocks;
    int64_t part = heads / plan->head_blocks % plan->splits;
    tile t = {.p = p, .plan = plan, .turns = r->turns, .scratch = scratch};
    t.b = heads / plan->head_blocks / plan->splits;
    t.head_kv = heads % plan->head_blocks * plan->block_heads;
    t.heads_kv =
        p->heads_kv - t.head_kv < plan->block_heads ? p->heads_kv - t.head_kv : plan->block_heads;
    t.seq = tallow_problem_sequence(p, t.b);

    int64_t rows = t.seq.seqlen_q * p->group, parts = tallow_plan_parts(plan, rows, t.seq.seqlen_k);
    t.direct = rows <= FEW_ROWS;
    t.row_begin = (plan->row_blocks - 1 - block) * plan->block_rows;
    t.rows = rows - t.row_begin < plan->block_rows ? rows - t.row_begin : plan->block_rows;
    if (t.rows <= 0 || part >= parts) return;
    t.key_begin = t.seq.seqlen_k * part / parts;
    t.key_end = t.seq.seqlen_k * (part + 1) / parts;
    if (parts > 1) {
        t.partial = partial_slot(r, t.b, t.head_kv, t.row_begin) + part * PART_WIDTH(p->head_dim_v);
        t.partial_stride = plan->splits * PART_WIDTH(p->head_dim_v);
        t.partial_head_stride = partial_rows(r) * t.partial_stride;
    }
    tiles[plan->level](&t);
}

/* ---- combine ----------------------------------------------------------------------------------
 */

/* One row from its parts; the sink takes its share of the sum. */
static void combine_row(const run *r, const sequence *seq, int64_t b, int64_t head_kv, int64_t row,
                        int64_t parts) {
    const problem *p = r->p;
    int64_t dv = p->head_dim_v, query = row / p->group, head = head_kv * p->group + row % p->group;
    const float *slot = partial_slot(r, b, head_kv, row);
    double top = -INFINITY, total = 0;
    for (int64_t z = 0; z < parts; z++)
        if (slot[z * PART_WIDTH(dv) + dv] > top) top = slot[z * PART_WIDTH(dv) + dv];

    float sum[TALLOW_MAX_HEAD_DIM] = {0};
    for (int64_t z = 0; z < parts; z++, slot += PART_WIDTH(dv)) {
        double max = slot[dv], part_sum = slot[dv + 1];
        if (part_sum == 0) continue; /* no visible key in this part */
        float weight = (float)exp2(max - top);
        total += weight * part_sum;
        for (int64_t i = 0; i < dv; i++) sum[i] += weight * slot[i];
    }
    tallow_total all = tallow_tile_total(p, head, top, total);
    char *out =
        p->out.data + (b * p->out.batch_stride + (seq->q_start + query) * p->out.row_stride +
                       head * p->out.head_stride) *
                          (int64_t)tallow_dtype_size(p->out_dtype);
    for (int64_t i = 0; i < dv; i++) tallow_store(out, p->out_dtype, i, sum[i] * all.scale);
    if (p->lse)
        p->lse[b * p->lse_batch_stride + head * p->lse_head_stride + seq->q_start + query] =
            all.lse;
}

static void combine(const run *r) {
    const problem *p = r->p;
    int64_t blocks = p->batch * p->heads_kv * r->plan->row_blocks;
#pragma omp parallel for schedule(dynamic) num_threads(r->plan->threads)
    for (int64_t i = 0; i < blocks; i++) {
        int64_t head = i / r->plan->row_blocks, b = head / p->heads_kv,
                head_kv = head % p->heads_kv;
        int64_t begin = i % r->plan->row_blocks * r->plan->block_rows;
        sequence seq = tallow_problem_sequence(p, b);
        int64_t rows = seq.seqlen_q * p->group,
                parts = tallow_plan_parts(r->plan, rows, seq.seqlen_k);
        for (int64_t row = begin; parts > 1 && row < rows && row < begin + r->plan->block_rows;
             row++)
            combine_row(r, &seq, b, head_kv, row, parts);
    }
}

/* ---- the call ---------------------------------------------------------------------------------
 */

size_t tallow_tile_bytes(const problem *p, const plan *plan) {
    int64_t rows = plan->block_rows, keys = plan->block_keys, d = p->head_dim;
    int64_t dv = (p->head_dim_v + TILE_LANES - 1) / TILE_LANES * TILE_LANES;
    d = (d + TILE_LANES - 1) / TILE_LANES * TILE_LANES;
    int64_t words =
        plan->block_heads * rows * (d + dv + 3) + rows * (keys + keys) + keys * (d + dv);
    return (((size_t)words * sizeof(float) + 9 * TILE_ALIGN) / TILE_ALIGN + 1) * TILE_ALIGN;
}

static void run_tiles(const run *r) {
    int64_t items = r->p->batch * r->plan->head_blocks * r->plan->row_blocks * r->plan->splits;
#pragma omp parallel for schedule(dynamic) num_threads(r->plan->threads)
    for (int64_t i = 0; i < items; i++)
        run_item(r, i, r->scratch + (size_t)thread_index() * r->plan->thread_bytes);
}

tallow_status tallow_cpu_attention(const problem *p, const plan *plan) {
    void *memory = p->workspace;
    if (memory && p->workspace_size < plan->workspace)
        return tallow_fail(
            TALLOW_WORKSPACE_TOO_SMALL,
            "workspace_size = %zu: this call needs %zu bytes (tallow_attention_workspace), "
            "or workspace = null to have them allocated",
            p->workspace_size, plan->workspace);
    if (!memory) memory = aligned_alloc(256, (plan->workspace + 255) / 256 * 256);
    if (!memory)
        return tallow_fail(TALLOW_OUT_OF_MEMORY, "no memory for a workspace of %zu bytes",
                           plan->workspace);
    run r = {.p = p, .plan = plan, .scratch = memory};
    r.partial = (float *)(void *)(r.scratch + (size_t)plan->threads * plan->thread_bytes);
    tallow_rotary_turns(&p->rotary, r.turns);
    if (p->max_seqlen_new > 0) append(&r);
    run_tiles(&r);
    if (plan->splits > 1) combine(&r);
    if (!p->workspace) free(memory);
    return TALLOW_OK;
}
