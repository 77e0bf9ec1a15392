/* What is chosen for a problem on a GPU, without one. */
#include "plan_cuda.h"

#include <string.h>

#include "expect.h"

static const cuda_gpu h200 = {0, "H200", 90, 132, 227 * 1024, 60u << 20};
static const cuda_gpu small = {0, "RTX", 86, 28, 99 * 1024, 2u << 20};
static const cuda_gpu turing = {0, "T4", 75, 40, 64 * 1024, 4u << 20};
static const cuda_gpu volta = {0, "V100", 70, 80, 96 * 1024, 6u << 20};

typedef struct {
    int64_t batch, heads, heads_kv, seqlen_q, seqlen_k, head_dim;
    int32_t dtype;
} sizes;

static const sizes decode = {1, 16, 2, 1, 16384, 128, TALLOW_BF16};
static const sizes prefill = {4, 16, 2, 4096, 4096, 128, TALLOW_BF16};

static tallow_tensor tensor(int64_t a, int64_t b, int64_t c, int64_t d, int32_t dtype) {
    return (tallow_tensor){.shape = {a, b, c, d}, .dtype = dtype};
}

static tallow_attention_params params(const sizes *s) {
    return (tallow_attention_params){
        .q = tensor(s->batch, s->seqlen_q, s->heads, s->head_dim, s->dtype),
        .k = tensor(s->batch, s->seqlen_k, s->heads_kv, s->head_dim, s->dtype),
        .v = tensor(s->batch, s->seqlen_k, s->heads_kv, s->head_dim, s->dtype),
        .out = tensor(s->batch, s->seqlen_q, s->heads, s->head_dim, s->dtype),
        .device = TALLOW_DEVICE_CUDA};
}

static cuda_plan plan_of(const tallow_attention_params *a, const cuda_gpu *gpu) {
    problem p;
    cuda_plan plan = {0};
    tallow_status status = tallow_problem_init(&p, a, sizeof *a, CHECK_SHAPES);
    if (!status) status = tallow_cuda_plan_make(&plan, &p, gpu);
    EXPECT(!status, "%s", tallow_last_error());
    EXPECT(!tallow_spec_check(&plan.kernel), "%s", tallow_last_error());
    return plan;
}

static void run_kernels(void) {
    tallow_attention_params a = params(&prefill);
    cuda_plan plan = plan_of(&a, &h200);
    EXPECT(plan.kernel.dtype == TALLOW_BF16 && plan.kernel.head_dim == 128, "wrong kernel");
    EXPECT(plan.kernel.rows == 0 && plan.kernel.scores == 0 && plan.kernel.access == 0 &&
               plan.kernel.paged == 0 && plan.kernel.p_parts == 1,
           "a plain call takes the plain kernel");
    EXPECT(plan.kernel.shared_memory == 227, "%d KiB", (int)plan.kernel.shared_memory);
    EXPECT(plan_of(&a, &small).kernel.shared_memory == 99, "of the GPU");
    EXPECT(plan.splits == 1 && plan.partial_bytes == 0, "enough tiles are not split");

    a.precision = TALLOW_PRECISION_HIGH;
    EXPECT(plan_of(&a, &h200).kernel.p_parts == 2, "high precision");
    a.softcap = 30;
    EXPECT(plan_of(&a, &h200).kernel.scores == 1, "softcap");
    a.softcap = 0;
    a.softmax_scale = -1;
    EXPECT(plan_of(&a, &h200).kernel.scores == 1, "a negative scale");
    a.q.strides[0] = 4096 * 16 * 132;
    a.q.strides[1] = 16 * 132;
    a.q.strides[2] = 132;
    a.q.strides[3] = 1;
    EXPECT(plan_of(&a, &h200).kernel.access == 1, "heads of 264 bytes are not aligned");
}

static void run_turing(void) {
    sizes s = prefill;
    s.dtype = TALLOW_F16;
    tallow_attention_params a = params(&s);
    cuda_plan plan = plan_of(&a, &turing);
    EXPECT(plan.kernel.family == 75 && plan.kernel.shared_memory == 64, "the kernels of Turing");
    EXPECT(plan.tile.shared_bytes <= 64 * 1024, "%d bytes", (int)plan.tile.shared_bytes);
    EXPECT(plan_of(&a, &small).kernel.family == 80, "of Ampere and later");
    EXPECT(plan_of(&a, &h200).kernel.family == 90, "of Hopper");
    cuda_gpu forced = h200;
    forced.family = 75;
    forced.shared_bytes = turing.shared_bytes;
    cuda_plan same = plan_of(&a, &forced);
    EXPECT(!memcmp(&same.kernel, &plan.kernel, sizeof plan.kernel), "on a newer GPU too");
}

