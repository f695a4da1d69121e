// What all kernels share: the structures the host fills (src/backend/cuda has their Rust twins), the rules of a launch,
// and small device functions. README.md has the contract in words.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// GGUF's type ids. Ternary: TQ2_0 is what TQ1_0 and I2_S are repacked to.
enum Format : u32 {
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    TERNARY = 35,
};

// Weights in tiles of 8 rows, filled up to a multiple of 8 tiles; README.md has the layout. 64 bytes.
struct Matrix {
    const u8* codes;
    const u8* high; // Q5_0, Q5_1, Q5_K, Q6_K; else NULL
    const u8* scales; // NULL: ternary with one scale
    const u8* supers; // Q6_K; else NULL
    const float* bias; // (rows) or NULL
    u32 rows, columns; // not padded
    u32 format;
    float scale; // of every value: 1, but for ternary with one scale
    u32 unused[2];
};
static_assert(sizeof(Matrix) == 64, "as in Rust");

// One sequence's place, in device memory. A copy goes to the mailbox, which the host can read: `done` last.
struct State {
    u32 token, position; // of the next launch: the host sets them, or decode_finish goes on by itself
    u32 best; // lowest id of the largest logit; ~0: a logit is not finite
    float best_logit, log_sum_exp;
    u32 done; // tokens finished: one more each time
};
static_assert(sizeof(State) == 24, "as in Rust");

// A vector in int8 groups of 32, as a kernel hands it to the next one.
struct Quantized {
    u8* codes; // (columns), dot words in order
    float2* groups; // (columns / 32): scale, scale * sum of codes
};

// decode_project_F for matrices of format F (q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k, tq2_0, and `ternary`: with
// one scale), decode_project_mixed for matrices of several formats
//   y = [y +] matrix[i] * rms_norm(x) + bias, outputs of the matrices one after another.
//   threads: project_threads(columns). blocks: any number from `matrices`; most useful: sum of
//   ceil(rows_i / PROJECT_ROWS), and at most what is resident at once. dynamic shared memory: vector_bytes(columns,
//   PROJECT_TILES, the largest slot_bytes(format), capability).
struct Project {
    const float* x; // (columns), NULL when `quantized` is given
    Quantized quantized; // the input already quantized: norm is NULL, no matrix is ternary
    const float* norm; // (columns) or NULL
    float* y; // (sum of rows)
    Matrix matrix[3]; // columns are the same
    u32 matrices;
    u32 add; // 1: adds to y (matrices == 1)
    float epsilon;
    u32 unused;
};
static_assert(sizeof(Project) == 248, "as in Rust");

// decode_gate_up_F; decode_gate_up_mixed where the formats differ, or only one has `scales`: activation(gate *
// rms_norm(x)) * (up * rms_norm(x)).
//   threads: project_threads(columns). blocks: any number from 1; most useful: rows / 32 and at most what is resident
//   at once. dynamic shared memory: vector_bytes(columns, 8 tiles, ...), mixed: 1 tile. rows % 32 == 0.
struct GateUp {
    const float* x; // (columns)
    const float* norm; // (columns) or NULL
    Matrix gate, up;
    float* activated; // (rows): f32 output, or NULL, and then
    Quantized quantized; // (rows): the output for a decode_project without norm and without ternary matrices
    float epsilon;
    u32 activation; // 0: SiLU, 1: squared ReLU
};
static_assert(sizeof(GateUp) == 176, "as in Rust");

// decode_attention_D for a head_dim of D = 64, 80, 96, 128, 256
//   q/k norm, RoPE, this token's key and value into the cache, attention over positions 0..=state.position.
//   threads: attention_threads(D). blocks: (splits, kv_heads * parts), parts = ceil(query_heads / kv_heads /
//   ATTENTION_HEADS); splits: attention_splits(kv_heads * parts). dynamic shared memory: attention_bytes(D, capability).
struct Attention {
    const State* state;
    const float* q; // (query_heads, head_dim)
    const float* k; // (kv_heads, head_dim)
    const float* v; // (kv_heads, head_dim)
    const float* q_norm; // (head_dim) or NULL
    const float* k_norm; // (head_dim) or NULL
    const float2* rope; // (context, pairs): cos, sin
    u16* keys; // this layer's: (kv_heads, context, head_dim) f16
    u16* values; // this layer's: (kv_heads, context, head_dim) f16
    float* partials; // (splits, query_heads, head_dim), then (splits, query_heads, 2)
    u32* counters; // (kv_heads * parts): zero before the first launch, and again after each
    float* attended; // (query_heads, head_dim)
    u32 query_heads, kv_heads, head_dim, context;
    u32 pairs; // rotated pairs of a head: at most head_dim / 2
    u32 adjacent; // 1: pairs are adjacent, 0: values i and i + pairs
    float epsilon;
    u32 unused;
};
static_assert(sizeof(Attention) == 128, "as in Rust");

