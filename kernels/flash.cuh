// Causal attention of a chunk of tokens, without a matrix of all scores (FlashAttention 2, Dao, 2023).
//
// A thread block takes 64 query rows of one kv head: row r is token r / group, head r % group of those that share the kv head, so
// that keys and values are read once for all of them. It goes through the positions in tiles that begin at multiples of the tile's
// length, whatever the chunk: a row's sums are the same however the prompt was cut. A tile that a row sees nothing of leaves its
// state as it is, to the bit: its weights are 0 and its correction is 2^0.
#pragma once
#include "gemm.cuh"

struct PrefillAttention {
    const __half* q;       // (tokens, query_heads * head_dim), times log2(e) / sqrt(head_dim)
    const __half* keys;    // [kv head][capacity][head_dim]
    const __half* values;  // same
    __half* out_half;      // (tokens, out_stride) as the x of PrefillGemm with scale 1; or NULL
    float* out;            // (tokens, out_stride); or NULL
    u32 tokens, position, query_heads, kv_heads, capacity, out_stride;
};

#define INFINITY_F __int_as_float(0x7f800000)

// 2^x; 0 for -infinity.
__device__ __forceinline__ float exp2_fast(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
}

template <int HEAD_DIM, int POSITIONS_, int STAGES_>
struct Flash {
    static constexpr int D = HEAD_DIM, POSITIONS = POSITIONS_, STAGES = STAGES_;
    static constexpr int ROWS = 64, WARPS = 4, THREADS = 32 * WARPS;
    static constexpr int ROW_BYTES = (D + 8) * 2;  // ldmatrix finds 8 rows in 8 different banks
    static constexpr int TILE_BYTES = POSITIONS * ROW_BYTES;
};

// The host's side: dynamic shared memory of a launch, with 64 positions a tile (32 from a head_dim of 256 on).
inline __host__ __device__ u32 attention_shared(u32 head_dim, u32 stages) {
    return (64 + 2 * stages * (head_dim < 256 ? 64 : 32)) * (head_dim + 8) * 2;
}

// Copies `POSITIONS` rows of a cache; zeros past `end`.
template <class F>
__device__ __forceinline__ void copy_positions(u32 shared, const __half* cache, u32 first, u32 end) {
    constexpr u32 CHUNKS = F::D / 8;
#pragma unroll
    for (u32 i = 0; i < (F::POSITIONS * CHUNKS + F::THREADS - 1) / F::THREADS; i++) {
        u32 at = threadIdx.x + i * F::THREADS;
        u32 row = at / CHUNKS, chunk = at % CHUNKS;
        if (F::POSITIONS * CHUNKS % F::THREADS != 0 && row >= F::POSITIONS) break;
        bool valid = first + row < end;
        copy_16(shared + row * F::ROW_BYTES + chunk * 16, valid ? cache + (u64)(first + row) * F::D + chunk * 8 : cache, valid);
    }
}

// One tile of positions for the 16 rows of a warp. `seen`: the last position that the lane's two rows see.
template <class F, bool MASKED>
__device__ __forceinline__ void attend(float (&sums)[F::D / 8][4], float (&max)[2], float (&total)[2], const u32 (&q)[F::D / 16][4],
                                       u32 keys, u32 values, u32 first, const u32 (&seen)[2]) {
    constexpr int N = F::POSITIONS / 8;
    const u32 lane = threadIdx.x % 32, matrix = lane / 8;
    float scores[N][4];
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) scores[n][e] = 0.0f;
    const u32 key = keys + (matrix / 2 * 8 + lane % 8) * F::ROW_BYTES + matrix % 2 * 16;
#pragma unroll
    for (int k = 0; k < F::D / 16; k++)
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            u32 b[4];
            load_matrices(b, key + n * 8 * F::ROW_BYTES + k * 32);
            mma(scores[n], q[k], b[0], b[1]);
            mma(scores[n + 1], q[k], b[2], b[3]);
        }
    if (MASKED) {
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (first + n * 8 + lane % 4 * 2 + e % 2 > seen[e / 2]) scores[n][e] = -INFINITY_F;
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float most = scores[0][2 * r];
#pragma unroll
        for (int n = 0; n < N; n++) most = fmaxf(most, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
        most = fmaxf(quad_max(most), max[r]);
        float correction = exp2_fast(max[r] - most), sum = 0.0f;
        max[r] = most;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 2 * r; e < 2 * r + 2; e++) {
                scores[n][e] = exp2_fast(scores[n][e] - most);
                sum += scores[n][e];
            }
        total[r] = __fmaf_rn(total[r], correction, sum);
#pragma unroll
        for (int n = 0; n < F::D / 8; n++) sums[n][2 * r] *= correction, sums[n][2 * r + 1] *= correction;
    }
    const u32 value = values + (matrix % 2 * 8 + lane % 8) * F::ROW_BYTES + matrix / 2 * 16;
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        u32 weights[4] = {pack(scores[2 * k][0], scores[2 * k][1]), pack(scores[2 * k][2], scores[2 * k][3]),
                          pack(scores[2 * k + 1][0], scores[2 * k + 1][1]), pack(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
        for (int n = 0; n < F::D / 8; n += 2) {
            u32 b[4];
            load_matrices_transposed(b, value + k * 16 * F::ROW_BYTES + n * 16);
            mma(sums[n], weights, b[0], b[1]);
            mma(sums[n + 1], weights, b[2], b[3]);
        }
    }
}

