// The GEMM of prefill.
//
// y[token][row] = sum over columns of weight[row][column] * x[token][column]: the weights are the A operand of the
// mma (16 rows x 16 columns), the tokens its B operand (8 tokens). A lane of the A operand holds row l>>2 of an 8-row
// tile and four columns of an mma, and in the tile layout lane l holds group l&3 of row l>>2. So mma j of a step (8
// of them make 128 columns) takes columns 32 c + 4 j + {0, 1, 2, 3} from lane c = l&3: each lane dequantizes its own
// group, straight into the operand's registers, with one scale. The activations are stored in that order
// (`permuted_column`), and ldmatrix does the rest.
//
// Sums: one f32 accumulator an output, mma after mma in that order of columns. Which rows and tokens share a thread
// block does not matter to it, so the bits are the same for every shape of a launch.
#pragma once
#include "group.cuh"

// Where column `column` of an activation row is stored.
__device__ __forceinline__ u32 permuted_column(u32 column) {
    u32 c = column / 32 % 4, j = column / 4 % 8, pair = column / 2 % 2;
    return column / 128 * 128 + j * 16 + pair * 8 + c * 2 + column % 2;
}

// act(gate) * up, of the FFN: 0 SiLU, 1 squared ReLU.
__device__ __forceinline__ float activate(u32 activation, float gate, float up) {
    if (activation == 0) return __fdividef(gate, 1.0f + __expf(-gate)) * up;
    float positive = gate < 0.0f ? 0.0f : gate;  // NaN stays.
    return positive * positive * up;
}

enum Mode : u32 { STORE, ADD, GATE_UP };

struct PrefillGemm {
    Matrix matrices[3];  // STORE: `count` of them, their outputs one after the other; ADD: one; GATE_UP: gate and up,
                         // of one format
    const __half* x;     // (tokens, x_stride), columns permuted, zeros from `columns` on
    const float* row_scale;  // (tokens), or NULL: x_scale for all
    float* y;                // (tokens, y_stride)
    __half* y_half;  // GATE_UP: NULL, or instead of y (tokens, y_stride) as the x of the next GEMM, times y_scale
    u32* turns;      // ADD in several parts: a zero for each thread block of a part; zeros again after. Else NULL.
    u32 count, tokens, x_stride, y_stride;
    u32 mode;
    u32 activation;  // 0 SiLU, 1 squared ReLU
    float x_scale;
    float y_scale;  // a power of two
};
static_assert(sizeof(PrefillGemm) == 264, "as in Rust");

// ADD adds long sums in parts, the first ones first: parts of a matrix, whatever the launch. With as many thread
// blocks in z as parts, each of them takes one; with one it takes all.
inline __host__ __device__ u32 gemm_parts(u32 mode, u32 columns) {
    u32 parts = mode == ADD ? columns / 2048 : 1;
    return parts < 1 ? 1 : parts > 4 ? 4 : parts;
}

// A thread block: WARPS_ROWS x WARPS_TOKENS warps, each ROW_TILES * 16 rows x TOKEN_TILES * 8 tokens.
template <int ROW_TILES, int TOKEN_TILES, int WARPS_ROWS, int WARPS_TOKENS, int STAGES_>
struct Shape {
    static constexpr int M_TILES = ROW_TILES, N_TILES = TOKEN_TILES, WARPS_M = WARPS_ROWS, WARPS_N = WARPS_TOKENS;
    static constexpr int THREADS = 32 * WARPS_M * WARPS_N;
    static constexpr int ROWS = 16 * M_TILES * WARPS_M, TOKENS = 8 * N_TILES * WARPS_N;
    static constexpr int TILES = ROWS / 8, PAIRS = TILES / 2 / (WARPS_M * WARPS_N);  // PAIRS: that a warp copies
    static constexpr int STAGES = STAGES_;
    static constexpr bool MANY = ROW_TILES * TOKEN_TILES > 4;  // sums: registers are scarce
    static constexpr int X_ROW_BYTES =
        272;  // 128 halves, and 16 bytes so that ldmatrix finds 8 tokens in 8 different banks
    static constexpr int X_BYTES = TOKENS * X_ROW_BYTES;
};

