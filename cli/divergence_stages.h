/* Where in the decoder a run leaves the reference: cosine and largest difference stage by stage,
 * and which stage is to blame. */
#ifndef DIVERGENCE_STAGES_H
#define DIVERGENCE_STAGES_H

#include <stdbool.h>
#include <stdint.h>

/* The reference has f32 activations, exact angles and f64 attention; the variants have bf16
 * activations, Tallow's attention and Tallow's rotary with angles of three makes. */
typedef enum {
    RUN_REFERENCE,
    RUN_EXACT, /* from theta, exact */
    RUN_F32,   /* table in f32 of the f32 product position * inv_freq */
    RUN_BF16,  /* table in bf16: position, inv_freq, their product, cos and sin */
    RUNS
} run_kind;

extern const char *const RUN_NAMES[RUNS];

typedef enum {
    STAGE_EMBEDDING,
    STAGE_Q_PROJ,
    STAGE_K_PROJ,
    STAGE_V_PROJ,
    STAGE_ROTARY_Q,
    STAGE_ROTARY_K,
    STAGE_ATTENTION,
    STAGE_LAYER_0,
    STAGE_POOLED,
    STAGES,
    STAGE_NONE = STAGES
} stage;

extern const char *const STAGE_NAMES[STAGES];

typedef struct {
    double distance; /* 1 - cosine */
    double max_abs;
} stage_difference;

typedef struct {
    stage_difference of[RUNS][STAGES];
    float *reference[STAGES]; /* the reference's tensors, contiguous */
    stage damaged;            /* its output is degraded in every run but the reference */
} stage_table;

/* A stage of a run is done: its output is `rows` rows of `width`, `stride` apart. Degrades the
 * output if asked to, then keeps it (reference) or compares it. False: out of memory. */
bool stage_done(stage_table *t, run_kind run, stage s, int64_t rows, int64_t width, int64_t stride,
                float *output);
void stage_table_free(stage_table *t);

/* 1 - cosine and the largest difference of two sets of rows. */
stage_difference stage_compare(int64_t rows, int64_t width, const float *a, int64_t a_stride,
                               const float *b, int64_t b_stride);

/* By what factor a stage's output is further from the reference than the worst of its inputs. An
 * input that is off by less than one rounding to bf16 counts as that much. */
double stage_growth(const stage_difference of[STAGES], stage s);

/* The stage of largest growth from the embedding to the first layer; STAGE_NONE when none reaches
 * GUILTY_GROWTH. */
stage stage_guilty(const stage_difference of[STAGES]);
extern const double GUILTY_GROWTH;

/* What a stage is called in a verdict: both rotary stages are "rotary". */
const char *stage_verdict(stage s);

#endif
