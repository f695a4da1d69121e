// One token: the kernels of a decode step, in the order of their launches (common.cuh has what each is given).
#include "gemv.cuh"
#include "attend.cuh"

// ---- embedding ----

// Eight columns of a row: the values that the format's definition gives, to the last bit.
template <u32 FORMAT>
__device__ __forceinline__ void embed_eight(const Matrix& m, u32 row, u32 eight, float* out) {
    constexpr u32 C = code_words(FORMAT), H = high_words(FORMAT);
    u32 group = eight / 4, step = group / 4, groups = m.columns / 32, tile = row / 8;
    u32 in_step = step < groups / 4 ? 4 : groups % 4;
    Place at;
    at.group = tile * (groups * 8) + step * 32 + row % 8 * in_step + group % 4;
    at.super = tile * groups + (step >> 1) * 8 + row % 8;
    u32 w[C + H + 4];
    load_group<FORMAT>(w, m, at);
    const u32* scale = w + C + H;
    float2 sub = make_float2(0, 0);
    if constexpr (FORMAT == Q4_K || FORMAT == Q5_K) sub = k_scales(scale, group % 4, step);
    u32 words[2] = {0, 0}; // of these eight columns
#pragma unroll
    for (u32 j = 0; j < 8; j += 2) {
        if (j / 2 != eight % 4) continue;
        if constexpr (FORMAT == Q6_K || FORMAT == Q8_0)
            words[0] = signed_word<FORMAT>(w, j), words[1] = signed_word<FORMAT>(w, j + 1);
        else
            words[0] = unsigned_word<FORMAT>(w, j), words[1] = unsigned_word<FORMAT>(w, j + 1);
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const u32 PLACES[8] = {0, 2, 4, 6, 1, 3, 5, 7}; // of columns in two dot words
        u32 byte = words[PLACES[i] / 4] >> (8 * (PLACES[i] % 4)) & 255;
        float q = (float)(signed char)byte * gain(FORMAT) - middle(FORMAT);
        float d = FORMAT == TERNARY_ONE ? 1 : half_low(scale[0]);
        if constexpr (FORMAT == Q4_1 || FORMAT == Q5_1) {
            out[i] = __fadd_rn(__fmul_rn(d, q), half_high(scale[0]));
        } else if constexpr (FORMAT == Q4_K || FORMAT == Q5_K) {
            out[i] = __fadd_rn(__fmul_rn(sub.x, q), -sub.y);
        } else if constexpr (FORMAT == Q6_K) {
            int s = eight % 4 < 2 ? (signed char)scale[0] : (signed char)(scale[0] >> 8);
            out[i] = __fmul_rn(__fmul_rn(half_low(scale[1]), (float)s), q);
        } else if constexpr (is_ternary(FORMAT)) {
            out[i] = __fmul_rn(FORMAT == TERNARY ? __fmul_rn(d, q) : q, m.scale);
        } else {
            out[i] = __fmul_rn(d, q);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) decode_embed(const State* state, Matrix embedding, float* residual) {
    pdl_wait();
    u32 token = load_u32(&state->token);
    for (u32 eight = blockIdx.x * blockDim.x + threadIdx.x; eight < embedding.columns / 8;
         eight += gridDim.x * blockDim.x) {
        float out[8];
        if (token < embedding.rows) {
#define EMBED(F) embed_eight<F>(embedding, token, eight, out)
            FOR_FORMAT(embedding, EMBED)
#undef EMBED
        } else {
            for (u32 i = 0; i < 8; i++) out[i] = __uint_as_float(0x7fffffff);
        }
        ((float4*)residual)[2 * eight] = make_float4(out[0], out[1], out[2], out[3]);
        ((float4*)residual)[2 * eight + 1] = make_float4(out[4], out[5], out[6], out[7]);
    }
}

// ---- projections ----

// R tiles are a unit.
template <u32 R>
__device__ __forceinline__ u32 units_of(u32 rows) {
    return (rows + 8 * R - 1) / (8 * R);
}

// Every kernel of one format is an entry of its own: the code of the others would cost registers, and time to be
// fetched.
#define FOR_FORMATS(ENTRY) \
    ENTRY(q4_0, Q4_0)      \
    ENTRY(q4_1, Q4_1)      \
    ENTRY(q5_0, Q5_0)      \
    ENTRY(q5_1, Q5_1)      \
    ENTRY(q8_0, Q8_0)      \
    ENTRY(q4_k, Q4_K)      \
    ENTRY(q5_k, Q5_K)      \
    ENTRY(q6_k, Q6_K)      \
    ENTRY(tq2_0, TERNARY)  \
    ENTRY(ternary, TERNARY_ONE)

// Some units of one matrix.
template <u32 FORMAT>
__device__ __forceinline__ void project_matrix(Exchange<PROJECT_TILES>& exchange, const Project& p, u32 m, float* y,
                                               const Units& units) {
    const u32 R = PROJECT_TILES;
    const Matrix& w = p.matrix[m];
    u32 unit = units.unit;
    if (unit >= units.units) return; // more blocks than units
    Lane l;
    Activations x(shared, w.columns);
    Quantization q = {p.x, p.norm, p.quantized, w.columns, is_ternary(FORMAT), p.epsilon};
    Stream<FORMAT, R, false> stream(w, w, w.columns, units, l);
    stream.fill(l);
    const NormAhead norm(p.norm, w.columns);
    // The outputs of unit number `done` are a lane's of warp `done % 4`.
    auto writes = [&](u32 unit, u32 done) {
        return l.warp == done % 4 && l.lane < R * 8 && unit * (R * 8) + l.lane < w.rows;
    };
    auto bias_of = [&](u32 unit, u32 done) {
        return w.bias && writes(unit, done) ? __ldg(w.bias + unit * (R * 8) + l.lane) : 0.0f;
    };
    auto before_of = [&](u32 unit, u32 done) {
        return p.add && writes(unit, done) ? load1(y + unit * (R * 8) + l.lane) : 0.0f;
    };
    float bias = bias_of(unit, 0);
    pdl_wait();
    float before = before_of(unit, 0);
    float factor = quantize_input(q, norm, shared, exchange);
#pragma unroll 1
    for (u32 done = 0; unit < units.units; done++) {
        const u32 next = unit + units.stride;
        float sums[R];
        stream.run(sums, l, x);
        store_sums<R>(sums, exchange.sums[done % 2][l.warp], l);
        const bool mine = writes(unit, done);
        float all = mine ? factor * late_factor(q, exchange) * w.scale : 0;
        __syncthreads();
        if (mine)
            y[unit * (R * 8) + l.lane] = before + fmaf(row_sum(exchange, done % 2, l.lane, l.warps), all, bias);
        if (next < units.units) bias = bias_of(next, done + 1), before = before_of(next, done + 1);
        unit = next;
    }
}

// The blocks are shared out among the matrices by their units; each has one block at least. Calls `call` with the
// number of this block's matrix, where its outputs go, and its units.
template <typename Call>
__device__ __forceinline__ void project(const Project& p, Call call) {
    const u32 R = PROJECT_TILES;
    u32 total = 0, m = 0, first = 0, before = 0, rows = 0;
    for (u32 i = 0; i < p.matrices; i++) total += units_of<R>(p.matrix[i].rows);
    u32 end = gridDim.x; // of the blocks of matrix m
    for (u32 i = 1, begin = 0; i < p.matrices; i++) {
        before += units_of<R>(p.matrix[i - 1].rows);
        u32 even = min_u32((u32)((u64)before * min_u32(gridDim.x, total) / total), gridDim.x - (p.matrices - i));
        begin = max_u32(even, begin + 1);
        if (blockIdx.x >= begin) {
            m = i, first = begin, end = gridDim.x;
        } else {
            end = min_u32(end, begin);
        }
    }
    for (u32 i = 0; i < m; i++) rows += p.matrix[i].rows;
    call(m, p.y + rows, Units{blockIdx.x - first, end - first, units_of<R>(p.matrix[m].rows)});
}

#define PROJECT(NAME, F)                                                                                          \
    extern "C" __global__ void __launch_bounds__(PROJECT_WARPS * 32, PROJECT_BLOCKS) decode_project_##NAME(Project p) { \
        __shared__ Exchange<PROJECT_TILES> exchange;                                                              \
        project(p, [&](u32 m, float* y, Units units) { project_matrix<F>(exchange, p, m, y, units); });           \
    }
FOR_FORMATS(PROJECT)

// Matrices of different formats.
extern "C" __global__ void __launch_bounds__(PROJECT_WARPS * 32, 1) decode_project_mixed(Project p) {
    __shared__ Exchange<PROJECT_TILES> exchange;
    project(p, [&](u32 m, float* y, Units units) {
#define MIXED(F) project_matrix<F>(exchange, p, m, y, units)
        FOR_FORMAT(p.matrix[m], MIXED)
#undef MIXED
    });
}

// ---- gate and up ----

__device__ __forceinline__ float activate(u32 activation, float gate, float up) {
    if (activation == 0) return __fdividef(gate, 1.0f + __expf(-gate)) * up;
    float positive = gate < 0 ? 0 : gate; // NaN stays.
    return positive * positive * up;
}

// A warp's 32 outputs as the group `group` of a quantized vector.
__device__ __forceinline__ void store_group(const Quantized& out, u32 group, float value, u32 lane) {
    u32 largest = warp_max(magnitude(value));
    float max = __uint_as_float(largest < INFINITE ? largest : 0x7fffffff);
    bool zero = max <= 1e-36f;
    float inverse = zero ? 0 : 127.0f * reciprocal_approx(max), scale = zero ? 0 : max * (1.0f / 127);
    int quant = (int)__float_as_uint(fmaf(value, inverse, 12582912.0f)) - 0x4b400000;
    int sum = warp_sum(quant);
    u32 place = lane % 8 < 4 ? lane % 8 * 2 : lane % 8 * 2 - 7;
    out.codes[group * 32 + lane / 8 * 8 + place] = (u8)quant;
    if (lane == 0) out.groups[group] = make_float2(scale, scale * (float)sum);
}

// Four tiles of each matrix go together: 32 outputs. `products(unit, out)` puts a warp's share of their sums there.
template <typename Fill, typename Products>
__device__ __forceinline__ void gate_up_units(Exchange<8>& exchange, const GateUp& p, bool whole_row, const Lane& l,
                                              Fill fill, Products products) {
    const u32 count = p.gate.rows / 32;
    Quantization q = {p.x, p.norm, {0, 0}, p.gate.columns, whole_row, p.epsilon};
    fill();
    const NormAhead norm(p.norm, q.columns);
    pdl_wait();
    float factor = quantize_input(q, norm, shared, exchange);
#pragma unroll 1
    for (u32 done = 0, unit = blockIdx.x; unit < count; unit += gridDim.x, done++) {
        bool writes = l.warp == done % 4;
        products(unit, exchange.sums[done % 2][l.warp]);
        float all = writes ? factor * late_factor(q, exchange) : 0;
        __syncthreads();
        if (writes) {
            float gate_bias = p.gate.bias ? __ldg(p.gate.bias + unit * 32 + l.lane) : 0;
            float up_bias = p.up.bias ? __ldg(p.up.bias + unit * 32 + l.lane) : 0;
            float gate = fmaf(row_sum(exchange, done % 2, l.lane, l.warps), all * p.gate.scale, gate_bias);
            float up = fmaf(row_sum(exchange, done % 2, 32 + l.lane, l.warps), all * p.up.scale, up_bias);
            float value = activate(p.activation, gate, up);
            if (p.activated)
                p.activated[unit * 32 + l.lane] = value;
            else
                store_group(p.quantized, unit, value, l.lane);
        }
    }
}

template <u32 FORMAT>
__device__ __forceinline__ void gate_up(Exchange<8>& exchange, const GateUp& p) {
    Lane l;
    Activations x(shared, p.gate.columns);
    Stream<FORMAT, 8, true> stream(p.gate, p.up, p.gate.columns, Units{blockIdx.x, gridDim.x, p.gate.rows / 32}, l);
    auto products = [&](u32, float* out) {
        float sums[8];
        stream.run(sums, l, x);
        store_sums<8>(sums, out, l);
    };
    gate_up_units(exchange, p, is_ternary(FORMAT), l, [&]() { stream.fill(l); }, products);
}

#define GATE_UP(NAME, F)                                                                                         \
    extern "C" __global__ void __launch_bounds__(PROJECT_WARPS * 32, PROJECT_BLOCKS) decode_gate_up_##NAME(GateUp p) { \
        __shared__ Exchange<8> exchange;                                                                         \
        gate_up<F>(exchange, p);                                                                                 \
    }
