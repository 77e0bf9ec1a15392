/* What the emulated NVRTC gives out as a cubin, and the emulated driver loads. */
#ifndef EMULATOR_IMAGE_H
#define EMULATOR_IMAGE_H

#include <cstdint>

constexpr char IMAGE_MARK[8] = {'E', 'M', 'U', 'L', 'A', 'T', 'E', 'D'};

/* A shared library follows. */
struct image_header {
    char mark[8];
    uint64_t bytes;
};

#endif
