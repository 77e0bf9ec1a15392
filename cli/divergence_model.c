#include "divergence_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "divergence_math.h"
#include "tallow.h"

enum { MAX_BLOCKS = 24, MLP_ROWS = 1024 }; /* MLP_ROWS: tokens that are in the MLP at once */

static const double NORM_EPSILON = 1e-6;
static const char OUT_OF_MEMORY[] = "out of memory";

struct decoder {
    geometry g;
    bool wanted[RUNS];
    layer_weights w;
    float *hidden[RUNS];                /* (tokens, hidden): the residual stream */
    float *normed;                      /* (tokens, hidden) */
    float *qkv;                         /* (tokens, heads + 2 heads_kv, head_dim) */
    float *attended;                    /* (tokens, heads, head_dim) */
    float *gate_up, *mlp;               /* (MLP_ROWS, 2 intermediate), (MLP_ROWS, intermediate) */
    uint16_t *qkv_bf16, *attended_bf16; /* the same in bf16: what the library reads and writes */
    float *cos_f32, *sin_f32;           /* (tokens, head_dim / 2) */
    uint16_t *cos_bf16, *sin_bf16;
    void *blocks[MAX_BLOCKS]; /* all of the above, to free them */
    int block_count;
};

/* Memory that decoder_free returns; null when there is none left. */
static void *take(decoder *d, int64_t count, size_t size) {
    void *block = calloc((size_t)count, size);
    d->blocks[d->block_count++] = block;
    return block;
}

static bool take_all(decoder *d, int64_t tokens) {
    const geometry *g = &d->g;
    int64_t width = geometry_qkv_width(g), attended = g->heads * g->head_dim,
            half = g->head_dim / 2;
    d->w.qkv = take(d, g->hidden * width, sizeof(float));
    d->w.qkv_bias = take(d, width, sizeof(float));
    d->w.out = take(d, attended * g->hidden, sizeof(float));
    d->w.gate_up = take(d, g->hidden * 2 * g->intermediate, sizeof(float));
    d->w.down = take(d, g->intermediate * g->hidden, sizeof(float));
    for (int run = 0; run < RUNS; run++) {
        if (d->wanted[run]) d->hidden[run] = take(d, tokens * g->hidden, sizeof(float));
    }
    d->normed = take(d, tokens * g->hidden, sizeof(float));
    d->qkv = take(d, tokens * width, sizeof(float));
    d->attended = take(d, tokens * attended, sizeof(float));
    d->gate_up = take(d, MLP_ROWS * 2 * g->intermediate, sizeof(float));
    d->mlp = take(d, MLP_ROWS * g->intermediate, sizeof(float));
    d->qkv_bf16 = take(d, tokens * width, sizeof(uint16_t));
    d->attended_bf16 = take(d, tokens * attended, sizeof(uint16_t));
    d->cos_f32 = take(d, tokens * half, sizeof(float));
    d->sin_f32 = take(d, tokens * half, sizeof(float));
    d->cos_bf16 = take(d, tokens * half, sizeof(uint16_t));
    d->sin_bf16 = take(d, tokens * half, sizeof(uint16_t));
    for (int i = 0; i < d->block_count; i++) {
        if (!d->blocks[i]) return false;
    }
    return true;
}

/* The two ways to lose an angle: the product in f32, and everything in bf16. */
static void fill_tables(decoder *d, int64_t tokens) {
    int64_t half = d->g.head_dim / 2;
#pragma omp parallel for schedule(static)
    for (int64_t position = 0; position < tokens; position++) {
        for (int64_t i = 0; i < half; i++) {
            float inv_freq = (float)pow(d->g.theta, -(double)i / (double)half);
            float angle = (float)position * inv_freq;
            float angle_bf16 = bf16_round(bf16_round((float)position) * bf16_round(inv_freq));
            int64_t at = position * half + i;
            d->cos_f32[at] = cosf(angle);
            d->sin_f32[at] = sinf(angle);
            d->cos_bf16[at] = bf16_from_float(cosf(angle_bf16));
            d->sin_bf16[at] = bf16_from_float(sinf(angle_bf16));
        }
    }
}

decoder *decoder_new(const geometry *g, int64_t max_tokens, const bool wanted[RUNS]) {
    decoder *d = calloc(1, sizeof *d);
    if (!d) return NULL;
    d->g = *g;
    memcpy(d->wanted, wanted, sizeof d->wanted);
    d->wanted[RUN_REFERENCE] = true;
    if (!take_all(d, max_tokens)) {
        decoder_free(d);
        return NULL;
    }
    fill_tables(d, max_tokens);
    return d;
}

