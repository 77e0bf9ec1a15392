/* Runs a plan on a stream: append the new keys and rotate q, compute the tiles, combine the parts.
 */
#include "cuda.h"

#include "cuda_args.h"
#include "cuda_kernels.h"
#include "cuda_maps.h"

static const spec rows_program = {0};

static bool overflows(int64_t blocks) { return blocks > INT32_MAX; }

/* ---- what a call's pointers point to ---- */

typedef struct {
    const char *name;
    const void *data;
    bool read; /* some element of it exists */
} pointer;

static tallow_status need_device_memory(cuda_scope *scope, const pointer *pointers, int count,
                                        void *stream) {
    for (int i = 0; i < count; i++)
        if (pointers[i].data && pointers[i].read &&
            !tallow_cuda_knows(scope, pointers[i].data, stream))
            return tallow_fail(TALLOW_INVALID_ARGUMENT,
                               "%s.data = %p: must be memory of a GPU, as device = "
                               "TALLOW_DEVICE_CUDA",
                               pointers[i].name, pointers[i].data);
    return TALLOW_OK;
}

static tallow_status need_tensors(cuda_scope *scope, const problem *p) {
    const bool some = p->batch > 0, queries = some && p->rows_q > 0, added = p->rows_new > 0;
    const bool keys = p->rows_k > 0 && (p->k_layout == LAYOUT_PACKED ||
                                        (p->k_layout == LAYOUT_PAGED ? p->pages : p->cache_rows));
    const pointer pointers[] = {
        {"k", p->k.data, keys},
        {"v", p->v.data, keys},
        {"out", p->out.data, queries},
        {"lse", p->lse, queries},
        {"cu_seqlens_q", p->cu_seqlens_q.data, some},
        {"cu_seqlens_k", p->cu_seqlens_k.data, some},
        {"seqused_k", p->seqused_k.data, some},
        {"leftpad_k", p->leftpad_k.data, some},
        {"block_table", p->block_table.data, some && p->columns > 0},
        {"cache_batch_idx", p->cache_batch_idx.data, some},
        {"alibi_slopes", p->alibi_slopes.data, some},
        {"sinks", p->sinks.data, some},
        {"prefix_ranges", p->prefix_ranges.data, some && p->max_ranges > 0},
        {"k_new", p->k_new.data, some && added},
        {"v_new", p->v_new.data, some && added},
        {"cu_seqlens_k_new", p->cu_seqlens_k_new.data, some},
        {"rotary.cos", p->rotary.cos, p->rotary.table_rows > 0},
        {"rotary.sin", p->rotary.sin, p->rotary.table_rows > 0},
        {"positions_q", p->positions_q.data, queries},
        {"positions_k_new", p->positions_new.data, some && added},
        {"workspace", p->workspace, p->workspace_size > 0},
    };
    return need_device_memory(scope, pointers, sizeof pointers / sizeof *pointers, p->stream);
}

/* ---- attention ---- */

typedef struct {
    const problem *p;
    cuda_plan plan;
    void *const *forward, *const *rows; /* entries; null: not needed */
} run;

static tallow_status find_kernels(run *r, const cuda_gpu *gpu) {
    tallow_status status = TALLOW_OK;
    if (r->plan.blocks > 0)
        status = tallow_cuda_kernels(&r->plan.kernel, gpu, r->p->pack, &r->forward);
    if (!status && r->plan.tokens > 0)
        status = tallow_cuda_kernels(&rows_program, gpu, r->p->pack, &r->rows);
    return status;
}

static tallow_status append(const run *r, const cuda_gpu *gpu) {
    const problem *p = r->p;
    append_args args;
    cuda_shape shape = {
        (unsigned)(p->batch * r->plan.tokens), {TOKEN_THREADS, 1}, 0, gpu->starts_early};
    if (shape.blocks == 0) return TALLOW_OK;
    tallow_cuda_append_args(&args, p, &r->plan);
    return tallow_cuda_launch(r->rows[ENTRY_APPEND], shape, p->stream, &args);
}

