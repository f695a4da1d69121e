// One token: the kernels of a decode step, in the order of their launches (common.cuh has what each is given).
#include "gemv.cuh"
#include "attend.cuh"

// ---- embedding ----

// Eight columns of a row: the values that the format's definition gives, to the last bit.
template <u32 FORMAT> __device__ __forceinline__ void embed_eight(const Matrix& m, u32 row, u32 eight, float* out) {
    constexpr u32 C = code_words(FORMAT), H = high_words(FORMAT);
    u32 group = eight / 4, step = group / 4, groups = m.columns / 32, tile = row / 8;
    u32 in_step = step < groups / 4 ? 4 : groups % 4;
    Place at;
    at.group = tile * (groups * 8) + step * 32 + row % 8 * in_step + group % 4;
    at.super = tile * groups + (step >> 1) * 8 + row % 8;
    u32 w[C + H + scale_words(FORMAT)];
    load_group<FORMAT>(w, m, at);
    const u32* scale = w + C + H;
    float2 sub = make_float2(0, 0);
    if constexpr (FORMAT == Q4_K || FORMAT == Q5_K) sub = k_scales(scale, group % 4, step);
    u32 words[2] = {0, 0}; // of these eight columns
#pragma unroll
    for (u32 j = 0; j < 8; j += 2) {
        if (j / 2 != eight % 4) continue;
        if constexpr (FORMAT == Q4_0 || FORMAT == Q5_0 || FORMAT == Q6_K || FORMAT == Q8_0)
            words[0] = signed_word<FORMAT>(w, j), words[1] = signed_word<FORMAT>(w, j + 1);
        else
            words[0] = unsigned_word<FORMAT>(w, j), words[1] = unsigned_word<FORMAT>(w, j + 1);
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const u32 PLACES[8] = {0, 2, 4, 6, 1, 3, 5, 7}; // of columns in two dot words
        u32 byte = words[PLACES[i] / 4] >> (8 * (PLACES[i] % 4)) & 255;
        float q = (float)(signed char)byte * gain(FORMAT), d = half_low(scale[0]);
        if constexpr (FORMAT == Q4_1 || FORMAT == Q5_1) {
            out[i] = __fadd_rn(__fmul_rn(d, q), half_high(scale[0]));
        } else if constexpr (FORMAT == Q4_K || FORMAT == Q5_K) {
            out[i] = __fadd_rn(__fmul_rn(sub.x, q), -sub.y);
        } else if constexpr (FORMAT == Q6_K) {
            int s = eight % 4 < 2 ? (signed char)scale[0] : (signed char)(scale[0] >> 8);
            out[i] = __fmul_rn(__fmul_rn(half_low(scale[1]), (float)s), q);
        } else if constexpr (FORMAT == TERNARY) {
            out[i] = __fmul_rn(__fmul_rn(d, q - 1), m.scale);
        } else {
            out[i] = __fmul_rn(d, q);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) decode_embed(const State* state, Matrix embedding, float* residual) {
    pdl_wait();
    u32 token = load_u32(&state->token);
    for (u32 eight = blockIdx.x * blockDim.x + threadIdx.x; eight < embedding.columns / 8; eight += gridDim.x * blockDim.x) {
        float out[8];
        if (token < embedding.rows) {
#define EMBED(F) embed_eight<F>(embedding, token, eight, out)
            FOR_FORMAT(embedding.format, EMBED)
#undef EMBED
        } else {
            for (u32 i = 0; i < 8; i++) out[i] = __uint_as_float(0x7fffffff);
        }
        ((float4*)residual)[2 * eight] = make_float4(out[0], out[1], out[2], out[3]);
        ((float4*)residual)[2 * eight + 1] = make_float4(out[4], out[5], out[6], out[7]);
    }
}

// ---- projections ----

template <u32 R, u32 DEPTH> __device__ __forceinline__ void project(const Project& p) {
    extern __shared__ uint4 shared[];
    __shared__ Exchange<R> exchange;
    const u32 columns = p.matrix[0].columns;
    Lane l;
    Steps steps(columns, l);
    Activations x(shared, columns);
    Quantization q = {p.x, p.norm, p.quantized, columns, false, p.epsilon};
    for (u32 m = 0; m < p.matrices; m++) q.whole_row |= p.matrix[m].format == TERNARY;
    u32 ring[RING_WORDS];
    float factor = 1;
    bool ready = false;
    u32 units_before = 0, rows_before = 0, done = 0;
    for (u32 m = 0; m < p.matrices; m++) {
        const Matrix w = p.matrix[m];
        u32 tiles = (w.rows + 7) / 8, units = (tiles + R - 1) / R;
        // Units go round the blocks, those of all matrices in one row.
        u32 unit = (blockIdx.x + gridDim.x - units_before % gridDim.x) % gridDim.x;
        auto at = [&](u32 unit) -> Unit {
            u32 tile = unit * R;
            return {{tile, tile + R / 2}, tile < tiles ? min_u32(R, tiles - tile) : 0};
        };
        if (unit < units) {
            Unit here = at(unit);
#define FILL(F) fill_ring<F, R, DEPTH>(ring, w, w, here, steps, l)
            FOR_FORMAT(w.format, FILL)
#undef FILL
            if (!ready) {
                if (w.bias && threadIdx.x == 0) prefetch(w.bias + unit * (R * 8));
                prefetch_norm(p.norm, columns);
                pdl_wait();
                factor = quantize_input(q, shared, exchange);
                ready = true;
            }
        }
        for (; unit < units; unit += gridDim.x, done++) {
            u32 row = unit * (R * 8) + l.lane;
            bool writes = l.warp == done % l.warps && l.lane < R * 8 && row < w.rows;
            float* y = p.y + rows_before + row;
            float bias = 0, before = 0;
            if (writes && w.bias) bias = __ldg(w.bias + row);
            if (writes && p.add) before = load1(y);
            Unit here = at(unit), next = at(unit + gridDim.x);
            float sums[R];
#define RUN(F) run_unit<F, R, DEPTH>(ring, sums, w, w, here, next, steps, l, x)
            FOR_FORMAT(w.format, RUN)
#undef RUN
            store_sums<R>(sums, exchange.sums[done % 2][l.warp], l);
            float all = writes ? factor * late_factor(q, exchange) * w.scale : 0;
            __syncthreads();
            if (writes) *y = before + fmaf(row_sum(exchange, done % 2, l.lane, l.warps), all, bias);
        }
        units_before += units, rows_before += w.rows;
    }
    if (!ready) pdl_wait();
}

extern "C" __global__ void __launch_bounds__(PROJECT_WARPS * 32, 2) decode_project1(Project p) { project<1, 8>(p); }
extern "C" __global__ void __launch_bounds__(PROJECT_WARPS * 32, 2) decode_project2(Project p) { project<2, 4>(p); }
extern "C" __global__ void __launch_bounds__(PROJECT_WARPS * 32, 2) decode_project4(Project p) { project<4, 2>(p); }

// ---- gate and up ----

__device__ __forceinline__ float activate(u32 activation, float gate, float up) {
    if (activation == 0) return gate / (1.0f + __expf(-gate)) * up;
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

// Four tiles of each matrix, in two formats: one after the other, and nothing is on its way meanwhile.
__device__ void run_mixed(u32 (&ring)[RING_WORDS], float* out, const GateUp& p, u32 unit, const Steps& steps, const Lane& l,
                          const Activations& x) {
    for (u32 half = 0; half < 2; half++) {
        const Matrix w = half == 0 ? p.gate : p.up;
        Unit here = {{unit * 4, unit * 4 + 2}, 4}, none = {{0, 0}, 0};
        float sums[4];
#define MIXED(F)                                        \
    fill_ring<F, 4, 1>(ring, w, w, here, steps, l); \
    run_unit<F, 4, 1>(ring, sums, w, w, here, none, steps, l, x)
        FOR_FORMAT(w.format, MIXED)
#undef MIXED
        store_sums<4>(sums, out + half * 32, l);
    }
}

extern "C" __global__ void __launch_bounds__(PROJECT_WARPS * 32, 2) decode_gate_up(GateUp p) {
    extern __shared__ uint4 shared[];
    __shared__ Exchange<8> exchange;
    const u32 columns = p.gate.columns, units = p.gate.rows / 32;
    Lane l;
    Steps steps(columns, l);
    Activations x(shared, columns);
    bool mixed = p.gate.format != p.up.format, whole_row = p.gate.format == TERNARY || p.up.format == TERNARY;
    Quantization q = {p.x, p.norm, {0, 0}, columns, whole_row, p.epsilon};
    u32 ring[RING_WORDS];
    auto at = [&](u32 unit) -> Unit { return {{unit * 4, unit * 4}, unit < units ? 8u : 0u}; };
    u32 unit = blockIdx.x, done = 0;
    if (!mixed) {
        Unit here = at(unit);
#define FILL(F) fill_ring<F, 8, 1>(ring, p.gate, p.up, here, steps, l)
        FOR_FORMAT(p.gate.format, FILL)
#undef FILL
    }
    prefetch_norm(p.norm, columns);
    pdl_wait();
    float factor = quantize_input(q, shared, exchange);
    for (; unit < units; unit += gridDim.x, done++) {
        bool writes = l.warp == done % l.warps;
        float gate_bias = 0, up_bias = 0;
        if (writes && p.gate.bias) gate_bias = __ldg(p.gate.bias + unit * 32 + l.lane);
        if (writes && p.up.bias) up_bias = __ldg(p.up.bias + unit * 32 + l.lane);
        float* out = exchange.sums[done % 2][l.warp];
        if (mixed) {
            run_mixed(ring, out, p, unit, steps, l, x);
        } else {
            Unit here = at(unit), next = at(unit + gridDim.x);
            float sums[8];
#define RUN(F) run_unit<F, 8, 1>(ring, sums, p.gate, p.up, here, next, steps, l, x)
            FOR_FORMAT(p.gate.format, RUN)
#undef RUN
            store_sums<8>(sums, out, l);
        }
        float all = writes ? factor * late_factor(q, exchange) : 0;
        __syncthreads();
        if (writes) {
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

extern "C" __global__ void __launch_bounds__(PROJECT_WARPS * 32, 2) decode_head(Head p) {
    extern __shared__ uint4 shared[];
    __shared__ Exchange<8> exchange;
    const u32 columns = p.matrix.columns, rows = p.matrix.rows, tiles = (rows + 7) / 8, units = (tiles + 7) / 8;
    Lane l;
    Steps steps(columns, l);
    Activations x(shared, columns);
    Quantization q = {p.x, p.norm, {0, 0}, columns, p.matrix.format == TERNARY, p.epsilon};
    u32 ring[RING_WORDS];
    auto at = [&](u32 unit) -> Unit {
        u32 tile = unit * 8;
        return {{tile, tile + 4}, tile < tiles ? min_u32(8, tiles - tile) : 0};
    };
    u32 unit = blockIdx.x, done = 0;
    Unit here = at(unit);
#define FILL(F) fill_ring<F, 8, 1>(ring, p.matrix, p.matrix, here, steps, l)
    FOR_FORMAT(p.matrix.format, FILL)
#undef FILL
    prefetch_norm(p.norm, columns);
    pdl_wait();
    float factor = quantize_input(q, shared, exchange);
    for (; unit < units; unit += gridDim.x, done++) {
        here = at(unit);
        Unit next = at(unit + gridDim.x);
        float sums[8];
#define RUN(F) run_unit<F, 8, 1>(ring, sums, p.matrix, p.matrix, here, next, steps, l, x)
        FOR_FORMAT(p.matrix.format, RUN)
#undef RUN
        store_sums<8>(sums, exchange.sums[done % 2][l.warp], l);
        bool writes = l.warp == done % l.warps;
        float all = writes ? factor * late_factor(q, exchange) * p.matrix.scale : 0;
        __syncthreads();
        if (writes) {
            u32 row = unit * HEAD_ROWS + l.lane;
            const float NONE = __uint_as_float(0xff800000);
            float low = NONE, high = NONE;
            bool bad = false;
            if (row < rows) {
                low = row_sum(exchange, done % 2, l.lane, l.warps) * all + (p.matrix.bias ? __ldg(p.matrix.bias + row) : 0);
                p.logits[row] = low, bad = magnitude(low) >= INFINITE;
            }
            if (row + 32 < rows) {
                high = row_sum(exchange, done % 2, 32 + l.lane, l.warps) * all +
                       (p.matrix.bias ? __ldg(p.matrix.bias + row + 32) : 0);
                p.logits[row + 32] = high, bad |= magnitude(high) >= INFINITE;
            }
            Partial partial = partial_of(low, high, unit * HEAD_ROWS, l.lane, bad);
            if (l.lane == 0) *(uint4*)(p.partials + unit) = *(uint4*)&partial;
        }
    }
}

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
        best = better(best, {shuffle_xor(best.max, mask), shuffle_xor(best.row, mask), (bool)shuffle_xor((u32)best.bad, mask)});
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
