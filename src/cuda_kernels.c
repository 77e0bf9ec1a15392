#include "cuda_kernels.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_cache.h"

/* Entries are only ever added, at the front of a list, and never change: readers need no lock. */
typedef struct loaded {
    spec s;
    void *entries[ENTRIES];
    struct loaded *next;
} loaded;

enum { LISTS = 64 };
static _Atomic(loaded *) lists[CUDA_MAX_GPUS][LISTS];
static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;

static _Atomic(loaded *) *list_of(const spec *s, const cuda_gpu *gpu) {
    uint32_t hash = 0;
    for (int i = 0; i < SPEC_AXES; i++)
        hash = (hash ^ (uint32_t)tallow_spec_value(s, i)) * 0x9e3779b1u;
    return &lists[gpu->ordinal][hash >> 26];
}

static const loaded *find(_Atomic(loaded *) *list, const spec *s) {
    const loaded *at = atomic_load_explicit(list, memory_order_acquire);
    while (at && memcmp(&at->s, s, sizeof *s)) at = at->next;
    return at;
}

static tallow_status load(const spec *s, const cuda_gpu *gpu, const char *pack, loaded *out) {
    static const char *const rows[ENTRIES] = {"tallow_append", "tallow_rotate", "tallow_merge"};
    static const char *const forward[ENTRIES] = {"tallow_forward", "tallow_combine"};
    const char *const *names = s->family ? forward : rows;
    const int count = s->family == 0 ? 3 : s->family == 90 ? 1 : 2;
    char key[SPEC_KEY];
    spec_tile tile;
    void *image, *library;
    tallow_status status = tallow_cuda_image(s, gpu->capability, pack, &image);
    if (status) return status;
    tallow_spec_key(s, key);
    tallow_spec_tile(s, &tile);
    status = tallow_cuda_load(&library, image, key);
    free(image);
    out->s = *s;
    for (int i = 0; i < count && !status; i++) {
        const bool computes = s->family && i == ENTRY_FORWARD;
        status = tallow_cuda_entry(&out->entries[i], library, names[i],
                                   computes ? tile.shared_bytes : 0, gpu);
    }
    return status;
}

static tallow_status load_first(const spec *s, const cuda_gpu *gpu, const char *pack,
                                _Atomic(loaded *) *list) {
    if (find(list, s)) return TALLOW_OK; /* by another thread meanwhile */
    loaded *added = calloc(1, sizeof *added);
    if (!added) return tallow_fail(TALLOW_OUT_OF_MEMORY, "no memory to note a loaded kernel");
    tallow_status status = load(s, gpu, pack, added);
    if (status) return free(added), status;
    added->next = atomic_load_explicit(list, memory_order_relaxed);
    atomic_store_explicit(list, added, memory_order_release);
    return TALLOW_OK;
}

tallow_status tallow_cuda_kernels(const spec *s, const cuda_gpu *gpu, const char *pack,
                                  void *const **entries) {
    _Atomic(loaded *) *list = list_of(s, gpu);
    const loaded *found = find(list, s);
    if (!found) {
        pthread_mutex_lock(&loading);
        tallow_status status = load_first(s, gpu, pack, list);
        pthread_mutex_unlock(&loading);
        if (status) return status;
        found = find(list, s);
    }
    *entries = found->entries;
    return TALLOW_OK;
}
