#include "samples.h"

#include <stdlib.h>

void samples_add(samples *s, double value) {
    if (s->count < MOST_SAMPLES) s->value[s->count++] = value;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double samples_median(samples *s) {
    qsort(s->value, (size_t)s->count, sizeof *s->value, ascending);
    return (s->value[(s->count - 1) / 2] + s->value[s->count / 2]) / 2;
}
