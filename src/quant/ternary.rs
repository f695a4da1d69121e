//! Ternary weights, -1, 0 and 1: TQ1_0 and TQ2_0 of llama.cpp, I2_S of bitnet.cpp.
//!
//! TQ2_0, 256 values:
//!
//! | bytes | field |
//! |---|---|
//! | 0..64 | `q[64]`: four codes of 2 bits each |
//! | 64..66 | `scale`: f16 |
//!
//! Code `e` is bits `2((e % 128) / 32)..` of `q[e / 128 * 32 + e % 32]`; `value[e] = scale * (code - 1)`. Codes are 0 to 2.
//!
//! TQ1_0, 256 values:
//!
//! | bytes | field |
//! |---|---|
//! | 0..48 | `q[48]`: five codes of base 3 each |
//! | 48..52 | `h[4]`: four codes of base 3 each |
//! | 52..54 | `scale`: f16 |
//!
//! A byte is a fraction of 256 whose first digits in base 3 are the codes: code n is `(byte * 3^n mod 256) * 3 / 256`,
//! rounded down. Codes 0 to 159 are digits 0 to 4 of `q[0..32]`, byte by byte for each digit; 160 to 239 those of `q[32..48]`;
//! 240 to 255 digits 0 to 3 of `h`.
//!
//! I2_S, 128 values in 32 bytes: code `e` is bits `6 - 2(e / 32)..` of byte `e % 32`. `value[e] = code - 1`: the scale is the
//! tensor's, an f32 behind all its blocks (`file::Tensor::scale`). bitnet.cpp writes codes in other orders too:
//! [`I2sLayout`].

use super::{f16_at, pack};

/// The bytes behind an I2_S tensor's blocks: its scale, and padding.
pub const I2_S_TAIL_BYTES: usize = 32;

/// The order of an I2_S tensor's codes. All have the same id and the same length, and nothing in a file tells them apart:
/// whoever knows what wrote it names one. Bytes are four codes, 0 to 2 each, and the scale is behind them all, in every one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum I2sLayout {
    /// Blocks of 128 values in 32 bytes, as above: the official `bitnet-b1.58-2B-4T-gguf`, what bitnet.cpp's Python
    /// converter writes, and its quantizer on x86 where it was built with `ACT_PARALLEL`. All kernels take this.
    #[default]
    Block128,
    /// Blocks of 64 values in 16 bytes: code `e` is bits `6 - 2(e / 16)..` of byte `e % 16`. bitnet.cpp's quantizer on ARM.
    Block64,
    /// Four rows together, a byte a column: the code of row `r` is bits `6 - 2r..`. bitnet.cpp's quantizer on x86 where it
    /// was built without `ACT_PARALLEL`.
    Rows4,
}

impl I2sLayout {
    /// Whole rows in the order of [`I2sLayout::Block128`]: columns are a multiple of 128, of `Rows4` rows one of 4.
    pub fn to_block128(self, rows: &[u8], columns: usize, out: &mut [u8]) {
        match self {
            I2sLayout::Block128 => out.copy_from_slice(rows),
            I2sLayout::Block64 => {
                for (pair, out) in rows.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
                    block64_as_block128(pair, out);
                }
            }
            I2sLayout::Rows4 => {
                for (group, out) in rows.chunks_exact(columns).zip(out.chunks_exact_mut(columns)) {
                    rows4_as_block128(group, out);
                }
            }
        }
    }
}

/// One block of 128 from two of 64.
fn block64_as_block128(pair: &[u8; 32], out: &mut [u8; 32]) {
    let code = |e: usize| pair[e / 64 * 16 + e % 16] >> (6 - 2 * (e % 64 / 16)) & 3;
    for (l, out) in out.iter_mut().enumerate() {
        *out = code(l) << 6 | code(l + 32) << 4 | code(l + 64) << 2 | code(l + 96);
    }
}

/// Four rows in blocks of 128 from four rows together.
fn rows4_as_block128(group: &[u8], out: &mut [u8]) {
    for (row, out) in out.chunks_exact_mut(group.len() / 4).enumerate() {
        for (bytes, out) in group.as_chunks::<128>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            let code = |e: usize| bytes[e] >> (6 - 2 * row) & 3;
            for (l, out) in out.iter_mut().enumerate() {
                *out = code(l) << 6 | code(l + 32) << 4 | code(l + 64) << 2 | code(l + 96);
            }
        }
    }
}

pub(super) fn tq2_0_block(block: &[u8; 66], out: &mut [f32; 256]) {
    let scale = f16_at(block, 64);
    for (e, out) in out.iter_mut().enumerate() {
        let code = block[e / 128 * 32 + e % 32] >> (2 * (e % 128 / 32)) & 3;
        *out = scale * (f32::from(code) - 1.0);
    }
}

pub(super) fn tq1_0_block(block: &[u8; 54], out: &mut [f32; 256]) {
    let scale = f16_at(block, 52);
    for (out, code) in out.iter_mut().zip(tq1_0_codes(block)) {
        *out = scale * (f32::from(code) - 1.0);
    }
}

/// The 256 codes of a TQ1_0 block, 0 to 2 each.
pub fn tq1_0_codes(block: &[u8; 54]) -> [u8; 256] {
    let mut codes = [0; 256];
    digits(&block[..32], &mut codes[..160]);
    digits(&block[32..48], &mut codes[160..240]);
    digits(&block[48..52], &mut codes[240..]);
    codes
}

