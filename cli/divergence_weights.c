#include "divergence_weights.h"

#include <math.h>
#include <string.h>

#include "divergence_math.h"

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
static const double WIDEST = 300;     /* tokens */
static const double BAND = 100;       /* fastest over slowest frequency of a head */
static const double PEAK = 30;        /* score of the biases at distance 0, in nats */
static const double CONTENT = 0.5;    /* standard deviation of q and k beside their bias */
static const double EMBEDDING = 0.25; /* the layers write 1: they soon outweigh the embedding */
static const double PI = 3.14159265358979323846;

enum { STREAM_TOKENS, STREAM_EMBEDDING, STREAM_LAYERS };
enum { WEIGHT_QKV, WEIGHT_OUT, WEIGHT_GATE_UP, WEIGHT_DOWN, WEIGHT_PHASE, WEIGHTS };

/* A bijection whose outputs look random (the finaliser of SplitMix64). */
static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

static uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t index) {
    return mix(mix(mix(seed) + stream) + index);
}

double weights_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    return (double)(random_bits(seed, stream, index) >> 11) * 0x1p-53;
}

/* Mean 0, variance 1, nearly normal: the sum of four uniform 16-bit numbers. */
static double normal(uint64_t bits) {
    double sum = (double)(bits & 0xffff) + (double)(bits >> 16 & 0xffff) +
                 (double)(bits >> 32 & 0xffff) + (double)(bits >> 48);
    return (sum - 2 * 65535) * (1.7320508075688772 / 65536);
}

int64_t geometry_qkv_width(const geometry *g) { return (g->heads + 2 * g->heads_kv) * g->head_dim; }

/* A matrix whose outputs have variance 1 for inputs of variance 1; the first `scaled` columns have
 * standard deviation `scale`. */
static void fill(const geometry *g, uint64_t stream, int64_t inputs, int64_t outputs,
                 int64_t scaled, double scale, float *w) {
    double unit = 1 / sqrt((double)inputs);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < inputs; i++) {
        for (int64_t j = 0; j < outputs; j++) {
            uint64_t bits = random_bits(g->seed, stream, (uint64_t)(i * outputs + j));
            w[i * outputs + j] =
                bf16_round((float)(normal(bits) * (j < scaled ? scale * unit : unit)));
        }
    }
}

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
static void fill_bias(const geometry *g, int64_t layer, float *bias) {
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

void weights_layer(const geometry *g, int64_t layer, layer_weights *w) {
    uint64_t stream = STREAM_LAYERS + (uint64_t)layer * WEIGHTS;
    int64_t attended = g->heads * g->head_dim, qk = (g->heads + g->heads_kv) * g->head_dim;
    fill(g, stream + WEIGHT_QKV, g->hidden, geometry_qkv_width(g), qk, CONTENT, w->qkv);
    fill(g, stream + WEIGHT_OUT, attended, g->hidden, 0, 1, w->out);
    fill(g, stream + WEIGHT_GATE_UP, g->hidden, 2 * g->intermediate, 0, 1, w->gate_up);
    fill(g, stream + WEIGHT_DOWN, g->intermediate, g->hidden, 0, 1, w->down);
    fill_bias(g, layer, w->qkv_bias);
}

int64_t weights_token(const geometry *g, uint64_t document, int64_t t) {
    uint64_t bits = random_bits(mix(g->seed) + document, STREAM_TOKENS, (uint64_t)t);
    return (int64_t)(bits % (uint64_t)g->vocab);
}

void weights_embedding(const geometry *g, int64_t token, float *row) {
    for (int64_t i = 0; i < g->hidden; i++) {
        uint64_t bits = random_bits(g->seed, STREAM_EMBEDDING, (uint64_t)(token * g->hidden + i));
        row[i] = bf16_round((float)(EMBEDDING * normal(bits)));
    }
}
