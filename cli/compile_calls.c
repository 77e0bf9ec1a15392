#include "compile_calls.h"

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

#define CASE(name, ...)  {#name, __VA_ARGS__},
#define BENCH(name, ...) {#name, __VA_ARGS__},
static const case_options CASES[] = {
#include "cases.def"
};

/* head_dim and head_dim_v where they differ, or are none of 8, 16, ... 256. */
static const int32_t OTHER_DIMS[][2] = {{512, 512}, {576, 512}, {192, 128}};
static const int32_t DTYPES[] = {TALLOW_BF16, TALLOW_F16, TALLOW_F32};
static const struct {
    int32_t precision, f32_out;
} PRECISIONS[] = {{TALLOW_PRECISION_DEFAULT, 0},
                  {TALLOW_PRECISION_FAST, 0},
                  {TALLOW_PRECISION_HIGH, 0},
                  {TALLOW_PRECISION_HIGH, 1}};
enum { DIMS = 32 + COUNT(OTHER_DIMS), FEW = 2, SCORES = 2, PAGED = 2 };

int calls_count(call_list list) {
    if (list == CALLS_CASES) return 1 + COUNT(CASES);
    return 1 + COUNT(DTYPES) * DIMS * FEW * SCORES * COUNT(PRECISIONS) * PAGED;
}

/* The last digit of a number whose digits choose among `count` each. */
static int take(int *number, int count) {
    int digit = *number % count;
    *number /= count;
    return digit;
}

static tallow_tensor rows(int32_t dtype, int64_t batch, int64_t seqlen, int64_t dim) {
    return (tallow_tensor){.dtype = dtype, .shape = {batch, seqlen, 1, dim}};
}

static tallow_attention_params combination(int number) {
    const int dtype = DTYPES[take(&number, COUNT(DTYPES))], dims = take(&number, DIMS);
    const int64_t seqlen = take(&number, FEW) ? 1 : 1024, keys = 1024;
    const int precision = take(&number, COUNT(PRECISIONS));
    const int64_t dim = dims < 32 ? 8 * (dims + 1) : OTHER_DIMS[dims - 32][0];
    const int64_t dim_v = dims < 32 ? dim : OTHER_DIMS[dims - 32][1];
    tallow_attention_params p = {.q = rows(dtype, 1, seqlen, dim),
                                 .k = rows(dtype, 1, keys, dim),
                                 .v = rows(dtype, 1, keys, dim_v),
                                 .out = rows(dtype, 1, seqlen, dim_v)};
    p.precision = PRECISIONS[precision].precision;
    if (PRECISIONS[precision].f32_out) p.out.dtype = TALLOW_F32;
    if (take(&number, SCORES)) p.softcap = 30;
    if (take(&number, PAGED)) p.block_table = (tallow_tensor){.dtype = TALLOW_I32, .shape = {1, 1}};
    return p;
}

void calls_make(attention_case *c, call_list list, int index) {
    *c = (attention_case){0};
    if (index == 0) {
        c->params.q = c->params.k = c->params.v = c->params.out = rows(TALLOW_BF16, 0, 1, 64);
    } else if (list == CALLS_CASES) {
        case_build_shapes(c, &CASES[index - 1]);
    } else {
        c->params = combination(index - 1);
    }
    c->params.device = TALLOW_DEVICE_CUDA;
}
