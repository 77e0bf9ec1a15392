/* The parts of `tallow divergence`: its arithmetic against plain loops, its weights, its bands, and
 * the rule that names a stage. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "divergence_bands.h"
#include "divergence_math.h"
#include "divergence_model.h"
#include "expect.h"

/* Uniform in [-1, 1). */
static float noise(uint64_t stream, int64_t i) {
    return (float)(2 * weights_uniform(7, stream, (uint64_t)i) - 1);
}

static void fill(float *x, int64_t count, uint64_t stream) {
    for (int64_t i = 0; i < count; i++) x[i] = noise(stream, i);
}

static void test_bf16(void) {
    static const struct {
        float x, rounded;
    } CASES[] = {{1, 1},
                 {255, 255},
                 {257, 256},
                 {259, 260},
                 {-257, -256},
                 {260.5f, 260},
                 {0x1p-133f, 0x1p-133f},
                 {0, 0},
                 {3.4e38f, INFINITY},
                 {-INFINITY, -INFINITY}};
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        float y = bf16_round(CASES[i].x);
        EXPECT(y == CASES[i].rounded, "%g gave %g", CASES[i].x, y);
    }
}

/* Sizes on both sides of every block of the product. */
static void test_product(int64_t rows, int64_t k, int64_t n, bool biased) {
    float *x = malloc((size_t)(rows * k) * 4), *w = malloc((size_t)(k * n) * 4);
    float *bias = malloc((size_t)n * 4), *y = malloc((size_t)(rows * n) * 4);
    fill(x, rows * k, 1), fill(w, k * n, 2), fill(bias, n, 3);
    math_product(rows, k, n, x, w, biased ? bias : NULL, y);
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < n; j++) {
            double sum = biased ? bias[j] : 0, size = fabs(sum);
            for (int64_t t = 0; t < k; t++) {
                double term = (double)x[i * k + t] * w[t * n + j];
                sum += term;
                size += fabs(term);
            }
            EXPECT(fabs(y[i * n + j] - sum) <= 1e-6 * size, "(%d, %d, %d) at %d, %d: %g, wanted %g",
                   (int)rows, (int)k, (int)n, (int)i, (int)j, y[i * n + j], sum);
        }
    }
    free(x), free(w), free(bias), free(y);
}

/* One row of one head in plain f64 loops; `scores` holds a number per token. */
static void plain_attention(const attention_f64 *a, int64_t i, int64_t head, double *scores,
                            double *out) {
    int64_t d = a->head_dim, head_kv = head / (a->heads / a->heads_kv);
    int64_t start = i > a->window_left ? i - a->window_left : 0;
    double max = -INFINITY, sum = 0;
    for (int64_t j = start; j <= i; j++) {
        scores[j] = 0;
        for (int64_t c = 0; c < d; c++) {
            scores[j] += (double)a->q[i * a->row + head * d + c] *
                         a->k[j * a->row + head_kv * d + c] / sqrt((double)d);
        }
        max = fmax(max, scores[j]);
    }
    memset(out, 0, (size_t)d * sizeof *out);
    for (int64_t j = start; j <= i; j++) {
        double weight = exp(scores[j] - max);
        sum += weight;
        for (int64_t c = 0; c < d; c++) out[c] += weight * a->v[j * a->row + head_kv * d + c];
    }
    for (int64_t c = 0; c < d; c++) out[c] /= sum;
}

/* `size` sharpens the scores. */
static void test_attention(int64_t tokens, int64_t heads, int64_t heads_kv, int64_t d,
                           int64_t window_left, float size) {
    int64_t row = (heads + 2 * heads_kv) * d;
    float *qkv = malloc((size_t)(tokens * row) * 4),
          *out = malloc((size_t)(tokens * heads * d) * 4);
    double *scores = malloc((size_t)tokens * 8), *wanted = malloc((size_t)d * 8), worst = 0;
    fill(qkv, tokens * row, 4);
    for (int64_t i = 0; i < tokens * row; i++) qkv[i] *= size;
    attention_f64 a = {tokens,
                       heads,
                       heads_kv,
                       d,
                       row,
                       window_left,
                       qkv,
                       qkv + heads * d,
                       qkv + (heads + heads_kv) * d,
                       out};
    EXPECT(math_attention(&a), "out of memory");
    for (int64_t i = 0; i < tokens; i++) {
        for (int64_t head = 0; head < heads; head++) {
            plain_attention(&a, i, head, scores, wanted);
            for (int64_t c = 0; c < d; c++) {
                worst = fmax(worst, fabs(out[(i * heads + head) * d + c] - wanted[c]));
            }
        }
    }
    /* All that is left is the rounding of the output to f32. */
    EXPECT(worst <= 6e-8 * size, "%d tokens, window %d: off by %g", (int)tokens, (int)window_left,
           worst);
    free(qkv), free(out), free(scores), free(wanted);
}