/// The first digits of all bytes, then the second ones, and so on as far as there is room. In loops that become vectors.
#[inline(always)]
fn digits(bytes: &[u8], out: &mut [u8]) {
    let mut power = 1u8;
    for out in out.chunks_exact_mut(bytes.len()) {
        for (out, byte) in out.iter_mut().zip(bytes) {
            *out = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as u8;
        }
        power = power.wrapping_mul(3);
    }
}

pub(super) fn i2_s_block(block: &[u8; 32], out: &mut [f32; 128]) {
    for (e, out) in out.iter_mut().enumerate() {
        let code = block[e % 32] >> (6 - 2 * (e / 32)) & 3;
        *out = f32::from(code) - 1.0;
    }
}

/// Whether these bytes of 2-bit codes hold a 3, which no ternary weight is.
pub fn has_code_3(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |found, byte| found | byte & byte >> 1 & 0x55) != 0
}

/// A TQ2_0 block of 256 codes from a TQ1_0 block: the same values.
pub fn tq1_0_as_tq2_0(block: &[u8; 54], out: &mut [u8; 66]) {
    let scale = half::f16::from_le_bytes([block[52], block[53]]);
    pack::tq2_0(&tq1_0_codes(block), scale, out);
}

/// Two I2_S blocks with the codes of a TQ2_0 block; without a scale, so that all are 0 where that one's scale is 0.
pub fn tq2_0_as_i2_s(block: &[u8; 66], out: &mut [u8; 64]) {
    const ZEROS: u8 = 0b0101_0101;
    let zero = block[64] == 0 && block[65] & 0x7F == 0;
    for (out, byte) in out.iter_mut().zip(&block[..64]) {
        // The four codes in the opposite order.
        let swapped = byte.rotate_left(4);
        *out = if zero { ZEROS } else { (swapped & 0x33) << 2 | (swapped & 0xCC) >> 2 };
    }
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::*;

    /// 256 codes, all of a kind and mixed.
    fn codes(seed: usize) -> [u8; 256] {
        std::array::from_fn(|e| if seed < 3 { seed as u8 } else { ((e * 7919 + seed * 104_729) >> 3) as u8 % 3 })
    }

    #[test]
    fn base_3_and_2_bits_hold_the_same_codes() {
        for seed in 0..40 {
            let codes = codes(seed);
            let mut block = [0; 54];
            pack::tq1_0(&codes, half::f16::from_f32(0.75), &mut block);
            assert_eq!(tq1_0_codes(&block), codes);
            let mut two_bits = [0; 66];
            tq1_0_as_tq2_0(&block, &mut two_bits);
            let (mut a, mut b) = ([f32::NAN; 256], [f32::NAN; 256]);
            Format::TQ1_0.dequantize(&block, &mut a);
            Format::TQ2_0.dequantize(&two_bits, &mut b);
            assert_eq!(a, b);
            let mut without_scale = [0; 64];
            tq2_0_as_i2_s(&two_bits, &mut without_scale);
            Format::I2_S.dequantize(&without_scale, &mut b);
            assert_eq!(a, b.map(|value| 0.75 * value));
        }
    }

    #[test]
    fn a_block_without_a_scale_is_zero() {
        for sign in [0, 0x80] {
            let mut block = [0; 66];
            block[65] = sign;
            let mut out = [0; 64];
            tq2_0_as_i2_s(&block, &mut out);
            let mut values = [f32::NAN; 256];
            Format::I2_S.dequantize(&out, &mut values);
            assert_eq!(values, [0.0; 256]);
        }
    }

    #[test]
    fn code_3_is_found_in_each_place() {
        let good: Vec<u8> = (0..=255).filter(|byte| (0..4).all(|l| byte >> (2 * l) & 3 != 3)).collect();
        assert!(good.len() == 81 && !has_code_3(&good));
        for bad in (0..=255u8).filter(|byte| !good.contains(byte)) {
            assert!(has_code_3(&[0, bad, 0x55]));
        }
    }

    #[test]
    fn every_layout_of_i2_s_is_the_same_rows() {
        const COLUMNS: usize = 384;
        const ROWS: usize = 8;
        let codes: Vec<u8> = (0..COLUMNS * ROWS).map(|e| ((e * 7919) >> 3) as u8 % 3).collect();
        let expected: Vec<f32> = codes.iter().map(|&code| f32::from(code) - 1.0).collect();
        // Written as bitnet.cpp writes them: where code `e` of the tensor goes, byte and shift.
        let packed = |place: &dyn Fn(usize) -> (usize, usize)| {
            let mut bytes = vec![0; codes.len() / 4];
            for (e, code) in codes.iter().enumerate() {
                let (at, shift) = place(e);
                bytes[at] |= code << shift;
            }
            bytes
        };
        for (layout, bytes) in [
            (I2sLayout::Block128, packed(&|e| (e / 128 * 32 + e % 32, 6 - 2 * (e % 128 / 32)))),
            (I2sLayout::Block64, packed(&|e| (e / 64 * 16 + e % 16, 6 - 2 * (e % 64 / 16)))),
            (I2sLayout::Rows4, packed(&|e| (e / COLUMNS / 4 * COLUMNS + e % COLUMNS, 6 - 2 * (e / COLUMNS % 4)))),
        ] {
            let (mut blocks, mut values) = (vec![0xAA; bytes.len()], vec![f32::NAN; codes.len()]);
            layout.to_block128(&bytes, COLUMNS, &mut blocks);
            Format::I2_S.dequantize(&blocks, &mut values);
            assert_eq!(values, expected, "{layout:?}");
        }
    }
}
