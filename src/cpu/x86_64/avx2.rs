//! AVX2, FMA and F16C: x86-64 from 2013 on.
//!
//! A 256-bit register holds 8 of a tile's 16 rows, one per 32-bit lane. `maddubs` multiplies unsigned weights with
//! signed activations and adds pairs into 16 bits, which cannot saturate: pairs stay below 2 · 15 · 127 = 3,810 for 4-bit
//! codes, so 8 may be added before they are widened; 4 for 5 bits, 2 for 6 bits; for int8 one (2 · 128 · 127 = 32,512).
//!
//! `M` activation rows share each unpacked weight: 4 in a GEMM, 1 in a GEMV. `H` halves of a tile go side by side: one
//! in a GEMM (registers), two in a GEMV (so that a tile is read as one stream).

use super::super::attention::attention;
use super::super::lanes::{self, ATTENTION_TILE, SoftmaxState};
use super::super::rows::{BLOCK, Block, Micro, Rows, SUM};
use super::super::{Kernels, tile};
use super::elementwise;
use crate::quant::Format;
use std::arch::x86_64::*;

pub static AVX2: Kernels = Kernels {
    name: "x86_64-avx2",
    available: || {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
    },
    gemm_f32: gemm_float::<F32>,
    gemm_f16: gemm_float::<F16>,
    gemm_bf16: gemm_float::<BF16>,
    gemm_q8_0: gemm_simple::<8, false>,
    gemm_q4_0: gemm_simple::<4, false>,
    gemm_q4_1: gemm_simple::<4, true>,
    gemm_q5_0: gemm_simple::<5, false>,
    gemm_q5_1: gemm_simple::<5, true>,
    gemm_q4_k: gemm_k::<4>,
    gemm_q5_k: gemm_k::<5>,
    gemm_q6_k,
    quantize,
    rms_norm,
    silu_mul,
    rope,
    softmax_stats,
    attend,
    attend_merge,
    attend_end,
    f32_from_f16,
    f16_from_f32,
    keys_from_i8,
    values_from_i8,
    add_rotated,
};

elementwise!("avx2,fma,f16c");
attention! {
    features: "avx2,fma,f16c", width: 8, queries: 4, score_vectors: 2, value_vectors: 2,
    load: _mm256_loadu_ps, store: _mm256_storeu_ps, splat: _mm256_set1_ps, zero: _mm256_setzero_ps,
    add: _mm256_add_ps, mul: _mm256_mul_ps, fma: _mm256_fmadd_ps
}

/// Rows of a register.
const LANES: usize = 8;

/// 32 bytes at `offset`.
#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8], offset: usize) -> __m256i {
    let bytes: &[u8; 32] = bytes[offset..].first_chunk().expect("a tile is whole");
    // SAFETY: 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// 8 f16 at `offset`, as f32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load_f16(bytes: &[u8], offset: usize) -> __m256 {
    _mm256_cvtph_ps(load_half(bytes, offset))
}

/// 16 bytes at `offset`.
#[inline]
#[target_feature(enable = "avx2")]
fn load_half(bytes: &[u8], offset: usize) -> __m128i {
    let bytes: &[u8; 16] = bytes[offset..].first_chunk().expect("a tile is whole");
    // SAFETY: 16 readable bytes; the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// 4 activations from column `at` of a block, in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(x: &Block, at: usize) -> __m256i {
    let four: &[i8; 4] = x.quants[at..].first_chunk().expect("inside a block");
    _mm256_set1_epi32(i32::from_le_bytes(four.map(|quant| quant as u8)))
}

/// The two sums of a block of 32 activations, as a pair of 16 bits in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast_sums(x: &Block) -> __m256i {
    let [first, second] = x.sums;
    _mm256_set1_epi32((first as u16 as i32) | (second as i32) << 16)
}