void decoder_free(decoder *d) {
    if (!d) return;
    for (int i = 0; i < d->block_count; i++) free(d->blocks[i]);
    free(d);
}

/* What an engine whose activations are bf16 does after every step; the reference keeps f32. */
static void round_activations(run_kind run, int64_t count, float *x) {
    if (run == RUN_REFERENCE) return;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) x[i] = bf16_round(x[i]);
}

static void to_bf16(int64_t count, const float *x, uint16_t *y) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) y[i] = bf16_from_float(x[i]);
}

static void from_bf16(int64_t count, const uint16_t *x, float *y) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) y[i] = bf16_to_float(x[i]);
}

static void add(run_kind run, int64_t count, const float *x, float *sum) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) sum[i] += x[i];
    round_activations(run, count, sum);
}

static void rms_norm(run_kind run, int64_t rows, int64_t width, const float *x, float *y) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        double squares = 0;
        for (int64_t i = 0; i < width; i++)
            squares += (double)x[row * width + i] * x[row * width + i];
        float scale = (float)(1 / sqrt(squares / (double)width + NORM_EPSILON));
        for (int64_t i = 0; i < width; i++) y[row * width + i] = x[row * width + i] * scale;
    }
    round_activations(run, rows * width, y);
}

static void embed(decoder *d, run_kind run, uint64_t document, int64_t tokens) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        weights_embedding(&d->g, weights_token(&d->g, document, t),
                          d->hidden[run] + t * d->g.hidden);
    }
}

/* Angles in f64, formed and applied. Positions are below 2^24 and angles at most that, so f64
 * leaves them 2^-29 exact. */
static void rotate_reference(decoder *d, int64_t tokens) {
    const geometry *g = &d->g;
    int64_t half = g->head_dim / 2, heads = g->heads + g->heads_kv, width = geometry_qkv_width(g);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t i = 0; i < half; i++) {
            double angle = (double)t * pow(g->theta, -(double)i / (double)half);
            double cosine = cos(angle), sine = sin(angle);
            for (int64_t head = 0; head < heads; head++) {
                float *x = d->qkv + t * width + head * g->head_dim + i;
                double a = x[0], b = x[half];
                x[0] = (float)(a * cosine - b * sine);
                x[half] = (float)(b * cosine + a * sine);
            }
        }
    }
}

/* `heads` heads of qkv_bf16 from head `first` on, as (1, tokens, heads, head_dim). */
static tallow_tensor heads_of(decoder *d, int64_t tokens, int64_t first, int64_t heads) {
    int64_t width = geometry_qkv_width(&d->g), head_dim = d->g.head_dim;
    return (tallow_tensor){.data = d->qkv_bf16 + first * head_dim,
                           .shape = {1, tokens, heads, head_dim},
                           .strides = {tokens * width, width, head_dim, 1},
                           .dtype = TALLOW_BF16};
}

static tallow_tensor table_of(decoder *d, int64_t tokens, void *data, tallow_dtype dtype) {
    return (tallow_tensor){
        .data = data, .shape = {tokens, d->g.head_dim / 2}, .dtype = (int32_t)dtype};
}

/* q and k lie side by side, so one call turns both. */
static bool rotate_variant(decoder *d, run_kind run, int64_t tokens) {
    tallow_tensor qk = heads_of(d, tokens, 0, d->g.heads + d->g.heads_kv);
    tallow_rotary_params params = {
        .x = qk, .out = qk, .rotary = {.rotary_dim = d->g.head_dim}, .device = TALLOW_DEVICE_CPU};
    if (run == RUN_EXACT) {
        params.rotary.theta = d->g.theta;
    } else if (run == RUN_F32) {
        params.rotary.cos = table_of(d, tokens, d->cos_f32, TALLOW_F32);
        params.rotary.sin = table_of(d, tokens, d->sin_f32, TALLOW_F32);
    } else {
        params.rotary.cos = table_of(d, tokens, d->cos_bf16, TALLOW_BF16);
        params.rotary.sin = table_of(d, tokens, d->sin_bf16, TALLOW_BF16);
    }
    int64_t count = tokens * geometry_qkv_width(&d->g);
    to_bf16(count, d->qkv, d->qkv_bf16);
    if (tallow_rotary(&params, sizeof params) != TALLOW_OK) return false;
    from_bf16(count, d->qkv_bf16, d->qkv);
    return true;
}

