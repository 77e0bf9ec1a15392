/* Kernels' code without a GPU: compiled by NVRTC, kept, found again, and whatever is wrong with a
 * kept file only costs a compilation. Skipped without NVRTC. */
#define _POSIX_C_SOURCE 200809L
#include "cuda_cache.h"

#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cuda_compile.h"
#include "expect.h"
#include "kernel_sources.h"
#include "pack.h"

enum { SKIPPED = 77, SM = 80 };

static const spec rows = {0};
static char folder[256];
static const char *pack; /* that calls name */

/* The one file of the cache; null unless there is exactly one. */
static char *only_file(void) {
    static char path[512];
    char pattern[300];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/*", folder);
    path[0] = 0;
    if (!glob(pattern, 0, NULL, &found)) {
        if (found.gl_pathc == 1) snprintf(path, sizeof path, "%s", found.gl_pathv[0]);
        globfree(&found);
    }
    return path[0] ? path : NULL;
}

static bool is_elf(const void *image) { return image && !memcmp(image, "\177ELF", 4); }

/* Fetches the kernel; whether its compilation was needed shows when compiling is forbidden. */
static tallow_status fetch(bool may_compile) {
    void *image = NULL;
    setenv("TALLOW_NO_COMPILE", may_compile ? "" : "1", 1);
    tallow_status status = tallow_cuda_image(&rows, SM, pack, &image);
    EXPECT(status || is_elf(image), "no cubin");
    free(image);
    unsetenv("TALLOW_NO_COMPILE");
    return status;
}

/* A miss that says what it takes. */
static void expect_miss(const char *after) {
    EXPECT(fetch(false) == TALLOW_NO_COMPILER, "found after %s", after);
    EXPECT(strstr(tallow_last_error(), "kernel rows") && strstr(tallow_last_error(), "sm_80") &&
               strstr(tallow_last_error(), "TALLOW_NO_COMPILE"),
           "the message is: %s", tallow_last_error());
}

static void expect_compile(const char *after) {
    expect_miss(after);
    EXPECT(fetch(true) == TALLOW_OK, "after %s: %s", after, tallow_last_error());
    EXPECT(fetch(false) == TALLOW_OK, "not kept after %s: %s", after, tallow_last_error());
}

static char good[1 << 18];
static size_t good_size;

static void read_good(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) abort();
    good_size = fread(good, 1, sizeof good, file);
    fclose(file);
    EXPECT(good_size > 1000 && good_size < sizeof good, "%zu bytes", good_size);
}

/* The file as it was, some bytes written over at `at` (from the end when negative), cut to `size`.
 */
static void expect_damage(const char *path, const char *what, long at, const char *bytes,
                          size_t size) {
    FILE *file = fopen(path, "wb");
    if (!file) abort();
    fwrite(good, 1, good_size, file);
    fseek(file, at, at < 0 ? SEEK_END : SEEK_SET);
    fwrite(bytes, 1, strlen(bytes), file);
    fclose(file);
    EXPECT(!truncate(path, (off_t)size), "truncate");
    expect_miss(what);
}

static void run_damage(void) {
    const char *huge = "\xff\xff\xff\xff\xff\xff\xff\xff";
    char saved[300];
    expect_compile("nothing was kept");
    char *path = only_file();
    EXPECT(path, "one file, no temporary one, in %s", folder);
    if (!path) return;
    read_good(path);
    expect_damage(path, "a changed byte of the code", -100, "damage", good_size);
    expect_damage(path, "a foreign header", 0, "X", good_size);
    expect_damage(path, "another key", 8, "X", good_size);
    expect_damage(path, "another digest", 40, "X", good_size);
    expect_damage(path, "an impossible size", 72, huge, good_size);
    expect_damage(path, "a file cut short", 0, "", good_size - 1);
    expect_damage(path, "a file cut in its header", 0, "", 20);
    expect_damage(path, "an empty file", 0, "", 0);
    expect_compile("damage");
    snprintf(saved, sizeof saved, "%s.saved", folder);
    EXPECT(!rename(path, saved) && !symlink(saved, path), "symlink");
    expect_compile("a link in its place");
    unlink(saved);
}