/* What the biases of query head `head` score at a distance, turned as rotary turns them. */
static double bias_score(const geometry *g, const float *bias, int64_t head, double distance) {
    int64_t half = g->head_dim / 2, head_kv = head / (g->heads / g->heads_kv);
    const float *q = bias + head * g->head_dim, *k = bias + (g->heads + head_kv) * g->head_dim;
    double sum = 0;
    for (int64_t i = 0; i < half; i++) {
        double angle = distance * pow(g->theta, -(double)i / (double)half);
        double dot = q[i] * k[i] + q[i + half] * k[i + half];
        double cross = q[i + half] * k[i] - q[i] * k[i + half];
        sum += dot * cos(angle) - cross * sin(angle);
    }
    return sum / sqrt((double)g->head_dim);
}

/* Heads look around them: as high at distance 0 everywhere, and narrow heads fall off sooner. */
static void test_biases(geometry g) {
    float *qkv = malloc((size_t)(g.hidden * geometry_qkv_width(&g)) * 4);
    float *bias = malloc((size_t)geometry_qkv_width(&g) * 4);
    float *out = malloc((size_t)(g.heads * g.head_dim * g.hidden) * 4);
    float *mlp = malloc((size_t)(3 * g.hidden * g.intermediate) * 4);
    layer_weights w = {qkv, bias, out, mlp, mlp + 2 * g.hidden * g.intermediate};
    for (int64_t layer = 0; layer < g.layers; layer++) {
        double wider = 0;
        weights_layer(&g, layer, &w);
        for (int64_t head = 0; head < g.heads; head++) {
            double top = bias_score(&g, bias, head, 0), width = 1;
            while (width < 1e5 && bias_score(&g, bias, head, width) > top / 2) width *= 1.1;
            EXPECT(fabs(top - 30) < 0.5, "layer %d head %d: %g", (int)layer, (int)head, top);
            EXPECT(width > wider && width < 2000, "layer %d head %d: width %g after %g", (int)layer,
                   (int)head, width, wider);
            wider = width;
        }
    }
    free(qkv), free(bias), free(out), free(mlp);
}

static void add_operations(void *context, double operations) { *(double *)context += operations; }

/* The first tokens of a document are a document: the same mean, whether the rest was run or not. */
static void test_prefix(void) {
    enum { TOKENS = 40, PREFIX = 25, HIDDEN = 48 };
    geometry g = {2, HIDDEN, 4, 2, 16, 32, 100, 9, 1e4, 3};
    bool wanted[RUNS] = {[RUN_EXACT] = true, [RUN_BF16] = true};
    decoder *d = decoder_new(operations_cpu(), &g, TOKENS, wanted);
    float whole[RUNS][HIDDEN], cut[RUNS][HIDDEN], first[HIDDEN];
    double done = 0, planned = decoder_operations(d, TOKENS) + decoder_operations(d, PREFIX);
    work_meter meter = {add_operations, &done};
    const char *error = decoder_run(d, 5, TOKENS, NULL, &meter);
    EXPECT(!error, "%s", error);
    for (int run = 0; run < RUNS; run++) {
        if (run != RUN_F32) decoder_pool(d, (run_kind)run, PREFIX, whole[run]);
    }
    error = decoder_run(d, 5, PREFIX, NULL, &meter);
    EXPECT(!error, "%s", error);
    EXPECT(fabs(done / planned - 1) < 1e-9, "%g of %g operations", done, planned);
    for (int run = 0; run < RUNS; run++) {
        if (run == RUN_F32) continue;
        decoder_pool(d, (run_kind)run, PREFIX, cut[run]);
        double distance = stage_compare(1, HIDDEN, whole[run], 0, cut[run], 0).distance;
        EXPECT(distance < (run == RUN_REFERENCE ? 1e-12 : 1e-4), "%s: %g", RUN_NAMES[run],
               distance);
    }
    /* A token's final state has rms 1; the mean of several, which differ, less. */
    decoder_pool(d, RUN_REFERENCE, 1, first);
    double one = 0, many = 0;
    for (int i = 0; i < HIDDEN; i++) {
        one += first[i] * first[i] / HIDDEN;
        many += cut[RUN_REFERENCE][i] * cut[RUN_REFERENCE][i] / HIDDEN;
    }
    EXPECT(fabs(one - 1) < 1e-4 && many > 0.01 && many < 0.7, "%g, %g", one, many);
    decoder_free(d);
}

static void test_bands(void) {
    static const int64_t EDGES[] = {0, 200, 2000, 4000, 20000, 30000};
    static const int64_t SAMPLES[] = {16, 16, 8, 3, 3};
    band_set set;
    EXPECT(bands_init(&set, 6, EDGES, 25000, 16, 3, 1), "out of memory");
    EXPECT(set.count == 5 && set.band[4].to == 25000, "%d bands", set.count);
    EXPECT(bands_documents(&set) == 16, "%d", (int)bands_documents(&set));
    for (int i = 0; i < set.count; i++) {
        const band *b = &set.band[i];
        EXPECT(b->samples == SAMPLES[i], "band %d: %d samples", i, (int)b->samples);
        for (int64_t s = 0; s < b->samples; s++) {
            int64_t tokens = band_tokens(&set, i, s);
            EXPECT(tokens > b->from && tokens <= b->to, "band %d: %d tokens", i, (int)tokens);
            EXPECT(document_tokens(&set, s) >= tokens, "document %d", (int)s);
        }
    }
    EXPECT(document_tokens(&set, 2) > 20000 && document_tokens(&set, 3) <= 4000, "documents");
    bands_free(&set);
    EXPECT(bands_init(&set, 3, EDGES, 150, 2, 3, 1), "out of memory");
    EXPECT(set.count == 1 && set.band[0].to == 150 && set.band[0].samples == 2, "cut");
    bands_free(&set);
}