static const char *rotate(decoder *d, run_kind run, int64_t tokens) {
    if (run != RUN_REFERENCE) return rotate_variant(d, run, tokens) ? NULL : tallow_last_error();
    rotate_reference(d, tokens);
    return NULL;
}

static bool attend_reference(decoder *d, int64_t tokens) {
    const geometry *g = &d->g;
    const float *k = d->qkv + g->heads * g->head_dim, *v = k + g->heads_kv * g->head_dim;
    attention_f64 a = {.tokens = tokens,
                       .heads = g->heads,
                       .heads_kv = g->heads_kv,
                       .head_dim = g->head_dim,
                       .row = geometry_qkv_width(g),
                       .window_left = g->window - 1,
                       .q = d->qkv,
                       .k = k,
                       .v = v,
                       .out = d->attended};
    return math_attention(&a);
}

static bool attend_variant(decoder *d, int64_t tokens) {
    const geometry *g = &d->g;
    tallow_attention_params params = {
        .q = heads_of(d, tokens, 0, g->heads),
        .k = heads_of(d, tokens, g->heads, g->heads_kv),
        .v = heads_of(d, tokens, g->heads + g->heads_kv, g->heads_kv),
        .out = {.data = d->attended_bf16,
                .shape = {1, tokens, g->heads, g->head_dim},
                .dtype = TALLOW_BF16},
        .mask = TALLOW_MASK_WINDOW,
        .window_left = g->window - 1,
        .window_right = 0,
        .device = TALLOW_DEVICE_CPU,
    };
    to_bf16(tokens * geometry_qkv_width(g), d->qkv, d->qkv_bf16);
    if (tallow_attention(&params, sizeof params) != TALLOW_OK) return false;
    from_bf16(tokens * g->heads * g->head_dim, d->attended_bf16, d->attended);
    return true;
}

static const char *attend(decoder *d, run_kind run, int64_t tokens) {
    if (run == RUN_REFERENCE) return attend_reference(d, tokens) ? NULL : OUT_OF_MEMORY;
    return attend_variant(d, tokens) ? NULL : tallow_last_error();
}

/* Shows a part of qkv to the stage table: `heads` heads from head `first` on. */
static bool qkv_done(decoder *d, stage_table *stages, run_kind run, stage s, int64_t tokens,
                     int64_t first, int64_t heads) {
    return stage_done(stages, run, s, tokens, heads * d->g.head_dim, geometry_qkv_width(&d->g),
                      d->qkv + first * d->g.head_dim);
}

/* norm, projections, rotary, attention, output projection, residual */
static const char *attention_block(decoder *d, run_kind run, int64_t tokens, stage_table *stages) {
    const geometry *g = &d->g;
    int64_t width = geometry_qkv_width(g), heads = g->heads, heads_kv = g->heads_kv;
    const char *error;
    rms_norm(run, tokens, g->hidden, d->hidden[run], d->normed);
    math_product(tokens, g->hidden, width, d->normed, d->w.qkv, d->w.qkv_bias, d->qkv);
    round_activations(run, tokens * width, d->qkv);
    if (stages && !(qkv_done(d, stages, run, STAGE_Q_PROJ, tokens, 0, heads) &&
                    qkv_done(d, stages, run, STAGE_K_PROJ, tokens, heads, heads_kv) &&
                    qkv_done(d, stages, run, STAGE_V_PROJ, tokens, heads + heads_kv, heads_kv))) {
        return OUT_OF_MEMORY;
    }
    if ((error = rotate(d, run, tokens))) return error;
    if (stages && !(qkv_done(d, stages, run, STAGE_ROTARY_Q, tokens, 0, heads) &&
                    qkv_done(d, stages, run, STAGE_ROTARY_K, tokens, heads, heads_kv))) {
        return OUT_OF_MEMORY;
    }
    if ((error = attend(d, run, tokens))) return error;
    int64_t attended = heads * g->head_dim;
    if (stages &&
        !stage_done(stages, run, STAGE_ATTENTION, tokens, attended, attended, d->attended)) {
        return OUT_OF_MEMORY;
    }
    math_product(tokens, attended, g->hidden, d->attended, d->w.out, NULL, d->normed);
    round_activations(run, tokens * g->hidden, d->normed);
    add(run, tokens * g->hidden, d->normed, d->hidden[run]);
    return NULL;
}

