//! GEMM of the integer formats, for any way to multiply int8.
//!
//! A micro-kernel goes through a tile once, in its order, and takes its four quads one by one inside a block: their codes
//! are unpacked to int8 and multiplied with M activation rows. Sums begin at the zero point times -Σ quant, so that
//! nothing is subtracted later.

use super::super::rows::{Block, Rows};
use super::super::tile;
use super::intrinsics::*;
use super::{Codes, Dot, Micro, Out, QUADS, each_micro, load, load_f16, load_half, quants, scales, store, tail};
use crate::quant::Format;
use std::arch::asm;

/// Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 by bits and whether a block has a minimum.
#[inline(always)]
pub fn simple<D: Dot, const BITS: usize, const MINIMUM: bool>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_micro!(M in [8, 4, 2, 1], up to D::ROWS, micro_simple::<D, BITS, MINIMUM, M>, tile, x, out);
}

#[inline(always)]
fn micro_simple<D: Dot, const BITS: usize, const MINIMUM: bool, const M: usize>(
    tile: &[u8],
    x: Micro<'_, M>,
    out: &mut Out<M>,
) {
    let high = if MINIMUM { 4 } else { 2 };
    let codes = if BITS == 5 { high + 4 } else { high };
    let block_bytes = codes + if BITS == 8 { 32 } else { 16 };
    let mut sums = [[vdupq_n_f32(0.0); M]; QUADS];
    for (b, block) in tile.chunks_exact(block_bytes * tile::ROWS).enumerate() {
        let x = x.block(b);
        let first = quants::<D, M>(x, 0);
        let second = quants::<D, M>(x, 16);
        for q in 0..QUADS {
            let packed = &block[codes * tile::ROWS..];
            let codes = match BITS {
                4 => codes_4(packed, q),
                5 => codes_5(load(block, high * tile::ROWS + 16 * q), packed, q),
                _ => [codes_8(packed, q), codes_8(&packed[16 * tile::ROWS..], q)],
            };
            let mut starts = [vdupq_n_s32(0); M];
            if BITS < 8 && !MINIMUM {
                for m in 0..M {
                    starts[m] = vmull_laneq_s16::<6>(vdup_n_s16(1 << (BITS - 1)), tail(&x[m]));
                }
            }
            let mut integers = D::begin(&starts);
            D::add(&mut integers, &codes[0], &first);
            D::add(&mut integers, &codes[1], &second);
            let integers = D::end(integers, &starts);
            let scale = load_f16(block, 8 * q);
            for m in 0..M {
                let scale = vmulq_laneq_f32::<0>(scale, scales(&x[m]));
                sums[q][m] = vfmaq_f32(sums[q][m], vcvtq_f32_s32(integers[m]), scale);
                if MINIMUM {
                    let minimum = load_f16(block, 2 * tile::ROWS + 8 * q);
                    sums[q][m] = vfmaq_laneq_f32::<1>(sums[q][m], minimum, scales(&x[m]));
                }
            }
        }
    }
    store(out, &sums);
}

/// 4 registers of quad q: 16 columns of bytes.
#[inline(always)]
fn bytes(packed: &[u8], q: usize) -> [uint8x16_t; 4] {
    let mut bytes = [vdupq_n_u8(0); 4];
    for v in 0..4 {
        bytes[v] = load(packed, 64 * v + 16 * q);
    }
    bytes
}

/// 16 columns of int8.
#[inline(always)]
fn codes_8(packed: &[u8], q: usize) -> Codes {
    signed(bytes(packed, q))
}

#[inline(always)]
fn signed([a, b, c, d]: [uint8x16_t; 4]) -> Codes {
    [vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b), vreinterpretq_s8_u8(c), vreinterpretq_s8_u8(d)]
}

/// The low and the high halves of bytes.
#[inline(always)]
fn nibbles(bytes: [uint8x16_t; 4]) -> [[uint8x16_t; 4]; 2] {
    let mut nibbles = [bytes; 2];
    for v in 0..4 {
        nibbles[0][v] = vandq_u8(bytes[v], vdupq_n_u8(15));
        nibbles[1][v] = vshrq_n_u8::<4>(bytes[v]);
    }
    nibbles
}

/// 32 columns of 4-bit codes.
#[inline(always)]
fn codes_4(packed: &[u8], q: usize) -> [Codes; 2] {
    let [low, high] = nibbles(bytes(packed, q));
    [signed(low), signed(high)]
}

