/* What must hold between calls: the same bits again, alone or among neighbours, in parts, from many
 * threads, at addresses far apart; and memory that grows with the sequence, not its square. */
#define _DEFAULT_SOURCE /* MAP_NORESERVE */

#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "case.h"
#include "expect.h"
#include "reference.h"

/* A dense f32 call that owns its tensors. */
typedef struct {
    tallow_attention_params p;
    float *q, *k, *v, *out, *lse;
    int64_t out_count, lse_count;
} call;

static float *random_floats(int64_t count, uint64_t seed) {
    float *data = malloc((size_t)(count + 1) * sizeof *data);
    if (!data) abort();
    for (int64_t i = 0; i < count; i++)
        data[i] = (float)((double)(case_draw(&seed) >> 11) * 0x1p-51 - 2);
    return data;
}

static tallow_tensor tensor(void *data, int64_t a, int64_t b, int64_t c, int64_t d) {
    return (tallow_tensor){.data = data, .dtype = TALLOW_F32, .shape = {a, b, c, d}};
}

static tallow_tensor ints(int32_t *data, int64_t count) {
    return (tallow_tensor){.data = data, .dtype = TALLOW_I32, .shape = {count}};
}

static call make_call(int64_t batch, int64_t seqlen_q, int64_t seqlen_k, int64_t heads,
                      int64_t heads_kv, int64_t head_dim) {
    call c = {.out_count = batch * seqlen_q * heads * head_dim,
              .lse_count = batch * seqlen_q * heads};
    c.q = random_floats(c.out_count, 1);
    c.k = random_floats(batch * seqlen_k * heads_kv * head_dim, 2);
    c.v = random_floats(batch * seqlen_k * heads_kv * head_dim, 3);
    c.out = random_floats(c.out_count, 4);
    c.lse = random_floats(c.lse_count, 5);
    c.p.q = tensor(c.q, batch, seqlen_q, heads, head_dim);
    c.p.k = tensor(c.k, batch, seqlen_k, heads_kv, head_dim);
    c.p.v = tensor(c.v, batch, seqlen_k, heads_kv, head_dim);
    c.p.out = tensor(c.out, batch, seqlen_q, heads, head_dim);
    c.p.lse = tensor(c.lse, batch, heads, seqlen_q, 0);
    return c;
}

static void free_call(call *c) { free(c->q), free(c->k), free(c->v), free(c->out), free(c->lse); }

static void run(const char *what, call *c) {
    tallow_status status = tallow_attention(&c->p, sizeof c->p);
    EXPECT(status == TALLOW_OK, "%s: %s", what, tallow_last_error());
}

static bool same(const float *a, const float *b, int64_t count) {
    return memcmp(a, b, (size_t)count * sizeof *a) == 0;
}

static double largest_difference(const float *a, const float *b, int64_t count) {
    double largest = 0;
    for (int64_t i = 0; i < count; i++) largest = fmax(largest, fabs((double)a[i] - (double)b[i]));
    return largest;
}

static float *copy_of(const float *data, int64_t count) {
    float *copy = malloc((size_t)(count + 1) * sizeof *copy);
    if (!copy) abort();
    return memcpy(copy, data, (size_t)count * sizeof *copy);
}

/* ---- repeatability ---- */

static void test_repeatable(void) {
    for (int splits = 0; splits < 4; splits++) {
        call c = make_call(2, 5, 900, 4, 2, 40);
        c.p.num_splits = splits;
        c.p.threads = 2;
        run("repeatable", &c);
        float *first = copy_of(c.out, c.out_count), *lse = copy_of(c.lse, c.lse_count);
        for (int i = 0; i < 3; i++) {
            memset(c.out, 0xff, (size_t)c.out_count * sizeof *c.out);
            run("repeatable", &c);
            EXPECT(same(first, c.out, c.out_count), "splits %d, run %d: other bits", splits, i);
            EXPECT(same(lse, c.lse, c.lse_count), "splits %d, run %d: other lse", splits, i);
        }
        c.p.threads = 1; /* parts are given, so the threads decide nothing */
        run("one thread", &c);
        if (splits > 0) EXPECT(same(first, c.out, c.out_count), "splits %d: threads show", splits);
        EXPECT(largest_difference(first, c.out, c.out_count) < 1e-5, "splits %d", splits);
        free(first), free(lse), free_call(&c);
    }
}

