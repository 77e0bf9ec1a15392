#include "cuda_gpu.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "case_cuda.h"
#include "cuda_find.h"
#include "cuda_sources.h"

typedef unsigned long long address;

/* A CUresult is an int whose 0 is success, a CUdevice an int, other handles are pointers. */
#define DRIVER(F)                                                                                  \
    F(cuGetErrorName, int, const char **)                                                          \
    F(cuDriverGetVersion, int *)                                                                   \
    F(cuDeviceGetName, char *, int, int)                                                           \
    F(cuDeviceGetAttribute, int *, int, int)                                                       \
    F(cuCtxSynchronize, void)                                                                      \
    F(cuMemAlloc_v2, address *, size_t)                                                            \
    F(cuMemFree_v2, address)                                                                       \
    F(cuMemsetD8_v2, address, unsigned char, size_t)                                               \
    F(cuMemcpyHtoD_v2, address, const void *, size_t)                                              \
    F(cuMemcpyDtoH_v2, void *, address, size_t)                                                    \
    F(cuMemcpyDtoDAsync_v2, address, address, size_t, void *)                                      \
    F(cuModuleLoadData, void **, const void *)                                                     \
    F(cuModuleGetFunction, void **, void *, const char *)                                          \
    F(cuLaunchKernel, void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,          \
      unsigned, void *, void **, void **)                                                          \
    F(cuEventCreate, void **, unsigned)                                                            \
    F(cuEventRecord, void *, void *)                                                               \
    F(cuEventSynchronize, void *)                                                                  \
    F(cuEventElapsedTime, float *, void *, void *)
#define NVRTC(F)                                                                                   \
    F(nvrtcCreateProgram, void **, const char *, const char *, int, const char *const *,           \
      const char *const *)                                                                         \
    F(nvrtcCompileProgram, void *, int, const char *const *)                                       \
    F(nvrtcGetProgramLogSize, void *, size_t *)                                                    \
    F(nvrtcGetProgramLog, void *, char *)                                                          \
    F(nvrtcGetCUBINSize, void *, size_t *)                                                         \
    F(nvrtcGetCUBIN, void *, char *)                                                               \
    F(nvrtcGetPTXSize, void *, size_t *)                                                           \
    F(nvrtcGetPTX, void *, char *)                                                                 \
    F(nvrtcDestroyProgram, void **)

#define DECLARE(name, ...) int (*name)(__VA_ARGS__);
static struct { DRIVER(DECLARE) } driver;
static struct { NVRTC(DECLARE) } nvrtc;

enum { MAJOR = 75, MINOR = 76, MOST_HEADERS = 8 };

static char error_text[2048];

void gpu_fail(const char *format, ...) {
    va_list arguments;
    if (error_text[0]) return;
    va_start(arguments, format);
    vsnprintf(error_text, sizeof error_text, format, arguments);
    va_end(arguments);
}

const char *gpu_error(void) { return error_text[0] ? error_text : NULL; }

static bool check(int code, const char *call) {
    const char *name = NULL;
    if (!code) return true;
    if (driver.cuGetErrorName(code, &name) || !name) name = "an unknown error";
    gpu_fail("%s: %s", call, name);
    return false;
}

static void find_entry(const char *name, void *pointer) {
    void *function = case_cuda_function(name);
    memcpy(pointer, &function, sizeof function);
}

bool gpu_open(void) {
    case_device device;
    char why[256];
    if (driver.cuGetErrorName) return !gpu_error();
    if (!case_cuda_open(&device, why, sizeof why)) {
        gpu_fail("no GPU: %s", why);
        return false;
    }
#define FIND_ENTRY(name, ...) find_entry(#name, &driver.name);
    DRIVER(FIND_ENTRY)
    return true;
}

void gpu_describe(char *name, size_t size, int *version) {
    check(driver.cuDeviceGetName(name, (int)size, 0), "cuDeviceGetName");
    check(driver.cuDriverGetVersion(version), "cuDriverGetVersion");
}

/* ---- memory ---- */

void *gpu_take(size_t bytes) {
    address memory = 0;
    if (gpu_error() || !check(driver.cuMemAlloc_v2(&memory, bytes + 1), "cuMemAlloc")) return NULL;
    check(driver.cuMemsetD8_v2(memory, 0, bytes + 1), "cuMemsetD8");
    return (void *)(uintptr_t)memory;
}

void gpu_give(void *memory) {
    if (memory) check(driver.cuMemFree_v2((uintptr_t)memory), "cuMemFree");
}

void gpu_put(void *to, const void *host, size_t bytes) {
    if (!gpu_error()) check(driver.cuMemcpyHtoD_v2((uintptr_t)to, host, bytes), "cuMemcpyHtoD");
}

void gpu_get(void *host, const void *from, size_t bytes) {
    gpu_wait();
    if (!gpu_error()) check(driver.cuMemcpyDtoH_v2(host, (uintptr_t)from, bytes), "cuMemcpyDtoH");
}

void gpu_copy(void *to, const void *from, size_t bytes) {
    if (gpu_error()) return;
    check(driver.cuMemcpyDtoDAsync_v2((uintptr_t)to, (uintptr_t)from, bytes, NULL), "cuMemcpyDtoD");
}

