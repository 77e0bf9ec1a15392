#define _POSIX_C_SOURCE 200809L
#include "pack.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* A file is a magic number, then one kernel behind the other, each behind its record. In the byte
 * order of the machine, which the kernels need anyway. */
typedef struct {
    uint8_t key[SHA256_BYTES], content[SHA256_BYTES];
    uint64_t size;
} record;

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

/* A file open for its records, of which the next is at `at`. */
typedef struct {
    int file;
    uint64_t length, at;
} reader;

/* False: no regular file, or not one of packs. */
static bool start(reader *r, bool own) {
    struct stat about;
    char first[sizeof magic];
    if (fstat(r->file, &about) || !S_ISREG(about.st_mode) || (own && about.st_uid != geteuid()))
        return false;
    r->length = (uint64_t)about.st_size;
    r->at = sizeof first;
    return r->length >= sizeof first && read_at(r->file, first, sizeof first, 0) &&
           !memcmp(first, magic, sizeof first);
}

/* Moves on behind the next kernel; false when no whole one follows. */
static bool next(reader *r, record *found) {
    const uint64_t left = r->length - r->at;
    if (left < sizeof *found || !read_at(r->file, found, sizeof *found, r->at) ||
        found->size == 0 || found->size > left - sizeof *found)
        return false;
    r->at += sizeof *found + found->size;
    return true;
}

/* The kernel in front of the reader, if it is as it was written. */
static bool take(const reader *r, const record *found, pack_kernel *kernel) {
    uint8_t content[SHA256_BYTES];
    void *data = malloc(found->size);
    if (data && read_at(r->file, data, found->size, r->at - found->size)) {
        digest_of(data, found->size, content);
        if (!memcmp(content, found->content, sizeof content)) {
            kernel->data = data;
            kernel->size = found->size;
            return true;
        }
    }
    free(data);
    return false;
}

static bool find_next(reader *r, pack_kernel *kernel) {
    record found;
    while (next(r, &found))
        if (!memcmp(found.key, kernel->key, sizeof found.key) && take(r, &found, kernel))
            return true;
    return false;
}

bool tallow_pack_find(const char *path, bool own, pack_kernel *kernel) {
    reader r = {.file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | (own ? O_NOFOLLOW : 0))};
    if (r.file < 0) return false;
    bool found = start(&r, own) && find_next(&r, kernel);
    close(r.file);
    return found;
}

/* ---- writing ---- */

static tallow_status fail(const char *path, int error) {
    return tallow_fail(TALLOW_INVALID_ARGUMENT, "%s: %s: must be a file that can be written", path,
                       strerror(error));
}

static bool write_at(int file, const void *data, size_t size, uint64_t begin) {
    for (size_t done = 0; done < size;) {
        ssize_t n = pwrite(file, (const char *)data + done, size - done, (off_t)(begin + done));
        if (n < 0 && errno != EINTR) return false;
        if (n > 0) done += (size_t)n;
    }
    return true;
}

/* The magic number is written too when the kernel is the first. */
static bool write_kernel(int file, const pack_kernel *kernel, uint64_t at) {
    record r = {.size = kernel->size};
    memcpy(r.key, kernel->key, sizeof r.key);
    digest_of(kernel->data, kernel->size, r.content);
    return (at > sizeof magic || write_at(file, magic, sizeof magic, 0)) &&
           write_at(file, &r, sizeof r, at) &&
           write_at(file, kernel->data, kernel->size, at + sizeof r);
}

tallow_status tallow_pack_write(const char *path, const pack_kernel *kernel) {
    char *temporary = malloc(strlen(path) + 8);
    if (!temporary) return tallow_fail(TALLOW_OUT_OF_MEMORY, "no memory for a path");
    sprintf(temporary, "%s.XXXXXX", path);
    int file = mkstemp(temporary);
    bool ok = file >= 0 && write_kernel(file, kernel, sizeof magic) && !fsync(file);
    int error = errno;
    if (file >= 0 && close(file) && ok) ok = false, error = errno;
    if (ok && rename(temporary, path)) ok = false, error = errno;
    if (!ok && file >= 0) unlink(temporary);
    free(temporary);
    return ok ? TALLOW_OK : fail(path, error);
}

/* What an interrupted writer left at the end is cut off, and so is what fails to be written. */
static tallow_status append(const char *path, reader *r, const pack_kernel *kernel) {
    const off_t end = r->length ? (off_t)r->at : 0;
    if (!ftruncate(r->file, end) && write_kernel(r->file, kernel, r->at)) return TALLOW_OK;
    tallow_status status = fail(path, errno);
    return ftruncate(r->file, end) ? fail(path, errno) : status;
}

static tallow_status add_locked(const char *path, reader *r, const pack_kernel *kernel,
                                bool *added) {
    struct stat about;
    pack_kernel same = *kernel;
    if (fstat(r->file, &about)) return fail(path, errno);
    if (!S_ISREG(about.st_mode) || (about.st_size && !start(r, false)))
        return tallow_fail(TALLOW_INVALID_ARGUMENT,
                           "%s is no pack: must be one, an empty file or none", path);
    if (r->length && find_next(r, &same)) return free(same.data), TALLOW_OK;
    tallow_status status = append(path, r, kernel);
    *added = !status;
    return status;
}

tallow_status tallow_pack_add(const char *path, const pack_kernel *kernel, bool *added) {
    reader r = {.file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666), .at = sizeof magic};
    int error;
    *added = false;
    if (r.file < 0) return fail(path, errno);
    while ((error = flock(r.file, LOCK_EX) ? errno : 0) == EINTR) continue;
    tallow_status status = error ? fail(path, error) : add_locked(path, &r, kernel, added);
    if (close(r.file) && !status) status = fail(path, errno);
    return status;
}
