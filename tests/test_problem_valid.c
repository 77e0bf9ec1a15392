/* What a call may ask, to the edge, and what a checked call then says. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "calls.h"
#include "expect.h"
#include "problem.h"

#define GOOD(base, mutation)                                                                       \
    WITH(base, mutation,                                                                           \
         EXPECT(run_call(c) == TALLOW_OK && !*tallow_last_error(), "%s", tallow_last_error()))

static void empty(call *c, int64_t rows_q, int64_t rows_k) {
    c->a.q.shape[1] = c->a.out.shape[1] = c->a.lse.shape[2] = rows_q;
    c->a.k.shape[1] = c->a.v.shape[1] = rows_k;
    if (!rows_q) c->a.q.data = c->a.out.data = c->a.lse.data = NULL;
    if (!rows_k) c->a.k.data = c->a.v.data = NULL;
}

static void no_batch(call *c) {
    c->a.q.shape[0] = c->a.k.shape[0] = c->a.v.shape[0] = c->a.out.shape[0] = 0;
    c->a.lse.shape[0] = 0;
    drop_data(c);
}

static void empty_calls(void) {
    GOOD(DENSE, no_batch(c));
    GOOD(DENSE, (no_batch(c), c->a.max_seqlen_q = c->a.max_seqlen_k = 1));
    GOOD(DENSE, empty(c, 0, ROWS_K));
    GOOD(DENSE, empty(c, ROWS_Q, 0));
    GOOD(DENSE, empty(c, 0, 0));
    GOOD(PACKED, c->a.cu_seqlens_q.shape[0] = c->a.cu_seqlens_k.shape[0] = 1);
    GOOD(PACKED, (c->a.q.shape[0] = c->a.out.shape[0] = c->a.lse.shape[1] = 0,
                  memset(c->data.cu_q, 0, sizeof c->data.cu_q)));
    GOOD(PACKED,
         (c->a.k.shape[0] = c->a.v.shape[0] = 0, memset(c->data.cu_k, 0, sizeof c->data.cu_k)));
    GOOD(PAGED, c->a.block_table.shape[1] = c->data.seqused[0] = c->data.seqused[1] = 0);
    GOOD(PAGED, (c->a.k.shape[0] = c->a.v.shape[0] = 0, memset(c->data.seqused, 0, 8)));
    GOOD(CACHED, c->a.k_new.shape[1] = c->a.v_new.shape[1] = c->a.positions_k_new.shape[1] = 0);
    GOOD(ROTARY, c->r.x.shape[0] = c->r.out.shape[0] = 0);
    GOOD(ROTARY, c->r.x.shape[1] = c->r.out.shape[1] = 0);
    GOOD(MERGE, c->m.out_a.shape[1] = c->m.out_b.shape[1] = c->m.out.shape[1] =
                    c->m.lse_a.shape[2] = c->m.lse_b.shape[2] = c->m.lse.shape[2] = 0);
}

static void strides(tallow_tensor *t, int64_t s0, int64_t s1, int64_t s2, int64_t s3) {
    const int64_t all[4] = {s0, s1, s2, s3};
    memcpy(t->strides, all, sizeof all);
}

static void reversed(tallow_tensor *t, int64_t rows, int64_t batch, int64_t row, int64_t head) {
    strides(t, batch, -row, head, 1);
    t->data = (float *)t->data + (rows - 1) * row;
}

static void any_strides(void) {
    GOOD(DENSE, strides(&c->a.k, 0, HEADS_KV * DIM, DIM, 1)); /* one k for every sequence */
    GOOD(DENSE, strides(&c->a.q, 0, 0, 0, 1));
    GOOD(DENSE, reversed(&c->a.k, ROWS_K, ROWS_K * HEADS_KV * DIM, HEADS_KV * DIM, DIM));
    GOOD(DENSE, reversed(&c->a.out, ROWS_Q, ROWS_Q * HEADS * DIM_V, HEADS * DIM_V, DIM_V));
    GOOD(DENSE, (c->a.q.shape[1] = c->a.out.shape[1] = c->a.lse.shape[2] = 1,
                 strides(&c->a.q, HEADS * DIM, INT64_MIN, DIM, 1),
                 strides(&c->a.lse, HEADS, 1, INT64_MAX, 0)));
    GOOD(PAGED, (c->data.seqused[1] = 0, strides(&c->a.seqused_k, -1, 0, 0, 0),
                 c->a.seqused_k.data = c->data.seqused + 1));
    GOOD(PAGED, (c->data.table[0] = c->data.table[1] = c->data.table[2] = 6,
                 strides(&c->a.block_table, 1, 1, 0, 0)));
    GOOD(PACKED, (c->data.cu_k[1] = 1, c->data.cu_k[2] = 2, c->data.cu_q[2] = 2,
                  strides(&c->a.cu_seqlens_k, 1, 0, 0, 0)));
    GOOD(DENSE, (c->a.sinks = F32(slopes, HEADS, 0, 0, 0), strides(&c->a.sinks, 2, 0, 0, 0)));
    GOOD(CACHED, (use_tables(c), strides(&c->a.rotary.cos, DIM, 1, 0, 0)));
    GOOD(CACHED, (c->a.rotary.inv_freq = F32(inv_freq, DIM / 2, 0, 0, 0),
                  strides(&c->a.rotary.inv_freq, 2, 0, 0, 0)));
}

