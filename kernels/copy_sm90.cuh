/* Barriers in shared memory that count arrivals and bytes, and bulk copies that arrive at them. */
#ifndef COPY_SM90_CUH
#define COPY_SM90_CUH

#include "shared.cuh"
#include "spec.cuh"

INLINE void init_barrier(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}
/* Barriers just made are there for the copies, too. */
INLINE void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
INLINE void arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/* Arrives, and lets the phase wait for bytes besides. */
INLINE void arrive_and_expect(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
/* Waits until the phase of this parity has ended; `order`: what shows then, by default what threads
 * of this block have written. */
#define WAIT_PHASE(order, barrier, parity)                                                         \
    asm volatile("{.reg .pred ended;\n"                                                            \
                 "again: mbarrier.try_wait.parity" order ".shared::cta.b64 ended, [%0], %1;\n"     \
                 "@!ended bra again;}" ::"r"(barrier), "r"(parity)                                 \
                 : "memory")
INLINE void wait_phase(uint32_t barrier, uint32_t parity) { WAIT_PHASE("", barrier, parity); }

/* Whether it has ended. */
INLINE bool has_ended(uint32_t barrier, uint32_t parity) {
    int ended;
    asm volatile("{.reg .pred ended;\n"
                 "mbarrier.test_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
                 "selp.s32 %0, 1, 0, ended;}"
                 : "=r"(ended)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return ended;
}

/* ---- pairs of thread blocks ----
 *
 * Both work on row blocks next to each other, against the same keys: each copies half of a block of
 * keys to both. A slot is empty when both have left it. The first of them leads: it finds tiles for
 * both. The other's scheduler tells it when a tile has been left there, and wishes to compute one
 * again go to it. */
#if SPEC_pairs == 1
#define TOGETHER __cluster_dims__(2, 1, 1)
INLINE int rank_in_pair() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
/* An address in the shared memory of one of the two. */
INLINE uint32_t address_of(uint32_t address, int rank) {
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}
INLINE void arrive_at(uint32_t barrier, int rank) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(address_of(barrier, rank))
                 : "memory");
}
/* At a barrier of this block, or the leader's; what was written before shows to both. */
INLINE void arrive_for_both(uint32_t barrier) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cta.b64 _, [%0];" ::"r"(barrier)
                 : "memory");
}
INLINE void arrive_at_leader(uint32_t barrier) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(
                     address_of(barrier, 0))
                 : "memory");
}
INLINE void wait_for_both(uint32_t barrier, uint32_t parity) {
    WAIT_PHASE(".acquire.cluster", barrier, parity);
}
INLINE void set_at_leader(int &x, int value) {
    asm volatile("st.shared::cluster.b32 [%0], %1;" ::"r"(address_of(shared_address(&x), 0)),
                 "r"(value)
                 : "memory");
}
/* 8 bytes to the other thread block, which arrive at a barrier of it. */
INLINE void send(uint32_t to, uint32_t barrier, int x, int y) {
    asm volatile("{.reg .b64 both;\nmov.b64 both, {%2, %3};\n"
                 "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 "
                 "[%0], both, [%1];}" ::"r"(address_of(to, 1)),
                 "r"(address_of(barrier, 1)), "r"(x), "r"(y)
                 : "memory");
}
INLINE void meet() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
#else
#define TOGETHER
INLINE int rank_in_pair() { return 0; }
INLINE void arrive_at(uint32_t barrier, int) { arrive(barrier); }
INLINE void arrive_for_both(uint32_t barrier) { arrive(barrier); }
INLINE void arrive_at_leader(uint32_t) {}
INLINE void wait_for_both(uint32_t barrier, uint32_t parity) { wait_phase(barrier, parity); }
INLINE void set_at_leader(int &x, int value) { x = value; }
INLINE void send(uint32_t, uint32_t, int, int) {}
INLINE void meet() {}
#endif
constexpr int together = 1 + spec::pairs;

/* Shared memory that threads have read or written may be written, or read, by copies and wgmma. */
INLINE void release_to_copies() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

INLINE void prefetch_map(const tensor_map *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* A box of a tensor, its first element at these coordinates; what lies outside becomes zeros. */
INLINE void copy_box(uint32_t to, const tensor_map *map, uint32_t barrier, int c0, int c1, int c2,
                     int c3) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}
#if SPEC_pairs == 1
/* To the same place of both, arriving at the barrier of each. */
INLINE void copy_box_to_both(uint32_t to, const tensor_map *map, uint32_t barrier, int c0, int c1,
                             int c2, int c3) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "h"((uint16_t)3)
                 : "memory");
}
#else
INLINE void copy_box_to_both(uint32_t to, const tensor_map *map, uint32_t barrier, int c0, int c1,
                             int c2, int c3) {
    copy_box(to, map, barrier, c0, c1, c2, c3);
}
#endif
INLINE void copy_box(uint32_t to, const tensor_map *map, uint32_t barrier, int c0, int c1, int c2,
                     int c3, int c4) {
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
                 : "memory");
}

/* The other way: a box leaves shared memory. What lies outside of the tensor does not. */
INLINE void copy_box_out(const tensor_map *map, uint32_t from, int c0, int c1, int c2, int c3,
                         int c4) {
    asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.bulk_group "
                 "[%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(map),
                 "r"(from), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
                 : "memory");
}
INLINE void commit_boxes() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/* Waits until the thread's boxes have left shared memory; until they have arrived. */
INLINE void wait_boxes_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
INLINE void wait_boxes() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

/* By all warps of a warpgroup: how many registers their threads have from here on. */
template <int count> INLINE void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count> INLINE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

/* A ring of slots, a power of two, and how many someone has passed. Each slot has a pair of
 * barriers: `full` and, behind those of all slots, `empty`. */
template <int slots> struct ring {
    uint32_t barriers, passed;

    INLINE ring(uint32_t at) : barriers(at), passed(0) {}
    INLINE uint32_t slot() const { return passed % slots; }
    INLINE uint32_t parity() const { return passed / slots & 1; } /* of the round */
    INLINE uint32_t full() const { return barriers + slot() * 8; }
    INLINE uint32_t empty() const { return barriers + (slots + slot()) * 8; }
    INLINE void wait_full() const { wait_phase(full(), parity()); }
    INLINE bool is_full() const { return has_ended(full(), parity()); }
    /* At first it is. */
    INLINE void wait_empty() const { wait_phase(empty(), parity() ^ 1); }
    INLINE bool is_empty() const { return has_ended(empty(), parity() ^ 1); }
    INLINE void next() { passed++; }
    /* By all lanes of a warp: it no longer reads the slot. */
    INLINE void release() {
        if (lane_id() == 0) arrive(empty());
        next();
    }
    /* The same of a slot that both of a pair fill. */
    INLINE void release_to_both() {
        if (lane_id() < together) arrive_at(empty(), lane_id());
        next();
    }
};

#endif
