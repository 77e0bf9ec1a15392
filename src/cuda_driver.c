#define _POSIX_C_SOURCE 200809L
#include "cuda_driver.h"

#include <dlfcn.h>
#include <glob.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* CUmemPoolProps; what is left 0 is the default. */
typedef struct {
    int allocation, handles, location, ordinal;
    void *security;
    size_t most_bytes;
    unsigned short usage;
    unsigned char reserved[54];
} pool_properties;

/* The entries needed, as their documentation has them: a CUresult or nvrtcResult is an int whose 0
 * is success, a CUdevice an int, other handles are pointers. */
#define DRIVER(F)                                                                                  \
    F(cuInit, unsigned)                                                                            \
    F(cuDriverGetVersion, int *)                                                                   \
    F(cuDeviceGetCount, int *)                                                                     \
    F(cuDeviceGet, int *, int)                                                                     \
    F(cuDeviceGetName, char *, int, int)                                                           \
    F(cuDeviceGetAttribute, int *, int, int)                                                       \
    F(cuDevicePrimaryCtxRetain, void **, int)                                                      \
    F(cuGetErrorName, int, const char **)                                                          \
    F(cuCtxGetCurrent, void **)                                                                    \
    F(cuCtxGetDevice, int *)                                                                       \
    F(cuCtxPushCurrent_v2, void *)                                                                 \
    F(cuCtxPopCurrent_v2, void **)                                                                 \
    F(cuStreamGetCtx, void *, void **)                                                             \
    F(cuStreamIsCapturing, void *, int *)                                                          \
    F(cuPointerGetAttributes, unsigned, int *, void **, unsigned long long)                        \
    F(cuLibraryLoadData, void **, const void *, int *, void **, unsigned, int *, void **,          \
      unsigned)                                                                                    \
    F(cuLibraryGetKernel, void **, void *, const char *)                                           \
    F(cuKernelGetFunction, void **, void *)                                                        \
    F(cuKernelSetAttribute, int, int, void *, int)                                                 \
    F(cuTensorMapEncodeTiled, void *, int, unsigned, void *, const uint64_t *, const uint64_t *,   \
      const uint32_t *, const uint32_t *, int, int, int, int)                                      \
    F(cuLaunchKernelEx, const launch_config *, void *, void **, void **)                           \
    F(cuMemPoolCreate, void **, const pool_properties *)                                           \
    F(cuMemPoolSetAttribute, void *, int, void *)                                                  \
    F(cuMemPoolDestroy, void *)                                                                    \
    F(cuMemAllocFromPoolAsync, unsigned long long *, size_t, void *, void *)                       \
    F(cuMemFreeAsync, unsigned long long, void *)                                                  \
    F(cuMemsetD2D16Async, unsigned long long, size_t, unsigned short, size_t, size_t, void *)      \
    F(cuMemcpyDtoH_v2, void *, unsigned long long, size_t)                                         \
    F(cuThreadExchangeStreamCaptureMode, int *)
#define NVRTC(F)                                                                                   \
    F(nvrtcVersion, int *, int *)                                                                  \
    F(nvrtcGetNumSupportedArchs, int *)                                                            \
    F(nvrtcGetSupportedArchs, int *)                                                               \
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

/* CUlaunchConfig and CUlaunchAttribute */
typedef struct {
    int id, padding;
    union {
        int value;
        char room[64];
    };
} launch_attribute;
typedef struct {
    unsigned grid[3], block[3], shared_bytes;
    void *stream;
    launch_attribute *attributes;
    unsigned count;
} launch_config;

#define DECLARE(name, ...) int (*name)(__VA_ARGS__);
#define NAME(name, ...)    #name,
static struct { DRIVER(DECLARE) } driver;
static struct { NVRTC(DECLARE) } nvrtc;
static const char *const driver_names[] = {DRIVER(NAME)};
static const char *const nvrtc_names[] = {NVRTC(NAME)};

