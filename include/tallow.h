/* Tallow: exact attention for people who build inference engines.
 *
 * This header is the whole public API and its manual. It compiles alone as C99, C11 and C++11.
 *
 * Conventions
 *   - Zero is the default of every field: zero a struct, fill what you need, pass its size.
 *   - Shapes are in elements, outermost dimension first. Strides are int64 elements of any value;
 *     only the last dimension must be contiguous. All strides zero means row-major contiguous.
 *   - The caller owns all memory. Inputs are never written, except the cache rows that `k_new` and
 *     `v_new` are appended to.
 *   - Every function returns a status. After anything but TALLOW_OK, tallow_last_error() of the
 * same thread names the field, its value and what would be accepted. On an error found before the
 * work starts (on the CPU: every error) no output has been touched.
 *   - The library never prints, never exits, and may be called from any number of threads.
 *   - Environment: TALLOW_CPU lowers the instruction set (scalar, avx2, avx512, avx512bf16);
 *     TALLOW_CACHE_DIR and TALLOW_NO_COMPILE concern GPU kernels.
 *   - GPU kernels come from the call's `pack`, from a file tallow.pack beside the library, from the
 *     cache folder, or from NVRTC. A pack that is missing, damaged or of other kernels is passed
 *     over. TALLOW_NO_COMPILE=1 makes an error of a kernel that only NVRTC could bring.
 */
#ifndef TALLOW_H
#define TALLOW_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef TALLOW_API
#if defined(__GNUC__)
#define TALLOW_API __attribute__((visibility("default")))
#else
#define TALLOW_API
#endif
#endif

#define TALLOW_VERSION_MAJOR 0
#define TALLOW_VERSION_MINOR 1
#define TALLOW_VERSION_PATCH 0

/* --------------------------------------------------------------------------------------------
 * Status
 * ------------------------------------------------------------------------------------------ */

typedef enum tallow_status {
    TALLOW_OK = 0,
    TALLOW_INVALID_ARGUMENT = 1,    /* a field's value can never be right */
    TALLOW_UNSUPPORTED = 2,         /* meaningful, but not on this backend, device or version */
    TALLOW_OUT_OF_MEMORY = 3,       /* host or device memory ran out */
    TALLOW_WORKSPACE_TOO_SMALL = 4, /* see tallow_attention_workspace */
    TALLOW_NO_DEVICE = 5,           /* no driver, or no usable GPU */
    TALLOW_NO_COMPILER = 6,    /* a kernel must be compiled and NVRTC is missing or forbidden */
    TALLOW_COMPILE_FAILED = 7, /* NVRTC rejected a kernel; the message holds its log */
    TALLOW_DEVICE_ERROR = 8    /* the driver reported an error; the message holds its name */
} tallow_status;

/* The name of a status, such as "TALLOW_OK"; never null. */
TALLOW_API const char *tallow_status_name(tallow_status status);

/* Why the calling thread's latest Tallow call failed; "" if it succeeded. Valid until the thread's
 * next Tallow call. */
TALLOW_API const char *tallow_last_error(void);

/* Version of the library in use: major * 1000000 + minor * 1000 + patch. */
TALLOW_API uint32_t tallow_version(void);

/* What this machine offers, one "name value" per line: version, CPU level, threads, GPUs, driver
 * and NVRTC (or why there is none), cache folder, pack. Always ends with a NUL; cut to `text_size`
 * bytes.
 */
TALLOW_API tallow_status tallow_system_describe(char *text, size_t text_size);

/* --------------------------------------------------------------------------------------------
 * Tensors
 * ------------------------------------------------------------------------------------------ */

typedef enum tallow_dtype {
    TALLOW_F16 = 1,  /* IEEE binary16 */
    TALLOW_BF16 = 2, /* bfloat16 */
    TALLOW_F32 = 3,  /* IEEE binary32 */
    TALLOW_I32 = 4,
    TALLOW_I64 = 5
} tallow_dtype;

/* A tensor in the caller's memory. A field that takes fewer than four dimensions uses the first
 * ones; the rest of `shape` and `strides` must be zero. A tensor whose `data` is null and whose
 * members are all zero is absent. This struct will never change. */
typedef struct tallow_tensor {
    void *data;
    int64_t shape[4];
    int64_t strides[4]; /* elements; all zero: row-major contiguous */
    int32_t dtype;      /* tallow_dtype */
    int32_t reserved;   /* must be zero */
} tallow_tensor;

/* --------------------------------------------------------------------------------------------
 * Rotary position embedding
 * ------------------------------------------------------------------------------------------ */