/* The P95 is reached by 95 %: of 40 samples all but two, of 16 every one. */
static void test_summary(void) {
    double cosine[RUNS * 40];
    for (int i = 0; i < RUNS * 40; i++) cosine[i] = 1 - 0.001 * (i * 7 % 40);
    cosine_summary s = band_summary(&(band){.samples = 40, .cosine = cosine}, RUN_EXACT);
    EXPECT(fabs(s.p95 - 0.963) < 1e-12 && fabs(s.min - 0.961) < 1e-12, "%g, %g", s.p95, s.min);
    EXPECT(fabs(s.mean - (1 - 0.001 * 19.5)) < 1e-12, "%g", s.mean);
    s = band_summary(&(band){.samples = 16, .cosine = cosine}, RUN_REFERENCE);
    EXPECT(s.p95 == s.min, "%g, %g", s.p95, s.min);
}

static void test_guilty(void) {
    static const struct {
        double distance[STAGES];
        const char *verdict;
    } CASES[] = {
        {{0, 2e-6, 2e-6, 3e-6, 3e-6, 3e-6, 5e-5, 6e-5, 1e-5}, "none"},
        {{0, 2e-6, 2e-6, 3e-6, 4e-1, 4e-1, 9e-1, 9e-1, 2e-1}, "rotary"},
        {{0, 2e-6, 2e-6, 3e-6, 3e-6, 2e-3, 3e-3, 3e-3, 2e-1}, "rotary"},
        {{0, 2e-6, 2e-6, 2e-3, 3e-6, 3e-6, 9e-3, 9e-3, 1e-2}, "v_proj"},
        {{0, 2e-6, 2e-6, 3e-6, 3e-6, 3e-6, 2e-3, 9e-3, 9e-2}, "attention"},
        {{1e-3, 2e-3, 2e-3, 2e-3, 2e-3, 2e-3, 2e-2, 2e-2, 1e-1}, "embedding"},
        {{0, 2e-6, 2e-6, 3e-6, 3e-6, 3e-6, 5e-5, 1e-1, 1e-1}, "layer_0"},
        {{0, 2e-6, 2e-6, 3e-6, 3e-6, 3e-6, 5e-5, 6e-5, 9e-1}, "none"}, /* a later layer */
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        stage_difference of[STAGES];
        for (int s = 0; s < STAGES; s++) of[s].distance = CASES[i].distance[s];
        const char *verdict = stage_verdict(stage_guilty(of));
        EXPECT(strcmp(verdict, CASES[i].verdict) == 0, "%d: %s, wanted %s", (int)i, verdict,
               CASES[i].verdict);
    }
}

static void test_stages(void) {
    float a[] = {3, 4, 9, 9}, b[] = {4, 3, 8, 8};
    stage_difference one = stage_compare(1, 2, a, 4, b, 4), same = stage_compare(2, 2, a, 2, a, 2);
    EXPECT(fabs(one.distance - 0.04) < 1e-12 && one.max_abs == 1, "%g", one.distance);
    EXPECT(same.distance < 1e-15 && same.max_abs == 0, "%g", same.distance);

    stage_table t = {.damaged = STAGE_V_PROJ};
    float x[] = {1.125f, 1.3f, -3.4f, 0};
    EXPECT(stage_done(&t, RUN_REFERENCE, STAGE_V_PROJ, 2, 1, 2, x), "out of memory");
    EXPECT(stage_done(&t, RUN_EXACT, STAGE_V_PROJ, 2, 1, 2, x), "no memory needed");
    EXPECT(x[0] == 1.25f && x[1] == 1.3f && x[2] == -3.5f, "%g %g %g", x[0], x[1], x[2]);
    EXPECT(t.of[RUN_EXACT][STAGE_V_PROJ].max_abs == 0.125, "degraded");
    stage_table_free(&t);
}

int main(void) {
    test_bf16();
    test_product(1, 1, 1, true);
    test_product(131, 517, 37, true);
    test_product(128, 512, 16, false);
    test_attention(1, 1, 1, 8, 10, 1);
    test_attention(150, 4, 2, 16, 1 << 20, 3);
    test_attention(200, 2, 1, 8, 70, 1);
    test_attention(130, 1, 1, 24, 0, 30);
    test_biases((geometry){2, 32, 2, 1, 64, 16, 100, 64, 1e6, 1});
    test_biases((geometry){3, 32, 8, 2, 128, 16, 100, 64, 1e6, 5});
    test_prefix();
    test_bands();
    test_summary();
    test_guilty();
    test_stages();
    return expect_report();
}
