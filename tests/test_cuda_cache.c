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
    tallow_status status = tallow_cuda_image(&rows, SM, &image);
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
    expect_damage(path, "an impossible count", 8, huge, good_size);
    expect_damage(path, "another key", 16, "X", good_size);
    expect_damage(path, "an impossible offset", 80, huge, good_size);
    expect_damage(path, "an impossible size", 88, huge, good_size);
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

static void run_pack(void) {
    char path[300], log[CUDA_LOG];
    pack_kernel kernel = {0};
    snprintf(path, sizeof path, "%s.pack", folder);
    tallow_cuda_key(&rows, "sm_80", 0, kernel.key);
    EXPECT(!tallow_cuda_compile(&rows, "sm_80", &kernel.data, &kernel.size, log), "%s",
           tallow_last_error());
    EXPECT(!tallow_pack_write(path, &kernel, 1), "%s", tallow_last_error());
    free(kernel.data);
    setenv("TALLOW_CACHE_DIR", "/proc/nowhere", 1);
    EXPECT(fetch(false) == TALLOW_NO_COMPILER, "no folder, no pack: found");
    setenv("TALLOW_PACK", path, 1);
    EXPECT(fetch(false) == TALLOW_OK, "%s", tallow_last_error());
    unsetenv("TALLOW_PACK");
    setenv("TALLOW_CACHE_DIR", folder, 1);
    unlink(path);
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
    EXPECT(!tallow_cuda_image(&rows, 999, &image) && image && strstr(image, ".version"),
           "no PTX for a GPU that NVRTC does not know: %s", tallow_last_error());
    free(image);
}

int main(void) {
    char base[] = "/tmp/tallow-cache-XXXXXX";
    int version;
    if (tallow_nvrtc_version(&version)) {
        printf("skipped: %s\n", tallow_last_error());
        return SKIPPED;
    }
    EXPECT(tallow_kernel_source_count > 5, "%d sources", tallow_kernel_source_count);
    if (!mkdtemp(base)) abort();
    snprintf(folder, sizeof folder, "%s/deep/cache", base);
    setenv("TALLOW_CACHE_DIR", folder, 1);
    run_keys();
    run_damage();
    run_folder();
    run_at_once();
    run_pack();
    run_archs();
    return expect_report();
}
