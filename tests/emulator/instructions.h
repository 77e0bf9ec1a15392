/* PTX instructions by the names that translate.py gives them; operands stand as in the asm
 * statement, outputs first. */
#ifndef EMULATOR_INSTRUCTIONS_H
#define EMULATOR_INSTRUCTIONS_H

#include <math.h>

#include "numbers.h"
#include "threads.h"

namespace instruction {

using emulator::shared_at;

template <class... ignored> inline void nothing(ignored &&...) {}
inline void thread_index(int &x) { x = (int)emulator::here.thread.x; }

/* ---- numbers ---- */

inline void widen_f16(float &x, uint16_t bits) { x = emulator::f16_value(bits); }
inline void narrow_f16(uint16_t &bits, float x) { bits = emulator::f16_bits(x); }
inline void pack_f16(uint32_t &pair, float high, float low) {
    pair = (uint32_t)emulator::f16_bits(high) << 16 | emulator::f16_bits(low);
}
inline void pack_bf16(uint32_t &pair, float high, float low) {
    pair = (uint32_t)emulator::bf16_bits(high) << 16 | emulator::bf16_bits(low);
}
inline void unpack_f16(float &low, float &high, uint32_t pair) {
    low = emulator::f16_value((uint16_t)pair);
    high = emulator::f16_value((uint16_t)(pair >> 16));
}
inline void unpack_bf16(float &low, float &high, uint32_t pair) {
    low = emulator::bf16_value((uint16_t)pair);
    high = emulator::bf16_value((uint16_t)(pair >> 16));
}
inline void multiply_add_f16(uint32_t &sums, uint32_t x, uint32_t y) {
    float a[2], b[2], c[2];
    unpack_f16(a[0], a[1], x);
    unpack_f16(b[0], b[1], y);
    unpack_f16(c[0], c[1], sums);
    pack_f16(sums, a[1] * b[1] + c[1], a[0] * b[0] + c[0]);
}
inline void multiply_add_bf16(uint32_t &sums, uint32_t x, uint32_t y) {
    float a[2], b[2], c[2];
    unpack_bf16(a[0], a[1], x);
    unpack_bf16(b[0], b[1], y);
    unpack_bf16(c[0], c[1], sums);
    pack_bf16(sums, a[1] * b[1] + c[1], a[0] * b[0] + c[0]);
}
inline void exp2_approx(float &y, float x) { y = exp2f(x); }
inline void reciprocal_approx(float &y, float x) { y = 1 / x; }
inline void add(float &x, float y) { x += y; }

/* ---- shared memory ---- */

template <class word> inline void load(word &x, uint32_t address) {
    memcpy(&x, shared_at(address, sizeof x, sizeof x), sizeof x);
}
/* Wgmma and bulk copies may read what a thread writes when that thread has released it. */
EMULATOR void note_write(uint32_t address, int thread);
EMULATOR void release_writes();

template <class word> inline void store(uint32_t address, word x) {
    memcpy(shared_at(address, sizeof x, sizeof x), &x, sizeof x);
    note_write(address, emulator::thread_together());
}
inline void load_four(uint32_t &x, uint32_t &y, uint32_t &z, uint32_t &w, uint32_t address) {
    uint32_t c[4];
    memcpy(c, shared_at(address, 16, 16), 16);
    x = c[0], y = c[1], z = c[2], w = c[3];
}
inline void store_four(uint32_t address, uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    const uint32_t c[4] = {x, y, z, w};
    memcpy(shared_at(address, 16, 16), c, 16);
    note_write(address, emulator::thread_together());
}

/* In a launch that may begin before the one before it has ended, threads copy, and allow the next
 * to begin, after they have waited. */
EMULATOR void wait_for_launch_before();
EMULATOR void allow_next_launch();

EMULATOR void copy_16(uint32_t to, const void *from, int read);
EMULATOR void copy_4(uint32_t to, const void *from);
EMULATOR void commit_copies();
EMULATOR void wait_copies(int pending);

/* ---- blocks of a cluster ---- */

inline void cluster_rank(int &rank) { rank = (int)emulator::here.rank; }
inline void map_address(uint32_t &there, uint32_t address, int rank) {
    there = (address & ((1u << emulator::RANK_BIT) - 1)) | (uint32_t)rank << emulator::RANK_BIT;
}
inline void cluster_barrier() { emulator::meet_cluster(); }

/* ---- barriers ---- */

inline void block_barrier(uint32_t id, int threads) { emulator::meet((int)id, threads, 0); }
EMULATOR void init_mbarrier(uint32_t at, int count);
EMULATOR void arrive(uint32_t at);
EMULATOR void arrive_expect(uint32_t at, int bytes);
EMULATOR void send_8(uint32_t to, uint32_t barrier, int x, int y);
EMULATOR void test_wait(int &ended, uint32_t at, uint32_t parity);
EMULATOR void try_wait(uint32_t at, uint32_t parity);

/* ---- bulk copies ---- */

EMULATOR void start_box(uint32_t to, const void *map, uint32_t barrier, const int *at, int rank);

template <class... coordinates>
inline void copy_box(uint32_t to, const void *map, uint32_t barrier, coordinates... c) {
    const int at[] = {c...};
    start_box(to, map, barrier, at, sizeof...(c));
}

EMULATOR void start_boxes(uint32_t to, const void *map, uint32_t barrier, const int *at, int rank,
                          int blocks);
inline void copy_box_to_all(uint32_t to, const void *map, uint32_t barrier, int c0, int c1, int c2,
                            int c3, int blocks) {
    const int at[] = {c0, c1, c2, c3};
    start_boxes(to, map, barrier, at, 4, blocks);
}

EMULATOR void start_box_out(const void *map, uint32_t from, const int *at, int rank);
EMULATOR void wait_boxes();

template <class... coordinates>
inline void copy_box_out(const void *map, uint32_t from, coordinates... c) {
    const int at[] = {c...};
    start_box_out(map, from, at, sizeof...(c));
}

/* ---- matrices of a warp ---- */

EMULATOR void load_matrices(int count, bool transposed, uint32_t *const *to, uint32_t address);

inline void ldmatrix_2(uint32_t &a, uint32_t &b, uint32_t address) {
    uint32_t *to[] = {&a, &b};
    load_matrices(2, false, to, address);
}
template <bool transposed = false>
inline void ldmatrix_4(uint32_t &a, uint32_t &b, uint32_t &c, uint32_t &d, uint32_t address) {
    uint32_t *to[] = {&a, &b, &c, &d};
    load_matrices(4, transposed, to, address);
}

EMULATOR void stmatrix_4(uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d);

/* c (16 x 8) += a (16 x depth) b (depth x 8) */
EMULATOR void multiply(bool f16, int depth, float *const *c, const uint32_t *a, const uint32_t *b);

inline void mma_k8_f16(float &c0, float &c1, float &c2, float &c3, uint32_t a0, uint32_t a1,
                       uint32_t b0) {
    float *c[] = {&c0, &c1, &c2, &c3};
    const uint32_t a[] = {a0, a1}, b[] = {b0};
    multiply(true, 8, c, a, b);
}
template <bool f16>
inline void mma_k16(float &c0, float &c1, float &c2, float &c3, uint32_t a0, uint32_t a1,
                    uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    float *c[] = {&c0, &c1, &c2, &c3};
    const uint32_t a[] = {a0, a1, a2, a3}, b[] = {b0, b1};
    multiply(f16, 16, c, a, b);
}

/* ---- matrices of a warpgroup ---- */

/* d (64 x columns) (+)= a b; `left`: a comes from registers, else by its descriptor */
struct wgmma {
    bool f16;
    int columns, accumulate;
    uint64_t a, b;
    const uint32_t *left;
};
EMULATOR void start_product(const wgmma &p, float *sums);
EMULATOR void wgmma_commit();
EMULATOR void wgmma_wait(int pending);

template <bool f16, int columns, class... rest>
inline void wgmma_shared(uint64_t a, uint32_t, uint32_t, uint32_t, uint64_t b, int accumulate,
                         float &sums, rest &...others) {
    static_assert(sizeof...(others) + 1 == columns / 2, "an accumulator of other size");
    start_product({f16, columns, accumulate, a, b, nullptr}, &sums);
}
template <bool f16, int columns, class... rest>
inline void wgmma_registers(uint32_t &a, uint32_t &, uint32_t &, uint32_t &, uint64_t b,
                            int accumulate, float &sums, rest &...others) {
    static_assert(sizeof...(others) + 1 == columns / 2, "an accumulator of other size");
    start_product({f16, columns, accumulate, 0, b, &a}, &sums);
}

} // namespace instruction

#endif
