#include "divergence_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BLOCKS = 24 };

static const char OUT_OF_MEMORY[] = "out of memory";

/* Memory is the device's, so only the operations may look into it. */
struct decoder {
    const operations *op;
    geometry g;
    bool wanted[RUNS];
    layer_weights w;
    float *hidden[RUNS];                /* (tokens, hidden): the residual stream */
    float *normed;                      /* (tokens, hidden) */
    float *qkv;                         /* (tokens, heads + 2 heads_kv, head_dim) */
    float *attended;                    /* (tokens, heads, head_dim) */
    float *gate_up, *mlp;               /* (mlp_rows, 2 intermediate), (mlp_rows, intermediate) */
    uint16_t *qkv_bf16, *attended_bf16; /* the same in bf16: what the library reads and writes */
    float *cos_f32, *sin_f32;           /* (tokens, head_dim / 2) */
    uint16_t *cos_bf16, *sin_bf16;
    void *blocks[MAX_BLOCKS]; /* all of the above, to free them */
    int block_count;
};

/* Memory that decoder_free returns; null when there is none left. */
static void *take(decoder *d, int64_t count, size_t size) {
    void *block = d->op->take((size_t)count * size);
    d->blocks[d->block_count++] = block;
    return block;
}

/* Tokens that are in the MLP at once. */
static int64_t mlp_rows_of(const decoder *d, int64_t tokens) {
    return tokens < d->op->mlp_rows ? tokens : d->op->mlp_rows;
}

static bool take_all(decoder *d, int64_t tokens) {
    const geometry *g = &d->g;
    int64_t width = geometry_qkv_width(g), attended = g->heads * g->head_dim,
            half = g->head_dim / 2, mlp_rows = mlp_rows_of(d, tokens);
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
    d->gate_up = take(d, mlp_rows * 2 * g->intermediate, sizeof(float));
    d->mlp = take(d, mlp_rows * g->intermediate, sizeof(float));
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
static void fill_tables(const geometry *g, int64_t tokens, float *f32[2], uint16_t *bf16[2]) {
    int64_t half = g->head_dim / 2;
#pragma omp parallel for schedule(static)
    for (int64_t position = 0; position < tokens; position++) {
        for (int64_t i = 0; i < half; i++) {
            float inv_freq = (float)pow(g->theta, -(double)i / (double)half);
            float angle = (float)position * inv_freq;
            float angle_bf16 = bf16_round(bf16_round((float)position) * bf16_round(inv_freq));
            int64_t at = position * half + i;
            f32[0][at] = cosf(angle);
            f32[1][at] = sinf(angle);
            bf16[0][at] = bf16_from_float(cosf(angle_bf16));
            bf16[1][at] = bf16_from_float(sinf(angle_bf16));
        }
    }
}

static bool put_tables(decoder *d, int64_t tokens) {
    size_t count = (size_t)(tokens * d->g.head_dim / 2);
    float *f32 = malloc(2 * count * sizeof *f32);
    uint16_t *bf16 = malloc(2 * count * sizeof *bf16);
    bool ready = f32 && bf16;
    if (ready) {
        fill_tables(&d->g, tokens, (float *[]){f32, f32 + count},
                    (uint16_t *[]){bf16, bf16 + count});
        d->op->put(d->cos_f32, f32, count * sizeof *f32);
        d->op->put(d->sin_f32, f32 + count, count * sizeof *f32);
        d->op->put(d->cos_bf16, bf16, count * sizeof *bf16);
        d->op->put(d->sin_bf16, bf16 + count, count * sizeof *bf16);
    }
    free(f32);
    free(bf16);
    return ready;
}

decoder *decoder_new(const operations *op, const geometry *g, int64_t max_tokens,
                     const bool wanted[RUNS]) {
    decoder *d = calloc(1, sizeof *d);
    if (!d) return NULL;
    d->op = op;
    d->g = *g;
    memcpy(d->wanted, wanted, sizeof d->wanted);
    d->wanted[RUN_REFERENCE] = true;
    if (take_all(d, max_tokens) && put_tables(d, max_tokens)) return d;
    decoder_free(d);
    return NULL;
}

void decoder_free(decoder *d) {
    if (!d) return;
    for (int i = 0; i < d->block_count; i++) d->op->give(d->blocks[i]);
    free(d);
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
    tallow_rotary_params params = {.x = qk,
                                   .out = qk,
                                   .rotary = {.rotary_dim = d->g.head_dim},
                                   .device = (int32_t)d->op->device};
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
    d->op->to_bf16(count, d->qkv, d->qkv_bf16);
    if (tallow_rotary(&params, sizeof params) != TALLOW_OK) return false;
    d->op->from_bf16(count, d->qkv_bf16, d->qkv);
    return true;
}

static const char *rotate(decoder *d, run_kind run, int64_t tokens) {
    if (run != RUN_REFERENCE) return rotate_variant(d, run, tokens) ? NULL : tallow_last_error();
    d->op->rotate(&d->g, tokens, d->qkv);
    return NULL;
}

static void attend_reference(decoder *d, int64_t tokens) {
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
    d->op->attend(&a);
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
        .device = (int32_t)d->op->device,
    };
    size_t bytes;
    if (tallow_attention_workspace(&params, sizeof params, &bytes) != TALLOW_OK) return false;
    params.workspace = d->op->scratch(bytes);
    params.workspace_size = params.workspace ? bytes : 0;
    d->op->to_bf16(tokens * geometry_qkv_width(g), d->qkv, d->qkv_bf16);
    if (tallow_attention(&params, sizeof params) != TALLOW_OK) return false;
    d->op->from_bf16(tokens * g->heads * g->head_dim, d->attended_bf16, d->attended);
    return true;
}