/* CUdevice_attribute, CUfunction_attribute and CUpointer_attribute */
enum { MULTIPROCESSORS = 16, L2_BYTES = 38, MAJOR = 75, MINOR = 76, SHARED_BYTES = 97 };
enum { CLUSTER_LAUNCH = 120 };
enum { MOST_DYNAMIC_SHARED = 8, SHARED_CARVEOUT = 9 };
enum { DEVICE_ORDINAL = 9, RANGE_START = 11, RANGE_SIZE = 12 };
enum { PROGRAMMATIC_DEPENDENT = 6 };                       /* CUlaunchAttributeID */
enum { OUT_OF_MEMORY = 2 };                                /* CUresult */
enum { MAP_F16 = 6, MAP_BF16 = 9, MAP_NO_INTERLEAVE = 0 }; /* CUtensorMap... */
enum { MAP_SWIZZLE_128 = 3, MAP_PROMOTE_256 = 3, MAP_ZEROS = 0 };
enum { PINNED = 1, DEVICE = 1, RELEASE_THRESHOLD = 4 }; /* of a CUmemPoolProps and its pool */
enum { CAPTURE_RELAXED = 2 };                           /* CUstreamCaptureMode */
enum { CAPTURE_ACTIVE = 1 };                            /* CUstreamCaptureStatus */

typedef enum { UNKNOWN, PRESENT, MISSING } presence;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic(presence) driver_presence, nvrtc_presence;
static cuda_facts facts; /* written once, under the lock */
static void *primary[CUDA_MAX_GPUS], *pools[CUDA_MAX_GPUS];

/* Fills a table of function pointers; the name of the first that the library lacks, or null. */
static const char *fill_table(void *library, const char *const *names, size_t count, void *table) {
    for (size_t i = 0; i < count; i++) {
        void *function = dlsym(library, names[i]);
        if (!function) return names[i];
        memcpy((char *)table + i * sizeof function, &function, sizeof function);
    }
    return NULL;
}

static void note_load_error(char *why, size_t size) {
    const char *error = dlerror();
    snprintf(why, size, "%s", error ? error : "it could not be loaded");
}

static const char *error_name(int error) {
    const char *name = NULL;
    if (driver.cuGetErrorName(error, &name) || !name) name = "an unknown error";
    return name;
}

/* The status of a driver's call. */
static tallow_status status_of(int error, const char *call) {
    if (!error) return TALLOW_OK;
    return tallow_fail(error == OUT_OF_MEMORY ? TALLOW_OUT_OF_MEMORY : TALLOW_DEVICE_ERROR,
                       "%s: %s", call, error_name(error));
}

/* ---- the driver and its GPUs ---- */

static bool noted(int error, const char *call) {
    if (error) snprintf(facts.no_gpu, sizeof facts.no_gpu, "%s: %s", call, error_name(error));
    return !error;
}

static bool attribute(int *value, int which, int device) {
    return noted(driver.cuDeviceGetAttribute(value, which, device), "cuDeviceGetAttribute");
}

static bool describe_gpu(int ordinal, cuda_gpu *gpu) {
    int device, major, minor, multiprocessors, shared, l2, clusters = 0;
    if (!noted(driver.cuDeviceGet(&device, ordinal), "cuDeviceGet") ||
        !noted(driver.cuDeviceGetName(gpu->name, sizeof gpu->name, device), "cuDeviceGetName") ||
        !attribute(&major, MAJOR, device) || !attribute(&minor, MINOR, device) ||
        !attribute(&multiprocessors, MULTIPROCESSORS, device) ||
        !attribute(&shared, SHARED_BYTES, device) || !attribute(&l2, L2_BYTES, device))
        return false;
    gpu->ordinal = ordinal;
    gpu->capability = 10 * major + minor;
    gpu->multiprocessors = multiprocessors;
    gpu->shared_bytes = (size_t)shared;
    gpu->l2_bytes = (size_t)l2;
    gpu->pairs = !driver.cuDeviceGetAttribute(&clusters, CLUSTER_LAUNCH, device) && clusters;
    gpu->starts_early = gpu->capability >= 90 && facts.driver >= 12030; /* in graphs, too */
    return true;
}

/* A library once opened stays open: the driver does not survive being closed. */
static bool open_driver(void) {
    int count = 0;
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) return note_load_error(facts.no_gpu, sizeof facts.no_gpu), false;
    const char *lacks =
        fill_table(library, driver_names, sizeof driver_names / sizeof *driver_names, &driver);
    if (lacks) {
        snprintf(facts.no_gpu, sizeof facts.no_gpu,
                 "libcuda.so.1 lacks %s: the driver must serve CUDA 12.0 or later", lacks);
        return false;
    }
    if (!noted(driver.cuDriverGetVersion(&facts.driver), "cuDriverGetVersion") ||
        !noted(driver.cuInit(0), "cuInit") ||
        !noted(driver.cuDeviceGetCount(&count), "cuDeviceGetCount"))
        return false;
    if (!count) snprintf(facts.no_gpu, sizeof facts.no_gpu, "the driver counts no device");
    for (int i = 0; i < count && i < CUDA_MAX_GPUS; i++) {
        if (!describe_gpu(i, &facts.gpu[i])) break;
        facts.gpus = i + 1;
    }
    return facts.gpus > 0;
}