/// As `codes_4`, with the 32 fifth bits in each lane of `bits`.
#[inline(always)]
fn codes_5(bits: uint8x16_t, packed: &[u8], q: usize) -> [Codes; 2] {
    // Byte 0 of a lane, four times; the bits of even and odd groups of columns in it.
    const BYTE: [u8; 16] = [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12];
    let byte = load(&BYTE, 0);
    let of = [vreinterpretq_u8_u32(vdupq_n_u32(0x0804_0201)), vreinterpretq_u8_u32(vdupq_n_u32(0x8040_2010))];
    let mut codes = nibbles(bytes(packed, q));
    for group in 0..8 {
        let spread = vqtbl1q_u8(bits, vaddq_u8(byte, vdupq_n_u8(group as u8 / 2)));
        let code = &mut codes[group / 4][group % 4];
        *code = insert(*code, vtstq_u8(spread, of[group % 2]), 16);
    }
    [signed(codes[0]), signed(codes[1])]
}

/// `code` with the bits of `mask` from `bits`.
#[inline(always)]
fn insert(mut code: uint8x16_t, bits: uint8x16_t, mask: u8) -> uint8x16_t {
    let mask = vdupq_n_u8(mask);
    // SAFETY: one instruction of every AArch64, registers only. Of the intrinsic the compiler makes two.
    unsafe {
        asm!(
            "bit {0:v}.16b, {1:v}.16b, {2:v}.16b",
            inout(vreg) code, in(vreg) bits, in(vreg) mask,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    code
}

/// Shifts bytes left, or right where `by` is negative.
#[inline(always)]
fn shift(bytes: uint8x16_t, by: i8) -> uint8x16_t {
    vshlq_u8(bytes, vdupq_n_s8(by))
}

/// The 6-bit scales and minimums of quad q: byte j % 4 of lane r in register j / 4 is sub-block j's of row r.
#[inline(always)]
fn scales_k4(packed: &[u8], q: usize) -> ([uint8x16_t; 2], [uint8x16_t; 2]) {
    let (a, b, c) = (load(packed, 16 * q), load(packed, 64 + 16 * q), load(packed, 128 + 16 * q));
    let six = vdupq_n_u8(0x3F);
    // (x >> 2 & 0x30) | low
    let with_top = |x, low| insert(low, vshrq_n_u8::<2>(x), 0x30);
    ([vandq_u8(a, six), with_top(a, vandq_u8(c, vdupq_n_u8(15)))], [vandq_u8(b, six), with_top(b, vshrq_n_u8::<4>(c))])
}

/// Byte `j % 4` of each lane of register `j / 4`, as f32.
#[inline(always)]
fn byte_as_f32(registers: &[uint8x16_t; 2], j: usize) -> float32x4_t {
    // The table's other bytes are out of range, which gives 0.
    const BYTE: [u8; 16] = [0, 255, 255, 255, 4, 255, 255, 255, 8, 255, 255, 255, 12, 255, 255, 255];
    let byte = vqtbl1q_u8(registers[j / 4], vorrq_u8(load(&BYTE, 0), vdupq_n_u8((j % 4) as u8)));
    vcvtq_f32_u32(vreinterpretq_u32_u8(byte))
}

/// Q4_K and Q5_K.
#[inline(always)]
pub fn k<D: Dot, const BITS: usize>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_micro!(M in [8, 4, 2, 1], up to D::ROWS, micro_k::<D, BITS, M>, tile, x, out);
}

#[inline(always)]
fn micro_k<D: Dot, const BITS: usize, const M: usize>(tile: &[u8], x: Micro<'_, M>, out: &mut Out<M>) {
    let codes = if BITS == 5 { 48 } else { 16 };
    let mut sums = [[vdupq_n_f32(0.0); M]; QUADS];
    for (b, block) in tile.chunks_exact((codes + 128) * tile::ROWS).enumerate() {
        let mut scales_of = [scales_k4(&block[4 * tile::ROWS..], 0); QUADS];
        for q in 1..QUADS {
            scales_of[q] = scales_k4(&block[4 * tile::ROWS..], q);
        }
        let mut scaled = [[vdupq_n_f32(0.0); M]; QUADS];
        let mut below = [[vdupq_n_f32(0.0); M]; QUADS];
        for pair in 0..4 {
            let j = 2 * pair;
            let (first, second) = (x.block(8 * b + j), x.block(8 * b + j + 1));
            for q in 0..QUADS {
                let (scales, minimums) = &scales_of[q];
                let sums = sums_k::<D, BITS, M>(block, pair, q, first, second);
                scale_k(&mut scaled[q], &mut below[q], sums.0, scales, minimums, j, first);
                scale_k(&mut scaled[q], &mut below[q], sums.1, scales, minimums, j + 1, second);
            }
        }
        for q in 0..QUADS {
            let (d, dmin) = (load_f16(block, 8 * q), load_f16(block, 2 * tile::ROWS + 8 * q));
            for m in 0..M {
                sums[q][m] = vfmaq_f32(sums[q][m], d, scaled[q][m]);
                sums[q][m] = vfmsq_f32(sums[q][m], dmin, below[q][m]);
            }
        }
    }
    store(out, &sums);
}

/// Σ code · quant over the sub-blocks 2·pair and 2·pair + 1, for quad q.
#[inline(always)]
fn sums_k<D: Dot, const BITS: usize, const M: usize>(
    block: &[u8],
    pair: usize,
    q: usize,
    first: &[Block; M],
    second: &[Block; M],
) -> ([int32x4_t; M], [int32x4_t; M]) {
    let fifths = &block[16 * tile::ROWS..];
    let packed = &block[(if BITS == 5 { 48 } else { 16 } + 32 * pair) * tile::ROWS..];
    let zeros = [vdupq_n_s32(0); M];
    let (mut low, mut high) = (D::begin(&zeros), D::begin(&zeros));
    let codes = codes_k::<BITS>(packed, fifths, pair, q);
    D::add(&mut low, &codes[0], &quants::<D, M>(first, 0));
    D::add(&mut high, &codes[1], &quants::<D, M>(second, 0));
    let codes = codes_k::<BITS>(&packed[16 * tile::ROWS..], &fifths[16 * tile::ROWS..], pair, q);
    D::add(&mut low, &codes[0], &quants::<D, M>(first, 16));
    D::add(&mut high, &codes[1], &quants::<D, M>(second, 16));
    (D::end(low, &zeros), D::end(high, &zeros))
}

/// Adds the sums of sub-block j with its scale and its minimum.
#[inline(always)]
fn scale_k<const M: usize>(
    scaled: &mut [float32x4_t; M],
    below: &mut [float32x4_t; M],
    sums: [int32x4_t; M],
    scales_of: &[uint8x16_t; 2],
    minimums_of: &[uint8x16_t; 2],
    j: usize,
    x: &[Block; M],
) {
    let (scale, minimum) = (byte_as_f32(scales_of, j), byte_as_f32(minimums_of, j));
    for m in 0..M {
        let scales = scales(&x[m]);
        scaled[m] = vfmaq_f32(scaled[m], vcvtq_f32_s32(sums[m]), vmulq_laneq_f32::<0>(scale, scales));
        below[m] = vfmaq_laneq_f32::<1>(below[m], minimum, scales);
    }
}

/// 16 columns of sub-blocks 2·pair (low halves of the bytes) and 2·pair + 1 (high halves), with those bits of the bytes
/// of fifth bits.
#[inline(always)]
fn codes_k<const BITS: usize>(packed: &[u8], fifths: &[u8], pair: usize, q: usize) -> [Codes; 2] {
    if BITS == 4 {
        return codes_4(packed, q);
    }
    let mut codes = nibbles(bytes(packed, q));
    let fifths = bytes(fifths, q);
    for side in 0..2 {
        for v in 0..4 {
            codes[side][v] = insert(codes[side][v], shift(fifths[v], 4 - (2 * pair + side) as i8), 16);
        }
    }
    [signed(codes[0]), signed(codes[1])]
}

#[inline(always)]
pub fn q6_k<D: Dot>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_micro!(M in [8, 4, 2, 1], up to D::ROWS, micro_q6_k::<D, M>, tile, x, out);
}

