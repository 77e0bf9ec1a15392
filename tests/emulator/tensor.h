/* A tensor map: 128 bytes for the caller, here the tensor itself. */
#ifndef EMULATOR_TENSOR_H
#define EMULATOR_TENSOR_H

#include <stdint.h>

struct alignas(64) tensor {
    uint64_t mark;
    const void *data;
    uint64_t dim[5], stride[4];
    uint16_t box[5], rank;
};
static_assert(sizeof(tensor) == 128, "as CUtensorMap");

constexpr uint64_t TENSOR_MARK = 0x544c4c4f574d4150;
inline bool is_tensor(const tensor *t) { return t->mark == TENSOR_MARK; }

#endif
