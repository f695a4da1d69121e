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
