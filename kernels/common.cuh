// What all kernels share: the structures the host fills (src/backend/cuda has their Rust twins), the rules of a launch,
// and small device functions. README.md has the contract in words.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// GGUF's type ids. Ternary: TQ2_0 is what TQ1_0 and I2_S are repacked to.
enum Format : u32 {
    Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14, TERNARY = 35,
};

// Weights in tiles of 8 rows; README.md has the layout. 64 bytes.
struct Matrix {
    const u8* codes;
    const u8* high;   // Q5_0, Q5_1, Q5_K, Q6_K; else NULL
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
    u8* codes;      // (columns), dot words in order
    float2* groups; // (columns / 32): scale, scale * sum of codes
};

// decode_project1, decode_project2, decode_project4 (the number: tiles a thread block takes at a time)
//   y = [y +] matrix[i] * rms_norm(x) + bias, outputs of the matrices one after another.
//   threads: project_threads(columns). blocks: any number from 1; most useful: sum of ceil(tiles_i / number), tiles_i =
//   ceil(rows_i / 8), and at most what is resident at once. dynamic shared memory: activation_bytes(columns).
struct Project {
    const float* x;    // (columns), NULL when `quantized` is given
    Quantized quantized; // the input already quantized: norm is NULL, no matrix is ternary
    const float* norm; // (columns) or NULL
    float* y;          // (sum of rows)
    Matrix matrix[3];  // columns are the same
    u32 matrices;
    u32 add;           // 1: adds to y (matrices == 1)
    float epsilon;
    u32 unused;
};
static_assert(sizeof(Project) == 248, "as in Rust");

// decode_gate_up: activation(gate * rms_norm(x)) * (up * rms_norm(x)).
//   threads: project_threads(columns). blocks: any number from 1; most useful: rows / 32 and at most what is resident at
//   once. dynamic shared memory: activation_bytes(columns). rows % 32 == 0.
struct GateUp {
    const float* x;    // (columns)
    const float* norm; // (columns) or NULL
    Matrix gate, up;
    float* activated;    // (rows): f32 output, or NULL, and then
    Quantized quantized; // (rows): the output for a decode_project without norm and without ternary matrices
    float epsilon;
    u32 activation; // 0: SiLU, 1: squared ReLU
};
static_assert(sizeof(GateUp) == 176, "as in Rust");

// decode_attention64, decode_attention128, decode_attention256 (the number: the largest head_dim)
//   q/k norm, RoPE, this token's key and value into the cache, attention over positions 0..=state.position.
//   threads: 256. blocks: (splits, kv_heads * parts), parts = ceil(query_heads / kv_heads / ATTENTION_HEADS).
//   no dynamic shared memory. splits: attention_splits(kv_heads * parts).
struct Attention {
    const State* state;
    const float* q; // (query_heads, head_dim)
    const float* k; // (kv_heads, head_dim)
    const float* v; // (kv_heads, head_dim)
    const float* q_norm; // (head_dim) or NULL
    const float* k_norm; // (head_dim) or NULL
    const float2* rope;  // (context, pairs): cos, sin
    u16* keys;   // this layer's: (kv_heads, context, head_dim) f16
    u16* values; // this layer's: (kv_heads, context, head_dim) f16
    float* partials; // (splits, query_heads, head_dim + 2)
    u32* counters;   // (kv_heads * parts): zero before the first launch, and again after each
    float* attended; // (query_heads, head_dim)
    u32 query_heads, kv_heads, head_dim, context;
    u32 pairs;    // rotated pairs of a head: at most head_dim / 2
    u32 adjacent; // 1: pairs are adjacent, 0: values i and i + pairs
    float epsilon;
    u32 unused;
};
static_assert(sizeof(Attention) == 128, "as in Rust");

// What a chunk of HEAD_ROWS logits comes to.
struct Partial {
    float max;
    u32 best;  // lowest row of max; ~0: a logit is not finite
    float sum; // of exp(logit - max)
    u32 unused;
};

// decode_head: logits = matrix * rms_norm(x), and the partials.
//   threads: project_threads(columns). blocks: any number from 1; most useful: ceil(rows / HEAD_ROWS), at most what is
//   resident at once. dynamic shared memory: activation_bytes(columns).
struct Head {
    const float* x;    // (columns)
    const float* norm; // (columns) or NULL
    Matrix matrix;
    float* logits;     // (rows)
    Partial* partials; // (ceil(rows / HEAD_ROWS))
    float epsilon;
    u32 unused;
};
static_assert(sizeof(Head) == 104, "as in Rust");

const u32 TILE_ROWS = 8;         // rows of a tile
const u32 HEAD_ROWS = 64;        // rows of a partial
const u32 ATTENTION_HEADS = 4;   // query heads that a thread block of attention takes
const u32 ATTENTION_THREADS = 256;
const u32 PROJECT_WARPS = 12;    // the most warps that share the columns
const u32 FINISH_THREADS = 512;

// The host's side of a launch, in C for the check program; src/backend/cuda has the same in Rust.

// Warps that share the columns: as few steps for each as PROJECT_WARPS can have, and no idle one. At least 4.
inline __host__ __device__ u32 project_threads(u32 columns) {
    u32 steps = (columns + 127) / 128, each = (steps + PROJECT_WARPS - 1) / PROJECT_WARPS;
    u32 warps = (steps + each - 1) / each;
    return 32 * (warps < 4 ? 4 : warps);
}
// int8 codes and two floats a group. Above 40 KB the function's attribute for dynamic shared memory has to be raised.
inline __host__ __device__ u32 activation_bytes(u32 columns) { return columns + columns / 32 * 8; }
// Splits of a sequence, at the most: with `lines` = kv_heads * parts about 128 thread blocks.
inline __host__ __device__ u32 attention_splits(u32 lines) {
    u32 splits = 128 / lines;
    return splits < 8 ? 8 : splits > 64 ? 64 : splits;
}

// The other kernels of decode.cu:
//   decode_embed(const State* state, Matrix embedding, float* residual)
//     threads 256, blocks ceil(columns / 32 / 256) is enough (any number from 1). A token outside the rows gives NaN.
//     This node has a full edge (no programmatic one) to what was before: kernels behind it may read state->token,
//     state->position and cache rows before that position ahead of pdl_wait().
//   decode_finish(State* state, State* mailbox, const Partial* partials, u32 count)
//     threads FINISH_THREADS, blocks 1. mailbox: mapped host memory or NULL.
// Every parameter structure is passed by value: decode_project1(Project), decode_gate_up(GateUp),
// decode_attention128(Attention), decode_head(Head).
