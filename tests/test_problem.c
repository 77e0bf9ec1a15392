/* Every rule of a call: one row breaks it, and the message must name the field, its value and what
 * is accepted. Nothing may be written. What shapes tell is refused by the planning calls too, with
 * no data at all; they accept what only data tells. */
#include <math.h>
#include <string.h>

#include "calls.h"
#include "expect.h"

/* --------------------------------------------------------------------------------------------
 * The words of the table
 * ------------------------------------------------------------------------------------------ */

/* What must be looked at to notice: shapes and options, pointers, or what they point to. */
typedef enum { SHAPES, POINTERS, DATA } level;

static void expect_message(int line, const char *said, const char *first, const char *second) {
    const char *message = tallow_last_error();
    EXPECT(strstr(message, first) && strstr(message, second),
           "line %d: %s said \"%s\", not \"%s\"..\"%s\"", line, said, message, first, second);
}

/* The calls that look at shapes alone see the same complaint, even with no data. */
static void without_data(call *c, int line, level noticed, tallow_status status, const char *field,
                         const char *accepted) {
    char text[64] = "untouched";
    size_t bytes = 77;
    if (noticed != POINTERS) drop_data(c);
    const tallow_status prepared = tallow_attention_prepare(&c->a, sizeof c->a);
    EXPECT(prepared == (noticed == DATA ? TALLOW_OK : status), "line %d: prepare: %s", line,
           tallow_last_error());
    if (noticed == DATA) return;
    expect_message(line, "prepare", field, accepted);
    EXPECT(tallow_attention_workspace(&c->a, sizeof c->a, &bytes) == status && bytes == 77,
           "line %d: workspace wrote", line);
    EXPECT(tallow_attention_describe(&c->a, sizeof c->a, text, sizeof text) == status &&
               !strcmp(text, "untouched"),
           "line %d: describe wrote", line);
}

static void refuse(call *c, int line, level noticed, tallow_status status, const char *field,
                   const char *accepted) {
    static call before;
    memcpy(&before, c, sizeof *c);
    const tallow_status got = run_call(c);
    EXPECT(got == status, "line %d: %s instead of %s: %s", line, tallow_status_name(got),
           tallow_status_name(status), tallow_last_error());
    expect_message(line, "the call", field, accepted);
    EXPECT(!memcmp(&before, c, sizeof *c), "line %d: memory was written", line);
    if (c->base < ROTARY) without_data(c, line, noticed, status, field, accepted);
}

/* The host's memory is no GPU's, whether or not there is a GPU. */
static void need_gpu(call *c, int line) {
    const tallow_status got = run_call(c);
    EXPECT(got == TALLOW_NO_DEVICE || got == TALLOW_INVALID_ARGUMENT, "line %d: %s", line,
           tallow_status_name(got));
    expect_message(line, "the call", "device = TALLOW_DEVICE_CUDA", "");
}

/* (valid call, what breaks it, who notices, field and value, accepted) */
#define BAD(base, mutation, noticed, field, accepted)                                              \
    WITH(base, mutation, refuse(c, __LINE__, noticed, TALLOW_INVALID_ARGUMENT, field, accepted))

/* --------------------------------------------------------------------------------------------
 * tallow_attention
 * ------------------------------------------------------------------------------------------ */

static void any_tensor(void) {
    BAD(DENSE, memset(&c->a.q, 0, sizeof c->a.q), SHAPES, "q is absent",
        "(batch, seqlen_q, heads, head_dim)");
    BAD(DENSE, memset(&c->a.k, 0, sizeof c->a.k), SHAPES, "k is absent",
        "(batch, seqlen_k, heads_kv, head_dim)");
    BAD(DENSE, memset(&c->a.v, 0, sizeof c->a.v), SHAPES, "v is absent", "head_dim_v)");
    BAD(DENSE, memset(&c->a.out, 0, sizeof c->a.out), SHAPES, "out is absent", "head_dim_v)");
    BAD(DENSE, c->a.q.data = NULL, DATA, "q.data is null", "must point to");
    BAD(DENSE, c->a.k.data = NULL, DATA, "k.data is null", "must point to");
    BAD(DENSE, c->a.v.data = NULL, DATA, "v.data is null", "must point to");
    BAD(DENSE, c->a.out.data = NULL, DATA, "out.data is null", "must point to");
    BAD(DENSE, c->a.lse.data = NULL, DATA, "lse.data is null", "must point to");
    BAD(PACKED, c->a.cu_seqlens_q.data = NULL, DATA, "cu_seqlens_q.data is null", "(batch + 1)");
    BAD(PAGED, c->a.block_table.data = NULL, DATA, "block_table.data is null", "(batch, columns)");
    BAD(CACHED, c->a.positions_q.data = NULL, DATA, "positions_q.data is null", "(batch, seqlen)");
    BAD(DENSE, c->a.q.data = (char *)c->a.q.data + 1, POINTERS, "q.data = 0x", "multiple of 4");
    BAD(DENSE, c->a.q.reserved = 3, SHAPES, "q.reserved = 3", "must be 0");
    BAD(DENSE, c->a.sinks.reserved = 1, SHAPES, "sinks.reserved = 1", "must be 0");
    BAD(DENSE, c->a.q.dtype = 0, SHAPES, "q.dtype = 0", "TALLOW_F16 or TALLOW_BF16 or TALLOW_F32");
    BAD(DENSE, c->a.q.dtype = TALLOW_I32, SHAPES, "q.dtype = 4", "TALLOW_F32");
    BAD(DENSE, c->a.q.dtype = 99, SHAPES, "q.dtype = 99", "TALLOW_F32");
    BAD(DENSE, c->a.q.dtype = INT32_MIN, SHAPES, "q.dtype = -2147483648", "TALLOW_F32");
    BAD(DENSE, c->a.q.shape[1] = -1, SHAPES, "q.shape[1] = -1", "seqlen_q, 0 to 2147483647");
    BAD(DENSE, c->a.q.shape[0] = INT64_MIN, SHAPES, "q.shape[0] = -9223372036854775808", "batch");
    BAD(DENSE, c->a.q.shape[1] = INT64_MAX, SHAPES, "q.shape[1] = 9223372036854775807",
        "0 to 2147483647");
    BAD(DENSE, c->a.q.shape[0] = c->a.q.shape[1] = INT32_MAX, SHAPES, "q.shape[1] = 2147483647",
        "must be less");
    BAD(PACKED, c->a.q.shape[3] = 5, SHAPES, "q.shape[3] = 5", "must be 0 in packed");
    BAD(PACKED, c->a.q.strides[3] = 5, SHAPES, "q.strides[3] = 5", "must be 0 in packed");
    BAD(DENSE, (c->a.q.strides[2] = DIM, c->a.q.strides[3] = 2), SHAPES, "q.strides[3] = 2",
        "must be 1");
    BAD(DENSE, c->a.k.strides[1] = DIM, SHAPES, "k.strides[3] = 0", "must be 1");
    BAD(DENSE, (c->a.q.strides[3] = 1, c->a.q.strides[1] = INT64_MIN), SHAPES,
        "q.strides[1] = -9223372036854775808", "nearer 0");
    BAD(DENSE, (c->a.q.strides[3] = 1, c->a.q.strides[0] = INT64_MAX / 4), SHAPES,
        "q.strides[0] = ", "nearer 0");
    BAD(DENSE, (c->a.q.strides[3] = 1, c->a.q.strides[1] = INT64_MAX / 10), SHAPES,
        "q.strides[1] = ", "nearer 0");
    BAD(DENSE, c->a.out.strides[3] = 1, SHAPES, "out.strides[2] = 0", "as out is written");
    BAD(DENSE, c->a.lse.strides[2] = 1, SHAPES, "lse.strides[1] = 0", "as lse is written");
    BAD(CACHED, (c->a.k.strides[3] = 1, c->a.k.strides[2] = DIM), SHAPES, "k.strides[1] = 0",
        "as k is written");
}