/* ---- NVRTC ---- */

static void *open_in(const char *folder, const char *below) {
    char path[1024];
    glob_t found;
    void *library = NULL;
    if (!folder || !*folder) return NULL;
    int length = snprintf(path, sizeof path, "%s%s", folder, below);
    if (length < 0 || length >= (int)sizeof path || glob(path, 0, NULL, &found)) return NULL;
    for (size_t i = found.gl_pathc; i > 0 && !library; i--)
        library = dlopen(found.gl_pathv[i - 1], RTLD_NOW | RTLD_LOCAL);
    globfree(&found);
    return library;
}

/* Where a Python environment keeps the wheels of CUDA 12 and of later ones. */
static void *open_wheel(const char *root) {
    void *library = open_in(root, "/lib/python3*/site-packages/nvidia/c*/lib/libnvrtc.so.1[0-9]");
    return library ? library
                   : open_in(root, "/lib/python3*/dist-packages/nvidia/c*/lib/libnvrtc.so.1[0-9]");
}

/* What the environment names, then the loader's own search, then where CUDA and pip install. */
static void *find_nvrtc(void) {
    static const char *const names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
    const char *home = getenv("HOME");
    char local[512] = "";
    if (home) snprintf(local, sizeof local, "%s/.local", home);
    void *library = open_in(getenv("CUDA_HOME"), "/lib64/libnvrtc.so*");
    if (!library) library = open_wheel(getenv("VIRTUAL_ENV"));
    if (!library) library = open_in(getenv("CONDA_PREFIX"), "/lib/libnvrtc.so*");
    if (!library) library = open_wheel(getenv("CONDA_PREFIX"));
    for (size_t i = 0; i < sizeof names / sizeof *names && !library; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!library) library = open_in("/usr/local/cuda", "/lib64/libnvrtc.so*");
    if (!library) library = open_wheel(local);
    if (!library) library = open_wheel("/usr/local");
    return library ? library : open_wheel("/usr");
}

static bool open_nvrtc(void) {
    int major, minor;
    void *library = find_nvrtc();
    if (!library) {
        snprintf(facts.no_nvrtc, sizeof facts.no_nvrtc,
                 "libnvrtc.so is neither in CUDA_HOME, VIRTUAL_ENV or CONDA_PREFIX nor where the "
                 "loader looks, nor in /usr/local/cuda or a Python wheel");
        return false;
    }
    const char *lacks =
        fill_table(library, nvrtc_names, sizeof nvrtc_names / sizeof *nvrtc_names, &nvrtc);
    if (lacks || nvrtc.nvrtcVersion(&major, &minor)) {
        snprintf(facts.no_nvrtc, sizeof facts.no_nvrtc, "libnvrtc.so lacks %s",
                 lacks ? lacks : "a version");
        return false;
    }
    facts.nvrtc = 1000 * major + 10 * minor;
    return true;
}

static bool have(_Atomic(presence) *known, bool (*open)(void)) {
    if (*known == UNKNOWN) {
        pthread_mutex_lock(&lock);
        if (*known == UNKNOWN) *known = open() ? PRESENT : MISSING;
        pthread_mutex_unlock(&lock);
    }
    return *known == PRESENT;
}

static tallow_status need_driver(void) {
    if (have(&driver_presence, open_driver)) return TALLOW_OK;
    return tallow_fail(TALLOW_NO_DEVICE, "device = TALLOW_DEVICE_CUDA: %s", facts.no_gpu);
}

static tallow_status need_nvrtc(void) {
    if (have(&nvrtc_presence, open_nvrtc)) return TALLOW_OK;
    return tallow_fail(TALLOW_NO_COMPILER, "no NVRTC: %s", facts.no_nvrtc);
}

void tallow_cuda_find(cuda_facts *out) {
    have(&driver_presence, open_driver);
    have(&nvrtc_presence, open_nvrtc);
    *out = facts;
}

/* ---- contexts ---- */

