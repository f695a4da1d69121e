//! Q5_0 and Q5_1: 32 five-bit codes and a scale, Q5_1 with a minimum. The fifth bits are kept apart.
//!
//! | Q5_0 bytes | Q5_1 bytes | field |
//! |---|---|---|
//! | 0..2 | 0..2 | `scale`: f16 |
//! | – | 2..4 | `minimum`: f16 |
//! | 2..6 | 4..8 | `qh`: u32, bit `e` is bit 4 of code `e` |
//! | 6..22 | 8..24 | `qs[16]`: bits 0..4, byte `i` holds code `i` in its low and code `i + 16` in its high half |
//!
//! Q5_0: `value[e] = scale * (q[e] - 16)`; Q5_1: `value[e] = scale * q[e] + minimum`

use super::f16_at;

pub(super) fn q5_0_block(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    let q = codes([block[2], block[3], block[4], block[5]], &block[6..]);
    for (out, q) in out.iter_mut().zip(q) {
        *out = scale * f32::from(q as i8 - 16);
    }
}

pub(super) fn q5_1_block(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, minimum) = (f16_at(block, 0), f16_at(block, 2));
    let q = codes([block[4], block[5], block[6], block[7]], &block[8..]);
    for (out, q) in out.iter_mut().zip(q) {
        *out = scale * f32::from(q) + minimum;
    }
}

/// The 32 codes, 0 to 31.
fn codes(qh: [u8; 4], qs: &[u8]) -> [u8; 32] {
    let qh = u32::from_le_bytes(qh);
    std::array::from_fn(|e| {
        let low = if e < 16 { qs[e] & 15 } else { qs[e - 16] >> 4 };
        low | ((qh >> e & 1) as u8) << 4
    })
}
