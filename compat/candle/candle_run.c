#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "candle_call.h"
#include "cuda.h"
#include "cuda_driver.h"

/* ---- rows that nobody counted ---- */

/* Whole rows of heads that lie between a pointer and the end of its memory. */
static int64_t rows_behind(const void *data, const candle_call *c, uint32_t heads, uint32_t row,
                           uint32_t head) {
    const int64_t one = ((int64_t)heads - 1) * head + c->d, room = tallow_cuda_room(data) / 2;
    if (room < one) return 0;
    const int64_t more = row ? (room - one) / row : 0;
    return more < INT32_MAX ? more + 1 : INT32_MAX;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Copies of whole tiles reach beyond the last sequence, and must not reach beyond the memory. */
static void bound_rows(candle_call *c) {
    if (c->total_q == TOTAL_UNKNOWN)
        c->most_q = least(rows_behind(c->q, c, c->h, c->q_row_stride, c->q_head_stride),
                          rows_behind(c->o, c, c->h, c->o_row_stride, c->o_head_stride));
    if (c->total_k == TOTAL_UNKNOWN)
        c->most_k = least(rows_behind(c->k, c, c->h_k, c->k_row_stride, c->k_head_stride),
                          rows_behind(c->v, c, c->h_k, c->v_row_stride, c->v_head_stride));
}

static bool is_open_ended(const candle_call *c) {
    return (c->cu_seqlens_q && c->total_q == TOTAL_UNKNOWN && !c->most_q) ||
           (c->cu_seqlens_k && c->total_k == TOTAL_UNKNOWN && !c->most_k && !c->block_table);
}

/* ---- the call ---- */

/* The workspace is there from the call before to the call after in the order of the stream, so
 * nothing waits for the GPU, and a capture of the stream takes it along. Where there is no memory
 * for it, keys are not split: slower, and as exact. */
static tallow_status attend(problem *p, const cuda_scope *scope) {
    tallow_status status = tallow_cuda_workspace(p, &p->workspace_size);
    if (status) return status;
    if (p->workspace_size &&
        tallow_cuda_allocate(&p->workspace, p->workspace_size, scope, p->stream)) {
        p->workspace_size = 0;
        p->num_splits = 1;
        tallow_clear_error();
    }
    status = tallow_cuda_attention(p);
    tallow_status freed = p->workspace ? tallow_cuda_free(p->workspace, p->stream) : TALLOW_OK;
    return status ? status : freed;
}

static tallow_status call(candle_call c) {
    tallow_attention_params params;
    problem p;
    cuda_scope scope;
    tallow_status status = tallow_cuda_enter(&scope, "q", c.q, c.stream);
    if (status) return status;
    bound_rows(&c);
    status = tallow_candle_params(&params, &c, TALLOW_DEVICE_CUDA);
    if (!status) status = tallow_problem_init(&p, &params, sizeof params, CHECK_DATA);
    if (!status) {
        p.open_ended = is_open_ended(&c);
        status = attend(&p, &scope);
    }
    tallow_cuda_leave(&scope);
    return status;
}

/* ---- failure ---- */

/* Rows of out that lie behind one another. */
static tallow_status count_rows(const candle_call *c, int64_t *count) {
    int32_t total = 0;
    *count = c->cu_seqlens_q ? c->total_q : c->seqlen_q;
    if (*count != TOTAL_UNKNOWN) return TALLOW_OK;
    tallow_status status = tallow_cuda_read(&total, c->cu_seqlens_q + c->b, sizeof total);
    *count = total;
    return status;
}

static tallow_status fill_with_nan(const candle_call *c) {
    const uint16_t nan = c->is_bf16 ? 0x7fc0 : 0x7e00;
    const int64_t sequences = c->cu_seqlens_q ? 1 : c->b;
    int64_t count = 0;
    cuda_scope scope;
    tallow_status status = tallow_cuda_enter(&scope, "o", c->o, c->stream);
    if (!status) status = count_rows(c, &count);
    for (int64_t i = 0; i < sequences * c->h && !status; i++) {
        uint16_t *first =
            (uint16_t *)c->o + i / c->h * c->o_batch_stride + i % c->h * c->o_head_stride;
        status = tallow_cuda_fill(first, 2 * (size_t)c->o_row_stride, nan, c->d, (size_t)count,
                                  c->stream);
    }
    tallow_cuda_leave(&scope);
    return status;
}

static void fail(const candle_call *c, tallow_status status) {
    char why[2048];
    const char *wanted = getenv("TALLOW_CANDLE_ABORT");
    snprintf(why, sizeof why, "%s", tallow_last_error());
    const bool filled = fill_with_nan(c) == TALLOW_OK;
    if (!filled || (wanted && strcmp(wanted, "1") == 0)) {
        fprintf(stderr, "run_mha: %s: %s\n", tallow_status_name(status), why);
        abort();
    }
}

void tallow_candle_run(const candle_call *c) {
    tallow_clear_error();
    if (!tallow_candle_has_rows(c)) return;
    tallow_status status = call(*c);
    if (status) fail(c, status);
}
