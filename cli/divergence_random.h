/* The random numbers of `tallow divergence`, in the part of C that CUDA shares: the CPU and the GPU
 * draw the same weights, to the bit. */
#ifndef DIVERGENCE_RANDOM_H
#define DIVERGENCE_RANDOM_H

typedef unsigned long long random_word;

/* A bijection whose outputs look random (the finaliser of SplitMix64). */
static inline random_word random_mix(random_word x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

/* What a stream of a seed draws from; number `index` of a stream. */
static inline random_word random_key(random_word seed, random_word stream) {
    return random_mix(random_mix(seed) + stream);
}
static inline random_word random_bits(random_word key, random_word index) {
    return random_mix(key + index);
}

/* Mean 0, variance `scale` squared, nearly normal: the sum of four uniform 16-bit numbers. */
static inline float random_normal(random_word bits, double scale) {
    double sum = (double)(bits & 0xffff) + (double)(bits >> 16 & 0xffff) +
                 (double)(bits >> 32 & 0xffff) + (double)(bits >> 48);
    double normal = (sum - 2 * 65535) * (1.7320508075688772 / 65536);
    return (float)(normal * scale);
}

#endif
