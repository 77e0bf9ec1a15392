/* Chooses the kernel of a problem on a GPU, how its keys are split, and the order of its tiles. */
#include "plan_cuda.h"

#include <stdio.h>
#include <string.h>

enum {
    FEW_ROWS = 16,
    OLDEST = 75,                     /* compute capability */
    LEAST_SPLIT_KEYS = 64,           /* a part shorter than this costs more than it spreads */
    LEAST_SPLIT_KEYS_OF_MANY = 1024, /* the same, of many rows: each has to be combined */
    INVARIANT_SPLIT_KEYS = 2048,     /* batch invariance: parts follow from the sequence alone */
    MOST_CHOSEN_SPLITS = 128,
    LEAST_TWOFOLD_TILES = 8, /* of fewer, so many parts take long to combine */
    MOST_TWOFOLD_KEYS = 512, /* of each multiprocessor */
    MOST_LAST_BYTES = 48 << 10,
    MANY_KEYS = 3072,          /* that a query sees, as a rule */
    PAIRED_HEAD_DIMS = 256,    /* of q and v together, at least */
    PAIRED_TILES = 6,          /* of each multiprocessor */
    LEAST_ALIKE_BLOCKS = 6,    /* of keys, of each tile */
    LEAST_COUNTED_BLOCKS = 32, /* of keys, of each multiprocessor */
    SECTION_TILES = 3,         /* of each multiprocessor, so that a section's end leaves few idle */
    ALIKE_SECTION = 4,         /* heads, when no tile is longer than others */
};

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* ---- the kernel ---- */

static bool aligned(const rows_view *view) {
    const int64_t size = (int64_t)tallow_dtype_size(view->dtype);
    const int64_t strides = view->batch_stride | view->row_stride | view->head_stride;
    return ((int64_t)(uintptr_t)view->data | strides * size) % 16 == 0;
}

/* Whether the sequences of a batch all have few rows; when bits may not depend on neighbours, only
 * shapes that speak of one sequence count. */
static bool has_few_rows(const problem *p) {
    return p->max_seqlen_q * p->group <= FEW_ROWS &&
           !(p->batch_invariant && p->q_layout == LAYOUT_PACKED);
}

/* What two parts leave of a weight, and tensor cores of a sum, shows in f32. */
static int32_t count_parts(const problem *p) {
    if (p->precision != TALLOW_PRECISION_HIGH || p->dtype == TALLOW_F32) return 1;
    return p->out_dtype == TALLOW_F32 ? 3 : 2;
}

static int32_t family_of(const cuda_gpu *gpu) {
    if (gpu->family) return gpu->family;
    return gpu->capability < 80 ? 75 : gpu->capability == 90 ? 90 : 80;
}

/* Pages are copied whole, or a block of keys from inside of one. */
static bool copies_pages(const problem *p, int64_t block_keys) {
    return p->page_size % block_keys == 0 ||
           (p->page_size % 8 == 0 && block_keys % p->page_size == 0);
}

bool tallow_cuda_strides_reach(const rows_view *view) {
    const int64_t most_elements = (int64_t)1 << 38; /* copies count 2^40 bytes */
    const int64_t strides[] = {view->batch_stride, view->row_stride, view->head_stride};
    for (int i = 0; i < 3; i++)
        if (strides[i] < 0 || strides[i] >= most_elements) return false;
    return true;
}

/* Why wgmma does not serve a kernel; null: it does. */
static const char *bars_wgmma(const cuda_plan *plan, const problem *p) {
    const spec *s = &plan->kernel;
    if (s->dtype == TALLOW_F32) return "f32";
    if (s->rows == 1) return "at most 16 rows of a key head";
    if (s->p_parts == 3) return "f32 output of high precision";
    if (s->access) return "rows that do not start at multiples of 16 bytes";
    if (s->head_dim > 256 || s->head_dim_v > 256) return "a head dimension above 256";
    if (p->dropout_p > 0) return "dropout";
    if (p->open_ended) return "packed rows without their number";
    if (p->rows_k == 0 || (s->paged && p->pages == 0)) return "no keys";
    if (!tallow_cuda_strides_reach(&p->q) || !tallow_cuda_strides_reach(&p->k) ||
        !tallow_cuda_strides_reach(&p->v))
        return "strides below 0, or of 2^38 elements";
    if (s->paged && p->leftpad_k.data) return "leftpad_k in pages";
    if (s->paged && !copies_pages(p, plan->tile.block_keys))
        return "pages that neither divide a block of keys nor are divided by one";
    return NULL;
}

