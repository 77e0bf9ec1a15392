/* The kernels that work row by row: one program for all shapes and dtypes. */
#include "rotary.cuh"
#include "schedule.cuh"

/* ---- combine ---- */

INLINE float warp_max(float x) {
    for (int lane = 16; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lane));
    return x;
}

/* Log-sum-exp of a row's part; -inf beyond the last. */
INLINE float part_lse(const float *lses, int64_t stride, int part, int parts) {
    return part < parts ? lses[part * stride] : MINUS_INFINITY;
}

/* Weight of a part before normalisation; every lane asks for the same one of a warp's 32. */
INLINE float weight_of(float lse, float top, int part) {
    float weight = lse == MINUS_INFINITY ? 0 : expf(lse - top);
    return __shfl_sync(~0u, weight, part % 32);
}

/* One row from its parts, by one warp: weights exp(lse - lse of all), the sink taking its share.
 * Parts are added in their order, so that the result is the same every time. */
INLINE void combine_row(const forward_args &a, const work &w, int row) {
    const int parts = w.parts, lane = lane_id(), dv = a.head_dim_v;
    const int64_t stride = (int64_t)a.block_rows * (dv + 1);
    const float *values = partial_of(a, w, 0, a.block_rows) + (int64_t)row * dv;
    const float *lses = partial_of(a, w, 0, a.block_rows) + (int64_t)a.block_rows * dv + row;
    const query_of_row q = query_of(a, w, row);

    float top = MINUS_INFINITY, total = 0;
    for (int first = 0; first < parts; first += 32)
        top = fmaxf(top, part_lse(lses, stride, first + lane, parts));
    top = warp_max(top);
    float sink = a.sinks.data ? a.sinks.data[q.head * a.sinks.head_stride] : MINUS_INFINITY;
    bool empty = top == MINUS_INFINITY; /* then every part's values are 0 */
    top = empty ? 0 : fmaxf(top, sink);
    for (int first = 0; first < parts; first += 32) {
        float lse = part_lse(lses, stride, first + lane, parts);
        for (int z = first; z < least(first + 32, parts); z++) total += weight_of(lse, top, z);
    }
    if (!empty) total += expf(sink - top);

    char *out = row_at(a.out, w.b, w.seq.q_start + q.query, q.head);
    for (int i = 0; i < dv; i += 128) {
        int column = i + lane * 4;
        bool there = column < dv;
        float4 sum = make_float4(0, 0, 0, 0);
        for (int first = 0; first < parts; first += 32) {
            float lse = part_lse(lses, stride, first + lane, parts);
            _Pragma("unroll 4") for (int z = first; z < least(first + 32, parts); z++) {
                float weight = weight_of(lse, top, z);
                if (!there) continue;
                float4 x = *(const float4 *)(values + z * stride + column);
                sum.x = fmaf(weight, x.x, sum.x);
                sum.y = fmaf(weight, x.y, sum.y);
                sum.z = fmaf(weight, x.z, sum.z);
                sum.w = fmaf(weight, x.w, sum.w);
            }
        }
        float factor = empty ? 1 : 1 / total;
        if (!there) continue;
        store_element(out, a.out_dtype, column, sum.x * factor);
        store_element(out, a.out_dtype, column + 1, sum.y * factor);
        store_element(out, a.out_dtype, column + 2, sum.z * factor);
        store_element(out, a.out_dtype, column + 3, sum.w * factor);
    }
    if (lane == 0 && a.lse)
        a.lse[w.b * a.lse_batch_stride + q.head * a.lse_head_stride + w.seq.q_start + q.query] =
            empty ? MINUS_INFINITY : top + logf(total);
}

/* Grid: (batch * heads_kv * row_blocks * block_rows / COMBINE_ROWS); block: (32, COMBINE_ROWS). */
extern "C" __global__ void __launch_bounds__(32 * COMBINE_ROWS, 8)
tallow_combine(const __grid_constant__ forward_args a) {
    const int per_tile = a.block_rows / COMBINE_ROWS, tile = blockIdx.x / per_tile;
    const int row = blockIdx.x % per_tile * COMBINE_ROWS + threadIdx.y;
    const work w = tile_of(a, tile / a.row_blocks, tile % a.row_blocks, a.block_rows, a.block_keys);
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
    const int heads = a.sequences.heads_kv;
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

/* Grid: (rows of all sequences); block: TOKEN_THREADS. Packed rows of no sequence are left alone. */
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
    float part_a = lse_a == top ? 1 : expf(lse_a - top), part_b = lse_b == top ? 1 : expf(lse_b - top);
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