typedef enum tallow_pairing {
    TALLOW_PAIRING_HALF = 0, /* element i turns with i + rotary_dim/2 (GPT-NeoX, Llama, Qwen) */
    TALLOW_PAIRING_INTERLEAVED = 1 /* element 2i turns with 2i + 1 (GPT-J, RoFormer) */
} tallow_pairing;

typedef enum tallow_mrope {
    TALLOW_MROPE_NONE = 0,    /* one position per token */
    TALLOW_MROPE_CHUNKED = 1, /* Qwen2-VL, Qwen2.5-VL: first sections[0] pairs take row 0, ... */
    TALLOW_MROPE_INTERLEAVED =
        2 /* Qwen3-VL: pair i takes row i mod 3 while i < 3 * sections[row] */
} tallow_mrope;

/* How a position becomes angles. Pair i of a token at position p turns by p * inv_freq[i], reduced
 * exactly for every position from 0 to 2^31 - 1. This struct will never change. */
typedef struct tallow_rotary_angles {
    int64_t rotary_dim; /* even, at most head_dim; elements beyond it pass through. 0: no rotary in
                           tallow_attention, head_dim in tallow_rotary */
    double theta;       /* inv_freq[i] = theta^(-2i / rotary_dim); 0: 10000 */
    tallow_tensor
        inv_freq; /* optional f32 (rotary_dim/2) radians per position, in place of theta: NTK,
                     YaRN, Llama-3 and LongRoPE scaling are other inv_freq; host memory */
    tallow_tensor cos, sin; /* optional tables (max_position, rotary_dim/2), f16, bf16 or f32, in
                               place of theta: taken as they are, their error included */
    float attention_factor; /* multiplies cos and sin (YaRN, LongRoPE); 0: 1 */
    int32_t pairing;        /* tallow_pairing */
    int32_t mrope;          /* tallow_mrope: positions then have three rows (time, height, width) */
    int32_t mrope_sections[3]; /* pairs per row; their sum is rotary_dim/2 */
} tallow_rotary_angles;

/* Rotates x into out: out may be x itself, or share no memory with it. The rotation is done in f32
 * and rounded once. Rows of a packed out that no sequence owns stay as they are. */
typedef struct tallow_rotary_params {
    tallow_tensor x;   /* (batch, seqlen, heads, head_dim), or packed (total, heads, head_dim) when
                          cu_seqlens is given; f16, bf16 or f32; head_dim <= 1024 */
    tallow_tensor out; /* shape and dtype of x */
    tallow_tensor positions;  /* optional i32 or i64 (batch, seqlen) or packed (total); with M-RoPE
                                 (3, batch, seqlen) or (3, total). Absent: offset[b] + t */
    tallow_tensor offset;     /* optional i32 (batch): position of each sequence's first token; only
                                 without `positions`. Absent: 0 */
    tallow_tensor cu_seqlens; /* optional i32 (batch + 1): x is packed */
    tallow_rotary_angles rotary;
    void *stream;     /* CUDA stream; null on the CPU */
    int32_t device;   /* tallow_device */
    int32_t threads;  /* CPU threads, at most one a processor; 0: OpenMP's choice */
    const char *pack; /* optional path of a pack, see tallow_attention_compile; null on the CPU */
} tallow_rotary_params;

TALLOW_API tallow_status tallow_rotary(const tallow_rotary_params *params, size_t params_size);

/* --------------------------------------------------------------------------------------------
 * Attention
 * ------------------------------------------------------------------------------------------ */

typedef enum tallow_device { TALLOW_DEVICE_CPU = 0, TALLOW_DEVICE_CUDA = 1 } tallow_device;

typedef enum tallow_mask {
    TALLOW_MASK_NONE = 0,
    TALLOW_MASK_CAUSAL =
        1, /* query i sees keys j <= i + seqlen_k - seqlen_q (bottom-right aligned) */
    TALLOW_MASK_WINDOW = 2 /* query i sees i + seqlen_k - seqlen_q - window_left <= j
                              <= i + seqlen_k - seqlen_q + window_right, both ends included */
} tallow_mask;

typedef enum tallow_precision {
    TALLOW_PRECISION_DEFAULT = 0, /* error no larger than FlashAttention-3's and cuDNN's */
    TALLOW_PRECISION_FAST = 1,    /* may use up to 1.45 times that error for speed */
    TALLOW_PRECISION_HIGH = 2     /* leaves only the rounding of the output */
} tallow_precision;

