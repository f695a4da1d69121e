// Attention of one token over the positions so far. The positions are split among thread blocks, as the sequence's
// length alone says; what the blocks of a line (a kv head, or a part of its query heads) find is merged: first within
// a cluster of blocks, where there are such (sm_90), then by the last block of the line to arrive.
//
// A warp goes over 16 positions at a time, with a running maximum of its own for each query head: scores^T = keys *
// q^T, sums^T += values^T * weights^T, so that eight query heads are a tensor core's whole width. q and the weights go in as two
// halves of 11 bits each, which is as good as f32 beside keys and values of 11 bits. Positions before this token's are
// in the cache from earlier launches: a block's first ones are on their way to shared memory before pdl_wait().
#pragma once
#include "mma.cuh"

#if __CUDA_ARCH__ >= 900
#define ATTENTION_CLUSTER __cluster_dims__(8, 1, 1)
const u32 CLUSTER = 8; // thread blocks that merge among themselves
#else
#define ATTENTION_CLUSTER
const u32 CLUSTER = 1;
#endif

template <u32 DIM>
struct Attend {
    static const u32 HEADS = ATTENTION_HEADS;
    static const u32 WARPS = attention_threads(DIM) / 32, THREADS = 32 * WARPS;
    static const u32 CHUNK = 16 * WARPS; // positions
#if __CUDA_ARCH__ >= 800
    static const u32 STAGES = 2;
#else
    static const u32 STAGES = 1;
#endif
    static const u32 ROW = (DIM + 8) * 2; // bytes of a row of keys or values: ldmatrix finds 8 in different banks
    static const u32 SLOT = 2 * 16 * ROW; // keys, then values of 16 positions
    static const u32 PAIRS = DIM / 2, EACH = (PAIRS + 31) / 32; // of values, in a head; those of a lane
    static const u32 VECTORS = (HEADS + 2 + WARPS - 1) / WARPS; // of query heads, the key and the value: a warp's
    static const u32 QUARTERS = DIM / 4;
    static const u32 SUMS = DIM + 4; // floats of a head in a warp's results: no two lanes write to the same bank

    struct alignas(16) Shared {
        u16 q[2][HEADS][DIM + 8]; // upper and lower halves
        u16 own[2][DIM]; // this token's key and value
        float max[WARPS][HEADS], total[WARPS][HEADS];
        float sums[HEADS][DIM]; // the block's
        float block_max[HEADS], block_total[HEADS];
        u32 last;
    };
};

// Positions of a split: of one block alone, then of a cluster's blocks in whole chunks, then of all blocks, each as long
// as that takes less time than a merge of more of them.
__device__ __forceinline__ u32 split_length(u32 positions, u32 splits) {
    const u32 alone = 128, in_cluster = 2048;
    if (positions <= alone) return alone;
    if (CLUSTER > 1 && positions <= in_cluster) return (positions + CLUSTER * 64 - 1) / (CLUSTER * 64) * 64;
    return (positions + splits * 128 - 1) / (splits * 128) * 128;
}

// ---- what a cluster needs ----

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.aligned;" ::: "memory"); }
// The same, for reads only: nothing written has to be visible.
__device__ __forceinline__ void cluster_arrive_relaxed() {
#if __CUDACC_VER_MAJOR__ >= 12
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#else
    cluster_arrive();
#endif
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }
// The same place in the shared memory of block `rank`.
__device__ __forceinline__ u32 of_block(u32 address, u32 rank) {
    u32 out;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(out) : "r"(address), "r"(rank));
    return out;
}
__device__ __forceinline__ float4 cluster4(u32 address) {
    float4 out;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(out.x), "=f"(out.y), "=f"(out.z), "=f"(out.w)
                 : "r"(address)
                 : "memory");
    return out;
}
__device__ __forceinline__ float cluster1(u32 address) {
    float out;
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(out) : "r"(address) : "memory");
    return out;
}
#endif

// An 8 x 8 matrix of halves, the other way round: lane l has columns 2 (l % 4) and + 1 of row l / 4. The older form is for
// PTX of drivers that do not know the newer one, too.
__device__ __forceinline__ u32 transposed(u32 x) {
#if __CUDA_ARCH__ >= 800
    u32 out;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(x));
    return out;
