/* Random options over the whole space of valid calls. */
#include "case.h"

uint64_t case_draw(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15); /* splitmix64 (Vigna) */
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static int32_t between(uint64_t *state, int32_t low, int32_t high) {
    return low + (int32_t)(case_draw(state) % (uint64_t)(high - low + 1));
}

static bool chance(uint64_t *state, int percent) { return between(state, 0, 99) < percent; }

static int32_t pick(uint64_t *state, int count, const int32_t *of) {
    return of[between(state, 0, count - 1)];
}
#define PICK(state, ...)                                                                           \
    pick(state, (int)(sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t)),                   \
         (const int32_t[]){__VA_ARGS__})

/* C leaves open in which order the operands of an expression draw, and a seed must mean the same
 * with every compiler: every statement below draws once. */

/* Small, about a tile's edge, or anything. */
static int32_t length(uint64_t *state, int32_t most) {
    int32_t edge = PICK(state, 16, 32, 48, 64, 96, 128, 192, 256, 512);
    edge += between(state, -1, 1);
    int32_t small = between(state, 0, 5);
    int32_t any = between(state, 0, most);
    int32_t n = PICK(state, small, edge, any);
    return n < most ? n : most;
}

static void random_shape(case_options *o, uint64_t *state) {
    o->dtype = PICK(state, TALLOW_F16, TALLOW_BF16, TALLOW_F32);
    o->batch = between(state, 1, 4);
    o->heads_kv = between(state, 1, 3);
    o->heads = o->heads_kv * PICK(state, 1, 1, 2, 3, 4, 8);
    o->head_dim = 8 * between(state, 1, 32);
    if (chance(state, 60)) o->head_dim = PICK(state, 64, 128, 96, 192, 256);
    if (chance(state, 3)) o->head_dim = PICK(state, 512, 576);
    o->head_dim_v = 8 * between(state, 1, 32);
    if (chance(state, 85)) o->head_dim_v = o->head_dim == 576 ? 512 : o->head_dim;
    bool decode = chance(state, 35);
    o->seqlen_q = length(state, decode ? 4 : 300);
    o->seqlen_k = length(state, decode ? 1200 : 600);
    if (chance(state, 25)) o->seqlen_k = o->seqlen_q;
    for (int b = 0; b < o->batch; b++) {
        o->lengths_q[b] = between(state, 0, o->seqlen_q);
        o->lengths_k[b] = between(state, 0, o->seqlen_k);
        if (chance(state, 60)) o->lengths_q[b] = o->seqlen_q;
        if (chance(state, 60)) o->lengths_k[b] = o->seqlen_k;
    }
}

static void random_layout(case_options *o, uint64_t *state) {
    o->packed_q = chance(state, 40);
    for (int b = 1; b < o->batch && !o->packed_q; b++) o->lengths_q[b] = o->lengths_q[0];
    o->k_layout = PICK(state, K_DENSE, K_PACKED, K_PAGED);
    int32_t page_size = between(state, 1, 100);
    page_size = PICK(state, 1, 3, 16, 32, 64, 256, page_size);
    bool by_cu = chance(state, 30);
    bool by_index = chance(state, 20);
    if (o->k_layout == K_PAGED) o->page_size = page_size, o->page_lengths_by_cu = by_cu;
    o->cache_batch_idx = o->k_layout == K_DENSE && by_index;
    o->seqused = chance(state, 30);
    if (chance(state, 40)) o->slack = between(state, 1, 80);
    if (chance(state, 20)) o->leftpad = between(state, 1, 90);
    o->shared_kv = chance(state, 10) && o->head_dim_v <= o->head_dim;
    if (chance(state, 50))
        o->strides = PICK(state, STRIDES_ODD, STRIDES_HEADS_FIRST, STRIDES_REVERSED);
}

static void random_scores(case_options *o, uint64_t *state) {
    if (chance(state, 15)) o->scale = (float)between(state, -40, 40) / 100;
    if (chance(state, 20)) o->softcap = (float)between(state, 1, 60) / 2;
    if (chance(state, 25)) o->alibi = between(state, 1, 2);
    o->sinks = chance(state, 20);
    if (chance(state, 15)) o->dropout = (float)between(state, 1, 99) / 100;
    o->mask = PICK(state, TALLOW_MASK_NONE, TALLOW_MASK_CAUSAL, TALLOW_MASK_WINDOW);
    int32_t left = length(state, 300);
    int32_t right = length(state, 300);
    left = PICK(state, left, left, left, -1);
    right = PICK(state, 0, 0, right, -1);
    if (o->mask == TALLOW_MASK_WINDOW) o->window_left = left, o->window_right = right;
    bool ranges = chance(state, 25);
    if (o->mask != TALLOW_MASK_NONE && ranges) o->ranges = between(state, 1, 5);
}

