/* The flags that describe one attention call, shared by plan and bench. */
#ifndef SHAPE_H
#define SHAPE_H

#include "case.h"
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

/* Checks the rules between flags; like options_parse. */
int shape_check(const char *name, const shape *s);

/* Whether all but the device and the threads is as shape_options left it. */
bool shape_is_default(const shape *s);

/* The call, without its data and with it. */
tallow_attention_params shape_params(const shape *s);
case_options shape_case(const shape *s);

/* Bytes of q, k, v and out: more than any integer counts, if so asked. */
double shape_bytes(const shape *s);

/* The call as members of an open JSON object, and as one line for people. Its options are filled
 * in. */
void shape_json(const case_options *o, tallow_device device, json *j);
void shape_print(const case_options *o);

#endif
