/* Chooses how a problem runs: tile sizes, key splits, threads and scratch. */
#include "plan.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "convert.h"
#include "cpu/tile.h"

enum {
    BLOCK_ROWS = 192,            /* a multiple of every level's register block */
    ITEMS_PER_THREAD = 4,        /* parts are cut until each thread has so many tiles */
    HEAD_BYTES = 4096,           /* of one key that a tile reads side by side: a page */
    LEAST_SPLIT_KEYS = 512,      /* a part shorter than this costs more than it spreads */
    INVARIANT_SPLIT_KEYS = 4096, /* batch invariance: parts follow from the sequence alone */
};

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Most parts that a sequence may be cut into. */
static int64_t most_parts(plan *out, const problem *p) {
    int64_t parts = p->num_splits > 0 ? p->num_splits : p->max_seqlen_k;
    out->split_one_block = p->num_splits <= 0 && p->batch_invariant;
    out->split_keys = p->num_splits > 0      ? 1
                      : out->split_one_block ? INVARIANT_SPLIT_KEYS
                                             : LEAST_SPLIT_KEYS;
    return most(1, least(parts, ceil_div(p->max_seqlen_k, out->split_keys)));
}

/* Key heads side by side in a tile of few rows, which reads at the rate of memory, and parts of the
 * keys: so many that every thread has work. */
static void plan_splits(plan *out, const problem *p) {
    int64_t parts = most_parts(out, p), wanted = (int64_t)out->threads * ITEMS_PER_THREAD;
    int64_t blocks = most(1, p->batch * out->row_blocks);
    out->block_heads = 1;
    if (p->max_seqlen_q * p->group <= FEW_ROWS) {
        int64_t head_bytes = p->head_dim * (int64_t)tallow_dtype_size(p->dtype);
        int64_t least_blocks = blocks < wanted ? ceil_div(wanted, blocks * parts) : 1;
        int64_t spread = p->heads_kv / least_blocks;
        out->block_heads = most(1, least(spread, HEAD_BYTES / head_bytes));
    }
    out->head_blocks = ceil_div(p->heads_kv, out->block_heads);
    out->splits = parts;
    if (p->num_splits <= 0 && !p->batch_invariant)
        out->splits = least(parts, ceil_div(wanted, blocks * out->head_blocks));
}

/* Rows that partial results are kept for; -1 when the count overflows. */
static int64_t partial_rows(const plan *plan, const problem *p) {
    int64_t rows,
        per_sequence = plan->split_one_block ? plan->block_rows : p->max_seqlen_q * p->group;
    if (plan->splits == 1) return 0;
    if (__builtin_mul_overflow(p->batch * p->heads_kv, per_sequence, &rows)) return -1;
    return rows;
}

tallow_status tallow_plan_make(plan *out, const problem *p) {
    memset(out, 0, sizeof *out);
    tallow_status status = tallow_cpu_level(&out->level);
    if (status != TALLOW_OK) return status;
    out->threads = tallow_cpu_threads(p->threads);
    out->dot_bf16 = out->level == CPU_AVX512BF16 && p->dtype == TALLOW_BF16 &&
                    p->precision != TALLOW_PRECISION_HIGH;
    int64_t rows = p->max_seqlen_q * p->group;
    out->block_rows = most(1, least(BLOCK_ROWS, rows));
    out->block_keys = rows <= FEW_ROWS ? FEW_KEYS : TILE_KEYS;
    out->row_blocks = ceil_div(rows, out->block_rows);
    plan_splits(out, p);
    int64_t tiles = least(p->batch * out->head_blocks, out->threads); /* no thread without a tile */
    tiles = least(tiles * out->row_blocks, out->threads);
    out->threads = (int32_t)most(1, least(tiles * out->splits, out->threads));

    out->thread_bytes = tallow_tile_bytes(p, out);
    size_t row_bytes = (size_t)PART_WIDTH(p->head_dim_v) * sizeof(float), part_bytes, scratch;
    int64_t kept = partial_rows(out, p);
    if (kept < 0 || __builtin_mul_overflow((size_t)kept, row_bytes, &part_bytes) ||
        __builtin_mul_overflow(part_bytes, (size_t)out->splits, &out->partial_bytes) ||
        __builtin_mul_overflow((size_t)out->threads, out->thread_bytes, &scratch) ||
        __builtin_add_overflow(scratch, out->partial_bytes, &out->workspace))
        return tallow_fail(TALLOW_OUT_OF_MEMORY,
                           "num_splits = %lld needs more partial results than memory can address; "
                           "accepted: 0 or fewer splits",
                           (long long)p->num_splits);
    return TALLOW_OK;
}

int64_t tallow_plan_parts(const plan *plan, int64_t rows, int64_t seqlen_k) {
    if (plan->split_one_block && rows > plan->block_rows) return 1;
    return most(1, least(plan->splits, ceil_div(seqlen_k, plan->split_keys)));
}

/* Appends a formatted line, cut to what is left. */
static void line(char **text, size_t *left, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void line(char **text, size_t *left, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(*text, *left, format, arguments);
    va_end(arguments);
    size_t used = length < 0 ? 0 : (size_t)length < *left ? (size_t)length : *left - 1;
    *text += used;
    *left -= used;
}

static const char *dtype_name(int32_t dtype) {
    return dtype == TALLOW_F16 ? "f16" : dtype == TALLOW_BF16 ? "bf16" : "f32";
}

void tallow_plan_describe(const plan *plan, const problem *p, char *text, size_t text_size) {
    static const char *const layouts[] = {"dense", "packed", "paged"};
    if (text_size == 0) return;
    text[0] = 0;
    line(&text, &text_size, "backend cpu\nlevel %s\nthreads %d\n",
         tallow_cpu_level_name(plan->level), (int)plan->threads);
    line(&text, &text_size, "dtype %s\nout_dtype %s\n", dtype_name(p->dtype),
         dtype_name(p->out_dtype));
    line(&text, &text_size, "products %s\n", plan->dot_bf16 ? "bf16 pairs, f32 sums" : "f32");
    line(&text, &text_size, "q_layout %s\nk_layout %s\n", layouts[p->q_layout],
         layouts[p->k_layout]);
    line(&text, &text_size,
         "batch %lld\nheads %lld\nheads_kv %lld\nhead_dim %lld\nhead_dim_v %lld\n",
         (long long)p->batch, (long long)p->heads, (long long)p->heads_kv, (long long)p->head_dim,
         (long long)p->head_dim_v);
    line(&text, &text_size, "max_seqlen_q %lld\nmax_seqlen_k %lld\n", (long long)p->max_seqlen_q,
         (long long)p->max_seqlen_k);
    line(&text, &text_size, "block_rows %lld\nblock_keys %lld\nblock_heads %lld\n",
         (long long)plan->block_rows, (long long)plan->block_keys, (long long)plan->block_heads);
    line(&text, &text_size, "row_blocks %lld\nhead_blocks %lld\n", (long long)plan->row_blocks,
         (long long)plan->head_blocks);
    line(&text, &text_size, "splits %lld\nsplit_keys %lld\nworkspace %zu\n",
         (long long)plan->splits, (long long)plan->split_keys, plan->workspace);
}
