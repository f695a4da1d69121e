//! Q4_K: 256 four-bit codes in 8 sub-blocks of 32, each with a six-bit scale and a six-bit minimum.
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | `scale`: f16, of the sub-blocks' scales |
//! | 2..4 | `minimum`: f16, of the sub-blocks' minimums |
//! | 4..16 | `packed[12]`: 8 scales and 8 minimums of six bits, see [`scales_k4`] |
//! | 16..144 | `qs[128]`: sub-block `j` has bytes `32 * (j / 2) ..`, the low halves when `j` is even, else the high ones |
//!
//! `value[e] = scale * scales[e / 32] * q[e] - minimum * minimums[e / 32]`, each product rounded, the first one first

use super::f16_at;

pub(super) fn q4_k_block(block: &[u8; 144], out: &mut [f32; 256]) {
    let (head, qs) = block.split_at(16);
    let (scales, minimums) = scales_and_minimums(head);
    let (subs, _) = out.as_chunks_mut::<32>();
    for (j, sub) in subs.iter_mut().enumerate() {
        for (out, &codes) in sub.iter_mut().zip(&qs[32 * (j / 2)..]) {
            let q = codes >> (4 * (j % 2)) & 15;
            *out = scales[j] * f32::from(q) - minimums[j];
        }
    }
}

/// The scale and the minimum of each sub-block, from the first 16 bytes of a Q4_K or Q5_K block.
pub(super) fn scales_and_minimums(head: &[u8]) -> ([f32; 8], [f32; 8]) {
    let head: &[u8; 16] = head.try_into().expect("16 bytes");
    let packed = std::array::from_fn(|i| head[4 + i]);
    let (scales, minimums) = scales_k4(&packed);
    let (scale, minimum) = (f16_at(head, 0), f16_at(head, 2));
    (scales.map(|sc| scale * f32::from(sc)), minimums.map(|m| minimum * f32::from(m)))
}

/// The 8 scales and the 8 minimums, 0 to 63, of the 12 bytes that Q4_K and Q5_K keep them in.
///
/// | bytes | bits 0..6 | bits 6..8 |
/// |---|---|---|
/// | 0..4 | scales 0..4 | upper two bits of scales 4..8 |
/// | 4..8 | minimums 0..4 | upper two bits of minimums 4..8 |
///
/// Byte `8 + i` has the lower four bits of scale `4 + i` in its low half and of minimum `4 + i` in its high half.
pub fn scales_k4(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut minimums) = ([0; 8], [0; 8]);
    for i in 0..4 {
        let (scale, minimum, low) = (packed[i], packed[i + 4], packed[i + 8]);
        scales[i] = scale & 63;
        minimums[i] = minimum & 63;
        scales[i + 4] = low & 15 | scale >> 6 << 4;
        minimums[i + 4] = low >> 4 | minimum >> 6 << 4;
    }
    (scales, minimums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_scales_use_each_of_the_96_bits_once() {
        let mut seen = [0u32; 16];
        for bit in 0..96 {
            let mut packed = [0; 12];
            packed[bit / 8] = 1 << (bit % 8);
            let (scales, minimums) = scales_k4(&packed);
            let all = [scales, minimums].concat();
            assert_eq!(all.iter().map(|s| s.count_ones()).sum::<u32>(), 1, "bit {bit}");
            all.iter().zip(&mut seen).for_each(|(&s, seen)| *seen |= u32::from(s));
        }
        assert_eq!(seen, [63; 16]);
    }
}
