#define _POSIX_C_SOURCE 200809L
#include "system.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "cuda_cache.h"
#include "cuda_driver.h"

typedef struct {
    char *text;
    size_t size;
} writer;

/* Appends what fits; `size` counts the room left, the NUL included. */
__attribute__((format(printf, 2, 3))) static void line(writer *w, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(w->text, w->size, format, arguments);
    va_end(arguments);
    size_t written = length < 0 ? 0 : (size_t)length;
    if (written >= w->size) written = w->size - 1;
    w->text += written;
    w->size -= written;
}

static void gpu_lines(writer *w) {
    cuda_facts facts;
    tallow_cuda_find(&facts);
    for (int i = 0; i < facts.gpus; i++)
        line(w, "gpu %s, compute capability %d.%d\n", facts.gpu[i].name,
             facts.gpu[i].capability / 10, facts.gpu[i].capability % 10);
    if (!facts.gpus) line(w, "gpu none: %s\n", facts.no_gpu);
    if (facts.driver)
        line(w, "driver %d.%d\n", facts.driver / 1000, facts.driver % 1000 / 10);
    else
        line(w, "driver none: %s\n", facts.no_gpu);
    if (facts.nvrtc)
        line(w, "nvrtc %d.%d\n", facts.nvrtc / 1000, facts.nvrtc % 1000 / 10);
    else
        line(w, "nvrtc none: %s\n", facts.no_nvrtc);
}

static void cache_line(writer *w) {
    char folder[CUDA_CACHE_PATH];
    if (tallow_cuda_cache_folder(folder))
        line(w, "cache %s\n", folder);
    else
        line(w, "cache none: TALLOW_CACHE_DIR, XDG_CACHE_HOME and HOME are unset\n");
}

static void pack_line(writer *w) {
    char path[CUDA_CACHE_PATH];
    if (!tallow_cuda_own_pack(path))
        line(w, "pack none: where the library lies is unknown\n");
    else
        line(w, "pack %s%s\n", access(path, R_OK) ? "none: looked for " : "", path);
}

void tallow_system_text(cpu_level level, char *text, size_t size) {
    writer w = {text, size};
    line(&w, "version %d.%d.%d\n", TALLOW_VERSION_MAJOR, TALLOW_VERSION_MINOR,
         TALLOW_VERSION_PATCH);
    line(&w, "cpu_level %s\n", tallow_cpu_level_name(level));
    line(&w, "threads %d\n", tallow_cpu_threads(0));
    gpu_lines(&w);
    cache_line(&w);
    pack_line(&w);
}
