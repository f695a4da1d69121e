//! Q3_K: 256 three-bit codes in 16 sub-blocks of 16, each with a signed six-bit scale.
//!
//! | bytes | field |
//! |---|---|
//! | 0..32 | `qh[32]`: bit `e / 32` of byte `e % 32` is bit 2 of code `e` |
//! | 32..96 | `qs[64]`: bits 0..2; with `h = e / 128`, `g = e % 128 / 32`, `l = e % 32`: bits `2g..` of `qs[32h + l]` |
//! | 96..108 | `packed[12]`: 16 scales of six bits, kept as scale + 32 |
//! | 108..110 | `scale`: f16, of the scales |
//!
//! Scale `i`: its lower four bits are a half of `packed[i % 8]`, the low one when `i < 8`, else the high one; its upper two
//! are bits `2 * (i / 4)..` of `packed[8 + i % 4]`.
//!
//! `value[e] = scale * scales[e / 16] * (q[e] - 4)`, the first product rounded first

use super::f16_at;
use super::q6_k::Place;

pub(super) fn q3_k_block(block: &[u8; 110], out: &mut [f32; 256]) {
    let scale = f16_at(block, 108);
    let scales = scales(block).map(|sc| scale * f32::from(sc));
    for (e, out) in out.iter_mut().enumerate() {
        *out = scales[e / 16] * f32::from(code(block, e) as i8 - 4);
    }
}

/// Code `e`, 0 to 7.
fn code(block: &[u8; 110], e: usize) -> u8 {
    let (h, g, l) = (e / 128, e % 128 / 32, e % 32);
    let low = block[32 + 32 * h + l] >> (2 * g) & 3;
    let high = block[l] >> (e / 32) & 1;
    low | high << 2
}

/// The 16 scales, -32 to 31.
fn scales(block: &[u8; 110]) -> [i8; 16] {
    let packed = &block[96..108];
    std::array::from_fn(|i| {
        let low = packed[i % 8] >> (4 * (i / 8)) & 15;
        let high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// Rewrites a Q3_K block as the Q6_K block of the same values, so that Q3_K needs no kernels of its own.
///
/// Both have 16 signed scales under one f16, and `q - 4` is `(q + 28) - 32`: nothing is rounded.
pub fn q3_k_as_q6_k(block: &[u8; 110], out: &mut [u8; 210]) {
    out.fill(0);
    for e in 0..256 {
        let q = code(block, e) + 28;
        let place = Place::of(e);
        out[place.low] |= (q & 15) << place.low_shift;
        out[place.high] |= (q >> 4) << place.high_shift;
    }
    for (out, scale) in out[192..208].iter_mut().zip(scales(block)) {
        *out = scale as u8;
    }
    out[208..].copy_from_slice(&block[108..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Format;

    #[test]
    fn a_q3_k_block_rewritten_as_q6_k_has_the_same_values() {
        let mut state = 7u64;
        for round in 0..2000 {
            let mut block = [0; 110];
            block.fill_with(|| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            });
            match round {
                0 => block.fill(0),
                1 => block.fill(255),
                _ => {}
            }
            if block[109] & 0x7c == 0x7c {
                block[109] &= 0xbf; // Neither infinite nor NaN.
            }
            let mut rewritten = [255; 210];
            q3_k_as_q6_k(&block, &mut rewritten);
            let (mut expected, mut found) = ([f32::NAN; 256], [f32::NAN; 256]);
            Format::Q3_K.dequantize(&block, &mut expected);
            Format::Q6_K.dequantize(&rewritten, &mut found);
            assert_eq!(found.map(f32::to_bits), expected.map(f32::to_bits), "round {round}");
        }
    }
}
