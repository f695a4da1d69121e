// Prefill: many tokens at once. All kernels, with the grid, the block and the shared memory they want.
//
// One chunk of M tokens at positions P .. P + M, a layer (x, qkv, gate_up: f32; xh: f16, see PrefillRows):
//   prefill_rows       x, attn_norm                    -> xh, row_scale
//   prefill_gemm       xh, q | k | v                   -> qkv (M, q_width + 2 kv_width)
//   prefill_rope       qkv                             -> q16, and K, V in the cache
//   prefill_attention  q16, K, V                       -> xh (row scale 1), or f32 where a sub-norm or ternary rounding follows
//  (prefill_rows       attended, attn_sub_norm         -> xh, row_scale)
//   prefill_gemm       xh, attn_output                 -> x += (mode ADD)
//   prefill_rows       x, ffn_norm                     -> xh, row_scale
//   prefill_gemm       xh, gate & up                   -> act(gate) * up (M, intermediate)  (mode GATE_UP)
//   prefill_rows       activated, ffn_sub_norm or NULL -> xh, row_scale
//   prefill_gemm       xh, down                        -> x += (mode ADD)
// before all layers prefill_embed; after them decode_head on a row of x.
// gate and up of different formats: prefill_gemm (STORE) of each into its own buffer, then prefill_rows with `up`.
#include "common.cuh"

// M1: signatures.
struct PrefillEmbed {
    Matrix embedding;
    const u32* tokens;  // (M)
    float* residual;    // (M, columns)
    u32 count;          // M
    u32 reserved;
};
// grid (ceil(columns / 32 / 128), M), block 128, shared 0: a thread a group.
// extern "C" __global__ void prefill_embed(PrefillEmbed p);

struct PrefillRows {
    const float* x;      // (M, x_stride)
    const float* up;     // (M, x_stride) or NULL: x = act(x) * up first
    const float* norm;   // (columns) or NULL: RMSNorm then
    __half* out;         // (M, out_stride), columns permuted inside steps of 128; zeros from `columns` to out_stride
    float* row_scale;    // (M): x = out * row_scale
    u32 columns, x_stride, out_stride;  // out_stride: columns rounded up to 128; strides in elements
    float epsilon;
    u32 activation;      // 0 SiLU, 1 squared ReLU
    u32 ternary;         // 1: integers -127..127 with one scale a row (as lanes.rs quantize_row), 0: a power-of-two scale
};
// grid (M), block threads = max(128, ceil(columns / 32) rounded up to 32) (columns <= 32768), shared 0.
// extern "C" __global__ void prefill_rows(PrefillRows p);

struct PrefillGemm {
    Matrix matrices[3];      // STORE, ADD: `count` of them side by side, outputs one after the other; GATE_UP: gate, up (one format)
    const __half* x;         // (M, x_stride) as PrefillRows writes it
    const float* row_scale;  // (M), or NULL for 1
    float* y;                // (M, y_stride)
    u32 count, tokens, x_stride, y_stride;
    u32 mode;                // 0 STORE y = sum + bias, 1 ADD y += sum + bias, 2 GATE_UP y = act(gate) * up
    u32 activation;
};
// prefill_gemm_RxT: a thread block has R weight rows (GATE_UP: R/2 of gate and R/2 of up) x T tokens.
// grid (ceil(M / T), sum over matrices ceil(rows / R) (GATE_UP: ceil(rows / (R/2)))), block 128, dynamic shared memory
// = max(2 * (T * 272 + R/8 * tile_bytes), T * (R + 4) * 4), tile_bytes = the largest of the matrices' formats:
//   Q4_0 576, Q4_1 640, Q5_0 704, Q5_1 768, Q8_0 1088, Q4_K 640, Q5_K 768, Q6_K 848, ternary 272.
// The same bits from every R x T.
// extern "C" __global__ void prefill_gemm_128x128(PrefillGemm p);   // also 128x64, 64x64, 64x32

struct PrefillRope {
    const float* qkv;      // (M, stride): q heads, k heads, v heads
    const float* q_norm;   // (head_dim) or NULL
    const float* k_norm;   // (head_dim) or NULL
    const float2* table;   // (context, pairs): cos, sin
    __half* q;             // (M, query_heads * head_dim), times q_scale
    __half* keys;          // this layer's [kv head][capacity][head_dim]
    __half* values;
    u32 tokens, position, stride, query_heads, kv_heads, head_dim, pairs, capacity;
    float epsilon;
    float q_scale;         // log2(e) / sqrt(head_dim)
    u32 adjacent;          // RoPE pairs (2i, 2i + 1), else (i, i + pairs)
    u32 reserved;
};
// grid (ceil(M * (query_heads + 2 * kv_heads) / 8)), block 256, shared 0: a warp a head.
// extern "C" __global__ void prefill_rope_append(PrefillRope p);

struct PrefillAttention {
    const __half* q;       // as PrefillRope writes it
    const __half* keys;    // this layer's [kv head][capacity][head_dim]
    const __half* values;
    __half* out_half;      // (M, out_stride) as the x of PrefillGemm with row scale 1, or NULL
    float* out;            // (M, out_stride), or NULL
    u32 tokens, position, query_heads, kv_heads, capacity, out_stride;
};
// prefill_attention_D for head_dim D = 64, 80, 96, 128, 256: grid (ceil(M * group / 64), kv_heads), block 128, dynamic shared
// memory 5 * 64 * (D + 8) * 2 (D = 256: 3 * 64 * 264 * 2; sm_75: 3 * 64 * (D + 8) * 2, D <= 128).
// out_half: columns from query_heads * head_dim to out_stride are not written; keep them zero.
// extern "C" __global__ void prefill_attention_128(PrefillAttention p);
