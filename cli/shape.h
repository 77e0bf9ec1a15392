/* The flags that describe one attention call, shared by plan and bench. */
#ifndef SHAPE_H
#define SHAPE_H

#include "options.h"
#include "output.h"
#include "tallow.h"

typedef struct {
    int device, dtype, mask, precision; /* indices of the words that the flags accept */
    int64_t batch, seqlen, seqlen_k, heads, heads_kv, head_dim, head_dim_v;
    int64_t window_left, window_right, splits, threads;
    double softcap;
} shape;

enum { SHAPE_OPTIONS = 16 };

/* Sets the defaults and writes SHAPE_OPTIONS flags that fill *s. */
void shape_options(shape *s, option *options);

/* Checks the rules between flags and resolves lengths that follow others; like options_parse. */
int shape_check(const char *name, shape *s);

/* The call, without its data. */
tallow_attention_params shape_params(const shape *s);

/* The flags as members of an open JSON object. */
void shape_json(const shape *s, json *j);

/* The flags as one line of words for people. */
void shape_print(const shape *s);

const char *shape_dtype_name(const shape *s);

#endif