/// Runs `$micro::<…, M, H>(tile, micro rows, half, out of those rows)` over all activation rows, as many at a time as pay.
macro_rules! each_micro {
    ($micro:ident, [$($generic:tt),*], $many:literal, $tile:expr, $x:expr, $out:expr) => {{
        let (x, out) = ($x, $out);
        let count = x.count();
        let mut t = 0;
        while t + $many <= count {
            let rows = Micro::<$many>::new(&x, t);
            let out = &mut out[t * tile::ROWS..][..$many * tile::ROWS];
            $micro::<$($generic,)* $many, 1>($tile, rows, 0, out);
            $micro::<$($generic,)* $many, 1>($tile, rows, 1, out);
            t += $many;
        }
        while t < count {
            let out = &mut out[t * tile::ROWS..][..tile::ROWS];
            $micro::<$($generic,)* 1, 2>($tile, Micro::<1>::new(&x, t), 0, out);
            t += 1;
        }
    }};
}

/// Stores 8 rows' sums of one activation row.
#[inline]
#[target_feature(enable = "avx2")]
fn store(out: &mut [f32], row: usize, half: usize, sums: __m256) {
    let out: &mut [f32; LANES] = out[row * tile::ROWS + half * LANES..].first_chunk_mut().expect("out is whole");
    // SAFETY: 8 writable floats; the store needs no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sums) }
}

/// Stores what a micro-kernel summed.
#[inline]
#[target_feature(enable = "avx2")]
fn store_all<const M: usize, const H: usize>(out: &mut [f32], half: usize, sums: &[[__m256; M]; H]) {
    for h in 0..H {
        for m in 0..M {
            store(out, m, half + h, sums[h][m]);
        }
    }
}

/// The fifth bits of 4 columns of 8 rows, each as 16 or 0 in its byte: group `group` of the 32 bits in each lane.
#[inline]
#[target_feature(enable = "avx2")]
fn fifth_bits(bits: __m256i, group: usize) -> __m256i {
    let byte = (group / 2) as i32 * 0x0101_0101;
    let lanes = _mm256_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0C0C_0C0C, 0, 0x0404_0404, 0x0808_0808, 0x0C0C_0C0C);
    let spread = _mm256_shuffle_epi8(bits, _mm256_add_epi8(lanes, _mm256_set1_epi32(byte)));
    let mask = _mm256_set1_epi32(if group % 2 == 0 { 0x0804_0201 } else { 0x8040_2010u32 as i32 });
    _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, mask), mask), _mm256_set1_epi8(16))
}

/// Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 by bits and whether a block has a minimum.
#[target_feature(enable = "avx2,fma,f16c")]
fn gemm_simple<const BITS: usize, const MINIMUM: bool>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_micro!(micro_simple, [BITS, MINIMUM], 4, tile, x, out);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn micro_simple<const BITS: usize, const MINIMUM: bool, const M: usize, const H: usize>(
    tile: &[u8],
    x: Micro<'_, M>,
    half: usize,
    out: &mut [f32],
) {
    let high = if MINIMUM { 4 } else { 2 };
    let codes = if BITS == 5 { high + 4 } else { high };
    let block_bytes = codes + if BITS == 8 { 32 } else { 16 };
    let mut sums = [[_mm256_setzero_ps(); M]; H];
    for (b, block) in tile.chunks_exact(block_bytes * tile::ROWS).enumerate() {
        let x = x.block(b).each_ref();
        for h in 0..H {
            let place = (half + h) * 32; // Of 8 rows in a unit of 4 bytes.
            let codes = &block[codes * tile::ROWS..];
            let integers = match BITS {
                4 => dot_4(codes, place, x),
                5 => dot_5(load(block, high * tile::ROWS + place), codes, place, x),
                _ => dot_8(codes, place, x),
            };
            let scale = load_f16(block, place / 2);
            for m in 0..M {
                let mut integer = integers[m];
                if BITS != 8 && !MINIMUM {
                    let zero = _mm256_set1_epi16(1 << (BITS - 1));
                    integer = _mm256_sub_epi32(integer, _mm256_madd_epi16(broadcast_sums(x[m]), zero));
                }
                let scale = _mm256_mul_ps(scale, _mm256_set1_ps(x[m].scale));
                sums[h][m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(integer), scale, sums[h][m]);
                if MINIMUM {
                    let minimum = load_f16(block, 2 * tile::ROWS + place / 2);
                    sums[h][m] = _mm256_fmadd_ps(minimum, _mm256_set1_ps(x[m].scaled_sum), sums[h][m]);
                }
            }
        }
    }
    store_all(out, half, &sums);
}

