// A lane's group of 32 weights, from shared memory to fp16.
//
// Every weight is q * scale + minimum in one fused operation on halves. Codes are integers up to 255 here, exact; a
// scale is one half (K-quants: the f32 product of super-block and block scale, rounded once, and so is a minimum);
// formats with an offset z have the minimum -z * scale, which is exact. So a weight is rounded once more than its
// scale, and ternary ones not at all.
#pragma once
#include "mma.cuh"

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
        minimum[0] = __hmul2(scale[0], constant(-32)),
        minimum[SCALES - 1] = __hmul2(scale[SCALES - 1], constant(-32));
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
            // What goes above the four bits of the code: at bit 4 for the first and third pair, at bit 8 for the
            // others.
            if (KIND == FIVE) {
                u32 h = high[0];
                a = and_or(shift(h, 4 - 2 * i), 0x00100010, ONES), b = and_or(shift(h, 7 - 2 * i), 0x01000100, ONES);
                c = and_or(shift(h, -4 - 2 * i), 0x00100010, ONES),
                d = and_or(shift(h, -1 - 2 * i), 0x01000100, ONES);
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