static void any_layout(void) {
    GOOD(DENSE, (void)0);
    GOOD(PACKED, (void)0);
    GOOD(PAGED, (void)0);
    GOOD(CACHED, (void)0);
    GOOD(CACHED, use_packed_new(c));
    GOOD(CACHED, use_tables(c));
    GOOD(CACHED, use_mrope(c));
    GOOD(CACHED, (use_mrope(c), c->a.rotary.mrope = TALLOW_MROPE_INTERLEAVED));
    GOOD(CACHED, (use_mrope(c), memset(&c->a.positions_q, 0, sizeof(tallow_tensor))));
    GOOD(DENSE, memset(&c->a.lse, 0, sizeof c->a.lse));
    GOOD(PACKED, c->data.cu_q[0] = 1);
    GOOD(PACKED, (c->a.seqused_k = I32(seqused, BATCH, 0, 0, 0), c->data.seqused[0] = 1));
    GOOD(PACKED, (c->a.leftpad_k = I32(leftpad, BATCH, 0, 0, 0), c->data.leftpad[0] = 2));
    GOOD(PAGED, c->data.table[COLUMNS + 2] = -5); /* a column that holds no key */
    GOOD(PAGED, (c->a.leftpad_k = I32(leftpad, BATCH, 0, 0, 0), c->data.leftpad[0] = 2,
                 c->data.table[0] = 99)); /* a column before the first key */
    GOOD(PAGED, memset(&c->a.seqused_k, 0, sizeof c->a.seqused_k));
    GOOD(PAGED, (memset(&c->a.seqused_k, 0, sizeof c->a.seqused_k),
                 c->a.cu_seqlens_k = I32(cu_k, BATCH + 1, 0, 0, 0)));
    GOOD(DENSE, c->a.out.dtype = TALLOW_F32);
    GOOD(DENSE, (c->a.cache_batch_idx = I32(cache_row, BATCH, 0, 0, 0), c->data.cache_row[0] = 0,
                 c->data.cache_row[1] = 0)); /* two sequences read one row */
}