/// Σ code · quant over a block of 32 columns, for 8 rows and each of M activation rows.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_4<const M: usize>(codes: &[u8], place: usize, x: [&Block; M]) -> [__m256i; M] {
    let mask = _mm256_set1_epi8(15);
    let mut pairs = [_mm256_setzero_si256(); M];
    for v in 0..4 {
        let packed = load(codes, v * 64 + place);
        let low = _mm256_and_si256(packed, mask);
        let high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask);
        for m in 0..M {
            let at = 4 * v;
            pairs[m] = _mm256_add_epi16(pairs[m], _mm256_maddubs_epi16(low, broadcast(x[m], at)));
            pairs[m] = _mm256_add_epi16(pairs[m], _mm256_maddubs_epi16(high, broadcast(x[m], at + 16)));
        }
    }
    widen(pairs)
}

/// As `dot_4`, with fifth bits.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_5<const M: usize>(bits: __m256i, codes: &[u8], place: usize, x: [&Block; M]) -> [__m256i; M] {
    let mask = _mm256_set1_epi8(15);
    let mut sums = [_mm256_setzero_si256(); M];
    for pair in 0..2 {
        let mut pairs = [_mm256_setzero_si256(); M];
        for v in 2 * pair..2 * pair + 2 {
            let packed = load(codes, v * 64 + place);
            let low = _mm256_or_si256(_mm256_and_si256(packed, mask), fifth_bits(bits, v));
            let high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask);
            let high = _mm256_or_si256(high, fifth_bits(bits, v + 4));
            for m in 0..M {
                let at = 4 * v;
                pairs[m] = _mm256_add_epi16(pairs[m], _mm256_maddubs_epi16(low, broadcast(x[m], at)));
                pairs[m] = _mm256_add_epi16(pairs[m], _mm256_maddubs_epi16(high, broadcast(x[m], at + 16)));
            }
        }
        let widened = widen(pairs);
        for m in 0..M {
            sums[m] = _mm256_add_epi32(sums[m], widened[m]);
        }
    }
    sums
}

/// As `dot_4`, for int8 weights: |w| · (x with the sign of w), where |-128| is 128 unsigned and x never is -128.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_8<const M: usize>(codes: &[u8], place: usize, x: [&Block; M]) -> [__m256i; M] {
    let mut sums = [_mm256_setzero_si256(); M];
    for v in 0..8 {
        let weights = load(codes, v * 64 + place);
        let magnitudes = _mm256_abs_epi8(weights);
        let mut pairs = [_mm256_setzero_si256(); M];
        for m in 0..M {
            let signed = _mm256_sign_epi8(broadcast(x[m], 4 * v), weights);
            pairs[m] = _mm256_maddubs_epi16(magnitudes, signed);
        }
        let widened = widen(pairs);
        for m in 0..M {
            sums[m] = _mm256_add_epi32(sums[m], widened[m]);
        }
    }
    sums
}

/// Adds pairs of 16 bits into 32.
#[inline]
#[target_feature(enable = "avx2")]
fn widen<const M: usize>(mut pairs: [__m256i; M]) -> [__m256i; M] {
    for pair in &mut pairs {
        *pair = _mm256_madd_epi16(*pair, _mm256_set1_epi16(1));
    }
    pairs
}

/// The 6-bit scales and minimums of 8 rows: byte j % 4 of lane r in register j / 4 is sub-block j's of row r.
#[inline]
#[target_feature(enable = "avx2")]
fn scales_k4(packed: &[u8], place: usize) -> ([__m256i; 2], [__m256i; 2]) {
    let six = _mm256_set1_epi8(0x3F);
    let four = _mm256_set1_epi8(0x0F);
    let two = _mm256_set1_epi8(0x03);
    let (a, b, c) = (load(packed, place), load(packed, 64 + place), load(packed, 128 + place));
    let top = |x| _mm256_slli_epi16(_mm256_and_si256(_mm256_srli_epi16(x, 6), two), 4);
    (
        [_mm256_and_si256(a, six), _mm256_or_si256(_mm256_and_si256(c, four), top(a))],
        [_mm256_and_si256(b, six), _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(c, 4), four), top(b))],
    )
}

