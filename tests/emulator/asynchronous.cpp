#include "asynchronous.h"

#include <algorithm>
#include <deque>
#include <vector>

#include "instructions.h"
#include "tensor.h"

namespace instruction {

using namespace emulator;

/* ---- what threads write, before others than threads read it ---- */

static uint32_t unreleased[MOST_TOGETHER * SHARED_MOST / 16]; /* writes of 16 bytes each */
static std::vector<std::vector<uint32_t>> written;            /* by each thread: which 16 bytes */

static uint32_t piece_at(uint32_t address) {
    const uint32_t rank = address >> RANK_BIT;
    return (rank * SHARED_MOST + address - (rank << RANK_BIT) - SHARED_BASE) / 16;
}
void note_write(uint32_t address, int thread) {
    const uint32_t piece = piece_at(address);
    unreleased[piece]++;
    written[(size_t)thread].push_back(piece);
}
void release_writes() {
    for (uint32_t piece : written[(size_t)thread_together()]) unreleased[piece]--;
    written[(size_t)thread_together()].clear();
}

template <class word> static word read(uint32_t address) {
    word x;
    if (unreleased[piece_at(address)])
        fail("wgmma or a bulk copy reads what a thread has written and not released");
    load(x, address);
    return x;
}

/* ---- launches that overlap ---- */

static bool overlaps;
static std::vector<bool> waited; /* threads for the launch before */

static void need_wait(const char *why) {
    if (overlaps && !waited[(size_t)thread_together()]) fail(why);
}
void wait_for_launch_before() { waited[(size_t)thread_together()] = true; }
void allow_next_launch() { need_wait("griddepcontrol.launch_dependents before the wait"); }

/* ---- cp.async: a copy is made at once or at the wait ---- */

struct chunk {
    uint32_t to;
    const char *from;
    int bytes, read;
};
static std::vector<std::deque<std::vector<chunk>>> groups; /* of each thread; the last is open */

static void finish(const chunk &c) {
    char *to = shared_at(c.to, (uint32_t)c.bytes, (uint32_t)c.bytes);
    if (c.read && (uintptr_t)c.from % (uintptr_t)c.bytes)
        fail("cp.async from an address that is not aligned");
    memset(to, 0, (size_t)c.bytes);
    memcpy(to, c.from, (size_t)c.read);
}
static void start(const chunk &c) {
    if (c.read) need_wait("cp.async before griddepcontrol.wait");
    if (random_below(2))
        finish(c);
    else
        groups[(size_t)thread_together()].back().push_back(c);
}

void copy_16(uint32_t to, const void *from, int read) { start({to, (const char *)from, 16, read}); }
void copy_4(uint32_t to, const void *from) { start({to, (const char *)from, 4, 4}); }
void commit_copies() { groups[(size_t)thread_together()].emplace_back(); }
void wait_copies(int pending) {
    auto &own = groups[(size_t)thread_together()];
    for (; (int)own.size() > pending + 1; own.pop_front())
        for (const chunk &c : own.front()) finish(c);
}

/* ---- barriers in shared memory ---- */

struct mbarrier {
    uint16_t count, pending;
    int32_t bytes : 31;
    uint32_t phase : 1;
};
static_assert(sizeof(mbarrier) == 8, "as in PTX");

static mbarrier &at_address(uint32_t address) { return *(mbarrier *)shared_at(address, 8, 8); }

static void count(mbarrier &b, int arrivals, int bytes) {
    if (b.pending < arrivals) fail("more arrivals than a barrier expects");
    b.pending = (uint16_t)(b.pending - arrivals);
    b.bytes += bytes;
    if (b.pending || b.bytes) return;
    b.phase ^= 1;
    b.pending = b.count;
}

void init_mbarrier(uint32_t at, int count) {
    at_address(at) = {(uint16_t)count, (uint16_t)count, 0, 0};
}
void arrive(uint32_t at) { arrive_expect(at, 0); }
void arrive_expect(uint32_t at, int bytes) {
    count(at_address(at), 1, bytes);
    pause();
}
void test_wait(int &ended, uint32_t at, uint32_t parity) { ended = at_address(at).phase != parity; }
void try_wait(uint32_t at, uint32_t parity) {
    const uint32_t phase[] = {at, parity};
    wait_for(
        "a barrier in shared memory",
        [](const void *p) {
            return at_address(((const uint32_t *)p)[0]).phase != ((const uint32_t *)p)[1];
        },
        phase);
}

void send_8(uint32_t to, uint32_t barrier, int x, int y) {
    const int words[] = {x, y};
    memcpy(shared_at(to, 8, 8), words, 8);
    count(at_address(barrier), 0, -8);
    pause();
}

/* ---- bulk copies ---- */

struct box {
    bool late;
    const tensor *map;
    uint32_t shared, barrier;
    int at[5];
    int writer; /* the thread it leaves shared memory for; -1: it comes */
};
static std::vector<box> boxes;

static uint32_t permuted(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

/* Row `row` of a box, counted over all dimensions but the innermost; null: outside. */
static uint16_t *row_of(const box &c, uint32_t row) {
    char *at = (char *)c.map->data;
    for (int i = 1; i < c.map->rank; row /= c.map->box[i++]) {
        const int64_t index = c.at[i] + (int64_t)(row % c.map->box[i]);
        if (index < 0 || (uint64_t)index >= c.map->dim[i]) return nullptr;
        at += index * (int64_t)c.map->stride[i - 1];
    }
    return (uint16_t *)at;
}

static void finish(const box &c) {
    const uint32_t columns = c.map->box[0];
    uint32_t rows = 1;
    for (int i = 1; i < c.map->rank; i++) rows *= c.map->box[i];
    const int64_t first = c.at[0], in_row = (int64_t)c.map->dim[0];
    const int64_t begin = std::clamp<int64_t>(-first, 0, columns);
    const int64_t end = std::clamp<int64_t>(in_row - first, begin, columns);
    for (uint32_t row = 0; row < rows; row++) {
        uint16_t *outside = row_of(c, row);
        const auto inside = [&](uint32_t i) {
            return permuted(c.shared + (row * columns + i) * 2);
        };
        for (uint32_t i = 0; i < columns; i++) {
            const bool exists = outside && begin <= i && i < end;
            if (c.writer < 0)
                *(uint16_t *)shared_at(inside(i), 2, 2) = exists ? outside[first + i] : 0;
            else if (exists)
                outside[first + i] = read<uint16_t>(inside(i));
        }
    }
    if (c.writer < 0) count(at_address(c.barrier), 0, -(int)(rows * columns * 2));
}

static void start(const void *map, uint32_t shared, uint32_t barrier, const int *at, int rank,
                  int writer) {
    box c = {random_below(2) == 0, (const tensor *)map, shared, barrier, {}, writer};
    if (!is_tensor(c.map) || c.map->rank != rank) fail("a bulk copy's map is none of its rank");
    if (shared % 128) fail("a bulk copy's address in shared memory is not aligned");
    for (int i = 0; i < rank; i++) c.at[i] = at[i];
    boxes.push_back(c);
}

void start_box(uint32_t to, const void *map, uint32_t barrier, const int *at, int rank) {
    need_wait("a bulk copy before griddepcontrol.wait");
    start(map, to, barrier, at, rank, -1);
}
void start_box_out(const void *map, uint32_t from, const int *at, int rank) {
    start(map, from, 0, at, rank, thread_together());
}
void start_boxes(uint32_t to, const void *map, uint32_t barrier, const int *at, int rank,
                 int blocks) {
    const uint32_t others = (1u << RANK_BIT) - 1;
    for (uint32_t block = 0; block < MOST_TOGETHER; block++)
        if (blocks >> block & 1)
            start_box((to & others) | block << RANK_BIT, map,
                      (barrier & others) | block << RANK_BIT, at, rank);
}
void wait_boxes() {
    const int own = thread_together();
    wait_for(
        "cp.async.bulk.wait_group",
        [](const void *writer) {
            for (const box &c : boxes)
                if (c.writer == *(const int *)writer) return false;
            return true;
        },
        &own);
}

/* ---- wgmma ---- */

/* A product once its threads have started it. Registers are read and written when it is made, as
 * the hardware may at any time. */
struct product {
    wgmma what;
    uint32_t block; /* the rank in an address */
    bool late;
    int threads;
    uint64_t group; /* as each thread counts them */
    float *sums[128];
    const uint32_t *left[128];
};
struct warpgroup {
    std::deque<product> products; /* that have not ended; they do in this order */
    uint64_t ended;
    uint64_t started[128], committed[128]; /* by each thread: products, and groups of them */
};
static std::vector<warpgroup> warpgroups;

static warpgroup &own_group() { return warpgroups[(size_t)thread_together() / 128]; }

/* Fields of a descriptor. */
static uint32_t start_of(uint64_t d) { return (uint32_t)(d & 0x3fff) << 4; }
static uint32_t leading(uint64_t d) { return (uint32_t)(d >> 16 & 0x3fff) << 4; }
static uint32_t strided(uint64_t d) { return (uint32_t)(d >> 32 & 0x3fff) << 4; }
static void want_permutation(uint64_t d) {
    if (d >> 62 != 1) fail("wgmma: an operand without the permutation of 128 bytes");
}

/* Element k of a row, where a row's elements lie side by side; or of a column, where a k's do. */
static uint16_t row_element(uint32_t block, uint64_t d, int row, int k) {
    return read<uint16_t>(permuted(block + start_of(d) + (uint32_t)(row / 8) * strided(d) +
                                   (uint32_t)(row % 8 * 128 + k * 2)));
}
static uint16_t column_element(uint32_t block, uint64_t d, int k, int column) {
    return read<uint16_t>(permuted(block + start_of(d) + (uint32_t)(column / 64) * leading(d) +
                                   (uint32_t)(k / 8) * strided(d) +
                                   (uint32_t)(k % 8 * 128 + column % 64 * 2)));
}

static int holder_of(int row, int column) { return row / 16 * 32 + row % 8 * 4 + column % 8 / 2; }

static void finish(product &p) {
    const wgmma &m = p.what;
    const auto number = m.f16 ? f16_value : bf16_value;
    static float b[256][16];
    for (int n = 0; n < m.columns; n++)
        for (int k = 0; k < 16; k++)
            b[n][k] = number(m.left ? column_element(p.block, m.b, k, n)
                                    : row_element(p.block, m.b, n, k));
    for (int row = 0; row < 64; row++) {
        float a[16];
        for (int k = 0; k < 16; k++)
            a[k] = m.left ? value(m.f16, p.left[holder_of(row, k)][k / 8 * 2 + row % 16 / 8], k % 2)
                          : number(row_element(p.block, m.a, row, k));
        for (int n = 0; n < m.columns; n++) {
            float &sum = p.sums[holder_of(row, n)][n / 8 * 4 + row % 16 / 8 * 2 + n % 2];
            double total = m.accumulate ? sum : 0;
            for (int k = 0; k < 16; k++) total += (double)a[k] * b[n][k];
            sum = (float)total;
        }
    }
}

/* The first products of a warpgroup, those that all its threads have started, as far as it comes.
 */
static void finish_products(warpgroup &g, bool stuck) {
    while (!g.products.empty() && g.products.front().threads == 128) {
        if (g.products.front().late ? !stuck : random_below(4) == 0) return;
        finish(g.products.front());
        g.products.pop_front();
        g.ended++;
    }
}

void start_product(const wgmma &what, float *sums) {
    warpgroup &g = own_group();
    const int own = thread() % 128;
    const uint64_t index = g.started[own]++ - g.ended;
    if (index == g.products.size()) {
        const uint64_t group = g.committed[own];
        const bool follows = index > 0 && g.products.back().group == group;
        const bool late = follows ? g.products.back().late : random_below(2) == 0;
        g.products.push_back({what, here.rank << RANK_BIT, late, 0, group, {}, {}});
    }
    product &p = g.products[index];
    if (p.what.a != what.a || p.what.b != what.b || p.what.accumulate != what.accumulate)
        fail("wgmma: threads bring different operands");
    if (!what.left) want_permutation(what.a);
    want_permutation(what.b);
    p.sums[own] = sums;
    p.left[own] = what.left;
    p.threads++;
}
void wgmma_commit() { own_group().committed[thread() % 128]++; }
void wgmma_wait(int pending) {
    const uint64_t committed = own_group().committed[thread() % 128];
    const uint64_t first_pending = committed - std::min(committed, (uint64_t)pending);
    wait_for(
        "wgmma.wait_group",
        [](const void *first) {
            const warpgroup &g = own_group();
            return g.products.empty() || g.products.front().group >= *(const uint64_t *)first;
        },
        &first_pending);
}

} // namespace instruction

namespace emulator {

using namespace instruction;

void start_blocks(unsigned threads, bool may_overlap) {
    overlaps = may_overlap;
    waited.assign(threads, false);
    memset(unreleased, 0, sizeof unreleased);
    written.assign(threads, {});
    groups.assign(threads, std::deque<std::vector<chunk>>(1));
    warpgroups.assign((threads + 127) / 128, {});
}

void end_blocks() {
    if (!boxes.empty()) fail("a block ends while bulk copies are under way");
    for (const warpgroup &g : warpgroups)
        if (!g.products.empty()) fail("a block ends while products are under way");
}

void finish_something(bool stuck) {
    finish_products(warpgroups[random_below((uint32_t)warpgroups.size())], stuck);
    if (boxes.empty() || random_below(4) != 0) return;
    std::swap(boxes[random_below((uint32_t)boxes.size())], boxes.back());
    const box c = boxes.back();
    if (c.late && !stuck) return;
    boxes.pop_back();
    finish(c);
}

} // namespace emulator
