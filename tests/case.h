/* Attention problems as data: options say what is asked, a case is the call with its tensors, and a
 * result is the comparison with the reference. Named options are the rows of cases.def; random ones
 * come from a seed and an index. */
#ifndef CASE_H
#define CASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tallow.h"

enum { CASE_BATCH = 64, CASE_BLOCKS = 32, CASE_EMPTY = -1 };

typedef enum { K_DENSE, K_PACKED, K_PAGED } case_layout;

typedef enum {
    STRIDES_CONTIGUOUS,
    STRIDES_ODD,         /* gaps behind heads, rows and sequences; data aligned to its element */
    STRIDES_HEADS_FIRST, /* (batch, heads, seqlen, head_dim) in memory */
    STRIDES_REVERSED,    /* rows from last to first */
    STRIDES_BROADCAST    /* all sequences read one k and v: batch stride 0 */
} case_strides;

typedef enum {
    DATA_NORMAL,
    DATA_PEAKY,    /* scores far apart: nearly one-hot weights */
    DATA_OUTLIERS, /* a few channels and rows thirty times as large */
    DATA_RISING,   /* scores grow with the key: the running maximum moves in every tile */
    DATA_FALLING
} case_data;

/* A NaN or inf in an otherwise valid place, key `plant_at` of every sequence (from the end when
 * negative), channel 0 of head 0. Whatever no one may read is NaN in every case. */
typedef enum {
    PLANT_NONE,
    PLANT_NAN_Q,
    PLANT_NAN_K,
    PLANT_NAN_V,
    PLANT_INF_K,
    PLANT_INF_V
} case_plant;

typedef enum { FREQUENCIES_THETA, FREQUENCIES_INV_FREQ, FREQUENCIES_TABLES } case_frequencies;

typedef struct {
    const char *name;

    /* Shape. 0: f32, 2 sequences, 2 heads, heads_kv = heads, head_dim 64, head_dim_v = head_dim,
     * one query and key. Lengths of keys are those in use before the call, leftpad not counted. */
    int32_t dtype, batch, heads, heads_kv, head_dim, head_dim_v;
    int32_t seqlen_q, seqlen_k;                           /* CASE_EMPTY: 0 */
    int32_t lengths_q[CASE_BATCH], lengths_k[CASE_BATCH]; /* one by one; the first 0: as above */

    /* Layout */
    bool packed_q;
    int32_t k_layout, page_size;
    bool page_lengths_by_cu; /* paged: lengths from cu_seqlens_k instead of seqused_k */
    bool seqused;            /* given even where the shapes already tell */
    int32_t slack;           /* rows of each K and V beyond those in use */
    int32_t leftpad;         /* sequence b starts leftpad + b rows late */
    bool cache_batch_idx;
    bool shared_kv; /* V is the first head_dim_v elements of K's rows */
    int32_t strides;

    /* Scores and mask, as in the call */
    float scale, softcap;
    int32_t alibi; /* 1: (heads), 2: (batch, heads) */
    bool sinks;
    int32_t mask, window_left, window_right;
    int32_t ranges; /* prefix ranges of each sequence */
    float dropout;

    /* Append and rotary */
    int32_t seqlen_new, lengths_new[CASE_BATCH]; /* lengths: k_new is packed */
    int32_t rotary_dim, pairing, mrope, frequencies, table_dtype;
    float factor, theta;
    int32_t positions; /* dtype of explicit positions; 0: implicit */
    int32_t position;  /* where explicit positions start */

    /* How to compute */
    int32_t num_splits, precision, threads;
    bool batch_invariant, out_f32, no_lse, workspace;
    bool bounds; /* max_seqlen_q and max_seqlen_k are given */

    int32_t data, plant, plant_at;
} case_options;

/* The memory of one tensor, between guard zones. */
typedef struct {
    uint8_t *memory, *before; /* before: as built */
    size_t bytes;
    size_t begin, end; /* the tensor itself; outside are the guard zones */
} case_block;

typedef struct {
    case_options o; /* every default filled */
    uint64_t random;
    bool bare; /* q, k and v have no values */
    tallow_attention_params params;
    case_block blocks[CASE_BLOCKS];
    int block_count;
    int64_t rows;                              /* of out, all sequences */
    double *out, *lse, *plain_out, *plain_lse; /* the reference; see reference.h */
    double magnitude;                          /* what rounding errors of scores are relative to */
    bool workspace_intact;                     /* after a run: nothing was written behind it */
} attention_case;

/* Moves memory to a device and back; the CPU needs none. */
typedef struct {
    void *context;
    void *(*upload)(void *context, const void *host, size_t bytes);
    void (*download)(void *context, void *host, void *device, size_t bytes); /* and frees */
    void *stream;
} case_device;

/* Errors are relative L2 norms against f64, of the whole output and of its worst row; ratio is that
 * of the error to the plain computation's. lse_error is the largest share of its tolerance that any
 * lse takes. */
typedef struct {
    bool ok;
    double error, plain_error;
    double row_error, plain_row_error;
    double ratio; /* 0: the plain computation happened to round by less than an f32 does */
    double lse_error;
    char text[400]; /* what is wrong, and where first */
} case_result;

int case_count(void);
const case_options *case_at(int index);
const case_options *case_named(const char *name); /* null: no such case */
case_options case_random(uint64_t seed, uint64_t index);
uint64_t case_draw(uint64_t *state); /* 64 random bits */

/* Fills in the options that are left out. */
void case_defaults(case_options *o);

/* Builds the tensors and computes the reference; the former alone when only time matters; bare when
 * only the call itself does. */
void case_build(attention_case *c, const case_options *o, uint64_t seed);
void case_build_tensors(attention_case *c, const case_options *o, uint64_t seed);
void case_build_shapes(attention_case *c, const case_options *o);

/* The random case of a seed and an index, data and all. */
void case_build_random(attention_case *c, uint64_t seed, uint64_t index);
void case_free(attention_case *c);

/* The call with its tensors on a device: `copies` of the blocks, and a workspace. */
tallow_status case_upload(const attention_case *c, const case_device *device,
                          tallow_attention_params *p, uint8_t *copies[CASE_BLOCKS]);

/* Puts the tensors back as built and calls; a null device is the CPU. */
tallow_status case_run(attention_case *c, const case_device *device);
void case_check(const attention_case *c, case_result *result);

#endif