/* The ordinal of the GPU that a pointer lies on; negative: the driver does not know the pointer,
 * which is no error to this one of its functions. */
static int gpu_of(cuda_scope *scope, const void *pointer) {
    int attributes[] = {DEVICE_ORDINAL, RANGE_START, RANGE_SIZE}, ordinal = -1;
    void *values[] = {&ordinal, &scope->start, &scope->size};
    if (driver.cuPointerGetAttributes(3, attributes, values, (uintptr_t)pointer)) ordinal = -1;
    if (ordinal < 0) scope->size = 0;
    return ordinal;
}

/* The GPU of the current context; -1: there is none. */
static int current_gpu(void) {
    void *context = NULL;
    int ordinal;
    if (driver.cuCtxGetCurrent(&context) || !context) return -1;
    return driver.cuCtxGetDevice(&ordinal) ? -1 : ordinal;
}

static bool is_capturing(void *stream) {
    int state;
    return !driver.cuStreamIsCapturing(stream, &state) && state == CAPTURE_ACTIVE;
}

bool tallow_cuda_knows(cuda_scope *scope, const void *pointer, void *stream) {
    return (uintptr_t)pointer - scope->start < scope->size || gpu_of(scope, pointer) >= 0 ||
           is_capturing(stream);
}

int64_t tallow_cuda_room(const void *pointer) {
    int attributes[] = {RANGE_START, RANGE_SIZE};
    uint64_t start = 0, size = 0;
    void *values[] = {&start, &size};
    if (driver.cuPointerGetAttributes(2, attributes, values, (uintptr_t)pointer)) return 0;
    return size > (uintptr_t)pointer - start ? (int64_t)(size - ((uintptr_t)pointer - start)) : 0;
}

static tallow_status push_primary(int ordinal) {
    pthread_mutex_lock(&lock);
    int error = primary[ordinal] ? 0 : driver.cuDevicePrimaryCtxRetain(&primary[ordinal], ordinal);
    pthread_mutex_unlock(&lock);
    tallow_status status = status_of(error, "cuDevicePrimaryCtxRetain");
    return status ? status
                  : status_of(driver.cuCtxPushCurrent_v2(primary[ordinal]), "cuCtxPushCurrent");
}

/* The GPU of the stream, else of the current context, else the first. Small handles are the names
 * of default streams. */
static int likely_gpu(void *stream) {
    void *context = NULL, *popped;
    int ordinal = -1;
    if ((uintptr_t)stream > 2 && !driver.cuStreamGetCtx(stream, &context) && context &&
        !driver.cuCtxPushCurrent_v2(context)) {
        ordinal = current_gpu();
        driver.cuCtxPopCurrent_v2(&popped);
    }
    if (ordinal < 0) ordinal = current_gpu();
    return ordinal < 0 ? 0 : ordinal;
}

tallow_status tallow_cuda_enter(cuda_scope *scope, const char *name, const void *pointer,
                                void *stream) {
    *scope = (cuda_scope){0};
    tallow_status status = need_driver();
    if (status) return status;
    int ordinal = gpu_of(scope, pointer);
    if (ordinal < 0 && (!name || is_capturing(stream))) ordinal = likely_gpu(stream);
    if (ordinal < 0)
        return tallow_fail(TALLOW_INVALID_ARGUMENT,
                           "%s.data = %p: must be memory of a GPU, as device = TALLOW_DEVICE_CUDA",
                           name, pointer);
    if (ordinal >= facts.gpus)
        return tallow_fail(TALLOW_UNSUPPORTED, "GPU %d: must be one of the first %d", ordinal,
                           facts.gpus);
    scope->gpu = &facts.gpu[ordinal];
    if (current_gpu() == ordinal) return TALLOW_OK;
    status = push_primary(ordinal);
    scope->pushed = !status;
    return status;
}

void tallow_cuda_leave(const cuda_scope *scope) {
    void *popped;
    if (scope->pushed) driver.cuCtxPopCurrent_v2(&popped);
}

/* ---- kernels ---- */

tallow_status tallow_cuda_load(void **library, const void *image, const char *what) {
    int error = driver.cuLibraryLoadData(library, image, NULL, NULL, 0, NULL, NULL, 0);
    if (!error) return TALLOW_OK;
    return tallow_fail(error == OUT_OF_MEMORY ? TALLOW_OUT_OF_MEMORY : TALLOW_DEVICE_ERROR,
                       "cuLibraryLoadData of kernel %s: %s", what, error_name(error));
}

