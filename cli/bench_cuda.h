/* `tallow bench` on a GPU. */
#ifndef BENCH_CUDA_H
#define BENCH_CUDA_H

#include <stdbool.h>

#include "case.h"

/* Times a call for about `seconds` and prints what was measured; returns an exit code. */
int bench_cuda(const char *name, const case_options *o, double seconds, bool as_json);

#endif
