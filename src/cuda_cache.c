/* A cache that cannot be read or written costs time and nothing else: it may be removed, cut short
 * or written by many processes at once. */
#define _GNU_SOURCE /* dladdr1 */
#include "cuda_cache.h"

#include <dlfcn.h>
#include <errno.h>
#include <link.h>
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

/* The file that holds this code, the library or the program. */
static bool own_file(char path[CUDA_CACHE_PATH]) {
    Dl_info about;
    struct link_map *map;
    union {
        bool (*function)(char *);
        void *address;
    } here = {.function = own_file};
    if (!dladdr1(here.address, &about, (void **)&map, RTLD_DL_LINKMAP)) return false;
    if (map->l_name[0]) return join(path, map->l_name, "");
    ssize_t length = readlink("/proc/self/exe", path, CUDA_CACHE_PATH - 1);
    path[length > 0 ? length : 0] = 0;
    return length > 0;
}

bool tallow_cuda_own_pack(char path[CUDA_CACHE_PATH]) {
    char own[CUDA_CACHE_PATH];
    if (!own_file(own)) return false;
    char *slash = strrchr(own, '/');
    if (!slash) return false;
    *slash = 0;
    return join(path, own, "/tallow.pack");
}

/* A GPU runs what was compiled for it, or for an older one with the same major number. */
static bool find_in_pack(const spec *s, int capability, const char *path, pack_kernel *kernel) {
    char arch[CUDA_ARCH];
    if (!path || access(path, R_OK)) return false;
    for (int older = capability; older >= capability / 10 * 10; older--) {
        tallow_cuda_arch(older, arch);
        tallow_cuda_key(s, arch, 0, kernel->key);
        if (tallow_pack_find(path, false, kernel)) return true;
    }
    return false;
}

static bool find_packed(const spec *s, int capability, const char *given, pack_kernel *kernel) {
    char path[CUDA_CACHE_PATH];
    return find_in_pack(s, capability, given, kernel) ||
           (tallow_cuda_own_pack(path) && find_in_pack(s, capability, path, kernel));
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
    cuda_code code;
    const char *forbidden = getenv("TALLOW_NO_COMPILE");
    if (forbidden && *forbidden && strcmp(forbidden, "0"))
        return refuse(s, arch, "TALLOW_NO_COMPILE forbids to compile it");
    tallow_status status = tallow_cuda_compile(s, arch, &code);
    kernel->data = code.image;
    kernel->size = code.size;
    return status;
}

/* From the disk, else from the compiler and onto the disk. */
static tallow_status find_compiled(const spec *s, int capability, pack_kernel *kernel) {
    char arch[CUDA_ARCH], path[CUDA_CACHE_PATH], why[256];
    int version;
    tallow_status status = tallow_nvrtc_version(&version);
    if (status) {
        snprintf(why, sizeof why, "there is %s", tallow_last_error());
        tallow_cuda_arch(capability, arch);
        return refuse(s, arch, why);
    }
    status = tallow_nvrtc_arch(capability, arch);
    if (status) return status;
    tallow_cuda_key(s, arch, version, kernel->key);
    bool kept = entry_path(path, kernel->key);
    if (kept && tallow_pack_find(path, true, kernel)) return TALLOW_OK;
    status = compile(s, arch, kernel);
    if (!status && kept && tallow_pack_write(path, kernel)) tallow_clear_error();
    return status;
}

tallow_status tallow_cuda_image(const spec *s, int capability, const char *pack, void **image) {
    pack_kernel kernel = {0};
    tallow_status status = TALLOW_OK;
    if (!find_packed(s, capability, pack, &kernel)) status = find_compiled(s, capability, &kernel);
    *image = kernel.data;
    return status;
}