void gpu_wait(void) {
    if (!gpu_error()) check(driver.cuCtxSynchronize(), "cuCtxSynchronize");
}

/* ---- kernels ---- */

static bool open_nvrtc(void) {
    void *library = nvrtc.nvrtcDestroyProgram ? NULL : cuda_find_library("libnvrtc");
    if (!library) return nvrtc.nvrtcDestroyProgram != NULL;
    bool found = true;
#define FIND_NVRTC(name, ...) found = cuda_find_function(library, #name, &nvrtc.name) && found;
    NVRTC(FIND_NVRTC)
    return found;
}

static void *compiled(void *program, bool ptx) {
    size_t size = 0;
    int failed =
        ptx ? nvrtc.nvrtcGetPTXSize(program, &size) : nvrtc.nvrtcGetCUBINSize(program, &size);
    char *image = failed ? NULL : malloc(size + 1);
    if (!image) return NULL;
    failed = ptx ? nvrtc.nvrtcGetPTX(program, image) : nvrtc.nvrtcGetCUBIN(program, image);
    if (!failed) return image;
    free(image);
    return NULL;
}

static void read_log(void *program, char *why, size_t why_size) {
    size_t size = 0;
    char *log = nvrtc.nvrtcGetProgramLogSize(program, &size) ? NULL : calloc(1, size + 1);
    if (log && !nvrtc.nvrtcGetProgramLog(program, log)) snprintf(why, why_size, "%s", log);
    free(log);
}

void *gpu_compile(const char *source, const char *arch, char *why, size_t why_size) {
    const char *names[MOST_HEADERS], *texts[MOST_HEADERS], *text = NULL;
    char flag[48];
    const char *options[] = {flag, "--std=c++17", "-default-device"};
    void *program = NULL, *image = NULL;
    int count = 0;
    snprintf(why, why_size,
             "libnvrtc.so is neither where the loader looks nor in CUDA_HOME, /usr/local/cuda or a "
             "Python wheel");
    if (!open_nvrtc()) return NULL;
    for (; count < cuda_source_count && count < MOST_HEADERS; count++) {
        names[count] = cuda_sources[count].name;
        texts[count] = cuda_sources[count].text;
        if (!strcmp(names[count], source)) text = texts[count];
    }
    snprintf(flag, sizeof flag, "-arch=%s", arch);
    snprintf(why, why_size, "NVRTC refuses %s for %s", source, arch);
    if (nvrtc.nvrtcCreateProgram(&program, text, source, count, texts, names)) return NULL;
    if (nvrtc.nvrtcCompileProgram(program, 3, options)) {
        read_log(program, why, why_size);
    } else {
        image = compiled(program, !strncmp(arch, "compute", 7));
    }
    nvrtc.nvrtcDestroyProgram(&program);
    return image;
}

bool gpu_kernels(const char *source, int count, const char *const *names, void **kernels) {
    char arch[16], why[1024];
    int major = 0, minor = 0;
    void *module = NULL;
    check(driver.cuDeviceGetAttribute(&major, MAJOR, 0), "cuDeviceGetAttribute");
    check(driver.cuDeviceGetAttribute(&minor, MINOR, 0), "cuDeviceGetAttribute");
    snprintf(arch, sizeof arch, "sm_%d%d", major, minor);
    void *image = gpu_compile(source, arch, why, sizeof why);
    /* A GPU newer than NVRTC: the driver translates. */
    if (!image) image = gpu_compile(source, "compute_80", why, sizeof why);
    if (!image) {
        gpu_fail("%s: %s", source, why);
        return false;
    }
    if (check(driver.cuModuleLoadData(&module, image), "cuModuleLoadData")) {
        for (int i = 0; i < count; i++)
            check(driver.cuModuleGetFunction(&kernels[i], module, names[i]), names[i]);
    }
    free(image);
    return !gpu_error();
}

void gpu_launch(void *kernel, int64_t blocks, int64_t blocks_y, int threads, void **args) {
    if (gpu_error() || blocks == 0 || blocks_y == 0) return;
    check(driver.cuLaunchKernel(kernel, (unsigned)blocks, (unsigned)blocks_y, 1, (unsigned)threads,
                                1, 1, 0, NULL, args, NULL),
          "cuLaunchKernel");
}

/* ---- time ---- */

double gpu_seconds(void (*run)(void *context), void *context, int count) {
    static void *begin, *end;
    float milliseconds = 0;
    if (gpu_error()) return 0;
    if (!begin) {
        check(driver.cuEventCreate(&begin, 0), "cuEventCreate");
        check(driver.cuEventCreate(&end, 0), "cuEventCreate");
    }
    if (gpu_error()) return 0;
    check(driver.cuEventRecord(begin, NULL), "cuEventRecord");
    for (int i = 0; i < count; i++) run(context);
    check(driver.cuEventRecord(end, NULL), "cuEventRecord");
    check(driver.cuEventSynchronize(end), "cuEventSynchronize");
    if (!gpu_error())
        check(driver.cuEventElapsedTime(&milliseconds, begin, end), "cuEventElapsedTime");
    return 1e-3 * (double)milliseconds;
}
