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

/// Below this no scale is worth keeping: the block is zero.
const SCALE_MIN: f32 = 1e-15;

/// The block that is near to these values, in the sense of least squares weighted by the values' own squares.
///
/// Each sub-block tries scales around the one that gives its largest value the code -32, and keeps the one whose best
/// fit leaves the least error. Then the 16 scales become bytes under one f16, and the codes are made anew for those.
pub fn quantize_block(values: &[f32; 256], out: &mut [u8; 210]) {
    out.fill(0);
    let (subs, _) = values.as_chunks::<16>();
    let mut scales = [0.0f32; 16];
    for (scale, sub) in scales.iter_mut().zip(subs) {
        *scale = best_scale(sub);
    }
    let largest = scales.iter().copied().fold(0.0f32, |a, b| if b.abs() > a.abs() { b } else { a });
    if largest.abs() < SCALE_MIN {
        return;
    }
    let inverse = -128.0 / largest;
    let scale = half::f16::from_f32(1.0 / inverse);
    out[208..].copy_from_slice(&scale.to_le_bytes());
    for (sub_index, sub) in subs.iter().enumerate() {
        let sub_scale = nearest(inverse * scales[sub_index]).min(127.0);
        out[192 + sub_index] = sub_scale as i8 as u8;
        let step = scale.to_f32() * sub_scale;
        for (l, value) in sub.iter().enumerate() {
            // Without a step all codes mean zero.
            let code = if step == 0.0 { 0.0 } else { nearest(value / step).clamp(-32.0, 31.0) };
            let (code, place) = ((code as i8 + 32) as u8, Place::of(16 * sub_index + l));
            out[place.low] |= (code & 15) << place.low_shift;
            out[place.high] |= (code >> 4) << place.high_shift;
        }
    }
}

/// The scale that 16 values are best divided by to become codes of six bits.
fn best_scale(values: &[f32; 16]) -> f32 {
    let largest = values.iter().copied().fold(0.0f32, |a, b| if b.abs() > a.abs() { b } else { a });
    if largest.abs() < SCALE_MIN {
        return 0.0;
    }
    let (mut best, mut best_fit) = (0.0, 0.0);
    // The middle one first: a later one has to be better.
    for step in [0].into_iter().chain(-9..0).chain(1..10) {
        let inverse = -(32.0 + 0.1 * step as f32) / largest;
        // Of the error sum(x^2 (x - scale code)^2) as a function of the scale: its minimum is at `xc / cc`, where it is
        // lower than with no codes at all by `xc^2 / cc`.
        let codes = values.map(|value| nearest(inverse * value).clamp(-32.0, 31.0));
        let xc = sum(std::array::from_fn(|i| values[i] * values[i] * values[i] * codes[i]));
        let cc = sum(std::array::from_fn(|i| values[i] * values[i] * codes[i] * codes[i]));
        if cc > 0.0 && xc * xc > best_fit * cc {
            (best, best_fit) = (xc / cc, xc * xc / cc);
        }
    }
    best
}

/// The sum by halves: lanes of a vector can do that.
fn sum(mut values: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            values[i] += values[i + half];
        }
    }
    values[0]
}

/// The nearest integer, the even one of two, of what is far below 2^22: as an addition, which CPUs do on vectors.
fn nearest(value: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: f32 has no fractions here.
    (value + MAGIC) - MAGIC
}
