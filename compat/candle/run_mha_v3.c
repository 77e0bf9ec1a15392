#include "run_mha.h"

#include "candle_call.h"

void run_mha_v3(void *q, void *k, void *v, void *o, void *softmax_lse, void *alibi_slopes,
                void *tile_count_semaphore, int32_t *cu_seqlens_q, int32_t *cu_seqlens_k,
                uint32_t q_batch_stride, uint32_t k_batch_stride, uint32_t v_batch_stride,
                uint32_t o_batch_stride, uint32_t alibi_slopes_batch_stride, uint32_t q_row_stride,
                uint32_t k_row_stride, uint32_t v_row_stride, uint32_t o_row_stride,
                uint32_t q_head_stride, uint32_t k_head_stride, uint32_t v_head_stride,
                uint32_t o_head_stride, uint32_t b, uint32_t h, uint32_t h_k, uint32_t d,
                uint32_t d_rounded, float softmax_scale, uint32_t seqlen_q, uint32_t seqlen_k,
                uint32_t seqlen_q_rounded, uint32_t seqlen_k_rounded, int is_bf16, int is_causal,
                int unpadded_lse, int use_gqa_packing, int window_size_left, int window_size_right,
                uint32_t total_q, uint32_t total_k, void *stream) {
    const candle_call call = {
        CANDLE_SHARED,
        .total_q = total_q, /* of packed calls: dense ones say 0 */
        .total_k = total_k,
        .stream = stream,
    };
    (void)d_rounded, (void)seqlen_q_rounded, (void)seqlen_k_rounded; /* size candle's tiles, */
    (void)use_gqa_packing, (void)tile_count_semaphore;               /* choose and order them */
    tallow_candle_run(&call);
}