// The host's side: dynamic shared memory of a launch. `tile_bytes`: the most among the matrices' formats.
inline __host__ __device__ u32 gemm_tile_bytes(u32 format) {
    return format == Q4_0                     ? 576
           : format == Q5_0                   ? 704
           : format == Q8_0                   ? 1088
           : format == Q6_K                   ? 848
           : format == TERNARY                ? 272
           : format == Q4_1 || format == Q4_K ? 640
                                              : 768;
}
inline __host__ __device__ u32 gemm_stage(u32 rows, u32 tokens, u32 tile_bytes) {
    return tokens * 272 + rows / 8 * tile_bytes;
}
inline __host__ __device__ u32 gemm_shared(u32 rows, u32 tokens, u32 stages, u32 tile_bytes) {
    u32 pipeline = stages * gemm_stage(rows, tokens, tile_bytes), outputs = tokens * (rows + 4) * 4;
    return pipeline > outputs ? pipeline : outputs;
}

// What a thread block works on.
template <class S>
struct Work {
    const PrefillGemm& p;
    u32 matrix;     // the first, for GATE_UP
    u32 first_row;  // of the matrix
    u32 first_token;
    u32 first_output;  // of the matrix, among all outputs
    u32 groups, format;
    bool has_scales;

    static __device__ __forceinline__ Work of(const PrefillGemm& p) {
        Work work = {p, 0, 0, blockIdx.x * S::TOKENS, 0, p.matrices[0].columns / 32, 0, false};
        u32 rows = p.mode == GATE_UP ? S::ROWS / 2 : S::ROWS, index = blockIdx.y + fresh_zero();
        for (u32 m = 0; m + 1 < p.count && p.mode != GATE_UP; m++) {
            u32 blocks = (p.matrices[m].rows + rows - 1) / rows;
            if (index < blocks) break;
            index -= blocks;
            work.first_output += p.matrices[m].rows;
            work.matrix = m + 1;
        }
        work.first_row = index * rows;
        work.format = p.matrices[work.matrix].format;
        work.has_scales = p.matrices[work.matrix].scales;
        return work;
    }

    // The matrix and the tile in it that tile `t` of the thread block is.
    __device__ __forceinline__ const Matrix& source(u32 t, u32& tile) const {
        if (p.mode == GATE_UP) {
            tile = first_row / 8 + t / 4 * 2 + t % 2;
            return p.matrices[t / 2 % 2];
        }
        tile = first_row / 8 + t;
        return p.matrices[matrix];
    }
};

// Copies what a step needs of a plane of two tiles: `bytes` (a power of two) of each, of which there are `step_bytes`
// in this step. `from`: of the first tile; the second one is `further` bytes behind.
__device__ __forceinline__ void copy_plane(u32 shared, const u8* from, u64 further, u32 bytes, u32 step_bytes) {
    const u32 lane = threadIdx.x % 32;
    if (bytes >= 512) {
#pragma unroll
        for (u32 at = 0; at < 2 * bytes; at += 512) {
            u32 byte = min(at % bytes + lane * 16, step_bytes - 16);
            copy_16(shared + at + lane * 16, from + (at >= bytes ? further : 0) + byte);
        }
    } else {
        u32 at = lane * 16, byte = min(at & (bytes - 1), step_bytes - 16);
        if (at < 2 * bytes) copy_16(shared + at, from + (at >= bytes ? further : 0) + byte);
    }
}