/// Byte `j % 4` of each lane of register `j / 4`, as f32.
#[inline]
#[target_feature(enable = "avx2")]
fn byte_as_f32(registers: &[__m256i; 2], j: usize) -> __m256 {
    let shifted = _mm256_srl_epi32(registers[j / 4], _mm_cvtsi32_si128(8 * (j % 4) as i32));
    _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(0xFF)))
}

/// Q4_K and Q5_K.
#[target_feature(enable = "avx2,fma,f16c")]
fn gemm_k<const BITS: usize>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_micro!(micro_k, [BITS], 4, tile, x, out);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn micro_k<const BITS: usize, const M: usize, const H: usize>(
    tile: &[u8],
    x: Micro<'_, M>,
    half: usize,
    out: &mut [f32],
) {
    let codes = if BITS == 5 { 48 } else { 16 };
    let mut sums = [[_mm256_setzero_ps(); M]; H];
    for (b, block) in tile.chunks_exact((codes + 128) * tile::ROWS).enumerate() {
        for h in 0..H {
            let place = (half + h) * 32;
            let (scales, minimums) = scales_k4(&block[4 * tile::ROWS..], place);
            let mut scaled = [_mm256_setzero_ps(); M];
            let mut below = [_mm256_setzero_ps(); M];
            for pair in 0..4 {
                let packed = &block[(codes + 32 * pair) * tile::ROWS..];
                let x = [x.block(8 * b + 2 * pair).each_ref(), x.block(8 * b + 2 * pair + 1).each_ref()];
                let integers = dot_k::<BITS, M>(packed, &block[16 * tile::ROWS..], pair, place, x);
                for (side, integers) in integers.iter().enumerate() {
                    let j = 2 * pair + side;
                    let scale = byte_as_f32(&scales, j);
                    let minimum = byte_as_f32(&minimums, j);
                    for m in 0..M {
                        let scale = _mm256_mul_ps(scale, _mm256_set1_ps(x[side][m].scale));
                        scaled[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(integers[m]), scale, scaled[m]);
                        below[m] = _mm256_fmadd_ps(minimum, _mm256_set1_ps(x[side][m].scaled_sum), below[m]);
                    }
                }
            }
            let (d, dmin) = (load_f16(block, place / 2), load_f16(block, 2 * tile::ROWS + place / 2));
            for m in 0..M {
                sums[h][m] = _mm256_fmadd_ps(d, scaled[m], sums[h][m]);
                sums[h][m] = _mm256_fnmadd_ps(dmin, below[m], sums[h][m]);
            }
        }
    }
    store_all(out, half, &sums);
}

/// Σ code · quant over sub-blocks 2·pair (low halves of the bytes) and 2·pair + 1 (high halves).
#[inline]
#[target_feature(enable = "avx2")]
fn dot_k<const BITS: usize, const M: usize>(
    packed: &[u8],
    fifths: &[u8],
    pair: usize,
    place: usize,
    x: [[&Block; M]; 2],
) -> [[__m256i; M]; 2] {
    let mask = _mm256_set1_epi8(15);
    let sixteen = _mm256_set1_epi8(16);
    let mut sums = [[_mm256_setzero_si256(); M]; 2];
    for quarter in 0..if BITS == 5 { 2 } else { 1 } {
        let groups = if BITS == 5 { 4 } else { 8 };
        let mut pairs = [[_mm256_setzero_si256(); M]; 2];
        for v in quarter * groups..(quarter + 1) * groups {
            let bytes = load(packed, v * 64 + place);
            let mut low = _mm256_and_si256(bytes, mask);
            let mut high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
            if BITS == 5 {
                // Bit 2·pair of each byte belongs to the low code, the next one to the high code: move them to bit 4.
                let bits = _mm256_srl_epi16(load(fifths, v * 64 + place), _mm_cvtsi32_si128(2 * pair as i32));
                low = _mm256_or_si256(low, _mm256_and_si256(_mm256_slli_epi16(bits, 4), sixteen));
                high = _mm256_or_si256(high, _mm256_and_si256(_mm256_slli_epi16(bits, 3), sixteen));
            }
            for m in 0..M {
                let (first, second) = (broadcast(x[0][m], 4 * v), broadcast(x[1][m], 4 * v));
                pairs[0][m] = _mm256_add_epi16(pairs[0][m], _mm256_maddubs_epi16(low, first));
                pairs[1][m] = _mm256_add_epi16(pairs[1][m], _mm256_maddubs_epi16(high, second));
            }
        }
        for side in 0..2 {
            let widened = widen(pairs[side]);
            for m in 0..M {
                sums[side][m] = _mm256_add_epi32(sums[side][m], widened[m]);
            }
        }
    }
    sums
}

