/* The shape and the seeded weights of the decoder that `tallow divergence` runs. */
#ifndef DIVERGENCE_WEIGHTS_H
#define DIVERGENCE_WEIGHTS_H

#include <stdint.h>

typedef struct {
    int64_t layers, hidden, heads, heads_kv, head_dim, intermediate, vocab;
    int64_t window; /* tokens that a query sees, its own included */
    double theta;
    uint64_t seed;
} geometry;

/* One layer. Matrices are (inputs, outputs) and hold bf16 numbers as f32, for every run alike. The
 * gains of the norms are 1: those of a trained model can be folded into the matrices that follow.
 */
typedef struct {
    float *qkv;      /* (hidden, heads + 2 heads_kv, head_dim): q, k, v side by side */
    float *qkv_bias; /* (heads + 2 heads_kv, head_dim) */
    float *out;      /* (heads * head_dim, hidden) */
    float *gate_up;  /* (hidden, 2 intermediate): gate, up */
    float *down;     /* (intermediate, hidden) */
} layer_weights;

int64_t geometry_qkv_width(const geometry *g);

/* A matrix of a layer: element i, row-major, is the normal number i of the key's stream, with
 * standard deviation `scale` in the first `scaled` columns and `unit` in the others. */
typedef struct {
    uint64_t key;
    int64_t inputs, outputs, scaled;
    double scale, unit;
    float *w;
} random_matrix;

enum { LAYER_MATRICES = 4 };

/* The matrices of *w, to be filled; filled; and the bias, which is no matrix. */
void weights_matrices(const geometry *g, int64_t layer, const layer_weights *w,
                      random_matrix matrices[LAYER_MATRICES]);
void weights_fill(const random_matrix *m);
void weights_bias(const geometry *g, int64_t layer, float *bias);

/* Fills the arrays of *w. */
void weights_layer(const geometry *g, int64_t layer, const layer_weights *w);

/* Token t of a document, and a token's embedding (hidden). */
int64_t weights_token(const geometry *g, uint64_t document, int64_t t);
void weights_embedding(const geometry *g, int64_t token, float *row);

/* Token t is number t of its key's stream, modulo the vocabulary; an embedding has standard
 * deviation WEIGHTS_EMBEDDING: the layers write 1, they soon outweigh it. */
uint64_t weights_token_key(const geometry *g, uint64_t document);
uint64_t weights_embedding_key(const geometry *g);
extern const double WEIGHTS_EMBEDDING;

/* Uniform in [0, 1): number `index` of stream `stream` of the seed, on any machine the same. */
double weights_uniform(uint64_t seed, uint64_t stream, uint64_t index);

#endif
