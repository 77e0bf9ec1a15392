#include "cuda_compile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernel_sources.h"

enum { MOST_SOURCES = 64, FIXED_OPTIONS = 4, LOG = 1 << 18 };

/* The options of a compilation, in order; no fast math. */
typedef struct {
    spec_options of_spec;
    char arch[CUDA_ARCH + 8];
    const char *list[SPEC_OPTIONS + FIXED_OPTIONS];
    int count;
} options;

static void make_options(options *o, const spec *s, const char *arch) {
    tallow_spec_options(s, &o->of_spec);
    snprintf(o->arch, sizeof o->arch, "-arch=%s", arch);
    o->list[0] = o->arch;
    o->list[1] = "--std=c++17";
    o->list[2] = "-default-device";
    o->list[3] = "--ptxas-options=-v"; /* the log then tells of spills */
    o->count = FIXED_OPTIONS;
    for (int i = 0; i < o->of_spec.count; i++) o->list[o->count++] = o->of_spec.text[i];
}

/* Texts go in with their NUL, so that they cannot run into each other. */
static void add_text(sha256 *h, const char *text) { tallow_sha256_add(h, text, strlen(text) + 1); }

void tallow_cuda_key(const spec *s, const char *arch, int nvrtc, uint8_t key[SHA256_BYTES]) {
    options o;
    sha256 h;
    make_options(&o, s, arch);
    tallow_sha256_start(&h);
    add_text(&h, tallow_spec_source(s));
    for (int i = 0; i < o.count; i++) add_text(&h, o.list[i]);
    for (int i = 0; i < tallow_kernel_source_count; i++) {
        add_text(&h, tallow_kernel_sources[i].name);
        tallow_sha256_add(&h, tallow_kernel_sources[i].text, tallow_kernel_sources[i].size + 1);
    }
    tallow_sha256_add(&h, &nvrtc, sizeof nvrtc);
    tallow_sha256_finish(&h, key);
}

void tallow_cuda_read_log(const char *log, cuda_code *code) {
    static const char words[] = " bytes spill ";
    code->spills = !strstr(log, words);
    for (const char *at = log; (at = strstr(at, words)); at++) {
        const char *number = at;
        while (number > log && number[-1] >= '0' && number[-1] <= '9') number--;
        code->spills = code->spills || strtol(number, NULL, 10) != 0;
    }
    code->serialized = strstr(log, "serialized");
}

static tallow_status run_job(const nvrtc_job *job, const spec *s, const char *arch,
                             cuda_code *code) {
    char key[SPEC_KEY], *log = malloc(LOG);
    if (!log) return tallow_fail(TALLOW_OUT_OF_MEMORY, "no memory for a compiler's log");
    tallow_status status = tallow_nvrtc_compile(job, &code->image, &code->size, log, LOG);
    if (!status) tallow_cuda_read_log(log, code);
    if (status == TALLOW_COMPILE_FAILED) {
        tallow_spec_key(s, key);
        tallow_fail(status, "kernel %s for %s: NVRTC refuses it: %s", key, arch, log);
    }
    free(log);
    return status;
}

tallow_status tallow_cuda_compile(const spec *s, const char *arch, cuda_code *code) {
    const char *names[MOST_SOURCES], *texts[MOST_SOURCES];
    options o;
    nvrtc_job job = {.name = tallow_spec_source(s), .header_names = names, .header_texts = texts};
    *code = (cuda_code){0};
    for (; job.headers < tallow_kernel_source_count && job.headers < MOST_SOURCES; job.headers++) {
        names[job.headers] = tallow_kernel_sources[job.headers].name;
        texts[job.headers] = tallow_kernel_sources[job.headers].text;
        if (!strcmp(names[job.headers], job.name)) job.text = texts[job.headers];
    }
    make_options(&o, s, arch);
    job.option = o.list;
    job.options = o.count;
    job.ptx = !strncmp(arch, "compute", 7);
    return run_job(&job, s, arch, code);
}