// What a chunk of HEAD_ROWS logits comes to.
struct Partial {
    float max;
    u32 best; // lowest row of max; ~0: a logit is not finite
    float sum; // of exp(logit - max)
    u32 unused;
};

// decode_head_F: logits = matrix * rms_norm(x), and the partials.
//   threads: project_threads(columns). blocks: any number from 1; most useful: ceil(rows / HEAD_ROWS), at most what is
//   resident at once. dynamic shared memory: vector_bytes(columns, 8 tiles, ...).
struct Head {
    const float* x; // (columns)
    const float* norm; // (columns) or NULL
    Matrix matrix;
    float* logits; // (rows)
    Partial* partials; // (ceil(rows / HEAD_ROWS))
    float epsilon;
    u32 unused;
};
static_assert(sizeof(Head) == 104, "as in Rust");

const u32 HEAD_ROWS = 64; // rows of a partial
const u32 ATTENTION_HEADS = 8; // query heads that a thread block of attention takes
const u32 PROJECT_WARPS = 12; // the most warps that share the columns
const u32 PROJECT_TILES = 2, PROJECT_ROWS = 8 * PROJECT_TILES; // of a unit of decode_project
// Weights on their way wait in shared memory where cp.async can put them there, else in registers. PROJECT_BLOCKS:
// thread blocks that a multiprocessor should have registers for, of a kernel and of those that follow it.
#if __CUDA_ARCH__ >= 800
#define SHARED_RINGS 1
const u32 PROJECT_BLOCKS = __CUDA_ARCH__ >= 900 ? 3 : 2;
#else
#define SHARED_RINGS 0
const u32 PROJECT_BLOCKS = 1;
#endif
const u32 FINISH_THREADS = 512;

// The host's side of a launch, in C for the check program; src/backend/cuda has the same in Rust.

// Warps that share the columns: as few steps for each as PROJECT_WARPS can have, and no idle one. At least 4.
inline __host__ __device__ u32 project_threads(u32 columns) {
    u32 steps = (columns + 127) / 128, each = (steps + PROJECT_WARPS - 1) / PROJECT_WARPS;
    u32 warps = (steps + each - 1) / each;
    return 32 * (warps < 4 ? 4 : warps);
}
// int8 codes and two floats a group, in whole steps.
inline __host__ __device__ u32 activation_bytes(u32 columns) { return (columns + 127) / 128 * 160; }
// Pieces of weights (a tile's step) that a warp asks for at once, of R tiles; batches of them in its ring.
inline __host__ __device__ constexpr u32 batch_pieces(u32 r) { return r < 4 ? r : 4; }
// Bytes of a piece, by format; TERNARY_ONE is 36.
inline __host__ __device__ constexpr u32 slot_bytes(u32 format) {
    return format == Q4_0 ? 576
           : format == Q4_1 || format == Q4_K ? 640
           : format == Q5_0 ? 704
           : format == Q5_1 || format == Q5_K ? 768
           : format == Q8_0 ? 1088
           : format == Q6_K ? 848
           : format == TERNARY ? 272
                               : 256;
}
inline __host__ __device__ constexpr u32 ring_batches(u32 r) { return r < 4 ? 6 : 4; } // at the most
// Dynamic shared memory of kernels that take R tiles at a time, in a module for this compute capability (75, 80, ...);
// `batches`: of a ring, ring_batches(R) or (R = 8, and most useful for decode_gate_up) 2; `alone`: no thread block has more than
// one unit. The functions' attribute for it has to be raised, and their carveout
// set to the most shared memory: of all decode kernels, attention's too, since a multiprocessor that is divided
// otherwise has to run empty before it takes them.
inline __host__ __device__ u32 vector_bytes(u32 columns, u32 r, u32 batches, u32 format, u32 capability, bool alone) {
    u32 warps = project_threads(columns) / 32, pieces = batch_pieces(r);
    u32 all = ((columns + 127) / 128 + warps - 1) / warps * (r / pieces); // batches of a unit
    if (alone && all < batches) batches = all;
    return activation_bytes(columns) + (capability >= 80 ? warps * batches * pieces * slot_bytes(format) : 0);
}
inline __host__ __device__ constexpr u32 attention_threads(u32 head_dim) { return head_dim < 256 ? 128 : 64; }
// Keys and values on their way: of 16 positions a warp, twice where copies are asynchronous.
inline __host__ __device__ u32 attention_bytes(u32 head_dim, u32 capability) {
    return attention_threads(head_dim) / 32 * (capability >= 80 ? 2 : 1) * 2 * 16 * (head_dim + 8) * 2;
}
// Splits of a sequence, at the most, for `lines` = kv_heads * parts: whole clusters of 8 (sm_90).
inline __host__ __device__ u32 attention_splits(u32 lines) {
    u32 splits = 256 / lines / 8 * 8;
    return splits < 8 ? 8 : splits > 128 ? 128 : splits;
}

