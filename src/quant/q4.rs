//! Q4_0 and Q4_1: 32 four-bit codes and a scale, Q4_1 with a minimum.
//!
//! | Q4_0 bytes | Q4_1 bytes | field |
//! |---|---|---|
//! | 0..2 | 0..2 | `scale`: f16 |
//! | – | 2..4 | `minimum`: f16 |
//! | 2..18 | 4..20 | `qs[16]`: byte `i` holds code `i` in its low and code `i + 16` in its high half |
//!
//! Q4_0: `value[e] = scale * (q[e] - 8)`; Q4_1: `value[e] = scale * q[e] + minimum`

use super::f16_at;

pub(super) fn q4_0_block(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &codes) in low.iter_mut().zip(high).zip(&block[2..]) {
        *low = scale * f32::from((codes & 15) as i8 - 8);
        *high = scale * f32::from((codes >> 4) as i8 - 8);
    }
}

pub(super) fn q4_1_block(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, minimum) = (f16_at(block, 0), f16_at(block, 2));
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &codes) in low.iter_mut().zip(high).zip(&block[4..]) {
        *low = scale * f32::from(codes & 15) + minimum;
        *high = scale * f32::from(codes >> 4) + minimum;
    }
}
