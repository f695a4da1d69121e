//! Q5_K: 256 five-bit codes in 8 sub-blocks of 32, each with a six-bit scale and a six-bit minimum.
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | `scale`: f16, of the sub-blocks' scales |
//! | 2..4 | `minimum`: f16, of the sub-blocks' minimums |
//! | 4..16 | `packed[12]`: 8 scales and 8 minimums of six bits, see [`scales_k4`](super::scales_k4) |
//! | 16..48 | `qh[32]`: bit `j` of byte `l` is bit 4 of code `l` of sub-block `j` |
//! | 48..176 | `qs[128]`: bits 0..4, sub-block `j` has bytes `32 * (j / 2) ..`, low halves when `j` is even, else high |
//!
//! `value[e] = scale * scales[e / 32] * q[e] - minimum * minimums[e / 32]`, each product rounded, the first one first

use super::q4_k::scales_and_minimums;

pub(super) fn q5_k_block(block: &[u8; 176], out: &mut [f32; 256]) {
    let (head, codes) = block.split_at(16);
    let (qh, qs) = codes.split_at(32);
    let (scales, minimums) = scales_and_minimums(head);
    let (subs, _) = out.as_chunks_mut::<32>();
    for (j, sub) in subs.iter_mut().enumerate() {
        for ((out, &low), &high) in sub.iter_mut().zip(&qs[32 * (j / 2)..]).zip(qh) {
            let q = low >> (4 * (j % 2)) & 15 | (high >> j & 1) << 4;
            *out = scales[j] * f32::from(q) - minimums[j];
        }
    }
}