/* ---- batch invariance ---- */

/* Moves sequence `from` of a call to a call of its own, with room for `capacity` keys. */
static call alone(const call *c, int64_t from, int64_t capacity) {
    const int64_t *q = c->p.q.shape, *k = c->p.k.shape;
    int64_t query = q[1] * q[2] * q[3], key = k[2] * k[3];
    call a = make_call(1, q[1], capacity, q[2], k[2], q[3]);
    int64_t rows = capacity < k[1] ? capacity : k[1];
    memcpy(a.q, c->q + from * query, (size_t)query * sizeof *a.q);
    memcpy(a.k, c->k + from * k[1] * key, (size_t)(rows * key) * sizeof *a.k);
    memcpy(a.v, c->v + from * k[1] * key, (size_t)(rows * key) * sizeof *a.v);
    a.p.mask = c->p.mask;
    a.p.threads = c->p.threads;
    a.p.batch_invariant = c->p.batch_invariant;
    return a;
}

static void test_batch_invariant(int64_t seqlen_q, int64_t capacity, int32_t *used) {
    enum { BATCH = 3 };
    call c = make_call(BATCH, seqlen_q, capacity, 4, 2, 16);
    int64_t query = seqlen_q * 4 * 16;
    c.p.seqused_k = ints(used, BATCH);
    c.p.mask = TALLOW_MASK_CAUSAL;
    c.p.batch_invariant = 1;
    run("invariant", &c);
    for (int b = 0; b < BATCH; b++) {
        const int64_t rooms[3] = {used[b] > 0 ? used[b] : 1, capacity, 2 * capacity + 77};
        for (int room = 0; room < 3; room++) {
            call a = alone(&c, b, rooms[room]);
            a.p.threads = 1 + room % 2;
            a.p.seqused_k = ints(used + b, 1);
            run("alone", &a);
            EXPECT(same(a.out, c.out + b * query, query), "sequence %d of %d keys, room for %d", b,
                   (int)used[b], (int)rooms[room]);
            EXPECT(same(a.lse, c.lse + b * seqlen_q * 4, seqlen_q * 4), "lse of sequence %d", b);
            free_call(&a);
        }
    }
    free_call(&c);
}

/* With parts fixed, not even the plan may see how much room there is. */
static void test_capacity(void) {
    int32_t used[2] = {300, 41};
    call c = make_call(2, 3, 300, 2, 2, 24);
    c.p.seqused_k = ints(used, 2);
    for (int splits = 1; splits <= 4; splits += 3) {
        c.p.num_splits = splits;
        run("capacity", &c);
        for (int b = 0; b < 2; b++) {
            call a = alone(&c, b, 5000);
            a.p.num_splits = splits;
            a.p.seqused_k = ints(used + b, 1);
            run("capacity", &a);
            EXPECT(same(a.out, c.out + b * a.out_count, a.out_count), "%d splits, sequence %d",
                   splits, b);
            free_call(&a);
        }
    }
    free_call(&c);
}

/* ---- parts and merging ---- */

static void test_merge(int64_t cut) {
    call whole = make_call(2, 7, 90, 4, 2, 32), a = make_call(2, 7, 90, 4, 2, 32);
    call b = make_call(2, 7, 90, 4, 2, 32);
    float sinks[4] = {1, -1, 0, 2};
    whole.p.sinks = (tallow_tensor){sinks, {4}, {0}, TALLOW_F32, 0};
    *(cut > 0 ? &a.p.sinks : &b.p.sinks) =
        whole.p.sinks; /* a part without keys has no use for it */
    run("whole", &whole);

    call *parts[2] = {&a, &b};
    for (int i = 0; i < 2; i++) { /* keys [0, cut) and [cut, 90) */
        tallow_tensor *tensors[2] = {&parts[i]->p.k, &parts[i]->p.v};
        for (int t = 0; t < 2; t++) {
            const int64_t strides[4] = {90 * 64, 64, 32, 1};
            memcpy(tensors[t]->strides, strides, sizeof strides);
            tensors[t]->shape[1] = i == 0 ? cut : 90 - cut;
            tensors[t]->data = (float *)tensors[t]->data + (i == 0 ? 0 : cut * 64);
        }
        run("part", parts[i]);
    }
    tallow_merge_params m = {.out_a = a.p.out,
                             .lse_a = a.p.lse,
                             .out_b = b.p.out,
                             .lse_b = b.p.lse,
                             .out = a.p.out,
                             .lse = a.p.lse};
    EXPECT(tallow_merge(&m, sizeof m) == TALLOW_OK, "%s", tallow_last_error());
    EXPECT(largest_difference(a.out, whole.out, whole.out_count) < 2e-6, "merged at %d: %g",
           (int)cut, largest_difference(a.out, whole.out, whole.out_count));
    EXPECT(largest_difference(a.lse, whole.lse, whole.lse_count) < 2e-6, "merged lse at %d",
           (int)cut);
    free_call(&whole), free_call(&a), free_call(&b);
}

