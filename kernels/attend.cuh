// Attention of one token over the positions so far. The positions are split among thread blocks, as the sequence's
// length alone says; the last block of a line (a kv head, or a part of its query heads) merges what all have found.
//
// A block goes over its split in chunks, with a running maximum per head: scores (a few lanes share a position),
// weights (a warp has a head), weighted sums (a thread has two values of a head's 4 query heads). Positions before this
// token's are in the cache from earlier launches: their first chunk is read before pdl_wait().
#pragma once
#include "common.cuh"

template <u32 DIM>
struct Attend {
    static const u32 LANES = DIM / 8; // share a position, eight values each
    static const u32 PER_LOAD = 32 / LANES; // positions that a warp reads at once
    static const u32 LOADS = 4; // of these on their way
    static const u32 WARPS = ATTENTION_THREADS / 32;
    static const u32 PER_WARP = LOADS * PER_LOAD;
    static const u32 CHUNK = WARPS * PER_WARP; // positions
    static const u32 PAIRS = DIM / 2; // of values, in a head
    static const u32 TEAMS = ATTENTION_THREADS / PAIRS; // share the positions of a chunk
    static const u32 PER_TEAM = CHUNK / TEAMS; // 16
    static const u32 HEADS = ATTENTION_HEADS;
    static const u32 SLOTS = (HEADS + 2) * PAIRS; // pairs of the query heads, the key, the value
    static const u32 ROUNDS = (SLOTS + ATTENTION_THREADS - 1) / ATTENTION_THREADS;

    struct alignas(16) Shared {
        float q[HEADS][DIM];
        u16 key[DIM], value[DIM]; // this token's
        float squares[ROUNDS][WARPS];
        float scores[HEADS][CHUNK];
        float weights[CHUNK][HEADS];
        float rescale[HEADS];
        float max[HEADS], total[HEADS];
        float sums[TEAMS][HEADS][DIM];
        float shares[ATTENTION_THREADS][4]; // the merge's
        float share_max[8][HEADS], share_total[8][HEADS];
        u32 last;
    };
};

// Positions of a split: whole chunks. Two chunks in one block take less than a merge.
__device__ __forceinline__ u32 split_length(u32 positions, u32 splits, u32 chunk) {
    if (positions <= 2 * chunk) return 2 * chunk;
    u32 even = (positions + splits - 1) / splits;
    return (even + chunk - 1) / chunk * chunk;
}

