/* Measured numbers, and their median. */
#ifndef SAMPLES_H
#define SAMPLES_H

enum { MOST_SAMPLES = 2000 };

typedef struct {
    double value[MOST_SAMPLES];
    int count;
} samples;

/* Beyond MOST_SAMPLES a value is dropped. */
void samples_add(samples *s, double value);

/* Of at least one sample; sorts them. */
double samples_median(samples *s);

#endif
