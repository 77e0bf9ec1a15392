#define _POSIX_C_SOURCE 200809L
#include "candle_model.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "case_cuda.h"
#include "expect.h"
#include "reference.h"

bool model_device(case_device *device, char *why, size_t why_size) {
    return case_cuda_open(device, why, why_size);
}

/* No multiple of 8: refused. */
static const model_options wrong = {.name = "a head_dim of 12",
                                    .packed = true,
                                    .batch = 2,
                                    .heads = 3,
                                    .heads_kv = 3,
                                    .head_dim = 12,
                                    .seqlen_q = {5, 6},
                                    .seqlen_k = {5, 6},
                                    .scale = 1};

/* ---- an error aborts when asked to, and when there is no GPU to write NaN with ---- */

static void *upload(void *context, const void *host, size_t bytes) {
    (void)context, (void)bytes;
    return (void *)(uintptr_t)host;
}

static void call_wrongly(void) {
    case_device device = {.upload = upload};
    model m;
    char why[256];
    model_device(&device, why, sizeof why); /* else host pointers, which no driver knows */
    setenv("TALLOW_CANDLE_ABORT", "1", 1);
    model_build(&m, &wrong);
    model_run(&m, &device, NULL);
    _exit(0);
}

int model_before(void) {
    char text[4096] = "";
    int ends[2], status = 0;
    EXPECT(!pipe(ends), "no pipe");
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        call_wrongly();
    }
    close(ends[1]);
    for (ssize_t got, at = 0; (got = read(ends[0], text + at, sizeof text - 1 - (size_t)at)) > 0;)
        at += got;
    close(ends[0]);
    EXPECT(child > 0 && waitpid(child, &status, 0) == child, "no child");
    EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "ended with status %d", status);
    EXPECT(strstr(text, "run_mha: TALLOW_"), "it says \"%s\"", text);
    return expect_report();
}

/* ---- an error leaves NaN and its reason ---- */

static void expect_nan(const case_device *device, bool bf16, bool packed) {
    model_options o = wrong;
    model m;
    o.bf16 = bf16;
    o.packed = packed;
    model_build(&m, &o);
    model_run(&m, device, NULL);
    for (int64_t i = 0; i < (int64_t)m.total_q * o.heads * o.head_dim; i++)
        EXPECT(m.out[i] == (bf16 ? 0x7fc0 : 0x7e00), "element %d is not NaN", (int)i);
    EXPECT(strstr(tallow_last_error(), "head_dim"), "\"%s\"", tallow_last_error());
    model_free(&m);
}

/* ---- a call in a captured graph, its workspace too ---- */

#if CANDLE_ARGUMENTS == 45
static void *stream;

static void entry(const char *name, void *pointer) {
    void *function = case_cuda_function(name);
    memcpy(pointer, &function, sizeof function);
}

static void replay(void (*call)(void *), void *argument) {
    int (*begin)(void *, int), (*end)(void *, void **), (*launch)(void *, void *);
    int (*instantiate)(void **, void *, unsigned long long);
    void *graph, *executable;
    entry("cuStreamBeginCapture_v2", &begin);
    entry("cuStreamEndCapture", &end);
    entry("cuGraphInstantiateWithFlags", &instantiate);
    entry("cuGraphLaunch", &launch);
    call(argument);                                      /* loads the kernels */
    EXPECT(!begin(stream, 0), "capture does not begin"); /* global: nothing unsafe is called */
    call(argument);
    EXPECT(!end(stream, &graph), "capture does not end: %s", tallow_last_error());
    EXPECT(!instantiate(&executable, graph, 0), "no graph");
    for (int i = 0; i < 3; i++) EXPECT(!launch(executable, stream), "the graph does not run");
}

static void expect_capture(const case_device *device) {
    static const model_options decode = {.name = "captured decode",
                                         .bf16 = true,
                                         .packed = true,
                                         .page = 32,
                                         .batch = 2,
                                         .heads = 8,
                                         .heads_kv = 2,
                                         .head_dim = 128,
                                         .seqlen_q = {1, 1},
                                         .seqlen_k = {3000, 5000},
                                         .scale = 0.1f};
    int (*create_stream)(void **, unsigned);
    case_device on_stream = *device;
    entry("cuStreamCreate", &create_stream);
    EXPECT(!create_stream(&stream, 1), "no stream");
    on_stream.stream = stream;
    expect_call(&on_stream, &decode, replay);
}
#endif

int model_after(const case_device *device) {
    for (int i = 0; i < 4; i++) expect_nan(device, i & 1, i & 2);
#if CANDLE_ARGUMENTS == 45
    expect_capture(device);
#endif
    return expect_report();
}
