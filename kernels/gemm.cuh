// Tensor-core pieces that GEMM and attention share, and the GEMM of prefill.
//
// y[token][row] = sum over columns of weight[row][column] * x[token][column]: the weights are the A operand of the mma (16 rows
// x 16 columns), the tokens its B operand (8 tokens). A lane of the A operand holds row l>>2 of an 8-row tile and four columns
// of an mma, and in the tile layout lane l holds group l&3 of row l>>2. So mma j of a step (8 of them make 128 columns) takes
// columns 32 c + 4 j + {0, 1, 2, 3} from lane c = l&3: each lane dequantizes its own group, straight into the operand's
// registers, with one scale. The activations are stored in that order (`permuted_column`), and ldmatrix does the rest.
//
// Sums: one f32 accumulator an output, mma after mma in that order of columns. Which rows and tokens share a thread block does not
// matter to it, so the bits are the same for every shape of a launch.
#pragma once
#include "common.cuh"
#include <cuda_fp16.h>

// Where column `column` of an activation row is stored.
__device__ __forceinline__ u32 permuted_column(u32 column) {
    u32 c = column / 32 % 4, j = column / 4 % 8, pair = column / 2 % 2;
    return column / 128 * 128 + j * 16 + pair * 8 + c * 2 + column % 2;
}

// ---- Shared memory, copies, mma

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Copies 16 bytes to shared memory, or zeros. Asynchronously where the GPU can (sm_80).
__device__ __forceinline__ void copy_16(u32 shared, const void* from, bool valid = true) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(valid ? 16 : 0) : "memory");
#else
    uint4 value = make_uint4(0, 0, 0, 0);
    if (valid) value = *(const uint4*)from;
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// A zero that the compiler does not know: what is computed with it in a loop, it computes there, and keeps no register for it.
__device__ __forceinline__ u32 fresh_zero() {
    u32 zero = 0;
    asm volatile("" : "+r"(zero));
    return zero;
}

// Waits until at most `PENDING` groups of this thread's copies are under way.
template <int PENDING>
__device__ __forceinline__ void copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// Four 8x8 matrices of halves; lane l gives the address of row l%8 of matrix l/8.
__device__ __forceinline__ void load_matrices(u32 (&out)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared)
                 : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(u32 (&out)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared)
                 : "memory");
}

