//! GEMV of the integer formats, for any way to multiply int8: one activation row.
//!
//! A tile is read once, in the order of memory, as memory is what bounds a GEMV. The four quads go side by side, or two
//! by two where registers are short, so that a core that runs instructions in order finds one that does not wait for the
//! last.

use super::super::rows::Block;
use super::super::tile;
use super::gemm::{
    Layout, ScalesK, byte_as_f32, code_6, fifth_bits, insert, layout, low, negate_6, scales_6, scales_k4, shift,
    shift_6,
};
use super::intrinsics::*;
use super::{Dot, Micro, Out, QUADS, each, load, load_f16, quants, scales, store};
use crate::quant::Format;

/// Two registers of codes of each of Q quads: 8 columns.
type Eight<const Q: usize> = [[uint8x16_t; 2]; Q];

/// Q8_0, Q4_0, Q4_1, Q5_0, Q5_1.
#[inline(always)]
pub fn simple<D: Dot, const BITS: usize, const MINIMUM: bool>(tile: &[u8], x: Micro<'_, 1>, out: &mut Out<1>) {
    let Layout { high, codes, block_bytes } = layout(BITS, MINIMUM);
    let mut sums = [[vdupq_n_f32(0.0)]; QUADS];
    for (block, [x]) in tile.chunks_exact(block_bytes * tile::ROWS).zip(x.blocks(0)) {
        let (columns, scales) = ([quants(x, 0), quants(x, 16)], scales(x));
        // For a single row it is cheaper to take 8 from the sums than from the codes.
        let zero = if BITS == 4 && !MINIMUM { 8 } else { 0 };
        let start = vdupq_n_s32(D::origin(0) + zero * x.negated_sum);
        let mut integers = D::begin(start);
        let packed = &block[codes * tile::ROWS..];
        if BITS == 8 {
            let (first, last) = packed.split_at(16 * tile::ROWS);
            add::<D, 0, QUADS>(&mut integers, 0, &eight::<0, QUADS>(first, 0), columns[0]);
            add::<D, 2, QUADS>(&mut integers, 0, &eight::<2, QUADS>(first, 0), columns[0]);
            add::<D, 0, QUADS>(&mut integers, 0, &eight::<0, QUADS>(last, 0), columns[1]);
            add::<D, 2, QUADS>(&mut integers, 0, &eight::<2, QUADS>(last, 0), columns[1]);
        } else {
            let bits = &block[high * tile::ROWS..];
            if BITS == 4 {
                add_nibbles::<D, BITS, MINIMUM, 0, QUADS>(&mut integers, 0, packed, bits, columns);
                add_nibbles::<D, BITS, MINIMUM, 2, QUADS>(&mut integers, 0, packed, bits, columns);
            } else {
                add_nibbles::<D, BITS, MINIMUM, 0, 2>(&mut integers, 0, packed, bits, columns);
                add_nibbles::<D, BITS, MINIMUM, 0, 2>(&mut integers, 2, packed, bits, columns);
                add_nibbles::<D, BITS, MINIMUM, 2, 2>(&mut integers, 0, packed, bits, columns);
                add_nibbles::<D, BITS, MINIMUM, 2, 2>(&mut integers, 2, packed, bits, columns);
            }
        }
        let floats = D::floats(&integers, start, 0);
        for q in 0..QUADS {
            let scale = vmulq_laneq_f32::<0>(load_f16(block, 8 * q), scales);
            sums[q][0] = vfmaq_f32(sums[q][0], floats[q], scale);
            if MINIMUM {
                let minimum = load_f16(block, 2 * tile::ROWS + 8 * q);
                sums[q][0] = vfmaq_laneq_f32::<1>(sums[q][0], minimum, scales);
            }
        }
    }
    store(out, &sums, |sums| sums);
}

/// Adds columns 4V to 4V + 7, and those 16 further on, of formats with 4 bits in a half byte, for Q quads.
#[inline(always)]
fn add_nibbles<D: Dot, const BITS: usize, const MINIMUM: bool, const V: i32, const Q: usize>(
    integers: &mut [D::Sum; QUADS],
    quad: usize,
    packed: &[u8],
    bits: &[u8],
    columns: [int8x16_t; 2],
) {
    let [mut lows, mut highs] = nibbles(&eight::<V, Q>(packed, quad));
    if BITS == 5 {
        for q in 0..Q {
            let bits = load(bits, 16 * (quad + q));
            // As in `codes_5`.
            let (bits, top) = if MINIMUM { (bits, 16) } else { (vmvnq_u8(bits), 0xF0) };
            for i in 0..2 {
                lows[q][i] = insert(lows[q][i], fifth_bits(bits, V as usize + i), top);
                highs[q][i] = insert(highs[q][i], fifth_bits(bits, 4 + V as usize + i), top);
            }
        }
    }
    add::<D, V, Q>(integers, quad, &lows, columns[0]);
    add::<D, V, Q>(integers, quad, &highs, columns[1]);
}

