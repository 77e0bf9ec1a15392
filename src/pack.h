/* A pack is a file of compiled kernels, found by key. A cache entry is a pack of one. Whatever is
 * wrong with a file, finding a kernel in it is a miss and nothing worse. */
#ifndef TALLOW_PACK_H
#define TALLOW_PACK_H

#include <stdbool.h>

#include "error.h"
#include "sha256.h"

typedef struct {
    uint8_t key[SHA256_BYTES];
    void *data;
    size_t size;
} pack_kernel;

/* Copies the kernel of `kernel->key` out of a file: the caller frees `data`. `own`: only from a
 * file of this user's. */
bool tallow_pack_find(const char *path, bool own, pack_kernel *kernel);

/* Writes a pack of one kernel that appears under its path whole or not at all. */
tallow_status tallow_pack_write(const char *path, const pack_kernel *kernel);

/* Adds a kernel to a pack, which is made when missing. `added`: false, it was there already.
 * Threads and processes may add to one pack; who reads it meanwhile sees whole kernels. */
tallow_status tallow_pack_add(const char *path, const pack_kernel *kernel, bool *added);

#endif
