/* What is left once a row has seen all its keys: the factor that normalises its sum of V (and makes
 * up for dropout), and its lse. `max` is in units of log2(e). A sink is one more logit without a
 * value. */
#ifndef TOTAL_CUH
#define TOTAL_CUH

#include "base.cuh"

struct row_total {
    float factor, lse;
};

INLINE row_total total_of(const forward_args &a, int head, float max, float sum) {
    row_total total = {0, MINUS_INFINITY};
    float weight = 1;
    if (sum == 0) return total; /* a visible key adds more, or NaN */
    if (a.sinks.data) {
        float sink = LOG2E * a.sinks.data[head * a.sinks.head_stride], top = fmaxf(max, sink);
        weight = exp2f(max - top);
        sum = fmaf(sum, weight, exp2f(sink - top));
        max = top;
    }
    total.factor = weight / sum * a.dropout_scale;
    total.lse = (max + log2f(sum)) * LN2;
    return total;
}

#endif
