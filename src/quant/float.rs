//! F32, F16, BF16: one value a block, no scale.
//!
//! | format | bytes | `value =` |
//! |---|---|---|
//! | F32  | 0..4 | the f32 |
//! | F16  | 0..2 | the f16, widened (exact) |
//! | BF16 | 0..2 | the f32 whose upper half these bytes are |

pub(super) fn f32_block(block: &[u8; 4], out: &mut [f32; 1]) {
    out[0] = f32::from_le_bytes(*block);
}

pub(super) fn f16_block(block: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = half::f16::from_le_bytes(*block).to_f32();
}

pub(super) fn bf16_block(block: &[u8; 2], out: &mut [f32; 1]) {
    // By hand: the crate's conversion would set the quiet bit of a NaN, and this needs no branch.
    out[0] = f32::from_bits(u32::from(u16::from_le_bytes(*block)) << 16);
}