#[inline(always)]
fn micro_q6_k<D: Dot, const M: usize>(tile: &[u8], x: Micro<'_, M>, out: &mut Out<M>) {
    let mut sums = [[vdupq_n_f32(0.0); M]; QUADS];
    for (b, block) in tile.chunks_exact(Format::Q6_K.block_bytes() * tile::ROWS).enumerate() {
        let mut scaled = [[vdupq_n_f32(0.0); M]; QUADS];
        for h in 0..2 {
            for q in 0..QUADS {
                let first = 8 * b + 4 * h;
                let x = [x.block(first), x.block(first + 1), x.block(first + 2), x.block(first + 3)];
                let integers = integers_6::<D, M>(block, h, q, x);
                for g in 0..4 {
                    for m in 0..M {
                        let integer = vcvtq_f32_s32(integers[g][m]);
                        scaled[q][m] = vfmaq_laneq_f32::<0>(scaled[q][m], integer, scales(&x[g][m]));
                    }
                }
            }
        }
        for q in 0..QUADS {
            let d = load_f16(block, 208 * tile::ROWS + 8 * q);
            for m in 0..M {
                sums[q][m] = vfmaq_f32(sums[q][m], d, scaled[q][m]);
            }
        }
    }
    store(out, &sums);
}

/// Σ scale · (code - 32) · quant over the four groups of 32 columns of half h of a Q6_K block, for quad q.
#[inline(always)]
fn integers_6<D: Dot, const M: usize>(block: &[u8], h: usize, q: usize, x: [&[Block; M]; 4]) -> [[int32x4_t; M]; 4] {
    let mut integers = [[vdupq_n_s32(0); M]; 4];
    half_6::<D, M, 0>(block, h, q, x, &mut integers);
    half_6::<D, M, 1>(block, h, q, x, &mut integers);
    integers
}