// sums (16 x 8) += a (16 x 16) * b (16 x 8).
__device__ __forceinline__ void mma(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

__device__ __forceinline__ u32 bits(__half2 x) { return *(u32*)&x; }
__device__ __forceinline__ __half2 halves(u32 x) { return *(__half2*)&x; }
__device__ __forceinline__ __half2 both(__half x) { return __half2half2(x); }
__device__ __forceinline__ u32 pack(float low, float high) { return bits(__floats2half2_rn(low, high)); }

// act(gate) * up, of the FFN: 0 SiLU, 1 squared ReLU.
__device__ __forceinline__ float activate(u32 activation, float gate, float up) {
    if (activation == 0) return __fdividef(gate, 1.0f + __expf(-gate)) * up;
    float positive = gate < 0.0f ? 0.0f : gate;  // NaN stays.
    return positive * positive * up;
}

// ---- Weights: a lane's group of 32, from shared memory to fp16
//
// Every weight is q * scale + minimum in one fused operation on halves. Codes are integers up to 255 here, exact; a scale is one
// half (K-quants: the f32 product of super-block and block scale, rounded once, and so is a minimum); formats with an offset z have
// the minimum -z * scale, which is exact. So a weight is rounded once more than its scale, and ternary ones not at all.

// Formats that differ only in their scales share the code of a kind: bits of a code.
enum Kind : u32 { TWO = 2, FOUR = 4, FIVE = 5, SIX = 6, EIGHT = 8 };

// Bytes of a group in the planes of codes.
template <u32 KIND>
struct Planes {
    static constexpr int CODES = KIND == TWO ? 8 : KIND == EIGHT ? 32 : 16;
    static constexpr int HIGH = KIND == FIVE ? 4 : KIND == SIX ? 8 : 0;
};

// Bytes of a tile and step in the planes of scales, first and second.
__device__ __forceinline__ u32 scale_bytes(u32 format) {
    return format == Q4_0 || format == Q5_0 || format == Q8_0 || format == Q6_K ? 64 : format == TERNARY ? 16 : 128;
}

// (a & b) | c in one instruction.
__device__ __forceinline__ u32 and_or(u32 a, u32 b, u32 c) {
    u32 out;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
}

__device__ __forceinline__ __half2 constant(float value) { return __float2half2_rn(value); }

// Left by a positive, right by a negative count (known at compile time).
__device__ __forceinline__ u32 shift(u32 x, int by) { return by >= 0 ? x << by : x >> -by; }

constexpr u32 ONES = 0x64006400;  // Two halves of 1024: bits added below are added as integers.

// Where a lane's group is in the planes of a tile, in a step.
struct Place {
    u32 group;  // row * groups of the step + group
    u32 row, kc;
    bool valid;  // The last step may have fewer than four groups: then the lane has zeros.
    bool odd;    // The second half of a super-block.
};

// Codes and scales of a group.
template <u32 KIND>
struct Group {
    static constexpr int CODES = Planes<KIND>::CODES, HIGH = Planes<KIND>::HIGH;
    static constexpr int SCALES = KIND == SIX ? 2 : 1;
    u32 codes[CODES / 4];
    u32 high[HIGH / 4 + 1];
    __half2 scale[SCALES], minimum[SCALES];

    // From the planes of all TILES tiles of the thread block in shared memory, one plane after the other.
    template <int TILES>
    __device__ __forceinline__ void load_codes(const u8* planes, u32 tile, const Place& place) {
        const u8* from = planes + tile * (32 * CODES) + place.group * CODES;
        if (CODES == 8) {
            uint2 w = *(const uint2*)from;
            codes[0] = w.x, codes[1] = w.y;
        } else {
#pragma unroll
            for (int i = 0; i < CODES / 16; i++) {
                uint4 w = ((const uint4*)from)[i];
                codes[4 * i] = w.x, codes[4 * i + 1] = w.y, codes[4 * i + 2] = w.z, codes[4 * i + 3] = w.w;
            }
        }
        from = planes + TILES * 32 * CODES + tile * (32 * HIGH) + place.group * HIGH;
        if (HIGH == 4) high[0] = *(const u32*)from;
        if (HIGH == 8) {
            uint2 h = *(const uint2*)from;
            high[0] = h.x, high[HIGH / 8] = h.y;
        }
    }

    // `scales`: the plane of tile 0. Q4_0, Q5_0, Q8_0: value = scale * (q - offset).
    __device__ __forceinline__ void load_scale(const u8* scales, u32 tile, const Place& place) {
        u32 d = *(const u16*)(scales + tile * 64 + place.group * 2);
        scale[0] = halves(place.valid ? d * 0x10001 : 0);
        minimum[0] = KIND == EIGHT ? constant(0) : __hmul2(scale[0], constant(KIND == FIVE ? -16 : -8));
    }

    // Q4_1, Q5_1.
    __device__ __forceinline__ void load_scale_and_minimum(const u8* scales, u32 tile, const Place& place) {
        __half2 both = halves(place.valid ? *(const u32*)(scales + tile * 128 + place.group * 4) : 0);
        scale[0] = __low2half2(both), minimum[0] = __high2half2(both);
    }

    // Q4_K, Q5_K.
    __device__ __forceinline__ void load_super(const u8* scales, u32 tile, const Place& place) {
        const uint4 super = *(const uint4*)(scales + tile * 128 + place.row * 16);
        // 24 bits of each kc, little-endian in y, z, w.
        u32 low = place.kc < 2 ? super.y : place.kc == 2 ? super.z : super.w;
        u32 above = place.kc < 2 ? super.z : super.w;
        u32 six = __funnelshift_r(low, above, place.kc * 24) >> (place.odd ? 12 : 0);
        float2 both = __half22float2(halves(super.x));
        scale[0] = __float2half2_rn(both.x * (float)(six & 63));
        minimum[0] = __float2half2_rn(-(both.y * (float)(six >> 6 & 63)));
    }

    // Q6_K.
    __device__ __forceinline__ void load_bytes(const u8* scales, const u8* supers, u32 tile, const Place& place) {
        float d = __half2float(((const __half*)(supers + tile * 16))[place.row]);
        u32 s = *(const u16*)(scales + tile * 64 + place.group * 2);
        scale[0] = __float2half2_rn(d * (float)(signed char)(s & 255));
        scale[SCALES - 1] = __float2half2_rn(d * (float)(signed char)(s >> 8));
        minimum[0] = __hmul2(scale[0], constant(-32)), minimum[SCALES - 1] = __hmul2(scale[SCALES - 1], constant(-32));
    }

    // Ternary.
    __device__ __forceinline__ void load_ternary(const u8* scales, u32 tile, const Place& place, bool has_scales) {
        scale[0] = has_scales ? __half2half2(((const __half*)(scales + tile * 16))[place.row]) : constant(1);
        minimum[0] = __hneg2(scale[0]);
    }

    // Makes columns 16 .. 32 the ones that `values` gives.
    __device__ __forceinline__ void second_half() {
#pragma unroll
        for (int i = 0; i < CODES / 8; i++) codes[i] = codes[CODES / 8 + i];
        if (KIND == FIVE) high[0] >>= 4;
        if (KIND == SIX) high[0] = high[HIGH / 8], scale[0] = scale[SCALES - 1], minimum[0] = minimum[SCALES - 1];
    }

    // Columns 8 i .. 8 i + 8 of the first half, in pairs.
    __device__ __forceinline__ void values(int i, u32 (&out)[4]) const {
        __half2 q[4];
        if (KIND == EIGHT) {
            constexpr u32 BYTES = 0x64646464;
            // Signed bytes + 128, each as the low byte of a half of 1024.
            u32 even = codes[2 * i % (CODES / 4)] ^ 0x80808080, odd = codes[(2 * i + 1) % (CODES / 4)] ^ 0x80808080;
            const __half2 offset = constant(-1152);
            q[0] = __hadd2(halves(__byte_perm(even, BYTES, 0x4240)), offset);
            q[1] = __hadd2(halves(__byte_perm(odd, BYTES, 0x4240)), offset);
            q[2] = __hadd2(halves(__byte_perm(even, BYTES, 0x4341)), offset);
            q[3] = __hadd2(halves(__byte_perm(odd, BYTES, 0x4341)), offset);
        } else if (KIND == TWO) {
            u32 word = codes[0] >> (4 * i);
            // 1024 + q, and 1024 + 4 q.
            const __half2 offset = constant(-1024), quarter = constant(0.25f), offset_4 = constant(-256);
            q[0] = __hadd2(halves(and_or(word, 0x00030003, ONES)), offset);
            q[1] = __hfma2(halves(and_or(word, 0x000c000c, ONES)), quarter, offset_4);
            word >>= 8;
            q[2] = __hadd2(halves(and_or(word, 0x00030003, ONES)), offset);
            q[3] = __hfma2(halves(and_or(word, 0x000c000c, ONES)), quarter, offset_4);
        } else {
            u32 low = codes[i], a = ONES, b = ONES, c = ONES, d = ONES;
            // What goes above the four bits of the code: at bit 4 for the first and third pair, at bit 8 for the others.
            if (KIND == FIVE) {
                u32 h = high[0];
                a = and_or(shift(h, 4 - 2 * i), 0x00100010, ONES), b = and_or(shift(h, 7 - 2 * i), 0x01000100, ONES);
                c = and_or(shift(h, -4 - 2 * i), 0x00100010, ONES), d = and_or(shift(h, -1 - 2 * i), 0x01000100, ONES);
            } else if (KIND == SIX) {
                u32 h = high[0];
                int s = 4 * i;
                a = and_or(shift(h, 4 - s), 0x00300030, ONES), b = and_or(shift(h, 6 - s), 0x03000300, ONES);
                c = and_or(shift(h, -4 - s), 0x00300030, ONES), d = and_or(shift(h, -2 - s), 0x03000300, ONES);
            }
            // 1024 + q, and 1024 + 16 q.
            const __half2 offset = constant(-1024), sixteenth = constant(0.0625f), offset_16 = constant(-64);
            q[0] = __hadd2(halves(and_or(low, 0x000f000f, a)), offset);
            q[1] = __hfma2(halves(and_or(low, 0x00f000f0, b)), sixteenth, offset_16);
            low >>= 8;
            q[2] = __hadd2(halves(and_or(low, 0x000f000f, c)), offset);
            q[3] = __hfma2(halves(and_or(low, 0x00f000f0, d)), sixteenth, offset_16);
        }
#pragma unroll
        for (int p = 0; p < 4; p++) out[p] = bits(__hfma2(q[p], scale[0], minimum[0]));
    }
};

// ---- The GEMM

enum Mode : u32 { STORE, ADD, GATE_UP };

struct PrefillGemm {
    Matrix matrices[3];      // STORE: `count` of them, their outputs one after the other; ADD: one; GATE_UP: gate and up, of one format
    const __half* x;         // (tokens, x_stride), columns permuted, zeros from `columns` on
    const float* row_scale;  // (tokens), or NULL: x_scale for all
    float* y;                // (tokens, y_stride)
    __half* y_half;          // GATE_UP: NULL, or instead of y (tokens, y_stride) as the x of the next GEMM, times y_scale
    u32* turns;              // ADD in several parts: a zero for each thread block of a part; zeros again after. Else NULL.
    u32 count, tokens, x_stride, y_stride;
    u32 mode;
    u32 activation;  // 0 SiLU, 1 squared ReLU
    float x_scale;
    float y_scale;  // a power of two
};
static_assert(sizeof(PrefillGemm) == 264, "as in Rust");

// ADD adds long sums in parts, the first ones first: parts of a matrix, whatever the launch. With as many thread blocks in z as
// parts, each of them takes one; with one it takes all.
inline __host__ __device__ u32 gemm_parts(u32 mode, u32 columns) { return mode == ADD && columns >= 8192 ? columns / 4096 : 1; }

// A thread block: WARPS_ROWS x WARPS_TOKENS warps, each ROW_TILES * 16 rows x TOKEN_TILES * 8 tokens.
template <int ROW_TILES, int TOKEN_TILES, int WARPS_ROWS, int WARPS_TOKENS, int STAGES_>
struct Shape {
    static constexpr int M_TILES = ROW_TILES, N_TILES = TOKEN_TILES, WARPS_M = WARPS_ROWS, WARPS_N = WARPS_TOKENS;
    static constexpr int THREADS = 32 * WARPS_M * WARPS_N;
    static constexpr int ROWS = 16 * M_TILES * WARPS_M, TOKENS = 8 * N_TILES * WARPS_N;
    static constexpr int TILES = ROWS / 8, PAIRS = TILES / 2 / (WARPS_M * WARPS_N);  // PAIRS: that a warp copies
    static constexpr int STAGES = STAGES_;
    static constexpr bool HOPPER = false;
    static constexpr int X_ROW_BYTES = 272;  // 128 halves, and 16 bytes so that ldmatrix finds 8 tokens in 8 different banks
    static constexpr int X_BYTES = TOKENS * X_ROW_BYTES;
};

// The host's side: dynamic shared memory of a launch. `tile_bytes`: the most among the matrices' formats.
inline __host__ __device__ u32 gemm_tile_bytes(u32 format) {
    return format == Q4_0   ? 576
           : format == Q5_0 ? 704
           : format == Q8_0 ? 1088
           : format == Q6_K ? 848
           : format == TERNARY ? 272
           : format == Q4_1 || format == Q4_K ? 640
                                              : 768;
}
inline __host__ __device__ u32 gemm_stage(u32 rows, u32 tokens, u32 tile_bytes, bool hopper) {
    return hopper ? (tokens * 256 + rows / 8 * tile_bytes + 1023) / 1024 * 1024 : tokens * 272 + rows / 8 * tile_bytes;
}
inline __host__ __device__ u32 gemm_shared(u32 rows, u32 tokens, u32 stages, u32 tile_bytes, bool hopper) {
    u32 pipeline = stages * gemm_stage(rows, tokens, tile_bytes, hopper), outputs = tokens * (rows + 4) * 4;
    return (pipeline > outputs ? pipeline : outputs) + (hopper ? 1024 : 0);
}

// What a thread block works on.
template <class S>
struct Work {
    const PrefillGemm& p;
    u32 matrix;      // the first, for GATE_UP
    u32 first_row;   // of the matrix
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

// Copies what a step needs of a plane of two tiles: `bytes` (a power of two) of each, of which there are `step_bytes` in this step.
// `from`: of the first tile; the second one is `further` bytes behind.
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

// Each warp copies some tiles of the thread block, two by two: two that lie one behind the other in a matrix. What is past the
// matrix's last tile or the row's last group is copied from the last one, and not used.
template <class S, u32 KIND>
__device__ __forceinline__ void copy_weights(const Work<S>& work, u32 shared, u32 step) {
    constexpr u32 CODES = Planes<KIND>::CODES, HIGH = Planes<KIND>::HIGH;
    const u32 groups = work.groups, format = work.format, left = groups - 4 * step, in_step = 8 * (left < 4 ? left : 4);
    const u32 fresh = fresh_zero();
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
        if (HIGH > 0) copy_plane(to + t * (32 * HIGH), matrix.high + group * HIGH, further * HIGH, 32 * HIGH, in_step * HIGH);
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
        if (KIND == SIX) copy_plane(to + S::TILES * 64 + t * 16, matrix.supers + super * 2, super_further * 2, 16, 16);
    }
}

template <class S>
__device__ __forceinline__ void copy_x(const Work<S>& work, u32 shared, u32 step) {
    constexpr u32 AT_ONCE = S::THREADS / 16;
    const u32 token = work.first_token + threadIdx.x / 16 + fresh_zero(), chunk = threadIdx.x % 16, last = work.p.tokens - 1;
    const __half* from = work.p.x + step * 128 + chunk * 8;
    if (S::HOPPER)  // Two panels of 64 columns, each with its tokens' eight chunks in an order that depends on the token.
        shared += chunk / 8 * S::TOKENS * 128 + threadIdx.x / 16 * 128 + (chunk % 8 ^ threadIdx.x / 16 % 8) * 16;
    else
        shared += threadIdx.x / 16 * S::X_ROW_BYTES + chunk * 16;
#pragma unroll
    for (u32 t = 0; t < S::TOKENS; t += AT_ONCE)
        copy_16(shared + t * S::X_ROW_BYTES, from + (u64)min(token + t, last) * work.p.x_stride);
}

// The sums of a step on Hopper (sm_90a): a warpgroup of four warps multiplies its 64 rows, in registers as above, with all tokens,
// straight from shared memory and while the next weights are made.
struct HopperBase {
    static constexpr int M_TILES = 1, WARPS_N = 1, PAIRS = 1, X_ROW_BYTES = 128;
    static constexpr bool HOPPER = true;
};

template <int WARPGROUPS, int TOKENS_, int STAGES_>
struct HopperShape : HopperBase {
    static constexpr int N_TILES = TOKENS_ / 8, WARPS_M = 4 * WARPGROUPS, THREADS = 32 * WARPS_M;
    static constexpr int ROWS = 64 * WARPGROUPS, TOKENS = TOKENS_, TILES = ROWS / 8, STAGES = STAGES_, X_BYTES = TOKENS * 256;
};

// What this thread wrote to shared memory is there for the tensor cores.
__device__ __forceinline__ void fence_async() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define SUMS4(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define SUMS16(n) SUMS4(n), SUMS4(n + 1), SUMS4(n + 2), SUMS4(n + 3)

// d (64 x 64 or 128) += a (64 x 16) * b; `b` describes 16 columns of the tokens in shared memory.
__device__ __forceinline__ void wgmma(float (&d)[8][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
        : SUMS16(0), SUMS16(4)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ __forceinline__ void wgmma(float (&d)[16][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, "
        "%41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
        : SUMS16(0), SUMS16(4), SUMS16(8), SUMS16(12)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#endif

template <class S, u32 KIND>
__device__ __forceinline__ void multiply_async(float (&sums)[S::N_TILES][4], const Group<KIND> (&groups)[2], u32 x) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    // Rows of 128 bytes, 8 of them 1024 further each time, in the tensor cores' order of 128-byte rows.
    const u64 layout = (u64)1 << 62 | (u64)(1024 / 16) << 32 | (u64)1 << 16;
    u32 a[2][2][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        Group<KIND> parts[2] = {groups[0], groups[1]};
#pragma unroll
        for (int g = 0; g < 2; g++) {
            if (i / 2 == 1) parts[g].second_half();
            u32 pairs[4];
            parts[g].values(i % 2, pairs);
            a[i % 2][0][g] = pairs[0], a[i % 2][0][2 + g] = pairs[1];
            a[i % 2][1][g] = pairs[2], a[i % 2][1][2 + g] = pairs[3];
        }
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < 2; j++) {
            u32 at = x + i / 2 * (S::TOKENS * 128) + (i % 2 * 2 + j) * 32;
            wgmma(sums, a[i % 2][j], layout | (at & 0x3ffff) >> 4);
        }
        wgmma_commit();
        if (i < 3)
            wgmma_wait<1>();
        else
            wgmma_wait<0>();
    }
#endif
}

// The sums of a step.
template <class S, u32 KIND>
__device__ __forceinline__ void multiply(float (&sums)[S::M_TILES][S::N_TILES][4], const u8* weights, u32 x, u32 thread,
                                         const Place& place, u32 format, bool has_scales) {
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
    if constexpr (S::HOPPER) {
        multiply_async<S, KIND>(sums[0], groups, x);
        return;
    }
    const u32 eight = thread % 32 / 8, warp_n = thread / 32 / S::WARPS_M;
    x += (warp_n * S::N_TILES * 8 + eight / 2 * 8 + thread % 8) * S::X_ROW_BYTES + eight % 2 * 16;
    // Half a group at a time, in a loop: half the code, and fewer registers.
#pragma unroll 1
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
__device__ __forceinline__ void finish(const Work<S>& work, bool first_part, float (&sums)[S::M_TILES][S::N_TILES][4], float* shared) {
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
            u32 t = i / (rows / 2), pair = i % (rows / 2), blocks = rows / 32;
            u32 r = pair % blocks * 32 + pair / blocks * 2;
            if (work.first_token + t >= p.tokens || work.first_row + r >= all_rows) continue;
            const float2 *gate = (const float2*)(shared + t * stride + r / 16 * 32 + r % 16), *up = gate + 8;
            float a = activate(p.activation, gate->x, up->x), b = activate(p.activation, gate->y, up->y);
            *(u32*)(y + (u64)t * p.y_stride + permuted_column(work.first_row + r)) = pack(a * p.y_scale, b * p.y_scale);
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

// Parts add to y in turn. Thread blocks begin in the order of their indices, z last: the one that is waited for has begun.
__device__ __forceinline__ void wait_for_turn(const u32* turn, u32 part) {
    if (threadIdx.x == 0) {
        u32 now;
        do {
            asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(now) : "l"(turn) : "memory");
        } while (now != part);
        __threadfence();
    }
    __syncthreads();
}

__device__ __forceinline__ void end_turn(u32* turn, u32 part, u32 parts) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *(volatile u32*)turn = part + 1 == parts ? 0 : part + 1;
}

template <class S, u32 KIND>
__device__ __forceinline__ void sum_up(const Work<S>& work, float (&sums)[S::M_TILES][S::N_TILES][4], u8* shared, u32 first, u32 steps) {
    const u32 format = work.format, groups = work.groups;
    const u32 stage_bytes = gemm_stage(S::ROWS, S::TOKENS, gemm_tile_bytes(format), S::HOPPER);
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
        if (S::HOPPER) fence_async();
        __syncthreads();
        u32 next = s + S::STAGES - 1;
        if (next < steps) {
            u32 to = base + (stage == 0 ? S::STAGES - 1 : stage - 1) * stage_bytes;
            copy_x<S>(work, to, next);
            copy_weights<S, KIND>(work, to + S::X_BYTES, next);
        }
        copy_commit();
        const u32 left = groups - 4 * s, thread = threadIdx.x + fresh_zero(), lane = thread % 32;
        Place place = {lane, lane / 4, lane % 4, true, s % 2 == 1};
        if (left < 4) {
            place.valid = place.kc < left;
            place.group = place.valid ? place.row * left + place.kc : 0;
        }
        multiply<S, KIND>(sums, shared + stage * stage_bytes + S::X_BYTES, base + stage * stage_bytes, thread, place, format, work.has_scales);
        stage = stage + 1 == S::STAGES ? 0 : stage + 1;
    }
    copy_wait<0>();
    __syncthreads();
}

// KINDS: those that are compiled, as bits.
template <class S, u32 KINDS = 0x1ff>
__device__ __forceinline__ void gemm(const PrefillGemm& p) {
    extern __shared__ __align__(1024) u8 shared_all[];
    u8* shared = shared_all;
    if (S::HOPPER) shared += -shared_address(shared) & 1023;  // To where the tensor cores' order begins.
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
            case Q4_K:
                if (KINDS >> FOUR & 1) sum_up<S, FOUR>(work, sums, shared, first, end);
                break;
            case Q5_0:
            case Q5_1:
            case Q5_K:
                if (KINDS >> FIVE & 1) sum_up<S, FIVE>(work, sums, shared, first, end);
                break;
            case Q6_K:
                if (KINDS >> SIX & 1) sum_up<S, SIX>(work, sums, shared, first, end);
                break;
            case Q8_0:
                if (KINDS >> EIGHT & 1) sum_up<S, EIGHT>(work, sums, shared, first, end);
                break;
            case TERNARY:
                if (KINDS >> TWO & 1) sum_up<S, TWO>(work, sums, shared, first, end);
                break;
        }
        u32* turn = p.turns + blockIdx.y * gridDim.x + blockIdx.x;
        if (gridDim.z > 1) wait_for_turn(turn, part);
        finish<S>(Work<S>::of(p), part == 0, sums, (float*)shared);
        if (gridDim.z > 1) end_turn(turn, part, parts);
        __syncthreads();
    }
}