static void run_folder(void) {
    struct stat about;
    EXPECT(!stat(folder, &about) && (about.st_mode & 0777) == 0700, "mode %o",
           (unsigned)about.st_mode);
    chmod(folder, 0777);
    EXPECT(fetch(false) == TALLOW_NO_COMPILER, "a folder that all may write to was believed");
    EXPECT(fetch(true) == TALLOW_OK, "without a folder: %s", tallow_last_error());
    chmod(folder, 0700);
    EXPECT(fetch(false) == TALLOW_OK, "%s", tallow_last_error());
}

/* Many processes on an empty cache. */
static void run_at_once(void) {
    enum { PROCESSES = 8 };
    char *path = only_file();
    int failed = 0, status;
    if (path) unlink(path);
    for (int i = 0; i < PROCESSES; i++)
        if (fork() == 0) _exit(fetch(true) == TALLOW_OK ? 0 : 1);
    for (int i = 0; i < PROCESSES; i++) failed += wait(&status) < 0 || status != 0;
    EXPECT(failed == 0, "%d processes failed", failed);
    EXPECT(only_file(), "one file is left");
    EXPECT(fetch(false) == TALLOW_OK, "%s", tallow_last_error());
}

/* What is no file of this user's in the entry's place. */
static void run_places(void) {
    char *path = only_file(), saved[600];
    if (!path) return;
    snprintf(saved, sizeof saved, "%s", path);
    if (geteuid() == 0) {
        EXPECT(!chown(saved, 1, 1), "chown");
        expect_compile("another user's file");
    } else {
        EXPECT(!chmod(saved, 0), "chmod");
        expect_compile("an unreadable file");
    }
    EXPECT(!unlink(saved) && !mkfifo(saved, 0600), "mkfifo");
    expect_compile("a pipe");
    EXPECT(!unlink(saved) && !mkdir(saved, 0700), "mkdir");
    expect_miss("a folder");
    EXPECT(fetch(true) == TALLOW_OK, "with a folder in the way: %s", tallow_last_error());
    EXPECT(!rmdir(saved), "a folder became a file");
    expect_compile("all that");
}

/* ---- packs ---- */

static tallow_attention_params empty_call(void) {
    const tallow_tensor none = {.dtype = TALLOW_F16, .shape = {0, 1, 1, 64}};
    return (tallow_attention_params){
        .q = none, .k = none, .v = none, .out = none, .device = TALLOW_DEVICE_CUDA, .pack = pack};
}

static void expect_count(const char *text, const char *line) {
    EXPECT(strstr(text, line), "no line '%s' in\n%s", line, text);
}

/* Compiles for a GPU of another minor number, and finds it for this one. */
static void run_compile(void) {
    char path[300], text[512];
    snprintf(path, sizeof path, "%s.pack", folder);
    pack = path;
    tallow_attention_params call = empty_call();
    EXPECT(fetch(false) == TALLOW_NO_COMPILER, "no folder, no pack: found");
    EXPECT(!tallow_attention_compile(&call, sizeof call, "sm_86", text, sizeof text), "%s",
           tallow_last_error());
    expect_count(text, "arch sm_86\nkernel rows\ncompiled 1\nspilled 0\nserialized 0\n");
    EXPECT(fetch(false) == TALLOW_NO_COMPILER, "sm_86 on sm_80");
    EXPECT(!tallow_attention_compile(&call, sizeof call, "sm_80", text, sizeof text), "%s",
           tallow_last_error());
    expect_count(text, "compiled 1\n");
    EXPECT(fetch(false) == TALLOW_OK, "%s", tallow_last_error());
    EXPECT(!tallow_attention_compile(&call, sizeof call, "sm_80", text, sizeof text), "%s",
           tallow_last_error());
    expect_count(text, "compiled 0\n");
    call.pack = NULL;
    EXPECT(!tallow_attention_compile(&call, sizeof call, "sm_120", text, sizeof text), "%s",
           tallow_last_error());
    expect_count(text, "arch sm_120\nkernel rows\ncompiled 0\n");
    EXPECT(!truncate(path, 1000) && fetch(false) == TALLOW_NO_COMPILER, "a cut pack");
    EXPECT(!truncate(path, 0) && fetch(false) == TALLOW_NO_COMPILER, "an empty pack");
    EXPECT(!unlink(path) && fetch(false) == TALLOW_NO_COMPILER, "a pack that is gone");
    pack = NULL;
}