// Each warp copies some tiles of the thread block, two by two: two that lie one behind the other in a matrix. What is
// past the matrix's last tile or the row's last group is copied from the last one, and not used.
template <class S, u32 KIND>
__device__ __forceinline__ void copy_weights(const Work<S>& work, u32 shared, u32 step) {
    constexpr u32 CODES = Planes<KIND>::CODES, HIGH = Planes<KIND>::HIGH;
    const u32 groups = work.groups, format = work.format, left = groups - 4 * step,
              in_step = 8 * (left < 4 ? left : 4);
    const u32 fresh = fresh_zero<S::MANY>();
#pragma unroll
    for (u32 pair = 0; pair < S::PAIRS; pair++) {
        const u32 t = (threadIdx.x / 32 * S::PAIRS + pair) * 2 + fresh;
        u32 tile;
        const Matrix& matrix = work.source(t, tile);
        const u32 last = (matrix.rows - 1) / 8, first = min(tile, last), second = min(tile + 1, last) - first;
        const u64 group = first * (groups * 8) + step * 32, further = second * (groups * 8);
        u32 to = shared;
        copy_plane(to + t * (32 * CODES), matrix.codes + group * CODES, further * CODES, 32 * CODES, in_step * CODES);
        to += S::TILES * 32 * CODES;
        if (HIGH > 0)
            copy_plane(to + t * (32 * HIGH), matrix.high + group * HIGH, further * HIGH, 32 * HIGH, in_step * HIGH);
        to += S::TILES * 32 * HIGH;
        const u64 super = (first * (groups / 8) + step / 2) * 8, super_further = second * (groups / 8 * 8);
        if (KIND == TWO) {
            if (work.has_scales) copy_plane(to + t * 16, matrix.scales + super * 2, super_further * 2, 16, 16);
        } else if (KIND != SIX && KIND != EIGHT && (format == Q4_K || format == Q5_K)) {
            copy_plane(to + t * 128, matrix.scales + super * 16, super_further * 16, 128, 128);
        } else {
            const u32 bytes = scale_bytes(format), each = bytes / 32;
            copy_plane(to + t * bytes, matrix.scales + group * each, further * each, bytes, in_step * each);
        }
        if (KIND == SIX)
            copy_plane(to + S::TILES * 64 + t * 16, matrix.supers + super * 2, super_further * 2, 16, 16);
    }
}

template <class S>
__device__ __forceinline__ void copy_x(const Work<S>& work, u32 shared, u32 step) {
    constexpr u32 AT_ONCE = S::THREADS / 16;
    const u32 token = work.first_token + threadIdx.x / 16 + fresh_zero<S::MANY>(), chunk = threadIdx.x % 16,
              last = work.p.tokens - 1;
    const __half* from = work.p.x + step * 128 + chunk * 8;
    shared += threadIdx.x / 16 * S::X_ROW_BYTES + chunk * 16;
#pragma unroll
    for (u32 t = 0; t < S::TOKENS; t += AT_ONCE)
        copy_16(shared + t * S::X_ROW_BYTES, from + (u64)min(token + t, last) * work.p.x_stride);
}