#else
    const u32 lane = threadIdx.x % 32, row = lane / 4, from = lane % 4 * 8 + row / 2;
    const u32 first = __shfl_sync(0xffffffffu, x, from), second = __shfl_sync(0xffffffffu, x, from + 4);
    return __byte_perm(first, second, row % 2 ? 0x7632 : 0x5410);
#endif
}

// Results of several parts of the positions, one after another: the running maximum, total and four sums.
struct Merge {
    float max, total;
    float4 sum;
    __device__ __forceinline__ Merge() {
        max = __uint_as_float(0xff800000); // minus infinity
        total = 0, sum = make_float4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void add(float other_max, float other_total, float4 other) {
        const float most = fmaxf(max, other_max);
        // A part with no position yet has no weight, whatever 2^(-inf + inf) would be.
        const float mine = max == most ? 1.0f : exp2_approx(max - most);
        const float its = other_max == most ? 1.0f : exp2_approx(other_max - most);
        max = most, total = fmaf(total, mine, other_total * its);
        sum.x = fmaf(sum.x, mine, other.x * its), sum.y = fmaf(sum.y, mine, other.y * its);
        sum.z = fmaf(sum.z, mine, other.z * its), sum.w = fmaf(sum.w, mine, other.w * its);
    }
    __device__ __forceinline__ float4 mean() const {
        const float inverse = __fdividef(1.0f, total);
        return make_float4(sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse);
    }
};

// Whether this block is the last of `count` to come here; then it sees what all of them have written.
__device__ __forceinline__ bool arrived_last(u32* counter, u32 count, u32& shared_last) {
    // What the block has written is before its first thread's fence, and that is before its count.
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        shared_last = atomicAdd(counter, 1) == count - 1;
        __threadfence();
    }
    __syncthreads();
    return shared_last;
}