static void use_family(cuda_plan *out, const problem *p, int32_t family) {
    out->kernel.family = family;
    tallow_spec_tile(&out->kernel, &out->tile);
    const bool packs = family != 90 || out->tile.block_rows % p->group == 0;
    out->group = packs ? p->group : 1;
    out->tile_heads = packs ? p->heads_kv : p->heads;
    out->key_rows = out->tile.block_keys;
    if (out->kernel.paged) out->key_rows = least(out->key_rows, p->page_size);
    if (out->kernel.pairs) out->key_rows /= 2;
    out->row_blocks = ceil_div(p->max_seqlen_q * out->group, out->tile.block_rows);
}

static int64_t count_tiles(const cuda_plan *plan, const problem *p) {
    return p->batch * plan->tile_heads * plan->row_blocks;
}

/* Keys that a query sees, as a rule: under a causal mask half of the queries' own. */
static int64_t usually_visible(const problem *p) {
    const int64_t keys = p->max_seqlen_k, hides = p->window_right < p->max_seqlen_q;
    return least(keys - hides * least(keys, p->max_seqlen_q) / 2,
                 p->window_left + p->window_right + 1);
}

static int64_t padded(int64_t rows, int64_t block) { return ceil_div(rows, block) * block; }

/* Large tiles have larger blocks of keys, of which a query must see many, or more rows: those are a
 * fifth faster, unless too many stay empty or multiprocessors do. */
static bool large_pays(const cuda_plan *plan, const spec *large, const problem *p,
                       const cuda_gpu *gpu) {
    spec_tile tile;
    if (!tallow_spec_exists(large) || !tallow_spec_tile(large, &tile)) return false;
    if (p->batch_invariant) return true;
    const int64_t rows = p->max_seqlen_q * plan->group;
    if (tile.block_rows == plan->tile.block_rows) return usually_visible(p) >= MANY_KEYS;
    return 5 * padded(rows, tile.block_rows) <= 6 * padded(rows, plan->tile.block_rows) &&
           count_tiles(plan, p) >= 2 * gpu->multiprocessors;
}

/* Pairs take some more cycles, as each waits for the other, and less energy, as L2 is read half as
 * often: on an H200 that has no rest up to 6 % less time, and up to 4 % more on one that has. Short
 * tiles wait too often, and few of them leave some blocks without. */
static bool pairs_pay(const cuda_plan *plan, const problem *p, const cuda_gpu *gpu) {
    return gpu->always_pairs ||
           (usually_visible(p) >= MANY_KEYS &&
            count_tiles(plan, p) >= PAIRED_TILES * (int64_t)gpu->multiprocessors);
}

/* Short heads take none, and row blocks of packed sequences may have none beside them. */
static bool may_take_pairs(const problem *p, const cuda_gpu *gpu) {
    return gpu->pairs && gpu->multiprocessors >= 2 && p->q_layout != LAYOUT_PACKED &&
           (p->head_dim + p->head_dim_v >= PAIRED_HEAD_DIMS || gpu->always_pairs);
}

static bool takes_pairs(const cuda_plan *plan, const problem *p, const cuda_gpu *gpu) {
    spec pairs = plan->kernel;
    pairs.pairs = 1;
    return may_take_pairs(p, gpu) && plan->row_blocks % 2 == 0 && pairs_pay(plan, p, gpu) &&
           tallow_spec_exists(&pairs);
}

/* Small tiles when there are too few; large ones where they pay, or when bits may not depend on
 * what a batch's longest sequence is. */
static void fit_wgmma(cuda_plan *out, const problem *p, const cuda_gpu *gpu) {
    spec small = out->kernel, large = out->kernel;
    small.rows = 2;
    small.maxima = 0;
    large.large = 1;
    if (!p->batch_invariant && count_tiles(out, p) < gpu->multiprocessors) {
        if (tallow_spec_exists(&small)) out->kernel = small;
    } else if (large_pays(out, &large, p, gpu)) {
        out->kernel = large;
    }
    use_family(out, p, 90);
    if (!takes_pairs(out, p, gpu)) return;
    out->kernel.pairs = 1;
    use_family(out, p, 90);
}

