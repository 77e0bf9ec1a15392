/* libcuda.so.1 of a GPU that is emulated: memory is the host's, a stream's work is done when it is
 * put there, or, while it is captured, when the graph is launched. EMULATED_GPU says which
 * architecture, sm_90 when unset; EMULATED_SEED, which order of threads. */
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "image.h"
#include "tensor.h"
#include "threads.h"

#define ENTRY extern "C" __attribute__((visibility("default"))) int
typedef unsigned long long address;

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, NOT_FOUND = 500 };
enum { ALIGNMENT = 256 };

static std::recursive_mutex lock;
#define LOCKED std::lock_guard<std::recursive_mutex> guard(lock)

/* ---- the device ---- */

struct architecture {
    int capability, shared_kib;
};

static const architecture &gpu() {
    static const architecture all[] = {{75, 64}, {80, 163}, {86, 99},   {87, 163},
                                       {89, 99}, {90, 227}, {100, 227}, {120, 99}};
    const char *name = getenv("EMULATED_GPU");
    for (const architecture &a : all)
        if ("sm_" + std::to_string(a.capability) == (name ? name : "sm_90")) return a;
    fprintf(stderr, "EMULATED_GPU = %s: must be one of", name);
    for (const architecture &a : all) fprintf(stderr, " sm_%d", a.capability);
    fprintf(stderr, "\n");
    exit(2);
}