template <class F>
__device__ __forceinline__ void attention(const PrefillAttention& p) {
    extern __shared__ __align__(128) u8 shared[];
    const u32 base = shared_address(shared), tiles_at = base + F::ROWS * F::ROW_BYTES;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, kv_head = blockIdx.y;
    const u32 group = p.query_heads / p.kv_heads, rows = p.tokens * group;
    // The last rows see the most positions: they go first.
    const u32 first_row = (gridDim.x - 1 - blockIdx.x) * F::ROWS;
    const u32 last_row = min(first_row + F::ROWS, rows) - 1;
    const u32 end = p.position + last_row / group + 1, tiles = (end + F::POSITIONS - 1) / F::POSITIONS;
    const u32 unmasked = (p.position + first_row / group + 1) / F::POSITIONS;  // tiles that all rows see all of
    const __half* keys = p.keys + (u64)kv_head * p.capacity * F::D;
    const __half* values = p.values + (u64)kv_head * p.capacity * F::D;
    const u32 q_width = p.query_heads * F::D;
    pdl_wait();
    for (u32 at = threadIdx.x; at < F::ROWS * (F::D / 8); at += F::THREADS) {
        u32 r = at / (F::D / 8), chunk = at % (F::D / 8), row = min(first_row + r, last_row);
        const __half* from = p.q + (u64)(row / group) * q_width + (kv_head * group + row % group) * F::D + chunk * 8;
        copy_16(base + r * F::ROW_BYTES + chunk * 16, from, true);
    }
    copy_positions<F>(tiles_at, keys, 0, end);
    copy_positions<F>(tiles_at + F::TILE_BYTES, values, 0, end);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    u32 q[F::D / 16][4];
#pragma unroll
    for (int k = 0; k < F::D / 16; k++)
        load_matrices(q[k], base + (warp * 16 + lane % 16) * F::ROW_BYTES + lane / 16 * 16 + k * 32);
    float sums[F::D / 8][4], max[2] = {-INFINITY_F, -INFINITY_F}, total[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < F::D / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums[n][e] = 0.0f;
    u32 row[2], seen[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        row[r] = first_row + warp * 16 + r * 8 + lane / 4;
        seen[r] = p.position + min(row[r], last_row) / group;
    }
    u32 stage = 0;
    for (u32 t = 0; t < tiles; t++) {
        u32 tile = tiles_at + stage * 2 * F::TILE_BYTES;
        if (F::STAGES > 1 && t + 1 < tiles) {
            u32 next = tiles_at + (stage ^ 1) * 2 * F::TILE_BYTES;
            copy_positions<F>(next, keys, (t + 1) * F::POSITIONS, end);
            copy_positions<F>(next + F::TILE_BYTES, values, (t + 1) * F::POSITIONS, end);
            copy_commit();
        }
        if (t < unmasked)
            attend<F, false>(sums, max, total, q, tile, tile + F::TILE_BYTES, t * F::POSITIONS, seen);
        else
            attend<F, true>(sums, max, total, q, tile, tile + F::TILE_BYTES, t * F::POSITIONS, seen);
        if (F::STAGES == 1 && t + 1 < tiles) {
            __syncthreads();
            copy_positions<F>(tile, keys, (t + 1) * F::POSITIONS, end);
            copy_positions<F>(tile + F::TILE_BYTES, values, (t + 1) * F::POSITIONS, end);
            copy_commit();
        }
        copy_wait<0>();
        __syncthreads();
        if (F::STAGES > 1) stage ^= 1;
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float inverse = 1.0f / quad_sum(total[r]);
        if (row[r] > last_row) continue;
        u64 token = row[r] / group;
        u32 column = (kv_head * group + row[r] % group) * F::D + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < F::D / 8; n++) {
            float a = sums[n][2 * r] * inverse, b = sums[n][2 * r + 1] * inverse;
            if (p.out_half)
                *(u32*)(p.out_half + token * p.out_stride + permuted_column(column + n * 8)) = pack(a, b);
            else
                *(float2*)(p.out + token * p.out_stride + column + n * 8) = make_float2(a, b);
        }
    }
}
