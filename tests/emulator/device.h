/* What a kernel's text, made C++ by translate.py, is compiled with: CUDA's types and functions. */
#ifndef EMULATOR_DEVICE_H
#define EMULATOR_DEVICE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "numbers.h"
#include "threads.h"

#define __device__
#define __global__      __attribute__((visibility("default")))
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))
#define _Alignas alignas
#define __builtin_assume(x) ((void)0)
#define threadIdx           (emulator::here.thread)
#define blockIdx            (emulator::here.block)
#define blockDim            (emulator::here.block_size)
#define gridDim             (emulator::here.grid_size)

struct alignas(8) int2 {
    int x, y;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float __uint_as_float(uint32_t x) { return emulator::bits_as<float>(x); }
inline float __int_as_float(int x) { return emulator::bits_as<float>(x); }
inline uint32_t __float_as_uint(float x) { return emulator::bits_as<uint32_t>(x); }
inline int __float_as_int(float x) { return emulator::bits_as<int>(x); }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(uint32_t x) { return __builtin_ffs((int)x); }
inline int __vimax3_s32(int a, int b, int c) { return a > b ? (a > c ? a : c) : b > c ? b : c; }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint64_t)a * b >> 32; }
inline void sincospi(double x, double *sine, double *cosine) {
    const long double pi = 3.14159265358979323846264338327950288L;
    *sine = (double)sinl(pi * x);
    *cosine = (double)cosl(pi * x);
}
template <class number> inline number atomicAdd(number *at, number x) {
    number before = *at;
    *at += x;
    return before;
}

template <class number> inline number atomicCAS(number *at, number from, number to) {
    number before = *at;
    if (before == from) *at = to;
    return before;
}

inline void __threadfence() {}

/* ---- CUDA's functions over a warp or a block ---- */

template <class number>
inline number exchange(const char *what, number x, int (*from)(int, int), int how) {
    struct io {
        number x;
        int from;
    } mine = {x, from(emulator::lane(), how)};
    number result;
    struct pair {
        io *in;
        number *out;
    } both = {&mine, &result};
    emulator::together(what, &both, [](void **all) {
        for (int lane = 0; lane < 32; lane++) {
            pair *p = (pair *)all[lane];
            *p->out = ((pair *)all[p->in->from])->in->x;
        }
    });
    return result;
}
template <class number> inline number __shfl_sync(unsigned, number x, int lane) {
    return exchange(
        "shfl.idx", x, [](int, int how) { return how & 31; }, lane);
}
template <class number> inline number __shfl_xor_sync(unsigned, number x, int bits) {
    return exchange(
        "shfl.bfly", x, [](int lane, int how) { return lane ^ how; }, bits);
}
template <class number> inline number __shfl_up_sync(unsigned, number x, int by) {
    return exchange(
        "shfl.up", x, [](int lane, int how) { return lane < how ? lane : lane - how; }, by);
}
inline unsigned __ballot_sync(unsigned, int x) {
    struct io {
        int x;
        unsigned all;
    } mine = {x, 0};
    emulator::together("vote", &mine, [](void **all) {
        unsigned votes = 0;
        for (int lane = 0; lane < 32; lane++) votes |= (((io *)all[lane])->x ? 1u : 0) << lane;
        for (int lane = 0; lane < 32; lane++) ((io *)all[lane])->all = votes;
    });
    return mine.all;
}
inline int __any_sync(unsigned mask, int x) { return __ballot_sync(mask, x) != 0; }
inline int __all_sync(unsigned mask, int x) { return __ballot_sync(mask, x) == ~0u; }
inline void __syncwarp() {
    emulator::together("bar.warp", nullptr, [](void **) {});
}
inline int __syncthreads_or(int x) { return emulator::meet(0, (int)(blockDim.x * blockDim.y), x); }
inline void __syncthreads() { __syncthreads_or(0); }
inline uint32_t __cvta_generic_to_shared(const void *p) {
    return ((uint32_t)((const char *)p - shared_memory) + emulator::SHARED_BASE) |
           emulator::here.rank << emulator::RANK_BIT;
}
inline void *__cvta_shared_to_generic(uint32_t address) {
    return shared_memory + (address & ((1u << emulator::RANK_BIT) - 1)) - emulator::SHARED_BASE;
}

#include "instructions.h"

#endif
