/* The threads of a block, or of a cluster's blocks, as fibers of one host thread, for kernels that
 * were made C++.
 *
 * A warp's lanes run apart between the instructions that they execute together, and warps run in a
 * random order, so that a missing barrier shows. What a GPU does in its own time, copies and wgmma,
 * happens at a random moment between its start and the wait for it. Shared memory starts as NaN;
 * every access by address is held to its size and alignment. What cannot be (no thread can go on,
 * an address outside of shared memory) ends the process with a message. */
#ifndef EMULATOR_THREADS_H
#define EMULATOR_THREADS_H

#include <stdint.h>

#define EMULATOR __attribute__((visibility("default")))

EMULATOR extern char *shared_memory; /* of the block whose thread runs */

namespace emulator {

/* Where shared memory begins, above what a null pointer's mistake reaches, and the most there is.
 * An address has the block's rank in its cluster above the other bits. */
enum { SHARED_BASE = 1024, SHARED_MOST = 227 * 1024, RANK_BIT = 24, MOST_TOGETHER = 2 };

struct dim {
    unsigned x, y;
};
struct place {
    dim thread, block, block_size, grid_size;
    uint32_t rank; /* of the block in its cluster */
};
EMULATOR extern place here; /* the thread that runs */

inline int lane() { return (int)((here.thread.x + here.thread.y * here.block_size.x) % 32); }
inline int thread() { return (int)(here.thread.x + here.thread.y * here.block_size.x); }
/* Counted over the blocks of the cluster. */
inline int thread_together() {
    return (int)(here.rank * here.block_size.x * here.block_size.y) + thread();
}

/* Ends the process. */
[[noreturn]] EMULATOR void fail(const char *why);

/* 0 to n - 1, from the launch's seed. */
EMULATOR uint32_t random_below(uint32_t n);

/* Other threads run until met(condition). `what` is said if it never is. */
EMULATOR void wait_for(const char *what, bool (*met)(const void *), const void *condition);

/* Others may run first: where what a thread has just said lets them. */
EMULATOR void pause();

/* What a warp's lanes do together: the last one to come does it, given all lanes' io. */
EMULATOR void together(const char *what, void *io, void (*act)(void **));

/* A barrier of the block, bar.sync: whether one of the threads brought a value. */
EMULATOR int meet(int id, int threads, int value);

/* The same of all threads of the cluster. */
EMULATOR void meet_cluster();

/* An address in shared memory as the host's. */
EMULATOR char *shared_at(uint32_t address, uint32_t bytes, uint32_t alignment);

/* Runs a kernel: all clusters, one after the other. */
struct launch {
    void (*entry)(const void *);
    const void *args;
    unsigned blocks, threads[2], shared_bytes, together; /* the last: blocks of a cluster */
    bool overlaps; /* it may begin before the one before it has ended */
    uint64_t seed;
};
void run(const launch &l);

} // namespace emulator

#endif
