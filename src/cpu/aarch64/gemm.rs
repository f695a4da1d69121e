//! GEMM of the integer formats, for any way to multiply int8.
//!
//! A micro-kernel multiplies a tile with M activation rows, 256 columns at a time, of which it takes one quad after the
//! other: so their f32 sums stay in registers, and activations come from the first cache. The codes of 32 columns are
//! unpacked to int8 once and multiplied with the M rows, N by N.

use super::super::rows::{Block, Rows};
use super::super::tile;
use super::gemv;
use super::intrinsics::*;
use super::{Codes, Dot, Micro, Out, QUADS, each, each_micro, load, load_f16, load_half, store};
use crate::quant::Format;
use std::arch::asm;

/// What `arranged` is before it is written.
const NO_BLOCK: Block = Block { quants: [0; 32], scale: 0.0, scaled_sum: 0.0, sums: [0; 2], negated_sum: 0 };

/// `body` for N of M rows at a time: a loop, but not one that the compiler could leave in a loop, because arrays that are
/// indexed by a variable are not in registers.
macro_rules! for_rows {
    ($n:ident of $m:ident, |$first:ident| $body:block) => {
        for_rows!($n of $m, |$first| $body, 0 1 2 3)
    };
    ($n:ident of $m:ident, |$first:ident| $body:block, $($step:literal)*) => {{
        const { assert!($m <= 4 * $n) };
        $(if $step * $n < $m {
            let $first = $step * $n;
            $body
        })*
    }};
}

/// Side 0, then side 1, for the same reason.
macro_rules! for_sides {
    (|$side:ident| $body:block) => {{
        {
            let $side = 0;
            $body
        }
        {
            let $side = 1;
            $body
        }
    }};
}

/// N rows from `first` on.
#[inline(always)]
fn blocks_of<const N: usize>(x: &[Block], first: usize) -> &[Block; N] {
    x[first..].first_chunk().expect("rows by N")
}

/// The sums of N rows.
#[inline(always)]
fn rows_of<const N: usize>(sums: &mut [float32x4_t], first: usize) -> &mut [float32x4_t; N] {
    sums[first..].first_chunk_mut().expect("rows by N")
}

/// Blocks of 32 columns that are taken at a time.
const CHUNK: usize = 8;

/// Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 by bits and whether a block has a minimum.
#[inline(always)]
pub fn simple<D: Dot, const BITS: usize, const MINIMUM: bool>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_micro!(
        M, N in [16 by 4, 8 by 4, 4 by 4, 2 by 2], up to D::ROWS,
        micro_simple::<D, BITS, MINIMUM, M, N>, then gemv::simple::<D, BITS, MINIMUM>, tile, x, out
    );
}

#[inline(always)]
fn micro_simple<D: Dot, const BITS: usize, const MINIMUM: bool, const M: usize, const N: usize>(
    tile: &[u8],
    x: Micro<'_, M>,
    out: &mut Out<M>,
) {
    let Layout { high, codes, block_bytes } = layout(BITS, MINIMUM);
    let mut sums = [[vdupq_n_f32(0.0); M]; QUADS];
    let mut arranged = [[NO_BLOCK; M]; CHUNK];
    for (c, chunk) in tile.chunks(CHUNK * block_bytes * tile::ROWS).enumerate() {
        let blocks = chunk.len() / (block_bytes * tile::ROWS);
        arrange::<D, M>(&mut arranged, &x, CHUNK * c, blocks);
        for q in 0..QUADS {
            let mut sum = sums[q];
            let x = x.blocks(CHUNK * c).zip(&arranged).map(|(x, arranged)| if D::ARRANGES { arranged } else { x });
            for (block, x) in chunk.chunks_exact(block_bytes * tile::ROWS).zip(x) {
                let packed = &block[codes * tile::ROWS..];
                let (codes, shift) = match BITS {
                    4 if MINIMUM => (codes_4::<D>(packed, q), 0),
                    4 => signed_4::<D>(packed, q),
                    5 => (codes_5::<D>(load(block, high * tile::ROWS + 16 * q), packed, q, !MINIMUM), 0),
                    _ => (codes_8::<D>(packed, q), 0),
                };
                let scales = D::spread(load_f16(block, 8 * q));
                let minimums = if MINIMUM { D::spread(load_f16(block, 2 * tile::ROWS + 8 * q)) } else { scales };
                for_rows!(N of M, |first| {
                    let (x, sum) = (blocks_of::<N>(x, first), rows_of::<N>(&mut sum, first));
                    D::add_block(sum, &codes, shift, &scales, x);
                    if MINIMUM {
                        for m in 0..N {
                            sum[m] = D::add_minimum(sum[m], &minimums, x, m);
                        }
                    }
                });
            }
            sums[q] = sum;
        }
    }
    store(out, &sums, D::rows);
}

