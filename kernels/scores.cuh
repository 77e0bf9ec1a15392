/* From products to scores: scale, softcap, ALiBi, mask; and dropout of weights. */
#ifndef SCORES_CUH
#define SCORES_CUH

#include "layout.cuh"
#include "schedule.cuh"

/* What is known of a row, in shared memory: its position, its ALiBi slope, and but for sm_90 of the
 * masked block of keys that is worked on which it sees. */
INLINE uint32_t row_facts(uint32_t memory, int row) {
    return memory + layout::rows + row * layout::row_bytes;
}

#if SPEC_family != 90
INLINE void note(uint32_t memory, int row, int word, uint64_t fact) {
    uint32_t at = row_facts(memory, row) + layout::row_seen + 8 * word;
    set_shared_i32(at, (uint32_t)fact);
    set_shared_i32(at + 4, (uint32_t)(fact >> 32));
}
INLINE uint64_t noted(uint32_t memory, int row, int word) {
    uint32_t at = row_facts(memory, row) + layout::row_seen + 8 * word;
    return (uint32_t)shared_i32(at) | (uint64_t)(uint32_t)shared_i32(at + 4) << 32;
}
#endif

INLINE void note_rows(const forward_args &a, const work &w, uint32_t memory) {
    const floats_arg &slopes = a.alibi_slopes;
    int row = thread_id(), end = tile::block_rows, step = tile::threads;
    if (spec::family == 90) { /* each warp those that it computes */
        end = (thread_id() / 32 + 1) * tile::warp_rows;
        row = end - tile::warp_rows + lane_id();
        step = 32;
    }
    for (; row < end; row += step) {
        query_of_row q = query_of(a, w, row);
        float slope = 0;
        if (spec::scores == 1 && slopes.data && row < w.rows)
            slope = slopes.data[w.b * slopes.batch_stride + q.head * slopes.head_stride];
        set_shared_i32(row_facts(memory, row), position_of(a, w.seq, w.row_begin + row));
        set_shared_f32(row_facts(memory, row) + 4, slope);
    }
}

/* With scores = 1: products become scores. */
INLINE void bias_scores(score_block &s, const forward_args &a, uint32_t memory, int first_key) {
    const float inner = a.softcap > 0 ? a.scale / a.softcap : a.scale;
    first_key += column_warp() * tile::warp_keys + lane_id() % 4 * 2;
    UNROLL for (int i = 0; i < tile::row_states; i++) {
        uint32_t facts = row_facts(memory, row_in_tile(i));
        int gap = shared_i32(facts) - first_key;
        float slope = shared_f32(facts + 4);
        UNROLL for (int n = 0; n < tile::key_parts; n++)
            UNROLL for (int c = 0; c < 2; c++) {
                float &x = s[i / 2][n][i % 2 * 2 + c];
                x *= inner;
                if (a.softcap > 0) x = a.softcap * tanhf(x);
                x = fmaf(-slope, fabsf((float)(gap - n * 8 - c)), x);
            }
    }
}

/* Whether some key may be hidden from some row. */
INLINE bool hides_keys(const work &w) {
    return w.blocks.begin < w.blocks.end &&
           !(within(w.clean, w.blocks.begin) && within(w.clean, w.blocks.end - 1));
}

/* ---- masked blocks of keys ---- */

/* Which keys a row sees: a bit each, 32 to a word, from the thread's first key on. */
typedef uint32_t seen_keys[2 * tile::seen_words];

INLINE void hide_keys(score_block &s, const int i, const seen_keys &seen) {
    UNROLL for (int n = 0; n < tile::key_parts; n++)
        UNROLL for (int c = 0; c < 2; c++)
            if (!(seen[n / 4] >> (n % 4 * 8 + c) & 1)) s[i / 2][n][i % 2 * 2 + c] = MINUS_INFINITY;
}

#if SPEC_family == 90
INLINE uint64_t keys_of_row(const forward_args &a, const work &w, const int i, int first_key) {
    const int position = position_of(a, w.seq, w.row_begin + row_in_tile(i));
    return visible_keys(a, w.b, w.seq.seqlen_k, position, first_key);
}

