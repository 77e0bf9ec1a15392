/* The decoder of `tallow divergence` on a GPU beside the CPU's: the same table. Its kernels are
 * compiled wherever there is NVRTC; the rest is skipped without a GPU. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_gpu.h"
#include "divergence_model.h"
#include "expect.h"

enum { TOKENS = 1500, PREFIX = 700, HIDDEN = 256, SKIPPED = 77 };

static bool test_compiling(void) {
    static const char *const archs[] = {"sm_80", "sm_86", "sm_90", "compute_80"};
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++) {
        char why[1024];
        void *image = gpu_compile("divergence_cuda.cu", archs[i], why, sizeof why);
        if (!image && strstr(why, "libnvrtc.so is neither")) return false;
        EXPECT(image, "%s: %s", archs[i], why);
        free(image);
    }
    return true;
}

static void ignore(void *context, double operations) { (void)context, (void)operations; }

/* Everything that a run leaves: means of two lengths, and the stages. */
typedef struct {
    float mean[2][RUNS][HIDDEN];
    stage_table stages;
} outcome;

static void run_decoder(outcome *o, const operations *op, geometry g, stage damaged) {
    bool wanted[RUNS] = {true, true, true, true};
    work_meter meter = {ignore, NULL};
    memset(o, 0, sizeof *o);
    o->stages.damaged = damaged;
    decoder *d = decoder_new(op, &g, TOKENS, wanted);
    EXPECT(d, "%s", op->error());
    if (!d) return;
    const char *error = decoder_run(d, 3, TOKENS, &o->stages, &meter);
    EXPECT(!error, "%s", error);
    for (int run = 0; run < RUNS; run++) {
        decoder_pool(d, (run_kind)run, PREFIX, o->mean[0][run]);
        decoder_pool(d, (run_kind)run, TOKENS, o->mean[1][run]);
    }
    decoder_free(d);
}

static double distance(const float *a, const float *b) {
    return stage_compare(1, HIDDEN, a, HIDDEN, b, HIDDEN).distance;
}

/* The references agree to f32 rounding. The variants' roundings to bf16 fall differently where sums
 * do, so distances from the reference agree only as well as two samples of that noise. */
static void test_devices(const operations *cuda, geometry g, stage damaged) {
    static outcome cpu_outcome, cuda_outcome;
    outcome *a = &cpu_outcome, *b = &cuda_outcome;
    run_decoder(a, operations_cpu(), g, damaged);
    run_decoder(b, cuda, g, damaged);
    for (int part = 0; part < 2; part++) {
        double apart = distance(a->mean[part][0], b->mean[part][0]);
        EXPECT(apart < 1e-9, "part %d: the references are %g apart", part, apart);
        for (int run = RUN_EXACT; run < RUNS; run++) {
            double x = distance(a->mean[part][0], a->mean[part][run]);
            double y = distance(b->mean[part][0], b->mean[part][run]);
            EXPECT(fabs(x - y) < 1e-4 + 0.02 * x, "part %d, %s: %g on the CPU, %g on the GPU", part,
                   RUN_NAMES[run], x, y);
        }
    }
    for (int s = STAGE_EMBEDDING; s <= STAGE_LAYER_0; s++) {
        size_t count = (size_t)TOKENS * (size_t)(s == STAGE_EMBEDDING ? HIDDEN : 1);
        bool same = s != STAGE_EMBEDDING ||
                    !memcmp(a->stages.reference[s], b->stages.reference[s], count * sizeof(float));
        EXPECT(same, "embeddings differ");
        for (int run = RUN_EXACT; run < RUNS; run++) {
            double x = a->stages.of[run][s].distance, y = b->stages.of[run][s].distance;
            EXPECT(fabs(x - y) <= 1e-6 + 0.05 * x, "%s of %s: %g on the CPU, %g on the GPU",
                   STAGE_NAMES[s], RUN_NAMES[run], x, y);
        }
    }
    stage_table_free(&a->stages);
    stage_table_free(&b->stages);
}

/* Every weight is the same number on both. */
static void test_weights(const operations *cuda, geometry g) {
    size_t wide = (size_t)geometry_qkv_width(&g), hidden = (size_t)g.hidden;
    size_t counts[] = {hidden * wide, wide, (size_t)(g.heads * g.head_dim) * hidden,
                       2 * hidden * (size_t)g.intermediate, hidden * (size_t)g.intermediate};
    const operations *op[] = {operations_cpu(), cuda};
    float *memory[2][5];
    for (int device = 0; device < 2; device++) {
        float **m = memory[device];
        for (int i = 0; i < 5; i++) m[i] = op[device]->take(counts[i] * sizeof(float));
        op[device]->weights(&g, 1, &(layer_weights){m[0], m[1], m[2], m[3], m[4]});
    }
    for (int i = 0; i < 5; i++) {
        float *host = malloc(counts[i] * sizeof *host);
        if (!host) abort();
        cuda->get(host, memory[1][i], counts[i] * sizeof *host);
        EXPECT(!memcmp(host, memory[0][i], counts[i] * sizeof *host), "matrix %d differs", i);
        free(host);
        op[0]->give(memory[0][i]);
        op[1]->give(memory[1][i]);
    }
}

int main(void) {
    const geometry small = {2, HIDDEN, 2, 1, 64, 512, 1000, 32768, 1e6, 1};
    const geometry window = {2, HIDDEN, 6, 3, 40, 320, 1000, 300, 1e4, 2};
    const char *why;
    bool compiled = test_compiling();
    const operations *cuda = operations_cuda(&why);
    if (!cuda) {
        printf("%s; the GPU's decoder is not run\n", why);
        return expect_failures ? expect_report() : compiled ? 0 : SKIPPED;
    }
    test_weights(cuda, small);
    test_devices(cuda, small, STAGE_NONE);
    test_devices(cuda, window, STAGE_V_PROJ);
    return expect_report();
}
