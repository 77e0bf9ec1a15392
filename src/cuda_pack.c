#include "cuda_pack.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_compile.h"
#include "pack.h"
#include "plan_cuda.h"

/* What a thread block may have in shared memory, by compute capability: CUDA C++ Programming Guide,
 * "Technical Specifications". */
static const struct {
    int capability, shared_kib;
} known[] = {{75, 64},   {80, 163},  {86, 99},   {87, 163}, {89, 99}, {90, 227},
             {100, 227}, {103, 227}, {110, 227}, {120, 99}, {121, 99}};
enum { KNOWN = sizeof known / sizeof *known };

static tallow_status refuse_arch(const char *arch) {
    char accepted[256] = "", name[CUDA_ARCH];
    size_t used = 0;
    for (int i = 0; i < KNOWN; i++) {
        const char *between = i == 0 ? "" : i == KNOWN - 1 ? " or " : ", ";
        tallow_cuda_arch(known[i].capability, name);
        used += (size_t)snprintf(accepted + used, sizeof accepted - used, "%s%s", between, name);
    }
    return tallow_fail(TALLOW_INVALID_ARGUMENT, "arch = %s: must be %s", arch ? arch : "null",
                       accepted);
}

/* A GPU of the architecture, as far as the choice of a kernel asks. */
static tallow_status find_gpu(const char *arch, cuda_gpu *gpu) {
    *gpu = (cuda_gpu){.multiprocessors = 100, .l2_bytes = (size_t)32 << 20};
    for (int i = 0; i < KNOWN && arch; i++) {
        tallow_cuda_arch(known[i].capability, gpu->name);
        gpu->capability = known[i].capability;
        gpu->shared_bytes = (size_t)known[i].shared_kib * 1024;
        gpu->pairs = gpu->capability == 90;
        if (!strcmp(gpu->name, arch)) return TALLOW_OK;
    }
    return refuse_arch(arch);
}

typedef struct {
    int compiled, spilled, serialized;
    char slow[SPEC_KEY]; /* the last that spills or is serialized */
} counts;

static tallow_status compile(const spec *s, const cuda_gpu *gpu, cuda_code *code) {
    char arch[CUDA_ARCH];
    tallow_status status = tallow_nvrtc_arch(gpu->capability, arch);
    if (!status && strcmp(arch, gpu->name))
        return tallow_fail(TALLOW_UNSUPPORTED,
                           "arch = %s: this NVRTC does not know it, a newer one does", gpu->name);
    return status ? status : tallow_cuda_compile(s, arch, code);
}

static tallow_status add(const spec *s, const cuda_gpu *gpu, const char *pack, counts *n) {
    cuda_code code;
    bool added;
    pack_kernel kernel = {0};
    tallow_cuda_key(s, gpu->name, 0, kernel.key);
    if (tallow_pack_find(pack, false, &kernel)) return free(kernel.data), TALLOW_OK;
    tallow_status status = compile(s, gpu, &code);
    if (status) return status;
    kernel.data = code.image;
    kernel.size = code.size;
    status = tallow_pack_add(pack, &kernel, &added);
    free(code.image);
    if (added) {
        n->compiled++;
        n->spilled += code.spills;
        n->serialized += code.serialized;
        if (code.spills || code.serialized) tallow_spec_key(s, n->slow);
    }
    return status;
}

static tallow_status add_forward(const problem *p, const cuda_gpu *gpu, counts *n) {
    spec kernels[PLAN_KERNELS];
    tallow_status status = TALLOW_OK;
    const int count = tallow_cuda_plan_kernels(kernels, p, gpu);
    for (int i = 0; i < count && !status; i++) status = add(&kernels[i], gpu, p->pack, n);
    return status;
}

tallow_status tallow_cuda_pack(const problem *p, const char *arch, char *text, size_t text_size) {
    static const spec rows_program = {0};
    char key[SPEC_KEY];
    cuda_plan plan;
    cuda_gpu gpu;
    counts n = {0};
    tallow_status status = find_gpu(arch, &gpu);
    if (!status) status = tallow_cuda_plan_make(&plan, p, &gpu);
    if (status) return status;
    const spec *forward = plan.blocks > 0 ? &plan.kernel : &rows_program;
    if (p->pack && plan.blocks > 0) status = add_forward(p, &gpu, &n);
    if (p->pack && !status) status = add(&rows_program, &gpu, p->pack, &n);
    if (status) return status;
    tallow_spec_key(forward, key);
    snprintf(text, text_size, "arch %s\nkernel %s\ncompiled %d\nspilled %d\nserialized %d\n%s%s%s",
             arch, key, n.compiled, n.spilled, n.serialized, n.slow[0] ? "slow " : "", n.slow,
             n.slow[0] ? "\n" : "");
    return TALLOW_OK;
}