static void shapes(void) {
    BAD(DENSE, c->a.q.shape[2] = 0, SHAPES, "q.shape[2] = 0", "heads must be at least 1");
    BAD(PACKED, c->a.q.shape[1] = 0, SHAPES, "q.shape[1] = 0", "heads must be at least 1");
    BAD(DENSE, c->a.q.shape[3] = 12, SHAPES, "q.shape[3] = 12",
        "multiple of 8 from 8 to 256, 512 or 576");
    BAD(DENSE, c->a.q.shape[3] = 0, SHAPES, "q.shape[3] = 0", "multiple of 8");
    BAD(DENSE, c->a.q.shape[3] = 264, SHAPES, "q.shape[3] = 264", "512 or 576");
    BAD(PACKED, c->a.q.shape[2] = 4, SHAPES, "q.shape[2] = 4", "multiple of 8");
    BAD(DENSE, (c->a.q.shape[0] = INT32_MAX, c->a.q.shape[1] = 1), SHAPES, "q.shape[2] = 4",
        "batch * heads");
    BAD(PACKED, c->a.cu_seqlens_q.shape[0] = 0, SHAPES, "cu_seqlens_q.shape[0] = 0",
        "batch + 1, 1");
    BAD(PACKED, c->a.cu_seqlens_q.shape[0] = INT64_MIN, SHAPES, "cu_seqlens_q.shape[0] = -",
        "batch + 1");
    BAD(PACKED, c->a.cu_seqlens_q.dtype = TALLOW_I64, SHAPES, "cu_seqlens_q.dtype = 5",
        "TALLOW_I32");
    BAD(DENSE, c->a.k.dtype = TALLOW_F16, SHAPES, "k.dtype = 1", "TALLOW_F32");
    BAD(DENSE, c->a.v.dtype = TALLOW_BF16, SHAPES, "v.dtype = 2", "TALLOW_F32");
    BAD(DENSE, c->a.k.shape[0] = 3, SHAPES, "k.shape[0] = 3", "batch, 2,");
    BAD(DENSE, c->a.k.shape[3] = 24, SHAPES, "k.shape[3] = 24", "head_dim, 16");
    BAD(DENSE, c->a.k.shape[2] = 3, SHAPES, "v.shape[2] = 2", "heads_kv, 3");
    BAD(DENSE, c->a.k.shape[2] = c->a.v.shape[2] = 3, SHAPES, "k.shape[2] = 3",
        "divide q's heads, 4");
    BAD(DENSE, c->a.k.shape[2] = c->a.v.shape[2] = 0, SHAPES, "k.shape[2] = 0",
        "divide q's heads, 4");
    BAD(DENSE, c->a.v.shape[1] = 5, SHAPES, "v.shape[1] = 5", "seqlen_k, 6");
    BAD(DENSE, c->a.v.shape[0] = 1, SHAPES, "v.shape[0] = 1", "batch, 2");
    BAD(DENSE, c->a.v.shape[3] = 4, SHAPES, "v.shape[3] = 4",
        "multiple of 8 from 8 to 256, or 512");
    BAD(DENSE, c->a.v.shape[3] = 576, SHAPES, "v.shape[3] = 576", "256, or 512");
    BAD(PACKED, c->a.v.shape[0] = 5, SHAPES, "v.shape[0] = 5", "total_k, 6");
    BAD(PACKED, c->a.k.shape[1] = c->a.v.shape[1] = 3, SHAPES, "k.shape[1] = 3",
        "divide q's heads, 4");
    BAD(PACKED, c->a.k.shape[2] = 8, SHAPES, "k.shape[2] = 8", "head_dim, 16");
    BAD(PAGED, c->a.k.shape[3] = 8, SHAPES, "k.shape[3] = 8",
        "paged (pages, page_size, heads_kv, head_dim)");
    BAD(PAGED, c->a.v.shape[0] = 5, SHAPES, "v.shape[0] = 5", "pages, 7");
    BAD(PAGED, c->a.v.shape[1] = 3, SHAPES, "v.shape[1] = 3", "page_size, 2");
    BAD(PAGED, c->a.k.shape[1] = c->a.v.shape[1] = 0, SHAPES, "k.shape[1] = 0",
        "page_size must be at least 1");
    BAD(PAGED,
        (c->a.k.shape[0] = c->a.v.shape[0] = 1, c->a.k.shape[1] = c->a.v.shape[1] = INT32_MAX),
        SHAPES, "block_table.shape[1] = 3", "columns * page_size");
    BAD(PAGED, c->a.block_table.shape[0] = 3, SHAPES, "block_table.shape[0] = 3", "batch, 2");
    BAD(PAGED, c->a.block_table.dtype = TALLOW_I64, SHAPES, "block_table.dtype = 5", "TALLOW_I32");
    BAD(DENSE, c->a.out.shape[1] = 4, SHAPES, "out.shape[1] = 4", "seqlen_q, 3");
    BAD(DENSE, c->a.out.shape[3] = DIM, SHAPES, "out.shape[3] = 16", "head_dim_v, 8");
    BAD(DENSE, c->a.out.dtype = TALLOW_BF16, SHAPES, "out.dtype = 2", "must be TALLOW_F32");
    BAD(PACKED, c->a.out.shape[0] = 2, SHAPES, "out.shape[0] = 2", "total_q, 3");
    BAD(DENSE, c->a.lse.dtype = TALLOW_F16, SHAPES, "lse.dtype = 1", "TALLOW_F32");
    BAD(DENSE, c->a.lse.shape[1] = 3, SHAPES, "lse.shape[1] = 3", "heads, 4");
    BAD(DENSE, c->a.lse.shape[3] = 1, SHAPES, "lse.shape[3] = 1", "(batch, heads, seqlen_q)");
    BAD(PACKED, c->a.lse.shape[1] = 4, SHAPES, "lse.shape[1] = 4", "total_q, 3");
}