/* A GPU runs code of its own major number, as new as itself or older. */
static void run_older(void) {
    char path[300], text[512];
    void *image = NULL;
    snprintf(path, sizeof path, "%s.pack", folder);
    pack = path;
    tallow_attention_params call = empty_call();
    setenv("TALLOW_NO_COMPILE", "1", 1);
    EXPECT(!tallow_attention_compile(&call, sizeof call, "sm_86", text, sizeof text), "%s",
           tallow_last_error());
    for (int capability = 80; capability <= 90; capability++) {
        tallow_status wanted = capability < 86 || capability > 89 ? TALLOW_NO_COMPILER : TALLOW_OK;
        EXPECT(tallow_cuda_image(&rows, capability, pack, &image) == wanted, "%d: %s", capability,
               tallow_last_error());
        free(image);
    }
    unsetenv("TALLOW_NO_COMPILE");
    unlink(path);
    pack = NULL;
}

static void copy_file(const char *from, const char *to) {
    char block[1 << 16];
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    if (!in || !out) abort();
    for (size_t n; (n = fread(block, 1, sizeof block, in)) > 0;) fwrite(block, 1, n, out);
    fclose(in);
    fclose(out);
    chmod(to, 0700);
}

/* What this program returns when it is started as `path`; `name` is what it is told to be called.
 */