template <u32 DIM>
__device__ __forceinline__ void attend(const Attention& p) {
    typedef Attend<DIM> A;
    const u32 HEADS = A::HEADS;
    __shared__ typename A::Shared s;
    extern __shared__ uint4 slots[]; // attention_bytes(DIM)
    pdl_launch(); // The position comes from memory, and what depends on it too.
    const u32 tid = threadIdx.x, warp = tid / 32, lane = tid % 32, matrix = lane / 8;
    const u32 group = p.query_heads / p.kv_heads, parts = (group + HEADS - 1) / HEADS;
    const u32 line = blockIdx.y, kv_head = line / parts, first_head = kv_head * group + line % parts * HEADS;
    const u32 heads = min_u32(HEADS, (kv_head + 1) * group - first_head);
    // The host does not change these within a token, and decode_embed waits for the one before.
    const u32 position = p.state->position;
    if (position >= p.context) return;
    const u32 length = split_length(position + 1, gridDim.x);
    const u32 start = blockIdx.x * length, end = min_u32(start + length, position + 1);
    if (start >= end) return;
    const u32 active = (position + length) / length; // blocks of this line that come this far
    const bool own = end == position + 1; // this token's key and value are mine to make

    // The warp's positions are 16 of each chunk.
    const u64 cache = (u64)kv_head * p.context * DIM;
    const u32 slot = shared_address(slots) + warp * (A::STAGES * A::SLOT);
    auto load = [&](u32 chunk, u32 at) {
        if (chunk >= end) return copy_commit();
#pragma unroll
        for (u32 i = 0; i < (16 * DIM / 8 + 31) / 32; i++) {
            const u32 piece = i * 32 + lane, row = piece / (DIM / 8), part = piece % (DIM / 8);
            const u32 where = chunk + warp * 16 + row;
            const bool valid = where < end && where < position;
            const u64 from = valid ? cache + (u64)where * DIM + part * 8 : cache;
            copy_16(at + row * A::ROW + part * 16, p.keys + from, valid);
            copy_16(at + (16 + row) * A::ROW + part * 16, p.values + from, valid);
        }
        copy_commit();
    };
#pragma unroll 1
    for (u32 i = 0; i < A::STAGES; i++) load(start + i * A::CHUNK, slot + i * A::SLOT);

    // This token's vectors: a warp has some of the query heads, the key, the value; a lane pairs of them.
    float2 turn[A::EACH], q_norm[A::EACH], k_norm[A::EACH];
    u32 low[A::EACH], high[A::EACH];
#pragma unroll
    for (u32 j = 0; j < A::EACH; j++) {
        const u32 i = lane + 32 * j;
        const bool rotated = i < p.pairs, there = i < A::PAIRS;
        low[j] = rotated && !p.adjacent ? i : 2 * i;
        high[j] = rotated && !p.adjacent ? i + p.pairs : 2 * i + 1;
        turn[j] = make_float2(1, 0), q_norm[j] = k_norm[j] = make_float2(1, 1);
        if (rotated) turn[j] = __ldg(p.rope + (u64)position * p.pairs + i);
        if (p.q_norm && there) q_norm[j] = make_float2(__ldg(p.q_norm + low[j]), __ldg(p.q_norm + high[j]));
        if (p.k_norm && there) k_norm[j] = make_float2(__ldg(p.k_norm + low[j]), __ldg(p.k_norm + high[j]));
    }
    pdl_wait();
    float2 x[A::VECTORS][A::EACH];
#pragma unroll
    for (u32 n = 0; n < A::VECTORS; n++) {
        const u32 vector = n * A::WARPS + warp;
        const float* from = vector < HEADS ? p.q + (first_head + vector) * DIM
                                           : (vector == HEADS ? p.k : p.v) + kv_head * DIM;
        const bool there = vector < HEADS ? vector < heads : vector < HEADS + 2 && own;
#pragma unroll
        for (u32 j = 0; j < A::EACH; j++) {
            x[n][j] = make_float2(0, 0);
            if (there && lane + 32 * j < A::PAIRS) x[n][j] = make_float2(load1(from + low[j]), load1(from + high[j]));
        }
    }
    // Scores are powers of two: log2(e) / sqrt(head_dim) goes into the query.
    const float scale = 1.4426950408889634f / sqrtf((float)DIM);
#pragma unroll
    for (u32 n = 0; n < A::VECTORS; n++) {
        const u32 vector = n * A::WARPS + warp;
        const bool query = vector < HEADS;
        float factor = 1;
        if (query ? p.q_norm != 0 : vector == HEADS && p.k_norm) {
            float squares = 0;
#pragma unroll
            for (u32 j = 0; j < A::EACH; j++) squares += x[n][j].x * x[n][j].x + x[n][j].y * x[n][j].y;
            factor = 1.0f / sqrtf(warp_sum(squares) / (float)DIM + p.epsilon);
        }
#pragma unroll
        for (u32 j = 0; j < A::EACH; j++) {
            if (lane + 32 * j >= A::PAIRS) continue;
            float2 v = x[n][j], t = turn[j], norm = query ? q_norm[j] : k_norm[j];
            if (vector <= HEADS) v.x *= factor * norm.x, v.y *= factor * norm.y; // without a norm: 1
            float2 r = make_float2(v.x * t.x - v.y * t.y, v.x * t.y + v.y * t.x);
            if (query) {
                r.x *= scale, r.y *= scale;
                const u16 a = to_half(r.x), b = to_half(r.y);
                s.q[0][vector][low[j]] = a, s.q[0][vector][high[j]] = b;
                s.q[1][vector][low[j]] = to_half(r.x - half_low(a));
                s.q[1][vector][high[j]] = to_half(r.y - half_low(b));
            } else if (vector < HEADS + 2 && own) {
                if (vector > HEADS) r = v;
                const u16 a = to_half(r.x), b = to_half(r.y);
                u16* here = s.own[vector - HEADS];
                here[low[j]] = a, here[high[j]] = b;
                if (line % parts == 0) {
                    u16* to = (vector == HEADS ? p.keys : p.values) + cache + (u64)position * DIM;
                    to[low[j]] = a, to[high[j]] = b;
                }
            }
        }
    }
    __syncthreads();

    const float NONE = __uint_as_float(0xff800000);
    float max[2] = {NONE, NONE}, total[2] = {0, 0}; // of heads 2 (lane % 4) and + 1; total: the lane's share
    float sums[DIM / 16][4];
#pragma unroll
    for (u32 t = 0; t < DIM / 16; t++)
#pragma unroll
        for (u32 e = 0; e < 4; e++) sums[t][e] = 0;
    const u32 q_row = shared_address(s.q[matrix / 2][lane % 8]) + matrix % 2 * 16;
    u32 at = slot;
#pragma unroll 1
    for (u32 chunk = start; chunk < end; chunk += A::CHUNK) {
        const u32 first = chunk + warp * 16;
        copy_wait<A::STAGES - 1>();
        __syncwarp();
        if (own && position - first < 16) {
            for (u32 i = lane; i < DIM / 4; i += 32) {
                const u32 which = i / (DIM / 8), part = i % (DIM / 8);
                const uint4 v = *(const uint4*)&s.own[which][part * 8];
                asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(
                                 at + (which * 16 + position - first) * A::ROW + part * 16),
                             "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                             : "memory");
            }
            __syncwarp();
        }
        float scores[4] = {0, 0, 0, 0}, lower[4] = {0, 0, 0, 0};
        const u32 key = at + (matrix % 2 * 8 + lane % 8) * A::ROW + matrix / 2 * 16;
#pragma unroll
        for (u32 k = 0; k < DIM / 16; k++) {
            u32 a[4], b[4];
            load_matrices(a, key + k * 32);
            load_matrices(b, q_row + k * 32);
            mma(scores, a, b[0], b[1]);
            mma(lower, a, b[2], b[3]);
        }
#pragma unroll
        for (u32 e = 0; e < 4; e++) {
            scores[e] += lower[e];
            if (first + e / 2 * 8 + lane / 4 >= end) scores[e] = NONE;
        }
        u32 weights[2][2]; // upper and lower halves; of the first and the last 8 positions
        float correction[2], w[4];
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            float most = fmaxf(scores[h], scores[2 + h]);
            most = fmaxf(most, shuffle_xor(most, 4));
            most = fmaxf(most, shuffle_xor(most, 8));
            most = fmaxf(most, shuffle_xor(most, 16));
            most = fmaxf(most, max[h]);
            const float zero = most == NONE ? 0 : most; // nothing seen yet: weights are 0
            correction[h] = exp2_approx(max[h] - zero), max[h] = most;
            w[h] = exp2_approx(scores[h] - zero), w[2 + h] = exp2_approx(scores[2 + h] - zero);
            total[h] = fmaf(total[h], correction[h], w[h] + w[2 + h]);
        }
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 upper = pack(w[2 * i], w[2 * i + 1]);
            weights[0][i] = transposed(upper);
            weights[1][i] = transposed(pack(w[2 * i] - half_low(upper), w[2 * i + 1] - half_high(upper)));
        }
        const u32 value = at + (16 + matrix / 2 * 8 + lane % 8) * A::ROW + matrix % 2 * 16;