static void lengths(void) {
    BAD(PACKED, c->a.cu_seqlens_k.shape[0] = 2, SHAPES, "cu_seqlens_k.shape[0] = 2",
        "batch + 1, 3");
    BAD(PAGED, c->a.seqused_k.shape[0] = 1, SHAPES, "seqused_k.shape[0] = 1", "batch, 2");
    BAD(PAGED, c->a.seqused_k.dtype = TALLOW_F32, SHAPES, "seqused_k.dtype = 3", "TALLOW_I32");
    BAD(CACHED, c->a.leftpad_k.shape[0] = 3, SHAPES, "leftpad_k.shape[0] = 3", "batch, 2");
    BAD(CACHED, c->a.cache_batch_idx.shape[0] = 3, SHAPES, "cache_batch_idx.shape[0] = 3",
        "batch, 2");
    BAD(PAGED, c->a.cache_batch_idx = I32(cache_row, BATCH, 0, 0, 0), SHAPES,
        "cache_batch_idx is given", "k is paged");
    BAD(PACKED, c->a.cache_batch_idx = I32(cache_row, BATCH, 0, 0, 0), SHAPES,
        "cache_batch_idx is given", "k is packed");
    BAD(DENSE, c->a.max_seqlen_q = -1, SHAPES, "max_seqlen_q = -1", "at least 0");
    BAD(DENSE, c->a.max_seqlen_k = -1, SHAPES, "max_seqlen_k = -1", "at least 0");
    BAD(DENSE, c->a.max_seqlen_q = 2, SHAPES, "max_seqlen_q = 2", "0 or at least 3");
    BAD(DENSE, c->a.max_seqlen_k = 5, SHAPES, "max_seqlen_k = 5", "0 or at least 6");
    BAD(PAGED, (memset(&c->a.seqused_k, 0, sizeof c->a.seqused_k), c->a.max_seqlen_k = 5), SHAPES,
        "max_seqlen_k = 5", "0 or at least 6");
    BAD(PACKED, c->a.max_seqlen_q = 1, DATA, "max_seqlen_q = 1",
        "at least 2, the length of sequence 1");
    BAD(PACKED, c->a.max_seqlen_k = 3, DATA, "max_seqlen_k = 3",
        "at least 4, the keys of sequence 1");
    BAD(PAGED, c->a.max_seqlen_k = 3, DATA, "max_seqlen_k = 3",
        "at least 4, the keys of sequence 0");
    BAD(CACHED, c->a.max_seqlen_k = 5, DATA, "max_seqlen_k = 5",
        "at least 6, the keys of sequence 0");
}

