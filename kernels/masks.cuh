/* Which keys a query sees: by the causal or window mask, whose keys are one interval, and by prefix
 * ranges, each of which adds another. */
#ifndef MASKS_CUH
#define MASKS_CUH

#include "sequence.cuh"

/* Ranges are rare: where much code stands, wgmma's, their loops are kept short. */
#if SPEC_family == 90
#define RANGE_LOOP _Pragma("unroll 1")
#else
#define RANGE_LOOP
#endif

struct interval {
    int begin, end;
};

/* Keys that the causal or window mask shows to a query at `position`. */
INLINE interval window_of(const forward_args &a, int seqlen_k, int position) {
    interval w = {(int)clamp64(position - a.window_left, 0, seqlen_k),
                  (int)clamp64(position + a.window_right + 1, 0, seqlen_k)};
    return w;
}

/* Prefix range `i` of sequence b, as it stands. */
INLINE interval prefix_range(const forward_args &a, int b, int i) {
    const int32_t *at = a.prefix_ranges + b * a.range_batch_stride + i * a.range_stride;
    interval range = {at[0], at[a.range_end_stride]};
    return range;
}

INLINE bool within(interval i, int x) { return i.begin <= x && x < i.end; }

INLINE interval cut(interval i, int begin, int end) {
    interval part = {most(i.begin, begin), least(i.end, end)};
    return part;
}

/* Bits [begin, end) of 64. */
INLINE uint64_t bits_within(int begin, int end) {
    begin = clamp(begin, 0, 64);
    end = clamp(end, 0, 64);
    if (begin >= end) return 0;
    return ~(uint64_t)0 << begin & ~(uint64_t)0 >> (64 - end);
}

/* Bit j tells whether the query at `position` sees key first_key + j. */
INLINE uint64_t visible_keys(const forward_args &a, int b, int seqlen_k, int position,
                             int first_key) {
    interval window = window_of(a, seqlen_k, position);
    uint64_t seen = bits_within(window.begin - first_key, window.end - first_key);
    RANGE_LOOP for (int i = 0; i < a.max_ranges; i++) {
        interval range = prefix_range(a, b, i), keys = cut(range, 0, seqlen_k);
        if (within(range, position))
            seen |= bits_within(keys.begin - first_key, keys.end - first_key);
    }
    return seen;
}

/* The keys that queries at these adjacent positions may see. They are one interval: what a query
 * sees is, as far as there are keys, an interval around its own position. */
INLINE interval visible_interval(const forward_args &a, int b, int seqlen_k, interval positions) {
    interval keys = {window_of(a, seqlen_k, positions.begin).begin,
                     window_of(a, seqlen_k, positions.end - 1).end};
    RANGE_LOOP for (int i = 0; i < a.max_ranges; i++) {
        interval range = prefix_range(a, b, i), shown = cut(range, 0, seqlen_k);
        interval queries = cut(positions, range.begin, range.end);
        if (shown.begin >= shown.end || queries.begin >= queries.end) continue;
        bool empty = keys.begin >= keys.end;
        keys.begin = empty ? shown.begin : least(keys.begin, shown.begin);
        keys.end = empty ? shown.end : most(keys.end, shown.end);
    }
    return keys;
}

#endif
