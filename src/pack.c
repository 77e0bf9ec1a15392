#define _POSIX_C_SOURCE 200809L
#include "pack.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* In the order and the byte order of the machine, which the kernels need anyway: a header, its
 * entries, then the kernels themselves. */
typedef struct {
    char magic[8];
    uint64_t count;
} header;

typedef struct {
    uint8_t key[SHA256_BYTES], content[SHA256_BYTES];
    uint64_t begin, size;
} entry;

static const char magic[8] = "TALLOW1";

static void digest_of(const void *data, size_t size, uint8_t digest[SHA256_BYTES]) {
    sha256 h;
    tallow_sha256_start(&h);
    tallow_sha256_add(&h, data, size);
    tallow_sha256_finish(&h, digest);
}

/* ---- finding ---- */

static bool read_at(int file, void *to, uint64_t size, uint64_t begin) {
    for (uint64_t done = 0; done < size;) {
        ssize_t n = pread(file, (char *)to + done, size - done, (off_t)(begin + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        done += (uint64_t)n;
    }
    return true;
}

/* The entry of a key in a file of `length` bytes, its bounds checked. */
static bool find_entry(int file, uint64_t length, const uint8_t *key, entry *found) {
    header h;
    if (length < sizeof h || !read_at(file, &h, sizeof h, 0) || memcmp(h.magic, magic, 8) ||
        h.count > (length - sizeof h) / sizeof(entry))
        return false;
    for (uint64_t i = 0; i < h.count; i++) {
        if (!read_at(file, found, sizeof *found, sizeof h + i * sizeof *found)) return false;
        if (memcmp(found->key, key, sizeof found->key)) continue;
        return found->size > 0 && found->begin <= length && found->size <= length - found->begin;
    }
    return false;
}

static bool find_in(int file, bool own, pack_kernel *kernel) {
    struct stat about;
    entry found;
    uint8_t content[SHA256_BYTES];
    if (fstat(file, &about) || !S_ISREG(about.st_mode) || (own && about.st_uid != geteuid()) ||
        !find_entry(file, (uint64_t)about.st_size, kernel->key, &found))
        return false;
    void *data = malloc(found.size);
    if (data && read_at(file, data, found.size, found.begin)) {
        digest_of(data, found.size, content);
        if (!memcmp(content, found.content, sizeof content)) {
            kernel->data = data;
            kernel->size = found.size;
            return true;
        }
    }
    free(data);
    return false;
}

bool tallow_pack_find(const char *path, bool own, pack_kernel *kernel) {
    int file = open(path, O_RDONLY | O_CLOEXEC | (own ? O_NOFOLLOW : 0));
    if (file < 0) return false;
    bool found = find_in(file, own, kernel);
    close(file);
    return found;
}

/* ---- writing ---- */

static bool write_all(int file, const void *data, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t n = write(file, (const char *)data + done, size - done);
        if (n < 0 && errno != EINTR) return false;
        if (n > 0) done += (size_t)n;
    }
    return true;
}

static bool write_pack(int file, const pack_kernel *kernels, int count) {
    header h = {.count = (uint64_t)count};
    uint64_t begin = sizeof h + (uint64_t)count * sizeof(entry);
    memcpy(h.magic, magic, sizeof h.magic);
    bool ok = write_all(file, &h, sizeof h);
    for (int i = 0; i < count && ok; i++) {
        entry e = {.begin = begin, .size = kernels[i].size};
        memcpy(e.key, kernels[i].key, sizeof e.key);
        digest_of(kernels[i].data, kernels[i].size, e.content);
        ok = write_all(file, &e, sizeof e);
        begin += kernels[i].size;
    }
    for (int i = 0; i < count && ok; i++) ok = write_all(file, kernels[i].data, kernels[i].size);
    return ok && !fsync(file);
}

tallow_status tallow_pack_write(const char *path, const pack_kernel *kernels, int count) {
    char *temporary = malloc(strlen(path) + 8);
    if (!temporary) return tallow_fail(TALLOW_OUT_OF_MEMORY, "no memory for a path");
    sprintf(temporary, "%s.XXXXXX", path);
    int file = mkstemp(temporary);
    bool ok = file >= 0 && write_pack(file, kernels, count);
    int error = errno;
    if (file >= 0) ok = !close(file) && ok;
    if (ok && rename(temporary, path)) ok = false, error = errno;
    if (!ok && file >= 0) unlink(temporary);
    free(temporary);
    return ok ? TALLOW_OK : tallow_fail(TALLOW_INVALID_ARGUMENT, "%s: %s", path, strerror(error));
}