static const char *attend(decoder *d, run_kind run, int64_t tokens) {
    if (run != RUN_REFERENCE) return attend_variant(d, tokens) ? NULL : tallow_last_error();
    attend_reference(d, tokens);
    return NULL;
}

/* Shows the output of a stage to the table, and puts it back if the table has degraded it. Without
 * a table there is nothing to do. */
static bool show(decoder *d, stage_table *stages, run_kind run, stage s, int64_t rows,
                 int64_t width, int64_t stride, float *output) {
    if (!stages) return true;
    size_t size = (size_t)((rows - 1) * stride + width) * sizeof(float);
    float *host = malloc(size);
    if (!host) return false;
    d->op->get(host, output, size);
    bool kept = stage_done(stages, run, s, rows, width, stride, host);
    if (stages->damaged == s && run != RUN_REFERENCE) d->op->put(output, host, size);
    free(host);
    return kept;
}

/* The same of a part of qkv: `heads` heads from head `first` on. */
static bool show_qkv(decoder *d, stage_table *stages, run_kind run, stage s, int64_t tokens,
                     int64_t first, int64_t heads) {
    return show(d, stages, run, s, tokens, heads * d->g.head_dim, geometry_qkv_width(&d->g),
                d->qkv + first * d->g.head_dim);
}

