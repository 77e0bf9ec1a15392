/* What is left once a row has seen all its keys: the factor that normalises its sum of V (and makes
 * up for dropout), and what its lse is made of. A sink is one more logit without a value. */
#ifndef TOTAL_CUH
#define TOTAL_CUH

#include "base.cuh"

struct row_total {
    float factor, max, sum; /* max: in units of log2(e) */
};

INLINE row_total total_of(const forward_args &a, int head, float max, float sum) {
    row_total total = {0, max, sum};
    float weight = 1;
    if (sum == 0) return total; /* a visible key adds more, or NaN */
    if (a.sinks.data) {
        const float sink = LOG2E * a.sinks.data[head * a.sinks.head_stride];
        total.max = fmaxf(max, sink);
        weight = exp2f(max - total.max);
        total.sum = fmaf(sum, weight, exp2f(sink - total.max));
    }
    total.factor = weight / total.sum * a.dropout_scale;
    return total;
}

INLINE float lse_of(const row_total &total) {
    return total.sum == 0 ? MINUS_INFINITY : (total.max + log2f(total.sum)) * LN2;
}

#endif