/// Registers V and V + 1 of 16 columns of the Q quads from `quad` on.
#[inline(always)]
fn eight<const V: i32, const Q: usize>(packed: &[u8], quad: usize) -> Eight<Q> {
    let mut eight = [[vdupq_n_u8(0); 2]; Q];
    for i in 0..2 {
        for q in 0..Q {
            eight[q][i] = load(packed, 64 * (V as usize + i) + 16 * (quad + q));
        }
    }
    eight
}

/// The low and the high halves of bytes.
#[inline(always)]
fn nibbles<const Q: usize>(bytes: &Eight<Q>) -> [Eight<Q>; 2] {
    [each(*bytes, |two| each(two, low)), each(*bytes, |two| each(two, vshrq_n_u8::<4>))]
}

/// Adds codes times columns 4V to 4V + 7 of x, for the Q quads from `quad` on.
#[inline(always)]
fn add<D: Dot, const V: i32, const Q: usize>(
    integers: &mut [D::Sum; QUADS],
    quad: usize,
    codes: &Eight<Q>,
    x: int8x16_t,
) {
    let integers = integers[quad..].first_chunk_mut().expect("quads of a tile");
    D::add::<V, Q>(integers, &each(*codes, |two| each(two, vreinterpretq_s8_u8)), &[x; Q]);
}

/// Q4_K and Q5_K.
#[inline(always)]
pub fn k<D: Dot, const BITS: usize>(tile: &[u8], x: Micro<'_, 1>, out: &mut Out<1>) {
    let codes = if BITS == 5 { 48 } else { 16 };
    let mut sums = [[vdupq_n_f32(0.0)]; QUADS];
    for (b, block) in tile.chunks_exact((codes + 128) * tile::ROWS).enumerate() {
        let scales_of = each([0, 1, 2, 3], |q| scales_k4(&block[4 * tile::ROWS..], q));
        let (mut scaled, mut below) = ([vdupq_n_f32(0.0); QUADS], [vdupq_n_f32(0.0); QUADS]);
        for pair in 0..4 {
            let x = each([0, 1], |side| &x.block(8 * b + 2 * pair + side)[0]);
            let packed = &block[(codes + 32 * pair) * tile::ROWS..];
            let integers = pair_k::<D, BITS>(packed, &block[16 * tile::ROWS..], pair, x);
            for side in 0..2 {
                for q in 0..QUADS {
                    let ScalesK { scales: of_sums, minimums } = &scales_of[q];
                    let (scale, minimum) =
                        (byte_as_f32(of_sums, 2 * pair + side), byte_as_f32(minimums, 2 * pair + side));
                    let scale = vmulq_laneq_f32::<0>(scale, scales(x[side]));
                    scaled[q] = vfmaq_f32(scaled[q], integers[side][q], scale);
                    below[q] = vfmaq_laneq_f32::<1>(below[q], minimum, scales(x[side]));
                }
            }
        }
        for q in 0..QUADS {
            sums[q][0] = vfmaq_f32(sums[q][0], load_f16(block, 8 * q), scaled[q]);
            sums[q][0] = vfmsq_f32(sums[q][0], load_f16(block, 2 * tile::ROWS + 8 * q), below[q]);
        }
    }
    store(out, &sums, |sums| sums);
}

/// Σ code · quant of sub-blocks 2·pair and 2·pair + 1.
#[inline(always)]
fn pair_k<D: Dot, const BITS: usize>(
    packed: &[u8],
    fifths: &[u8],
    pair: usize,
    x: [&Block; 2],
) -> [[float32x4_t; QUADS]; 2] {
    let start = vdupq_n_s32(D::origin(0));
    let mut integers = [D::begin(start); 2];
    let columns = each(x, |x| quants(x, 0));
    add_sixteen::<D, BITS>(&mut integers, packed, fifths, pair, columns);
    let (packed, fifths) = (&packed[16 * tile::ROWS..], &fifths[16 * tile::ROWS..]);
    let columns = each(x, |x| quants(x, 16));
    add_sixteen::<D, BITS>(&mut integers, packed, fifths, pair, columns);
    [D::floats(&integers[0], start, 0), D::floats(&integers[1], start, 0)]
}

/// Adds 16 columns of sub-blocks 2·pair and 2·pair + 1.
#[inline(always)]
fn add_sixteen<D: Dot, const BITS: usize>(
    integers: &mut [[D::Sum; QUADS]; 2],
    packed: &[u8],
    fifths: &[u8],
    pair: usize,
    columns: [int8x16_t; 2],
) {
    add_pair::<D, BITS, 0>(integers, 0, packed, fifths, pair, columns);
    add_pair::<D, BITS, 0>(integers, 2, packed, fifths, pair, columns);
    add_pair::<D, BITS, 2>(integers, 0, packed, fifths, pair, columns);
    add_pair::<D, BITS, 2>(integers, 2, packed, fifths, pair, columns);
}