/* Lane l of a quad works out every other 64 keys of row l % 2, for all four. */
INLINE void mask_scores(score_block &s, const forward_args &a, const work &w, int first_key) {
    const int lane = lane_id(), first = lane % 4 * 2;
    uint64_t own[(tile::seen_words + 1) / 2];
    UNROLL for (int word = 0; word < tile::seen_words; word += 2)
        own[word / 2] = keys_of_row(a, w, lane % 2, first_key + 64 * (word + lane % 4 / 2));
    UNROLL for (int i = 0; i < tile::row_states; i++) {
        seen_keys seen;
        UNROLL for (int word = 0; word < tile::seen_words; word++) {
            const int from = lane / 4 * 4 + word % 2 * 2 + i;
            const uint64_t keys = own[word / 2];
            seen[2 * word] = __shfl_sync(~0u, (uint32_t)keys, from) >> first;
            seen[2 * word + 1] = __shfl_sync(~0u, (uint32_t)(keys >> 32), from) >> first;
        }
        hide_keys(s, i, seen);
    }
}
#else
/* Before the barrier in front of a masked block. */
INLINE void note_visible(const forward_args &a, const work &w, uint32_t memory, int first_key) {
    _Pragma("unroll 1") for (int row = thread_id(); row < tile::block_rows; row += tile::threads) {
        int position = shared_i32(row_facts(memory, row));
        UNROLL for (int word = 0; word < tile::seen_words; word++)
            note(memory, row, word,
                 visible_keys(a, w.b, w.seq.seqlen_k, position, first_key + 64 * word));
    }
}

INLINE void mask_scores(score_block &s, uint32_t memory) {
    const int first = column_warp() * tile::warp_keys + lane_id() % 4 * 2;
    UNROLL for (int i = 0; i < tile::row_states; i++) {
        seen_keys seen;
        UNROLL for (int word = 0; word < tile::seen_words; word++) {
            uint64_t keys = noted(memory, row_in_tile(i), word) >> first;
            seen[2 * word] = (uint32_t)keys;
            seen[2 * word + 1] = (uint32_t)(keys >> 32);
        }
        hide_keys(s, i, seen);
    }
}
#endif

/* ---- dropout ---- */

/* Philox4x32-10 (Salmon et al.): four words from a counter and a key. */
INLINE uint4 philox(uint4 counter, uint2 key) {
    _Pragma("unroll 1") for (int round = 0; round < 10; round++) {
        uint32_t high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
        uint32_t high2 = __umulhi(0xCD9E8D57u, counter.z), low2 = 0xCD9E8D57u * counter.z;
        counter = make_uint4(high2 ^ counter.y ^ key.x, low2, high0 ^ counter.w ^ key.y, low0);
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
    return counter;
}

/* Of the warp's keys [8 * begin, 8 * end), weights whose random word is below the threshold become
 * 0; the others' scale waits for the end. A thread's two keys are the first or the second half of
 * four that share a counter. */
INLINE void drop_weights(score_block &s, const forward_args &a, const work &w, int first_key,
                         const int begin, const int end) {
    const uint2 key = make_uint2((uint32_t)a.dropout_seed,
                                 (uint32_t)(a.dropout_seed >> 32) ^
                                     (uint32_t)(a.dropout_offset >> 32));
    first_key += column_warp() * tile::warp_keys + lane_id() % 4 * 2;
    UNROLL for (int i = 0; i < tile::row_states; i++) {
        query_of_row q = query_of(a, w, row_in_tile(i));
        UNROLL for (int n = begin; n < end; n++) {
            uint4 words = philox(make_uint4((first_key + n * 8) / 4, (uint32_t)q.query,
                                            w.b * a.sequences.heads + q.head,
                                            (uint32_t)a.dropout_offset),
                                 key);
            bool second = lane_id() % 2;
            float *pair = &s[i / 2][n][i % 2 * 2];
            if ((second ? words.z : words.x) < a.dropout_threshold) pair[0] = 0;
            if ((second ? words.w : words.y) < a.dropout_threshold) pair[1] = 0;
        }
    }
}

#endif