ENTRY cuInit(unsigned) { return gpu(), OK; }
ENTRY cuDriverGetVersion(int *version) { return *version = 13000, OK; }
ENTRY cuDeviceGetCount(int *count) { return *count = 1, OK; }
ENTRY cuDeviceGet(int *device, int ordinal) {
    return *device = ordinal, ordinal ? INVALID_VALUE : OK;
}
ENTRY cuDeviceGetName(char *name, int size, int) {
    return snprintf(name, (size_t)size, "emulated sm_%d", gpu().capability), OK;
}
ENTRY cuDeviceGetAttribute(int *value, int which, int) {
    switch (which) {
    case 16: *value = 4; return OK;       /* multiprocessors */
    case 38: *value = 1 << 20; return OK; /* L2 */
    case 75: *value = gpu().capability / 10; return OK;
    case 76: *value = gpu().capability % 10; return OK;
    case 97: *value = gpu().shared_kib << 10; return OK;
    case 120: *value = gpu().capability >= 90; return OK; /* clusters */
    default: return INVALID_VALUE;
    }
}
ENTRY cuGetErrorName(int error, const char **name) {
    static const std::map<int, const char *> names = {{INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
                                                      {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
                                                      {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
                                                      {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"}};
    auto found = names.find(error);
    *name = found == names.end() ? nullptr : found->second;
    return found == names.end() ? INVALID_VALUE : OK;
}

/* ---- contexts ---- */

static int the_context;
static thread_local std::vector<void *> contexts;

ENTRY cuDevicePrimaryCtxRetain(void **context, int) { return *context = &the_context, OK; }
ENTRY cuCtxSetCurrent(void *context) { return contexts.assign(1, context), OK; }
ENTRY cuCtxGetCurrent(void **context) {
    return *context = contexts.empty() ? nullptr : contexts.back(), OK;
}
ENTRY cuCtxGetDevice(int *device) { return *device = 0, contexts.empty() ? INVALID_VALUE : OK; }
ENTRY cuCtxPushCurrent_v2(void *context) { return contexts.push_back(context), OK; }
ENTRY cuCtxPopCurrent_v2(void **context) {
    if (contexts.empty()) return INVALID_VALUE;
    *context = contexts.back();
    return contexts.pop_back(), OK;
}
ENTRY cuCtxSynchronize() { return OK; }

/* ---- memory ---- */

/* Not destroyed: what a caller leaves on the GPU goes with the process. */
static std::map<address, size_t> &allocations = *new std::map<address, size_t>;

ENTRY cuMemAlloc_v2(address *memory, size_t bytes) {
    LOCKED;
    void *p =
        bytes ? aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT) : nullptr;
    if (!p) return bytes ? OUT_OF_MEMORY : INVALID_VALUE;
    memset(p, 0xff, bytes);
    allocations[ *memory = (address)p] = bytes;
    return OK;
}
ENTRY cuMemFree_v2(address memory) {
    LOCKED;
    if (!allocations.erase(memory)) return INVALID_VALUE;
    return free((void *)memory), OK;
}
ENTRY cuPointerGetAttributes(unsigned count, int *which, void **values, address pointer) {
    LOCKED;
    auto after = allocations.upper_bound(pointer);
    if (after == allocations.begin()) return INVALID_VALUE;
    auto found = std::prev(after);
    if (pointer > found->first + found->second) return INVALID_VALUE;
    for (unsigned i = 0; i < count; i++) {
        if (which[i] == 9)
            *(int *)values[i] = 0;
        else if (which[i] == 11)
            *(uint64_t *)values[i] = found->first;
        else if (which[i] == 12)
            *(uint64_t *)values[i] = found->second;
        else
            return INVALID_VALUE;
    }
    return OK;
}
ENTRY cuMemcpyHtoD_v2(address to, const void *from, size_t bytes) {
    return memcpy((void *)to, from, bytes), OK;
}
ENTRY cuMemcpyDtoH_v2(void *to, address from, size_t bytes) {
    return memcpy(to, (const void *)from, bytes), OK;
}

/* ---- streams and graphs ---- */

struct graph {
    std::vector<std::function<int()>> work;
};
struct stream {
    graph *captured;
};
static std::deque<graph> graphs; /* for as long as the process runs */
static std::deque<stream> streams;

static int put(void *on, std::function<int()> work) {
    LOCKED;
    graph *captured = (uintptr_t)on > 2 ? ((stream *)on)->captured : nullptr;
    if (!captured) return work();
    captured->work.push_back(std::move(work));
    return OK;
}

ENTRY cuStreamCreate(void **out, unsigned) {
    LOCKED;
    return *out = &streams.emplace_back(), OK;
}
ENTRY cuStreamGetCtx(void *, void **context) { return *context = &the_context, OK; }
ENTRY cuStreamIsCapturing(void *on, int *state) {
    return *state = (uintptr_t)on > 2 && ((stream *)on)->captured, OK;
}
ENTRY cuStreamBeginCapture_v2(void *on, int) {
    LOCKED;
    return ((stream *)on)->captured = &graphs.emplace_back(), OK;
}
ENTRY cuStreamEndCapture(void *on, void **out) {
    *out = ((stream *)on)->captured;
    return ((stream *)on)->captured = nullptr, OK;
}
ENTRY cuGraphInstantiateWithFlags(void **out, void *of, unsigned long long) {
    return *out = of, OK;
}
ENTRY cuGraphLaunch(void *of, void *) {
    for (auto &work : ((graph *)of)->work)
        if (int error = work()) return error;
    return OK;
}
ENTRY cuThreadExchangeStreamCaptureMode(int *) { return OK; }

ENTRY cuMemPoolCreate(void **pool, const void *) { return *pool = &the_context, OK; }
ENTRY cuMemPoolSetAttribute(void *, int, void *) { return OK; }
ENTRY cuMemPoolDestroy(void *) { return OK; }
ENTRY cuMemAllocFromPoolAsync(address *memory, size_t bytes, void *, void *) {
    return cuMemAlloc_v2(memory, bytes);
}
ENTRY cuMemFreeAsync(address memory, void *on) {
    return put(on, [=] { return cuMemFree_v2(memory); });
}
ENTRY cuMemsetD2D16Async(address to, size_t pitch, unsigned short value, size_t columns,
                         size_t rows, void *on) {
    return put(on, [=] {
        for (size_t row = 0; row < rows; row++)
            for (size_t i = 0; i < columns; i++) ((unsigned short *)(to + row * pitch))[i] = value;
        return (int)OK;
    });
}

/* ---- kernels ---- */

struct kernel {
    void (*entry)(const void *);
    const unsigned *argument_bytes, *together;
};

/* The library is a file for as long as it takes to load it. */
ENTRY cuLibraryLoadData(void **library, const void *data, int *, void **, unsigned, int *, void **,
                        unsigned) {
    const image_header *image = (const image_header *)data;
    if (memcmp(image->mark, IMAGE_MARK, sizeof image->mark)) return INVALID_IMAGE;
    char path[] = "/tmp/emulated-kernel-XXXXXX";
    const int file = mkstemp(path);
    const bool written = file >= 0 && write(file, image + 1, image->bytes) == (ssize_t)image->bytes;
    *library = written ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (!*library) fprintf(stderr, "emulator: %s\n", dlerror());
    if (file >= 0) close(file), unlink(path);
    return *library ? OK : INVALID_IMAGE;
}
ENTRY cuLibraryGetKernel(void **out, void *library, const char *name) {
    static std::deque<kernel> kernels;
    LOCKED;
    kernel *k = &kernels.emplace_back();
    const std::string bytes = std::string(name) + "_bytes";
    *(void **)&k->entry = dlsym(library, name);
    k->argument_bytes = (const unsigned *)dlsym(library, bytes.c_str());
    k->together = (const unsigned *)dlsym(library, (std::string(name) + "_together").c_str());
    *out = k;
    return k->entry && k->argument_bytes && k->together ? OK : NOT_FOUND;
}
ENTRY cuKernelGetFunction(void **function, void *of) { return *function = of, OK; }
ENTRY cuKernelSetAttribute(int which, int value, void *, int) {
    return which == 8 && value > gpu().shared_kib << 10 ? INVALID_VALUE : OK;
}

struct launch_config {
    unsigned grid[3], block[3], shared_bytes;
    void *stream, *attributes;
    unsigned count;
};

ENTRY cuLaunchKernelEx(const launch_config *c, void *function, void **args, void **) {
    static uint64_t launches;
    const char *seed = getenv("EMULATED_SEED");
    const kernel *k = (const kernel *)function;
    const unsigned threads = c->block[0] * c->block[1];
    const emulator::launch l = {k->entry,
                                nullptr,
                                c->grid[0],
                                {c->block[0], c->block[1]},
                                c->shared_bytes,
                                *k->together,
                                c->count > 0, /* the one attribute that is used: programmatic */
                                seed ? strtoull(seed, nullptr, 0) : 0};
    if (l.blocks % l.together || threads % 32 || threads > 1024 || !l.blocks || c->grid[1] != 1 ||
        c->grid[2] != 1 || c->block[2] != 1 || l.shared_bytes > (unsigned)gpu().shared_kib << 10)
        return INVALID_VALUE;
    struct alignas(64) block {
        char bytes[64];
    };
    std::vector<block> copy(*k->argument_bytes / sizeof(block) + 1);
    memcpy(copy.data(), args[0], *k->argument_bytes);
    return put(c->stream, [=] {
        emulator::launch now = l;
        now.args = copy.data();
        now.seed += ++launches;
        emulator::run(now);
        return (int)OK;
    });
}

ENTRY cuTensorMapEncodeTiled(void *map, int, unsigned rank, void *data, const uint64_t *dim,
                             const uint64_t *stride, const uint32_t *box, const uint32_t *steps,
                             int, int swizzle, int, int) {
    tensor t = {TENSOR_MARK, data, {}, {}, {}, (uint16_t)rank};
    if (rank < 3 || rank > 5 || (uintptr_t)data % 16 || (uintptr_t)map % 64 || swizzle != 3)
        return INVALID_VALUE;
    if (box[0] * 2 > 128) return INVALID_VALUE;
    for (unsigned i = 0; i < rank; i++) {
        if (!dim[i] || dim[i] > 1ull << 32 || !box[i] || box[i] > 256 || steps[i] != 1)
            return INVALID_VALUE;
        t.dim[i] = dim[i];
        t.box[i] = (uint16_t)box[i];
        if (i == 0) continue;
        if (!stride[i - 1] || stride[i - 1] % 16 || stride[i - 1] >> 40) return INVALID_VALUE;
        t.stride[i - 1] = stride[i - 1];
    }
    return memcpy(map, &t, sizeof t), OK;
}
