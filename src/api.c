/* The exported functions: params into a problem, a problem into a plan, a plan onto a backend. */
#include "cpu.h"
#include "cuda.h"
#include "cuda_pack.h"
#include "error.h"
#include "system.h"

uint32_t tallow_version(void) {
    return TALLOW_VERSION_MAJOR * 1000000u + TALLOW_VERSION_MINOR * 1000u + TALLOW_VERSION_PATCH;
}

static tallow_status need_text(const char *text, size_t text_size) {
    if (!text) return tallow_fail(TALLOW_INVALID_ARGUMENT, "text is null: must be a buffer");
    if (!text_size)
        return tallow_fail(TALLOW_INVALID_ARGUMENT, "text_size = 0: must be at least 1");
    return TALLOW_OK;
}

static tallow_status check(problem *p, const tallow_attention_params *params, size_t params_size,
                           check_level level) {
    tallow_clear_error();
    return tallow_problem_init(p, params, params_size, level);
}

tallow_status tallow_attention(const tallow_attention_params *params, size_t params_size) {
    problem p;
    plan chosen;
    tallow_status status = check(&p, params, params_size, CHECK_DATA);
    if (status) return status;
    if (p.device == TALLOW_DEVICE_CUDA) return tallow_cuda_attention(&p);
    status = tallow_plan_make(&chosen, &p);
    return status ? status : tallow_cpu_attention(&p, &chosen);
}

tallow_status tallow_attention_workspace(const tallow_attention_params *params, size_t params_size,
                                         size_t *bytes) {
    problem p;
    plan chosen;
    tallow_status status = check(&p, params, params_size, CHECK_SHAPES);
    if (status) return status;
    if (!bytes) return tallow_fail(TALLOW_INVALID_ARGUMENT, "bytes is null: must be a size_t");
    if (p.device == TALLOW_DEVICE_CUDA) return tallow_cuda_workspace(&p, bytes);
    status = tallow_plan_make(&chosen, &p);
    if (!status) *bytes = chosen.workspace;
    return status;
}

/* On the CPU there is nothing to compile: a call that can be planned is ready. */
tallow_status tallow_attention_prepare(const tallow_attention_params *params, size_t params_size) {
    problem p;
    plan chosen;
    tallow_status status = check(&p, params, params_size, CHECK_SHAPES);
    if (status) return status;
    return p.device == TALLOW_DEVICE_CUDA ? tallow_cuda_prepare(&p) : tallow_plan_make(&chosen, &p);
}

tallow_status tallow_attention_describe(const tallow_attention_params *params, size_t params_size,
                                        char *text, size_t text_size) {
    problem p;
    plan chosen;
    tallow_status status = check(&p, params, params_size, CHECK_SHAPES);
    if (!status) status = need_text(text, text_size);
    if (status) return status;
    if (p.device == TALLOW_DEVICE_CUDA) return tallow_cuda_describe(&p, text, text_size);
    status = tallow_plan_make(&chosen, &p);
    if (!status) tallow_plan_describe(&chosen, &p, text, text_size);
    return status;
}

tallow_status tallow_attention_compile(const tallow_attention_params *params, size_t params_size,
                                       const char *arch, char *text, size_t text_size) {
    problem p;
    tallow_status status = check(&p, params, params_size, CHECK_SHAPES);
    if (!status) status = need_text(text, text_size);
    if (!status && p.device != TALLOW_DEVICE_CUDA)
        status = tallow_fail(TALLOW_INVALID_ARGUMENT,
                             "device = 0: must be TALLOW_DEVICE_CUDA (1), as only GPUs have packs");
    return status ? status : tallow_cuda_pack(&p, arch, text, text_size);
}

tallow_status tallow_rotary(const tallow_rotary_params *params, size_t params_size) {
    rotary_problem p;
    tallow_clear_error();
    tallow_status status = tallow_rotary_problem_init(&p, params, params_size);
    if (status) return status;
    return p.device == TALLOW_DEVICE_CUDA ? tallow_cuda_rotary(&p) : tallow_cpu_rotary(&p);
}

tallow_status tallow_merge(const tallow_merge_params *params, size_t params_size) {
    merge_problem p;
    tallow_clear_error();
    tallow_status status = tallow_merge_problem_init(&p, params, params_size);
    if (status) return status;
    return p.device == TALLOW_DEVICE_CUDA ? tallow_cuda_merge(&p) : tallow_cpu_merge(&p);
}

tallow_status tallow_system_describe(char *text, size_t text_size) {
    cpu_level level;
    tallow_clear_error();
    tallow_status status = need_text(text, text_size);
    if (!status) status = tallow_cpu_level(&level);
    if (!status) tallow_system_text(level, text, text_size);
    return status;
}
