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

/* threadIdx.x, read again at each use: it need not stay in a register in between. Its range makes
 * divisions shifts. Assumed rather than masked, it takes the compiler up to ten times as long, and is
 * worth it where warps share a group's rows: there a loop has 3 % fewer instructions. */
INLINE int thread_id() {
    int id;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(id));
#if TILE_column_warps > 1 && SPEC_dtype != 3
    __builtin_assume(0 <= id && id < 1024);
    return id;
#else
    return id & 1023;
#endif
}
INLINE int lane_id() { return thread_id() % 32; }

/* What all lanes of a warp have alike, said so that ptxas keeps it in a uniform register. */
INLINE int same_for_all(int x) { return __shfl_sync(~0u, x, 0); }

/* The same of a condition: then the branch that follows needs no lanes brought together again. */
INLINE bool true_for_all(bool x) { return __any_sync(~0u, x); }

/* A kernel launched as a programmatic dependent starts while the one before it is still at work:
 * once all blocks of that one have allowed it, and up to where it waits for what they write. Of no
 * effect in other launches. A kernel waits before it allows: then the one after it knows that all
 * before this one have ended. One of many small blocks does not allow: those of attention would
 * take the multiprocessors that it leaves first, two of them one, and read up to a sixth slower. */
INLINE void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
INLINE void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#endif