static void any_option(void) {
    GOOD(DENSE, c->a.max_seqlen_q = c->a.max_seqlen_k = INT64_MAX);
    GOOD(PACKED, (c->a.max_seqlen_q = 2, c->a.max_seqlen_k = 4));
    GOOD(DENSE, (c->a.num_splits = 4096, c->a.threads = 1, c->a.batch_invariant = 1));
    GOOD(DENSE, c->a.threads = INT32_MAX); /* more than there are processors */
    GOOD(DENSE, c->a.softmax_scale = -0.5f);
    GOOD(DENSE, (c->a.dropout_seed = UINT64_MAX, c->a.dropout_offset = 1));
    GOOD(DENSE, c->a.dropout_p = nextafterf(1, 0));
    GOOD(DENSE, (c->a.mask = TALLOW_MASK_WINDOW, c->a.window_left = c->a.window_right = INT64_MAX));
    GOOD(DENSE, (c->a.mask = TALLOW_MASK_WINDOW, c->a.window_left = c->a.window_right = -1));
    GOOD(DENSE, (c->a.mask = TALLOW_MASK_CAUSAL, c->a.prefix_ranges = I32(ranges, BATCH, 2, 2, 0)));
    GOOD(DENSE, (c->a.mask = TALLOW_MASK_CAUSAL,
                 c->a.prefix_ranges = tensor(NULL, TALLOW_I32, BATCH, 0, 2, 0)));
    GOOD(DENSE, c->a.alibi_slopes = F32(slopes, BATCH, HEADS, 0, 0));
    GOOD(DENSE, c->a.precision = TALLOW_PRECISION_HIGH);
    GOOD(ROTARY, c->r.out.data = c->r.x.data);
    GOOD(ROTARY,
         (c->r.offset = I32(offset, BATCH, 0, 0, 0), c->data.offset[1] = INT32_MAX - (ROWS_Q - 1)));
    GOOD(ROTARY, (c->r.positions = I32(positions_q, BATCH, ROWS_Q, 0, 0),
                  c->data.positions_q[0] = INT32_MAX));
    GOOD(ROTARY_PACKED, c->r.positions = I64(positions_new, ROWS_Q, 0, 0, 0));
    GOOD(MERGE, (c->m.out.data = c->m.out_a.data, c->m.lse.data = c->m.lse_b.data));
    GOOD(MERGE_PACKED, memset(&c->m.lse, 0, sizeof c->m.lse));
}

/* The least and the most of what has a range. */
static void limits(void) {
    GOOD(DENSE, (c->a.q.shape[2] = c->a.out.shape[2] = c->a.lse.shape[1] = 1,
                 c->a.k.shape[2] = c->a.v.shape[2] = 1));
    GOOD(PAGED, (c->a.k.shape[1] = c->a.v.shape[1] = 1, c->data.seqused[0] = 3));
    GOOD(DENSE,
         (c->a.out.shape[0] = c->a.q.shape[0] = c->a.lse.shape[0] = 1,
          c->a.k.shape[0] = c->a.v.shape[0] = 1, strides(&c->a.out, 0, HEADS * DIM_V, DIM_V, 1)));
    GOOD(CACHED, c->a.rotary.theta = 1);
    GOOD(CACHED, (c->a.rotary.theta = 1e6, c->a.rotary.pairing = TALLOW_PAIRING_INTERLEAVED,
                  c->a.rotary.attention_factor = 1.5f));
    GOOD(CACHED, (use_tables(c), c->a.rotary.cos.shape[0] = c->a.rotary.sin.shape[0] = 3,
                  memset(c->data.positions_q, 0, sizeof c->data.positions_q),
                  c->a.k_new.shape[1] = c->a.v_new.shape[1] = 0, /* none is rotated */
                  memset(&c->a.positions_k_new, 0, sizeof(tallow_tensor))));
    GOOD(ROTARY, (c->r.x.shape[3] = c->r.out.shape[3] = 2,
                  strides(&c->r.out, HEADS * ROWS_Q * 2, HEADS * 2, 2, 1)));
    GOOD(ROTARY, (c->r.x = c->r.out = F32(q, 1, 1, 1, 1024), c->r.x.data = c->data.k));
    GOOD(ROTARY, strides(&c->r.x, 0, 0, 0, 1));
    GOOD(MERGE, (c->m.out_a.shape[3] = c->m.out_b.shape[3] = c->m.out.shape[3] = 1,
                 strides(&c->m.out, ROWS_Q * HEADS, HEADS, 1, 9)));
    GOOD(MERGE, strides(&c->m.lse_a, 0, 0, 1, 0));
    GOOD(MERGE, (c->m.out_a.shape[0] = c->m.out_b.shape[0] = c->m.out.shape[0] = 0,
                 c->m.lse_a.shape[0] = c->m.lse_b.shape[0] = c->m.lse.shape[0] = 0,
                 c->m.lse.data = c->m.lse_a.data, strides(&c->m.lse, 0, 9, 1, 0)));
}