// The sums of a step.
template <class S, u32 KIND>
__device__ __forceinline__ void multiply(float (&sums)[S::M_TILES][S::N_TILES][4], const u8* weights, u32 x,
                                         u32 thread, const Place& place, u32 format, bool has_scales) {
    const u32 warp_m = thread / 32 % S::WARPS_M;
    constexpr int GROUPS = 2 * S::M_TILES;
    const u8* scales = weights + S::TILES * 32 * (Planes<KIND>::CODES + Planes<KIND>::HIGH);
    const u32 tile = warp_m * GROUPS;
    Group<KIND> groups[GROUPS];
#pragma unroll
    for (int g = 0; g < GROUPS; g++) groups[g].template load_codes<S::TILES>(weights, tile + g, place);
    if (KIND == SIX) {
#pragma unroll
        for (int g = 0; g < GROUPS; g++) groups[g].load_bytes(scales, scales + S::TILES * 64, tile + g, place);
    } else if (KIND == TWO) {
#pragma unroll
        for (int g = 0; g < GROUPS; g++) groups[g].load_ternary(scales, tile + g, place, has_scales);
    } else if (KIND == EIGHT || format == Q4_0 || format == Q5_0) {
#pragma unroll
        for (int g = 0; g < GROUPS; g++) groups[g].load_scale(scales, tile + g, place);
    } else if (format == Q4_1 || format == Q5_1) {
#pragma unroll
        for (int g = 0; g < GROUPS; g++) groups[g].load_scale_and_minimum(scales, tile + g, place);
    } else {
#pragma unroll
        for (int g = 0; g < GROUPS; g++) groups[g].load_super(scales, tile + g, place);
    }
    const u32 eight = thread % 32 / 8, warp_n = thread / 32 / S::WARPS_M;
    x += (warp_n * S::N_TILES * 8 + eight / 2 * 8 + thread % 8) * S::X_ROW_BYTES + eight % 2 * 16;
    // Half a group at a time: in a loop where both at once would not fit the registers.
    constexpr int AT_ONCE = S::MANY && KIND != FOUR && KIND != EIGHT ? 1 : 2;
#pragma unroll AT_ONCE
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u32 a[S::M_TILES][2][4];  // of two mma's
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                u32 pairs[4];
                groups[g].values(i, pairs);
                a[g / 2][0][g % 2] = pairs[0], a[g / 2][0][2 + g % 2] = pairs[1];
                a[g / 2][1][g % 2] = pairs[2], a[g / 2][1][2 + g % 2] = pairs[3];
            }
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int n = 0; n < S::N_TILES; n += 2) {
                    u32 b[4];
                    load_matrices(b, x + n * 8 * S::X_ROW_BYTES + (2 * i + j) * 32);
#pragma unroll
                    for (int m = 0; m < S::M_TILES; m++) {
                        mma(sums[m][n], a[m][j], b[0], b[1]);
                        mma(sums[m][n + 1], a[m][j], b[2], b[3]);
                    }
                }
        }
        x += 128;
#pragma unroll
        for (int g = 0; g < GROUPS; g++) groups[g].second_half();
    }
}

