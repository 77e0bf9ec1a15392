#include "divergence_bands.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SHORT_TOKENS = 2000 };

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

bool bands_init(band_set *set, int edges, const int64_t *edge, int64_t max_tokens, int64_t samples,
                int64_t samples_min, uint64_t seed) {
    *set = (band_set){.seed = seed};
    for (int i = 0; i + 1 < edges; i++) {
        int64_t to = max_tokens ? smaller(edge[i + 1], max_tokens) : edge[i + 1];
        if (to <= edge[i]) break;
        band *b = &set->band[set->count++];
        b->from = edge[i];
        b->to = to;
        b->samples =
            larger(smaller(samples, samples * SHORT_TOKENS / to), smaller(samples, samples_min));
        b->cosine = calloc((size_t)(b->samples * RUNS), sizeof *b->cosine);
        if (!b->cosine) {
            bands_free(set);
            return false;
        }
    }
    return true;
}

void bands_free(band_set *set) {
    for (int i = 0; i < set->count; i++) free(set->band[i].cosine);
    set->count = 0;
}

int64_t bands_documents(const band_set *set) {
    int64_t most = 0;
    for (int i = 0; i < set->count; i++) most = larger(most, set->band[i].samples);
    return most;
}

int64_t band_tokens(const band_set *set, int index, int64_t sample) {
    const band *b = &set->band[index];
    double draw = weights_uniform(~set->seed, (uint64_t)index, (uint64_t)sample);
    double part = ((double)sample + draw) / (double)b->samples;
    return b->from + 1 + (int64_t)(part * (double)(b->to - b->from));
}

int64_t document_tokens(const band_set *set, int64_t document) {
    int64_t tokens = 0;
    for (int i = 0; i < set->count; i++) {
        if (document < set->band[i].samples) tokens = larger(tokens, band_tokens(set, i, document));
    }
    return tokens;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

cosine_summary band_summary(const band *b, run_kind run) {
    double *cosine = b->cosine + (int64_t)run * b->samples, sum = 0;
    qsort(cosine, (size_t)b->samples, sizeof *cosine, ascending);
    for (int64_t i = 0; i < b->samples; i++) sum += cosine[i];
    int64_t reaching = (95 * b->samples + 99) / 100; /* samples at or above the P95 */
    return (cosine_summary){
        .p95 = cosine[b->samples - reaching], .mean = sum / (double)b->samples, .min = cosine[0]};
}