/* Instructions of sm_80 serve where those of sm_90 do not. */
static void leave_wgmma(cuda_plan *out, const problem *p, const char *why) {
    out->why = why;
    out->kernel.rows = out->kernel.rows == 1;
    out->kernel.large = out->kernel.maxima = out->kernel.pairs = 0;
    use_family(out, p, 80);
}

/* The kernel of a call as far as lengths do not choose it: of wgmma if that serves. */
static void start_kernel(cuda_plan *out, const problem *p, const cuda_gpu *gpu) {
    const bool whole_q = out->rotates_q || aligned(&p->q);
    out->kernel = (spec){
        .dtype = p->dtype,
        .head_dim = (int32_t)p->head_dim,
        .head_dim_v = (int32_t)p->head_dim_v,
        .rows = has_few_rows(p),
        .scores =
            p->softcap > 0 || p->alibi_slopes.data || p->dropout_p > 0 || !(p->softmax_scale > 0),
        .p_parts = count_parts(p),
        .paged = p->k_layout == LAYOUT_PAGED,
        .access = !(whole_q && aligned(&p->k) && aligned(&p->v) && aligned(&p->out)),
        .shared_memory = tallow_spec_shared_memory(gpu->shared_bytes),
    };
    use_family(out, p, family_of(gpu));
    if (out->kernel.family != 90) return;
    out->kernel.maxima = p->precision == TALLOW_PRECISION_FAST && p->dtype == TALLOW_BF16;
    out->why = bars_wgmma(out, p);
    if (out->why) leave_wgmma(out, p, out->why);
}

/* A kernel that has a tile exists: what else spec.def asks for is seen to above. */
static tallow_status choose_kernel(cuda_plan *out, const problem *p, const cuda_gpu *gpu) {
    start_kernel(out, p, gpu);
    if (out->kernel.family == 90) fit_wgmma(out, p, gpu);
    return out->tile.threads ? TALLOW_OK : tallow_spec_check(&out->kernel);
}

int tallow_cuda_plan_kernels(spec out[PLAN_KERNELS], const problem *p, const cuda_gpu *gpu) {
    static const spec tiles[] = {
        {.rows = 0}, {.rows = 2}, {.large = 1}, {.pairs = 1}, {.large = 1, .pairs = 1}};
    cuda_plan plan = {.rotates_q = p->rotary.dim > 0};
    int count = 0;
    start_kernel(&plan, p, gpu);
    for (size_t i = 0; i < sizeof tiles / sizeof *tiles && plan.kernel.family == 90; i++) {
        spec *s = &out[count];
        *s = plan.kernel;
        s->rows = tiles[i].rows;
        s->large = tiles[i].large;
        s->pairs = tiles[i].pairs;
        if (s->rows == 2) s->maxima = 0;
        count += tallow_spec_exists(s) && (!s->pairs || may_take_pairs(p, gpu));
    }
    if (count) leave_wgmma(&plan, p, NULL);
    out[count++] = plan.kernel;
    return count;
}

/* ---- splits ---- */

/* The fewest parts whose longest is as short as that of `wanted` parts. */
static int64_t even_parts(int64_t blocks, int64_t wanted, int64_t least_blocks) {
    return ceil_div(blocks, most(ceil_div(blocks, most(1, wanted)), least_blocks));
}

/* Parts that are worked on at a time: one on each multiprocessor, as more read many keys slower.
 * Few keys are over before that shows, and two hide each other's beginning and end. */
static int64_t parts_at_once(int64_t tiles, const problem *p, const cuda_gpu *gpu, bool few_rows) {
    const int64_t all = gpu->multiprocessors;
    const bool twofold = few_rows && tiles >= LEAST_TWOFOLD_TILES &&
                         p->max_seqlen_k <= all * MOST_TWOFOLD_KEYS / tiles;
    return twofold ? 2 * all : all;
}

