//! Q8_0: 32 signed bytes and a scale.
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | `scale`: f16 |
//! | 2..34 | `q[32]`: i8 |
//!
//! `value[e] = scale * q[e]`

use super::f16_at;

/// Bytes in a block.
pub const BLOCK_BYTES: usize = 34;

pub(super) fn q8_0_block(block: &[u8; BLOCK_BYTES], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = scale * f32::from(q as i8);
    }
}

/// The block nearest to these values: the scale makes the largest magnitude 127. Bit for bit what ggml writes.
pub fn quantize_block(values: &[f32; 32], out: &mut [u8; BLOCK_BYTES]) {
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out[..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
    for (out, value) in out[2..].iter_mut().zip(values) {
        *out = (value * inverse).round() as i8 as u8; // Halves go away from zero.
    }
}