// Sums to outputs: in shared memory, so that they leave in whole lines.
// With `first_part`: sums have the bias.
template <class S>
__device__ __forceinline__ void finish(const Work<S>& work, bool first_part, float (&sums)[S::M_TILES][S::N_TILES][4],
                                       float* shared) {
    const PrefillGemm& p = work.p;
    const u32 warp_m = threadIdx.x / 32 % S::WARPS_M, warp_n = threadIdx.x / 32 / S::WARPS_M;
    const u32 lane = threadIdx.x % 32, row = lane / 4, token = lane % 4 * 2;
    const bool gate_up = p.mode == GATE_UP;
    constexpr u32 stride = S::ROWS + 4;
    const u32 rows = gate_up ? S::ROWS / 2 : S::ROWS;
#pragma unroll
    for (int n = 0; n < S::N_TILES; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            u32 t = (warp_n * S::N_TILES + n) * 8 + token + e, at = work.first_token + t;
            float scale = !p.row_scale ? p.x_scale : at < p.tokens ? p.row_scale[at] : 0.0f;
#pragma unroll
            for (int m = 0; m < S::M_TILES; m++) sums[m][n][e] *= scale, sums[m][n][2 + e] *= scale;
        }
#pragma unroll
    for (int m = 0; m < S::M_TILES; m++) {
        u32 t0 = (warp_m * S::M_TILES + m) * 2, tile;
        const Matrix& matrix = work.source(t0, tile);
        // Two tiles of the same matrix, one after the other.
        float low = 0.0f, high = 0.0f;
        if (matrix.bias && first_part) {
            if (tile * 8 + row < matrix.rows) low = matrix.bias[tile * 8 + row];
            if (tile * 8 + 8 + row < matrix.rows) high = matrix.bias[tile * 8 + 8 + row];
        }
#pragma unroll
        for (int n = 0; n < S::N_TILES; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                sums[m][n][e] = __fadd_rn(__fmul_rn(sums[m][n][e], matrix.scale), low);
                sums[m][n][2 + e] = __fadd_rn(__fmul_rn(sums[m][n][2 + e], matrix.scale), high);
            }
    }
#pragma unroll
    for (int m = 0; m < S::M_TILES; m++)
#pragma unroll
        for (int n = 0; n < S::N_TILES; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                u32 t = (warp_n * S::N_TILES + n) * 8 + token + e % 2;
                shared[t * stride + (warp_m * S::M_TILES + m) * 16 + e / 2 * 8 + row] = sums[m][n][e];
            }
    __syncthreads();
    const u32 all_rows = p.matrices[work.matrix].rows;
    if (gate_up && p.y_half) {
        __half* y = p.y_half + (u64)work.first_token * p.y_stride;
        for (u32 i = threadIdx.x; i < S::TOKENS * rows / 2; i += S::THREADS) {
            // Pairs of columns in the order that they are stored in.
            u32 t = i / (rows / 2), pair = i % (rows / 2), blocks = rows < 32 ? 1 : rows / 32;
            u32 r = pair % blocks * 32 + pair / blocks * 2;
            if (work.first_token + t >= p.tokens || work.first_row + r >= all_rows) continue;
            const float2 *gate = (const float2*)(shared + t * stride + r / 16 * 32 + r % 16), *up = gate + 8;
            float a = activate(p.activation, gate->x, up->x), b = activate(p.activation, gate->y, up->y);
            *(u32*)(y + (u64)t * p.y_stride + permuted_column(work.first_row + r)) =
                pack(a * p.y_scale, b * p.y_scale);
        }
        return;
    }
    float* y = p.y + (u64)work.first_token * p.y_stride + work.first_output + work.first_row;
    const bool in_fours = (((u32)(u64)y / 4 | p.y_stride | all_rows) & 3) == 0;
    const u32 width = in_fours ? 4 : 1, per_token = rows / width;
    for (u32 i = threadIdx.x; i < S::TOKENS * per_token; i += S::THREADS) {
        u32 t = i / per_token, r = i % per_token * width;
        if (work.first_token + t >= p.tokens || work.first_row + r >= all_rows) continue;
        float* to = y + (u64)t * p.y_stride + r;
        // Of gate and up each has 16 rows in turn.
        const float* from = shared + t * stride + (gate_up ? r / 16 * 32 + r % 16 : r);
        if (in_fours) {
            float4 value = *(const float4*)from;
            if (p.mode == ADD) {
                float4 before = __ldcg((const float4*)to);
                value.x += before.x, value.y += before.y, value.z += before.z, value.w += before.w;
            }
            if (gate_up) {
                float4 up = *(const float4*)(from + 16);
                value.x = activate(p.activation, value.x, up.x), value.y = activate(p.activation, value.y, up.y);
                value.z = activate(p.activation, value.z, up.z), value.w = activate(p.activation, value.w, up.w);
            }
            *(float4*)to = value;
        } else {
            *to = gate_up ? activate(p.activation, *from, from[16]) : p.mode == ADD ? __ldcg(to) + *from : *from;
        }
    }
}

// Parts add to y in turn. Thread blocks begin in the order of their indices, z last: the one that is waited for has
// begun.
__device__ __forceinline__ void wait_for_turn(const u32* turn, u32 part) {
    if (threadIdx.x == 0) {
        u32 now;
        do {  // Not a weak load: the compiler may take the loop away where no other thread is meant to write.
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(turn) : "memory");
        } while (now != part);
    }
    __syncthreads();
}

__device__ __forceinline__ void end_turn(u32* turn, u32 part, u32 parts) {
    __threadfence();
    __syncthreads();
    u32 next = part + 1 == parts ? 0 : part + 1;
    if (threadIdx.x == 0) asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(turn), "r"(next) : "memory");
}

