// Prefill: many tokens at once. All its kernels, each with the grid, the thread block and the dynamic shared memory
// it wants.
//
// A chunk of M tokens at positions P .. P + M. x (M, hidden), qkv, attended and activated are f32; xh is f16 as
// PrefillRows says. Before the layers: prefill_embed. A layer:
//   prefill_rows         x, attn_norm                    -> xh, row_scale
//   prefill_gemm         xh, q | k | v                   -> qkv (M, q_width + 2 kv_width)                   (STORE)
//   prefill_rope_append  qkv                             -> q16, and keys and values in the cache
//   prefill_attention    q16, cache                      -> xh with scale 1, or attended where the next line is
//   needed
//  (prefill_rows         attended, attn_sub_norm         -> xh, row_scale: with a sub-norm or a ternary attn_output)
//   prefill_gemm         xh, attn_output                 -> x += ...                                        (ADD)
//   prefill_rows         x, ffn_norm                     -> xh, row_scale
//   prefill_gemm         xh, gate and up                 -> act(gate) * up: f16 as y_half, times y_scale 2^-4; or f32
//   (M,
//                                                           intermediate) where the next line is needed   (GATE_UP)
//  (prefill_rows         activated, ffn_sub_norm         -> xh, row_scale: with a sub-norm or a ternary down)
//   prefill_gemm         xh, down                        -> x += ..., x_scale 2^4 for y_half                (ADD)
// After them decode_head, on one row of x. f16 straight from attention or GATE_UP wants a width that is a multiple of
// 128, since nothing writes zeros behind it. Halves of 1/16 of the FFN's values reach from 2^-20 to 10^6; what is
// above becomes infinite and so an error, not a wrong number. gate and up of different formats: STORE each of them
// into its own buffer, then prefill_rows with `up`. All parameters by value. All matrices of a launch have the same
// columns.
#include "flash.cuh"

// ---- Embedding

struct PrefillEmbed {
    Matrix embedding;
    const u32* tokens;  // (M); one outside the rows gives NaN
    float* residual;    // (M, columns)
};
static_assert(sizeof(PrefillEmbed) == 80, "as in Rust");

// Element `i` (0..32) of a group, as Format::dequantize gives it: products rounded one by one.
__device__ __forceinline__ float element(const Matrix& matrix, u32 row, u32 group, u32 i) {
    const u32 groups = matrix.columns / 32, tile = row / 8, step = group / 4, left = groups - step * 4;
    const u32 in_step = left < 4 ? left : 4;
    const u64 at = ((u64)tile * groups * 8 + step * 32) + row % 8 * in_step + group % 4;  // of the group in a plane
    const u64 super = ((u64)tile * (groups / 8) + group / 8) * 8 + row % 8;
    // Dot word j and its byte b: columns 8 (j / 2) + {0, 4, 1, 5} or {2, 6, 3, 7}.
    const u32 j = i / 8 * 2 + i / 2 % 2, b = i % 2 * 2 + i / 4 % 2;
    u32 q;
    if (matrix.format == Q8_0) {
        q = matrix.codes[at * 32 + j * 4 + b];
    } else if (matrix.format == TERNARY) {
        q = matrix.codes[at * 8 + j / 4 * 4 + b] >> (2 * (j % 4)) & 3;
    } else {
        q = matrix.codes[at * 16 + j / 2 * 4 + b] >> (4 * (j % 2)) & 15;
    }
    if (matrix.format == Q5_0 || matrix.format == Q5_1 || matrix.format == Q5_K)
        q |= (matrix.high[at * 4 + b] >> j & 1) << 4;
    if (matrix.format == Q6_K) q |= (matrix.high[at * 8 + j / 4 * 4 + b] >> (2 * (j % 4)) & 3) << 4;
    const __half* scales = (const __half*)matrix.scales;
    float value = 0.0f;
    switch (matrix.format) {
        case Q4_0: value = __fmul_rn(__half2float(scales[at]), (float)((int)q - 8)); break;
        case Q5_0: value = __fmul_rn(__half2float(scales[at]), (float)((int)q - 16)); break;
        case Q8_0: value = __fmul_rn(__half2float(scales[at]), (float)(signed char)q); break;
        case Q4_1:
        case Q5_1:
            value = __fadd_rn(__fmul_rn(__half2float(scales[2 * at]), (float)q), __half2float(scales[2 * at + 1]));
            break;
        case Q4_K:
        case Q5_K: {
            const u32* words = (const u32*)(matrix.scales + super * 16);
            float2 dm = __half22float2(halves(words[0]));
            u32 bit = group % 4 * 24 + group / 4 % 2 * 12, word = 1 + bit / 32;
            u32 six = __funnelshift_r(words[word], word < 3 ? words[word + 1] : 0, bit % 32);
            value = __fsub_rn(__fmul_rn(__fmul_rn(dm.x, (float)(six & 63)), (float)q),
                              __fmul_rn(dm.y, (float)(six >> 6 & 63)));
            break;
        }
        case Q6_K: {
            float d = __half2float(((const __half*)matrix.supers)[super]);
            float s = (float)(signed char)matrix.scales[at * 2 + i / 16];
            value = __fmul_rn(__fmul_rn(d, s), (float)((int)q - 32));
            break;
        }
        case TERNARY: value = __fmul_rn(scales ? __half2float(scales[super]) : 1.0f, (float)q - 1.0f); break;
    }
    return __fmul_rn(value, matrix.scale);
}

