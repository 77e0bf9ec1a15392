/* Counts that the thread blocks of a launch share, in memory that nobody clears before: what does
 * not show the tag above COUNT_BITS is no count yet. Whoever comes last leaves none. */
#ifndef COUNT_CUH
#define COUNT_CUH

#include "base.cuh"

/* Counts one more: how many there were before. */
INLINE uint32_t count_one(uint64_t *count, uint64_t tag) {
    const uint64_t none = tag << COUNT_BITS;
    uint64_t seen = atomicAdd(count, (uint64_t)1);
    while (seen >> COUNT_BITS != tag) { /* what counted on that as well comes here, too */
        const uint64_t held = atomicCAS(count, seen + 1, none + 1);
        if (held == seen + 1) return 0;
        seen = held >> COUNT_BITS == tag ? atomicAdd(count, (uint64_t)1) : held - 1;
    }
    return (uint32_t)(seen - none);
}

INLINE void leave_none(uint64_t *count, uint64_t tag) { *count = tag << COUNT_BITS; }

#endif