static void random_rotary(case_options *o, uint64_t *state) {
    o->rotary_dim = 2 * between(state, 1, o->head_dim / 2);
    if (chance(state, 60)) o->rotary_dim = o->head_dim;
    o->pairing = PICK(state, TALLOW_PAIRING_HALF, TALLOW_PAIRING_INTERLEAVED);
    bool mrope = chance(state, 30);
    if (o->rotary_dim >= 8 && mrope)
        o->mrope = PICK(state, TALLOW_MROPE_CHUNKED, TALLOW_MROPE_INTERLEAVED);
    o->frequencies =
        PICK(state, FREQUENCIES_THETA, FREQUENCIES_THETA, FREQUENCIES_INV_FREQ, FREQUENCIES_TABLES);
    o->table_dtype = PICK(state, TALLOW_F16, TALLOW_BF16, TALLOW_F32);
    if (chance(state, 30)) o->factor = 1.25f;
    bool theta = chance(state, 30);
    if (o->frequencies == FREQUENCIES_THETA && theta) o->theta = 500000;
    if (chance(state, 50)) o->positions = PICK(state, TALLOW_I32, TALLOW_I64);
    o->position = between(state, 0, INT32_MAX - 1);
    o->position = PICK(state, 0, o->position % 5000, o->position);
    if (o->frequencies == FREQUENCIES_TABLES) o->position %= 100;
}

static void random_append(case_options *o, uint64_t *state) {
    bool packed = chance(state, 40);
    o->page_lengths_by_cu = false;
    if (!packed) o->seqlen_new = between(state, 1, 20);
    for (int b = 0; b < o->batch && packed; b++) o->lengths_new[b] = between(state, b == 0, 20);
    if (chance(state, 75)) random_rotary(o, state);
}

static void random_running(case_options *o, uint64_t *state) {
    o->num_splits = between(state, 2, 40);
    o->num_splits = PICK(state, 0, 0, 1, 2, o->num_splits);
    o->precision = PICK(state, TALLOW_PRECISION_DEFAULT, TALLOW_PRECISION_DEFAULT,
                        TALLOW_PRECISION_FAST, TALLOW_PRECISION_HIGH);
    o->threads = between(state, 0, 2);
    o->batch_invariant = chance(state, 15);
    o->out_f32 = chance(state, 15);
    o->no_lse = chance(state, 10);
    o->workspace = chance(state, 30);
    o->bounds = chance(state, 30);
    if (chance(state, 40))
        o->data = PICK(state, DATA_PEAKY, DATA_OUTLIERS, DATA_RISING, DATA_FALLING);
    if (o->dropout == 0 && chance(state, 10)) { /* whether a dropped NaN shows is not said */
        o->plant = PICK(state, PLANT_NAN_Q, PLANT_NAN_K, PLANT_NAN_V);
        o->plant_at = between(state, -3, 40);
    }
}

/* Shorter and fewer, until the plain loops take a few milliseconds. */
static void limit_work(case_options *o) {
    const double most = 4e6;
    for (;;) {
        double work = 0;
        for (int b = 0; b < o->batch; b++) {
            int32_t fresh = o->seqlen_new + o->lengths_new[b];
            work += (double)o->lengths_q[b] * (o->lengths_k[b] + fresh) * o->heads *
                    (o->head_dim + o->head_dim_v);
        }
        if (work <= most) return;
        if (o->heads > o->heads_kv) {
            o->heads -= o->heads_kv;
        } else if (o->heads_kv > 1) {
            o->heads = --o->heads_kv;
        } else if (o->batch > 1) {
            o->batch--;
        } else {
            o->lengths_q[0] = o->lengths_q[0] * 2 / 3;
        }
    }
}

case_options case_random(uint64_t seed, uint64_t index) {
    uint64_t state = seed * UINT64_C(0xD1342543DE82EF95) + index;
    case_options o = {.name = "random"};
    random_shape(&o, &state);
    random_layout(&o, &state);
    random_scores(&o, &state);
    bool appends = chance(&state, 35);
    if (appends && o.k_layout != K_PACKED && !o.shared_kv) random_append(&o, &state);
    random_running(&o, &state);
    limit_work(&o);
    if (o.lengths_q[0] == 0) o.seqlen_q = CASE_EMPTY;
    if (o.lengths_k[0] == 0) o.seqlen_k = CASE_EMPTY;
    return o;
}