template <class S, u32 KIND>
__device__ __forceinline__ void sum_up(const Work<S>& work, float (&sums)[S::M_TILES][S::N_TILES][4], u8* shared,
                                       u32 first, u32 steps) {
    const u32 format = work.format, groups = work.groups;
    const u32 stage_bytes = gemm_stage(S::ROWS, S::TOKENS, gemm_tile_bytes(format));
    const u32 base = shared_address(shared);
    // Weights come from no other kernel: they may be on their way before its results are there.
    for (u32 s = 0; s < S::STAGES - 1; s++)
        if (first + s < steps) copy_weights<S, KIND>(work, base + s * stage_bytes + S::X_BYTES, first + s);
    pdl_wait();
    for (u32 s = 0; s < S::STAGES - 1; s++) {
        if (first + s < steps) copy_x<S>(work, base + s * stage_bytes, first + s);
        copy_commit();
    }
    u32 stage = 0;
    for (u32 s = first; s < steps; s++) {
        copy_wait<S::STAGES - 2>();
        __syncthreads();
        u32 next = s + S::STAGES - 1;
        if (next < steps) {
            u32 to = base + (stage == 0 ? S::STAGES - 1 : stage - 1) * stage_bytes;
            copy_x<S>(work, to, next);
            copy_weights<S, KIND>(work, to + S::X_BYTES, next);
        }
        copy_commit();
        const u32 left = groups - 4 * s, thread = threadIdx.x + fresh_zero<S::MANY>(), lane = thread % 32;
        Place place = {lane, lane / 4, lane % 4, true, s % 2 == 1};
        if (left < 4) {
            place.valid = place.kc < left;
            place.group = place.valid ? place.row * left + place.kc : 0;
        }
        multiply<S, KIND>(sums, shared + stage * stage_bytes + S::X_BYTES, base + stage * stage_bytes, thread, place,
                          format, work.has_scales);
        stage = stage + 1 == S::STAGES ? 0 : stage + 1;
    }
    copy_wait<0>();
    __syncthreads();
}

template <class S>
__device__ __forceinline__ void gemm(const PrefillGemm& p) {
    extern __shared__ __align__(128) u8 shared[];
    const u32 parts = gemm_parts(p.mode, p.matrices[0].columns), last_part = gridDim.z > 1 ? blockIdx.z : parts - 1;
    for (u32 part = gridDim.z > 1 ? blockIdx.z : 0; part <= last_part; part++) {
        const Work<S> work = Work<S>::of(p);
        float sums[S::M_TILES][S::N_TILES][4];
#pragma unroll
        for (int m = 0; m < S::M_TILES; m++)
#pragma unroll
            for (int n = 0; n < S::N_TILES; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) sums[m][n][e] = 0.0f;
        const u32 steps = (work.groups + 3) / 4, first = steps * part / parts, end = steps * (part + 1) / parts;
        switch (work.format) {
            case Q4_0:
            case Q4_1:
            case Q4_K: sum_up<S, FOUR>(work, sums, shared, first, end); break;
            case Q5_0:
            case Q5_1:
            case Q5_K: sum_up<S, FIVE>(work, sums, shared, first, end); break;
            case Q6_K: sum_up<S, SIX>(work, sums, shared, first, end); break;
            case Q8_0: sum_up<S, EIGHT>(work, sums, shared, first, end); break;
            case TERNARY: sum_up<S, TWO>(work, sums, shared, first, end); break;
        }
        u32* turn = p.turns + blockIdx.y * gridDim.x + blockIdx.x;
        if (gridDim.z > 1) wait_for_turn(turn, part);
        finish<S>(Work<S>::of(p), part == 0, sums, (float*)shared);
        if (gridDim.z > 1) end_turn(turn, part, parts);
        __syncthreads();
    }
}
