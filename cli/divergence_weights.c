#include "divergence_weights.h"

#include <math.h>
#include <string.h>

#include "divergence_math.h"
#include "divergence_random.h"

/* How a trained head comes by its sense of position: a constant part of q and k, the bias, that the
 * rotary embedding turns with the token. Equal biases of size a on a pair of frequency f score
 * a^2 cos(f * distance), so over a band of pairs they add up to a bump around distance 0 that is as
 * wide as the fastest pair allows, 1 / f, and does not recur before the slowest pair does. Heads
 * get widths from one token to WIDEST, evenly in the logarithm, every layer some of each kind: the
 * previous-token, local and paragraph heads of trained models.
 *
 * A head dies when the angles of its fastest pair are off by about a radian. An angle rounded to
 * bf16 is off by up to 1/512 of itself, so the head of width w dies 500 w tokens into the document:
 * the longer the document, the more heads. Biases on all frequencies at once would make every head
 * as narrow as the fastest pair, and all would be dead after a thousand tokens. */
static const double WIDEST = 300;  /* tokens */
static const double BAND = 100;    /* fastest over slowest frequency of a head */
static const double PEAK = 30;     /* score of the biases at distance 0, in nats */
static const double CONTENT = 0.5; /* standard deviation of q and k beside their bias */
static const double PI = 3.14159265358979323846;

enum { STREAM_TOKENS, STREAM_EMBEDDING, STREAM_LAYERS };
enum { WEIGHT_QKV, WEIGHT_OUT, WEIGHT_GATE_UP, WEIGHT_DOWN, WEIGHT_PHASE, WEIGHTS };

double weights_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    return (double)(random_bits(random_key(seed, stream), index) >> 11) * 0x1p-53;
}

int64_t geometry_qkv_width(const geometry *g) { return (g->heads + 2 * g->heads_kv) * g->head_dim; }

/* Pairs that span `ratio` in frequency; frequencies fall by theta^(-2 / head_dim) a pair. */
static double pairs_of(const geometry *g, double ratio) {
    return log(ratio) / log(g->theta) * (double)g->head_dim / 2;
}

/* The pairs [first, last] that a head's biases live on. */
static void head_band(const geometry *g, int64_t layer, int64_t head, int64_t *first,
                      int64_t *last) {
    int64_t rank = head * g->layers + layer, ranks = g->heads * g->layers;
    double width = pow(WIDEST, ranks > 1 ? (double)rank / (double)(ranks - 1) : 0);
    int64_t slowest = g->head_dim / 2 - 1;
    *first = (int64_t)fmin(ceil(pairs_of(g, width)), (double)slowest);
    *last = (int64_t)fmin(floor(pairs_of(g, width * BAND)), (double)slowest);
    if (*last < *first) *last = *first;
}

/* A pair of elements, half a head apart, of length `size` at angle `phase`. */
static void set_pair(float *head, int64_t half, int64_t pair, double size, double phase) {
    head[pair] = bf16_round((float)(size * cos(phase)));
    head[pair + half] = bf16_round((float)(size * sin(phase)));
}

/* Heads that share a key head share its biases, each reading its own band of them: keys have the
 * same bias on every pair that any of their heads uses, queries make up for a band's length. */
void weights_bias(const geometry *g, int64_t layer, float *bias) {
    int64_t d = g->head_dim, half = d / 2, group = g->heads / g->heads_kv;
    uint64_t stream = STREAM_LAYERS + (uint64_t)layer * WEIGHTS + WEIGHT_PHASE;
    double score = PEAK * sqrt((double)d);
    double key = sqrt(score / fmax(pairs_of(g, BAND), 1));
    memset(bias, 0, (size_t)geometry_qkv_width(g) * sizeof *bias);
    for (int64_t head = 0; head < g->heads; head++) {
        int64_t first, last, head_kv = head / group;
        head_band(g, layer, head, &first, &last);
        for (int64_t i = first; i <= last; i++) {
            double phase =
                2 * PI * weights_uniform(g->seed, stream, (uint64_t)(head_kv * half + i));
            double query = score / ((double)(last - first + 1) * key);
            set_pair(bias + head * d, half, i, query, phase);
            set_pair(bias + (g->heads + head_kv) * d, half, i, key, phase);
        }
    }
}

/* Outputs have variance 1 for inputs of variance 1, but for the first `scaled` columns. */
static random_matrix matrix(const geometry *g, uint64_t stream, int64_t inputs, int64_t outputs,
                            int64_t scaled, double scale, float *w) {
    double unit = 1 / sqrt((double)inputs);
    return (random_matrix){
        random_key(g->seed, stream), inputs, outputs, scaled, scale * unit, unit, w};
}

void weights_matrices(const geometry *g, int64_t layer, const layer_weights *w,
                      random_matrix matrices[LAYER_MATRICES]) {
    uint64_t stream = STREAM_LAYERS + (uint64_t)layer * WEIGHTS;
    int64_t attended = g->heads * g->head_dim, qk = (g->heads + g->heads_kv) * g->head_dim;
    matrices[0] =
        matrix(g, stream + WEIGHT_QKV, g->hidden, geometry_qkv_width(g), qk, CONTENT, w->qkv);
    matrices[1] = matrix(g, stream + WEIGHT_OUT, attended, g->hidden, 0, 1, w->out);
    matrices[2] =
        matrix(g, stream + WEIGHT_GATE_UP, g->hidden, 2 * g->intermediate, 0, 1, w->gate_up);
    matrices[3] = matrix(g, stream + WEIGHT_DOWN, g->intermediate, g->hidden, 0, 1, w->down);
}

void weights_fill(const random_matrix *m) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < m->inputs; i++) {
        for (int64_t j = 0; j < m->outputs; j++) {
            uint64_t bits = random_bits(m->key, (uint64_t)(i * m->outputs + j));
            m->w[i * m->outputs + j] =
                bf16_round(random_normal(bits, j < m->scaled ? m->scale : m->unit));
        }
    }
}

void weights_layer(const geometry *g, int64_t layer, const layer_weights *w) {
    random_matrix matrices[LAYER_MATRICES];
    weights_matrices(g, layer, w, matrices);
    for (int i = 0; i < LAYER_MATRICES; i++) weights_fill(&matrices[i]);
    weights_bias(g, layer, w->qkv_bias);
}

const double WEIGHTS_EMBEDDING = 0.25;

uint64_t weights_token_key(const geometry *g, uint64_t document) {
    return random_key(random_mix(g->seed) + document, STREAM_TOKENS);
}

uint64_t weights_embedding_key(const geometry *g) { return random_key(g->seed, STREAM_EMBEDDING); }

int64_t weights_token(const geometry *g, uint64_t document, int64_t t) {
    uint64_t bits = random_bits(weights_token_key(g, document), (uint64_t)t);
    return (int64_t)(bits % (uint64_t)g->vocab);
}

void weights_embedding(const geometry *g, int64_t token, float *row) {
    uint64_t key = weights_embedding_key(g);
    for (int64_t i = 0; i < g->hidden; i++) {
        uint64_t bits = random_bits(key, (uint64_t)(token * g->hidden + i));
        row[i] = bf16_round(random_normal(bits, WEIGHTS_EMBEDDING));
    }
}
