/* What run_mha asks of the driver, and what becomes of a call when the driver refuses: without a
 * GPU, on fake_cuda.c, which the loader must find first. */
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "candle_model.h"
#include "expect.h"
#include "fake_cuda.h"
#include "tallow.h"

static fake_cuda *fake;

static void *upload(void *context, const void *host, size_t bytes) {
    char *memory = malloc(bytes);
    (void)context;
    if (!memory) abort();
    return memcpy(memory, host, bytes);
}

static void download(void *context, void *host, void *device, size_t bytes) {
    (void)context;
    memcpy(host, device, bytes);
    free(device);
}

static const case_device device = {.upload = upload, .download = download};

/* So few queries of so many keys that the keys are split. */
static const model_options decode = {.name = "decode",
                                     .packed = true,
                                     .bf16 = true,
                                     .batch = 2,
                                     .heads = 8,
                                     .heads_kv = 2,
                                     .head_dim = 64,
                                     .seqlen_q = {1, 2},
                                     .seqlen_k = {9000, 7000},
                                     .scale = 0.1f};

static void run(const model_options *o, bool fails) {
    const uint16_t nan = o->bf16 ? 0x7fc0 : 0x7e00;
    model m;
    model_build(&m, o);
    model_run(&m, &device, NULL);
    EXPECT(!!*tallow_last_error() == fails, "\"%s\"", tallow_last_error());
    for (int i = 0; i < m.total_q * o->heads * o->head_dim; i++)
        EXPECT(m.out[i] == (fails ? nan : 0xffff), "element %d is %x", i, m.out[i]);
    model_free(&m);
}

/* ---- the pool ---- */

static void *decode_once(void *argument) { return run(&decode, false), argument; }

static void expect_one_pool(void) {
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, decode_once, NULL);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    EXPECT(fake->pools == 1, "%d pools", fake->pools);
    EXPECT(fake->kept == 64ull << 20, "%llu bytes are kept", fake->kept);
    EXPECT(fake->allocated == THREADS && fake->freed == THREADS, "%d allocated, %d freed",
           fake->allocated, fake->freed);
    EXPECT(fake->launched == 2 * THREADS, "%d kernels: parts and their sum", fake->launched);
}

static void expect_no_pool_without_its_bound(void) {
    fake->attribute_fails = 1;
    run(&decode, false);
    EXPECT(fake->pools == 0 && fake->allocated == 0, "%d pools are left", fake->pools);
    fake->attribute_fails = 0;
}

static void expect_destruction_at_exit(void) {
    char text[256] = "";
    int ends[2], status = 0;
    EXPECT(!pipe(ends), "no pipe");
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        run(&decode, false);
        exit(expect_failures);
    }
    close(ends[1]);
    for (ssize_t got, at = 0; (got = read(ends[0], text + at, sizeof text - 1 - (size_t)at)) > 0;)
        at += got;
    close(ends[0]);
    EXPECT(waitpid(child, &status, 0) == child && status == 0, "ended with %d: %s", status, text);
    EXPECT(!strcmp(text, "cuMemPoolDestroy"), "it says \"%s\"", text);
}

/* ---- failures ---- */

/* Keys are then read by fewer blocks, in one kernel. */
static void expect_no_split_without_memory(void) {
    const int launched = fake->launched;
    fake->allocation_fails = 1;
    run(&decode, false);
    EXPECT(fake->launched == launched + 1, "%d kernels", fake->launched - launched);
    fake->allocation_fails = 0;
}

static void expect_nan(void) {
    model_options o = decode;
    const int kept = fake->allocated - fake->freed;
    fake->launch_fails = 1;
    for (int i = 0; i < 4; i++) {
        o.bf16 = i & 1;
        o.packed = i & 2;
        run(&o, true);
        EXPECT(strstr(tallow_last_error(), "cuLaunchKernelEx"), "\"%s\"", tallow_last_error());
    }
    fake->launch_fails = 0;
    EXPECT(fake->allocated - fake->freed == kept, "%d allocations are left",
           fake->allocated - fake->freed - kept);
    o.head_dim = 12;
    run(&o, true);
    EXPECT(strstr(tallow_last_error(), "head_dim"), "\"%s\"", tallow_last_error());
}

/* ---- rows that nobody counted ---- */

/* Copies of whole tiles would reach beyond the last key: the memory's end bounds them, or the count
 * of run_mha_v3; where neither is known there are none. */
static void expect_keys_in_memory(void) {
    model_options o = decode;
    o.seqlen_q[0] = o.seqlen_q[1] = 100;
    o.seqlen_k[0] = 200, o.seqlen_k[1] = 101;
    run(&o, false);
    EXPECT(!fake->key_rows, "%llu rows are copied", fake->key_rows);
    fake->room = 301 * 2 * 64 * 2 + 255;
    run(&o, false);
    EXPECT(fake->key_rows == 301, "%llu rows have memory", fake->key_rows);
    fake->room = fake->key_rows = 0;
    o.v3 = true;
    o.seqlen_k[1]++; /* a map that is not kept from before */
    run(&o, false);
    EXPECT(fake->key_rows == 302, "%llu rows are counted", fake->key_rows);
}

int main(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    fake = driver ? dlsym(driver, "fake") : NULL;
    if (!fake) return printf("skipped: the loader finds no fake_cuda.c\n"), 77;
    expect_destruction_at_exit();
    expect_no_pool_without_its_bound();
    fake->launched = 0;
    expect_one_pool();
    expect_no_split_without_memory();
    expect_nan();
    expect_keys_in_memory();
    return expect_report();
}