/* ---- threads ---- */

typedef struct {
    call c;
    float *expected;
    bool held;
} caller;

static void *keep_calling(void *argument) {
    caller *me = argument;
    me->held = true;
    for (int i = 0; i < 20; i++) {
        memset(me->c.out, 0xff, (size_t)me->c.out_count * sizeof *me->c.out);
        tallow_status status = tallow_attention(&me->c.p, sizeof me->c.p);
        me->held = me->held && status == TALLOW_OK && *tallow_last_error() == 0 &&
                   same(me->expected, me->c.out, me->c.out_count);
        me->c.p.q.dtype = TALLOW_I32; /* an error here is nobody else's */
        status = tallow_attention(&me->c.p, sizeof me->c.p);
        me->held = me->held && status == TALLOW_INVALID_ARGUMENT && *tallow_last_error() != 0;
        me->c.p.q.dtype = TALLOW_F32;
    }
    return NULL;
}

static void test_concurrent(void) {
    enum { CALLERS = 4 };
    pthread_t threads[CALLERS];
    caller callers[CALLERS];
    for (int i = 0; i < CALLERS; i++) {
        callers[i].c = make_call(1, 20 + i, 50 + 40 * i, 2, 1, 16);
        callers[i].c.p.num_splits = i;
        run("alone in the process", &callers[i].c);
        callers[i].expected = copy_of(callers[i].c.out, callers[i].c.out_count);
    }
    for (int i = 0; i < CALLERS; i++)
        if (pthread_create(&threads[i], NULL, keep_calling, &callers[i]) != 0) abort();
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(threads[i], NULL);
        EXPECT(callers[i].held, "caller %d among others", i);
        free(callers[i].expected), free_call(&callers[i].c);
    }
}

/* ---- workspace ---- */

static size_t workspace_of(tallow_attention_params p) {
    size_t bytes = 0;
    p.workspace = NULL, p.workspace_size = 0;
    EXPECT(tallow_attention_workspace(&p, sizeof p, &bytes) == TALLOW_OK, "%s",
           tallow_last_error());
    return bytes;
}

static void test_workspace(void) {
    for (int splits = 1; splits <= 5; splits += 2) {
        call c = make_call(2, 4, 600, 4, 2, 40);
        void *memory = NULL;
        c.p.num_splits = splits;
        run("no workspace", &c);
        float *expected = copy_of(c.out, c.out_count);
        size_t bytes = workspace_of(c.p);
        if (posix_memalign(&memory, 256, bytes) != 0) abort();
        memset(memory, 0xff, bytes); /* what lies there before means nothing */
        memset(c.out, 0, (size_t)c.out_count * sizeof *c.out);
        c.p.workspace = memory;
        c.p.workspace_size = bytes;
        run("workspace", &c);
        EXPECT(same(expected, c.out, c.out_count), "%d splits: the workspace shows", splits);

        memset(c.out, 0x5a, (size_t)c.out_count * sizeof *c.out);
        memcpy(expected, c.out, (size_t)c.out_count * sizeof *c.out);
        c.p.workspace_size = bytes - 1;
        tallow_status status = tallow_attention(&c.p, sizeof c.p);
        EXPECT(status == TALLOW_WORKSPACE_TOO_SMALL, "%s", tallow_status_name(status));
        EXPECT(strstr(tallow_last_error(), "workspace_size"), "%s", tallow_last_error());
        EXPECT(same(expected, c.out, c.out_count), "out was touched");
        free(memory), free(expected), free_call(&c);
    }
}

