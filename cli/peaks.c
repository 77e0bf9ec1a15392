#include "peaks.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "output.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define TARGET(features) __attribute__((target(features)))
#endif

/* Runs `rounds` rounds of multiply-adds x = x * half + half, which stay near 1 and never become
 * denormal. There are more chains than a CPU keeps in flight, so none waits for its own latency. */
typedef float (*burner)(int64_t rounds, float half);

typedef struct {
    burner burn;
    double round_flops;
} engine;

enum { CHAINS = 12 };
static const double SAMPLE_FLOPS = 2e9; /* per thread: some 20 milliseconds */

/* Registers of four floats, left to the compiler. */
static float burn_plain(int64_t rounds, float half) {
    float x[CHAINS * 4] = {0}, sum = 0;
    for (int64_t r = 0; r < rounds; r++) {
        for (int c = 0; c < CHAINS * 4; c++) {
#ifdef FP_FAST_FMAF
            x[c] = fmaf(x[c], half, half);
#else
            x[c] = x[c] * half + half;
#endif
        }
    }
    for (int c = 0; c < CHAINS * 4; c++) sum += x[c];
    return sum;
}

#if defined(__x86_64__)
TARGET("avx2,fma") static float burn_avx2(int64_t rounds, float half) {
    const __m256 h = _mm256_set1_ps(half);
    __m256 x[CHAINS], sum = h;
    for (int c = 0; c < CHAINS; c++) x[c] = h;
    for (int64_t r = 0; r < rounds; r++) {
        for (int c = 0; c < CHAINS; c++) x[c] = _mm256_fmadd_ps(x[c], h, h);
    }
    for (int c = 0; c < CHAINS; c++) sum = _mm256_add_ps(sum, x[c]);
    return _mm256_cvtss_f32(sum);
}

TARGET("avx512f") static float burn_avx512(int64_t rounds, float half) {
    const __m512 h = _mm512_set1_ps(half);
    __m512 x[CHAINS], sum = h;
    for (int c = 0; c < CHAINS; c++) x[c] = h;
    for (int64_t r = 0; r < rounds; r++) {
        for (int c = 0; c < CHAINS; c++) x[c] = _mm512_fmadd_ps(x[c], h, h);
    }
    for (int c = 0; c < CHAINS; c++) sum = _mm512_add_ps(sum, x[c]);
    return _mm512_cvtss_f32(sum);
}

/* Two products a lane: x += half * half + half * half. */
TARGET("avx512f,avx512bf16") static float burn_bf16(int64_t rounds, float half) {
    const __m512bh h = _mm512_cvtne2ps_pbh(_mm512_set1_ps(half), _mm512_set1_ps(half));
    __m512 x[CHAINS], sum = _mm512_setzero_ps();
    for (int c = 0; c < CHAINS; c++) x[c] = _mm512_setzero_ps();
    for (int64_t r = 0; r < rounds; r++) {
        for (int c = 0; c < CHAINS; c++) x[c] = _mm512_dpbf16_ps(x[c], h, h);
    }
    for (int c = 0; c < CHAINS; c++) sum = _mm512_add_ps(sum, x[c]);
    return _mm512_cvtss_f32(sum);
}
#endif

static engine f32_engine(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return (engine){burn_avx512, CHAINS * 16 * 2};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return (engine){burn_avx2, CHAINS * 8 * 2};
    }
#endif
    return (engine){burn_plain, CHAINS * 4 * 2};
}

static engine bf16_engine(void) {
#if defined(__x86_64__)
    if (peak_has_bf16()) return (engine){burn_bf16, CHAINS * 16 * 2 * 2};
#endif
    return f32_engine();
}

bool peak_has_bf16(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

static double sample(engine e, int threads) {
    const int64_t rounds = (int64_t)(SAMPLE_FLOPS / e.round_flops);
    volatile float half = 0.5f; /* unknown to the compiler, as is the use of the result */
    volatile float sink;
    double start = seconds_now();
#pragma omp parallel num_threads(threads)
    {
        float result = e.burn(rounds, half);
#pragma omp critical
        sink = result;
    }
    (void)sink;
    return (double)threads * (double)rounds * e.round_flops / (seconds_now() - start);
}

double peak_f32(int threads) { return sample(f32_engine(), threads); }
double peak_bf16(int threads) { return sample(bf16_engine(), threads); }

/* The xor of every 64-byte line: as little work as a read can have. */
static uint64_t read_lines(const char *data, size_t bytes) {
    enum { WORDS = 32 };
    uint64_t x[WORDS] = {0}, word[WORDS], all = 0;
    size_t at = 0;
    for (; at + sizeof word <= bytes; at += sizeof word) {
        memcpy(word, data + at, sizeof word);
        for (int w = 0; w < WORDS; w++) x[w] ^= word[w];
    }
    for (; at < bytes; at++) all ^= (unsigned char)data[at];
    for (int w = 0; w < WORDS; w++) all ^= x[w];
    return all;
}

/* Reads what lies in [begin, end) of the ranges laid end to end. */
static uint64_t read_part(const byte_range *ranges, int count, size_t begin, size_t end) {
    uint64_t all = 0;
    size_t at = 0;
    for (int i = 0; i < count && at < end; at += ranges[i++].bytes) {
        size_t first = begin > at ? begin - at : 0, last = end - at;
        if (last > ranges[i].bytes) last = ranges[i].bytes;
        if (first < last) all ^= read_lines((const char *)ranges[i].data + first, last - first);
    }
    return all;
}

double peak_read(const byte_range *ranges, int count, int threads) {
    volatile uint64_t sink;
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += ranges[i].bytes;
    double start = seconds_now();
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        size_t n = (size_t)threads, t = (size_t)part;
        uint64_t result = read_part(ranges, count, bytes / n * t + bytes % n * t / n,
                                    bytes / n * (t + 1) + bytes % n * (t + 1) / n);
#pragma omp critical
        sink = result;
    }
    (void)sink;
    return seconds_now() - start;
}

/* Twice the caches of a machine on which each core had a third level to itself, within reason. */
static size_t evict_bytes(int threads) {
    double level3 = 32 << 20;
#ifdef _SC_LEVEL3_CACHE_SIZE
    if (sysconf(_SC_LEVEL3_CACHE_SIZE) > 0) level3 = (double)sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    double wanted = 2 * level3 * threads;
    return wanted > 1 << 30 ? (size_t)1 << 30 : (size_t)wanted;
}

void peak_evict(int threads) {
    static byte_range filler;
    if (!filler.data) {
        size_t bytes = evict_bytes(threads);
        char *data = malloc(bytes);
        if (!data) return; /* small machines have small caches, and warm runs to show for it */
        memset(data, 1, bytes);
        filler = (byte_range){data, bytes};
    }
    peak_read(&filler, 1, threads);
}