static void vectors(void) {
    BAD(PACKED, c->data.cu_q[0] = -1, DATA, "cu_seqlens_q[0] = -1", "0 to 3");
    BAD(PACKED, c->data.cu_q[2] = 0, DATA, "cu_seqlens_q[2] = 0", "1 to 3");
    BAD(PACKED, c->data.cu_q[2] = 4, DATA, "cu_seqlens_q[2] = 4", "1 to 3");
    BAD(PACKED, c->data.cu_q[1] = INT32_MIN, DATA, "cu_seqlens_q[1] = -2147483648", "0 to 3");
    BAD(PACKED, c->data.cu_k[1] = 7, DATA, "cu_seqlens_k[1] = 7", "0 to 6");
    BAD(PACKED, c->data.cu_k[2] = 1, DATA, "cu_seqlens_k[2] = 1", "2 to 6");
    BAD(PAGED,
        (c->a.cu_seqlens_k = I32(cu_k, BATCH + 1, 0, 0, 0), c->data.cu_k[2] = 9,
         c->data.seqused[0] = 2),
        DATA, "cu_seqlens_k[2]", "columns * page_size, 6");
    BAD(PAGED, c->data.seqused[1] = -1, DATA, "seqused_k[1] = -1", "at least 0");
    BAD(PAGED, c->data.seqused[0] = 7, DATA, "seqused_k[0] = 7", "at most 6");
    BAD(PAGED, c->a.cu_seqlens_k = I32(cu_k, BATCH + 1, 0, 0, 0), DATA, "seqused_k[0] = 4",
        "at most 2");
    BAD(PACKED, c->a.seqused_k = I32(seqused, BATCH, 0, 0, 0), DATA, "seqused_k[0] = 4",
        "at most 2");
    BAD(CACHED, c->data.seqused[0] = 5, DATA, "seqused_k[0] = 5", "with 2 new keys, at most 6");
    BAD(CACHED, c->data.seqused[0] = INT32_MAX, DATA, "seqused_k[0] = 2147483647", "at most 6");
    BAD(CACHED, c->data.leftpad[1] = -1, DATA, "leftpad_k[1] = -1", "0 to 3");
    BAD(CACHED, c->data.leftpad[1] = 4, DATA, "leftpad_k[1] = 4", "0 to 3");
    BAD(DENSE, (c->a.leftpad_k = I32(leftpad, BATCH, 0, 0, 0), c->data.leftpad[0] = 7), DATA,
        "leftpad_k[0] = 7", "0 to 6");
    BAD(CACHED, c->data.cache_row[1] = 3, DATA, "cache_batch_idx[1] = 3", "0 to 2");
    BAD(CACHED, c->data.cache_row[0] = -1, DATA, "cache_batch_idx[0] = -1", "0 to 2");
    BAD(CACHED, c->data.cache_row[1] = 2, DATA, "cache_batch_idx[1] = 2", "must differ");
    BAD(PAGED, c->data.table[1] = 7, DATA, "block_table[0][1] = 7", "0 to 6");
    BAD(PAGED, c->data.table[COLUMNS] = -1, DATA, "block_table[1][0] = -1", "0 to 6");
    BAD(CACHED, c->data.positions_q[3] = -1, DATA, "positions_q = -1 (row 0, sequence 1, token 0)",
        "0 to 2147483647");
    BAD(CACHED, c->data.positions_new[1] = INT64_C(1) << 31, DATA, "positions_k_new = 2147483648",
        "0 to 2147483647");
}

static void scores_and_masks(void) {
    BAD(DENSE, c->a.alibi_slopes = F32(slopes, HEADS + 1, 0, 0, 0), SHAPES,
        "alibi_slopes.shape[0] = 5", "heads, 4, in (heads)");
    BAD(DENSE, c->a.alibi_slopes = F32(slopes, BATCH, HEADS + 1, 0, 0), SHAPES,
        "alibi_slopes.shape[1] = 5", "(batch, heads)");
    BAD(DENSE, c->a.alibi_slopes = I32(slopes, HEADS, 0, 0, 0), SHAPES, "alibi_slopes.dtype = 4",
        "TALLOW_F32");
    BAD(DENSE, c->a.sinks = F32(sinks, 3, 0, 0, 0), SHAPES, "sinks.shape[0] = 3", "heads, 4");
    BAD(DENSE, c->a.sinks = tensor(NULL, TALLOW_F32, HEADS, 0, 0, 0), DATA, "sinks.data is null",
        "(heads)");
    BAD(DENSE, c->a.softmax_scale = NAN, SHAPES, "softmax_scale = nan", "finite");
    BAD(DENSE, c->a.softmax_scale = INFINITY, SHAPES, "softmax_scale = inf", "finite");
    BAD(DENSE, c->a.softcap = -1, SHAPES, "softcap = -1", "at least 0");
    BAD(DENSE, c->a.softcap = INFINITY, SHAPES, "softcap = inf", "finite");
    BAD(DENSE, c->a.softcap = NAN, SHAPES, "softcap = nan", "finite");
    BAD(DENSE, c->a.mask = 3, SHAPES, "mask = 3", "0 to 2");
    BAD(DENSE, c->a.mask = -1, SHAPES, "mask = -1", "0 to 2");
    BAD(DENSE, c->a.window_left = 4, SHAPES, "window_left = 4",
        "must be 0 unless mask is TALLOW_MASK_WINDOW");
    BAD(DENSE, c->a.window_right = -1, SHAPES, "window_right = -1", "TALLOW_MASK_WINDOW");
    BAD(DENSE, (c->a.mask = TALLOW_MASK_CAUSAL, c->a.window_left = 4), SHAPES, "window_left = 4",
        "with window_right = 0");
    BAD(DENSE, (c->a.mask = TALLOW_MASK_WINDOW, c->a.window_left = -2), SHAPES, "window_left = -2",
        "-1, for unlimited");
    BAD(DENSE, (c->a.mask = TALLOW_MASK_WINDOW, c->a.window_right = INT64_MIN), SHAPES,
        "window_right = -9223372036854775808", "-1");
    BAD(DENSE, c->a.prefix_ranges = I32(ranges, BATCH, 2, 2, 0), SHAPES, "prefix_ranges is given",
        "TALLOW_MASK_CAUSAL (1) or TALLOW_MASK_WINDOW (2)");
    BAD(DENSE, (c->a.mask = 1, c->a.prefix_ranges = I32(ranges, BATCH, 2, 1, 0)), SHAPES,
        "prefix_ranges.shape[2] = 1", "(batch, max_ranges, 2)");
    BAD(DENSE, (c->a.mask = 1, c->a.prefix_ranges = I32(ranges, 1, 2, 2, 0)), SHAPES,
        "prefix_ranges.shape[0] = 1", "batch, 2");
    BAD(DENSE, c->a.dropout_p = 1, SHAPES, "dropout_p = 1", "less than 1");
    BAD(DENSE, c->a.dropout_p = -0.5f, SHAPES, "dropout_p = -0.5", "at least 0");
    BAD(DENSE, c->a.dropout_p = NAN, SHAPES, "dropout_p = nan", "at least 0");
}

