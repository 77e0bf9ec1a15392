/* Bands of document length, and the documents that give each band its samples.
 *
 * No token of a causal decoder sees a later one, so the first n tokens of a document are themselves
 * a document: each that is run gives one sample to every band that still wants one. */
#ifndef DIVERGENCE_BANDS_H
#define DIVERGENCE_BANDS_H

#include "divergence_report.h"

typedef struct {
    int64_t from, to; /* from < tokens <= to */
    int64_t samples;
    double *cosine; /* (RUNS, samples) */
} band;

typedef struct {
    int count;
    band band[MAX_BANDS];
    uint64_t seed;
} band_set;

/* Bands between the edges, cut at max_tokens unless 0. A band gets `samples` samples up to 2000
 * tokens, fewer in proportion beyond, but never less than the smaller of `samples` and
 * `samples_min`. False: out of memory. */
bool bands_init(band_set *set, int edges, const int64_t *edge, int64_t max_tokens, int64_t samples,
                int64_t samples_min, uint64_t seed);
void bands_free(band_set *set);

/* Documents 0, 1, ...: document i has a sample in each band of more than i samples. */
int64_t bands_documents(const band_set *set);

/* Tokens of a band's sample; longer from sample to sample, so that a band is evenly covered. */
int64_t band_tokens(const band_set *set, int index, int64_t sample);

/* The longest sample of a document. */
int64_t document_tokens(const band_set *set, int64_t document);

cosine_summary band_summary(const band *b, run_kind run);

#endif
