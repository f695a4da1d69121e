// Causal attention of a chunk of tokens, without a matrix of all scores (FlashAttention 2, Dao, 2023).
//
// A thread block takes 64 query rows of one kv head: row r is token r / group, head r % group of those that share the
// kv head, so that keys and values are read once for all of them. It goes through the positions in tiles that begin
// at multiples of the tile's length, whatever the chunk: a row's sums are the same however the prompt was cut. A tile
// that a row sees nothing of leaves its state as it is, to the bit: its weights are 0 and its correction is 2^0.
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
static_assert(sizeof(PrefillAttention) == 64, "as in Rust");

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
    return 2 * stages * (head_dim < 256 ? 64 : 32) * (head_dim + 8) * 2;
}

// Copies `POSITIONS` rows of a cache; zeros past `end`.
template <class F>
__device__ __forceinline__ void copy_positions(u32 shared, const __half* cache, u32 first, u32 end) {
    constexpr u32 CHUNKS = F::D / 8;
    const u32 fresh = fresh_zero();
#pragma unroll
    for (u32 i = 0; i < (F::POSITIONS * CHUNKS + F::THREADS - 1) / F::THREADS; i++) {
        u32 at = threadIdx.x + i * F::THREADS + fresh;
        u32 row = at / CHUNKS, chunk = at % CHUNKS;
        if (F::POSITIONS * CHUNKS % F::THREADS != 0 && row >= F::POSITIONS) break;
        bool valid = first + row < end;
        copy_16(shared + row * F::ROW_BYTES + chunk * 16,
                valid ? cache + (u64)(first + row) * F::D + chunk * 8 : cache, valid);
    }
}

template <class F>
__device__ __forceinline__ void copy_tile(u32 shared, const __half* keys, const __half* values, u32 first, u32 end) {
    copy_positions<F>(shared, keys, first, end);
    copy_positions<F>(shared + F::TILE_BYTES, values, first, end);
    copy_commit();
}

// The rows of a thread block.
struct QueryRows {
    const PrefillAttention& p;
    u32 kv_head, group, first, last;

    __device__ __forceinline__ explicit QueryRows(const PrefillAttention& p, u32 count) : p(p) {
        // The last rows see the most positions: they go first.
        const u32 block = gridDim.x - 1 - blockIdx.x + fresh_zero();
        kv_head = blockIdx.y, group = p.query_heads / p.kv_heads, first = block * count;
        last = min(first + count, p.tokens * group) - 1;
    }
    __device__ __forceinline__ u32 token(u32 row) const { return min(row, last) / group; }
    // Its first value, among all heads'.
    __device__ __forceinline__ u32 column(u32 row, u32 head_dim) const {
        return (kv_head * group + min(row, last) % group) * head_dim;
    }
    // Of the lane: row r (0 or 1) of the 16 of its warp.
    __device__ __forceinline__ u32 of_lane(u32 r) const {
        return first + threadIdx.x / 32 * 16 + r * 8 + threadIdx.x % 32 / 4;
    }
};

// One tile of positions for the 16 rows of a warp.
template <class F, bool MASKED>
__device__ __forceinline__ void attend(float (&sums)[F::D / 8][4], float (&max)[2], float (&total)[2],
                                       const u32 (&q)[F::D / 16][4], u32 keys, u32 values, u32 first,
                                       const PrefillAttention& p) {
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
        const QueryRows rows(p, F::ROWS);
        const u32 seen[2] = {p.position + rows.token(rows.of_lane(0)), p.position + rows.token(rows.of_lane(1))};
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
                          pack(scores[2 * k + 1][0], scores[2 * k + 1][1]),
                          pack(scores[2 * k + 1][2], scores[2 * k + 1][3])};
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
    // A stage has keys and values of a tile. The last one has the queries first, which go to registers.
    const u32 base = shared_address(shared), stage_bytes = 2 * F::TILE_BYTES,
              queries = base + (F::STAGES - 1) * stage_bytes;
    const __half* keys = p.keys + (u64)blockIdx.y * p.capacity * F::D;
    const __half* values = p.values + (u64)blockIdx.y * p.capacity * F::D;
    u32 end, unmasked, q[F::D / 16][4];  // unmasked: tiles that all rows see all of
    pdl_wait();
    {
        const QueryRows rows(p, F::ROWS);
        const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        end = p.position + rows.token(rows.last) + 1,
        unmasked = (p.position + rows.token(rows.first) + 1) / F::POSITIONS;
        for (u32 at = threadIdx.x; at < F::ROWS * (F::D / 8); at += F::THREADS) {
            const u32 r = at / (F::D / 8), chunk = at % (F::D / 8), row = rows.first + r;
            const u64 place = (u64)rows.token(row) * (p.query_heads * F::D) + rows.column(row, F::D);
            copy_16(queries + r * F::ROW_BYTES + chunk * 16, p.q + place + chunk * 8);
        }
        copy_commit();
        if (F::STAGES > 1) copy_tile<F>(base, keys, values, 0, end);
        copy_wait<F::STAGES - 1>();
        __syncthreads();
#pragma unroll
        for (int k = 0; k < F::D / 16; k++)
            load_matrices(q[k], queries + (warp * 16 + lane % 16) * F::ROW_BYTES + lane / 16 * 16 + k * 32);
        if (F::STAGES == 1) {
            __syncthreads();
            copy_tile<F>(base, keys, values, 0, end);
        }
        copy_wait<0>();
        __syncthreads();
    }
    float sums[F::D / 8][4], max[2] = {-INFINITY_F, -INFINITY_F}, total[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < F::D / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums[n][e] = 0.0f;
    u32 tile = base;
    for (u32 from = 0; from < end; from += F::POSITIONS) {
        const bool more = from + F::POSITIONS < end;
        u32 next = F::STAGES == 1 ? tile : 2 * base + stage_bytes - tile;
        if (F::STAGES > 1 && more) copy_tile<F>(next, keys, values, from + F::POSITIONS, end);
        if (from / F::POSITIONS < unmasked)
            attend<F, false>(sums, max, total, q, tile, tile + F::TILE_BYTES, from, p);
        else
            attend<F, true>(sums, max, total, q, tile, tile + F::TILE_BYTES, from, p);
        if (F::STAGES == 1 && more) {
            __syncthreads();
            copy_tile<F>(tile, keys, values, from + F::POSITIONS, end);
        }
        copy_wait<0>();
        __syncthreads();
        tile = next;
    }
    const QueryRows rows(p, F::ROWS);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float inverse = 1.0f / quad_sum(total[r]);
        const u32 row = rows.of_lane(r);
        if (row > rows.last) continue;
        const u64 place = (u64)rows.token(row) * p.out_stride;
        const u32 column = rows.column(row, F::D) + threadIdx.x % 4 * 2;
#pragma unroll
        for (int n = 0; n < F::D / 8; n++) {
            float a = sums[n][2 * r] * inverse, b = sums[n][2 * r + 1] * inverse;
            if (p.out_half)
                *(u32*)(p.out_half + place + permuted_column(column + n * 8)) = pack(a, b);
            else
                *(float2*)(p.out + place + column + n * 8) = make_float2(a, b);
        }
    }
}
