// What one lane reads of a tile's step and multiplies: 32 codes of one row (a group) in each format. README.md has the
// layout of the planes.
#pragma once
#include "common.cuh"

// Ternary without scales in the blocks; a matrix has the format TERNARY and no `scales`.
const u32 TERNARY_ONE = 36;
__host__ __device__ constexpr bool is_ternary(u32 format) { return format == TERNARY || format == TERNARY_ONE; }

// Words that a lane holds of a group.
__host__ __device__ constexpr u32 code_words(u32 format) { return format == Q8_0 ? 8 : is_ternary(format) ? 2 : 4; }
__host__ __device__ constexpr u32 high_words(u32 format) {
    return format == Q6_K ? 2 : format == Q5_0 || format == Q5_1 || format == Q5_K ? 1 : 0;
}
__host__ __device__ constexpr u32 scale_words(u32 format) {
    return format == Q4_K || format == Q5_K ? 4 : format == Q6_K ? 2 : format == TERNARY_ONE ? 0 : 1;
}
__host__ __device__ constexpr u32 group_words(u32 format) {
    return code_words(format) + high_words(format) + scale_words(format);
}
// The products below come out this much too large: a power of two, taken off at the end of a row.
__host__ __device__ constexpr float gain(u32 format) { return format == Q6_K ? 1.0f / 4 : 1.0f; }

// Where a group's parts are: `group` of those of the matrix in the planes with an entry a group, `super` of those with
// an entry every 256 columns.
struct Place {
    u32 group, super;
};

template <u32 FORMAT>
__device__ __forceinline__ void load_group(u32* w, const Matrix& m, Place at) {
    constexpr u32 C = code_words(FORMAT), H = high_words(FORMAT);
    const u8* codes = m.codes + (u64)at.group * (4 * C);
    if constexpr (C == 2) {
        load_weights(*(u32(*)[2])w, codes);
    } else {
        load_weights(*(u32(*)[4])w, codes);
        if constexpr (C == 8) load_weights(*(u32(*)[4])(w + 4), codes + 16);
    }
    if constexpr (H == 1) w[C] = load_weights32(m.high + (u64)at.group * 4);
    if constexpr (H == 2) load_weights(*(u32(*)[2])(w + C), m.high + (u64)at.group * 8);
    u32* scale = w + C + H;
    if constexpr (FORMAT == Q4_1 || FORMAT == Q5_1) {
        *scale = load_weights32(m.scales + (u64)at.group * 4);
    } else if constexpr (FORMAT == Q4_K || FORMAT == Q5_K) {
        load_weights(*(u32(*)[4])scale, m.scales + (u64)at.super * 16);
    } else if constexpr (FORMAT == TERNARY) {
        *scale = load_weights16(m.scales + (u64)at.super * 2);
    } else if constexpr (FORMAT != TERNARY_ONE) {
        *scale = load_weights16(m.scales + (u64)at.group * 2);
        if constexpr (FORMAT == Q6_K) scale[1] = load_weights16(m.supers + (u64)at.super * 2);
    }
}

// A group of activations: dot words, their scale, scale * sum.
struct Input {
    u32 x[8];
    float scale, sum;
};

// An integer of less than 2^22 beside this one is a float's low bits: turned back into a float by a subtraction.
const int INTEGER_BITS = 0x4b400000;
__device__ __forceinline__ float to_float(int sum) { return __int_as_float(sum) - 12582912.0f; }
// A float from six bits.
__device__ __forceinline__ float six_bits(u32 bits) { return __uint_as_float((bits & 63) | 0x4b000000) - 8388608.0f; }

// (a & mask) ^ flip, in one instruction.
__device__ __forceinline__ u32 and_xor(u32 a, u32 mask, u32 flip) {
    u32 out;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(out) : "r"(a), "r"(mask), "r"(flip));
    return out;
}

