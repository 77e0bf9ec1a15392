#include "case_cuda.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long address;

static struct {
    void *library;
    int (*allocate)(address *, size_t);
    int (*release)(address);
    int (*to_device)(address, const void *, size_t);
    int (*to_host)(void *, address, size_t);
    int (*wait)(void);
} driver;

static void must(int error, const char *what) {
    if (!error) return;
    fprintf(stderr, "%s: CUDA error %d\n", what, error);
    exit(1);
}

void *case_cuda_function(const char *name) {
    void *function = driver.library ? dlsym(driver.library, name) : NULL;
    if (!function) {
        fprintf(stderr, "libcuda.so.1 lacks %s\n", name);
        exit(1);
    }
    return function;
}

static void find(const char *name, void *pointer) {
    void *function = case_cuda_function(name);
    memcpy(pointer, &function, sizeof function);
}

static void *upload(void *context, const void *host, size_t bytes) {
    address memory;
    (void)context;
    must(driver.allocate(&memory, bytes), "cuMemAlloc");
    must(driver.to_device(memory, host, bytes), "cuMemcpyHtoD");
    return (void *)(uintptr_t)memory;
}

/* Waits first, so that what a kernel did wrong is reported where it was launched. */
static void download(void *context, void *host, void *device, size_t bytes) {
    (void)context;
    must(driver.wait(), "cuCtxSynchronize");
    must(driver.to_host(host, (uintptr_t)device, bytes), "cuMemcpyDtoH");
    must(driver.release((uintptr_t)device), "cuMemFree");
}

bool case_cuda_open(case_device *device, char *why, size_t why_size) {
    int (*init)(unsigned), (*count_gpus)(int *), (*retain)(void **, int), (*make_current)(void *);
    int count = 0, error;
    void *context;
    driver.library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!driver.library) return snprintf(why, why_size, "%s", dlerror()), false;
    find("cuInit", &init);
    find("cuDeviceGetCount", &count_gpus);
    find("cuDevicePrimaryCtxRetain", &retain);
    find("cuCtxSetCurrent", &make_current);
    find("cuMemAlloc_v2", &driver.allocate);
    find("cuMemFree_v2", &driver.release);
    find("cuMemcpyHtoD_v2", &driver.to_device);
    find("cuMemcpyDtoH_v2", &driver.to_host);
    find("cuCtxSynchronize", &driver.wait);
    error = init(0);
    if (!error) error = count_gpus(&count);
    if (error || !count)
        return snprintf(why, why_size, "the driver counts no GPU (error %d)", error), false;
    must(retain(&context, 0), "cuDevicePrimaryCtxRetain");
    must(make_current(context), "cuCtxSetCurrent");
    *device = (case_device){.upload = upload, .download = download};
    return true;
}
