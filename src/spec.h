/* A specialisation: one value for every compile-time choice of a kernel. Derived from spec.def and
 * tiles.def; pure, so that plans, packs and tests work without a GPU or a compiler. */
#ifndef TALLOW_SPEC_H
#define TALLOW_SPEC_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"

/* All zero: the program rows.cu, which has no axes. */
typedef struct {
#define TALLOW_AXIS(name, ...) int32_t name;
#include "spec.def"
} spec;

typedef struct {
    const char *name, *meaning;
    const int32_t *values;
    int count;
} spec_axis;

enum {
#define TALLOW_AXIS(name, ...) SPEC_AXIS_##name,
#include "spec.def"
    SPEC_AXES,
    SPEC_KEY = 224,   /* bytes that any key fits in */
    SPEC_OPTION = 40, /* bytes that any option fits in */
    SPEC_OPTIONS = SPEC_AXES + 9
};

extern const spec_axis tallow_spec_axes[SPEC_AXES];

/* Value of axis `i` of a spec. */
int32_t tallow_spec_value(const spec *s, int i);

/* Whether the kernel exists; else the message says which axis or rule forbids it. */
tallow_status tallow_spec_check(const spec *s);
/* The same as an answer, which leaves no message. */
bool tallow_spec_exists(const spec *s);

/* How the forward kernel of a spec cuts its work; all zero for rows.cu. See tiles.def. */
typedef struct {
    int32_t row_warps, column_warps, warp_rows, block_keys, slots, blocks;
    int32_t q_slots;    /* of Q in shared memory */
    int32_t stages_out; /* 1: rows of the output leave through shared memory */
    int32_t block_rows, threads;
    int32_t shared_bytes; /* dynamic shared memory of a launch */
} spec_tile;

/* False when no tile of tiles.def fits. */
bool tallow_spec_tile(const spec *s, spec_tile *out);

/* The KiB class of a device whose blocks may use `bytes` of shared memory; 0: too little. */
int32_t tallow_spec_shared_memory(size_t bytes);

/* The file in kernels/ to compile, and the -D options that it is compiled with. */
const char *tallow_spec_source(const spec *s);
typedef struct {
    int count;
    char text[SPEC_OPTIONS][SPEC_OPTION];
} spec_options;
void tallow_spec_options(const spec *s, spec_options *out);

/* A name for people and caches: every axis by name, such as "family=80 dtype=2 ...". */
void tallow_spec_key(const spec *s, char key[SPEC_KEY]);

/* All kernels that exist, in a fixed order: start with the zero spec, stop when false. */
bool tallow_spec_next(spec *s);

#endif
