/* A cache that cannot be read or written costs time and nothing else: it may be removed, cut short
 * or written by many processes at once. */
#define _GNU_SOURCE /* dladdr */
#include "cuda_cache.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cuda_compile.h"
#include "pack.h"

static bool join(char path[CUDA_CACHE_PATH], const char *folder, const char *below) {
    int length = snprintf(path, CUDA_CACHE_PATH, "%s%s", folder, below);
    return length >= 0 && length < CUDA_CACHE_PATH;
}

bool tallow_cuda_cache_folder(char path[CUDA_CACHE_PATH]) {
    const char *own = getenv("TALLOW_CACHE_DIR"), *xdg = getenv("XDG_CACHE_HOME"),
               *home = getenv("HOME");
    if (own && *own) return join(path, own, "");
    if (xdg && *xdg) return join(path, xdg, "/tallow");
    return home && *home && join(path, home, "/.cache/tallow");
}

/* Makes the folder and those above it, and sees that nobody else may write to it. */
static bool make_folder(char path[CUDA_CACHE_PATH]) {
    struct stat about;
    for (char *slash = path + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        bool failed = mkdir(path, 0700) && errno != EEXIST;
        *slash = '/';
        if (failed) return false;
    }
    if (mkdir(path, 0700) && errno != EEXIST) return false;
    return !lstat(path, &about) && S_ISDIR(about.st_mode) && about.st_uid == geteuid() &&
           !(about.st_mode & (S_IWGRP | S_IWOTH));
}

/* The file of a key; false: there is no folder to be trusted. */
static bool entry_path(char path[CUDA_CACHE_PATH], const uint8_t key[SHA256_BYTES]) {
    char folder[CUDA_CACHE_PATH], name[2 * SHA256_BYTES + 16] = "/";
    if (!tallow_cuda_cache_folder(folder) || !make_folder(folder)) return false;
    for (int i = 0; i < SHA256_BYTES; i++) sprintf(name + 1 + 2 * i, "%02x", (unsigned)key[i]);
    strcat(name, ".kernel");
    return join(path, folder, name);
}

/* ---- packs ---- */

/* tallow.pack in the folder of the file that holds this code. */
static bool beside_library(char path[CUDA_CACHE_PATH]) {
    Dl_info about;
    union {
        bool (*function)(char *);
        void *address;
    } here = {.function = beside_library};
    if (!dladdr(here.address, &about) || !about.dli_fname || !join(path, about.dli_fname, ""))
        return false;
    char *slash = strrchr(path, '/');
    *(slash ? slash : path) = 0;
    size_t used = strlen(path);
    return used + sizeof "/tallow.pack" <= CUDA_CACHE_PATH &&
           strcpy(path + used, slash ? "/tallow.pack" : "tallow.pack");
}

static bool find_packed(const spec *s, int capability, pack_kernel *kernel) {
    char path[CUDA_CACHE_PATH], arch[CUDA_ARCH];
    const char *given = getenv("TALLOW_PACK");
    snprintf(arch, sizeof arch, "sm_%d%s", capability, capability == 90 ? "a" : "");
    tallow_cuda_key(s, arch, 0, kernel->key);
    return (given && *given && tallow_pack_find(given, false, kernel)) ||
           (beside_library(path) && tallow_pack_find(path, false, kernel));
}

/* ---- the compiler ---- */

static tallow_status refuse(const spec *s, const char *arch, const char *why) {
    char key[SPEC_KEY];
    tallow_spec_key(s, key);
    return tallow_fail(TALLOW_NO_COMPILER,
                       "kernel %s for %s is in no pack and not in the cache, and %s", key, arch,
                       why);
}

static tallow_status compile(const spec *s, const char *arch, pack_kernel *kernel) {
    char log[CUDA_LOG];
    const char *forbidden = getenv("TALLOW_NO_COMPILE");
    if (forbidden && *forbidden && strcmp(forbidden, "0"))
        return refuse(s, arch, "TALLOW_NO_COMPILE forbids to compile it");
    return tallow_cuda_compile(s, arch, &kernel->data, &kernel->size, log);
}

tallow_status tallow_cuda_image(const spec *s, int capability, void **image) {
    char arch[CUDA_ARCH], path[CUDA_CACHE_PATH], why[256];
    pack_kernel kernel = {0};
    int version;
    bool kept = find_packed(s, capability, &kernel);
    *image = kernel.data;
    if (kept) return TALLOW_OK;
    tallow_status status = tallow_nvrtc_version(&version);
    if (status) {
        snprintf(arch, sizeof arch, "sm_%d", capability);
        snprintf(why, sizeof why, "there is %s", tallow_last_error());
        return refuse(s, arch, why);
    }
    status = tallow_nvrtc_arch(capability, arch);
    if (status) return status;
    tallow_cuda_key(s, arch, version, kernel.key);
    kept = entry_path(path, kernel.key);
    if (kept && tallow_pack_find(path, true, &kernel)) {
        *image = kernel.data;
        return TALLOW_OK;
    }
    status = compile(s, arch, &kernel);
    if (!status && kept && tallow_pack_write(path, &kernel, 1)) tallow_clear_error();
    *image = kernel.data;
    return status;
}