/// Where the fields of a block of the simple formats are, as in the file.
pub(super) struct Layout {
    pub high: usize,
    pub codes: usize,
    pub block_bytes: usize,
}

#[inline(always)]
pub(super) const fn layout(bits: usize, minimum: bool) -> Layout {
    let high = if minimum { 4 } else { 2 };
    let codes = if bits == 5 { high + 4 } else { high };
    Layout { high, codes, block_bytes: codes + if bits == 8 { 32 } else { 16 } }
}

/// Arranges the activations of some blocks, once for all quads.
#[inline(always)]
fn arrange<D: Dot, const M: usize>(arranged: &mut [[Block; M]; CHUNK], x: &Micro<'_, M>, first: usize, count: usize) {
    if D::ARRANGES {
        for b in 0..count {
            let blocks = x.block(first + b).as_chunks::<2>().0;
            for (arranged, x) in arranged[b].as_chunks_mut::<2>().0.iter_mut().zip(blocks) {
                D::arrange(x, arranged);
            }
        }
    }
}

/// 4 registers of quad q: 16 columns of bytes.
#[inline(always)]
fn bytes<D: Dot>(packed: &[u8], q: usize) -> [uint8x16_t; 4] {
    let mut bytes = [vdupq_n_u8(0); 4];
    for v in 0..4 {
        bytes[v] = load(packed, 64 * v + 16 * q);
    }
    D::arrange_codes(bytes)
}

/// 32 columns of int8.
#[inline(always)]
fn codes_8<D: Dot>(packed: &[u8], q: usize) -> [Codes; 2] {
    [signed(bytes::<D>(packed, q)), signed(bytes::<D>(&packed[16 * tile::ROWS..], q))]
}

#[inline(always)]
fn signed([a, b, c, d]: [uint8x16_t; 4]) -> Codes {
    [vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b), vreinterpretq_s8_u8(c), vreinterpretq_s8_u8(d)]
}

/// 32 columns of 4-bit codes.
#[inline(always)]
fn codes_4<D: Dot>(packed: &[u8], q: usize) -> [Codes; 2] {
    let bytes = bytes::<D>(packed, q);
    [signed(each(bytes, low)), signed(each(bytes, vshrq_n_u8::<4>))]
}

#[inline(always)]
pub(super) fn low(byte: uint8x16_t) -> uint8x16_t {
    vandq_u8(byte, vdupq_n_u8(15))
}

/// 32 columns of 4-bit codes less 8, times 2^shift. Less 8 is the top bit negated, in two's complement.
#[inline(always)]
fn signed_4<D: Dot>(packed: &[u8], q: usize) -> ([Codes; 2], i32) {
    let bytes = each(bytes::<D>(packed, q), |byte| veorq_u8(byte, vdupq_n_u8(0x88)));
    let low = signed(each(bytes, vshlq_n_u8::<4>));
    if D::ROOM {
        ([low, signed(each(bytes, |byte| vandq_u8(byte, vdupq_n_u8(0xF0))))], 4)
    } else {
        ([each(low, vshrq_n_s8::<4>), each(signed(bytes), vshrq_n_s8::<4>)], 0)
    }
}

/// 32 columns of 5-bit codes, the fifth bits of which are in each lane of `bits`. Less 16 if so asked.
#[inline(always)]
fn codes_5<D: Dot>(bits: uint8x16_t, packed: &[u8], q: usize, less_16: bool) -> [Codes; 2] {
    let mut bytes = [vdupq_n_u8(0); 4];
    for v in 0..4 {
        bytes[v] = load(packed, 64 * v + 16 * q);
    }
    // Less 16 is the three bits above the nibble set where the fifth bit is not.
    let (bits, top) = if less_16 { (vmvnq_u8(bits), 0xF0) } else { (bits, 16) };
    let mut codes = [each(bytes, low), each(bytes, vshrq_n_u8::<4>)];
    for group in 0..8 {
        let code = &mut codes[group / 4][group % 4];
        *code = insert(*code, fifth_bits(bits, group), top);
    }
    [signed(D::arrange_codes(codes[0])), signed(D::arrange_codes(codes[1]))]
}