/* A number of splits that is asked for is the number that runs. */
static void test_exact_splits(void) {
    char text[4096], wanted[32];
    for (int splits = 1; splits <= 40; splits++) {
        tallow_attention_params p = {.num_splits = splits};
        p.q = p.out = tensor(NULL, 2, 3, 4, 64);
        p.k = p.v = tensor(NULL, 2, 600, 2, 64);
        tallow_status status = tallow_attention_describe(&p, sizeof p, text, sizeof text);
        EXPECT(status == TALLOW_OK, "%s", tallow_last_error());
        snprintf(wanted, sizeof wanted, "\nsplits %d\n", splits);
        EXPECT(strstr(text, wanted), "%d splits: %s", splits, text);
    }
}

/* Shapes only: pointers stay null. */
static void test_memory_growth(void) {
    for (int splits = 0; splits <= 8; splits += 4) {
        size_t bytes[2];
        for (int i = 0; i < 2; i++) {
            int64_t n = i == 0 ? 1024 : 65536;
            tallow_attention_params p = {.num_splits = splits, .threads = 2};
            p.q = p.k = p.v = p.out = tensor(NULL, 1, n, 8, 128);
            bytes[i] = workspace_of(p);
        }
        EXPECT(bytes[1] <= 64 * bytes[0], "%d splits: %zu bytes at 1k, %zu at 64k", splits,
               bytes[0], bytes[1]);
    }
}

/* ---- dropout ---- */

/* V is the identity, so that out tells every weight, and which are 0. */
static void test_dropout(void) {
    enum { KEYS = 256, QUERIES = 60, HEADS = 4 };
    call c = make_call(1, QUERIES, KEYS, HEADS, HEADS, KEYS);
    memset(c.v, 0, sizeof(float) * KEYS * HEADS * KEYS);
    for (int64_t j = 0; j < KEYS; j++)
        for (int64_t h = 0; h < HEADS; h++) c.v[(j * HEADS + h) * KEYS + j] = 1;
    c.p.softmax_scale = 0.01f;
    run("no dropout", &c);
    float *all = copy_of(c.out, c.out_count);
    c.p.dropout_p = 0.3f;
    c.p.dropout_seed = 5;
    run("dropout", &c);
    float *once = copy_of(c.out, c.out_count);
    int64_t kept = 0;
    for (int64_t i = 0; i < c.out_count; i++) {
        kept += once[i] != 0;
        EXPECT(once[i] == 0 || fabs((double)once[i] / (double)all[i] * 0.7 - 1) < 1e-5,
               "weight %d is %g of %g", (int)i, (double)once[i], (double)all[i]);
    }
    double rate = (double)kept / (double)c.out_count;
    double deviation = sqrt(0.3 * 0.7 / (double)c.out_count);
    EXPECT(fabs(rate - 0.7) < 5 * deviation, "kept %g of the weights", rate);
    for (int splits = 2; splits < 8; splits++) {
        c.p.num_splits = splits;
        run("dropout in parts", &c);
        for (int64_t i = 0; i < c.out_count; i++)
            EXPECT((c.out[i] != 0) == (once[i] != 0), "%d splits drop others", splits);
    }
    c.p.dropout_offset = 1;
    run("dropout at another offset", &c);
    EXPECT(largest_difference(once, c.out, c.out_count) > 1e-3, "the offset does not show");
    free(all), free(once), free_call(&c);
}

/* ---- rotary in the call and before it ---- */

static void test_fused_rotary(void) {
    enum { OLD = 40, NEW = 3, HEADS = 2, DIM = 24, ROW = HEADS * DIM };
    call fused = make_call(1, NEW, OLD + NEW, HEADS, HEADS, DIM);
    call apart = make_call(1, NEW, OLD + NEW, HEADS, HEADS, DIM);
    float *k_new = random_floats(NEW * ROW, 8), *v_new = random_floats(NEW * ROW, 9);
    int32_t used = OLD;
    fused.p.seqused_k = ints(&used, 1);
    fused.p.k_new = tensor(k_new, 1, NEW, HEADS, DIM);
    fused.p.v_new = tensor(v_new, 1, NEW, HEADS, DIM);
    fused.p.rotary.rotary_dim = 16;
    run("fused", &fused);

    tallow_rotary_params r = {.rotary = fused.p.rotary, .offset = ints(&used, 1)};
    r.x = r.out = apart.p.q;
    EXPECT(tallow_rotary(&r, sizeof r) == TALLOW_OK, "%s", tallow_last_error());
    r.x = fused.p.k_new;
    r.out = tensor(apart.k + OLD * ROW, 1, NEW, HEADS, DIM);
    EXPECT(tallow_rotary(&r, sizeof r) == TALLOW_OK, "%s", tallow_last_error());
    memcpy(apart.v + OLD * ROW, v_new, sizeof(float) * NEW * ROW);
    run("apart", &apart);
    EXPECT(same(fused.k, apart.k, (OLD + NEW) * ROW), "the cache differs from tallow_rotary's");
    EXPECT(same(fused.out, apart.out, fused.out_count), "rotating first gives other bits");
    free(k_new), free(v_new), free_call(&fused), free_call(&apart);
}