#[target_feature(enable = "avx2,fma,f16c")]
fn gemm_q6_k(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_micro!(micro_q6_k, [], 4, tile, x, out);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn micro_q6_k<const M: usize, const H: usize>(tile: &[u8], x: Micro<'_, M>, half: usize, out: &mut [f32]) {
    let mut sums = [[_mm256_setzero_ps(); M]; H];
    for (b, block) in tile.chunks_exact(Format::Q6_K.block_bytes() * tile::ROWS).enumerate() {
        for h in 0..H {
            let place = (half + h) * 32;
            let mut scaled = [_mm256_setzero_ps(); M];
            for j in 0..8 {
                // Lane r: (scale of columns 0 to 15, scale of columns 16 to 31) of row r.
                let scales = _mm256_cvtepi8_epi16(load_half(
                    block,
                    j / 4 * tile::Q6_K_HALF + (96 + j % 4 * 2) * tile::ROWS + place / 2,
                ));
                let x = x.block(8 * b + j).each_ref();
                let integers = dot_6(block, j, place, scales, x);
                for m in 0..M {
                    let zero = _mm256_slli_epi32(_mm256_madd_epi16(scales, broadcast_sums(x[m])), 5);
                    let integer = _mm256_cvtepi32_ps(_mm256_sub_epi32(integers[m], zero));
                    scaled[m] = _mm256_fmadd_ps(integer, _mm256_set1_ps(x[m].scale), scaled[m]);
                }
            }
            let d = load_f16(block, 208 * tile::ROWS + place / 2);
            for m in 0..M {
                sums[h][m] = _mm256_fmadd_ps(d, scaled[m], sums[h][m]);
            }
        }
    }
    store_all(out, half, &sums);
}

/// Σ scale · code · quant over group j of 32 columns of a Q6_K block: two sub-blocks of 16 with their scales.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_6<const M: usize>(block: &[u8], j: usize, place: usize, scales: __m256i, x: [&Block; M]) -> [__m256i; M] {
    let (h, g) = (j / 4, j % 4);
    let lines = &block[h * tile::Q6_K_HALF..][..tile::Q6_K_HALF];
    let mask = _mm256_set1_epi8(15);
    let three = _mm256_set1_epi8(3);
    let low_shift = _mm_cvtsi32_si128(if g < 2 { 0 } else { 4 });
    let high_shift = _mm_cvtsi32_si128(2 * g as i32);
    // Each sub-block's scale twice in a lane, for `madd` to multiply and widen at once.
    let first = _mm256_or_si256(_mm256_and_si256(scales, _mm256_set1_epi32(0xFFFF)), _mm256_slli_epi32(scales, 16));
    let second = _mm256_or_si256(_mm256_andnot_si256(_mm256_set1_epi32(0xFFFF), scales), _mm256_srli_epi32(scales, 16));
    let mut sums = [_mm256_setzero_si256(); M];
    for two in 0..4 {
        let scale = if two < 2 { first } else { second };
        let mut pairs = [_mm256_setzero_si256(); M];
        for v in 2 * two..2 * two + 2 {
            let low = load(lines, (3 * v + 1 + g % 2) * 64 + place);
            let low = _mm256_and_si256(_mm256_srl_epi16(low, low_shift), mask);
            let high = load(lines, 3 * v * 64 + place);
            let high = _mm256_and_si256(_mm256_srl_epi16(high, high_shift), three);
            let codes = _mm256_or_si256(low, _mm256_slli_epi16(high, 4));
            for m in 0..M {
                let quants = broadcast(x[m], 4 * v);
                pairs[m] = _mm256_add_epi16(pairs[m], _mm256_maddubs_epi16(codes, quants));
            }
        }
        for m in 0..M {
            sums[m] = _mm256_add_epi32(sums[m], _mm256_madd_epi16(pairs[m], scale));
        }
    }
    sums
}