/* out = softmax(score) v over the visible keys, for every query row and head, where
 *
 *   score(i, j) = softmax_scale * dot(q_i, k_j)
 *   softcap > 0:    score = softcap * tanh(score / softcap)
 *   alibi_slopes:   score -= slope * |i + seqlen_k - seqlen_q - j|
 *   mask:           hidden scores are -inf
 *   sinks:          one more logit in the softmax, with no value row
 *
 * Query head h reads key head h / (heads / heads_kv). Scores, softmax, sums and lse are f32
 * whatever the inputs. A row with no visible key gives out = 0 and lse = -inf; seqlen_q = 0 and
 * seqlen_k = 0 are valid. NaN and inf propagate from visible inputs and from nowhere else.
 *
 * Layouts of q, k and v
 *   dense   (batch, seqlen, heads, head_dim)
 *   packed  (total, heads, head_dim) with cu_seqlens: sequence b owns rows [cu[b], cu[b+1])
 *   paged   k, v (pages, page_size, heads_kv, head_dim) with block_table (batch, columns): key j of
 *           sequence b is row j % page_size of page block_table[b][j / page_size]; any page_size >=
 * 1 q and k may differ in layout. Sequence b's keys are rows [leftpad_k[b], seqused_k[b]) of its K
 * and V.
 *
 * Sources: Dao et al. (FlashAttention, FlashAttention-2) for the algorithm, ALiBi: Press et al.,
 * softcap: Gemma 2, sinks: GPT-OSS, rotary: Su et al., prefix ranges: candle. */
typedef struct tallow_attention_params {
    tallow_tensor q;   /* f16, bf16 or f32; k, v, k_new and v_new have the same dtype */
    tallow_tensor k;   /* head_dim: a multiple of 8 from 8 to 256, or 512, 576 */
    tallow_tensor v;   /* head_dim_v: a multiple of 8 from 8 to 256, or 512 */
    tallow_tensor out; /* q's shape with head_dim_v; q's dtype, or f32 */
    tallow_tensor
        lse; /* optional f32: natural log of the sum of exp of the scores, the sink's included;
                (batch, heads, seqlen_q), or (heads, total_q) when q is packed */

    /* Lengths and layout; i32 */
    tallow_tensor cu_seqlens_q; /* (batch + 1): q and out are packed */
    tallow_tensor
        cu_seqlens_k;        /* (batch + 1): k and v are packed; with block_table, lengths only */
    tallow_tensor seqused_k; /* (batch): keys in use, leftpad included; `cache_seqlens` elsewhere */
    tallow_tensor leftpad_k; /* (batch): first valid key */
    tallow_tensor block_table;     /* (batch, columns): k and v are paged */
    tallow_tensor cache_batch_idx; /* (batch): row of a dense k and v that each sequence uses */
    int64_t max_seqlen_q; /* no sequence is longer; 0: what the shapes allow. Sizes the GPU grid */
    int64_t max_seqlen_k;

    /* Scores */
    tallow_tensor alibi_slopes; /* f32 (heads) or (batch, heads) */
    tallow_tensor sinks;        /* f32 (heads) */
    float softmax_scale;        /* 0: 1 / sqrt(head_dim) */
    float softcap;              /* 0: off */

    /* Mask */
    int64_t window_left; /* with TALLOW_MASK_WINDOW; -1: unlimited. A model's "window of W tokens"
                            is window_left = W - 1, window_right = 0 */
    int64_t window_right;
    tallow_tensor prefix_ranges; /* i32 (batch, max_ranges, 2), half-open [start, end) in positions
                                    of the sequence: a pair is also visible when the query's
                                    position i + seqlen_k - seqlen_q and the key j lie in one range.
                                    start >= end: unused slot. Widens a causal or window mask */
    int32_t mask;                /* tallow_mask */

    /* Dropout (Philox4x32-10). Weight (b, h, i, j) is kept, and scaled by 1 / (1 - p), iff word j %
       4 of philox(key = {seed lo, seed hi ^ offset hi}, counter = {j / 4, i, b * heads + h, offset
       lo}) is at least dropout_p * 2^32; lse is unaffected */
    float dropout_p; /* 0 <= p < 1 */
    uint64_t dropout_seed;
    uint64_t dropout_offset;

    /* Cache step: new rows are written to k and v at row seqused_k[b] + t, rotated first when
       rotary.rotary_dim > 0, and attention runs over seqused_k[b] + new keys. Needs seqused_k */
    tallow_tensor k_new; /* (batch, seqlen_new, heads_kv, head_dim), or packed (total, ...) */
    tallow_tensor v_new; /* the same with head_dim_v */
    tallow_tensor cu_seqlens_k_new; /* i32 (batch + 1): k_new and v_new are packed */

    /* Rotary of q and k_new (needs k_new; tallow_rotary rotates on its own). Row t of either is at
       position seqused_k[b] + t unless positions are given: i32 or i64, shaped as in tallow_rotary
     */
    tallow_rotary_angles rotary;
    tallow_tensor positions_q;
    tallow_tensor positions_k_new;

    /* How to compute */
    int64_t num_splits; /* key splits: 0 chosen, 1 off, n exactly n, at most 4096 */
    int32_t precision;  /* tallow_precision */
    int32_t
        batch_invariant; /* 1: a sequence's bits depend neither on its neighbours in the batch nor
                            on the allocated cache. Results are bitwise repeatable in any case */
    int32_t device;      /* tallow_device */
    int32_t threads;     /* CPU threads, at most one a processor; 0: OpenMP's choice */
    void *stream;        /* CUDA stream; null on the CPU */
    void *workspace;     /* scratch of tallow_attention_workspace bytes, 256-byte aligned, on the
                            device, whatever it holds, for one call at a time; on the CPU null
                            means malloc during the call */
    size_t workspace_size;
    const char *pack; /* optional path of a pack, see tallow_attention_compile; null on the CPU */
} tallow_attention_params;

