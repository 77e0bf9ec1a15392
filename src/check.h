/* The words that rules about a call's arguments are written in. A word is true when its rule holds;
 * else it records one sentence (the field, its value, what would be accepted) and is false. So
 * rules are chained with && and read as a column. */
#ifndef TALLOW_CHECK_H
#define TALLOW_CHECK_H

#include <inttypes.h>

#include "problem.h"

#define INT "%" PRId64

bool tallow_refuse(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define tallow_need(ok, ...) ((ok) || tallow_refuse(__VA_ARGS__))

/* The sized-struct rule: copies the caller's params into the zeroed `out`. A tail that this version
 * does not know must be zero; `oldest` is the size of the struct in version 0.1. */
tallow_status tallow_copy_params(void *out, size_t size, size_t oldest, const void *params,
                                 size_t params_size);

/* A set of dtypes; harmless on a dtype not yet checked. */
#define DTYPE(dtype) (1u << (unsigned)(dtype) % 8)
#define ANY_FLOAT    (DTYPE(TALLOW_F16) | DTYPE(TALLOW_BF16) | DTYPE(TALLOW_F32))

enum {
    ANY = -1, /* a size that is free */
    MOST_SPLITS = 4096
};

typedef struct {
    const char *name;  /* as the caller writes the field */
    unsigned dtypes;   /* set of those accepted */
    const char *shape; /* as tallow.h writes it: "(batch, heads)"; messages quote its words */
    int64_t sizes[4];  /* of each word */
    bool written;      /* then no two elements may share an address */
} tensor_rule;

#define RULE(field, set, text, ...)                                                                \
    ((tensor_rule){.name = field, .dtypes = set, .shape = text, .sizes = {__VA_ARGS__}})

/* A tensor with its strides resolved; never null, even where `data` was and nobody will read it, so
 * that "present" is the same as "not null". A dimension with no second element has stride 0. */
typedef struct {
    void *data;
    int64_t strides[4];
    int rank;
} tensor_view;

/* False when every member is zero: the field was not given. */
static inline bool tallow_present(const tallow_tensor *t) {
    int64_t any = (intptr_t)t->data | t->dtype | t->reserved;
    for (int i = 0; i < 4; i++) any |= t->shape[i] | t->strides[i];
    return any != 0;
}

/* A tensor that must be present; the last dimension must be contiguous, or may have any stride. */
bool tallow_need_tensor(tensor_view *out, const tallow_tensor *t, check_level level,
                        const tensor_rule *rule);
bool tallow_need_strided(tensor_view *out, const tallow_tensor *t, check_level level,
                         const tensor_rule *rule);

/* The same as rows: four words fill every stride; three are packed, the batch stride is 0. */
bool tallow_need_rows(rows_view *out, const tallow_tensor *t, check_level level,
                      const tensor_rule *rule);

/* The same as lse, strides over (batch, head); two words are packed, the batch stride is 0. */
bool tallow_need_lse(float **data, int64_t strides[2], const tallow_tensor *t, check_level level,
                     const tensor_rule *rule);

/* Optional vectors and matrices, of any strides; an absent one gives a view whose data is null. */
bool tallow_need_ints(int_view *out, const tallow_tensor *t, check_level level,
                      const tensor_rule *rule);
bool tallow_need_floats(float_view *out, const tallow_tensor *t, check_level level,
                        const tensor_rule *rule);

/* `out` may lie over `in` only element by element. */
bool tallow_need_same_place(const char *out_name, const rows_view *out, const char *in_name,
                            const rows_view *in);

/* What every call has. */
bool tallow_need_device(int32_t device, int32_t threads, const void *stream, const char *pack);

/* Rotary angles; `rotary_dim` 0 means `default_dim`, and then 0 means no rotary. */
bool tallow_need_angles(rotary_view *out, const tallow_rotary_angles *a, int64_t head_dim,
                        int64_t default_dim, check_level level);

/* Optional positions of (batch, rows) tokens, or of rows packed tokens. */
bool tallow_need_positions(position_view *out, const tallow_tensor *t, const char *name,
                           const rotary_view *r, layout rows_layout, int64_t batch, int64_t rows,
                           check_level level);

/* The contents of vectors, on the CPU. */

/* cu_seqlens: batch + 1 entries that never decrease, from at least 0 to at most `total`. */
bool tallow_need_starts(const char *name, const int_view *cu_seqlens, int64_t batch, int64_t total);

/* Positions of `count` tokens of sequence b from `row` on; without a view they count up from
 * `implicit`. */
bool tallow_need_position_values(const char *name, const position_view *view, const rotary_view *r,
                                 int64_t b, int64_t row, int64_t count, int64_t implicit);

/* Everything the vectors of a call hold. */
tallow_status tallow_problem_check_data(const problem *p);

static inline int64_t int_at(const int_view *view, int64_t i) {
    return view->data[i * view->stride[0]];
}

#endif