/// The first or the last 16 columns of each of the four groups.
#[inline(always)]
fn half_6<D: Dot, const M: usize, const HALF: usize>(
    block: &[u8],
    h: usize,
    q: usize,
    x: [&[Block; M]; 4],
    integers: &mut [[int32x4_t; M]; 4],
) {
    let lines = &block[h * tile::Q6_K_HALF..][..tile::Q6_K_HALF];
    let line = |v: usize, part: usize| load(lines, (3 * (4 * HALF + v) + part) * 64 + 16 * q);
    let part = |part: usize| [line(0, part), line(1, part), line(2, part), line(3, part)];
    let (high, [a, c], [b, d]) = (part(0), nibbles(part(1)), nibbles(part(2)));
    let scales = &lines[96 * tile::ROWS + 8 * q..];
    group_6::<D, M, HALF, 0>(a, &high, scales, x[0], &mut integers[0]);
    group_6::<D, M, HALF, 1>(b, &high, scales, x[1], &mut integers[1]);
    group_6::<D, M, HALF, 2>(c, &high, scales, x[2], &mut integers[2]);
    group_6::<D, M, HALF, 3>(d, &high, scales, x[3], &mut integers[3]);
}

/// The 16 columns of group G, whose two high bits are bits 2G and 2G + 1.
#[inline(always)]
fn group_6<D: Dot, const M: usize, const HALF: usize, const G: usize>(
    mut codes: [uint8x16_t; 4],
    high: &[uint8x16_t; 4],
    scales: &[u8],
    x: &[Block; M],
    integers: &mut [int32x4_t; M],
) {
    for v in 0..4 {
        codes[v] = insert(codes[v], shift(high[v], 4 - 2 * G as i8), 0x30);
    }
    let mut starts = [vdupq_n_s32(0); M];
    for m in 0..M {
        let (zero, tail) = (vdup_n_s16(-32), tail(&x[m]));
        starts[m] = if HALF == 0 { vmull_laneq_s16::<4>(zero, tail) } else { vmull_laneq_s16::<5>(zero, tail) };
    }
    let mut sums = D::begin(&starts);
    D::add(&mut sums, &signed(codes), &quants::<D, M>(x, 16 * HALF));
    let sums = D::end(sums, &starts);
    // Lane r: (scale of columns 0 to 15, scale of columns 16 to 31) of row r.
    let scales = vmovl_s8(vreinterpret_s8_u8(load_half(scales, 2 * G * tile::ROWS)));
    let scales = vreinterpretq_s32_s16(scales);
    let scales = vshrq_n_s32::<16>(if HALF == 0 { vshlq_n_s32::<16>(scales) } else { scales });
    for m in 0..M {
        integers[m] = vmlaq_s32(integers[m], sums[m], scales);
    }
}