TALLOW_API tallow_status tallow_attention(const tallow_attention_params *params,
                                          size_t params_size);

/* The following four look at shapes, dtypes and options, never at data: pointers may still be
 * null. */

/* Bytes of scratch that tallow_attention needs; may be 0. Never depends on the tensors' contents.
 */
TALLOW_API tallow_status tallow_attention_workspace(const tallow_attention_params *params,
                                                    size_t params_size, size_t *bytes);

/* Makes the coming call ready (compiles and loads its kernels), runs nothing. One that differs in
 * more than its data, if only in its lengths, may take other kernels, which a pack holds as well:
 * see tallow_attention_compile. */
TALLOW_API tallow_status tallow_attention_prepare(const tallow_attention_params *params,
                                                  size_t params_size);

/* What the call would run, one "name value" per line. Always ends with a NUL; cut to `text_size`.
 */
TALLOW_API tallow_status tallow_attention_describe(const tallow_attention_params *params,
                                                   size_t params_size, char *text,
                                                   size_t text_size);

/* Compiles the kernels that the call needs on GPUs of architecture `arch` ("sm_80", "sm_90a", ...)
 * and adds them to the file `pack`, which is made when missing; what is in it stays. Needs NVRTC,
 * but neither a GPU nor a driver. Calls that differ in dtype, head dimensions, layout, precision or
 * mask may need different kernels; those of tallow_rotary and tallow_merge come with each. A null
 * pointer counts as aligned to 16 bytes. Threads and processes may add to one file at a time.
 *
 * `text` tells, one "name value" per line, which kernel it is and how many were compiled, how many
 * of those spill registers, how many have products serialized, and after `slow` the last of either.
 * Without a pack nothing is compiled. */
TALLOW_API tallow_status tallow_attention_compile(const tallow_attention_params *params,
                                                  size_t params_size, const char *arch, char *text,
                                                  size_t text_size);

/* --------------------------------------------------------------------------------------------
 * Merging
 * ------------------------------------------------------------------------------------------ */

/* Attention over the union of two disjoint key sets, from the attention over each:
 *   lse = log(exp(lse_a) + exp(lse_b)),  out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b
 * Both lse -inf gives out = 0, lse = -inf. Give a sink to one of the two calls only. The results
 * may be written over either input. */
typedef struct tallow_merge_params {
    tallow_tensor
        out_a; /* (batch, seqlen_q, heads, head_dim_v), or packed (total_q, heads, head_dim_v) */
    tallow_tensor lse_a; /* f32 (batch, heads, seqlen_q), or packed (heads, total_q) */
    tallow_tensor out_b;
    tallow_tensor lse_b;
    tallow_tensor out; /* shape of out_a; f16, bf16 or f32 each */
    tallow_tensor lse; /* optional */
    void *stream;
    int32_t device;   /* tallow_device */
    int32_t threads;  /* CPU threads, at most one a processor; 0: OpenMP's choice */
    const char *pack; /* optional path of a pack, see tallow_attention_compile; null on the CPU */
} tallow_merge_params;

TALLOW_API tallow_status tallow_merge(const tallow_merge_params *params, size_t params_size);

#ifdef __cplusplus
}
#endif

#endif /* TALLOW_H */
