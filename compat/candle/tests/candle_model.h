/* Calls of run_mha as candle's Rust functions make them: what those take, the arguments that they
 * make of it, and what the result should be, from plain packed tensors by the f64 reference. */
#ifndef CANDLE_MODEL_H
#define CANDLE_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "case.h"

enum { MODEL_BATCH = 4, MODEL_RANGES = 2 };

/* Option<usize>: 0 is None. */
#define SOME(value) ((value) + 1)

typedef struct {
    const char *name; /* the Rust function, and what is special about the call */
    bool v3, bf16, packed;
    int page; /* page_block_size; 0: no pages */
    int batch, heads, heads_kv, head_dim;
    int seqlen_q[MODEL_BATCH], seqlen_k[MODEL_BATCH]; /* dense: the first is everyone's */
    int max_seqlen;                                   /* given by the caller; 0: the longest */
    bool heads_first; /* tensors lie in memory with their heads outside, as after a transpose */
    bool counting;    /* q, k, v are i / 30, i / 40, i / 50, as in candle's own tests */
    int left, right;  /* windows; causal is left = None, right = Some(0) */
    float scale, softcap;
    bool alibi;
    int ranges[MODEL_BATCH][MODEL_RANGES][2];
    int max_ranges;
} model_options;

typedef struct {
    model_options o;
    int32_t cu_q[MODEL_BATCH + 1], cu_k[MODEL_BATCH + 1];
    int max_q, max_k, total_q, total_k;
    uint16_t *q, *k, *v; /* (total, heads, head_dim) */
    float slopes[64];
    uint16_t *out; /* as q */
    float *lse;    /* as candle's: (batch, heads, seqlen_q) or (heads, total_q) */
} model;

void model_build(model *m, const model_options *o);
void model_free(model *m);

/* (total_q, heads, head_dim) and (total_q, heads). */
void model_reference(const model *m, double *out, double *lse);

/* Calls run_mha, or run_mha_v3, with everything in the device's memory, then takes out and lse
 * back. `during` may be null; else it makes the call happen. */
typedef void (*model_during)(void (*call)(void *), void *argument);
void model_run(model *m, const case_device *device, model_during during);

/* Where row r, head h of the lse lies. */
size_t model_lse_at(const model *m, int b, int row, int head);

/* ---- provided once for the CPU and once for the GPU ---- */

/* False: there is none, and `why` says why. */
bool model_device(case_device *device, char *why, size_t why_size);

/* What is tested of it alone, before it is opened and after; failures. */
int model_before(void);
int model_after(const case_device *device);

/* ---- provided by the test ---- */

void expect_call(const case_device *device, const model_options *o, model_during during);

#endif