FOR_FORMATS(GATE_UP)

// Two formats: tile after tile, and nothing is on its way meanwhile. If one is ternary, both get its input.
extern "C" __global__ void __launch_bounds__(PROJECT_WARPS * 32, 1) decode_gate_up_mixed(GateUp p) {
    __shared__ Exchange<8> exchange;
    Lane l;
    Activations x(shared, p.gate.columns);
    auto products = [&](u32 unit, float* out) {
#pragma unroll 1
        for (u32 i = 0; i < 8; i++) {
            const Matrix w = i < 4 ? p.gate : p.up;
            if (i == 4) __syncthreads(); // The other format's rings lie elsewhere: in what other warps may still read.
            const u32 tile = unit * 4 + i % 4;
            float sums[1];
#define MIXED(F)                                                          \
    Stream<F, 1, false> stream(w, w, w.columns, Units{tile, 1, tile + 1}, l); \
    stream.fill(l);                                                       \
    stream.run(sums, l, x)
            FOR_FORMAT(w, MIXED)
#undef MIXED
            store_sums<1>(sums, out + i * 8, l);
        }
    };
    gate_up_units(exchange, p, p.gate.format == TERNARY || p.up.format == TERNARY, l, [] {}, products);
}

// ---- head ----

// A warp's 64 logits (two a lane; of rows behind the last one: -infinity) in a word.
__device__ __forceinline__ Partial partial_of(float low, float high, u32 first_row, u32 lane, bool bad) {
    float max = warp_max(fmaxf(low, high));
    u32 of_low = __ballot_sync(0xffffffffu, low == max), of_high = __ballot_sync(0xffffffffu, high == max);
    u32 best = first_row + (of_low ? __ffs(of_low) - 1 : 31 + __ffs(of_high));
    float sum = warp_sum(__expf(low - max) + __expf(high - max));
    bool any_bad = __any_sync(0xffffffffu, bad);
    Partial out = {max, any_bad ? ~0u : best, sum, 0};
    return out;
}

