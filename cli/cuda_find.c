#define _POSIX_C_SOURCE 200809L
#include "cuda_find.h"

#include <dlfcn.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The last of the files that match, which has the highest version, that can be opened. */
static void *open_match(const char *root, const char *below, const char *name) {
    char path[1024];
    glob_t found;
    void *library = NULL;
    if (!root || !*root) return NULL;
    int length = snprintf(path, sizeof path, "%s%s/%s.so*", root, below, name);
    if (length >= (int)sizeof path || glob(path, 0, NULL, &found)) return NULL;
    for (size_t i = found.gl_pathc; i > 0 && !library; i--)
        library = dlopen(found.gl_pathv[i - 1], RTLD_NOW);
    globfree(&found);
    return library;
}

void *cuda_find_library(const char *name) {
    static const char *const versions[] = {".13", ".12", ""};
    static const char *const wheels[] = {"/lib/python3*/site-packages/nvidia/c*/lib",
                                         "/lib/python3*/dist-packages/nvidia/c*/lib"};
    const char *home = getenv("HOME");
    char file[128], local[512] = "";
    void *library = NULL;
    for (size_t i = 0; i < sizeof versions / sizeof *versions && !library; i++) {
        snprintf(file, sizeof file, "%s.so%s", name, versions[i]);
        library = dlopen(file, RTLD_NOW);
    }
    if (home) snprintf(local, sizeof local, "%s/.local", home);
    const char *const roots[] = {getenv("VIRTUAL_ENV"), getenv("CONDA_PREFIX"), local, "/usr/local",
                                 "/usr"};
    if (!library) library = open_match(getenv("CUDA_HOME"), "/lib64", name);
    if (!library) library = open_match("/usr/local/cuda", "/lib64", name);
    for (size_t i = 0; i < sizeof roots / sizeof *roots && !library; i++) {
        for (size_t w = 0; w < sizeof wheels / sizeof *wheels && !library; w++)
            library = open_match(roots[i], wheels[w], name);
    }
    return library;
}

int cuda_find_function(void *library, const char *name, void *pointer) {
    void *function = dlsym(library, name);
    memcpy(pointer, &function, sizeof function);
    return function != NULL;
}