static void choose_splits(cuda_plan *out, const problem *p, const cuda_gpu *gpu) {
    const int64_t tiles = most(1, count_tiles(out, p));
    const int64_t key_blocks = most(1, ceil_div(p->max_seqlen_k, out->tile.block_keys));
    const bool few = out->kernel.rows == 1;
    int64_t wanted = least(parts_at_once(tiles, p, gpu, few) / tiles, MOST_CHOSEN_SPLITS);
    int64_t least_keys = few ? LEAST_SPLIT_KEYS : LEAST_SPLIT_KEYS_OF_MANY;
    if (p->batch_invariant) {
        least_keys = INVARIANT_SPLIT_KEYS;
        wanted = few ? key_blocks : 1;
    }
    out->split_blocks = p->num_splits > 0 ? 1 : ceil_div(least_keys, out->tile.block_keys);
    out->splits = p->num_splits > 0 ? least(p->num_splits, key_blocks)
                                    : even_parts(key_blocks, wanted, out->split_blocks);
    if (out->splits == 1 || out->kernel.family != 90) return;
    leave_wgmma(out, p, p->num_splits > 0 ? "num_splits" : "too few tiles: keys are split");
    choose_splits(out, p, gpu);
}

/* Whether a tile has more rows, or its parts more bytes, than the thread block that is done last
 * should combine. It adds in another order: bits that may not depend on the longest sequence do
 * without it. */
static bool combines(const cuda_plan *plan, const problem *p) {
    const int64_t row_bytes = p->max_seqlen_q * plan->group * p->head_dim_v * 4;
    return plan->splits > 1 && (p->batch_invariant || plan->kernel.rows != 1 ||
                                plan->splits * row_bytes > MOST_LAST_BYTES);
}

static bool tiles_differ(const problem *p) {
    return p->masked || p->q_layout == LAYOUT_PACKED || p->k_layout == LAYOUT_PACKED ||
           p->seqused_k.data || p->leftpad_k.data;
}

/* Heads are worked on in equal sections whose K and V stay in the cache: large ones where the
 * longest tiles must come first, else small ones, so that a head's tiles come together. */
static int64_t choose_section(const cuda_plan *plan, const problem *p, const cuda_gpu *gpu) {
    const int64_t heads = p->batch * plan->tile_heads;
    const int64_t row_bytes = (p->head_dim + p->head_dim_v) * (int64_t)tallow_dtype_size(p->dtype);
    const int64_t head_bytes =
        most(1, p->max_seqlen_k * row_bytes * p->heads_kv / plan->tile_heads);
    const bool wgmma = plan->kernel.family == 90;
    const int64_t by_cache = (int64_t)(gpu->l2_bytes / 10) * (wgmma ? 3 : 6) / head_bytes;
    const int64_t by_tiles =
        ceil_div((int64_t)gpu->multiprocessors * SECTION_TILES, plan->row_blocks * plan->splits);
    const int64_t wanted =
        wgmma && !tiles_differ(p) ? least(by_cache, ALIKE_SECTION) : most(by_cache, by_tiles);
    const int64_t section = most(1, least(heads, wanted));
    return ceil_div(heads, ceil_div(heads, section));
}

/* ---- the plan ---- */

static tallow_status need_gpu(const cuda_gpu *gpu, const problem *p) {
    const int major = gpu->capability / 10, minor = gpu->capability % 10;
    if (gpu->capability < OLDEST)
        return tallow_fail(TALLOW_UNSUPPORTED,
                           "%s has compute capability %d.%d: must be at least 7.5", gpu->name,
                           major, minor);
    if (family_of(gpu) >= 80 || p->dtype == TALLOW_F16) return TALLOW_OK;
    return tallow_fail(
        TALLOW_UNSUPPORTED, "q.dtype = %s: must be TALLOW_F16 on %s, of compute capability %d.%d",
        p->dtype == TALLOW_BF16 ? "TALLOW_BF16" : "TALLOW_F32", gpu->name, major, minor);
}

/* Kernels count rows, tiles and thread blocks in 31 bits. */
static tallow_status need_counts(const cuda_plan *plan, const problem *p) {
    int64_t tiles, blocks, rows;
    if (!__builtin_mul_overflow(p->max_seqlen_q, p->group, &rows) && rows <= INT32_MAX - 1024 &&
        !__builtin_mul_overflow(p->batch * plan->tile_heads, plan->row_blocks, &tiles) &&
        !__builtin_mul_overflow(tiles, plan->splits, &blocks) && blocks <= INT32_MAX &&
        tiles * plan->tile.block_rows <= INT32_MAX && p->batch * most(1, plan->tokens) <= INT32_MAX)
        return TALLOW_OK;
    return tallow_fail(TALLOW_UNSUPPORTED,
                       "%lld sequences of %lld heads and %lld queries, in %lld splits: must be "
                       "fewer, as a GPU counts at most 2^31 thread blocks",
                       (long long)p->batch, (long long)p->heads, (long long)p->max_seqlen_q,
                       (long long)plan->splits);
}

