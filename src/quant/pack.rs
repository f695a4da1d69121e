//! Ternary codes to blocks: TQ1_0, TQ2_0 and I2_S.
//!
//! A code is the weight plus one: 0, 1 or 2 for -1, 0 and 1. Nothing is rounded: the scale is written as it is.

use super::ternary::I2_S_TAIL_BYTES;

/// Values in a block of TQ1_0 and TQ2_0.
pub const TQ_LEN: usize = 256;
/// Values in a group of I2_S.
pub const I2_S_LEN: usize = 128;

/// Four codes a byte: byte `l` of a half holds codes `l`, `l + 32`, `l + 64`, `l + 96` from its low bits up. Then the
/// scale.
pub fn tq2_0(codes: &[u8; TQ_LEN], scale: half::f16, out: &mut [u8; 66]) {
    let (halves, _) = codes.as_chunks::<128>();
    let (planes, scale_at) = out.split_at_mut(64);
    for (half, out) in halves.iter().zip(planes.as_chunks_mut::<32>().0) {
        for l in 0..32 {
            out[l] = half[l] | half[l + 32] << 2 | half[l + 64] << 4 | half[l + 96] << 6;
        }
    }
    scale_at.copy_from_slice(&scale.to_le_bytes());
}

/// Five codes a byte, in base three, the first one worth most; the last 16 codes four a byte; then the scale.
///
/// A byte is the number times 256/243, rounded up: multiplied by three, its overflow is the first digit.
pub fn tq1_0(codes: &[u8; TQ_LEN], scale: half::f16, out: &mut [u8; 54]) {
    let digits = |first: usize, stride: usize, count: usize| {
        let number = (0..5).fold(0u16, |number, n| {
            // A byte of four digits has a zero for the last.
            3 * number + if n < count { u16::from(codes[first + n * stride]) } else { 0 }
        });
        (number * 256).div_ceil(243) as u8 // At most 242 * 256.
    };
    for m in 0..32 {
        out[m] = digits(m, 32, 5);
    }
    for m in 0..16 {
        out[32 + m] = digits(160 + m, 16, 5);
    }
    for m in 0..4 {
        out[48 + m] = digits(240 + m, 4, 4);
    }
    out[52..].copy_from_slice(&scale.to_le_bytes());
}

/// Four codes a byte: byte `l` holds codes `l`, `l + 32`, `l + 64`, `l + 96` from its high bits down. The scale of the
/// whole tensor stands behind all groups ([`i2_s_tail`]).
pub fn i2_s(codes: &[u8; I2_S_LEN], out: &mut [u8; 32]) {
    for l in 0..32 {
        out[l] = codes[l] << 6 | codes[l + 32] << 4 | codes[l + 64] << 2 | codes[l + 96];
    }
}

/// What stands behind the groups of an I2_S tensor: its scale, and zeros.
pub fn i2_s_tail(scale: f32) -> [u8; I2_S_TAIL_BYTES] {
    let mut tail = [0; I2_S_TAIL_BYTES];
    tail[..4].copy_from_slice(&scale.to_le_bytes());
    tail
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::*;

    /// What `block` is dequantized to, over the scale.
    fn values(format: Format, bytes: &[u8], len: usize) -> Vec<f32> {
        let mut values = vec![f32::NAN; len];
        format.dequantize(bytes, &mut values);
        values
    }

    #[test]
    fn what_is_packed_is_dequantized_to_the_same() {
        let scale = half::f16::from_f32(0.625);
        for seed in 0..200usize {
            let code = |e: usize| match seed {
                0..3 => seed as u8,
                _ => ((e * 7919 + seed * 104_729) >> 3) as u8 % 3,
            };
            let codes: [u8; TQ_LEN] = std::array::from_fn(code);
            let expected = codes.map(|code| f32::from(code) - 1.0);
            let (mut two, mut one, mut i2_s_bytes) = ([0xAA; 66], [0xAA; 54], [[0xAA; 32]; 2]);
            tq2_0(&codes, scale, &mut two);
            tq1_0(&codes, scale, &mut one);
            for (half, out) in codes.as_chunks().0.iter().zip(&mut i2_s_bytes) {
                i2_s(half, out);
            }
            let scaled = expected.map(|value| 0.625 * value);
            assert_eq!(values(Format::TQ2_0, &two, 256), scaled, "{seed}");
            assert_eq!(values(Format::TQ1_0, &one, 256), scaled, "{seed}");
            assert_eq!(values(Format::I2_S, i2_s_bytes.as_flattened(), 256), expected, "{seed}");
        }
    }

    #[test]
    fn every_row_of_digits_comes_back() {
        // All 243 numbers of five digits, in the first byte.
        for number in 0..243usize {
            let digit = |n: usize| (number / 3usize.pow(4 - n as u32) % 3) as u8;
            let codes: [u8; TQ_LEN] = std::array::from_fn(|e| if e % 32 == 0 && e < 160 { digit(e / 32) } else { 1 });
            let mut block = [0; 54];
            tq1_0(&codes, half::f16::ONE, &mut block);
            assert_eq!(super::super::ternary::tq1_0_codes(&block), codes, "{number}");
        }
    }
}
