/* Shared memory: where chunks of 16 bytes lie, and asynchronous copies into it. */
#ifndef COPY_SM80_CUH
#define COPY_SM80_CUH

#include "shared.cuh"
#include "spec.cuh"

/* Chunks of a row are permuted so that 8 rows' chunks of one column, which ldmatrix reads together,
 * lie in different banks: by an exclusive or with bits of the row. How many chunks the permutation
 * spans depends on how a row's length divides the 128 bytes of all banks. */
INLINE constexpr int swizzle_span(int chunks) {
    return chunks % 8 == 0 ? 8 : chunks % 4 == 0 ? 4 : 2;
}

INLINE int swizzle(int row, const int chunks) {
    const int span = swizzle_span(chunks);
    return span == 8 ? row & 7 : span == 4 ? row >> 1 & 3 : row >> 2 & 1;
}

/* Shared address of a chunk in rows of `chunks` chunks. */
INLINE uint32_t chunk_at(uint32_t base, int row, int chunk, const int chunks) {
    return base + (row * chunks + (chunk ^ swizzle(row, chunks))) * 16;
}

/* From the address of chunk 0 or 1 of a row to the one `step` (even) further; or of 0 to 3, where
 * step is a multiple of 4. */
INLINE uint32_t chunk_further(uint32_t address, const int step, const int chunks) {
    const int inside = swizzle_span(chunks) - 1;
    return (address ^ (step & inside) * 16) + (step & ~inside) * 16;
}

/* A chunk from anywhere, element by element. */
INLINE uint4 gather_chunk(const char *from) {
    if (spec::full) {
        const uint32_t *words = (const uint32_t *)from;
        return make_uint4(words[0], words[1], words[2], words[3]);
    }
    const uint16_t *half = (const uint16_t *)from;
    return make_uint4(half[0] | (uint32_t)half[1] << 16, half[2] | (uint32_t)half[3] << 16,
                      half[4] | (uint32_t)half[5] << 16, half[6] | (uint32_t)half[7] << 16);
}

/* Turing copies through registers, at once. */
constexpr bool asynchronous = spec::family >= 80;

INLINE uint4 read_chunk(const char *from) {
    return spec::access == 0 ? *(const uint4 *)from : gather_chunk(from);
}

/* Starts the copy of a chunk; without `there` it becomes zeros and nothing is read. */
INLINE void copy_chunk(uint32_t to, const char *from, bool there) {
    if (asynchronous && spec::access == 0)
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                     "r"(there ? 16 : 0)
                     : "memory");
    else
        set_shared_chunk(to, there ? read_chunk(from) : make_uint4(0, 0, 0, 0));
}

/* Starts the copy of a 32-bit word. */
INLINE void copy_word(uint32_t to, const int32_t *from) {
    if (asynchronous)
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
    else
        set_shared_i32(to, *from);
}

/* Copies started since the last call become a group; waits until at most `pending` groups of the
 * calling thread are under way. */
INLINE void commit_copies() {
    if (asynchronous) asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int pending> INLINE void wait_copies() {
    if (asynchronous) asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

#endif
