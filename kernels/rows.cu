/* The kernels that work row by row: one program for all shapes and dtypes. */
#include "rotary.cuh"
#include "sequence.cuh"

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
