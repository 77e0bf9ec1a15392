#include "threads.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "asynchronous.h"

char *shared_memory;

namespace emulator {

alignas(1024) static char memory[MOST_TOGETHER][SHARED_MOST];

enum { STACK = 1 << 16, BARRIERS = 16 };
enum { STUCK = 8, MOST_IDLE = 1 << 25 }; /* turns in vain: of each thread, of all */

struct fiber {
    void *top; /* of its stack, while others run */
    std::unique_ptr<char[]> stack;
    dim index;
    uint32_t rank;
    bool done;
};

struct warp {
    fiber lane[32];
    int arrived, done;
    unsigned generation;
    const char *what;
    void *io[32];
};

struct barrier {
    int arrived, any, result;
    unsigned generation;
};

place here;
static std::vector<warp> warps;
static warp *current_warp;
static int current_lane, first_lane;
static uint32_t shared_bytes;
static uint64_t random_state, idle;
static void *scheduler_top;
static const launch *current_launch;
static barrier barriers[MOST_TOGETHER][BARRIERS], cluster_barrier;

uint32_t random_below(uint32_t n) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((uint64_t)(uint32_t)(random_state >> 32) * n >> 32);
}

void fail(const char *why) {
    fprintf(stderr, "emulated GPU: block %u, thread %d: %s\n", here.block.x, thread(), why);
    for (warp &w : warps)
        fprintf(stderr, "  warp %d: %d lanes have ended, %d are at %s\n", (int)(&w - warps.data()),
                w.done, w.arrived, w.arrived ? w.what : "different places");
    abort();
}

/* Keeps the callee's registers on the stack that it leaves, and takes those of the other. */
extern "C" void emulator_switch(void **keep, void *take);
asm(R"(
.text
.local emulator_switch
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

/* It is this thread's turn. */
static void enter(const fiber &f) {
    here.thread = f.index;
    here.block.x += f.rank - here.rank;
    here.rank = f.rank;
    shared_memory = memory[f.rank];
}

/* The lanes of a warp take turns; when all have had one, another warp goes on. */
static void yield() {
    fiber &before = current_warp->lane[current_lane];
    do {
        current_lane = (current_lane + 1) % 32;
        if (current_lane != first_lane) continue;
        finish_something(idle > STUCK * 32 * warps.size());
        do current_warp = &warps[random_below((uint32_t)warps.size())];
        while (current_warp->done == 32);
        current_lane = first_lane = (int)random_below(32);
    } while (current_warp->lane[current_lane].done);
    fiber &next = current_warp->lane[current_lane];
    enter(next);
    if (&next != &before) emulator_switch(&before.top, next.top);
}

void wait_for(const char *what, bool (*met)(const void *), const void *condition) {
    while (!met(condition)) {
        if (++idle > MOST_IDLE) fail(what);
        yield();
    }
    idle = 0;
}

void pause() {
    for (uint32_t turns = random_below(2) * random_below(64); turns > 0; turns--) yield();
}

/* Until a counter moves on. */
static void wait_for_next(const char *what, const unsigned &generation) {
    struct {
        const unsigned *now;
        unsigned before;
    } change = {&generation, generation};
    typedef decltype(change) type;
    wait_for(
        what, [](const void *c) { return *((type *)c)->now != ((type *)c)->before; }, &change);
}

void together(const char *what, void *io, void (*act)(void **)) {
    warp &w = *current_warp;
    if (w.arrived && strcmp(w.what, what)) fail(what);
    w.what = what;
    w.io[current_lane] = io;
    if (++w.arrived < 32) return wait_for_next(what, w.generation);
    act(w.io);
    w.arrived = 0;
    w.generation++;
}

static int meet(barrier &b, const char *what, int threads, int value) {
    b.any |= value;
    if (++b.arrived < threads) {
        wait_for_next(what, b.generation);
        return b.result;
    }
    b.result = b.any;
    b.arrived = b.any = 0;
    b.generation++;
    return b.result;
}

int meet(int id, int threads, int value) {
    return meet(barriers[here.rank][id], "a barrier of the block", threads, value);
}

void meet_cluster() {
    meet(cluster_barrier, "a barrier of the cluster", (int)warps.size() * 32, 0);
}

char *shared_at(uint32_t address, uint32_t bytes, uint32_t alignment) {
    const uint32_t rank = address >> RANK_BIT, at = address - (rank << RANK_BIT);
    if (rank >= current_launch->together || at < SHARED_BASE ||
        at - SHARED_BASE + bytes > shared_bytes)
        fail("shared memory has no such address");
    if (address % alignment) fail("an address in shared memory is not aligned");
    return memory[rank] + (at - SHARED_BASE);
}

/* ---- a launch ---- */

static void run_thread() {
    current_launch->entry(current_launch->args);
    fiber &self = current_warp->lane[current_lane];
    self.done = true;
    idle = 0;
    current_warp->done++;
    if (current_warp->arrived) fail("a lane ends while others wait for it");
    for (warp &w : warps)
        if (w.done < 32) yield(); /* and does not come back */
    emulator_switch(&self.top, scheduler_top);
}

static void start(fiber &f, unsigned id, uint32_t rank) {
    enum { KEPT = 6 }; /* registers, as emulator_switch leaves them */
    if (!f.stack) f.stack.reset(new char[STACK]);
    f.index = {id % here.block_size.x, id / here.block_size.x};
    f.rank = rank;
    f.done = false;
    void **top = (void **)((uintptr_t)(f.stack.get() + STACK) / 64 * 64);
    *--top = nullptr; /* where a call would have left its return address */
    *--top = (void *)run_thread;
    f.top = top - KEPT;
}

static void run_cluster() {
    const unsigned of_block = (unsigned)warps.size() / current_launch->together;
    memset(memory, 0xff, sizeof memory);
    memset(barriers, 0, sizeof barriers);
    cluster_barrier = {};
    start_blocks((unsigned)warps.size() * 32, current_launch->overlaps);
    for (unsigned i = 0; i < warps.size(); i++) {
        warps[i].arrived = warps[i].done = 0;
        for (unsigned lane = 0; lane < 32; lane++)
            start(warps[i].lane[lane], i % of_block * 32 + lane, i / of_block);
    }
    current_warp = &warps[random_below((uint32_t)warps.size())];
    current_lane = first_lane = 0;
    enter(current_warp->lane[0]);
    emulator_switch(&scheduler_top, current_warp->lane[0].top);
    end_blocks();
}

void run(const launch &l) {
    current_launch = &l;
    here.grid_size = {l.blocks, 1};
    here.block_size = {l.threads[0], l.threads[1]};
    shared_bytes = l.shared_bytes;
    random_state = l.seed;
    warps.resize(l.together * l.threads[0] * l.threads[1] / 32);
    for (unsigned i = 0; i < l.blocks; i += l.together) {
        here.block = {i, 0};
        here.rank = 0;
        run_cluster();
    }
    warps.clear();
}

} // namespace emulator