/* ---- rounding ---- */

/* The mean of two 16-bit values is exact in f32, and often half way between two 16-bit values. */
static void test_ties(int32_t dtype, const char *level) {
    enum { DIM = 256 };
    uint16_t q[DIM] = {0}, v[2][DIM], out[DIM], expected[DIM];
    uint64_t state = 3;
    for (int i = 0; i < 2 * DIM; i++) {
        double value = 1 + (double)(case_draw(&state) >> 40) * 0x1p-24;
        reference_store(v, dtype, i, i % 3 ? value : 2 * value);
    }
    for (int c = 0; c < DIM; c++) {
        double mean = (reference_load(v[0], dtype, c) + reference_load(v[1], dtype, c)) / 2;
        reference_store(expected, dtype, c, mean);
    }
    tallow_attention_params p = {.q = tensor(q, 1, 1, 1, DIM),
                                 .k = tensor(v, 1, 2, 1, DIM),
                                 .v = tensor(v, 1, 2, 1, DIM),
                                 .out = tensor(out, 1, 1, 1, DIM)};
    p.q.dtype = p.k.dtype = p.v.dtype = p.out.dtype = dtype;
    setenv("TALLOW_CPU", level, 1);
    EXPECT(tallow_attention(&p, sizeof p) == TALLOW_OK, "%s", tallow_last_error());
    for (int c = 0; c < DIM; c++)
        EXPECT(out[c] == expected[c], "%s, dtype %d: a mean is rounded to %04x, not %04x", level,
               (int)dtype, out[c], expected[c]);
    unsetenv("TALLOW_CPU");
}

/* A NaN all of whose bits are set must not become a number when it loses sixteen of them. */
static void test_nan(int32_t dtype, const char *level) {
    enum { DIM = 24 };
    uint16_t rows[DIM] = {0}, out[DIM] = {0};
    uint32_t bits = 0x7fffffff;
    tallow_tensor row = tensor(rows, 1, 1, 1, DIM);
    row.dtype = dtype;
    tallow_attention_params p = {.q = row, .k = row, .v = row, .out = row};
    p.out.data = out;
    p.sinks = (tallow_tensor){&bits, {1}, {0}, TALLOW_F32, 0};
    setenv("TALLOW_CPU", level, 1);
    EXPECT(tallow_attention(&p, sizeof p) == TALLOW_OK, "%s", tallow_last_error());
    for (int c = 0; c < DIM; c++)
        EXPECT(isnan(reference_load(out, dtype, c)), "%s, dtype %d: NaN became %04x", level,
               (int)dtype, out[c]);
    unsetenv("TALLOW_CPU");
}

/* ---- addresses ---- */

enum { FAR_BATCH = 2, FAR_ROWS = 3, FAR_HEADS = 2, FAR_DIM = 8 };
static const int64_t FAR_AWAY = (INT64_C(1) << 31) + 8; /* elements */

static void far_strides(tallow_tensor *t, int dimension) {
    const int64_t near[4] = {FAR_ROWS * FAR_HEADS * FAR_DIM, FAR_HEADS * FAR_DIM, FAR_DIM, 1};
    memcpy(t->strides, near, sizeof near);
    t->strides[dimension] = FAR_AWAY;
}

/* Copies between a contiguous tensor and one of the same shape. */
static void copy_far(const tallow_tensor *t, float *near, bool in) {
    for (int64_t i = 0; i < FAR_BATCH * FAR_ROWS * FAR_HEADS; i++) {
        int64_t b = i / (FAR_ROWS * FAR_HEADS), row = i / FAR_HEADS % FAR_ROWS, h = i % FAR_HEADS;
        float *far = (float *)t->data + b * t->strides[0] + row * t->strides[1] + h * t->strides[2];
        memcpy(in ? far : near + i * FAR_DIM, in ? near + i * FAR_DIM : far,
               FAR_DIM * sizeof(float));
    }
}