template <u32 DIM>
__device__ __forceinline__ void attend(const Attention& p) {
    typedef Attend<DIM> A;
    const u32 HEADS = A::HEADS;
    __shared__ typename A::Shared s;
    pdl_launch(); // The position comes from memory, and what depends on it too.
    const u32 tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
    const u32 group = p.query_heads / p.kv_heads, parts = (group + HEADS - 1) / HEADS;
    const u32 line = blockIdx.y, kv_head = line / parts, first_head = kv_head * group + line % parts * HEADS;
    const u32 heads = min_u32(HEADS, (kv_head + 1) * group - first_head);
    // The host does not change these within a token, and decode_embed waits for the one before.
    const u32 position = p.state->position;
    if (position >= p.context) return;
    const u32 length = split_length(position + 1, gridDim.x, A::CHUNK);
    const u32 start = blockIdx.x * length, end = min_u32(start + length, position + 1);
    if (start >= end) return;
    const u32 active = (position + length) / length; // blocks of this line that come this far
    const bool own = end == position + 1; // this token's key and value are mine to make

    const u64 cache = (u64)kv_head * p.context * p.head_dim;
    const u32 part = lane % A::LANES * 8; // the lane's eight values of a key
    const u32 pair = tid % A::PAIRS * 2, team = tid / A::PAIRS;
    uint4 keys[A::LOADS];
    u32 values[A::PER_TEAM];
    auto key_position = [&](u32 chunk, u32 u) {
        return chunk + warp * A::PER_WARP + u * A::PER_LOAD + lane / A::LANES;
    };
    auto load_keys = [&](u32 chunk) {
#pragma unroll
        for (u32 u = 0; u < A::LOADS; u++) {
            u32 at = key_position(chunk, u);
            keys[u] = make_uint4(0, 0, 0, 0);
            if (at < end && at < position && part < p.head_dim)
                keys[u] = load_u32x4(p.keys + cache + (u64)at * p.head_dim + part);
        }
    };
    auto load_values = [&](u32 chunk) {
#pragma unroll
        for (u32 j = 0; j < A::PER_TEAM; j++) {
            u32 at = chunk + team + j * A::TEAMS;
            values[j] = 0;
            if (at < end && at < position && pair < p.head_dim)
                values[j] = load_u32((const u32*)(p.values + cache + (u64)at * p.head_dim + pair));
        }
    };
    load_keys(start);
    load_values(start);
    if (start + A::CHUNK < end) { // The chunks after the first one come from L2 then.
        const u64 from = cache + (u64)(start + A::CHUNK) * p.head_dim;
        const u32 count = (end - start - A::CHUNK) * p.head_dim;
        for (u32 i = tid * 64; i < count; i += ATTENTION_THREADS * 64)
            prefetch(p.keys + from + i), prefetch(p.values + from + i);
    }

    // This token's vectors: round by round a thread has a pair of a query head (0..HEADS), the key or the value.
    float2 turn[A::ROUNDS];
    float2 norm[A::ROUNDS];
    u32 low[A::ROUNDS], high[A::ROUNDS];
#pragma unroll
    for (u32 r = 0; r < A::ROUNDS; r++) {
        u32 slot = r * ATTENTION_THREADS + tid, vector = slot / A::PAIRS, i = slot % A::PAIRS;
        bool rotated = i < p.pairs && vector <= HEADS;
        low[r] = rotated && !p.adjacent ? i : 2 * i;
        high[r] = rotated && !p.adjacent ? i + p.pairs : 2 * i + 1;
        turn[r] = make_float2(1, 0), norm[r] = make_float2(1, 1);
        if (rotated) turn[r] = __ldg(p.rope + (u64)position * p.pairs + i);
        const float* weights = vector < HEADS ? p.q_norm : p.k_norm;
        if (weights && vector <= HEADS && 2 * i < p.head_dim)
            norm[r] = make_float2(__ldg(weights + low[r]), __ldg(weights + high[r]));
    }
    pdl_wait();
    float2 x[A::ROUNDS];
#pragma unroll
    for (u32 r = 0; r < A::ROUNDS; r++) {
        u32 slot = r * ATTENTION_THREADS + tid, vector = slot / A::PAIRS, i = slot % A::PAIRS;
        x[r] = make_float2(0, 0);
        const float* from = vector < HEADS ? p.q + (first_head + vector) * p.head_dim
                                           : (vector == HEADS ? p.k : p.v) + kv_head * p.head_dim;
        bool there = vector < HEADS ? vector < heads : vector < HEADS + 2 && own;
        if (there && 2 * i < p.head_dim) x[r] = make_float2(load1(from + low[r]), load1(from + high[r]));
    }
    if (p.q_norm || p.k_norm) {
        const u32 SHARE = (A::PAIRS + 31) / 32; // warps of a vector
#pragma unroll
        for (u32 r = 0; r < A::ROUNDS; r++) {
            float squares = warp_sum(x[r].x * x[r].x + x[r].y * x[r].y);
            if (lane == 0) s.squares[r][warp] = squares;
        }
        __syncthreads();
#pragma unroll
        for (u32 r = 0; r < A::ROUNDS; r++) {
            u32 vector = (r * ATTENTION_THREADS + tid) / A::PAIRS;
            float squares = 0;
            for (u32 w = 0; w < SHARE; w++) squares += s.squares[r][warp / SHARE * SHARE + w];
            if (vector < HEADS ? p.q_norm != 0 : vector == HEADS && p.k_norm) {
                float factor = 1.0f / sqrtf(squares / (float)p.head_dim + p.epsilon);
                x[r].x *= factor * norm[r].x, x[r].y *= factor * norm[r].y;
            }
        }
    }
    // Scores are powers of two: log2(e) / sqrt(head_dim) goes into the query.
    const float scale = 1.4426950408889634f / sqrtf((float)p.head_dim);
#pragma unroll
    for (u32 r = 0; r < A::ROUNDS; r++) {
        u32 slot = r * ATTENTION_THREADS + tid, vector = slot / A::PAIRS, i = slot % A::PAIRS;
        float a = x[r].x * turn[r].x - x[r].y * turn[r].y, b = x[r].x * turn[r].y + x[r].y * turn[r].x;
        if (vector < HEADS) {
            bool there = 2 * i < p.head_dim; // `low` and `high` are within the head then, and else behind it
            u32 at = there ? low[r] : 2 * i, after = there ? high[r] : 2 * i + 1;
            s.q[vector][at] = a * scale, s.q[vector][after] = b * scale;
        } else if (vector < HEADS + 2 && own && 2 * i < p.head_dim) {
            u16 first = to_half(a), second = to_half(b);
            u16* here = vector == HEADS ? s.key : s.value;
            here[low[r]] = first, here[high[r]] = second;
            if (line % parts == 0) {
                u16* to = (vector == HEADS ? p.keys : p.values) + cache + (u64)position * p.head_dim;
                to[low[r]] = first, to[high[r]] = second;
            }
        }
    }
    __syncthreads();

    float q[HEADS][8];
#pragma unroll
    for (u32 h = 0; h < HEADS; h++)
#pragma unroll
        for (u32 i = 0; i < 8; i++) q[h][i] = part < p.head_dim ? s.q[h][part + i] : 0.0f;

    const float NONE = __uint_as_float(0xff800000);
    float max = NONE, total = 0; // of head `warp`; total: the lane's share
    float2 sums[HEADS];
#pragma unroll
    for (u32 h = 0; h < HEADS; h++) sums[h] = make_float2(0, 0);

    for (u32 chunk = start; chunk < end; chunk += A::CHUNK) {
        float score[A::LOADS * HEADS];
#pragma unroll
        for (u32 u = 0; u < A::LOADS; u++) {
            u32 at = key_position(chunk, u);
            uint4 key = keys[u];
            if (own && at == position && part < p.head_dim) key = *(const uint4*)(s.key + part);
            float k[8] = {half_low(key.x), half_high(key.x), half_low(key.y), half_high(key.y),
                          half_low(key.z), half_high(key.z), half_low(key.w), half_high(key.w)};
#pragma unroll
            for (u32 h = 0; h < HEADS; h++) {
                float sum = q[h][0] * k[0];
#pragma unroll
                for (u32 i = 1; i < 8; i++) sum = fmaf(q[h][i], k[i], sum);
                score[u * HEADS + h] = sum;
            }
        }
        if (chunk + A::CHUNK < end) load_keys(chunk + A::CHUNK);
        // Sums over the lanes of a position. A lane gives half of its scores away each time, so that each is summed
        // once; what is left is score number `index` (and the next one, with 8 lanes).
        u32 index = 0;
        constexpr u32 LEFT = A::LANES == 8 ? 2 : 1;
#pragma unroll
        for (u32 have = A::LOADS * HEADS, mask = A::LANES / 2; mask > 0; mask /= 2) {
            if (have > 1) {
                bool upper = lane & mask;
                have /= 2;
                index += upper ? have : 0;
#pragma unroll
                for (u32 i = 0; i < A::LOADS * HEADS / 2; i++) {
                    if (i >= have) break;
                    float keep = upper ? score[i + have] : score[i], give = upper ? score[i] : score[i + have];
                    score[i] = keep + shuffle_xor(give, mask);
                }
            } else {
                score[0] += shuffle_xor(score[0], mask);
            }
        }
        if (A::LANES < 32 || lane % 2 == 0) {
#pragma unroll
            for (u32 i = 0; i < LEFT; i++) {
                u32 u = (index + i) / HEADS, at = key_position(chunk, u);
                s.scores[(index + i) % HEADS][at - chunk] = at < end ? score[i] : NONE;
            }
        }
        __syncthreads();
        if (warp < HEADS) {
            float mine[A::CHUNK / 32], largest = max;
#pragma unroll
            for (u32 i = 0; i < A::CHUNK / 32; i++) {
                mine[i] = s.scores[warp][i * 32 + lane];
                largest = fmaxf(largest, mine[i]);
            }
            largest = warp_max(largest);
            float rescale = exp2_approx(max - largest);
            total *= rescale, max = largest;
#pragma unroll
            for (u32 i = 0; i < A::CHUNK / 32; i++) {
                float weight = exp2_approx(mine[i] - largest);
                total += weight;
                s.weights[i * 32 + lane][warp] = weight;
            }
            if (lane == 0) s.rescale[warp] = rescale;
        }
        __syncthreads();
#pragma unroll
        for (u32 h = 0; h < HEADS; h++) sums[h].x *= s.rescale[h], sums[h].y *= s.rescale[h];
#pragma unroll
        for (u32 j = 0; j < A::PER_TEAM; j++) {
            u32 in_chunk = team + j * A::TEAMS;
            u32 value = values[j];
            if (own && chunk + in_chunk == position && pair < p.head_dim) value = *(const u32*)(s.value + pair);
            float a = half_low(value), b = half_high(value);
            float4 w = *(const float4*)s.weights[in_chunk];
            sums[0].x = fmaf(w.x, a, sums[0].x), sums[0].y = fmaf(w.x, b, sums[0].y);
            sums[1].x = fmaf(w.y, a, sums[1].x), sums[1].y = fmaf(w.y, b, sums[1].y);
            sums[2].x = fmaf(w.z, a, sums[2].x), sums[2].y = fmaf(w.z, b, sums[2].y);
            sums[3].x = fmaf(w.w, a, sums[3].x), sums[3].y = fmaf(w.w, b, sums[3].y);
        }
        if (chunk + A::CHUNK < end) load_values(chunk + A::CHUNK);
    }

    if (warp < HEADS) {
        total = warp_sum(total);
        if (lane == 0) s.max[warp] = max, s.total[warp] = total;
    }
#pragma unroll
    for (u32 h = 0; h < HEADS; h++) *(float2*)&s.sums[team][h][pair] = sums[h];
    __syncthreads();
    float2* all_max_total = (float2*)(p.partials + (u64)gridDim.x * p.query_heads * p.head_dim);
    for (u32 slot = tid; slot < heads * A::PAIRS; slot += ATTENTION_THREADS) {
        u32 h = slot / A::PAIRS, at = slot % A::PAIRS * 2, head = first_head + h;
        if (at >= p.head_dim) continue;
        float2 sum = *(const float2*)&s.sums[0][h][at];
#pragma unroll
        for (u32 t = 1; t < A::TEAMS; t++) {
            float2 more = *(const float2*)&s.sums[t][h][at];
            sum.x += more.x, sum.y += more.y;
        }
        if (active == 1) {
            *(float2*)(p.attended + head * p.head_dim + at) = make_float2(sum.x / s.total[h], sum.y / s.total[h]);
        } else {
            const u32 row = blockIdx.x * p.query_heads + head;
            *(float2*)(p.partials + (u64)row * p.head_dim + at) = sum;
            if (at == 0) all_max_total[row] = make_float2(s.max[h], s.total[h]);
        }
    }
    if (active == 1) return;
    // What the block has written is before its first thread's fence, and that is before its count.
    __syncthreads();
    if (tid == 0) {
        __threadfence();
        s.last = atomicAdd(p.counters + line, 1) == active - 1;
        __threadfence();
    }
    __syncthreads();
    if (!s.last) return;
    if (tid == 0) p.counters[line] = 0;
    // A thread has four values of a head, and every `shares`-th split.
    const u32 quarter = p.head_dim / 4, columns = heads * quarter, shares = min_u32(ATTENTION_THREADS / columns, 8);
    const u32 share = tid / columns, column = tid % columns, h = column / quarter, in_head = column % quarter * 4;
    if (share < shares) {
        const u32 AHEAD = 16; // results that are asked for at once
        float largest = NONE, all = 0;
        float4 sum = make_float4(0, 0, 0, 0);
        for (u32 from = share; from < active; from += AHEAD * shares) {
            float4 found[AHEAD];
            float2 max_total[AHEAD];
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++) {
                const u32 split = from + i * shares, row = split * p.query_heads + first_head + h;
                found[i] = make_float4(0, 0, 0, 0), max_total[i] = make_float2(NONE, 0);
                if (split < active)
                    found[i] = load4(p.partials + (u64)row * p.head_dim + in_head),
                    max_total[i] = load2(all_max_total + row);
            }
            const float before = largest;
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++) largest = fmaxf(largest, max_total[i].x);
            const float rescale = exp2_approx(before - largest);
            sum.x *= rescale, sum.y *= rescale, sum.z *= rescale, sum.w *= rescale, all *= rescale;
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++) {
                const float weight = exp2_approx(max_total[i].x - largest);
                all = fmaf(weight, max_total[i].y, all);
                sum.x = fmaf(weight, found[i].x, sum.x), sum.y = fmaf(weight, found[i].y, sum.y);
                sum.z = fmaf(weight, found[i].z, sum.z), sum.w = fmaf(weight, found[i].w, sum.w);
            }
        }
        *(float4*)s.shares[tid] = sum;
        if (in_head == 0) s.share_max[share][h] = largest, s.share_total[share][h] = all;
    }
    __syncthreads();
    if (tid < columns) {
        float largest = NONE, all = 0;
        for (u32 i = 0; i < shares; i++) largest = fmaxf(largest, s.share_max[i][h]);
        float4 sum = make_float4(0, 0, 0, 0);
        for (u32 i = 0; i < shares; i++) {
            const float weight = exp2_approx(s.share_max[i][h] - largest);
            const float4 more = *(const float4*)s.shares[i * columns + tid];
            all = fmaf(weight, s.share_total[i][h], all);
            sum.x = fmaf(weight, more.x, sum.x), sum.y = fmaf(weight, more.y, sum.y);
            sum.z = fmaf(weight, more.z, sum.z), sum.w = fmaf(weight, more.w, sum.w);
        }
        *(float4*)(p.attended + (first_head + h) * p.head_dim + in_head) =
            make_float4(sum.x / all, sum.y / all, sum.z / all, sum.w / all);
    }
}

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, 2) decode_attention64(Attention p) { attend<64>(p); }
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, 2) decode_attention128(Attention p) { attend<128>(p); }
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, 2) decode_attention256(Attention p) { attend<256>(p); }
