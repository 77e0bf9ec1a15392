/* 16-bit numbers, two in a register. */
#ifndef EMULATOR_NUMBERS_H
#define EMULATOR_NUMBERS_H

#include <stdint.h>
#include <string.h>

namespace emulator {

template <class to, class from> inline to bits_as(from x) {
    static_assert(sizeof(to) == sizeof(from), "as many bits");
    to y;
    memcpy(&y, &x, sizeof y);
    return y;
}

inline float f16_value(uint16_t bits) { return (float)bits_as<_Float16>(bits); }
inline uint16_t f16_bits(float x) { return bits_as<uint16_t>((_Float16)x); }
inline float bf16_value(uint16_t bits) { return bits_as<float>((uint32_t)bits << 16); }
inline uint16_t bf16_bits(float x) {
    const uint32_t bits = bits_as<uint32_t>(x);
    return x == x ? (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : 0x7fff;
}
inline float value(bool f16, uint32_t pair, int half) {
    const uint16_t bits = (uint16_t)(pair >> 16 * half);
    return f16 ? f16_value(bits) : bf16_value(bits);
}

} // namespace emulator

#endif
