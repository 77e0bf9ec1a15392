/* The kernels that work row by row: one program for all shapes and dtypes. */
#include "rotary.cuh"
#include "schedule.cuh"
#include "total.cuh"

/* ---- combine ---- */

INLINE float block_max(float x, float *warps) {
    for (int lane = 16; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lane));
    if (lane_id() == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    for (int i = 0; i < COMBINE_THREADS / 32; i++) x = fmaxf(x, warps[i]);
    return x;
}

INLINE float block_sum(float x, float *warps) {
    for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
    if (lane_id() == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
    for (int i = 0; i < COMBINE_THREADS / 32; i++) x += warps[i];
    return x;
}

INLINE void add_weighted(float4 &sum, float weight, float4 x) {
    sum.x = fmaf(weight, x.x, sum.x);
    sum.y = fmaf(weight, x.y, sum.y);
    sum.z = fmaf(weight, x.z, sum.z);
    sum.w = fmaf(weight, x.w, sum.w);
}

/* One row from its parts: groups of threads, each as many as a row has fours of columns, take parts
 * in turn. Everything is added in a fixed order, so that the result is the same every time. */
INLINE void combine_row(const forward_args &a, const work &w, int row) {
    __shared__ float weights[COMBINE_THREADS];
    __shared__ float tops[COMBINE_THREADS / 32], sums[COMBINE_THREADS / 32];
    __shared__ float4 group_sums[COMBINE_THREADS];
    const int columns = a.head_dim_v / 4, groups = COMBINE_THREADS / columns;
    const int group = threadIdx.x / columns, column = threadIdx.x % columns;
    const int64_t stride = (int64_t)a.block_rows * (a.head_dim_v + 2);
    const float *values = partial_of(a, w, 0, a.block_rows);
    const float2 *states = (const float2 *)(values + a.block_rows * a.head_dim_v) + row;
    values += row * a.head_dim_v + column * 4;

    float top = MINUS_INFINITY, total = 0;
    float4 sum = make_float4(0, 0, 0, 0);
    for (int part = threadIdx.x; part < w.parts; part += COMBINE_THREADS)
        top = fmaxf(top, states[part * stride / 2].x);
    top = block_max(top, tops);
    for (int first = 0; first < w.parts; first += COMBINE_THREADS) {
        const int count = least(COMBINE_THREADS, w.parts - first);
        if (threadIdx.x < count) {
            float2 state = states[(first + threadIdx.x) * stride / 2];
            float weight = state.y == 0 ? 0 : exp2f(state.x - top); /* 0: no visible key */
            total = fmaf(weight, state.y, total);
            weights[threadIdx.x] = weight;
        }
        __syncthreads();
        if (group < groups) {
            _Pragma("unroll 8") for (int i = group; i < count; i += groups)
                add_weighted(sum, weights[i], *(const float4 *)(values + (first + i) * stride));
        }
        __syncthreads();
    }
    group_sums[threadIdx.x] = sum;
    total = block_sum(total, sums); /* a barrier, too */
    if (group > 0) return;
    for (int i = 1; i < groups; i++) add_weighted(sum, 1, group_sums[i * columns + column]);

    const query_of_row q = query_of(a, w, row);
    const row_total all = total_of(a, q.head, top, total);
    char *out = row_at(a.out, w.b, w.seq.q_start + q.query, q.head);
    store_element(out, a.out_dtype, column * 4, sum.x * all.factor);
    store_element(out, a.out_dtype, column * 4 + 1, sum.y * all.factor);
    store_element(out, a.out_dtype, column * 4 + 2, sum.z * all.factor);
    store_element(out, a.out_dtype, column * 4 + 3, sum.w * all.factor);
    if (column == 0 && a.lse)
        a.lse[w.b * a.lse_batch_stride + q.head * a.lse_head_stride + w.seq.q_start + q.query] =
            lse_of(all);
}

/* Grid: (batch * heads_kv * row_blocks * block_rows); block: COMBINE_THREADS. The kernel before is
 * tallow_forward, which has waited for what wrote the lengths. */
extern "C" __global__ void __launch_bounds__(COMBINE_THREADS, 8)
tallow_combine(const __grid_constant__ forward_args a) {
    const int tile = blockIdx.x / a.block_rows, row = blockIdx.x % a.block_rows;
    const int head = tile / a.row_blocks, b = divide(head, a.sequences.heads_kv);
    const tile_index at = {b, (int)(head - b * a.sequences.heads_kv.by), tile % a.row_blocks};
    work w;
    enter_work(w, a, at, a.block_rows, a.block_keys);
    wait_for_kernel_before();
    if (w.parts > 1 && row < w.rows) combine_row(a, w, row);
}

/* ---- append ---- */

INLINE char *cache_row(const append_args &a, const rows_arg &view, const sequence &seq, int b,
                       int row) {
    if (!a.sequences.block_table) return row_at(view, seq.cache_row, row, 0);
    int2 at = page_of(a.sequences, b, row);
    return row_at(view, at.x, at.y, 0);
}

INLINE void append_token(const append_args &a, const sequence &seq, int b, int t,
                         float2 *angles) {
    int64_t row_new = seq.new_start + (int64_t)t, b_new = a.sequences.cu_seqlens_k_new.data ? 0 : b;
    const int heads = a.sequences.heads_kv.by;
    char *k = cache_row(a, a.k, seq, b, seq.append_at + t);
    char *v = cache_row(a, a.v, seq, b, seq.append_at + t);
    const char *v_new = row_at(a.v_new, b, row_new, 0);
    if (a.angles.pairs > 0)
        find_angles(a.angles, a.positions_new, b_new, row_new, seq.append_at + (int64_t)t, angles);
    rotate_heads(a.angles, angles, row_at(a.k_new, b, row_new, 0), a.k_new.head_stride, k,
                 a.k.head_stride, heads, a.head_dim, a.dtype, true);
    for (int i = threadIdx.x; i < heads * a.head_dim_v; i += blockDim.x) {
        int head = i / a.head_dim_v, element = i - head * a.head_dim_v;
        copy_element(v + head * a.v.head_stride, v_new + head * a.v_new.head_stride, a.dtype,
                     element);
    }
}

INLINE void rotate_query(const append_args &a, const sequence &seq, int b, int t, float2 *angles) {
    int64_t row = seq.q_start + (int64_t)t, b_q = a.sequences.cu_seqlens_q.data ? 0 : b;
    find_angles(a.angles, a.positions_q, b_q, row, seq.append_at + (int64_t)t, angles);
    rotate_heads(a.angles, angles, row_at(a.q, b, row, 0), a.q.head_stride,
                 row_at(a.q_out, b, row, 0), a.q_out.head_stride, a.sequences.heads, a.head_dim,
                 a.dtype, true);
}

/* Grid: (batch * tokens); block: TOKEN_THREADS. Angles are those of a row of the sequence, counted
 * from append_at: token t of k_new and query t. */
extern "C" __global__ void __launch_bounds__(TOKEN_THREADS)
tallow_append(const __grid_constant__ append_args a) {
    __shared__ float2 angles[ROTATE_PAIRS];
    const int b = blockIdx.x / a.tokens, t = blockIdx.x % a.tokens;
    wait_for_kernel_before();
    const sequence seq = sequence_of(a.sequences, b);
    if (t < seq.seqlen_new) append_token(a, seq, b, t, angles);
    if (t < seq.seqlen_q && a.q_out.data) rotate_query(a, seq, b, t, angles);
}

/* ---- rotate ---- */

/* The sequence that owns a row of a packed tensor: the last one that starts at or before it. */
INLINE int sequence_of_row(const rotate_args &a, int row) {
    int first = 0, last = a.batch - 1;
    while (first < last) {
        int middle = first + (last - first + 1) / 2;
        if (entry(a.cu_seqlens, middle) <= row)
            first = middle;
        else
            last = middle - 1;
    }
    return first;
}

/* Grid: (rows of all sequences); block: TOKEN_THREADS. Packed rows of no sequence are left alone.
 * */
extern "C" __global__ void __launch_bounds__(TOKEN_THREADS)
tallow_rotate(const __grid_constant__ rotate_args a) {
    __shared__ float2 angles[ROTATE_PAIRS];
    const bool packed = a.cu_seqlens.data;
    const int b = packed ? 0 : blockIdx.x / a.rows, row = packed ? blockIdx.x : blockIdx.x % a.rows;
    int owner = b, start = 0;
    if (packed) {
        if (row < entry(a.cu_seqlens, 0) || row >= entry(a.cu_seqlens, a.batch)) return;
        owner = sequence_of_row(a, row);
        start = entry(a.cu_seqlens, owner);
    }
    int64_t implicit = row - start + (int64_t)(a.offset.data ? entry(a.offset, owner) : 0);
    find_angles(a.angles, a.positions, b, row, implicit, angles);
    rotate_heads(a.angles, angles, row_at(a.x, b, row, 0), a.x.head_stride,
                 row_at(a.out, b, row, 0), a.out.head_stride, a.heads, a.head_dim, a.dtype, a.move);
}

/* ---- merge ---- */

INLINE float side_value(const char *row, int dtype, float lse, float weight, int i) {
    return lse == MINUS_INFINITY ? 0 : weight * load_element(row, dtype, i);
}

/* Grid: (batch * rows * heads / MERGE_ROWS, rounded up); block: (32, MERGE_ROWS). A side without
 * keys counts as zeros, whatever its memory holds. */
extern "C" __global__ void __launch_bounds__(32 * MERGE_ROWS)
tallow_merge(const __grid_constant__ merge_args a) {
    const int64_t item = (int64_t)blockIdx.x * MERGE_ROWS + threadIdx.y;
    if (item >= (int64_t)a.batch * a.rows * a.heads) return;
    const int head = (int)(item % a.heads), row = (int)(item / a.heads % a.rows);
    const int b = (int)(item / a.heads / a.rows);
    float lse_a = a.lse_a[b * a.lse_a_stride[0] + head * a.lse_a_stride[1] + row];
    float lse_b = a.lse_b[b * a.lse_b_stride[0] + head * a.lse_b_stride[1] + row];
    bool empty = lse_a == MINUS_INFINITY && lse_b == MINUS_INFINITY;
    float top = fmaxf(lse_a, lse_b);
    float part_a = lse_a == top ? 1 : expf(lse_a - top);
    float part_b = lse_b == top ? 1 : expf(lse_b - top);
    __syncwarp(); /* lse may be lse_a or lse_b */

    const char *row_a = row_at(a.out_a, b, row, head), *row_b = row_at(a.out_b, b, row, head);
    for (int i = lane_id(); i < a.head_dim_v; i += 32) {
        float x = side_value(row_a, a.dtype_a, lse_a, part_a / (part_a + part_b), i) +
                  side_value(row_b, a.dtype_b, lse_b, part_b / (part_a + part_b), i);
        store_element(row_at(a.out, b, row, head), a.dtype_out, i, x);
    }
    if (a.lse && lane_id() == 0)
        a.lse[b * a.lse_stride[0] + head * a.lse_stride[1] + row] =
            empty ? MINUS_INFINITY : top + log1pf(part_a * part_b);
}
