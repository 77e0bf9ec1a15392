#include "check.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

static _Alignas(16) char nothing[16]; /* the data of a tensor that nobody will read */

bool tallow_refuse(const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    tallow_fail(TALLOW_INVALID_ARGUMENT, "%s", text);
    return false;
}

tallow_status tallow_copy_params(void *out, size_t size, size_t oldest, const void *params,
                                 size_t params_size) {
    const unsigned char *bytes = params;
    if (!params) return tallow_fail(TALLOW_INVALID_ARGUMENT, "params is null: must be a struct");
    if (params_size < oldest)
        return tallow_fail(TALLOW_INVALID_ARGUMENT,
                           "params_size = %zu: must be the size of the struct, at least %zu",
                           params_size, oldest);
    for (size_t i = size; i < params_size; i++)
        if (bytes[i])
            return tallow_fail(TALLOW_UNSUPPORTED,
                               "params_size = %zu: byte %zu is not zero, but this version knows "
                               "%zu bytes; the rest must be zero",
                               params_size, i, size);
    const size_t known = params_size < size ? params_size : size;
    memcpy(out, params, known);
    memset((char *)out + known, 0, size - known);
    return TALLOW_OK;
}

/* --------------------------------------------------------------------------------------------
 * One tensor
 * ------------------------------------------------------------------------------------------ */

static const char *const dtype_names[] = {"0",          "TALLOW_F16", "TALLOW_BF16",
                                          "TALLOW_F32", "TALLOW_I32", "TALLOW_I64"};
static const int dtype_sizes[] = {1, 2, 2, 4, 4, 8};

static bool need_dtype(int32_t dtype, const tensor_rule *rule) {
    char accepted[64] = "";
    if (dtype >= TALLOW_F16 && dtype <= TALLOW_I64 && (rule->dtypes & DTYPE(dtype))) return true;
    for (int i = TALLOW_F16; i <= TALLOW_I64; i++) {
        if (!(rule->dtypes & DTYPE(i))) continue;
        if (*accepted) strcat(accepted, " or ");
        strcat(accepted, dtype_names[i]);
    }
    return tallow_refuse("%s.dtype = %d: must be %s", rule->name, (int)dtype, accepted);
}

static int rank_of(const char *shape) {
    const size_t length = strlen(shape); /* known before the loop, which so becomes a wide one */
    int rank = 1;
    for (size_t i = 0; i < length; i++) rank += shape[i] == ',';
    return rank;
}

/* Word i of "(batch, heads)". */
static const char *word(const char *shape, int i, int *length) {
    const char *start = strchr(shape, '(') + 1;
    for (; i > 0; i--) start = strchr(start, ',') + 2;
    *length = (int)strcspn(start, ",)");
    return start;
}

static bool refuse_size(const tensor_rule *rule, int i, int64_t size) {
    int length;
    const char *label = word(rule->shape, i, &length);
    if (size < 0 || size > INT32_MAX)
        return tallow_refuse("%s.shape[%d] = " INT ": must be %.*s, 0 to 2147483647, in %s",
                             rule->name, i, size, length, label, rule->shape);
    return tallow_refuse("%s.shape[%d] = " INT ": must be %.*s, " INT ", in %s", rule->name, i,
                         size, length, label, rule->sizes[i], rule->shape);
}

static bool need_size(const tallow_tensor *t, const tensor_rule *rule, int i, int64_t *count) {
    const int64_t size = t->shape[i], wanted = rule->sizes[i];
    if (size < 0 || size > INT32_MAX || (wanted != ANY && size != wanted))
        return refuse_size(rule, i, size);
    return tallow_need(!__builtin_mul_overflow(*count, size ? size : 1, count) &&
                           *count <= INT64_MAX / 8,
                       "%s.shape[%d] = " INT ": must be less, as the whole tensor must fit 64-bit "
                       "offsets",
                       rule->name, i, size);
}

static bool need_shape(const tallow_tensor *t, const tensor_rule *rule, int rank) {
    int64_t count = 1;
    bool ok = true;
    for (int i = 0; i < rank && ok; i++) ok = need_size(t, rule, i, &count);
    for (int i = rank; i < 4 && ok; i++)
        ok = tallow_need(!t->shape[i], "%s.shape[%d] = " INT ": must be 0 in %s", rule->name, i,
                         t->shape[i], rule->shape) &&
             tallow_need(!t->strides[i], "%s.strides[%d] = " INT ": must be 0 in %s", rule->name, i,
                         t->strides[i], rule->shape);
    return ok;
}

static bool all_zero(const int64_t strides[4]) {
    return !(strides[0] || strides[1] || strides[2] || strides[3]);
}

static bool need_strides(const tallow_tensor *t, const tensor_rule *rule, int rank, bool strided,
                         int64_t strides[4]) {
    const bool contiguous = all_zero(t->strides);
    int64_t span = 1, reach = 0;
    for (int i = rank - 1; i >= 0; i--) {
        const int64_t size = t->shape[i], stride = contiguous ? span : t->strides[i];
        int64_t step;
        span *= size ? size : 1;
        strides[i] = size > 1 ? stride : 0;
        if (!tallow_need(size <= 1 || stride == 1 || i < rank - 1 || strided,
                         "%s.strides[%d] = " INT ": must be 1, the last dimension is contiguous "
                         "(all strides 0: the whole tensor is)",
                         rule->name, i, stride) ||
            !tallow_need(size <= 1 || stride != 0 || !rule->written,
                         "%s.strides[%d] = 0: must not be 0, as %s is written", rule->name, i,
                         rule->name) ||
            !tallow_need(size <= 1 || (stride > -INT64_MAX / 8 && stride < INT64_MAX / 8 &&
                                       !__builtin_mul_overflow(size - 1, llabs(stride), &step) &&
                                       !__builtin_add_overflow(reach, step, &reach) &&
                                       reach <= INT64_MAX / 8),
                         "%s.strides[%d] = " INT
                         ": must be nearer 0, as every offset in bytes must "
                         "fit 64 bits",
                         rule->name, i, stride))
            return false;
    }
    return true;
}