/* Tiles, several for each thread block, are taken as blocks get to them: they differ in length, or
 * are long enough to show that multiprocessors differ in speed. */
static bool counts_tiles(const cuda_plan *plan, const problem *p) {
    const int64_t blocks = ceil_div(p->max_seqlen_k, plan->tile.block_keys);
    return plan->kernel.family == 90 && (tiles_differ(p) || blocks >= LEAST_ALIKE_BLOCKS) &&
           plan->tiles > 2 * plan->blocks &&
           plan->tiles / plan->blocks * blocks >= LEAST_COUNTED_BLOCKS;
}

static size_t round_up(int64_t bytes) { return ((size_t)bytes + 255) / 256 * 256; }

static void count_bytes(cuda_plan *out, const problem *p) {
    const int64_t rows = p->q_layout == LAYOUT_PACKED ? p->rows_q : p->batch * p->rows_q;
    if (out->splits > 1) {
        out->partial_bytes = round_up(out->blocks * out->tile.block_rows * (p->head_dim_v + 2) * 4);
        if (!out->combines) out->count_bytes = round_up(out->tiles * 8);
    }
    if (counts_tiles(out, p)) out->count_bytes = round_up(2 * 8);
    if (out->rotates_q)
        out->rotated_bytes =
            round_up(rows * p->heads * p->head_dim * (int64_t)tallow_dtype_size(p->dtype));
    out->workspace = out->partial_bytes + out->rotated_bytes + out->count_bytes;
}

tallow_status tallow_cuda_plan_make(cuda_plan *out, const problem *p, const cuda_gpu *gpu) {
    *out = (cuda_plan){.rotates_q = p->rotary.dim > 0, .tokens = p->max_seqlen_new};
    if (out->rotates_q) out->tokens = most(out->tokens, p->max_seqlen_q);
    tallow_status status = need_gpu(gpu, p);
    if (!status) status = choose_kernel(out, p, gpu);
    if (status) return status;
    choose_splits(out, p, gpu);
    status = need_counts(out, p);
    if (status) return status;
    out->tiles = count_tiles(out, p);
    out->blocks = out->tiles * out->splits;
    if (out->kernel.family == 90) out->blocks = least(out->blocks, gpu->multiprocessors);
    out->blocks -= out->blocks % tallow_cuda_together(out);
    out->combines = combines(out, p);
    out->section = out->blocks > 0 ? choose_section(out, p, gpu) : 1;
    count_bytes(out, p);
    return TALLOW_OK;
}

void tallow_cuda_plan_describe(const cuda_plan *plan, const problem *p, const cuda_gpu *gpu,
                               char *text, size_t text_size) {
    char key[SPEC_KEY];
    const spec_tile *t = &plan->tile;
    tallow_spec_key(&plan->kernel, key);
    snprintf(text, text_size,
             "backend cuda\ngpu %s\nkernel %s\nwgmma %s\nbatch %lld\nheads %lld\nheads_kv %lld\n"
             "head_dim %lld\nhead_dim_v %lld\nmax_seqlen_q %lld\nmax_seqlen_k %lld\n"
             "block_rows %d\nblock_keys %d\nslots %d\nthreads %d\nshared_bytes %d\n"
             "row_blocks %lld\nblocks %lld\nsection %lld\nsplits %lld\nsplit_keys %lld\n"
             "workspace %zu\n",
             gpu->name, key,
             plan->kernel.family == 90 ? "yes"
             : plan->why               ? plan->why
                                       : "of compute capability 9.0 alone",
             (long long)p->batch, (long long)p->heads, (long long)p->heads_kv,
             (long long)p->head_dim, (long long)p->head_dim_v, (long long)p->max_seqlen_q,
             (long long)p->max_seqlen_k, (int)t->block_rows, (int)t->block_keys, (int)t->slots,
             (int)t->threads, (int)t->shared_bytes, (long long)plan->row_blocks,
             (long long)plan->blocks, (long long)plan->section, (long long)plan->splits,
             (long long)(plan->split_blocks * t->block_keys), plan->workspace);
}
