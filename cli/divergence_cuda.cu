/* The steps of the decoder between its matrix products. Activations are f32; with `round` they are
 * numbers of bf16. Loops run over as many elements as there are, whatever the grid. */
#include "divergence_random.h"

typedef long long i64;
typedef unsigned short bf16;

#define KERNEL extern "C" __global__ void
#define EACH(i, count)                                                                             \
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < (count);                          \
         i += (i64)gridDim.x * blockDim.x)

enum { THREADS = 256 }; /* of kernels that reduce a row */

/* The nearest, ties to even. */
static bf16 to_bf16(float x) {
    unsigned bits = __float_as_uint(x);
    return (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static float from_bf16(bf16 x) { return __uint_as_float((unsigned)x << 16); }
static float rounded(float x, int round) { return round ? from_bf16(to_bf16(x)) : x; }

KERNEL narrow(i64 count, const float *x, bf16 *y) { EACH(i, count) y[i] = to_bf16(x[i]); }

KERNEL widen(i64 count, const bf16 *x, float *y) { EACH(i, count) y[i] = from_bf16(x[i]); }

/* ---- weights ---- */

/* The first `scaled` columns of a matrix get one scale, the others another. */
KERNEL fill(random_word key, i64 count, i64 columns, i64 scaled, double scale, double unit,
            float *w) {
    EACH(i, count) {
        w[i] = rounded(random_normal(random_bits(key, i), i % columns < scaled ? scale : unit), 1);
    }
}

KERNEL embed(random_word token_key, random_word key, i64 vocab, i64 tokens, i64 width, double scale,
             float *hidden) {
    EACH(i, tokens * width) {
        random_word token = random_bits(token_key, i / width) % (random_word)vocab;
        hidden[i] = rounded(random_normal(random_bits(key, token * width + i % width), scale), 1);
    }
}

/* ---- rows ---- */

/* The sum, or the largest, of a number of every thread. */
static double all_threads(double x, bool largest) {
    __shared__ double part[THREADS];
    __syncthreads();
    part[threadIdx.x] = x;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            double other = part[threadIdx.x + half];
            x = largest ? fmax(x, other) : x + other;
            part[threadIdx.x] = x;
        }
    }
    __syncthreads();
    return part[0];
}

/* A block per row; y may be x. */
KERNEL rms_norm(int round, i64 width, double epsilon, const float *x, float *y) {
    double squares = 0;
    x += blockIdx.x * width;
    y += blockIdx.x * width;
    for (i64 i = threadIdx.x; i < width; i += THREADS) squares += (double)x[i] * x[i];
    float scale = (float)(1 / sqrt(all_threads(squares, false) / width + epsilon));
    for (i64 i = threadIdx.x; i < width; i += THREADS) y[i] = rounded(x[i] * scale, round);
}

/* After a product: its bias, which may be null, and the rounding. */
KERNEL finish(int round, i64 count, i64 width, const float *bias, float *y) {
    EACH(i, count) y[i] = rounded(bias ? y[i] + bias[i % width] : y[i], round);
}

KERNEL add(int round, i64 count, const float *x, float *sum) {
    EACH(i, count) sum[i] = rounded(sum[i] + x[i], round);
}

KERNEL swiglu(int round, i64 count, i64 width, const float *gate_up, float *mlp) {
    EACH(i, count) {
        const float *gate = gate_up + i / width * 2 * width + i % width;
        float silu = *gate / (1 + expf(-*gate));
        mlp[i] = rounded(rounded(silu, round) * gate[width], round);
    }
}

/* Mean of each column: 32 columns a block, 32 threads for each. */
KERNEL pool(i64 tokens, i64 width, const float *hidden, float *mean) {
    __shared__ double part[32][32];
    int lane = threadIdx.x % 32, slice = threadIdx.x / 32;
    i64 column = (i64)blockIdx.x * 32 + lane;
    double sum = 0;
    for (i64 t = slice; t < tokens && column < width; t += 32) sum += hidden[t * width + column];
    part[slice][lane] = sum;
    __syncthreads();
    if (slice > 0 || column >= width) return;
    for (int i = 1; i < 32; i++) sum += part[i][lane];
    mean[column] = (float)(sum / tokens);
}

/* ---- the reference's attention ---- */

/* Angles in f64, formed and applied to `heads` heads of rows that are `row` apart. */
KERNEL rotate(i64 tokens, i64 heads, i64 half, i64 row, double theta, float *qkv) {
    EACH(n, tokens * half) {
        i64 t = n / half, i = n % half;
        double sine, cosine;
        sincos((double)t * pow(theta, -(double)i / (double)half), &sine, &cosine);
        for (i64 head = 0; head < heads; head++) {
            float *x = qkv + t * row + head * 2 * half + i;
            double a = x[0], b = x[half];
            x[0] = (float)(a * cosine - b * sine);
            x[half] = (float)(b * cosine + a * sine);
        }
    }
}

/* Heads side by side in a row of f32 to heads one after the other in f64. */
KERNEL split_heads(i64 count, i64 tokens, i64 head_dim, i64 row, double scale, const float *x,
                   double *y) {
    EACH(i, count) {
        i64 c = i % head_dim, t = i / head_dim % tokens, head = i / head_dim / tokens;
        y[i] = scale * x[t * row + head * head_dim + c];
    }
}

/* Turns rows of scores into weights that still lack the division by their sum. Row i of a head is
 * query first + i, column j key start + j; block (i, head). */
KERNEL softmax(i64 keys, i64 first, i64 start, i64 window_left, double *scores, double *sums) {
    i64 n = (i64)blockIdx.y * gridDim.x + blockIdx.x, to = first + blockIdx.x + 1 - start;
    i64 from = to - 1 - window_left;
    double *row = scores + n * keys, top = -1e300, sum = 0;
    for (i64 j = threadIdx.x; j < to; j += THREADS) {
        if (j >= from) top = fmax(top, row[j]);
    }
    top = all_threads(top, true);
    for (i64 j = threadIdx.x; j < keys; j += THREADS) {
        double weight = j >= from && j < to ? exp(row[j] - top) : 0;
        row[j] = weight;
        sum += weight;
    }
    sum = all_threads(sum, false);
    if (threadIdx.x == 0) sums[n] = sum;
}

/* Rows of each head, divided by their sums, to where the next product reads them. */
KERNEL join_heads(i64 count, i64 rows, i64 head_dim, i64 row, const double *x, const double *sums,
                  float *out) {
    EACH(i, count) {
        i64 c = i % head_dim, n = i / head_dim, head = n / rows, t = n % rows;
        out[t * row + head * head_dim + c] = (float)(x[i] / sums[n]);
    }
}
