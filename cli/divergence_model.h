/* The decoder that `tallow divergence` runs: Qwen2.5's shape, weights drawn from a seed.
 *
 * Every document runs through the decoder several times side by side, layer by layer: once as the
 * reference, once per variant of the rotary angles. So the weights of one layer at a time are
 * enough, and every stage can be compared as it is computed. */
#ifndef DIVERGENCE_MODEL_H
#define DIVERGENCE_MODEL_H

#include "divergence_operations.h"
#include "divergence_stages.h"

typedef struct decoder decoder;

/* A decoder for documents of at most `max_tokens`; `wanted` says which variants to run beside the
 * reference. Null: out of memory. */
decoder *decoder_new(const operations *op, const geometry *g, int64_t max_tokens,
                     const bool wanted[RUNS]);
void decoder_free(decoder *d);

/* Told after each layer of each run how many operations it took. */
typedef struct {
    void (*advance)(void *context, double operations);
    void *context;
} work_meter;

/* Operations of a document: the sum of what a work_meter is told. */
double decoder_operations(const decoder *d, int64_t tokens);

/* Runs document number `document` of `tokens` tokens. `stages`, when not null, gets the embedding
 * and the first layer. Null: done; else why not. */
const char *decoder_run(decoder *d, uint64_t document, int64_t tokens, stage_table *stages,
                        const work_meter *meter);

/* The mean over the first `tokens` tokens of a run's final hidden states: what the decoder would
 * make of a document that ended there, because no token sees a later one. */
void decoder_pool(const decoder *d, run_kind run, int64_t tokens, float *mean);

#endif