/* mlp = silu(gate) * up */
static void swiglu(run_kind run, int64_t rows, int64_t width, const float *gate_up, float *mlp) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const float *gate = gate_up + row * 2 * width, *up = gate + width;
        for (int64_t i = 0; i < width; i++) {
            float silu = gate[i] / (1 + expf(-gate[i]));
            mlp[row * width + i] = (run == RUN_REFERENCE ? silu : bf16_round(silu)) * up[i];
        }
    }
    round_activations(run, rows * width, mlp);
}

/* norm, SwiGLU, residual */
static void mlp_block(decoder *d, run_kind run, int64_t tokens) {
    const geometry *g = &d->g;
    for (int64_t first = 0; first < tokens; first += MLP_ROWS) {
        int64_t rows = tokens - first < MLP_ROWS ? tokens - first : MLP_ROWS;
        float *hidden = d->hidden[run] + first * g->hidden;
        rms_norm(run, rows, g->hidden, hidden, d->normed);
        math_product(rows, g->hidden, 2 * g->intermediate, d->normed, d->w.gate_up, NULL,
                     d->gate_up);
        round_activations(run, rows * 2 * g->intermediate, d->gate_up);
        swiglu(run, rows, g->intermediate, d->gate_up, d->mlp);
        math_product(rows, g->intermediate, g->hidden, d->mlp, d->w.down, NULL, d->normed);
        round_activations(run, rows * g->hidden, d->normed);
        add(run, rows * g->hidden, d->normed, hidden);
    }
}

/* Operations of one layer of one run. The reference's f64 costs about twice. */
static double layer_operations(const decoder *d, run_kind run, int64_t tokens) {
    const geometry *g = &d->g;
    double n = (double)tokens, attended = (double)(g->heads * g->head_dim);
    double seen = n < (double)g->window ? n / 2 : (double)g->window;
    double weights = (double)g->hidden *
                     ((double)geometry_qkv_width(g) + attended + 3 * (double)g->intermediate);
    return 2 * n * weights + (run == RUN_REFERENCE ? 8 : 4) * n * seen * attended;
}

double decoder_operations(const decoder *d, int64_t tokens) {
    double sum = 0;
    for (int run = 0; run < RUNS; run++) {
        if (d->wanted[run]) sum += layer_operations(d, (run_kind)run, tokens);
    }
    return sum * (double)d->g.layers;
}

static const char *run_layer(decoder *d, run_kind run, int64_t tokens, stage_table *stages) {
    const char *error = attention_block(d, run, tokens, stages);
    if (error) return error;
    mlp_block(d, run, tokens);
    int64_t width = d->g.hidden;
    if (stages && !stage_done(stages, run, STAGE_LAYER_0, tokens, width, width, d->hidden[run])) {
        return OUT_OF_MEMORY;
    }
    return NULL;
}

const char *decoder_run(decoder *d, uint64_t document, int64_t tokens, stage_table *stages,
                        const work_meter *meter) {
    int64_t width = d->g.hidden;
    for (int run = 0; run < RUNS; run++) {
        if (!d->wanted[run]) continue;
        embed(d, (run_kind)run, document, tokens);
        if (stages && !stage_done(stages, (run_kind)run, STAGE_EMBEDDING, tokens, width, width,
                                  d->hidden[run])) {
            return OUT_OF_MEMORY;
        }
    }
    for (int64_t layer = 0; layer < d->g.layers; layer++) {
        weights_layer(&d->g, layer, &d->w);
        for (int run = 0; run < RUNS; run++) {
            if (!d->wanted[run]) continue;
            const char *error = run_layer(d, (run_kind)run, tokens, layer == 0 ? stages : NULL);
            if (error) return error;
            meter->advance(meter->context, layer_operations(d, (run_kind)run, tokens));
        }
    }
    for (int run = 0; run < RUNS; run++) {
        if (d->wanted[run]) rms_norm((run_kind)run, tokens, width, d->hidden[run], d->hidden[run]);
    }
    return NULL;
}

void decoder_pool(const decoder *d, run_kind run, int64_t tokens, float *mean) {
    enum { COLUMNS = 64 };
    int64_t width = d->g.hidden;
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < width; first += COLUMNS) {
        int64_t columns = width - first < COLUMNS ? width - first : COLUMNS;
        double sums[COLUMNS] = {0};
        for (int64_t t = 0; t < tokens; t++) {
            const float *row = d->hidden[run] + t * width + first;
            for (int64_t i = 0; i < columns; i++) sums[i] += row[i];
        }
        for (int64_t i = 0; i < columns; i++) mean[first + i] = (float)(sums[i] / (double)tokens);
    }
}