// Dot word j as signed bytes. Q6_K: 4 (q - 32): the upper bits of a byte are the code's, flipping the highest one takes
// the middle off.
template <u32 FORMAT>
__device__ __forceinline__ u32 signed_word(const u32* w, u32 j) {
    if constexpr (FORMAT == Q8_0) return w[j];
    u32 low = and_xor((j & 1) ? w[j / 2] >> 2 : w[j / 2] << 2, 0x3c3c3c3c, 0x80808080);
    return and_xor(w[4 + j / 4] << (6 - 2 * (j & 3)), 0xc0c0c0c0, low);
}
// Dot word j as unsigned codes.
template <u32 FORMAT>
__device__ __forceinline__ u32 unsigned_word(const u32* w, u32 j) {
    if constexpr (is_ternary(FORMAT)) return (w[j / 4] >> (2 * (j & 3))) & 0x03030303;
    u32 low = ((j & 1) ? w[j / 2] >> 4 : w[j / 2]) & 0x0f0f0f0f;
    if constexpr (FORMAT == Q5_0 || FORMAT == Q5_1 || FORMAT == Q5_K)
        return ((j < 4 ? w[4] << (4 - j) : w[4] >> (j - 4)) & 0x10101010) | low;
    return low;
}
// What unsigned codes have too much.
__host__ __device__ constexpr float middle(u32 format) {
    return format == Q4_0 ? 8.0f : format == Q5_0 ? 16.0f : is_ternary(format) ? 1.0f : 0.0f;
}

// The group's scale and minimum (what is taken away, times the sum) of Q4_K and Q5_K.
__device__ __forceinline__ float2 k_scales(const u32* h, u32 kc, u32 step) {
    u32 low = kc < 2 ? h[1] : kc == 2 ? h[2] : h[3];
    u32 bits = __funnelshift_r(low, kc == 1 ? h[2] : h[3], 24 * kc & 31) >> (12 * (step & 1));
    return make_float2(half_low(h[0]) * six_bits(bits), half_high(h[0]) * six_bits(bits >> 6));
}

// sum + the group's share of a row's product (over gain).
template <u32 FORMAT>
__device__ __forceinline__ float add_group(const u32* w, const Input& in, u32 kc, u32 step, float sum) {
    constexpr u32 C = code_words(FORMAT), H = high_words(FORMAT);
    const u32* scale = w + C + H;
    if constexpr (FORMAT == Q6_K) {
        int a = 0, b = 0;
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            a = dot_signed(signed_word<FORMAT>(w, j), in.x[j], a);
            b = dot_signed(signed_word<FORMAT>(w, j + 4), in.x[j + 4], b);
        }
        int scaled = a * (int)(signed char)scale[0] + b * (int)(signed char)(scale[0] >> 8);
        return fmaf(half_low(scale[1]) * in.scale, (float)scaled, sum);
    } else if constexpr (FORMAT == Q8_0) {
        int a = INTEGER_BITS, b = 0;
#pragma unroll
        for (u32 j = 0; j < 8; j += 2) {
            a = dot_signed(signed_word<FORMAT>(w, j), in.x[j], a);
            b = dot_signed(signed_word<FORMAT>(w, j + 1), in.x[j + 1], b);
        }
        return fmaf(half_low(scale[0]) * in.scale, to_float(a + b), sum);
    } else {
        int a = INTEGER_BITS, b = 0;
#pragma unroll
        for (u32 j = 0; j < 8; j += 2) {
            a = dot_unsigned(unsigned_word<FORMAT>(w, j), in.x[j], a);
            b = dot_unsigned(unsigned_word<FORMAT>(w, j + 1), in.x[j + 1], b);
        }
        float dot = to_float(a + b);
        if constexpr (FORMAT == TERNARY_ONE) {
            return sum + fmaf(dot, in.scale, -in.sum);
        } else if constexpr (FORMAT == Q4_0 || FORMAT == Q5_0 || FORMAT == TERNARY) {
            return fmaf(half_low(scale[0]), fmaf(dot, in.scale, -middle(FORMAT) * in.sum), sum);
        } else if constexpr (FORMAT == Q4_1 || FORMAT == Q5_1) {
            return fmaf(half_high(scale[0]), in.sum, fmaf(half_low(scale[0]) * in.scale, dot, sum));
        } else {
            float2 s = k_scales(scale, kc, step);
            return fmaf(-s.y, in.sum, fmaf(s.x * in.scale, dot, sum));
        }
    }
}