template <u32 FORMAT>
__device__ __forceinline__ void head(Exchange<8>& exchange, const Head& p) {
    const Matrix& w = p.matrix;
    Lane l;
    const u32 units = units_of<8>(w.rows);
    Activations x(shared, w.columns);
    Quantization q = {p.x, p.norm, {0, 0}, w.columns, is_ternary(FORMAT), p.epsilon};
    Stream<FORMAT, 8, false> stream(w, w, w.columns, Units{blockIdx.x, gridDim.x, units}, l);
    stream.fill(l);
    const NormAhead norm(p.norm, w.columns);
    pdl_wait();
    float factor = quantize_input(q, norm, shared, exchange);
#pragma unroll 1
    for (u32 done = 0, unit = blockIdx.x; unit < units; unit += gridDim.x, done++) {
        float sums[8];
        stream.run(sums, l, x);
        store_sums<8>(sums, exchange.sums[done % 2][l.warp], l);
        bool writes = l.warp == done % 4;
        float all = writes ? factor * late_factor(q, exchange) * w.scale : 0;
        __syncthreads();
        if (!writes) continue;
        float logit[2];
        bool bad = false;
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 in_unit = i * 32 + l.lane, row = unit * HEAD_ROWS + in_unit;
            logit[i] = __uint_as_float(0xff800000); // minus infinity
            if (row >= w.rows) continue;
            logit[i] = row_sum(exchange, done % 2, in_unit, l.warps) * all + (w.bias ? __ldg(w.bias + row) : 0);
            p.logits[row] = logit[i];
            bad |= magnitude(logit[i]) >= INFINITE;
        }
        Partial partial = partial_of(logit[0], logit[1], unit * HEAD_ROWS, l.lane, bad);
        if (l.lane == 0) *(uint4*)(p.partials + unit) = *(uint4*)&partial;
    }
}

