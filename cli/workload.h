/* What one call costs, and the memory it reads: for `tallow bench`. */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#include "case.h"
#include "peaks.h"

typedef struct {
    double flops;    /* 2 (head_dim + head_dim_v) per head and computed (query, key) pair */
    double bytes;    /* q, out and the visible keys' K and V, once */
    double kv_bytes; /* K and V of those */
    byte_range *ranges;
    int range_count; /* the same bytes, where they lie */
} workload;

/* False when memory ran out. */
bool workload_measure(workload *w, const attention_case *c);
void workload_free(workload *w);

#endif
