/* SHA-256: what cached kernels are named after and checked with. */
#ifndef TALLOW_SHA256_H
#define TALLOW_SHA256_H

#include <stddef.h>
#include <stdint.h>

enum { SHA256_BYTES = 32 };

typedef struct {
    uint32_t state[8];
    uint64_t length; /* bytes so far */
    uint8_t block[64];
} sha256;

void tallow_sha256_start(sha256 *h);
void tallow_sha256_add(sha256 *h, const void *data, size_t size);
void tallow_sha256_finish(sha256 *h, uint8_t digest[SHA256_BYTES]);

#endif