/* --------------------------------------------------------------------------------------------
 * What a checked call says
 * ------------------------------------------------------------------------------------------ */

static problem checked(const call *c, check_level level) {
    problem p;
    EXPECT(tallow_problem_init(&p, &c->a, sizeof c->a, level) == TALLOW_OK, "%s",
           tallow_last_error());
    return p;
}

#define CHECKED(base, mutation, condition)                                                         \
    WITH(base, mutation, {                                                                         \
        const problem p = checked(c, CHECK_DATA);                                                  \
        EXPECT(condition, "%s", "the checked call");                                               \
    })

static const int64_t unlimited = INT64_MAX / 4;

static void defaults(void) {
    CHECKED(DENSE, (void)0,
            p.softmax_scale == 0.25f && p.group == 2 && p.max_seqlen_q == ROWS_Q &&
                p.max_seqlen_k == ROWS_K && !p.masked);
    CHECKED(DENSE, c->a.softmax_scale = 2, p.softmax_scale == 2);
    CHECKED(DENSE, c->a.mask = TALLOW_MASK_CAUSAL,
            p.masked && p.window_left == unlimited && p.window_right == 0);
    CHECKED(DENSE, (c->a.mask = TALLOW_MASK_WINDOW, c->a.window_left = c->a.window_right = -1),
            !p.masked && p.window_left == unlimited && p.window_right == unlimited);
    CHECKED(DENSE, (c->a.mask = TALLOW_MASK_WINDOW, c->a.window_left = 5),
            p.masked && p.window_left == 5 && p.window_right == 0);
    CHECKED(PACKED, (void)0, p.max_seqlen_q == 3 && p.max_seqlen_k == 6 && p.batch == 2);
    CHECKED(PACKED, c->a.max_seqlen_k = 5, p.max_seqlen_k == 5);
    CHECKED(PACKED, c->a.max_seqlen_k = 7, p.max_seqlen_k == 6);
    CHECKED(PAGED, (void)0,
            p.max_seqlen_k == 6 && p.rows_k == 6 && p.pages == 7 && p.page_size == 2 &&
                p.columns == 3);
    CHECKED(CACHED, (void)0,
            p.rotary.dim == DIM && p.rotary.theta == 10000 && p.rotary.factor == 1 &&
                p.cache_rows == CACHE);
    CHECKED(DENSE, c->a.dropout_p = 0.1f, p.dropout_p == (double)0.1f);
}

static bool has_strides(const rows_view *v, int64_t batch, int64_t row, int64_t head) {
    return v->batch_stride == batch && v->row_stride == row && v->head_stride == head;
}

