#include "divergence_stages.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const RUN_NAMES[RUNS] = {"reference", "exact", "f32", "bf16"};

const char *const STAGE_NAMES[STAGES] = {"embedding", "q_proj",    "k_proj",  "v_proj", "rotary_q",
                                         "rotary_k",  "attention", "layer_0", "pooled"};

/* What a stage reads, one bit per stage. */
static const unsigned INPUTS[STAGES] = {
    [STAGE_Q_PROJ] = 1u << STAGE_EMBEDDING,
    [STAGE_K_PROJ] = 1u << STAGE_EMBEDDING,
    [STAGE_V_PROJ] = 1u << STAGE_EMBEDDING,
    [STAGE_ROTARY_Q] = 1u << STAGE_Q_PROJ,
    [STAGE_ROTARY_K] = 1u << STAGE_K_PROJ,
    [STAGE_ATTENTION] = 1u << STAGE_ROTARY_Q | 1u << STAGE_ROTARY_K | 1u << STAGE_V_PROJ,
    [STAGE_LAYER_0] = 1u << STAGE_EMBEDDING | 1u << STAGE_ATTENTION,
};

/* Rounding to bf16 moves a tensor by 1.6e-3 of its norm; the cosine distance is half the square. */
static const double ROUNDING_DISTANCE = 1.3e-6;

/* Sharp attention makes ten to twenty times more of the rounding of its inputs, and that is no
 * defect; a tensor stored in 8 bits is already some hundreds of times off. */
const double GUILTY_GROWTH = 100;

stage_difference stage_compare(int64_t rows, int64_t width, const float *a, int64_t a_stride,
                               const float *b, int64_t b_stride) {
    double aa = 0, bb = 0, ab = 0, max_abs = 0;
#pragma omp parallel for reduction(+ : aa, bb, ab) reduction(max : max_abs)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t i = 0; i < width; i++) {
            double x = a[row * a_stride + i], y = b[row * b_stride + i];
            aa += x * x;
            bb += y * y;
            ab += x * y;
            max_abs = fmax(max_abs, fabs(x - y));
        }
    }
    double cosine = aa > 0 && bb > 0 ? ab / sqrt(aa) / sqrt(bb) : aa == bb;
    return (stage_difference){.distance = fmax(1 - cosine, 0), .max_abs = max_abs};
}

/* Keeps two bits of the mantissa, as a tensor stored in 8-bit floats (e5m2) would. */
static void degrade(int64_t rows, int64_t width, int64_t stride, float *x) {
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t i = 0; i < width; i++) {
            uint32_t bits;
            memcpy(&bits, &x[row * stride + i], sizeof bits);
            bits = (bits + (1u << 20)) & ~((1u << 21) - 1);
            memcpy(&x[row * stride + i], &bits, sizeof bits);
        }
    }
}

static bool keep(stage_table *t, stage s, int64_t rows, int64_t width, int64_t stride,
                 const float *output) {
    float *copy = realloc(t->reference[s], (size_t)(rows * width) * sizeof *copy);
    if (!copy) return false;
    t->reference[s] = copy;
    for (int64_t row = 0; row < rows; row++) {
        memcpy(copy + row * width, output + row * stride, (size_t)width * sizeof *copy);
    }
    return true;
}

bool stage_done(stage_table *t, run_kind run, stage s, int64_t rows, int64_t width, int64_t stride,
                float *output) {
    if (run == RUN_REFERENCE) return keep(t, s, rows, width, stride, output);
    if (t->damaged == s) degrade(rows, width, stride, output);
    t->of[run][s] = stage_compare(rows, width, t->reference[s], width, output, stride);
    return true;
}

void stage_table_free(stage_table *t) {
    for (int s = 0; s < STAGES; s++) free(t->reference[s]);
}

double stage_growth(const stage_difference of[STAGES], stage s) {
    double inherited = ROUNDING_DISTANCE;
    for (int input = 0; input < STAGES; input++) {
        if (INPUTS[s] >> input & 1) inherited = fmax(inherited, of[input].distance);
    }
    return of[s].distance / inherited;
}

stage stage_guilty(const stage_difference of[STAGES]) {
    stage guilty = STAGE_EMBEDDING;
    for (int s = STAGE_EMBEDDING; s <= STAGE_LAYER_0; s++) {
        if (stage_growth(of, (stage)s) > stage_growth(of, guilty)) guilty = (stage)s;
    }
    return stage_growth(of, guilty) >= GUILTY_GROWTH ? guilty : STAGE_NONE;
}

const char *stage_verdict(stage s) {
    if (s == STAGE_ROTARY_Q || s == STAGE_ROTARY_K) return "rotary";
    return s == STAGE_NONE ? "none" : STAGE_NAMES[s];
}
