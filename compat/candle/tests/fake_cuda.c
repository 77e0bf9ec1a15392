#define _POSIX_C_SOURCE 200809L
#include "fake_cuda.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, LAUNCH_FAILED = 719 }; /* CUresult */
enum { MULTIPROCESSORS = 16, L2_BYTES = 38, MAJOR = 75, MINOR = 76, SHARED_BYTES = 97 };
enum { DEVICE_ORDINAL = 9, RANGE_START = 11, RANGE_SIZE = 12 };

typedef unsigned long long address;

fake_cuda fake;
static char context, pool, handle;

/* Names and arguments are CUDA's; arguments that say nothing here are left out. */
#define FAKE(name, ...)                                                                            \
    int name(__VA_ARGS__);                                                                         \
    int name(__VA_ARGS__)

FAKE(cuInit, unsigned flags) { return (int)flags; }
FAKE(cuDriverGetVersion, int *version) { return *version = 13000, SUCCESS; }
FAKE(cuDeviceGetCount, int *count) { return *count = 1, SUCCESS; }
FAKE(cuDeviceGet, int *device, int ordinal) { return *device = ordinal, SUCCESS; }
FAKE(cuDeviceGetName, char *name, int size, int device) {
    return memset(name, 0, (size_t)size), name[0] = 'F', device;
}
FAKE(cuDeviceGetAttribute, int *value, int which, int device) {
    *value = which == MULTIPROCESSORS ? 132
             : which == L2_BYTES      ? 50 << 20
             : which == MAJOR         ? 9
             : which == SHARED_BYTES  ? 227 << 10
                                      : 0;
    return device;
}
FAKE(cuDevicePrimaryCtxRetain, void **out, int device) { return *out = &context, device; }
FAKE(cuGetErrorName, int error, const char **name) {
    *name = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_LAUNCH_FAILED";
    return SUCCESS;
}
FAKE(cuCtxGetCurrent, void **out) { return *out = &context, SUCCESS; }
FAKE(cuCtxGetDevice, int *device) { return *device = 0, SUCCESS; }
FAKE(cuCtxPushCurrent_v2, void *pushed) { return pushed != &context; }
FAKE(cuCtxPopCurrent_v2, void **out) { return *out = &context, SUCCESS; }
FAKE(cuStreamGetCtx, void *stream, void **out) { return (void)stream, *out = &context, SUCCESS; }
FAKE(cuStreamIsCapturing, void *stream, int *state) { return (void)stream, *state = 0, SUCCESS; }
FAKE(cuPointerGetAttributes, unsigned count, int *which, void **values, address pointer) {
    for (unsigned i = 0; i < count; i++) switch (which[i]) {
        case DEVICE_ORDINAL: *(int *)values[i] = pointer ? 0 : -1; break;
        case RANGE_START: *(uint64_t *)values[i] = pointer; break;
        case RANGE_SIZE: *(uint64_t *)values[i] = fake.room; break;
        default: return 1;
        }
    return SUCCESS;
}
FAKE(cuLibraryLoadData, void **out, const void *image) { return *out = &handle, !image; }
FAKE(cuLibraryGetKernel, void **out, void *library) { return *out = library, SUCCESS; }
FAKE(cuKernelGetFunction, void **out, void *kernel) { return *out = kernel, SUCCESS; }
FAKE(cuKernelSetAttribute, void) { return SUCCESS; }
FAKE(cuTensorMapEncodeTiled, void *map, int type, unsigned rank, void *data, const uint64_t *dim) {
    (void)map, (void)type;
    if (rank == 4) fake.key_rows = dim[1];
    return !data;
}
FAKE(cuLaunchKernelEx, void) {
    fake.launched++;
    return fake.launch_fails ? LAUNCH_FAILED : SUCCESS;
}
FAKE(cuMemPoolCreate, void **out, const void *properties) {
    const struct timespec while_others_come = {.tv_nsec = 100000000};
    fake.pools++;
    nanosleep(&while_others_come, NULL);
    return *out = &pool, !properties;
}
FAKE(cuMemPoolSetAttribute, void *of, int which, void *value) {
    if (of != &pool || which != 4 || fake.attribute_fails) return LAUNCH_FAILED;
    fake.kept = *(uint64_t *)value;
    return SUCCESS;
}
FAKE(cuMemPoolDestroy, void *of) {
    static const char note[] = "cuMemPoolDestroy";
    fake.pools--;
    return of != &pool || write(STDERR_FILENO, note, sizeof note - 1) < 0;
}
FAKE(cuMemAllocFromPoolAsync, address *out, size_t bytes, void *from) {
    if (fake.allocation_fails || from != &pool) return OUT_OF_MEMORY;
    fake.allocated++;
    *out = (uintptr_t)aligned_alloc(256, (bytes + 255) / 256 * 256);
    return SUCCESS;
}
FAKE(cuMemFreeAsync, address memory) {
    fake.freed++;
    return free((void *)(uintptr_t)memory), SUCCESS;
}
FAKE(cuMemsetD2D16Async, address to, size_t pitch, unsigned short value, size_t columns,
     size_t rows) {
    if (pitch < 2 * columns) return LAUNCH_FAILED;
    for (size_t i = 0; i < rows * columns; i++)
        memcpy((char *)(uintptr_t)to + i / columns * pitch + i % columns * 2, &value, 2);
    return SUCCESS;
}
FAKE(cuMemcpyDtoH_v2, void *host, address from, size_t bytes) {
    return memcpy(host, (const void *)(uintptr_t)from, bytes), SUCCESS;
}
FAKE(cuThreadExchangeStreamCaptureMode, int *mode) { return (void)mode, SUCCESS; }
