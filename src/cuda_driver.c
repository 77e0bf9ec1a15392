#include "cuda_driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The few entries needed, as the driver API documents them: a CUresult or nvrtcResult is an int
 * whose 0 is success, a CUdevice is an int. */
typedef int (*cu_init_fn)(unsigned flags);
typedef int (*cu_int_fn)(int *out);
typedef int (*cu_device_get_fn)(int *device, int ordinal);
typedef int (*cu_device_name_fn)(char *name, int size, int device);
typedef int (*cu_device_attribute_fn)(int *value, int attribute, int device);
typedef int (*cu_error_name_fn)(int error, const char **name);
typedef int (*nvrtc_version_fn)(int *major, int *minor);

enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 }; /* CUdevice_attribute */

typedef struct {
    cu_init_fn init;
    cu_int_fn driver_version, device_count;
    cu_device_get_fn device_get;
    cu_device_name_fn device_name;
    cu_device_attribute_fn device_attribute;
    cu_error_name_fn error_name;
} driver;

static void note_load_error(char *why, size_t size) {
    const char *error = dlerror();
    snprintf(why, size, "%s", error ? error : "it could not be loaded");
}

/* A library once opened stays open: the driver does not survive being closed. */
static int open_driver(driver *d, char *why, size_t size) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) return note_load_error(why, size), 0;
    d->init = (cu_init_fn)dlsym(library, "cuInit");
    d->driver_version = (cu_int_fn)dlsym(library, "cuDriverGetVersion");
    d->device_count = (cu_int_fn)dlsym(library, "cuDeviceGetCount");
    d->device_get = (cu_device_get_fn)dlsym(library, "cuDeviceGet");
    d->device_name = (cu_device_name_fn)dlsym(library, "cuDeviceGetName");
    d->device_attribute = (cu_device_attribute_fn)dlsym(library, "cuDeviceGetAttribute");
    d->error_name = (cu_error_name_fn)dlsym(library, "cuGetErrorName");
    if (d->init && d->driver_version && d->device_count && d->device_get && d->device_name &&
        d->device_attribute && d->error_name)
        return 1;
    snprintf(why, size, "libcuda.so.1 lacks a function of the CUDA driver API");
    return 0;
}

static int succeeded(const driver *d, int error, const char *call, cuda_facts *facts) {
    const char *name = NULL;
    if (!error) return 1;
    if (d->error_name(error, &name) || !name) name = "an unknown error";
    snprintf(facts->no_gpu, sizeof facts->no_gpu, "%s: %s", call, name);
    return 0;
}

static void find_gpus(cuda_facts *facts) {
    driver d;
    int count = 0;
    if (!open_driver(&d, facts->no_gpu, sizeof facts->no_gpu)) return;
    if (!succeeded(&d, d.driver_version(&facts->driver), "cuDriverGetVersion", facts)) return;
    if (!succeeded(&d, d.init(0), "cuInit", facts)) return;
    if (!succeeded(&d, d.device_count(&count), "cuDeviceGetCount", facts)) return;
    for (int i = 0; i < count && i < CUDA_MAX_GPUS; i++) {
        int device, major, minor;
        char name[sizeof facts->gpu[0].name];
        if (!succeeded(&d, d.device_get(&device, i), "cuDeviceGet", facts) ||
            !succeeded(&d, d.device_name(name, sizeof name, device), "cuDeviceGetName", facts) ||
            !succeeded(&d, d.device_attribute(&major, CAPABILITY_MAJOR, device),
                       "cuDeviceGetAttribute", facts) ||
            !succeeded(&d, d.device_attribute(&minor, CAPABILITY_MINOR, device),
                       "cuDeviceGetAttribute", facts))
            return;
        snprintf(facts->gpu[i].name, sizeof name, "%s", name);
        facts->gpu[i].major = major;
        facts->gpu[i].minor = minor;
        facts->gpus = i + 1;
    }
    if (!count) snprintf(facts->no_gpu, sizeof facts->no_gpu, "the driver counts no device");
}

/* The loader's own search first, then where the CUDA toolkit installs. */
static void *open_nvrtc(void) {
    static const char *const names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
    const char *const folders[] = {getenv("CUDA_HOME"), "/usr/local/cuda"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (library) return library;
    }
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        char path[4096];
        if (!folders[i]) continue;
        int length = snprintf(path, sizeof path, "%s/lib64/libnvrtc.so", folders[i]);
        void *library = length < (int)sizeof path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
        if (library) return library;
    }
    return NULL;
}

static void find_nvrtc(cuda_facts *facts) {
    int major, minor;
    void *library = open_nvrtc();
    if (!library) {
        note_load_error(facts->no_nvrtc, sizeof facts->no_nvrtc);
        return;
    }
    nvrtc_version_fn version = (nvrtc_version_fn)dlsym(library, "nvrtcVersion");
    if (version && !version(&major, &minor))
        facts->nvrtc = 1000 * major + 10 * minor;
    else
        snprintf(facts->no_nvrtc, sizeof facts->no_nvrtc, "it does not tell its version");
}

void tallow_cuda_find(cuda_facts *out) {
    memset(out, 0, sizeof *out);
    find_gpus(out);
    find_nvrtc(out);
}
