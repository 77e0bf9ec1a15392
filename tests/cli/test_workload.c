/* What bench counts, against pairs and bytes counted one by one. */
#include <math.h>
#include <string.h>

#include "expect.h"
#include "reference.h"
#include "workload.h"

typedef struct {
    case_options o;
    double pairs; /* visible in all sequences, for one head */
    double keys;  /* read */
} expectation;

#define CAUSAL              .mask = TALLOW_MASK_CAUSAL
#define WINDOW(left, right) .mask = TALLOW_MASK_WINDOW, .window_left = left, .window_right = right

/* Counted by hand. */
static const expectation EXPECTED[] = {
    {{"all", .batch = 2, .seqlen_q = 3, .seqlen_k = 5}, 30, 10},
    {{"square", .batch = 1, .seqlen_q = 8, .seqlen_k = 8, CAUSAL}, 32, 8},
    {{"decode", .batch = 1, .seqlen_q = 1, .seqlen_k = 9, CAUSAL}, 8.5, 9},
    {{"chunk", .batch = 1, .seqlen_q = 2, .seqlen_k = 6, CAUSAL}, 4.5 + 5.5, 6},
    {{"tall", .batch = 1, .seqlen_q = 5, .seqlen_k = 2, CAUSAL}, 0.5 + 1.5, 2},
    {{"window", .batch = 1, .seqlen_q = 3, .seqlen_k = 9, WINDOW(2, 1)}, 4 + 4 + 3, 5},
    {{"window, open left", .batch = 1, .seqlen_q = 2, .seqlen_k = 9, WINDOW(-1, 0)}, 17, 9},
    {{"window, open right", .batch = 1, .seqlen_q = 2, .seqlen_k = 9, WINDOW(0, -1)}, 3, 2},
    {{"packed", .batch = 2, .packed_q = true, .k_layout = K_PACKED, .lengths_q = {2, 3},
      .lengths_k = {4, 1}},
     8 + 3,
     5},
    {{"paged", .batch = 1, .k_layout = K_PAGED, .page_size = 4, .seqlen_q = 2, .seqlen_k = 11},
     22,
     11},
    {{"left-padded", .batch = 1, .seqlen_q = 2, .seqlen_k = 11, .leftpad = 3}, 22, 11},
    {{"appended", .batch = 1, .seqlen_q = 1, .seqlen_k = 11, .slack = 2, .seqlen_new = 2}, 13, 13},
};

static void check(const expectation *e) {
    attention_case c;
    workload w;
    case_build_tensors(&c, &e->o, 1);
    if (!workload_measure(&w, &c)) return;
    double dims = (double)(c.o.head_dim + c.o.head_dim_v), size = 4, listed = 0;
    double flops = 2 * e->pairs * c.o.heads * dims, kv = e->keys * c.o.heads_kv * dims * size;
    double bytes = kv + (double)(c.rows * c.o.heads) * dims * size;
    for (int i = 0; i < w.range_count; i++) listed += (double)w.ranges[i].bytes;
    EXPECT(w.flops == flops, "%s: %g, wanted %g", e->o.name, w.flops, flops);
    EXPECT(w.kv_bytes == kv && listed == kv, "%s: %g, %g, wanted %g", e->o.name, w.kv_bytes, listed,
           kv);
    EXPECT(w.bytes == bytes, "%s: %g, wanted %g", e->o.name, w.bytes, bytes);
    EXPECT(peak_read(w.ranges, w.range_count, 3) > 0, "%s", e->o.name);
    workload_free(&w);
    case_free(&c);
}

int main(void) {
    for (size_t i = 0; i < sizeof EXPECTED / sizeof *EXPECTED; i++) check(&EXPECTED[i]);
    EXPECT(peak_f32(1) > 1e6 && peak_bf16(2) > 1e6, "peaks");
    return expect_report();
}
