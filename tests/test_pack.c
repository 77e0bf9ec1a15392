/* SHA-256 against published digests, and packs of several kernels. */
#define _POSIX_C_SOURCE 200809L
#include "pack.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "expect.h"

static void expect_digest(const char *text, size_t repeat, const char *expected) {
    uint8_t digest[SHA256_BYTES];
    char hex[2 * SHA256_BYTES + 1];
    sha256 h;
    tallow_sha256_start(&h);
    for (size_t i = 0; i < repeat; i++) tallow_sha256_add(&h, text, strlen(text));
    tallow_sha256_finish(&h, digest);
    for (int i = 0; i < SHA256_BYTES; i++) snprintf(hex + 2 * i, 3, "%02x", (unsigned)digest[i]);
    EXPECT(!strcmp(hex, expected), "%s, expected %s", hex, expected);
}

/* The examples of FIPS 180. */
static void run_digests(void) {
    expect_digest("", 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    expect_digest("abc", 1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    expect_digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1,
                  "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    expect_digest("aaaaaaaaaa", 100000,
                  "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

enum { KERNELS = 20, RECORD = 72, FIRST = 8 }; /* bytes of a record, and where the first one is */

static char folder[] = "/tmp/tallow-pack-XXXXXX", path[64], text[KERNELS][80];
static pack_kernel kernels[KERNELS];

static void make_kernels(void) {
    if (!mkdtemp(folder)) abort();
    snprintf(path, sizeof path, "%s/kernels.pack", folder);
    for (int i = 0; i < KERNELS; i++) {
        kernels[i].size = (size_t)snprintf(text[i], sizeof text[i], "kernel %0*d", 3 * i + 1, i);
        kernels[i].key[i] = (uint8_t)(i + 1);
        kernels[i].data = text[i];
    }
}

static bool holds(int i) {
    pack_kernel wanted = {.size = 0};
    memcpy(wanted.key, kernels[i].key, sizeof wanted.key);
    if (!tallow_pack_find(path, i % 2, &wanted)) return false;
    bool same = wanted.size == kernels[i].size && !memcmp(wanted.data, text[i], wanted.size);
    free(wanted.data);
    EXPECT(same, "kernel %d is not what was written", i);
    return same;
}

static void expect_kernels(int count, const char *when) {
    for (int i = 0; i < KERNELS; i++)
        EXPECT(holds(i) == (i < count), "kernel %d of %d %s", i, count, when);
}

static void add(int i, bool expected) {
    bool added;
    EXPECT(!tallow_pack_add(path, &kernels[i], &added), "%s", tallow_last_error());
    EXPECT(added == expected, "kernel %d is%s added", i, added ? "" : " not");
}

static long size_of(const char *name) {
    struct stat about;
    return stat(name, &about) ? -1 : (long)about.st_size;
}

static void run_packs(void) {
    expect_kernels(0, "in no file");
    EXPECT(!tallow_pack_write(path, &kernels[0]), "%s", tallow_last_error());
    expect_kernels(1, "as written");
    for (int i = 0; i < KERNELS; i++) add(i, i > 0);
    expect_kernels(KERNELS, "as added");
    const long size = size_of(path);
    for (int i = 0; i < KERNELS; i++) add(i, false);
    EXPECT(size_of(path) == size, "what is there is not added again");
    EXPECT(!tallow_pack_write(path, &kernels[0]), "%s", tallow_last_error());
    expect_kernels(1, "as written over");
    EXPECT(tallow_pack_write("/proc/nowhere/kernels.pack", kernels) &&
               strstr(tallow_last_error(), "/proc/nowhere/kernels.pack"),
           "written to nowhere: %s", tallow_last_error());
    unlink(path);
}

/* Writes `bytes` over a pack of five kernels at `at`, cut to `size` when that is not 0. */
static void damage(long at, const char *bytes, size_t count, long size) {
    unlink(path);
    for (int i = 0; i < 5; i++) add(i, true);
    FILE *file = fopen(path, "r+b");
    if (!file || fseek(file, at, SEEK_SET)) abort();
    fwrite(bytes, 1, count, file);
    fclose(file);
    if (size) EXPECT(!truncate(path, size), "truncate");
}

/* A damaged pack keeps what is whole, and takes what it lost. */
static void run_damage(void) {
    static const char huge[8] = "\xff\xff\xff\xff\xff\xff\xff\xff", none[8];
    const long second = FIRST + RECORD + (long)kernels[0].size;
    damage(0, "X", 1, 0);
    expect_kernels(0, "of a foreign file");
    bool added;
    long size = size_of(path);
    EXPECT(tallow_pack_add(path, kernels, &added) && strstr(tallow_last_error(), "is no pack"),
           "added to a foreign file: %s", tallow_last_error());
    EXPECT(size_of(path) == size, "a foreign file was changed");
    damage(second + RECORD, "X", 1, 0);
    EXPECT(holds(0) && !holds(1) && holds(2) && holds(4), "only the damaged kernel is lost");
    add(1, true);
    expect_kernels(5, "after it was added anew");
    damage(second + RECORD - 8, huge, sizeof huge, 0);
    expect_kernels(1, "in front of an impossible size");
    add(1, true);
    expect_kernels(2, "after the rest was cut off");
    damage(second + RECORD - 8, none, sizeof none, 0);
    expect_kernels(1, "in front of an empty kernel");
    damage(0, "", 0, size - 1);
    expect_kernels(4, "in front of a cut");
    add(5, true);
    EXPECT(holds(5) && holds(3) && !holds(4), "added behind a cut");
    damage(0, "", 0, second + 5);
    expect_kernels(1, "in front of a cut record");
    damage(0, "", 0, 5);
    expect_kernels(0, "of a cut header");
    unlink(path);
    EXPECT(!mkdir(path, 0700), "mkdir");
    expect_kernels(0, "of a folder");
    EXPECT(tallow_pack_add(path, kernels, &added), "added to a folder");
    EXPECT(!rmdir(path) && !mkfifo(path, 0600), "mkfifo");
    expect_kernels(0, "of a pipe that nobody writes to");
    EXPECT(tallow_pack_add(path, kernels, &added), "added to a pipe");
    unlink(path);
}

/* Many processes add the same kernels in different orders. */
static void run_at_once(void) {
    enum { PROCESSES = 8 };
    int failed = 0, status;
    for (int p = 0; p < PROCESSES; p++) {
        if (fork()) continue;
        bool added;
        for (int i = 0; i < KERNELS; i++)
            failed |= tallow_pack_add(path, &kernels[(i * 7 + p * 3) % KERNELS], &added) != 0;
        _exit(failed);
    }
    for (int p = 0; p < PROCESSES; p++) failed |= wait(&status) < 0 || status;
    EXPECT(!failed, "a process could not add");
    expect_kernels(KERNELS, "added by many");
    long size = FIRST;
    for (int i = 0; i < KERNELS; i++) size += RECORD + (long)kernels[i].size;
    EXPECT(size_of(path) == size, "%ld bytes, not %ld: every kernel once", size_of(path), size);
    unlink(path);
}

static tallow_status write_third(void) { return tallow_pack_write(path, &kernels[3]); }

static tallow_status add_third(void) {
    bool added;
    return tallow_pack_add(path, &kernels[3], &added);
}

/* In a process that may write files of `limit` bytes: as on a full disk. */
static void expect_full(tallow_status (*run)(void), long limit) {
    int status = -1;
    if (fork() == 0) {
        struct rlimit most = {(rlim_t)limit, (rlim_t)limit};
        signal(SIGXFSZ, SIG_IGN);
        if (setrlimit(RLIMIT_FSIZE, &most)) abort();
        _exit(run() ? 1 : 0);
    }
    EXPECT(wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 1, "status %d", status);
}

static void run_full_disk(void) {
    add(0, true);
    const long size = size_of(path);
    expect_full(write_third, 20);
    expect_full(add_third, size + RECORD + 3);
    EXPECT(size_of(path) == size, "%ld bytes, not the %ld before", size_of(path), size);
    expect_kernels(1, "after a full disk");
    add(1, true);
    expect_kernels(2, "after a full disk and a free one");
    unlink(path);
    expect_full(add_third, 40);
    EXPECT(size_of(path) == 0, "%ld bytes, not an empty file", size_of(path));
    unlink(path);
}

int main(void) {
    run_digests();
    make_kernels();
    run_packs();
    run_damage();
    run_at_once();
    run_full_disk();
    EXPECT(!rmdir(folder), "a file is left in %s", folder);
    return expect_report();
}