static void cache_step(void) {
    BAD(DENSE, c->a.v_new = F32(v_new, BATCH, NEW, HEADS_KV, DIM_V), SHAPES, "v_new is given",
        "absent without k_new");
    BAD(DENSE, c->a.cu_seqlens_k_new = I32(cu_new, BATCH + 1, 0, 0, 0), SHAPES,
        "cu_seqlens_k_new is given", "absent without k_new");
    BAD(CACHED, memset(&c->a.v_new, 0, sizeof c->a.v_new), SHAPES, "v_new is absent",
        "head_dim_v)");
    BAD(CACHED, memset(&c->a.seqused_k, 0, sizeof c->a.seqused_k), SHAPES, "seqused_k is absent",
        "given with k_new");
    BAD(PACKED,
        (c->a.k_new = F32(k_new, BATCH, NEW, HEADS_KV, DIM),
         c->a.seqused_k = I32(seqused, BATCH, 0, 0, 0)),
        SHAPES, "k_new is given", "makes k packed");
    BAD(CACHED, c->a.k_new.dtype = TALLOW_F16, SHAPES, "k_new.dtype = 1", "TALLOW_F32");
    BAD(CACHED, c->a.v_new.dtype = TALLOW_F16, SHAPES, "v_new.dtype = 1", "TALLOW_F32");
    BAD(CACHED, c->a.k_new.shape[0] = 1, SHAPES, "k_new.shape[0] = 1", "batch, 2");
    BAD(CACHED, c->a.k_new.shape[2] = 1, SHAPES, "k_new.shape[2] = 1", "heads_kv, 2");
    BAD(CACHED, c->a.k_new.shape[3] = 8, SHAPES, "k_new.shape[3] = 8", "head_dim, 16");
    BAD(CACHED, c->a.v_new.shape[1] = 1, SHAPES, "v_new.shape[1] = 1", "seqlen_new, 2");
    BAD(CACHED, c->a.v_new.shape[3] = 16, SHAPES, "v_new.shape[3] = 16", "head_dim_v, 8");
    BAD(CACHED, c->a.cu_seqlens_k_new = I32(cu_new, BATCH + 1, 0, 0, 0), SHAPES,
        "k_new.shape[2] = 2", "head_dim, 16, in packed");
}

static void packed_step(void) {
    BAD(CACHED, (use_packed_new(c), c->data.cu_new[2] = 4), DATA, "cu_seqlens_k_new[2] = 4",
        "1 to 3");
    BAD(CACHED, (use_packed_new(c), c->data.cu_new[2] = 0), DATA, "cu_seqlens_k_new[2] = 0",
        "1 to 3");
    BAD(CACHED, (use_packed_new(c), c->data.seqused[1] = 5), DATA, "seqused_k[1] = 5",
        "with 2 new keys, at most 6");
    BAD(CACHED, (use_packed_new(c), c->a.v_new.shape[0] = 2), SHAPES, "v_new.shape[0] = 2",
        "total_new, 3");
    BAD(CACHED, (use_packed_new(c), c->a.positions_k_new.shape[0] = 2), SHAPES,
        "positions_k_new.shape[0] = 2", "total, 3");
    BAD(CACHED, (use_packed_new(c), c->a.cu_seqlens_k_new.shape[0] = 2), SHAPES,
        "cu_seqlens_k_new.shape[0] = 2", "batch + 1, 3");
}

