#include "run_mha.h"

#include "candle_call.h"

void run_mha(void *q, void *k, void *v, void *o, void *softmax_lse, void *alibi_slopes,
             int32_t *cu_seqlens_q, int32_t *cu_seqlens_k, uint32_t q_batch_stride,
             uint32_t k_batch_stride, uint32_t v_batch_stride, uint32_t o_batch_stride,
             uint32_t alibi_slopes_batch_stride, uint32_t q_row_stride, uint32_t k_row_stride,
             uint32_t v_row_stride, uint32_t o_row_stride, uint32_t q_head_stride,
             uint32_t k_head_stride, uint32_t v_head_stride, uint32_t o_head_stride, uint32_t b,
             uint32_t h, uint32_t h_k, uint32_t d, uint32_t d_rounded, float softmax_scale,
             uint32_t seqlen_q, uint32_t seqlen_k, uint32_t seqlen_q_rounded,
             uint32_t seqlen_k_rounded,
#if CANDLE_ARGUMENTS == 45
             uint32_t total_q,
#endif
             int is_bf16, int is_causal, int unpadded_lse, int window_size_left,
             int window_size_right, float softcap
#if CANDLE_ARGUMENTS == 45
             ,
             int32_t *block_table, uint32_t block_table_batch_stride, int page_block_size,
             int32_t *mm_prefix_ranges, uint32_t mm_prefix_range_batch_stride,
             int max_mm_prefix_ranges, void *stream
#endif
) {
    const candle_call call = {
        .q = q,
        .k = k,
        .v = v,
        .o = o,
        .softmax_lse = softmax_lse,
        .alibi_slopes = alibi_slopes,
        .cu_seqlens_q = cu_seqlens_q,
        .cu_seqlens_k = cu_seqlens_k,
        .q_batch_stride = q_batch_stride,
        .k_batch_stride = k_batch_stride,
        .v_batch_stride = v_batch_stride,
        .o_batch_stride = o_batch_stride,
        .alibi_slopes_batch_stride = alibi_slopes_batch_stride,
        .q_row_stride = q_row_stride,
        .k_row_stride = k_row_stride,
        .v_row_stride = v_row_stride,
        .o_row_stride = o_row_stride,
        .q_head_stride = q_head_stride,
        .k_head_stride = k_head_stride,
        .v_head_stride = v_head_stride,
        .o_head_stride = o_head_stride,
        .b = b,
        .h = h,
        .h_k = h_k,
        .d = d,
        .softmax_scale = softmax_scale,
        .seqlen_q = seqlen_q,
        .seqlen_k = seqlen_k,
        .is_bf16 = is_bf16,
        .is_causal = is_causal,
        .unpadded_lse = unpadded_lse,
        .window_size_left = window_size_left,
        .window_size_right = window_size_right,
        .softcap = softcap,
#if CANDLE_ARGUMENTS == 45
        .total_q = total_q,
        .block_table = block_table,
        .block_table_batch_stride = block_table_batch_stride,
        .page_block_size = page_block_size,
        .mm_prefix_ranges = mm_prefix_ranges,
        .mm_prefix_range_batch_stride = mm_prefix_range_batch_stride,
        .max_mm_prefix_ranges = max_mm_prefix_ranges,
        .stream = stream,
#else
        .total_q = TOTAL_UNKNOWN, /* and the stream is the legacy default one */
#endif
    };
    (void)d_rounded, (void)seqlen_q_rounded, (void)seqlen_k_rounded; /* size candle's tiles */
    tallow_candle_run(&call);
}