// Grid (ceil(columns / 256), M), block 256, shared 0: a thread an element.
extern "C" __global__ void __launch_bounds__(256) prefill_embed(const __grid_constant__ PrefillEmbed p) {
    pdl_wait();
    const u32 column = blockIdx.x * 256 + threadIdx.x;
    if (column >= p.embedding.columns) return;
    const u32 token = p.tokens[blockIdx.y];
    float value = __int_as_float(0x7fc00000);
    if (token < p.embedding.rows) value = element(p.embedding, token, column / 32, column % 32);
    p.residual[(u64)blockIdx.y * p.embedding.columns + column] = value;
}

// ---- Activation rows

struct PrefillRows {
    const float* x;     // (M, x_stride)
    const float* up;    // (M, x_stride) or NULL: x = act(x) * up first
    const float* norm;  // (columns) or NULL: RMSNorm then
    __half* out;        // (M, out_stride): columns permuted in steps of 128; zeros from `columns` to out_stride
    float* row_scale;   // (M): x = out * row_scale
    u32 columns, x_stride;
    u32 out_stride;  // columns, rounded up to a multiple of 128
    float epsilon;
    u32 activation;  // 0 SiLU, 1 squared ReLU
    u32 ternary;     // 1: integers with one scale a row, max|x| / 127, as lanes.rs quantize_row has it; 0: a
                     // power-of-two scale
};
static_assert(sizeof(PrefillRows) == 64, "as in Rust");

constexpr u32 FOURS = 8;  // of a thread: columns <= 32 * threads

// The host's side: threads of a launch.
inline __host__ __device__ u32 rows_threads(u32 columns) {
    u32 threads = (columns / 32 + 31) / 32 * 32;
    return threads < 128 ? 128 : threads;
}

// Of all threads of a thread block, in a fixed order; `shared` has room for 32.
__device__ __forceinline__ float block_sum(float x, float* shared) {
#pragma unroll
    for (int by = 16; by > 0; by /= 2) x += __shfl_xor_sync(0xffffffff, x, by);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : 0.0f;
#pragma unroll
    for (int by = 16; by > 0; by /= 2) x += __shfl_xor_sync(0xffffffff, x, by);
    return x;
}