/* Asking for the function loads the code now, where a capture of the stream might forbid it later.
 */
tallow_status tallow_cuda_entry(void **entry, void *library, const char *name, int shared_bytes,
                                const cuda_gpu *gpu) {
    void *function;
    tallow_status status =
        status_of(driver.cuLibraryGetKernel(entry, library, name), "cuLibraryGetKernel");
    if (!status && shared_bytes > 0) {
        int error =
            driver.cuKernelSetAttribute(MOST_DYNAMIC_SHARED, shared_bytes, *entry, gpu->ordinal);
        if (!error) error = driver.cuKernelSetAttribute(SHARED_CARVEOUT, 100, *entry, gpu->ordinal);
        status = status_of(error, "cuKernelSetAttribute");
    }
    return status ? status
                  : status_of(driver.cuKernelGetFunction(&function, *entry), "cuKernelGetFunction");
}

tallow_status tallow_cuda_launch(void *entry, cuda_shape shape, void *stream, const void *args) {
    void *list[] = {(void *)(uintptr_t)args}; /* only read */
    launch_attribute early = {.id = PROGRAMMATIC_DEPENDENT, .value = 1};
    launch_config config = {
        .grid = {shape.blocks, 1, 1},
        .block = {shape.threads[0], shape.threads[1], 1},
        .shared_bytes = shape.shared_bytes,
        .stream = stream,
        .attributes = &early,
        .count = shape.early,
    };
    return status_of(driver.cuLaunchKernelEx(&config, entry, list, NULL), "cuLaunchKernelEx");
}

tallow_status tallow_cuda_encode(void *map, const cuda_tensor *t) {
    static const uint32_t steps[5] = {1, 1, 1, 1, 1};
    int error = driver.cuTensorMapEncodeTiled(
        map, t->f16 ? MAP_F16 : MAP_BF16, (unsigned)t->rank, (void *)(uintptr_t)t->data, t->dim,
        t->stride, t->box, steps, MAP_NO_INTERLEAVE, MAP_SWIZZLE_128, MAP_PROMOTE_256, MAP_ZEROS);
    return status_of(error, "cuTensorMapEncodeTiled");
}

/* ---- memory ---- */

static const unsigned long long POOL_KEEPS = 64ull << 20; /* bytes that no call uses */

/* The driver may be shutting down as well; then it frees them itself. A thread that still computes
 * makes another. */
static void destroy_pools(void) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < CUDA_MAX_GPUS; i++) {
        if (pools[i]) driver.cuMemPoolDestroy(pools[i]);
        pools[i] = NULL;
    }
    pthread_mutex_unlock(&lock);
}

static int create_pool(void **pool, int ordinal) {
    const pool_properties properties = {
        .allocation = PINNED, .location = DEVICE, .ordinal = ordinal};
    unsigned long long keeps = POOL_KEEPS;
    int error = driver.cuMemPoolCreate(pool, &properties);
    if (error) return error;
    error = driver.cuMemPoolSetAttribute(*pool, RELEASE_THRESHOLD, &keeps);
    if (error) driver.cuMemPoolDestroy(*pool);
    return error;
}

/* Creating a pool is no work of the stream, so a capture need not forbid it. */
static int find_pool(void **pool, int ordinal) {
    static bool registered;
    int error = 0, mode = CAPTURE_RELAXED;
    pthread_mutex_lock(&lock);
    if (!registered) registered = atexit(destroy_pools) == 0;
    if (!pools[ordinal]) {
        driver.cuThreadExchangeStreamCaptureMode(&mode);
        error = create_pool(&pools[ordinal], ordinal);
        if (error) pools[ordinal] = NULL;
        driver.cuThreadExchangeStreamCaptureMode(&mode);
    }
    *pool = pools[ordinal];
    pthread_mutex_unlock(&lock);
    return error;
}

tallow_status tallow_cuda_allocate(void **memory, size_t bytes, const cuda_scope *scope,
                                   void *stream) {
    unsigned long long address = 0;
    void *pool;
    tallow_status status = status_of(find_pool(&pool, scope->gpu->ordinal), "cuMemPoolCreate");
    if (!status)
        status = status_of(driver.cuMemAllocFromPoolAsync(&address, bytes, pool, stream),
                           "cuMemAllocFromPoolAsync");
    *memory = (void *)(uintptr_t)address;
    return status;
}