/* Batches, rows or heads more than 2^31 elements apart, in memory that is never touched between. */
static void test_far_apart(int dimension) {
    call c = make_call(FAR_BATCH, FAR_ROWS, FAR_ROWS, FAR_HEADS, FAR_HEADS, FAR_DIM);
    tallow_tensor *tensors[4] = {&c.p.q, &c.p.k, &c.p.v, &c.p.out};
    float *near[4] = {c.q, c.k, c.v, c.out}, *result = random_floats(c.out_count, 6);
    size_t bytes = (size_t)(3 * FAR_AWAY) * sizeof(float);
    run("near", &c);
    for (int i = 0; i < 4; i++) {
        void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        EXPECT(memory != MAP_FAILED, "no %zu bytes of addresses", bytes);
        if (memory == MAP_FAILED) return;
        tensors[i]->data = memory;
        far_strides(tensors[i], dimension);
        if (i < 3) copy_far(tensors[i], near[i], true);
    }
    run("far", &c);
    copy_far(&c.p.out, result, false);
    EXPECT(same(result, c.out, c.out_count), "dimension %d: far apart gives other bits", dimension);
    for (int i = 0; i < 4; i++) munmap(tensors[i]->data, bytes);
    free(result), free_call(&c);
}

/* ---- errors ---- */

/* Sets up an error that only the data reveal, after which neither out nor cache may have changed.
 */
static void test_untouched(void) {
    call c = make_call(2, 3, 40, 2, 2, 16);
    float *k_new = random_floats(2 * 3 * 2 * 16, 8);
    int32_t used[2] = {20, 38}; /* and three more do not fit */
    float *out = copy_of(c.out, c.out_count), *k = copy_of(c.k, 2 * 40 * 2 * 16);
    c.p.seqused_k = ints(used, 2);
    c.p.k_new = c.p.v_new = tensor(k_new, 2, 3, 2, 16);
    tallow_status status = tallow_attention(&c.p, sizeof c.p);
    EXPECT(status == TALLOW_INVALID_ARGUMENT, "%s", tallow_status_name(status));
    EXPECT(strstr(tallow_last_error(), "seqused_k[1] = 38"), "%s", tallow_last_error());
    EXPECT(same(out, c.out, c.out_count) && same(k, c.k, 2 * 40 * 2 * 16), "written on error");

    used[1] = 30;
    setenv("TALLOW_CPU", "avx1024", 1);
    status = tallow_attention(&c.p, sizeof c.p);
    EXPECT(status == TALLOW_INVALID_ARGUMENT, "%s", tallow_status_name(status));
    EXPECT(strstr(tallow_last_error(), "avx1024") && strstr(tallow_last_error(), "avx512bf16"),
           "%s", tallow_last_error());
    EXPECT(same(out, c.out, c.out_count) && same(k, c.k, 2 * 40 * 2 * 16), "written on error");
    unsetenv("TALLOW_CPU");
    run("no error left", &c);
    EXPECT(!same(out, c.out, c.out_count) && *tallow_last_error() == 0, "nothing was computed");
    free(out), free(k), free(k_new), free_call(&c);
}

int main(void) {
    test_repeatable();
    test_batch_invariant(1, 9000, (int32_t[3]){9000, 50, 4097});
    test_batch_invariant(3, 600, (int32_t[3]){600, 0, 130});
    test_batch_invariant(200, 300, (int32_t[3]){300, 299, 1});
    test_capacity();
    test_merge(0);
    test_merge(1);
    test_merge(40);
    test_merge(90);
    test_concurrent();
    test_workspace();
    test_exact_splits();
    test_memory_growth();
    test_dropout();
    test_fused_rotary();
    const char *const levels[] = {"scalar", "avx2", "avx512", "avx512bf16"};
    for (int i = 0; i < 4; i++) {
        for (int32_t dtype = TALLOW_F16; dtype <= TALLOW_BF16; dtype++) {
            test_ties(dtype, levels[i]);
            test_nan(dtype, levels[i]);
        }
    }
    for (int dimension = 0; dimension < 3; dimension++) test_far_apart(dimension);
    test_untouched();
    return expect_report();
}
