/* Shared memory by its address. */
#ifndef SHARED_CUH
#define SHARED_CUH

#include "base.cuh"

INLINE uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

INLINE void *shared_pointer(uint32_t address) { return __cvta_shared_to_generic(address); }

INLINE float shared_f32(uint32_t address) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(address) : "memory");
    return x;
}
INLINE void set_shared_f32(uint32_t address, float x) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(x) : "memory");
}
INLINE int shared_i32(uint32_t address) {
    int x;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
    return x;
}
INLINE void set_shared_i32(uint32_t address, int x) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}
INLINE uint4 shared_chunk(uint32_t address) {
    uint4 c;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(c.x), "=r"(c.y), "=r"(c.z), "=r"(c.w)
                 : "r"(address)
                 : "memory");
    return c;
}
INLINE void set_shared_chunk(uint32_t address, uint4 c) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(c.x), "r"(c.y),
                 "r"(c.z), "r"(c.w)
                 : "memory");
}

#endif