static cuda_shape forward_shape(const cuda_plan *plan, const cuda_gpu *gpu) {
    return (cuda_shape){(unsigned)plan->blocks,
                        {(unsigned)plan->tile.threads, 1},
                        (unsigned)plan->tile.shared_bytes,
                        gpu->starts_early};
}

static tallow_status forward_by_maps(const run *r, const cuda_gpu *gpu) {
    forward_tma_args args;
    tallow_cuda_tma_args(&args, r->p, &r->plan);
    tallow_status status = tallow_cuda_maps(&args, r->p, &r->plan);
    if (status) return status;
    return tallow_cuda_launch(r->forward[ENTRY_FORWARD], forward_shape(&r->plan, gpu), r->p->stream,
                              &args);
}

static tallow_status forward(const run *r, const cuda_gpu *gpu) {
    const cuda_plan *plan = &r->plan;
    const int64_t runs = plan->tiles * plan->tile.block_rows / COMBINE_ROWS;
    const cuda_shape combined = {(unsigned)runs, {COMBINE_THREADS, 1}, 0, gpu->starts_early};
    forward_args args;
    if (plan->blocks == 0) return TALLOW_OK;
    if (plan->kernel.family == 90) return forward_by_maps(r, gpu);
    tallow_cuda_forward_args(&args, r->p, plan);
    tallow_status status = tallow_cuda_launch(r->forward[ENTRY_FORWARD], forward_shape(plan, gpu),
                                              r->p->stream, &args);
    if (status || !plan->combines) return status;
    return tallow_cuda_launch(r->forward[ENTRY_COMBINE], combined, r->p->stream, &args);
}

static tallow_status need_workspace(const run *r) {
    const problem *p = r->p;
    if (r->plan.workspace == 0 || (p->workspace && p->workspace_size >= r->plan.workspace))
        return TALLOW_OK;
    return tallow_fail(TALLOW_WORKSPACE_TOO_SMALL,
                       "workspace_size = %zu: this call needs %zu bytes on the device "
                       "(tallow_attention_workspace)",
                       p->workspace_size, r->plan.workspace);
}

/* q says which GPU, when it has elements: then it need not be looked up again. `plan_only`:
 * pointers may be null. */
static tallow_status start(cuda_scope *scope, run *r, const problem *p, bool plan_only) {
    const bool queries = p->batch > 0 && p->rows_q > 0;
    const char *name = plan_only ? NULL : queries ? "q" : "k";
    r->p = p;
    r->forward = r->rows = NULL;
    tallow_status status =
        tallow_cuda_enter(scope, name, queries ? p->q.data : p->k.data, p->stream);
    return status ? status : tallow_cuda_plan_make(&r->plan, p, scope->gpu);
}

static bool nothing_to_do(const problem *p) {
    return p->batch == 0 || (p->max_seqlen_q == 0 && p->max_seqlen_new == 0);
}

tallow_status tallow_cuda_attention(const problem *p) {
    cuda_scope scope;
    run r;
    tallow_status status = start(&scope, &r, p, nothing_to_do(p));
    if (!status) status = need_workspace(&r);
    if (!status) status = need_tensors(&scope, p);
    if (!status) status = find_kernels(&r, scope.gpu);
    if (!status) status = append(&r, scope.gpu);
    if (!status) status = forward(&r, scope.gpu);
    tallow_cuda_leave(&scope);
    return status;
}

tallow_status tallow_cuda_workspace(const problem *p, size_t *bytes) {
    cuda_scope scope;
    run r;
    tallow_status status = start(&scope, &r, p, true);
    *bytes = status ? 0 : r.plan.workspace;
    tallow_cuda_leave(&scope);
    return status;
}

tallow_status tallow_cuda_prepare(const problem *p) {
    cuda_scope scope;
    run r;
    tallow_status status = start(&scope, &r, p, true);
    if (!status) status = find_kernels(&r, scope.gpu);
    tallow_cuda_leave(&scope);
    return status;
}