static void rotary_angles(void) {
    BAD(DENSE, c->a.rotary.rotary_dim = DIM, SHAPES, "rotary.rotary_dim = 16", "0 without k_new");
    BAD(DENSE, c->a.rotary.theta = 1e4, SHAPES, "rotary.theta is given", "rotary.rotary_dim is 0");
    BAD(DENSE, c->a.rotary.inv_freq = F32(inv_freq, DIM / 2, 0, 0, 0), SHAPES,
        "rotary.inv_freq is given", "rotary_dim is 0");
    BAD(DENSE, c->a.rotary.cos = F32(cos, 9, DIM / 2, 0, 0), SHAPES, "rotary.cos is given",
        "rotary_dim is 0");
    BAD(DENSE, c->a.rotary.sin = F32(sin, 9, DIM / 2, 0, 0), SHAPES, "rotary.sin is given",
        "rotary_dim is 0");
    BAD(DENSE, c->a.rotary.attention_factor = 1, SHAPES, "rotary.attention_factor is given",
        "rotary_dim is 0");
    BAD(DENSE, c->a.rotary.pairing = 1, SHAPES, "rotary.pairing is given", "rotary_dim is 0");
    BAD(DENSE, c->a.rotary.mrope = 1, SHAPES, "rotary.mrope is given", "rotary_dim is 0");
    BAD(DENSE, c->a.rotary.mrope_sections[2] = 1, SHAPES, "rotary.mrope_sections is given",
        "rotary_dim is 0");
    BAD(DENSE, c->a.positions_q = I32(positions_q, BATCH, ROWS_Q, 0, 0), SHAPES,
        "positions_q is given", "rotary_dim is 0");
    BAD(DENSE, c->a.positions_k_new = I32(positions_q, BATCH, ROWS_Q, 0, 0), SHAPES,
        "positions_k_new is given", "rotary_dim is 0");
    BAD(CACHED, c->a.rotary.rotary_dim = 7, SHAPES, "rotary.rotary_dim = 7",
        "even, 2 to head_dim, 16");
    BAD(CACHED, c->a.rotary.rotary_dim = -2, SHAPES, "rotary.rotary_dim = -2", "2 to head_dim, 16");
    BAD(CACHED, c->a.rotary.rotary_dim = 18, SHAPES, "rotary.rotary_dim = 18", "2 to head_dim, 16");
    BAD(CACHED, c->a.rotary.theta = 0.5, SHAPES, "rotary.theta = 0.5", "at least 1");
    BAD(CACHED, c->a.rotary.theta = NAN, SHAPES, "rotary.theta = nan", "finite");
    BAD(CACHED, c->a.rotary.theta = INFINITY, SHAPES, "rotary.theta = inf", "finite");
    BAD(CACHED, c->a.rotary.attention_factor = NAN, SHAPES, "rotary.attention_factor = nan",
        "finite");
    BAD(CACHED, c->a.rotary.attention_factor = INFINITY, SHAPES, "rotary.attention_factor = inf",
        "finite");
    BAD(CACHED, c->a.rotary.mrope = -1, SHAPES, "rotary.mrope = -1", "TALLOW_MROPE_NONE (0)");
    BAD(CACHED, c->a.rotary.theta = 0.5, SHAPES, "rotary.theta = 0.5", "at least 1");
    BAD(CACHED, c->a.rotary.attention_factor = -1, SHAPES, "rotary.attention_factor = -1",
        "more than 0");
    BAD(CACHED, c->a.rotary.pairing = 2, SHAPES, "rotary.pairing = 2",
        "TALLOW_PAIRING_INTERLEAVED (1)");
    BAD(CACHED, c->a.rotary.mrope = 3, SHAPES, "rotary.mrope = 3", "TALLOW_MROPE_INTERLEAVED (2)");
    BAD(CACHED, c->a.rotary.mrope_sections[1] = 4, SHAPES, "rotary.mrope_sections[1] = 4",
        "TALLOW_MROPE_NONE");
    BAD(CACHED, (use_mrope(c), c->a.rotary.mrope_sections[0] = 3), SHAPES,
        "rotary.mrope_sections: sum = 7", "rotary_dim/2, 8");
    BAD(CACHED, (use_mrope(c), c->a.rotary.mrope_sections[0] = -1), SHAPES,
        "rotary.mrope_sections[0] = -1", "at least 0");
    BAD(CACHED, (use_mrope(c), c->a.positions_q.shape[0] = 2), SHAPES, "positions_q.shape[0] = 2",
        "(3, batch, seqlen)");
    BAD(CACHED, (use_mrope(c), c->data.positions_q[2 * BATCH * ROWS_Q + 5] = -7), DATA,
        "positions_q = -7 (row 2, sequence 1, token 2)", "0 to 2147483647");
}

static void rotary_sources(void) {
    BAD(CACHED, (c->a.rotary.inv_freq = F32(inv_freq, DIM / 2, 0, 0, 0), c->a.rotary.theta = 2),
        SHAPES, "rotary.theta = 2", "rotary.inv_freq is given");
    BAD(CACHED, (use_tables(c), c->a.rotary.theta = 2), SHAPES, "rotary.theta = 2",
        "rotary.cos and rotary.sin are given");
    BAD(CACHED, (use_tables(c), c->a.rotary.inv_freq = F32(inv_freq, DIM / 2, 0, 0, 0)), SHAPES,
        "rotary.inv_freq is given", "must be absent");
    BAD(CACHED, c->a.rotary.inv_freq = F32(inv_freq, DIM, 0, 0, 0), SHAPES,
        "rotary.inv_freq.shape[0] = 16", "rotary_dim/2, 8");
    BAD(CACHED, c->a.rotary.inv_freq = tensor(c->data.inv_freq, TALLOW_BF16, DIM / 2, 0, 0, 0),
        SHAPES, "rotary.inv_freq.dtype = 2", "TALLOW_F32");
    BAD(CACHED,
        (c->a.rotary.inv_freq = F32(inv_freq, DIM / 2, 0, 0, 0), c->data.inv_freq[3] = INFINITY),
        DATA, "rotary.inv_freq[3] = inf", "finite");
    BAD(CACHED, (use_tables(c), memset(&c->a.rotary.sin, 0, sizeof c->a.rotary.sin)), SHAPES,
        "rotary.sin is absent", "(max_position, rotary_dim/2)");
    BAD(CACHED, (use_tables(c), memset(&c->a.rotary.cos, 0, sizeof c->a.rotary.cos)), SHAPES,
        "rotary.cos is absent", "(max_position, rotary_dim/2)");
    BAD(CACHED, (use_tables(c), c->a.rotary.sin.dtype = TALLOW_F16), SHAPES, "rotary.sin.dtype = 1",
        "TALLOW_F32");
    BAD(CACHED, (use_tables(c), c->a.rotary.cos.dtype = TALLOW_I32), SHAPES, "rotary.cos.dtype = 4",
        "TALLOW_F16");
    BAD(CACHED, (use_tables(c), c->a.rotary.sin.shape[0] = 8), SHAPES, "rotary.sin.shape[0] = 8",
        "max_position, 9");
    BAD(CACHED, (use_tables(c), c->a.rotary.cos.shape[1] = DIM), SHAPES, "rotary.cos.shape[1] = 16",
        "rotary_dim/2, 8");
    BAD(CACHED, (use_tables(c), c->a.rotary.cos.data = NULL), DATA, "rotary.cos.data is null",
        "max_position");
    BAD(CACHED, (use_tables(c), c->data.positions_q[4] = 9), DATA, "positions_q = 9",
        "0 to 8, the last row of rotary.cos");
    BAD(CACHED,
        (use_tables(c), memset(&c->a.positions_q, 0, sizeof c->a.positions_q),
         c->a.rotary.cos.shape[0] = c->a.rotary.sin.shape[0] = 6,
         memset(c->data.positions_new, 0, sizeof c->data.positions_new)),
        DATA, "positions_q is absent: sequence 0 reaches position 6",
        "at most 5, the last row of rotary.cos");
    BAD(CACHED, c->a.positions_q.dtype = TALLOW_F32, SHAPES, "positions_q.dtype = 3",
        "TALLOW_I32 or TALLOW_I64");
    BAD(CACHED, c->a.positions_q.shape[1] = 2, SHAPES, "positions_q.shape[1] = 2", "seqlen, 3");
    BAD(CACHED, c->a.positions_k_new.shape[0] = 3, SHAPES, "positions_k_new.shape[0] = 3",
        "batch, 2");
}