// The other kernels of decode.cu:
//   decode_embed(const State* state, Matrix embedding, float* residual)
//     threads 256, blocks ceil(columns / 32 / 256) is enough (any number from 1). A token outside the rows gives NaN.
//     This node has a full edge (no programmatic one) to what was before: kernels behind it may read state->token,
//     state->position and cache rows before that position ahead of pdl_wait().
//   decode_finish(State* state, State* mailbox, const Partial* partials, u32 count)
//     threads FINISH_THREADS, blocks 1. mailbox: mapped host memory or NULL.
// Every parameter structure is passed by value: decode_project1(Project), decode_gate_up(GateUp),
// decode_attention_128(Attention), decode_head(Head). Planes, shared outputs and partials are aligned to 16 bytes.

// ---- device functions ----

// Lets the next kernel of a chain start, and waits until everything before this one is done and visible. Before it a
// kernel may only touch what no kernel of the chain writes.
#define PDL_WAIT
__device__ __forceinline__ void pdl_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n\tgriddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel start without waiting: where the way to pdl_wait() is long.
__device__ __forceinline__ void pdl_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Weights: read once, so they do not displace anything from L1. In the order of the program: `volatile`.
__device__ __forceinline__ void load_weights(u32 (&out)[4], const void* from) {
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "l"(from));
}
__device__ __forceinline__ void load_weights(u32 (&out)[2], const void* from) {
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(out[0]), "=r"(out[1]) : "l"(from));
}
__device__ __forceinline__ u32 load_weights32(const void* from) {
    u32 out;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(out) : "l"(from));
    return out;
}
__device__ __forceinline__ u32 load_weights16(const void* from) {
    u16 out;
    asm volatile("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(out) : "l"(from));
    return out;
}
__device__ __forceinline__ void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

// What another kernel may have written: from L2, never from this SM's L1.
__device__ __forceinline__ float4 load4(const float* from) {
    float4 out;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(out.x), "=f"(out.y), "=f"(out.z), "=f"(out.w)
                 : "l"(from)
                 : "memory");
    return out;
}
__device__ __forceinline__ float2 load2(const void* from) {
    float2 out;
    asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];" : "=f"(out.x), "=f"(out.y) : "l"(from) : "memory");
    return out;
}
__device__ __forceinline__ float load1(const float* from) {
    float out;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(out) : "l"(from) : "memory");
    return out;
}
__device__ __forceinline__ u32 load_u32(const u32* from) {
    u32 out;
    asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(out) : "l"(from) : "memory");
    return out;
}
__device__ __forceinline__ uint4 load_u32x4(const void* from) {
    uint4 out;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                 : "l"(from)
                 : "memory");
    return out;
}

// The low half of a word as f16, and the high one.
__device__ __forceinline__ float half_low(u32 word) {
    float out;
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, low; }" : "=f"(out) : "r"(word));
    return out;
}
__device__ __forceinline__ float half_high(u32 word) {
    float out;
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, high; }" : "=f"(out) : "r"(word));
    return out;
}
__device__ __forceinline__ u16 to_half(float value) {
    u16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(value));
    return out;
}

// Four products of signed bytes, and of unsigned with signed ones.
__device__ __forceinline__ int dot_signed(u32 a, u32 b, int sum) {
    asm("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(a), "r"(b));
    return sum;
}
__device__ __forceinline__ int dot_unsigned(u32 a, u32 b, int sum) {
    asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(a), "r"(b));
    return sum;
}

__device__ __forceinline__ float exp2_approx(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}
__device__ __forceinline__ float reciprocal_approx(float x) {
    float out;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

template <typename T>
__device__ __forceinline__ T shuffle_xor(T value, u32 mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}
__device__ __forceinline__ u32 max_u32(u32 a, u32 b) { return a > b ? a : b; }
__device__ __forceinline__ u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }
// The largest of a warp.
__device__ __forceinline__ float warp_max(float value) {
    for (u32 mask = 16; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
    return value;
}
__device__ __forceinline__ u32 warp_max(u32 value) {
    for (u32 mask = 16; mask > 0; mask /= 2) value = max_u32(value, shuffle_xor(value, mask));
    return value;
}
// The sum of a warp, in a fixed tree: every lane gets the same bits.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
    for (u32 mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}
// Bits of |x|: in the order of magnitudes, infinity and NaN above all others.
__device__ __forceinline__ u32 magnitude(float x) { return __float_as_uint(x) & 0x7fffffff; }
const u32 INFINITE = 0x7f800000;