static void resolved_strides(void) {
    CHECKED(DENSE, (void)0, has_strides(&p.q, ROWS_Q * HEADS * DIM, HEADS * DIM, DIM));
    CHECKED(PACKED, (void)0, has_strides(&p.v, 0, HEADS_KV * DIM_V, DIM_V));
    CHECKED(PACKED, (void)0, p.lse_batch_stride == 0 && p.lse_head_stride == ROWS_Q);
    CHECKED(DENSE, (void)0, p.lse_batch_stride == HEADS * ROWS_Q && p.lse_head_stride == ROWS_Q);
    CHECKED(DENSE, strides(&c->a.q, 7, -9, 11, 1), has_strides(&p.q, 7, -9, 11));
    CHECKED(DENSE, c->a.alibi_slopes = F32(slopes, HEADS, 0, 0, 0),
            p.alibi_slopes.stride[0] == 0 && p.alibi_slopes.stride[1] == 1);
    CHECKED(DENSE, c->a.alibi_slopes = F32(slopes, BATCH, HEADS, 0, 0),
            p.alibi_slopes.stride[0] == HEADS && p.alibi_slopes.stride[1] == 1);
    CHECKED(CACHED, use_mrope(c),
            p.positions_q.mrope_stride == BATCH * ROWS_Q && p.positions_q.row_stride == 1 &&
                p.positions_q.batch_stride == ROWS_Q && p.positions_q.dtype == TALLOW_I32);
    CHECKED(CACHED, use_packed_new(c),
            p.positions_new.mrope_stride == 0 && p.positions_new.row_stride == 1 &&
                p.positions_new.batch_stride == 0 && p.positions_new.dtype == TALLOW_I64);
    CHECKED(CACHED, use_tables(c),
            p.rotary.cos_stride == DIM / 2 && p.rotary.table_rows == 9 &&
                p.rotary.table_dtype == TALLOW_F32);
}

static void expect_sequence(const call *c, int64_t b, sequence wanted) {
    const problem p = checked(c, CHECK_DATA);
    const sequence s = tallow_problem_sequence(&p, b);
    EXPECT(!memcmp(&s, &wanted, sizeof s), "sequence %d: q %d+%d, k %d+%d, new %d+%d at %d, row %d",
           (int)b, (int)s.q_start, (int)s.seqlen_q, (int)s.k_start, (int)s.seqlen_k,
           (int)s.new_start, (int)s.seqlen_new, (int)s.append_at, (int)s.cache_row);
}

/* q_start, seqlen_q, k_start, seqlen_k, new_start, seqlen_new, append_at, cache_row */
#define SEQUENCE(base, mutation, b, ...)                                                           \
    WITH(base, mutation, expect_sequence(c, b, (sequence){__VA_ARGS__}))

static void sequences(void) {
    SEQUENCE(DENSE, (void)0, 1, 0, 3, 0, 6, 0, 0, 6, 1);
    SEQUENCE(PACKED, (void)0, 1, 1, 2, 2, 4, 0, 0, 4, 1);
    SEQUENCE(PACKED, (c->a.leftpad_k = I32(leftpad, BATCH, 0, 0, 0)), 1, 1, 2, 3, 3, 0, 0, 4, 1);
    SEQUENCE(PAGED, (void)0, 1, 0, 3, 0, 3, 0, 0, 3, 1);
    SEQUENCE(CACHED, (void)0, 0, 0, 3, 0, 6, 0, 2, 4, 2);
    SEQUENCE(CACHED, (void)0, 1, 0, 3, 1, 4, 0, 2, 3, 1);
    SEQUENCE(CACHED, use_packed_new(c), 1, 0, 3, 1, 4, 1, 2, 3, 1);
}

/* What is given stays "there" when only shapes are checked, so that both plans are the same. */
static void presence(void) {
    WITH(CACHED, drop_data(c), {
        const problem p = checked(c, CHECK_SHAPES);
        EXPECT(p.q.data && p.k.data && p.v.data && p.out.data && p.lse && p.k_new.data &&
                   p.v_new.data && p.seqused_k.data && p.leftpad_k.data && p.cache_batch_idx.data &&
                   p.positions_q.data && p.positions_new.data,
               "%s", "a tensor went missing");
        EXPECT(!p.sinks.data && !p.alibi_slopes.data && !p.cu_seqlens_q.data && !p.rotary.cos, "%s",
               "a tensor appeared");
    });
}

int main(void) {
    empty_calls();
    any_strides();
    any_layout();
    any_option();
    limits();
    defaults();
    resolved_strides();
    sequences();
    presence();
    return expect_report();
}