__device__ __forceinline__ u32 block_max(u32 x, u32* shared) {
#pragma unroll
    for (int by = 16; by > 0; by /= 2) x = max(x, __shfl_xor_sync(0xffffffff, x, by));
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : 0;
#pragma unroll
    for (int by = 16; by > 0; by /= 2) x = max(x, __shfl_xor_sync(0xffffffff, x, by));
    return x;
}

// Grid (M), block rows_threads(columns), shared 0. columns <= 32768.
extern "C" __global__ void __launch_bounds__(1024) prefill_rows(const __grid_constant__ PrefillRows p) {
    __shared__ float sums[32];
    __shared__ u32 maxima[32];
    const float* x = p.x + (u64)blockIdx.x * p.x_stride;
    const float* up = p.up + (u64)blockIdx.x * p.x_stride;
    __half* out = p.out + (u64)blockIdx.x * p.out_stride;
    const u32 lane = threadIdx.x % 32;
    // A warp takes 128 columns at a time; lane 4 j + c of it columns 32 c + 4 j .. + 4, as they are stored.
    const u32 column = threadIdx.x / 32 * 128 + lane % 4 * 32 + lane / 4 * 4, further = blockDim.x * 4;
    float4 v[FOURS];
    pdl_wait();
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < FOURS; i++) {
        u32 at = column + i * further;
        v[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (at >= p.columns) continue;
        v[i] = *(const float4*)(x + at);
        if (p.up) {
            float4 u = *(const float4*)(up + at);
            v[i].x = activate(p.activation, v[i].x, u.x), v[i].y = activate(p.activation, v[i].y, u.y);
            v[i].z = activate(p.activation, v[i].z, u.z), v[i].w = activate(p.activation, v[i].w, u.w);
        }
        sum += v[i].x * v[i].x + v[i].y * v[i].y + (v[i].z * v[i].z + v[i].w * v[i].w);
    }
    if (p.norm) {
        float scale = 1.0f / sqrtf(block_sum(sum, sums) / (float)p.columns + p.epsilon);
#pragma unroll
        for (u32 i = 0; i < FOURS; i++) {
            u32 at = column + i * further;
            if (at >= p.columns) continue;
            float4 w = *(const float4*)(p.norm + at);
            v[i].x = v[i].x * scale * w.x, v[i].y = v[i].y * scale * w.y;
            v[i].z = v[i].z * scale * w.z, v[i].w = v[i].w * scale * w.w;
        }
    }
    u32 most = 0;  // Bits of magnitudes are in the order of magnitudes, infinities and NaN above all others.
#pragma unroll
    for (u32 i = 0; i < FOURS; i++) {
        u32 a = max(__float_as_uint(v[i].x) & 0x7fffffff, __float_as_uint(v[i].y) & 0x7fffffff);
        u32 b = max(__float_as_uint(v[i].z) & 0x7fffffff, __float_as_uint(v[i].w) & 0x7fffffff);
        most = max(most, max(a, b));
    }
    most = block_max(most, maxima);
    float scale, inverse;
    if (p.ternary) {
        float magnitude = fmaxf(__uint_as_float(most), 1e-5f);
        scale = __fdiv_rn(magnitude, 127.0f), inverse = __fdiv_rn(127.0f, magnitude);
    } else {
        // The largest value comes into 2^14 .. 2^15. What is below 2^-112 is nearly zero anyway.
        u32 exponent = max(most >> 23, 15u);
        scale = __uint_as_float((exponent - 14) << 23), inverse = __uint_as_float((268 - exponent) << 23);
    }
    // A value that is not finite makes its row NaN, so that it reaches the logits, where it is an error.
    if (most >= 0x7f800000) scale = __uint_as_float(0x7fc00000), inverse = 0.0f;
    if (threadIdx.x == 0) p.row_scale[blockIdx.x] = scale;
    constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, half to even.
#pragma unroll
    for (u32 i = 0; i < FOURS; i++) {
        u32 at = threadIdx.x / 32 * 128 + i * further;  // of the warp: whole steps
        if (at >= p.out_stride) break;
        float q[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
        for (int e = 0; e < 4; e++) {
            q[e] = __fmul_rn(q[e], inverse);
            if (p.ternary) q[e] = __fadd_rn(__fadd_rn(q[e], ROUND), -ROUND);
        }
        // The lane has a pair for each half of its mma's columns. With its neighbour's it has 8 bytes of one half.
        u32 first = pack(q[0], q[1]), second = pack(q[2], q[3]);
        bool even = lane % 2 == 0;
        u32 other = __shfl_xor_sync(0xffffffff, even ? second : first, 1);
        uint2 both = even ? make_uint2(first, other) : make_uint2(other, second);
        *(uint2*)(out + at + lane / 4 * 16 + lane % 2 * 8 + lane % 4 / 2 * 4) = both;
    }
}

// ---- RoPE and the cache

struct PrefillRope {
    const float* qkv;     // (M, stride): query heads, key heads, value heads
    const float* q_norm;  // (head_dim) or NULL
    const float* k_norm;  // (head_dim) or NULL
    const float2* table;  // (context, pairs): cos, sin
    __half* q;            // (M, query_heads * head_dim), times q_scale
    __half* keys;         // this layer's, (kv_heads, capacity, head_dim)
    __half* values;       // same
    u32 tokens, position, stride, query_heads, kv_heads, head_dim, pairs, capacity;
    float epsilon;
    float q_scale;  // log2(e) / sqrt(head_dim)
    u32 adjacent;   // RoPE's pairs are (2 i, 2 i + 1), else (i, i + pairs)
    u32 unused;
};
static_assert(sizeof(PrefillRope) == 104, "as in Rust");

// Grid (ceil(M * (query_heads + 2 * kv_heads) / 8)), block 256, shared 0: a warp a head.
extern "C" __global__ void __launch_bounds__(256) prefill_rope_append(const __grid_constant__ PrefillRope p) {
    const u32 heads = p.query_heads + 2 * p.kv_heads, lane = threadIdx.x % 32;
    const u32 index = blockIdx.x * 8 + threadIdx.x / 32, token = index / heads, head = index % heads;
    pdl_wait();
    if (token >= p.tokens) return;
    const float* x = p.qkv + (u64)token * p.stride + head * p.head_dim;
    const u32 position = p.position + token;
    if (head >= p.query_heads + p.kv_heads) {
        __half* out = p.values + ((u64)(head - p.query_heads - p.kv_heads) * p.capacity + position) * p.head_dim;
        for (u32 i = lane; i < p.head_dim; i += 32) out[i] = __float2half_rn(x[i]);
        return;
    }
    const bool is_query = head < p.query_heads;
    __half* out = is_query ? p.q + ((u64)token * p.query_heads + head) * p.head_dim
                           : p.keys + ((u64)(head - p.query_heads) * p.capacity + position) * p.head_dim;
    const float* norm = is_query ? p.q_norm : p.k_norm;
    const float factor = is_query ? p.q_scale : 1.0f;
    float scale = 1.0f;
    if (norm) {
        float sum = 0.0f;
        for (u32 i = lane; i < p.head_dim; i += 32) sum += x[i] * x[i];
#pragma unroll
        for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(0xffffffff, sum, by);
        scale = 1.0f / sqrtf(sum / (float)p.head_dim + p.epsilon);
    }
    const float2* table = p.table + (u64)position * p.pairs;
    for (u32 i = lane; i < p.pairs; i += 32) {
        u32 first = p.adjacent ? 2 * i : i, second = p.adjacent ? 2 * i + 1 : i + p.pairs;
        float a = x[first], b = x[second];
        if (norm) a = a * scale * norm[first], b = b * scale * norm[second];
        float2 t = table[i];
        out[first] = __float2half_rn((a * t.x - b * t.y) * factor);
        out[second] = __float2half_rn((a * t.y + b * t.x) * factor);
    }
    for (u32 i = 2 * p.pairs + lane; i < p.head_dim; i += 32) {
        float a = x[i];
        if (norm) a = a * scale * norm[i];
        out[i] = __float2half_rn(a * factor);
    }
}

// ---- GEMM and attention: see gemm.cuh and flash.cuh

// A thread block has R weight rows (GATE_UP: R / 2 of gate and R / 2 of up) x T tokens, in prefill_gemm_RxT. Grid
// (ceil(M / T), sum over the matrices of ceil(rows / R), parts) (GATE_UP: ceil(rows / (R / 2))), parts = 1 or
// gemm_parts(mode, columns), block THREADS of the shape, shared gemm_shared(R, T, STAGES, the largest gemm_tile_bytes
// of the matrices, false). The same bits from each. The fastest, as measured on an H100: for M <= 32 64x16 where that
// has twice as many thread blocks as the GPU has SMs, else 32x16. For more 128x64 where that has as many as SMs, else
// 64x64 where that has half as many, else 32x16. gemm_parts where even so there are fewer than twice as many.
#if __CUDA_ARCH__ == 750 || __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
constexpr int STAGES_64 = 2;  // 100 KB of shared memory an SM, or less
#else
constexpr int STAGES_64 = 3;
#endif
typedef Shape<2, 8, 4, 1, 2> Shape128x64;
typedef Shape<1, 8, 4, 1, STAGES_64> Shape64x64;
typedef Shape<1, 2, 4, 1, 4> Shape64x16;
typedef Shape<1, 2, 2, 1, 6> Shape32x16;  // 64 threads

extern "C" __global__ void __launch_bounds__(128, 3) prefill_gemm_128x64(const __grid_constant__ PrefillGemm p) {
    gemm<Shape128x64>(p);
}
extern "C" __global__ void __launch_bounds__(128, 3) prefill_gemm_64x64(const __grid_constant__ PrefillGemm p) {
    gemm<Shape64x64>(p);
}
extern "C" __global__ void __launch_bounds__(128, 4) prefill_gemm_64x16(const __grid_constant__ PrefillGemm p) {
    gemm<Shape64x16>(p);
}
extern "C" __global__ void __launch_bounds__(64, 4) prefill_gemm_32x16(const __grid_constant__ PrefillGemm p) {
    gemm<Shape32x16>(p);
}

// prefill_attention_D for head_dim D: grid (ceil(M * group / 64), kv_heads), group = query_heads / kv_heads, block
// 128, shared attention_shared(D, 2; 1 on sm_75). Columns of out_half from query_heads * head_dim on are not written:
// keep them zero.
#if __CUDA_ARCH__ >= 800
constexpr int ATTENTION_STAGES = 2, ATTENTION_BLOCKS = 3;
#else
constexpr int ATTENTION_STAGES = 1, ATTENTION_BLOCKS = 1;
#endif

extern "C" __global__ void __launch_bounds__(128) prefill_attention_64(const __grid_constant__ PrefillAttention p) {
    attention<Flash<64, 64, ATTENTION_STAGES>>(p);
}
extern "C" __global__ void __launch_bounds__(128) prefill_attention_80(const __grid_constant__ PrefillAttention p) {
    attention<Flash<80, 64, ATTENTION_STAGES>>(p);
}
extern "C" __global__ void __launch_bounds__(128) prefill_attention_96(const __grid_constant__ PrefillAttention p) {
    attention<Flash<96, 64, ATTENTION_STAGES>>(p);
}
extern "C" __global__ void __launch_bounds__(128, ATTENTION_BLOCKS)
    prefill_attention_128(const __grid_constant__ PrefillAttention p) {
    attention<Flash<128, 64, ATTENTION_STAGES>>(p);
}
extern "C" __global__ void __launch_bounds__(128) prefill_attention_256(const __grid_constant__ PrefillAttention p) {
    attention<Flash<256, 32, ATTENTION_STAGES>>(p);
}