/* norm, projections, rotary, attention, output projection, residual */
static const char *attention_block(decoder *d, run_kind run, int64_t tokens, stage_table *stages) {
    const geometry *g = &d->g;
    const operations *op = d->op;
    const bool round = run != RUN_REFERENCE;
    int64_t width = geometry_qkv_width(g), heads = g->heads, heads_kv = g->heads_kv;
    int64_t attended = heads * g->head_dim;
    const char *error;
    op->rms_norm(round, tokens, g->hidden, d->hidden[run], d->normed);
    op->project(
        &(projection){round, tokens, g->hidden, width, d->normed, d->w.qkv, d->w.qkv_bias, d->qkv});
    if (!show_qkv(d, stages, run, STAGE_Q_PROJ, tokens, 0, heads) ||
        !show_qkv(d, stages, run, STAGE_K_PROJ, tokens, heads, heads_kv) ||
        !show_qkv(d, stages, run, STAGE_V_PROJ, tokens, heads + heads_kv, heads_kv))
        return OUT_OF_MEMORY;
    if ((error = rotate(d, run, tokens))) return error;
    if (!show_qkv(d, stages, run, STAGE_ROTARY_Q, tokens, 0, heads) ||
        !show_qkv(d, stages, run, STAGE_ROTARY_K, tokens, heads, heads_kv))
        return OUT_OF_MEMORY;
    if ((error = attend(d, run, tokens))) return error;
    if (!show(d, stages, run, STAGE_ATTENTION, tokens, attended, attended, d->attended))
        return OUT_OF_MEMORY;
    op->project(
        &(projection){round, tokens, attended, g->hidden, d->attended, d->w.out, NULL, d->normed});
    op->add(round, tokens * g->hidden, d->normed, d->hidden[run]);
    return NULL;
}

/* norm, SwiGLU, residual */
static void mlp_block(decoder *d, run_kind run, int64_t tokens) {
    const geometry *g = &d->g;
    const operations *op = d->op;
    const bool round = run != RUN_REFERENCE;
    const int64_t wide = g->intermediate, step = mlp_rows_of(d, tokens);
    for (int64_t first = 0; first < tokens; first += step) {
        int64_t rows = tokens - first < step ? tokens - first : step;
        float *hidden = d->hidden[run] + first * g->hidden;
        op->rms_norm(round, rows, g->hidden, hidden, d->normed);
        op->project(&(projection){round, rows, g->hidden, 2 * wide, d->normed, d->w.gate_up, NULL,
                                  d->gate_up});
        op->swiglu(round, rows, wide, d->gate_up, d->mlp);
        op->project(
            &(projection){round, rows, wide, g->hidden, d->mlp, d->w.down, NULL, d->normed});
        op->add(round, rows * g->hidden, d->normed, hidden);
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
    int64_t width = d->g.hidden;
    const char *error = attention_block(d, run, tokens, stages);
    if (d->op->error()) return d->op->error(); /* what came first */
    if (error) return error;
    mlp_block(d, run, tokens);
    if (!show(d, stages, run, STAGE_LAYER_0, tokens, width, width, d->hidden[run]))
        return OUT_OF_MEMORY;
    return d->op->error();
}

const char *decoder_run(decoder *d, uint64_t document, int64_t tokens, stage_table *stages,
                        const work_meter *meter) {
    int64_t width = d->g.hidden;
    for (int run = 0; run < RUNS; run++) {
        if (!d->wanted[run]) continue;
        d->op->embed(&d->g, document, tokens, d->hidden[run]);
        if (!show(d, stages, (run_kind)run, STAGE_EMBEDDING, tokens, width, width, d->hidden[run]))
            return OUT_OF_MEMORY;
    }
    for (int64_t layer = 0; layer < d->g.layers; layer++) {
        d->op->weights(&d->g, layer, &d->w);
        for (int run = 0; run < RUNS; run++) {
            if (!d->wanted[run]) continue;
            const char *error = run_layer(d, (run_kind)run, tokens, layer == 0 ? stages : NULL);
            if (error) return error;
            meter->advance(meter->context, layer_operations(d, (run_kind)run, tokens));
        }
    }
    for (int run = 0; run < RUNS; run++) {
        if (!d->wanted[run]) continue;
        d->op->rms_norm(run != RUN_REFERENCE, tokens, width, d->hidden[run], d->hidden[run]);
    }
    return d->op->error();
}

void decoder_pool(const decoder *d, run_kind run, int64_t tokens, float *mean) {
    d->op->pool(tokens, d->g.hidden, d->hidden[run], mean);
}
