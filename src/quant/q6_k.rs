//! Q6_K: 256 six-bit codes in 16 sub-blocks of 16, each with a signed eight-bit scale.
//!
//! | bytes | field |
//! |---|---|
//! | 0..128 | `ql[128]`: bits 0..4 of the codes |
//! | 128..192 | `qh[64]`: bits 4..6 of the codes |
//! | 192..208 | `scales[16]`: i8 |
//! | 208..210 | `scale`: f16, of the scales |
//!
//! With `h = e / 128`, `g = e % 128 / 32`, `l = e % 32`: the low bits of code `e` are in `ql[64h + 32(g % 2) + l]`, in the
//! low half when `g < 2`, else in the high one; the upper two are bits `2g..` of `qh[32h + l]`.
//!
//! `value[e] = scale * scales[e / 16] * (q[e] - 32)`, the first product rounded first

use super::f16_at;

pub(super) fn q6_k_block(block: &[u8; 210], out: &mut [f32; 256]) {
    let scale = f16_at(block, 208);
    for (e, out) in out.iter_mut().enumerate() {
        let place = Place::of(e);
        let low = block[place.low] >> place.low_shift & 15;
        let high = block[place.high] >> place.high_shift & 3;
        let sub_scale = scale * f32::from(block[192 + e / 16] as i8);
        *out = sub_scale * f32::from((low | high << 4) as i8 - 32);
    }
}

/// Where in a block the two parts of a code are.
pub(super) struct Place {
    pub(super) low: usize,
    pub(super) low_shift: usize,
    pub(super) high: usize,
    pub(super) high_shift: usize,
}

impl Place {
    /// Of code `e`, 0 to 255.
    pub(super) fn of(e: usize) -> Place {
        let (h, g, l) = (e / 128, e % 128 / 32, e % 32);
        Place { low: 64 * h + 32 * (g % 2) + l, low_shift: 4 * (g / 2), high: 128 + 32 * h + l, high_shift: 2 * g }
    }
}
