/* What this machine can do at best, measured: the yardsticks of `tallow bench`. Each call is one
 * short sample, on `threads` threads; take many, between the runs of what they are compared to. */
#ifndef PEAKS_H
#define PEAKS_H

#include <stdbool.h>
#include <stddef.h>

/* Floating-point operations per second of independent f32 multiply-adds in registers. */
double peak_f32(int threads);

/* The same of bf16 products summed in f32. A CPU without bf16 dot products has to multiply them as
 * f32: its peak is peak_f32. */
double peak_bf16(int threads);
bool peak_has_bf16(void);

typedef struct {
    const void *data;
    size_t bytes;
} byte_range;

/* Seconds to read every byte of the ranges once, split evenly over the threads. */
double peak_read(const byte_range *ranges, int count, int threads);

/* Empties the caches of all cores of what was in them. */
void peak_evict(int threads);

#endif