tallow_status tallow_cuda_describe(const problem *p, char *text, size_t text_size) {
    cuda_scope scope;
    run r;
    tallow_status status = start(&scope, &r, p, true);
    if (!status) tallow_cuda_plan_describe(&r.plan, p, scope.gpu, text, text_size);
    tallow_cuda_leave(&scope);
    return status;
}

/* ---- row by row ---- */

/* Enters the GPU of a tensor and finds the kernels of rows.cu. */
static tallow_status start_rows(cuda_scope *scope, const char *name, const void *data, void *stream,
                                const char *pack, void *const **entries) {
    tallow_status status = tallow_cuda_enter(scope, name, data, stream);
    if (!status && scope->gpu->capability < 75)
        status = tallow_fail(TALLOW_UNSUPPORTED, "%s: its compute capability must be at least 7.5",
                             scope->gpu->name);
    return status ? status : tallow_cuda_kernels(&rows_program, scope->gpu, pack, entries);
}

static tallow_status rotate(const rotary_problem *p, void *entry, int64_t blocks) {
    tallow_status status = TALLOW_OK;
    cuda_shape shape = {(unsigned)blocks, {TOKEN_THREADS, 1}, 0, false};
    rotate_args args;
    for (int64_t first = 0; first < p->rotary.dim / 2 && !status; first += ROTATE_PAIRS) {
        tallow_cuda_rotate_args(&args, p, first);
        status = tallow_cuda_launch(entry, shape, p->stream, &args);
    }
    return status;
}

tallow_status tallow_cuda_rotary(const rotary_problem *p) {
    const int64_t blocks = p->rows * (p->x_layout == LAYOUT_PACKED ? 1 : p->batch);
    const bool some = p->batch > 0;
    const pointer pointers[] = {
        {"out", p->out.data, true},
        {"cu_seqlens", p->cu_seqlens.data, some},
        {"offset", p->offset.data, some},
        {"positions", p->positions.data, true},
        {"rotary.cos", p->rotary.cos, p->rotary.table_rows > 0},
        {"rotary.sin", p->rotary.sin, p->rotary.table_rows > 0},
    };
    void *const *entries;
    cuda_scope scope;
    if (blocks == 0 || p->heads == 0 || !some) return TALLOW_OK;
    if (overflows(blocks))
        return tallow_fail(TALLOW_UNSUPPORTED, "x: %lld tokens, must be at most 2147483647",
                           (long long)blocks);
    tallow_status status = start_rows(&scope, "x", p->x.data, p->stream, p->pack, &entries);
    if (!status)
        status =
            need_device_memory(&scope, pointers, sizeof pointers / sizeof *pointers, p->stream);
    if (!status) status = rotate(p, entries[ENTRY_ROTATE], blocks);
    tallow_cuda_leave(&scope);
    return status;
}

tallow_status tallow_cuda_merge(const merge_problem *p) {
    const int64_t rows = p->batch * p->seqlen_q;
    const pointer pointers[] = {
        {"lse_a", p->lse_a, true},  {"out_b", p->out_b.data, true}, {"lse_b", p->lse_b, true},
        {"out", p->out.data, true}, {"lse", p->lse, true},
    };
    void *const *entries;
    merge_args args;
    cuda_scope scope;
    int64_t items;
    if (rows == 0 || p->heads == 0) return TALLOW_OK;
    if (__builtin_mul_overflow(rows, p->heads, &items) || overflows(items / MERGE_ROWS))
        return tallow_fail(TALLOW_UNSUPPORTED, "out_a: must have at most %lld rows of heads",
                           (long long)INT32_MAX * MERGE_ROWS);
    cuda_shape shape = {
        (unsigned)((items + MERGE_ROWS - 1) / MERGE_ROWS), {32, MERGE_ROWS}, 0, false};
    tallow_status status = start_rows(&scope, "out_a", p->out_a.data, p->stream, p->pack, &entries);
    if (!status)
        status =
            need_device_memory(&scope, pointers, sizeof pointers / sizeof *pointers, p->stream);
    tallow_cuda_merge_args(&args, p);
    if (!status) status = tallow_cuda_launch(entries[ENTRY_MERGE], shape, p->stream, &args);
    tallow_cuda_leave(&scope);
    return status;
}