/// All bits set in the bytes whose fifth bit is set, of columns 4·group to 4·group + 3.
#[inline(always)]
pub(super) fn fifth_bits(bits: uint8x16_t, group: usize) -> uint8x16_t {
    // Byte 0 of a lane, four times; the bits of even and odd groups of columns in it.
    const BYTE: [u8; 16] = [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12];
    let place = vaddq_u8(load(&BYTE, 0), vdupq_n_u8(group as u8 / 2));
    let of = vdupq_n_u32(if group % 2 == 0 { 0x0804_0201 } else { 0x8040_2010 });
    vtstq_u8(vqtbl1q_u8(bits, place), vreinterpretq_u8_u32(of))
}

/// `code` with the bits of `mask` from `bits`.
#[inline(always)]
pub(super) fn insert(mut code: uint8x16_t, bits: uint8x16_t, mask: u8) -> uint8x16_t {
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

/// The upper two bits of `high`, and below them `low` shifted right by two.
#[inline(always)]
fn shift_in(mut high: uint8x16_t, low: uint8x16_t) -> uint8x16_t {
    // SAFETY: one instruction of every AArch64, registers only. Of the intrinsic the compiler makes three.
    unsafe {
        asm!(
            "sri {0:v}.16b, {1:v}.16b, #2",
            inout(vreg) high, in(vreg) low,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    high
}

/// Shifts bytes left, or right where `by` is negative.
#[inline(always)]
pub(super) fn shift(bytes: uint8x16_t, by: i8) -> uint8x16_t {
    vshlq_u8(bytes, vdupq_n_s8(by))
}

/// The 6-bit scales and minimums of a quad: byte j % 4 of lane r in register j / 4 is sub-block j's of row r.
#[derive(Clone, Copy)]
pub(super) struct ScalesK {
    pub scales: [uint8x16_t; 2],
    pub minimums: [uint8x16_t; 2],
}

#[inline(always)]
pub(super) fn scales_k4(packed: &[u8], q: usize) -> ScalesK {
    let (a, b, c) = (load(packed, 16 * q), load(packed, 64 + 16 * q), load(packed, 128 + 16 * q));
    let six = vdupq_n_u8(0x3F);
    // (x >> 2 & 0x30) | low
    let with_top = |x, low| insert(low, vshrq_n_u8::<2>(x), 0x30);
    ScalesK {
        scales: [vandq_u8(a, six), with_top(a, low(c))],
        minimums: [vandq_u8(b, six), with_top(b, vshrq_n_u8::<4>(c))],
    }
}

/// Byte `j % 4` of each lane of register `j / 4`, as f32.
#[inline(always)]
pub(super) fn byte_as_f32(registers: &[uint8x16_t; 2], j: usize) -> float32x4_t {
    // The table's other bytes are out of range, which gives 0.
    const BYTE: [u8; 16] = [0, 255, 255, 255, 4, 255, 255, 255, 8, 255, 255, 255, 12, 255, 255, 255];
    let byte = vqtbl1q_u8(registers[j / 4], vorrq_u8(load(&BYTE, 0), vdupq_n_u8((j % 4) as u8)));
    vcvtq_f32_u32(vreinterpretq_u32_u8(byte))
}

/// Q4_K and Q5_K.
#[inline(always)]
pub fn k<D: Dot, const BITS: usize>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_micro!(
        M, N in [16 by 4, 8 by 4, 4 by 4, 2 by 2], up to D::ROWS,
        micro_k::<D, BITS, M, N>, then gemv::k::<D, BITS>, tile, x, out
    );
}

#[inline(always)]
fn micro_k<D: Dot, const BITS: usize, const M: usize, const N: usize>(tile: &[u8], x: Micro<'_, M>, out: &mut Out<M>) {
    let codes = if BITS == 5 { 48 } else { 16 };
    let mut sums = [[vdupq_n_f32(0.0); M]; QUADS];
    let mut arranged = [[NO_BLOCK; M]; CHUNK];
    for (c, block) in tile.chunks_exact((codes + 128) * tile::ROWS).enumerate() {
        arrange::<D, M>(&mut arranged, &x, CHUNK * c, CHUNK);
        let x = |j: usize| if D::ARRANGES { &arranged[j] } else { x.block(CHUNK * c + j) };
        for q in 0..QUADS {
            let ScalesK { scales, minimums } = scales_k4(&block[4 * tile::ROWS..], q);
            let mut scaled = [vdupq_n_f32(0.0); M];
            for pair in 0..4 {
                let packed = &block[(codes + 32 * pair) * tile::ROWS..];
                let fifths = &block[16 * tile::ROWS..];
                for_sides!(|side| {
                    let (j, x) = (2 * pair + side, x(2 * pair + side));
                    let codes = codes_k::<D, BITS>(packed, fifths, j, side, q);
                    let scales = D::spread(byte_as_f32(&scales, j));
                    for_rows!(N of M, |first| {
                        let (x, scaled) = (blocks_of::<N>(x, first), rows_of::<N>(&mut scaled, first));
                        D::add_block(scaled, &codes, 0, &scales, x);
                    });
                });
            }
            let d = D::spread(load_f16(block, 8 * q));
            for m in 0..M {
                sums[q][m] = vfmaq_f32(sums[q][m], d[m % 2], scaled[m]);
            }
            // Apart from the products, for the registers.
            let mut below = [vdupq_n_f32(0.0); M];
            for j in 0..8 {
                let minimums = D::spread(byte_as_f32(&minimums, j));
                for_rows!(N of M, |first| {
                    let (x, below) = (blocks_of::<N>(x(j), first), rows_of::<N>(&mut below, first));
                    for m in 0..N {
                        below[m] = D::add_minimum(below[m], &minimums, x, m);
                    }
                });
            }
            let dmin = D::spread(load_f16(block, 2 * tile::ROWS + 8 * q));
            for m in 0..M {
                sums[q][m] = vfmsq_f32(sums[q][m], dmin[m % 2], below[m]);
            }
        }
    }
    store(out, &sums, D::rows);
}

/// The 32 columns of sub-block j: the low or high halves of the bytes, and bit j of the bytes of fifth bits.
#[inline(always)]
fn codes_k<D: Dot, const BITS: usize>(packed: &[u8], fifths: &[u8], j: usize, side: usize, q: usize) -> [Codes; 2] {
    let sixteen = |c: usize| {
        let packed = bytes::<D>(&packed[16 * c * tile::ROWS..], q);
        let mut codes = if side == 0 { each(packed, low) } else { each(packed, vshrq_n_u8::<4>) };
        if BITS == 5 {
            let fifths = bytes::<D>(&fifths[16 * c * tile::ROWS..], q);
            for v in 0..4 {
                codes[v] = insert(codes[v], shift(fifths[v], 4 - j as i8), 16);
            }
        }
        signed(codes)
    };
    [sixteen(0), sixteen(1)]
}

/// Q6_K.
#[inline(always)]
pub fn q6_k<D: Dot>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_micro!(
        M, N in [16 by 4, 8 by 4, 4 by 4, 2 by 2], up to D::ROWS,
        micro_q6_k::<D, M, N>, then gemv::q6_k::<D>, tile, x, out
    );
}

#[inline(always)]
fn micro_q6_k<D: Dot, const M: usize, const N: usize>(tile: &[u8], x: Micro<'_, M>, out: &mut Out<M>) {
    let mut sums = [[vdupq_n_f32(0.0); M]; QUADS];
    let mut arranged = [[NO_BLOCK; M]; CHUNK];
    for (c, block) in tile.chunks_exact(Format::Q6_K.block_bytes() * tile::ROWS).enumerate() {
        arrange::<D, M>(&mut arranged, &x, CHUNK * c, CHUNK);
        for q in 0..QUADS {
            let mut scaled = [vdupq_n_f32(0.0); M];
            for h in 0..2 {
                let x = |g: usize| if D::ARRANGES { &arranged[4 * h + g] } else { x.block(CHUNK * c + 4 * h + g) };
                group_6::<D, M, N, 0>(&mut scaled, block, h, q, x(0));
                group_6::<D, M, N, 1>(&mut scaled, block, h, q, x(1));
                group_6::<D, M, N, 2>(&mut scaled, block, h, q, x(2));
                group_6::<D, M, N, 3>(&mut scaled, block, h, q, x(3));
            }
            let d = D::spread(load_f16(block, 208 * tile::ROWS + 8 * q));
            for m in 0..M {
                sums[q][m] = vfmaq_f32(sums[q][m], d[m % 2], scaled[m]);
            }
        }
    }
    store(out, &sums, D::rows);
}

/// Adds group G of half h.
#[inline(always)]
fn group_6<D: Dot, const M: usize, const N: usize, const G: usize>(
    scaled: &mut [float32x4_t; M],
    block: &[u8],
    h: usize,
    q: usize,
    x: &[Block; M],
) {
    let codes = [codes_6::<D, G>(block, h, 0, q), codes_6::<D, G>(block, h, 1, q)];
    let scales = each(scales_6(&block[h * tile::Q6_K_HALF..], G, q), D::spread);
    for_rows!(N of M, |first| {
        let (x, scaled) = (blocks_of::<N>(x, first), rows_of::<N>(scaled, first));
        D::add_block_6(scaled, &codes, shift_6::<D>(), &scales, x);
    });
}

/// The scales of the first and the last 16 columns of group g of half a Q6_K block, for quad q.
#[inline(always)]
pub(super) fn scales_6(half: &[u8], g: usize, q: usize) -> [float32x4_t; 2] {
    let pairs = vmovl_s8(vreinterpret_s8_u8(load_half(half, (96 + 2 * g) * tile::ROWS + 8 * q)));
    let pairs = vreinterpretq_s32_s16(pairs);
    [vcvtq_n_f32_s32::<16>(vshlq_n_s32::<16>(pairs)), vcvtq_f32_s32(vshrq_n_s32::<16>(pairs))]
}

/// By how much codes of Q6_K are shifted.
#[inline(always)]
pub(super) fn shift_6<D: Dot>() -> i32 {
    if D::ROOM { 2 } else { 0 }
}

/// 16 columns of half a Q6_K block: part 0 is high bits, parts 1 and 2 are low bits.
#[inline(always)]
fn lines_6<D: Dot>(half: &[u8], part: usize, c: usize, q: usize) -> [uint8x16_t; 4] {
    let mut lines = [vdupq_n_u8(0); 4];
    for v in 0..4 {
        lines[v] = load(half, (3 * (4 * c + v) + part) * 64 + 16 * q);
    }
    D::arrange_codes(lines)
}

/// The first or the last 16 columns (c is 0 or 1) of group G of half h of a Q6_K block, less 32, times 2^shift.
#[inline(always)]
fn codes_6<D: Dot, const G: usize>(block: &[u8], h: usize, c: usize, q: usize) -> Codes {
    let lows = lines_6::<D>(&block[h * tile::Q6_K_HALF..], 1 + G % 2, c, q);
    let highs = lines_6::<D>(&block[h * tile::Q6_K_HALF..], 0, c, q);
    let mut codes = lows;
    for v in 0..4 {
        codes[v] = code_6::<D, G>(lows[v], negate_6(highs[v]));
    }
    signed(codes)
}

/// The upper bit of each pair of high bits negated: as the sign of two's complement, that takes 32 from a code.
#[inline(always)]
pub(super) fn negate_6(high: uint8x16_t) -> uint8x16_t {
    veorq_u8(high, vdupq_n_u8(0xAA))
}

/// Group G's codes less 32, times 2^shift: four bits from `low` and two from `high`, put together at the top of a byte.
#[inline(always)]
pub(super) fn code_6<D: Dot, const G: usize>(low: uint8x16_t, high: uint8x16_t) -> uint8x16_t {
    let upper = |low| vandq_u8(low, vdupq_n_u8(0xF0));
    let code = match G {
        0 => vsliq_n_u8::<6>(vshlq_n_u8::<2>(low), high),
        1 => vsliq_n_u8::<6>(vshlq_n_u8::<2>(low), vshrq_n_u8::<2>(high)),
        2 => shift_in(vshlq_n_u8::<2>(high), upper(low)),
        _ => shift_in(high, upper(low)),
    };
    if D::ROOM { code } else { vreinterpretq_u8_s8(vshrq_n_s8::<2>(vreinterpretq_s8_u8(code))) }
}