/* On Hopper, of many tiles. */
static bool takes_large(int64_t head_dim, int64_t seqlen, int32_t causal) {
    sizes s = prefill;
    s.batch = 32;
    s.heads = s.heads_kv = 32;
    s.seqlen_q = s.seqlen_k = seqlen;
    s.head_dim = head_dim;
    tallow_attention_params a = params(&s);
    a.mask = causal ? TALLOW_MASK_CAUSAL : TALLOW_MASK_NONE;
    return plan_of(&a, &h200).kernel.large;
}

static void run_large(void) {
    EXPECT(takes_large(64, 512, 0) && takes_large(64, 4096, 1), "192 rows");
    EXPECT(!takes_large(64, 256, 0), "128 of 384 rows would be none");
    EXPECT(takes_large(128, 4096, 0) && takes_large(128, 8192, 1), "many keys at a time");
    EXPECT(!takes_large(128, 2048, 0) && !takes_large(128, 4096, 1), "queries see 2048 keys");
    EXPECT(!takes_large(256, 16384, 0), "heads too long for it");
    sizes s = prefill;
    s.batch = 1;
    s.head_dim = 64;
    s.seqlen_q = 1024;
    tallow_attention_params a = params(&s);
    EXPECT(!plan_of(&a, &h200).kernel.large, "multiprocessors would stay idle");
    a.batch_invariant = 1;
    EXPECT(plan_of(&a, &h200).kernel.large, "whatever the batch is");
}

static void run_pairs(void) {
    sizes s = prefill;
    cuda_gpu gpu = h200;
    gpu.pairs = true;
    s.heads_kv = s.heads;
    s.batch = 4;
    s.seqlen_q = s.seqlen_k = 4096;
    tallow_attention_params a = params(&s);
    cuda_plan plan = plan_of(&a, &gpu);
    EXPECT(plan.kernel.pairs && plan.blocks == 132 && plan.key_rows * 2 == plan.tile.block_keys,
           "pairs copy half a block of keys each");
    EXPECT(!plan_of(&a, &h200).kernel.pairs, "not on a GPU without clusters");
    gpu.multiprocessors = 131;
    EXPECT(plan_of(&a, &gpu).blocks == 130, "an odd multiprocessor stays idle");
    a.num_splits = 2;
    EXPECT(!plan_of(&a, &gpu).kernel.pairs, "nor for split keys");
    s.seqlen_q = 4096 - 128;
    a = params(&s);
    EXPECT(!plan_of(&a, &gpu).kernel.pairs, "31 blocks of rows make no pairs");
    s.seqlen_q = s.seqlen_k = 1024;
    a = params(&s);
    EXPECT(!plan_of(&a, &gpu).kernel.pairs, "of short tiles");
}

/* Whatever the lengths, the kernel is among those that are packed for one of them. */
static void run_packed(void) {
    static const int64_t lengths[] = {17, 128, 512, 1024, 4096, 16384, 131072};
    static const int64_t head_dims[] = {64, 128, 256};
    cuda_gpu gpu = h200, other = h200;
    gpu.pairs = other.pairs = true;
    other.multiprocessors = 100;
    for (int i = 0; i < 7 * 7 * 3 * 2 * 2; i++) {
        spec kernels[PLAN_KERNELS];
        problem p;
        sizes s = {i % 2 ? 1 : 8,      16,         16, lengths[i / 4 % 7], lengths[i / 28 % 7],
                   head_dims[i / 196], TALLOW_BF16};
        sizes once = {1, 16, 16, 600, 600, s.head_dim, TALLOW_BF16};
        tallow_attention_params a = params(&once);
        a.precision = i / 2 % 2 ? TALLOW_PRECISION_FAST : TALLOW_PRECISION_DEFAULT;
        EXPECT(!tallow_problem_init(&p, &a, sizeof a, CHECK_SHAPES), "%s", tallow_last_error());
        const int count = tallow_cuda_plan_kernels(kernels, &p, &other);
        const int32_t precision = a.precision;
        a = params(&s);
        a.precision = precision;
        const cuda_plan plan = plan_of(&a, &gpu);
        bool found = false;
        for (int k = 0; k < count; k++)
            found |= !memcmp(&kernels[k], &plan.kernel, sizeof plan.kernel);
        EXPECT(count <= PLAN_KERNELS && found, "%d x %d queries, %d keys, head_dim %d",
               (int)s.batch, (int)s.seqlen_q, (int)s.seqlen_k, (int)s.head_dim);
    }
}