static int run_as(const char *path, const char *name) {
    int status = -1;
    if (fork() == 0) {
        execl(path, name, "beside", (char *)NULL);
        _exit(99);
    }
    wait(&status);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* A copy of this program in a folder of its own, with and without a pack beside it, by whatever
 * name it is called. */
static void run_beside(void) {
    char program[300], path[300], text[512];
    snprintf(program, sizeof program, "%s/../program", folder);
    snprintf(path, sizeof path, "%s/../tallow.pack", folder);
    copy_file("/proc/self/exe", program);
    EXPECT(run_as(program, program) == TALLOW_NO_COMPILER, "found without a pack");
    pack = path;
    tallow_attention_params call = empty_call();
    EXPECT(!tallow_attention_compile(&call, sizeof call, "sm_80", text, sizeof text), "%s",
           tallow_last_error());
    pack = NULL;
    EXPECT(run_as(program, program) == TALLOW_OK, "not found beside the program");
    EXPECT(run_as(program, "program") == TALLOW_OK, "not found when called by its name");
    EXPECT(!truncate(path, 3000), "truncate");
    EXPECT(run_as(program, program) == TALLOW_NO_COMPILER, "a damaged pack");
    unlink(path);
    unlink(program);
}

static void run_packs(void) {
    setenv("TALLOW_CACHE_DIR", "/proc/nowhere", 1);
    run_compile();
    run_older();
    run_beside();
    setenv("TALLOW_CACHE_DIR", folder, 1);
}

static void expect_refusal(tallow_attention_params call, const char *arch, tallow_status status,
                           const char *words) {
    char text[256];
    EXPECT(tallow_attention_compile(&call, sizeof call, arch, text, sizeof text) == status,
           "%s: %s", arch, tallow_last_error());
    EXPECT(strstr(tallow_last_error(), words), "'%s' lacks '%s'", tallow_last_error(), words);
}

static void run_refusals(void) {
    tallow_attention_params call = empty_call();
    expect_refusal(call, "sm_90", TALLOW_INVALID_ARGUMENT, "arch = sm_90: must be sm_75");
    expect_refusal(call, "sm_90a,sm_80", TALLOW_INVALID_ARGUMENT, "sm_90a, ");
    expect_refusal(call, "", TALLOW_INVALID_ARGUMENT, " or sm_121");
    expect_refusal(call, NULL, TALLOW_INVALID_ARGUMENT, "arch = null");
    call.pack = "/proc/nowhere/kernels.pack";
    expect_refusal(call, "sm_80", TALLOW_INVALID_ARGUMENT, "/proc/nowhere/kernels.pack: No such");
    call.pack = NULL;
    call.device = TALLOW_DEVICE_CPU;
    expect_refusal(call, "sm_80", TALLOW_INVALID_ARGUMENT, "device = 0");
    call.pack = "kernels.pack";
    expect_refusal(call, "sm_80", TALLOW_INVALID_ARGUMENT, "must be null on the CPU");
    call = empty_call();
    call.q.shape[3] = 12;
    expect_refusal(call, "sm_80", TALLOW_INVALID_ARGUMENT, "head_dim");
}

/* What the assembler says, in its own words. */
static void run_logs(void) {
    static const char none[] = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n";
    static const char some[] = "0 bytes spill stores, 0 bytes spill loads\n"
                               "8 bytes stack frame, 0 bytes spill stores, 10 bytes spill loads\n";
    cuda_code code;
    tallow_cuda_read_log(none, &code);
    EXPECT(!code.spills && !code.serialized, "nothing is wrong");
    tallow_cuda_read_log(some, &code);
    EXPECT(code.spills && !code.serialized, "the second kernel spills");
    tallow_cuda_read_log("", &code);
    EXPECT(code.spills, "a silent log is no proof");
    tallow_cuda_read_log("(C7510) Potential Performance Loss: wgmma.mma_async instructions are "
                         "serialized due to...\n0 bytes spill stores\n",
                         &code);
    EXPECT(!code.spills && code.serialized, "serialized");
}

static void run_keys(void) {
    uint8_t a[SHA256_BYTES], b[SHA256_BYTES];
    spec other = {0};
    tallow_cuda_key(&rows, "sm_80", 13000, a);
    tallow_cuda_key(&rows, "sm_80", 13000, b);
    EXPECT(!memcmp(a, b, sizeof a), "a key is the same every time");
    tallow_cuda_key(&rows, "sm_86", 13000, b);
    EXPECT(memcmp(a, b, sizeof a), "the GPU is in the key");
    tallow_cuda_key(&rows, "sm_80", 12080, b);
    EXPECT(memcmp(a, b, sizeof a), "NVRTC's version is in the key");
    tallow_spec_next(&other);
    tallow_cuda_key(&other, "sm_80", 13000, b);
    EXPECT(memcmp(a, b, sizeof a), "the specialisation is in the key");
}

static void run_archs(void) {
    char arch[CUDA_ARCH];
    EXPECT(!tallow_nvrtc_arch(80, arch) && !strcmp(arch, "sm_80"), "%s", arch);
    EXPECT(!tallow_nvrtc_arch(90, arch) && !strcmp(arch, "sm_90a"), "%s", arch);
    EXPECT(!tallow_nvrtc_arch(999, arch) && !strncmp(arch, "compute_", 8), "%s", arch);
    EXPECT(tallow_nvrtc_arch(10, arch) == TALLOW_UNSUPPORTED, "%s", arch);
    void *image = NULL;
    EXPECT(!tallow_cuda_image(&rows, 999, NULL, &image) && image && strstr(image, ".version"),
           "no PTX for a GPU that NVRTC does not know: %s", tallow_last_error());
    free(image);
}

int main(int argc, char **argv) {
    char base[] = "/tmp/tallow-cache-XXXXXX";
    int version;
    if (tallow_nvrtc_version(&version)) {
        printf("skipped: %s\n", tallow_last_error());
        return SKIPPED;
    }
    if (argc == 2 && !strcmp(argv[1], "beside")) return fetch(false);
    EXPECT(tallow_kernel_source_count > 5, "%d sources", tallow_kernel_source_count);
    if (!mkdtemp(base)) abort();
    snprintf(folder, sizeof folder, "%s/deep/cache", base);
    setenv("TALLOW_CACHE_DIR", folder, 1);
    run_keys();
    run_damage();
    run_places();
    run_folder();
    run_at_once();
    run_packs();
    run_refusals();
    run_logs();
    run_archs();
    return expect_report();
}
