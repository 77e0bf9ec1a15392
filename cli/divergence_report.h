/* What `tallow divergence` has measured, as text and as JSON. */
#ifndef DIVERGENCE_REPORT_H
#define DIVERGENCE_REPORT_H

#include "divergence_stages.h"
#include "divergence_weights.h"

enum { MAX_BANDS = 64 };

typedef struct {
    double p95; /* the cosine that 95 % of samples reach or exceed */
    double mean, min;
} cosine_summary;

/* Samples of from < tokens <= to. */
typedef struct {
    int64_t from, to, samples;
    cosine_summary of[RUNS];
} band_report;

typedef struct {
    geometry g;
    bool wanted[RUNS]; /* the variants that ran */
    int bands;
    band_report band[MAX_BANDS];
    run_kind worst; /* lowest P95 in the last band: the stages are its */
    int64_t stage_tokens;
    stage_difference stages[STAGES];
    double seconds;
} divergence_report;

void divergence_print(const divergence_report *r);
void divergence_json(const divergence_report *r);

#endif