static bool need_data(const tallow_tensor *t, const tensor_rule *rule, int rank,
                      check_level level) {
    bool empty = false;
    for (int i = 0; i < rank; i++) empty = empty || !t->shape[i];
    return tallow_need(t->data || empty || level == CHECK_SHAPES,
                       "%s.data is null: must point to %s", rule->name, rule->shape) &&
           tallow_need(((uintptr_t)t->data & (uintptr_t)(dtype_sizes[t->dtype] - 1)) == 0,
                       "%s.data = %p: must be a multiple of %d, the size of its dtype", rule->name,
                       t->data, dtype_sizes[t->dtype]);
}

static bool need_tensor(tensor_view *out, const tallow_tensor *t, check_level level,
                        const tensor_rule *rule, bool strided) {
    *out = (tensor_view){.data = t->data ? t->data : nothing, .rank = rank_of(rule->shape)};
    return tallow_need(tallow_present(t), "%s is absent: must be %s", rule->name, rule->shape) &&
           tallow_need(!t->reserved, "%s.reserved = %d: must be 0", rule->name, (int)t->reserved) &&
           need_dtype(t->dtype, rule) && need_shape(t, rule, out->rank) &&
           need_strides(t, rule, out->rank, strided, out->strides) &&
           need_data(t, rule, out->rank, level);
}

bool tallow_need_tensor(tensor_view *out, const tallow_tensor *t, check_level level,
                        const tensor_rule *rule) {
    return need_tensor(out, t, level, rule, false);
}

bool tallow_need_strided(tensor_view *out, const tallow_tensor *t, check_level level,
                         const tensor_rule *rule) {
    return need_tensor(out, t, level, rule, true);
}

/* --------------------------------------------------------------------------------------------
 * Views
 * ------------------------------------------------------------------------------------------ */

bool tallow_need_rows(rows_view *out, const tallow_tensor *t, check_level level,
                      const tensor_rule *rule) {
    tensor_view view;
    if (!tallow_need_tensor(&view, t, level, rule)) return false;
    const bool packed = view.rank == 3;
    *out = (rows_view){
        .data = view.data,
        .batch_stride = packed ? 0 : view.strides[0],
        .row_stride = view.strides[packed ? 0 : 1],
        .head_stride = view.strides[packed ? 1 : 2],
        .dtype = t->dtype,
    };
    return true;
}

bool tallow_need_lse(float **data, int64_t strides[2], const tallow_tensor *t, check_level level,
                     const tensor_rule *rule) {
    tensor_view view;
    if (!tallow_need_tensor(&view, t, level, rule)) return false;
    const bool packed = view.rank == 2;
    *data = view.data;
    strides[0] = packed ? 0 : view.strides[0];
    strides[1] = view.strides[packed ? 0 : 1];
    return true;
}

bool tallow_need_ints(int_view *out, const tallow_tensor *t, check_level level,
                      const tensor_rule *rule) {
    tensor_view view;
    *out = (int_view){0};
    if (!tallow_present(t)) return true;
    if (!tallow_need_strided(&view, t, level, rule)) return false;
    out->data = view.data;
    memcpy(out->stride, view.strides, sizeof out->stride);
    return true;
}

bool tallow_need_floats(float_view *out, const tallow_tensor *t, check_level level,
                        const tensor_rule *rule) {
    tensor_view view;
    *out = (float_view){0};
    if (!tallow_present(t)) return true;
    if (!tallow_need_strided(&view, t, level, rule)) return false;
    out->data = view.data;
    memcpy(out->stride, view.strides, sizeof out->stride);
    return true;
}

bool tallow_need_same_place(const char *out_name, const rows_view *out, const char *in_name,
                            const rows_view *in) {
    return tallow_need(out->data != in->data || out->data == nothing ||
                           (out->dtype == in->dtype && out->batch_stride == in->batch_stride &&
                            out->row_stride == in->row_stride &&
                            out->head_stride == in->head_stride),
                       "%s.data = %s.data: must have the same dtype and strides to be written over "
                       "it",
                       out_name, in_name);
}

bool tallow_need_device(int32_t device, int32_t threads, const void *stream, const char *pack) {
    return tallow_need(device == TALLOW_DEVICE_CPU || device == TALLOW_DEVICE_CUDA,
                       "device = %d: must be TALLOW_DEVICE_CPU (0) or TALLOW_DEVICE_CUDA (1)",
                       (int)device) &&
           tallow_need(threads >= 0, "threads = %d: must be at least 0, for OpenMP's choice",
                       (int)threads) &&
           tallow_need(!stream || device == TALLOW_DEVICE_CUDA,
                       "stream = %p: must be null on the CPU", stream) &&
           tallow_need(!pack || device == TALLOW_DEVICE_CUDA, "pack = %p: must be null on the CPU",
                       (const void *)pack);
}