static void how_to_compute(void) {
    BAD(DENSE, c->a.num_splits = -1, SHAPES, "num_splits = -1", "0 to 4096");
    BAD(DENSE, c->a.num_splits = 4097, SHAPES, "num_splits = 4097", "0 to 4096");
    BAD(DENSE, c->a.precision = 3, SHAPES, "precision = 3", "0 to 2");
    BAD(DENSE, c->a.batch_invariant = 2, SHAPES, "batch_invariant = 2", "0 to 1");
    BAD(DENSE, c->a.device = 2, SHAPES, "device = 2", "TALLOW_DEVICE_CPU (0)");
    BAD(DENSE, c->a.threads = -1, SHAPES, "threads = -1", "at least 0");
    BAD(DENSE, c->a.pack = "x", SHAPES, "pack = ", "null on the CPU");
    BAD(DENSE, c->a.stream = c, SHAPES, "stream = 0x", "null on the CPU");
    BAD(DENSE, (c->a.workspace = c->data.workspace + 1, c->a.workspace_size = 64), SHAPES,
        "workspace = 0x", "multiple of 256");
    BAD(DENSE, c->a.workspace_size = 64, SHAPES, "workspace_size = 64", "0, as workspace is null");
    WITH(DENSE, (c->a.workspace = c->data.workspace, c->a.workspace_size = 1),
         EXPECT(run_call(c) == TALLOW_WORKSPACE_TOO_SMALL, "%s", tallow_last_error()));
    WITH(DENSE, c->a.device = TALLOW_DEVICE_CUDA, need_gpu(c, __LINE__));
}

/* --------------------------------------------------------------------------------------------
 * tallow_rotary and tallow_merge
 * ------------------------------------------------------------------------------------------ */

