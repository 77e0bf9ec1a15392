/* Candle's calls on the CPU, through the same translation. */
#include <stdlib.h>
#include <string.h>

#include "candle_call.h"
#include "candle_model.h"
#include "expect.h"

void tallow_candle_run(const candle_call *c) {
    tallow_attention_params p;
    if (!tallow_candle_has_rows(c)) return;
    tallow_status status = tallow_candle_params(&p, c, TALLOW_DEVICE_CPU);
    if (!status) status = tallow_attention(&p, sizeof p);
    EXPECT(!status, "%s: %s", tallow_status_name(status), tallow_last_error());
}

static void *upload(void *context, const void *host, size_t bytes) {
    char *memory = malloc(bytes);
    (void)context;
    if (!memory) abort();
    return memcpy(memory, host, bytes);
}

static void download(void *context, void *host, void *device, size_t bytes) {
    (void)context;
    memcpy(host, device, bytes);
    free(device);
}

bool model_device(case_device *device, char *why, size_t why_size) {
    (void)why, (void)why_size;
    *device = (case_device){.upload = upload, .download = download};
    return true;
}

int model_before(void) { return 0; }

/* ---- what candle's wrappers never pass ---- */

static void expect_refusal(const candle_call *c, const char *words) {
    tallow_attention_params p;
    EXPECT(tallow_candle_params(&p, c, TALLOW_DEVICE_CPU), "no error of %s", words);
    EXPECT(strstr(tallow_last_error(), words), "\"%s\" lacks %s", tallow_last_error(), words);
}

static void expect_refusals(candle_call c) {
    int32_t lengths[3] = {0, 3, 4}, table[1] = {0};
    c.is_bf16 = 2;
    expect_refusal(&c, "is_bf16 = 2");
    c.is_bf16 = 1;
    c.is_causal = 1;
    c.window_size_left = 2;
    expect_refusal(&c, "window_size_left = 2");
    c.window_size_left = 3;
    c.window_size_right = 1;
    expect_refusal(&c, "window_size_right = 1");
    c.window_size_right = 0;
    c.max_mm_prefix_ranges = 1;
    expect_refusal(&c, "max_mm_prefix_ranges = 1");
    c.max_mm_prefix_ranges = 0;
    c.page_block_size = 32;
    expect_refusal(&c, "block_table is null");
    c.block_table = table;
    expect_refusal(&c, "cu_seqlens_k is null");
    c.cu_seqlens_q = c.cu_seqlens_k = lengths;
    c.page_block_size = 0;
    expect_refusal(&c, "page_block_size = 0");
    c.block_table = NULL;
    expect_refusal(&c, "unpadded_lse = 0");
    c.total_q = 4;
    c.seqlen_q = 0;
    expect_refusal(&c, "seqlen_q = 0");
    c.total_q = 0;
    c.seqlen_q = 3;
    EXPECT(!tallow_candle_has_rows(&c), "packed calls without rows write something");
}

int model_after(const case_device *device) {
    float lse[1], slopes[4];
    candle_call c = {.b = 2, .h = 2, .h_k = 1, .d = 8, .seqlen_q = 3, .seqlen_k = 3};
    tallow_attention_params p;
    (void)device;
    c.softmax_lse = lse;
    c.alibi_slopes = slopes;
    c.alibi_slopes_batch_stride = 2;
    c.unpadded_lse = 1;
    EXPECT(!tallow_candle_params(&p, &c, TALLOW_DEVICE_CPU), "%s", tallow_last_error());
    EXPECT(p.lse.shape[0] == 2 && p.lse.strides[0] == 3 && p.lse.strides[1] == 6 &&
               p.lse.strides[2] == 1,
           "an unpadded lse of dense rows");
    EXPECT(p.alibi_slopes.shape[0] == 2 && p.alibi_slopes.strides[0] == 2, "slopes by sequence");
    EXPECT(p.mask == TALLOW_MASK_WINDOW && !p.window_left && !p.window_right, "a diagonal window");
    c.is_causal = 1;
    c.window_size_left = 3;
    EXPECT(!tallow_candle_params(&p, &c, TALLOW_DEVICE_CPU), "%s", tallow_last_error());
    EXPECT(p.mask == TALLOW_MASK_CAUSAL && !p.window_left, "causal with its window");
    c.unpadded_lse = 0;
    expect_refusals(c);
    return expect_report();
}
