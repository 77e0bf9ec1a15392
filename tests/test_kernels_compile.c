/* Kernels compiled by NVRTC for several GPUs, on a machine that needs none: no error, no spill. One
 * specialisation stands for each way that a kernel can be laid out; skipped without NVRTC. */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "expect.h"
#include "spec.h"

enum { SKIPPED = 77, MOST_FILES = 64 };

typedef void *program;
static struct {
    int (*create)(program *, const char *, const char *, int, const char *const *,
                  const char *const *);
    int (*compile)(program, int, const char *const *);
    int (*log_size)(program, size_t *);
    int (*log)(program, char *);
    int (*destroy)(program *);
} nvrtc;

static bool find_function(void *library, const char *name, void *function) {
    void *found = dlsym(library, name);
    memcpy(function, &found, sizeof found);
    return found;
}

static bool open_nvrtc(void) {
    static const char *const names[] = {"libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12",
                                        "/usr/local/cuda/lib64/libnvrtc.so"};
    void *library = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names && !library; i++)
        library = dlopen(names[i], RTLD_NOW);
    return library && find_function(library, "nvrtcCreateProgram", &nvrtc.create) &&
           find_function(library, "nvrtcCompileProgram", &nvrtc.compile) &&
           find_function(library, "nvrtcGetProgramLogSize", &nvrtc.log_size) &&
           find_function(library, "nvrtcGetProgramLog", &nvrtc.log) &&
           find_function(library, "nvrtcDestroyProgram", &nvrtc.destroy);
}

/* ---- sources ---- */

static char *names[MOST_FILES], *texts[MOST_FILES];
static int files;

static char *read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    char *text = calloc(1, 1 << 17);
    if (!file || !text || fread(text, 1, (1 << 17) - 1, file) == 0) abort();
    fclose(file);
    return text;
}

static void read_folder(const char *path) {
    DIR *folder = opendir(path);
    if (!folder) abort();
    for (struct dirent *e = readdir(folder); e && files < MOST_FILES; e = readdir(folder)) {
        const char *kind = strrchr(e->d_name, '.');
        char full[512];
        if (!strstr(".cuh .cu .def", kind ? kind : "?") && strcmp(e->d_name, "args.h")) continue;
        if (e->d_name[0] == '.') continue;
        snprintf(full, sizeof full, "%s/%s", path, e->d_name);
        names[files] = strdup(e->d_name);
        texts[files++] = read_file(full);
    }
    closedir(folder);
}

static const char *source_of(const spec *s) {
    for (int i = 0; i < files; i++)
        if (!strcmp(names[i], tallow_spec_source(s))) return texts[i];
    abort();
}

/* ---- compiling ---- */

/* A line of the log tells of spilled bytes. */
static bool spills(const char *log) {
    for (const char *at = log; (at = strstr(at, " bytes spill ")); at++)
        if (at[-1] != '0' || at[-2] != ' ') return true;
    return false;
}

static void check_kernel(const spec *s, const char *arch) {
    const char *list[SPEC_OPTIONS + 4] = {arch, "--std=c++17", "-default-device",
                                          "--ptxas-options=-v"};
    char key[SPEC_KEY], *log = NULL;
    program compiled = NULL;
    spec_options options;
    size_t size = 0;
    EXPECT(tallow_spec_check(s) == TALLOW_OK, "%s", tallow_last_error());
    tallow_spec_key(s, key);
    tallow_spec_options(s, &options);
    for (int i = 0; i < options.count; i++) list[4 + i] = options.text[i];
    nvrtc.create(&compiled, source_of(s), tallow_spec_source(s), files, (const char *const *)texts,
                 (const char *const *)names);
    int status = nvrtc.compile(compiled, 4 + options.count, list);
    nvrtc.log_size(compiled, &size);
    log = calloc(1, size + 1);
    if (!log) abort();
    nvrtc.log(compiled, log);
    EXPECT(status == 0, "%s %s: %s", key, arch, log);
    EXPECT(strstr(log, " bytes spill "), "%s %s says nothing of spills: %s", key, arch, log);
    EXPECT(!spills(log), "%s %s: %s", key, arch, log);
    free(log);
    nvrtc.destroy(&compiled);
}

static const spec kernels[] = {
    {0},
    {80, TALLOW_BF16, 128, 128, 0, 0, 1, 0, 0, 0},
    {80, TALLOW_F16, 64, 64, 0, 1, 2, 1, 0, 0},
    {80, TALLOW_BF16, 128, 128, 0, 1, 3, 1, 1, 0},
    {80, TALLOW_BF16, 128, 128, 0, 0, 2, 0, 0, 0},
    {80, TALLOW_BF16, 64, 64, 0, 0, 1, 0, 0, 0},
    {80, TALLOW_F16, 128, 128, 0, 0, 3, 0, 0, 0},
    {80, TALLOW_BF16, 256, 256, 0, 0, 1, 0, 0, 0},
    {80, TALLOW_F16, 72, 200, 0, 1, 2, 0, 0, 0},
    {80, TALLOW_BF16, 576, 512, 0, 0, 2, 1, 0, 0},
    {80, TALLOW_BF16, 128, 128, 1, 0, 1, 1, 0, 0},
    {80, TALLOW_F32, 80, 128, 0, 1, 1, 1, 1, 0},
    {80, TALLOW_F32, 512, 512, 0, 0, 1, 0, 0, 0},
    {80, TALLOW_F32, 128, 128, 1, 1, 1, 0, 0, 0},
};

int main(void) {
    static const struct {
        const char *option;
        int32_t shared_memory;
    } gpus[] = {{"-arch=sm_80", 163}, {"-arch=sm_86", 99}, {"-arch=sm_90a", 227}};
    if (!open_nvrtc()) {
        puts("no NVRTC on this machine: nothing is compiled");
        return SKIPPED;
    }
    read_folder(SOURCES "/kernels");
    read_folder(SOURCES "/src");
    for (size_t k = 0; k < sizeof kernels / sizeof *kernels; k++)
        for (size_t g = 0; g < sizeof gpus / sizeof *gpus; g++) {
            spec s = kernels[k];
            if (s.family) s.shared_memory = gpus[g].shared_memory;
            check_kernel(&s, gpus[g].option);
        }
    return expect_report();
}