static void rotary_calls(void) {
    BAD(ROTARY, memset(&c->r.x, 0, sizeof c->r.x), DATA, "x is absent",
        "(batch, seqlen, heads, head_dim)");
    BAD(ROTARY, c->r.x.dtype = TALLOW_I32, DATA, "x.dtype = 4", "TALLOW_F32");
    BAD(ROTARY, c->r.x.shape[3] = 1026, DATA, "x.shape[3] = 1026", "2 to 1024");
    BAD(ROTARY, c->r.x.shape[3] = 15, DATA, "out.shape[3] = 16", "head_dim, 15");
    BAD(ROTARY, c->r.x.shape[3] = c->r.out.shape[3] = 15, DATA, "rotary.rotary_dim = 15", "even");
    BAD(ROTARY_PACKED, c->r.x.shape[2] = 0, DATA, "x.shape[2] = 0", "2 to 1024");
    BAD(ROTARY, c->r.x.data = NULL, DATA, "x.data is null", "must point to");
    BAD(ROTARY, c->r.out.data = NULL, DATA, "out.data is null", "must point to");
    BAD(ROTARY, c->r.out.dtype = TALLOW_F16, DATA, "out.dtype = 1", "TALLOW_F32");
    BAD(ROTARY, c->r.out.shape[1] = 2, DATA, "out.shape[1] = 2", "seqlen, 3");
    BAD(ROTARY, c->r.out.strides[3] = 1, DATA, "out.strides[2] = 0", "as out is written");
    BAD(ROTARY, (c->r.out.data = c->r.x.data, c->r.x.strides[3] = 1, c->r.x.strides[1] = DIM), DATA,
        "out.data = x.data", "same dtype and strides");
    BAD(ROTARY, c->r.positions = I32(positions_q, BATCH, 2, 0, 0), DATA, "positions.shape[1] = 2",
        "seqlen, 3");
    BAD(ROTARY_PACKED, c->r.positions = I32(positions_q, 4, 0, 0, 0), DATA,
        "positions.shape[0] = 4", "total, 3");
    BAD(ROTARY,
        (c->r.positions = I32(positions_q, BATCH, ROWS_Q, 0, 0), c->data.positions_q[5] = -1), DATA,
        "positions = -1 (row 0, sequence 1, token 2)", "0 to 2147483647");
    BAD(ROTARY_PACKED,
        (c->r.positions = I32(positions_q, ROWS_Q, 0, 0, 0), c->data.positions_q[2] = -1), DATA,
        "positions = -1 (row 0, sequence 1, token 1)", "0 to");
    BAD(ROTARY, c->r.offset = I32(offset, 1, 0, 0, 0), DATA, "offset.shape[0] = 1", "batch, 2");
    BAD(ROTARY, (c->r.offset = I32(offset, BATCH, 0, 0, 0), c->data.offset[1] = -3), DATA,
        "offset[1] = -3", "at least 0");
    BAD(ROTARY, (c->r.offset = I32(offset, BATCH, 0, 0, 0), c->data.offset[0] = INT32_MAX - 1),
        DATA, "positions is absent: sequence 0 reaches position 2147483648", "at most 2147483647");
    BAD(ROTARY,
        (c->r.offset = I32(offset, BATCH, 0, 0, 0),
         c->r.positions = I32(positions_q, BATCH, ROWS_Q, 0, 0)),
        DATA, "offset is given", "as positions is given");
    BAD(ROTARY_PACKED, c->data.cu_q[1] = 4, DATA, "cu_seqlens[1] = 4", "0 to 3");
    BAD(ROTARY_PACKED, c->r.cu_seqlens.shape[0] = -4, DATA, "cu_seqlens.shape[0] = -4",
        "batch + 1");
    BAD(ROTARY,
        (c->r.rotary.cos = F32(cos, 2, DIM / 2, 0, 0),
         c->r.rotary.sin = F32(sin, 2, DIM / 2, 0, 0)),
        DATA, "reaches position 2", "at most 1, the last row of rotary.cos");
    BAD(ROTARY, c->r.rotary.rotary_dim = 18, DATA, "rotary.rotary_dim = 18", "2 to head_dim, 16");
    BAD(ROTARY, c->r.threads = -1, DATA, "threads = -1", "at least 0");
    BAD(ROTARY, c->r.pack = "x", DATA, "pack = ", "null on the CPU");
    BAD(ROTARY, c->r.device = -1, DATA, "device = -1", "TALLOW_DEVICE_CPU");
    BAD(ROTARY, c->r.stream = c, DATA, "stream = 0x", "null on the CPU");
    WITH(ROTARY, c->r.device = TALLOW_DEVICE_CUDA, need_gpu(c, __LINE__));
}

static void merge_calls(void) {
    BAD(MERGE, memset(&c->m.out_a, 0, sizeof c->m.out_a), DATA, "out_a is absent", "head_dim_v)");
    BAD(MERGE, memset(&c->m.lse_b, 0, sizeof c->m.lse_b), DATA, "lse_b is absent",
        "(batch, heads, seqlen_q)");
    BAD(MERGE, c->m.out_a.data = NULL, DATA, "out_a.data is null", "must point to");
    BAD(MERGE, c->m.lse_a.data = NULL, DATA, "lse_a.data is null", "must point to");
    BAD(MERGE, c->m.lse.data = NULL, DATA, "lse.data is null", "must point to");
    BAD(MERGE, c->m.out_b.shape[0] = 1, DATA, "out_b.shape[0] = 1", "batch, 2");
    BAD(MERGE, c->m.out_b.dtype = TALLOW_I64, DATA, "out_b.dtype = 5", "TALLOW_F16");
    BAD(MERGE, c->m.out.shape[3] = 16, DATA, "out.shape[3] = 16", "head_dim_v, 8");
    BAD(MERGE, c->m.out.strides[3] = 1, DATA, "out.strides[2] = 0", "as out is written");
    BAD(MERGE, c->m.lse.strides[2] = 1, DATA, "lse.strides[1] = 0", "as lse is written");
    BAD(MERGE, c->m.lse_a.shape[2] = 2, DATA, "lse_a.shape[2] = 2", "seqlen_q, 3");
    BAD(MERGE, c->m.lse_b.dtype = TALLOW_F16, DATA, "lse_b.dtype = 1", "TALLOW_F32");
    BAD(MERGE, c->m.lse.shape[0] = 3, DATA, "lse.shape[0] = 3", "batch, 2");
    BAD(MERGE_PACKED, c->m.lse.shape[0] = 3, DATA, "lse.shape[0] = 3",
        "heads, 4, in (heads, total_q)");
    BAD(MERGE_PACKED, c->m.out_a.shape[2] = 0, DATA, "out_a.shape[2] = 0",
        "head_dim_v must be at least 1");
    BAD(MERGE, (c->m.out.data = c->m.out_a.data, c->m.out.dtype = TALLOW_F16), DATA,
        "out.data = out_a.data", "same dtype and strides");
    BAD(MERGE, (c->m.lse.data = c->m.lse_b.data, c->m.lse_b.strides[2] = 1), DATA,
        "lse.data = lse_b.data", "same strides");
    BAD(MERGE, c->m.threads = -1, DATA, "threads = -1", "at least 0");
    BAD(MERGE, c->m.pack = "x", DATA, "pack = ", "null on the CPU");
    BAD(MERGE, c->m.device = 9, DATA, "device = 9", "TALLOW_DEVICE_CUDA (1)");
    WITH(MERGE, c->m.device = TALLOW_DEVICE_CUDA, need_gpu(c, __LINE__));
}

int main(void) {
    any_tensor();
    shapes();
    lengths();
    vectors();
    scores_and_masks();
    cache_step();
    packed_step();
    rotary_angles();
    rotary_sources();
    how_to_compute();
    rotary_calls();
    merge_calls();
    return expect_report();
}