tallow_status tallow_cuda_free(void *memory, void *stream) {
    return status_of(driver.cuMemFreeAsync((uintptr_t)memory, stream), "cuMemFreeAsync");
}

tallow_status tallow_cuda_fill(void *to, size_t pitch, uint16_t value, size_t columns, size_t rows,
                               void *stream) {
    if (columns == 0 || rows == 0) return TALLOW_OK;
    return status_of(driver.cuMemsetD2D16Async((uintptr_t)to, pitch, value, columns, rows, stream),
                     "cuMemsetD2D16Async");
}

tallow_status tallow_cuda_read(void *host, const void *from, size_t bytes) {
    return status_of(driver.cuMemcpyDtoH_v2(host, (uintptr_t)from, bytes), "cuMemcpyDtoH");
}

/* ---- compiling ---- */

tallow_status tallow_nvrtc_version(int *version) {
    tallow_status status = need_nvrtc();
    *version = facts.nvrtc;
    return status;
}

void tallow_cuda_arch(int capability, char arch[CUDA_ARCH]) {
    snprintf(arch, CUDA_ARCH, "sm_%d%s", capability, capability == 90 ? "a" : "");
}

tallow_status tallow_nvrtc_arch(int capability, char arch[CUDA_ARCH]) {
    int archs[64], count = 0, newest = 0;
    tallow_status status = need_nvrtc();
    if (status) return status;
    if (nvrtc.nvrtcGetNumSupportedArchs(&count) || count > 64 ||
        nvrtc.nvrtcGetSupportedArchs(archs))
        return tallow_fail(TALLOW_NO_COMPILER, "NVRTC does not say which GPUs it compiles for");
    for (int i = 0; i < count; i++)
        if (archs[i] <= capability && archs[i] > newest) newest = archs[i];
    if (!newest)
        return tallow_fail(TALLOW_UNSUPPORTED,
                           "NVRTC %d.%d does not compile for GPUs as old as sm_%d",
                           facts.nvrtc / 1000, facts.nvrtc % 1000 / 10, capability);
    /* There kernels are launched before they may run, and wait by an instruction of sm_90. */
    if (capability >= 90 && newest < 90)
        return tallow_fail(TALLOW_UNSUPPORTED,
                           "NVRTC %d.%d does not compile for sm_%d: must be 11.8 or later",
                           facts.nvrtc / 1000, facts.nvrtc % 1000 / 10, capability);
    snprintf(arch, CUDA_ARCH, "compute_%d", newest);
    if (newest == capability) tallow_cuda_arch(capability, arch);
    return TALLOW_OK;
}

static void read_log(void *program, char *log, size_t log_size) {
    size_t size = 0;
    log[0] = 0;
    if (nvrtc.nvrtcGetProgramLogSize(program, &size) || !size) return;
    char *text = calloc(1, size + 1);
    if (text && !nvrtc.nvrtcGetProgramLog(program, text)) snprintf(log, log_size, "%s", text);
    free(text);
}

static bool read_image(void *program, bool ptx, void **image, size_t *size) {
    if (ptx ? nvrtc.nvrtcGetPTXSize(program, size) : nvrtc.nvrtcGetCUBINSize(program, size))
        return false;
    *image = malloc(*size + 1);
    return *image &&
           !(ptx ? nvrtc.nvrtcGetPTX(program, *image) : nvrtc.nvrtcGetCUBIN(program, *image));
}

tallow_status tallow_nvrtc_compile(const nvrtc_job *job, void **image, size_t *size, char *log,
                                   size_t log_size) {
    void *program = NULL;
    tallow_status status = need_nvrtc();
    *image = NULL;
    log[0] = 0;
    if (status) return status;
    if (nvrtc.nvrtcCreateProgram(&program, job->text, job->name, job->headers, job->header_texts,
                                 job->header_names))
        return tallow_fail(TALLOW_COMPILE_FAILED, "NVRTC takes no program");
    bool ok = !nvrtc.nvrtcCompileProgram(program, job->options, job->option);
    read_log(program, log, log_size);
    ok = ok && read_image(program, job->ptx, image, size);
    nvrtc.nvrtcDestroyProgram(&program);
    if (ok) return TALLOW_OK;
    free(*image);
    *image = NULL;
    return tallow_fail(TALLOW_COMPILE_FAILED, "NVRTC refuses %s: %s", job->name, log);
}
