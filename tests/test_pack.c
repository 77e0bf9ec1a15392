/* SHA-256 against published digests, and packs of several kernels. */
#define _POSIX_C_SOURCE 200809L
#include "pack.h"

#include <stdlib.h>
#include <string.h>
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

enum { KERNELS = 20 };

static void run_packs(void) {
    char folder[] = "/tmp/tallow-pack-XXXXXX", path[64], text[KERNELS][80];
    pack_kernel kernels[KERNELS] = {0}, wanted;
    if (!mkdtemp(folder)) abort();
    snprintf(path, sizeof path, "%s/kernels.pack", folder);
    for (int i = 0; i < KERNELS; i++) {
        kernels[i].size = (size_t)snprintf(text[i], sizeof text[i], "kernel %0*d", 3 * i + 1, i);
        kernels[i].key[i] = (uint8_t)(i + 1);
        kernels[i].data = text[i];
    }
    memset(&wanted, 0, sizeof wanted);
    EXPECT(!tallow_pack_find(path, false, &wanted), "found in no file");
    EXPECT(!tallow_pack_write(path, kernels, 3), "%s", tallow_last_error());
    EXPECT(!tallow_pack_write(path, kernels, KERNELS), "%s", tallow_last_error());
    for (int i = 0; i < KERNELS; i++) {
        memcpy(wanted.key, kernels[i].key, sizeof wanted.key);
        bool found = tallow_pack_find(path, i % 2, &wanted);
        EXPECT(found && wanted.size == kernels[i].size &&
                   !memcmp(wanted.data, text[i], wanted.size),
               "kernel %d", i);
        if (found) free(wanted.data);
    }
    wanted.key[0] = 99;
    EXPECT(!tallow_pack_find(path, false, &wanted), "found a key that is not there");
    EXPECT(tallow_pack_write("/proc/nowhere/kernels.pack", kernels, 1) &&
               strstr(tallow_last_error(), "/proc/nowhere/kernels.pack"),
           "written to nowhere: %s", tallow_last_error());
    EXPECT(!unlink(path) && !rmdir(folder), "a temporary file is left in %s", folder);
}

int main(void) {
    run_digests();
    run_packs();
    return expect_report();
}
