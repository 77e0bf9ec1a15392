/* A tile whose keys are cut into parts: their results are put together, by the thread block that is
 * done last, or by a kernel of many blocks when they are too many bytes for one. */
#ifndef COMBINE_CUH
#define COMBINE_CUH

#include "count.cuh"
#include "elements.cuh"
#include "schedule.cuh"
#include "total.cuh"

/* True in one of the tile's thread blocks, to which the parts of all then show. All of them count,
 * also those without a part: lengths that change meanwhile leave no count that the next launch
 * would stumble over. */
INLINE bool comes_last(const forward_args &a) {
    bool last = false;
    __syncthreads(); /* this block's part is written */
    if (threadIdx.x == 0) {
        uint64_t *ended = a.counts + divide(blockIdx.x, a.splits);
        __threadfence();
        last = count_one(ended, a.tag) == a.splits.by - 1;
        if (last) leave_none(ended, a.tag);
        __threadfence();
    }
    return __syncthreads_or(last);
}

/* Some rows, put together by a warp: those of as many parts at a time that 32 loads of a lane are
 * on their way. */
namespace combined {
constexpr int rows = COMBINE_ROWS;
constexpr int lanes = 32 / rows; /* for a row: each knows the weight of a part */
constexpr int fours = (spec::head_dim_v + 127) / 128; /* of a row's columns, that a lane adds up */
constexpr int parts = 32 / rows / fours;              /* at a time */
constexpr int part_floats = tile::block_rows * (spec::head_dim_v + 2);
} // namespace combined

struct combined_rows {
    float top, total; /* of the lane's row; the total: of the lane's parts */
    float4 sums[combined::rows][combined::fours];
};

INLINE void add_weighted(float4 &sum, float weight, float4 x) {
    sum.x = fmaf(weight, x.x, sum.x);
    sum.y = fmaf(weight, x.y, sum.y);
    sum.z = fmaf(weight, x.z, sum.z);
    sum.w = fmaf(weight, x.w, sum.w);
}

/* Raises the maximum: what has been added shrinks. */
INLINE void raise_top(combined_rows &c, float top) {
    const float factor = c.top == top ? 1 : exp2f(c.top - top);
    c.top = top;
    c.total *= factor;
    UNROLL for (int r = 0; r < combined::rows; r++) {
        const float own = __shfl_sync(~0u, factor, r * combined::lanes);
        UNROLL for (int i = 0; i < combined::fours; i++) {
            float4 &sum = c.sums[r][i];
            sum = make_float4(sum.x * own, sum.y * own, sum.z * own, sum.w * own);
        }
    }
}

INLINE float row_top(float x) {
    UNROLL for (int lane = 1; lane < combined::lanes; lane *= 2)
        x = fmaxf(x, __shfl_xor_sync(~0u, x, lane));
    return x;
}
INLINE float row_sum(float x) {
    UNROLL for (int lane = 1; lane < combined::lanes; lane *= 2)
        x += __shfl_xor_sync(~0u, x, lane);
    return x;
}

/* Parts [begin, end) of rows from first_row on, in a fixed order. */
INLINE void add_parts(combined_rows &c, const forward_args &a, const work &w, int first_row,
                      int begin, int end) {
    using namespace combined;
    const float *values = partial_of(a, w, 0);
    const float2 *states = (const float2 *)(values + tile::block_rows * spec::head_dim_v);
    const int own = lane_id() % lanes, column = lane_id() * 4;
    values += first_row * spec::head_dim_v + column;
    states += first_row + lane_id() / lanes;
    c.top = MINUS_INFINITY;
    c.total = 0;
    UNROLL for (int i = 0; i < rows * fours; i++)
        c.sums[i / fours][i % fours] = make_float4(0, 0, 0, 0);
    _Pragma("unroll 1") for (int first = begin; first < end; first += parts) {
        const int64_t from = (int64_t)first * part_floats;
        float2 state = make_float2(MINUS_INFINITY, 0);
        float4 x[rows][parts][fours];
        if (own < least(parts, end - first)) state = states[(from + own * part_floats) / 2];
        UNROLL for (int i = 0; i < rows * parts * fours; i++) {
            const int r = i / (parts * fours), p = i / fours % parts, four = i % fours;
            const bool there = first_row + r < w.rows && first + p < end &&
                               column + four * 128 < spec::head_dim_v;
            const float *at = values + from + p * part_floats + r * spec::head_dim_v + four * 128;
            x[r][p][four] = there ? *(const float4 *)at : make_float4(0, 0, 0, 0);
        }
        raise_top(c, row_top(fmaxf(c.top, state.x)));
        const float weight = state.y == 0 ? 0 : exp2f(state.x - c.top); /* 0: no visible key */
        c.total = fmaf(weight, state.y, c.total);
        UNROLL for (int i = 0; i < rows * parts; i++) {
            const int r = i / parts, p = i % parts;
            const float each = __shfl_sync(~0u, weight, r * lanes + p);
            UNROLL for (int four = 0; four < fours; four++)
                add_weighted(c.sums[r][four], each, x[r][p][four]);
        }
    }
    c.total = row_sum(c.total);
}