#pragma unroll
        for (u32 t = 0; t < DIM / 16; t++) {
            sums[t][0] *= correction[0], sums[t][1] *= correction[1];
            sums[t][2] *= correction[0], sums[t][3] *= correction[1];
            u32 a[4];
            load_matrices_transposed(a, value + t * 32);
            mma(sums[t], a, weights[0][0], weights[0][1]);
            mma(sums[t], a, weights[1][0], weights[1][1]);
        }
        __syncwarp();
        load(chunk + A::STAGES * A::CHUNK, at);
        if (A::STAGES > 1) at = 2 * slot + A::SLOT - at;
    }

    // The warps' results, each where its positions were, and then all of them together.
    copy_wait<0>();
    __syncwarp();
    float* mine = (float*)slots + warp * (A::STAGES * A::SLOT / 4); // (HEADS, SUMS)
#pragma unroll
    for (u32 t = 0; t < DIM / 16; t++)
#pragma unroll
        for (u32 e = 0; e < 4; e++)
            mine[(lane % 4 * 2 + e % 2) * A::SUMS + t * 16 + e / 2 * 8 + lane / 4] = sums[t][e];
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
        total[h] += shuffle_xor(total[h], 4);
        total[h] += shuffle_xor(total[h], 8);
        total[h] += shuffle_xor(total[h], 16);
        if (lane < 4) s.max[warp][lane * 2 + h] = max[h], s.total[warp][lane * 2 + h] = total[h];
    }
    __syncthreads();
    // What part number `part` of `count` has found goes to the place of their merge; of the last one to `attended`.
    const u32 clusters = (active + CLUSTER - 1) / CLUSTER;
    float2* max_total = (float2*)(p.partials + (u64)gridDim.x * p.query_heads * DIM);
    auto finish = [&](const Merge& all, u32 h, u32 quarter, bool last) {
        const u32 head = first_head + h;
        if (last) {
            *(float4*)(p.attended + head * DIM + quarter * 4) = all.mean();
            return;
        }
        const u32 row = blockIdx.x / CLUSTER * p.query_heads + head;
        *(float4*)(p.partials + (u64)row * DIM + quarter * 4) = all.sum;
        if (quarter == 0) max_total[row] = make_float2(all.max, all.total);
    };
    const u32 of_cluster = min_u32(active - blockIdx.x / CLUSTER * CLUSTER, CLUSTER); // active blocks in mine
