//! Q2_K: 256 two-bit codes in 16 sub-blocks of 16, each with a four-bit scale and a four-bit minimum.
//!
//! | bytes | field |
//! |---|---|
//! | 0..16 | `packed[16]`: of each sub-block the scale in the low and the minimum in the high half |
//! | 16..80 | `qs[64]`: with `h = e / 128`, `g = e % 128 / 32`, `l = e % 32`: code `e` is bits `2g..` of `qs[32h + l]` |
//! | 80..82 | `scale`: f16, of the sub-blocks' scales |
//! | 82..84 | `minimum`: f16, of the sub-blocks' minimums |
//!
//! `value[e] = scale * scales[e / 16] * q[e] - minimum * minimums[e / 16]`, each product rounded, the first one first

use super::f16_at;

pub(super) fn q2_k_block(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scale, minimum) = (f16_at(block, 80), f16_at(block, 82));
    let (subs, _) = out.as_chunks_mut::<16>();
    for (sub_index, sub) in subs.iter_mut().enumerate() {
        let packed = block[sub_index];
        let (scale, minimum) = (scale * f32::from(packed & 15), minimum * f32::from(packed >> 4));
        // Two sub-blocks share the 32 bytes of a plane; eight share the 32 bytes of a half.
        let (h, g, half) = (sub_index / 8, sub_index % 8 / 2, sub_index % 2);
        let at = 16 + 32 * h + 16 * half;
        for (out, &codes) in sub.iter_mut().zip(&block[at..]) {
            *out = scale * f32::from(codes >> (2 * g) & 3) - minimum;
        }
    }
}