static void run_splits(void) {
    tallow_attention_params a = params(&decode);
    cuda_plan plan = plan_of(&a, &h200);
    const int64_t rows = plan.tile.block_rows;
    EXPECT(plan.kernel.rows == 1, "few rows");
    EXPECT(plan.splits > 8 && plan.blocks >= 132 / 2, "%d splits leave the GPU idle",
           (int)plan.splits);
    EXPECT(plan.partial_bytes == (size_t)(plan.blocks * rows * 130 * 4 + 255) / 256 * 256,
           "%zu bytes for %d blocks", plan.partial_bytes, (int)plan.blocks);
    a.num_splits = 1;
    EXPECT(plan_of(&a, &h200).splits == 1, "splits off");
    a.num_splits = 7;
    plan = plan_of(&a, &h200);
    EXPECT(plan.splits == 7, "as asked");
    EXPECT(!plan.combines && plan.workspace == plan.partial_bytes + 256,
           "few bytes are combined by the last block, which is counted");
    a.num_splits = 4096;
    plan = plan_of(&a, &h200);
    EXPECT(plan.splits * plan.tile.block_keys == 16384, "no more parts than blocks of keys");
    EXPECT(plan.combines && plan.workspace == plan.partial_bytes, "many bytes by many blocks");
}

/* What one sequence gets follows from nothing but itself. */
static void run_invariance(void) {
    tallow_attention_params a = params(&decode);
    sizes many = decode;
    a.batch_invariant = 1;
    cuda_plan alone = plan_of(&a, &h200);
    many.batch = 64;
    a = params(&many);
    a.batch_invariant = 1;
    cuda_plan among = plan_of(&a, &h200);
    EXPECT(!memcmp(&alone.kernel, &among.kernel, sizeof alone.kernel), "the same kernel");
    EXPECT(alone.splits == among.splits && alone.split_blocks == among.split_blocks,
           "the same parts");
    EXPECT(alone.splits > 1, "few rows are split all the same");
    EXPECT(alone.combines && among.combines, "and combined in one way");
    EXPECT(plan_of(&a, &small).split_blocks == alone.split_blocks, "on every GPU");
}

static void run_sections(void) {
    sizes s = prefill;
    s.heads_kv = 16;
    s.seqlen_q = s.seqlen_k = 16384;
    tallow_attention_params a = params(&s);
    const int64_t heads = s.batch * s.heads_kv;
    cuda_plan plan = plan_of(&a, &h200);
    EXPECT(plan.section >= 1 && plan.section < heads, "%d heads at a time", (int)plan.section);
    EXPECT((heads + plan.section - 1) / plan.section * plan.section - heads < plan.section / 2 + 1,
           "sections of %d are not equal", (int)plan.section);
}

static void run_refusals(void) {
    tallow_attention_params a = params(&prefill);
    problem p;
    cuda_plan plan;
    EXPECT(!tallow_problem_init(&p, &a, sizeof a, CHECK_SHAPES), "%s", tallow_last_error());
    EXPECT(tallow_cuda_plan_make(&plan, &p, &volta) == TALLOW_UNSUPPORTED &&
               strstr(tallow_last_error(), "7.0") && strstr(tallow_last_error(), "7.5"),
           "%s", tallow_last_error());
    EXPECT(tallow_cuda_plan_make(&plan, &p, &turing) == TALLOW_UNSUPPORTED &&
               strstr(tallow_last_error(), "q.dtype = TALLOW_BF16: must be TALLOW_F16"),
           "%s", tallow_last_error());
    p.max_seqlen_q = INT32_MAX;
    EXPECT(tallow_cuda_plan_make(&plan, &p, &h200) == TALLOW_UNSUPPORTED, "rows beyond 31 bits");
}

static void run_rotary(void) {
    tallow_attention_params a = params(&decode);
    a.k_new = a.v_new = tensor(1, 1, 2, 128, TALLOW_BF16);
    a.seqused_k = tensor(1, 0, 0, 0, TALLOW_I32);
    cuda_plan plain = plan_of(&a, &h200);
    EXPECT(plain.tokens == 1 && !plain.rotates_q, "one token is appended");
    a.rotary.rotary_dim = 128;
    cuda_plan turned = plan_of(&a, &h200);
    EXPECT(turned.rotates_q && turned.workspace == plain.workspace + 16 * 128 * 2,
           "q is rotated in the workspace: %zu, %zu", turned.workspace, plain.workspace);
}

static void run_describe(void) {
    tallow_attention_params a = params(&decode);
    cuda_plan plan = plan_of(&a, &h200);
    problem p;
    char text[2048], cut[20];
    EXPECT(!tallow_problem_init(&p, &a, sizeof a, CHECK_SHAPES), "%s", tallow_last_error());
    tallow_cuda_plan_describe(&plan, &p, &h200, text, sizeof text);
    EXPECT(strstr(text, "backend cuda\n") && strstr(text, "\nkernel family=80 dtype=2 ") &&
               strstr(text, "\nworkspace "),
           "%s", text);
    tallow_cuda_plan_describe(&plan, &p, &h200, cut, sizeof cut);
    EXPECT(strlen(cut) == sizeof cut - 1 && !strncmp(cut, text, sizeof cut - 1), "%s", cut);
}

int main(void) {
    run_kernels();
    run_turing();
    run_large();
    run_pairs();
    run_packed();
    run_splits();
    run_invariance();
    run_sections();
    run_refusals();
    run_rotary();
    run_describe();
    return expect_report();
}