/// A float format of weights.
trait Float {
    const BYTES: usize;
    /// 8 weights at `offset`, as f32.
    ///
    /// # Safety
    /// The CPU has AVX2 and F16C.
    unsafe fn load(bytes: &[u8], offset: usize) -> __m256;
}
struct F32;
struct F16;
struct BF16;
impl Float for F32 {
    const BYTES: usize = 4;
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load(bytes: &[u8], offset: usize) -> __m256 {
        _mm256_castsi256_ps(load(bytes, offset))
    }
}
impl Float for F16 {
    const BYTES: usize = 2;
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load(bytes: &[u8], offset: usize) -> __m256 {
        load_f16(bytes, offset)
    }
}
impl Float for BF16 {
    const BYTES: usize = 2;
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load(bytes: &[u8], offset: usize) -> __m256 {
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_half(bytes, offset)), 16))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn gemm_float<F: Float>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_micro!(micro_float, [F], 2, tile, x, out);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn micro_float<F: Float, const M: usize, const H: usize>(tile: &[u8], x: Micro<'_, M>, half: usize, out: &mut [f32]) {
    let mut chains = [[[_mm256_setzero_ps(); 4]; M]; H];
    for (k, columns) in tile.chunks_exact(4 * F::BYTES * tile::ROWS).enumerate() {
        for chain in 0..4 {
            for h in 0..H {
                let offset = (chain * tile::ROWS + (half + h) * LANES) * F::BYTES;
                // SAFETY: this function's own features include those of `load`.
                let weights = unsafe { F::load(columns, offset) };
                for m in 0..M {
                    let value = _mm256_set1_ps(x.values[m][4 * k + chain]);
                    chains[h][m][chain] = _mm256_fmadd_ps(weights, value, chains[h][m][chain]);
                }
            }
        }
    }
    for h in 0..H {
        for m in 0..M {
            let [a, b, c, d] = chains[h][m];
            store(out, m, half + h, _mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d)));
        }
    }
}

#[target_feature(enable = "avx2,f16c")]
fn f32_from_f16(x: &[u16], out: &mut [f32]) {
    let (x8, x_rest) = x.as_chunks::<LANES>();
    let (out8, out_rest) = out.as_chunks_mut::<LANES>();
    for (out, x) in out8.iter_mut().zip(x8) {
        // SAFETY: 8 values on either side; neither needs alignment.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast()))) };
    }
    for (out, x) in out_rest.iter_mut().zip(x_rest) {
        *out = half::f16::from_bits(*x).to_f32();
    }
}

#[target_feature(enable = "avx2,f16c")]
fn f16_from_f32(x: &[f32], out: &mut [u16]) {
    let (x8, x_rest) = x.as_chunks::<LANES>();
    let (out8, out_rest) = out.as_chunks_mut::<LANES>();
    for (out, x) in out8.iter_mut().zip(x8) {
        // SAFETY: 8 values on either side; neither needs alignment.
        unsafe {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(x.as_ptr()));
            _mm_storeu_si128(out.as_mut_ptr().cast(), halves);
        }
    }
    for (out, x) in out_rest.iter_mut().zip(x_rest) {
        *out = half::f16::from_f32(*x).to_bits();
    }
}

const _: () = assert!(BLOCK == 32 && SUM == 16 && tile::ROWS == 2 * LANES);
