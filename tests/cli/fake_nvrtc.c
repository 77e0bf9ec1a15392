/* A stand-in for NVRTC: "compiles" at once, to the text of its options. What it then says, the
 * environment variable FAKE_NVRTC tells: spill, serialize, fail, die, slow; with FAKE_NVRTC_ONLY to
 * kernels that have this option alone. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    char image[4096], log[256];
} program;

int nvrtcVersion(int *major, int *minor);
int nvrtcGetNumSupportedArchs(int *count);
int nvrtcGetSupportedArchs(int *archs);
int nvrtcCreateProgram(program **out, const char *text, const char *name, int headers,
                       const char *const *header_texts, const char *const *header_names);
int nvrtcCompileProgram(program *p, int count, const char *const *options);
int nvrtcGetProgramLogSize(const program *p, size_t *size);
int nvrtcGetProgramLog(const program *p, char *log);
int nvrtcGetCUBINSize(const program *p, size_t *size);
int nvrtcGetCUBIN(const program *p, char *image);
int nvrtcGetPTXSize(const program *p, size_t *size);
int nvrtcGetPTX(const program *p, char *image);
int nvrtcDestroyProgram(program **p);

int nvrtcVersion(int *major, int *minor) { return *major = 99, *minor = 1, 0; }

int nvrtcGetNumSupportedArchs(int *count) { return *count = 3, 0; }

int nvrtcGetSupportedArchs(int *archs) {
    static const int known[] = {80, 86, 90};
    memcpy(archs, known, sizeof known);
    return 0;
}

int nvrtcCreateProgram(program **out, const char *text, const char *name, int headers,
                       const char *const *header_texts, const char *const *header_names) {
    (void)name, (void)headers, (void)header_texts, (void)header_names;
    *out = text ? calloc(1, sizeof **out) : NULL;
    return !*out;
}

int nvrtcCompileProgram(program *p, int count, const char *const *options) {
    const char *told = getenv("FAKE_NVRTC"), *only = getenv("FAKE_NVRTC_ONLY");
    if (!told) told = "";
    if (!strcmp(told, "die")) _exit(3);
    if (!strcmp(told, "slow")) sleep(1);
    for (int i = 0; i < count; i++)
        strncat(p->image, options[i], sizeof p->image - strlen(p->image) - 1);
    if (only && !strstr(p->image, only)) told = "";
    snprintf(p->log, sizeof p->log, "%s0 bytes spill stores, %d bytes spill loads\n",
             strcmp(told, "serialize") ? "" : "wgmma.mma_async instructions are serialized\n",
             strcmp(told, "spill") ? 0 : 16);
    if (strcmp(told, "fail")) return 0;
    snprintf(p->log, sizeof p->log, "error: no such thing\n");
    return 6;
}

int nvrtcGetProgramLogSize(const program *p, size_t *size) { return *size = strlen(p->log) + 1, 0; }

int nvrtcGetProgramLog(const program *p, char *log) { return strcpy(log, p->log), 0; }

int nvrtcGetCUBINSize(const program *p, size_t *size) { return *size = strlen(p->image), 0; }

int nvrtcGetCUBIN(const program *p, char *image) {
    memcpy(image, p->image, strlen(p->image));
    return 0;
}

int nvrtcGetPTXSize(const program *p, size_t *size) { return nvrtcGetCUBINSize(p, size); }

int nvrtcGetPTX(const program *p, char *image) { return nvrtcGetCUBIN(p, image); }

int nvrtcDestroyProgram(program **p) {
    free(*p);
    *p = NULL;
    return 0;
}