#define HEAD(NAME, F)                                                                                       \
    extern "C" __global__ void __launch_bounds__(PROJECT_WARPS * 32, PROJECT_BLOCKS) decode_head_##NAME(Head p) { \
        __shared__ Exchange<8> exchange;                                                                    \
        head<F>(exchange, p);                                                                               \
    }
FOR_FORMATS(HEAD)

// ---- the end ----

struct Best {
    float max;
    u32 row;
    bool bad;
};

// The larger one, of equals the lower row; bad if either is.
__device__ __forceinline__ Best better(Best a, Best b) {
    bool other = b.max > a.max || (b.max == a.max && b.row < a.row);
    return {other ? b.max : a.max, other ? b.row : a.row, a.bad || b.bad};
}

extern "C" __global__ void __launch_bounds__(FINISH_THREADS)
    decode_finish(State* state, State* mailbox, const Partial* partials, u32 count) {
    const u32 WARPS = FINISH_THREADS / 32;
    __shared__ Best bests[WARPS];
    __shared__ float totals[WARPS];
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float NONE = __uint_as_float(0xff800000);
    pdl_wait();
    Best best = {NONE, ~0u, false};
    for (u32 i = threadIdx.x; i < count; i += FINISH_THREADS) {
        uint4 partial = load_u32x4(partials + i);
        best = better(best, {__uint_as_float(partial.x), partial.y, partial.y == ~0u});
    }
    for (u32 mask = 16; mask > 0; mask /= 2)
        best = better(
            best, {shuffle_xor(best.max, mask), shuffle_xor(best.row, mask), (bool)shuffle_xor((u32)best.bad, mask)});
    if (lane == 0) bests[warp] = best;
    __syncthreads();
    best = bests[0];
    for (u32 w = 1; w < WARPS; w++) best = better(best, bests[w]);
    float total = 0;
    for (u32 i = threadIdx.x; i < count; i += FINISH_THREADS) {
        uint4 partial = load_u32x4(partials + i);
        total += __uint_as_float(partial.z) * __expf(__uint_as_float(partial.x) - best.max);
    }
    total = warp_sum(total);
    if (lane == 0) totals[warp] = total;
    __syncthreads();
    if (threadIdx.x != 0) return;
    total = totals[0];
    for (u32 w = 1; w < WARPS; w++) total += totals[w];
    State now;
    now.best = best.bad ? ~0u : best.row;
    now.token = best.bad ? state->token : best.row;
    now.position = state->position + 1;
    now.best_logit = best.max;
    now.log_sum_exp = best.max + logf(total);
    now.done = state->done + 1;
    *state = now;
    if (mailbox) {
        mailbox->token = now.token, mailbox->position = now.position, mailbox->best = now.best;
        mailbox->best_logit = now.best_logit, mailbox->log_sum_exp = now.log_sum_exp;
        __threadfence_system();
        *(volatile u32*)&mailbox->done = now.done;
    }
}
