/* What every kernel file starts from. */
#ifndef BASE_CUH
#define BASE_CUH

#include "args.h"

#define INLINE __device__ __forceinline__
#define UNROLL _Pragma("unroll")

constexpr float LOG2E = 1.44269504088896341f, LN2 = 0.693147180559945309f;
#define MINUS_INFINITY __int_as_float(0xff800000)

INLINE int least(int a, int b) { return a < b ? a : b; }
INLINE int most(int a, int b) { return a > b ? a : b; }
INLINE int clamp(int x, int low, int high) { return most(low, least(x, high)); }
INLINE int64_t clamp64(int64_t x, int64_t low, int64_t high) {
    return x < low ? low : x > high ? high : x;
}

/* threadIdx.x, read again at each use: it need not stay in a register in between. */
INLINE int thread_id() {
    int id;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(id));
    return id;
}
INLINE int lane_id() { return thread_id() % 32; }

#endif