/* Rows are normalised and stored, with their lse. */
INLINE void store_combined(const combined_rows &c, const forward_args &a, const work &w,
                           int first_row) {
    using namespace combined;
    const int row = first_row + lane_id() / lanes;
    const query_of_row q = query_of(a, w, row);
    const row_total total = total_of(a, q.head, c.top, c.total);
    const tile_rows out = rows_of_tile(a, w, a.out);
    if (a.lse && lane_id() % lanes == 0 && row < w.rows) *lse_at(a, w, q) = lse_of(total);
    UNROLL for (int r = 0; r < rows; r++) {
        const float factor = __shfl_sync(~0u, total.factor, r * lanes);
        if (first_row + r >= w.rows) continue;
        char *to = tile_row(a, out, a.out, first_row + r);
        UNROLL for (int four = 0; four < fours; four++) {
            const int column = four * 128 + lane_id() * 4;
            if (column >= spec::head_dim_v) continue;
            store_element(to, a.out_dtype, column, c.sums[r][four].x * factor);
            store_element(to, a.out_dtype, column + 1, c.sums[r][four].y * factor);
            store_element(to, a.out_dtype, column + 2, c.sums[r][four].z * factor);
            store_element(to, a.out_dtype, column + 3, c.sums[r][four].w * factor);
        }
    }
}

/* By all threads: `sharing` warps for some rows, whose parts they divide among themselves. What
 * they have of them meets in `shared`, which has a place for each thread. */
INLINE void combine_rows(const forward_args &a, const work &w, int first_row, int sharing,
                         combined_rows *shared) {
    using namespace combined;
    const int warp = thread_id() / 32 % sharing;
    combined_rows c;
    add_parts(c, a, w, first_row, w.parts * warp / sharing, w.parts * (warp + 1) / sharing);
    if (sharing > 1) {
        shared[thread_id()] = c;
        __syncthreads();
        if (warp > 0) return;
        for (int other = 1; other < sharing; other++) {
            combined_rows add = shared[thread_id() + other * 32];
            raise_top(c, fmaxf(c.top, add.top));
            raise_top(add, c.top);
            c.total += add.total;
            UNROLL for (int i = 0; i < rows * fours; i++)
                add_weighted(c.sums[i / fours][i % fours], 1, add.sums[i / fours][i % fours]);
        }
    }
    store_combined(c, a, w, first_row);
}

/* All rows of a tile, by its thread block. */
static_assert(tile::threads / 32 * combined::rows <= tile::block_rows, "no warp has other rows");
INLINE void combine_tile(const forward_args &a, const work &w, combined_rows *shared) {
    const int warps = tile::threads / 32, runs = (w.rows + combined::rows - 1) / combined::rows;
    int sharing = 1;
    while (runs * sharing * 2 <= warps) sharing *= 2;
    int run = thread_id() / 32 / sharing;
    do { /* once at least, for the barrier of those who share */
        combine_rows(a, w, run * combined::rows, sharing, shared);
        run += warps / sharing;
    } while (run < runs);
}

#endif