/// Adds columns 4V to 4V + 7 of sub-blocks 2·pair and 2·pair + 1, which are the halves of the same bytes, for two quads.
#[inline(always)]
fn add_pair<D: Dot, const BITS: usize, const V: i32>(
    integers: &mut [[D::Sum; QUADS]; 2],
    quad: usize,
    packed: &[u8],
    fifths: &[u8],
    pair: usize,
    columns: [int8x16_t; 2],
) {
    let mut codes = nibbles(&eight::<V, 2>(packed, quad));
    if BITS == 5 {
        let fifths = eight::<V, 2>(fifths, quad);
        for side in 0..2 {
            for q in 0..2 {
                for i in 0..2 {
                    let fifth = shift(fifths[q][i], 4 - (2 * pair + side) as i8);
                    codes[side][q][i] = insert(codes[side][q][i], fifth, 16);
                }
            }
        }
    }
    add::<D, V, 2>(&mut integers[0], quad, &codes[0], columns[0]);
    add::<D, V, 2>(&mut integers[1], quad, &codes[1], columns[1]);
}

/// Q6_K.
#[inline(always)]
pub fn q6_k<D: Dot>(tile: &[u8], x: Micro<'_, 1>, out: &mut Out<1>) {
    let mut sums = [[vdupq_n_f32(0.0)]; QUADS];
    for (b, block) in tile.chunks_exact(Format::Q6_K.block_bytes() * tile::ROWS).enumerate() {
        let (mut left, mut right) = ([vdupq_n_f32(0.0); 2], [vdupq_n_f32(0.0); 2]);
        for h in 0..2 {
            let half = &block[h * tile::Q6_K_HALF..][..tile::Q6_K_HALF];
            let x = each([0, 1, 2, 3], |g| &x.block(8 * b + 4 * h + g)[0]);
            left = half_6::<D>(left, half, 0, x);
            right = half_6::<D>(right, half, 2, x);
        }
        let scaled = [left[0], left[1], right[0], right[1]];
        for q in 0..QUADS {
            sums[q][0] = vfmaq_f32(sums[q][0], load_f16(block, 208 * tile::ROWS + 8 * q), scaled[q]);
        }
    }
    store(out, &sums, |sums| sums);
}

/// Adds the four groups of half a Q6_K block for two quads.
#[inline(always)]
fn half_6<D: Dot>(mut scaled: [float32x4_t; 2], half: &[u8], quad: usize, x: [&Block; 4]) -> [float32x4_t; 2] {
    let first = columns_6::<D>(half, quad, each(x, |x| quants(x, 0)));
    let last = columns_6::<D>(&half[3 * 4 * 64..], quad, each(x, |x| quants(x, 16)));
    for g in 0..4 {
        for q in 0..2 {
            let [a, b] = scales_6(half, g, quad + q);
            // Exact, as in `add_block_6`.
            let both = vfmaq_f32(vmulq_f32(first[g][q], a), last[g][q], b);
            scaled[q] = vfmaq_laneq_f32::<0>(scaled[q], both, scales(x[g]));
        }
    }
    scaled
}

/// Σ (code - 32) · quant over 16 columns of each group, for two quads.
#[inline(always)]
fn columns_6<D: Dot>(lines: &[u8], quad: usize, columns: [int8x16_t; 4]) -> [[float32x4_t; 2]; 4] {
    let start = vdupq_n_s32(D::origin(shift_6::<D>()));
    let mut integers = [D::begin(start); 4];
    add_6::<D, 0>(&mut integers, lines, quad, columns);
    add_6::<D, 2>(&mut integers, lines, quad, columns);
    each(integers, |integers| D::floats(&integers, start, shift_6::<D>()))
}

/// Adds columns 4V to 4V + 7 of each group, for two quads.
#[inline(always)]
fn add_6<D: Dot, const V: i32>(integers: &mut [[D::Sum; 2]; 4], lines: &[u8], quad: usize, columns: [int8x16_t; 4]) {
    let mut codes = [[[vdupq_n_s8(0); 2]; 2]; 4];
    for q in 0..2 {
        for i in 0..2 {
            let line = |part: usize| load(lines, (3 * (V as usize + i) + part) * 64 + 16 * (quad + q));
            let (high, even, odd) = (negate_6(line(0)), line(1), line(2));
            codes[0][q][i] = vreinterpretq_s8_u8(code_6::<D, 0>(even, high));
            codes[1][q][i] = vreinterpretq_s8_u8(code_6::<D, 1>(odd, high));
            codes[2][q][i] = vreinterpretq_s8_u8(code_6::<D, 2>(even, high));
            codes[3][q][i] = vreinterpretq_s8_u8(code_6::<D, 3>(odd, high));
        }
    }
    D::add::<V, 2>(&mut integers[0], &codes[0], &[columns[0]; 2]);
    D::add::<V, 2>(&mut integers[1], &codes[1], &[columns[1]; 2]);
    D::add::<V, 2>(&mut integers[2], &codes[2], &[columns[2]; 2]);
    D::add::<V, 2>(&mut integers[3], &codes[3], &[columns[3]; 2]);
}