#pragma unroll 1
    for (u32 i = tid; i < heads * A::QUARTERS; i += A::THREADS) {
        const u32 h = i / A::QUARTERS, quarter = i % A::QUARTERS;
        Merge all;
#pragma unroll
        for (u32 w = 0; w < A::WARPS; w++)
            all.add(s.max[w][h], s.total[w][h],
                    *(const float4*)((float*)slots + w * (A::STAGES * A::SLOT / 4) + h * A::SUMS + quarter * 4));
        if (of_cluster == 1) {
            finish(all, h, quarter, clusters == 1);
        } else {
            *(float4*)&s.sums[h][quarter * 4] = all.sum;
            if (quarter == 0) s.block_max[h] = all.max, s.block_total[h] = all.total;
        }
    }
#if __CUDA_ARCH__ >= 900
    if (of_cluster > 1) {
        cluster_arrive();
        cluster_wait();
        const u32 rank = blockIdx.x % CLUSTER;
#pragma unroll 1
        for (u32 i = rank * A::THREADS + tid; i < heads * A::QUARTERS; i += of_cluster * A::THREADS) {
            const u32 h = i / A::QUARTERS, quarter = i % A::QUARTERS;
            float4 found[CLUSTER];
            float maxes[CLUSTER], totals[CLUSTER];
#pragma unroll
            for (u32 b = 0; b < CLUSTER; b++) {
                const u32 from = min_u32(b, of_cluster - 1);
                maxes[b] = cluster1(of_block(shared_address(&s.block_max[h]), from));
                totals[b] = cluster1(of_block(shared_address(&s.block_total[h]), from));
                found[b] = cluster4(of_block(shared_address(&s.sums[h][quarter * 4]), from));
            }
            Merge all;
#pragma unroll
            for (u32 b = 0; b < CLUSTER; b++)
                if (b < of_cluster) all.add(maxes[b], totals[b], found[b]);
            finish(all, h, quarter, clusters == 1);
        }
        cluster_arrive_relaxed(); // Nobody's shared memory goes while others read it: they wait at their end.
    }
#endif
    if (clusters > 1 && arrived_last(p.counters + line, active, s.last)) {
        if (tid == 0) p.counters[line] = 0;
#pragma unroll 1
        for (u32 i = tid; i < heads * A::QUARTERS; i += A::THREADS) {
            const u32 h = i / A::QUARTERS, quarter = i % A::QUARTERS;
            const u32 AHEAD = 8; // results that are asked for at once
            Merge all;
#pragma unroll 1
            for (u32 from = 0; from < clusters; from += AHEAD) {
                float4 found[AHEAD];
                float2 theirs[AHEAD];
#pragma unroll
                for (u32 n = 0; n < AHEAD; n++) {
                    const u32 row = (from + n) * p.query_heads + first_head + h;
                    found[n] = make_float4(0, 0, 0, 0), theirs[n] = make_float2(NONE, 0);
                    if (from + n < clusters)
                        found[n] = load4(p.partials + (u64)row * DIM + quarter * 4), theirs[n] = load2(max_total + row);
                }
#pragma unroll
                for (u32 n = 0; n < AHEAD; n++) all.add(theirs[n].x, theirs[n].y, found[n]);
            }
            finish(all, h, quarter, true);
        }
    }
#if __CUDA_ARCH__ >= 900
    if (of_cluster > 1) cluster_wait();
#endif
}

#define ATTENTION(DIM)                                                                                       \
    extern "C" __global__ void ATTENTION_CLUSTER __launch_bounds__(attention_threads(DIM)) \
        decode_attention_##DIM(Attention p) {                                                                \
        attend<DIM>(p);                                                                                      \
    }
ATTENTION(64)
ATTENTION(80)
ATTENTION(96)
ATTENTION(128)
ATTENTION(256)
