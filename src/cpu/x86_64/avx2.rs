//! AVX2, FMA and F16C: x86-64 from 2013 on.
//!
//! A 256-bit register holds 8 of a tile's 16 rows, one per 32-bit lane. `vpmaddubsw` multiplies unsigned codes with signed
//! activations and adds pairs into 16 bits, which cannot saturate: pairs stay below 2 · 15 · 127 = 3,810 for 4-bit codes,
//! so 8 may be added before they are widened; 4 for 5 bits, 2 for 6 bits; for int8 one (2 · 128 · 127 = 32,512); for codes
//! of 0 to 2 there may be 64 (64 · 2 · 2 · 127 = 32,512).

use super::super::attention::attention;
use super::super::lanes::{self, ATTENTION_TILE, SoftmaxState};
use super::super::rows::{BLOCK, Block, Micro, Rows, SUM};
use super::super::{Kernels, tile};
use super::gemm256::{self, Codes, Dot, HALVES, LANES, broadcast, load, load_f16, load_half, store};
use super::{elementwise, ternary256};
use std::arch::x86_64::*;

pub static AVX2: Kernels = Kernels {
    name: "x86_64-avx2",
    available: || {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
    },
    gemm_f32: gemm_float::<F32>,
    gemm_f16: gemm_float::<F16>,
    gemm_bf16: gemm_float::<BF16>,
    gemm_q8_0: gemm256::simple::<Maddubs, 8, false>,
    gemm_q4_0: gemm256::simple::<Maddubs, 4, false>,
    gemm_q4_1: gemm256::simple::<Maddubs, 4, true>,
    gemm_q5_0: gemm256::simple::<Maddubs, 5, false>,
    gemm_q5_1: gemm256::simple::<Maddubs, 5, true>,
    gemm_q4_k: gemm256::k::<Maddubs, 4>,
    gemm_q5_k: gemm256::k::<Maddubs, 5>,
    gemm_q6_k: gemm256::q6_k::<Maddubs>,
    gemm_tq2_0: ternary256::gemm::<Maddubs, true>,
    gemm_i2_s: ternary256::gemm::<Maddubs, false>,
    quantize,
    quantize_row,
    rms_norm,
    silu_mul,
    relu2_mul,
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

/// `vpmaddubsw`.
struct Maddubs;

/// Adds pairs of 16 bits into 32.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(pairs: __m256i) -> __m256i {
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

impl Dot for Maddubs {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn block<const BITS: usize, const M: usize>(
        codes: &Codes,
        x: &[Block; M],
        starts: [__m256i; M],
    ) -> [[__m256i; HALVES]; M] {
        // How many products may be added before they are widened.
        let group = match BITS {
            4 => 8,
            5 => 4,
            _ => 1,
        };
        let mut sums = starts.map(|start| [start; HALVES]);
        for first in (0..8).step_by(group) {
            let mut pairs = [[_mm256_setzero_si256(); HALVES]; M];
            for v in first..first + group {
                for m in 0..M {
                    let quants = broadcast(&x[m], v);
                    for h in 0..HALVES {
                        let code = codes[v][h];
                        let products = match BITS {
                            // |w| · (x with the sign of w), where |-128| is 128 unsigned and x never is -128.
                            8 => _mm256_maddubs_epi16(_mm256_abs_epi8(code), _mm256_sign_epi8(quants, code)),
                            _ => _mm256_maddubs_epi16(code, quants),
                        };
                        pairs[m][h] = _mm256_add_epi16(pairs[m][h], products);
                    }
                }
            }
            for m in 0..M {
                for h in 0..HALVES {
                    sums[m][h] = _mm256_add_epi32(sums[m][h], widen(pairs[m][h]));
                }
            }
        }
        sums
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn block_6<const M: usize>(
        codes: &Codes,
        x: &[Block; M],
        scales: [[__m256i; HALVES]; 2],
    ) -> [[__m256i; HALVES]; M] {
        let mut sums = [[_mm256_setzero_si256(); HALVES]; M];
        for two in 0..4 {
            let v = 2 * two;
            for m in 0..M {
                let quants = [broadcast(&x[m], v), broadcast(&x[m], v + 1)];
                for h in 0..HALVES {
                    let first = _mm256_maddubs_epi16(codes[v][h], quants[0]);
                    let second = _mm256_maddubs_epi16(codes[v + 1][h], quants[1]);
                    let products = _mm256_madd_epi16(_mm256_add_epi16(first, second), scales[two / 2][h]);
                    sums[m][h] = _mm256_add_epi32(sums[m][h], products);
                }
            }
        }
        sums
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn ternary<const M: usize>(codes: &[Codes; 4], x: [&[Block; M]; 4]) -> [[__m256i; HALVES]; M] {
        let mut pairs = [[_mm256_setzero_si256(); HALVES]; M];
        for f in 0..4 {
            for v in 0..8 {
                for m in 0..M {
                    let quants = broadcast(&x[f][m], v);
                    for h in 0..HALVES {
                        let products = _mm256_maddubs_epi16(codes[f][v][h], quants);
                        pairs[m][h] = _mm256_add_epi16(pairs[m][h], products);
                    }
                }
            }
        }
        let mut sums = [[_mm256_setzero_si256(); HALVES]; M];
        for m in 0..M {
            sums[m] = [widen(pairs[m][0]), widen(pairs[m][1])];
        }
        sums
    }

    /// Two of a byte's four codes stay times 4, which saves shifts: 16 products of up to 4 · 2 · 2 · 127 make 32,512.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn ternary_row<const SCALED: bool>(lines: &[u8], x: [&Block; 4]) -> [__m256i; HALVES] {
        let masks = [_mm256_set1_epi8(3), _mm256_set1_epi8(12)];
        let lines = &lines[..ternary256::LINES];
        let mut pairs = [[_mm256_setzero_si256(); HALVES]; 2];
        for v in 0..8 {
            for h in 0..HALVES {
                let bytes = load(lines, 64 * v + 32 * h);
                let bytes = [bytes, _mm256_srli_epi16::<4>(bytes)];
                for f in 0..4 {
                    let place = ternary256::shift::<SCALED>(f) / 2;
                    let codes = _mm256_and_si256(bytes[place / 2], masks[place % 2]);
                    let products = _mm256_maddubs_epi16(codes, broadcast(x[f], v));
                    pairs[place % 2][h] = _mm256_add_epi16(pairs[place % 2][h], products);
                }
            }
        }
        let mut sums = [_mm256_setzero_si256(); HALVES];
        for h in 0..HALVES {
            sums[h] = _mm256_add_epi32(widen(pairs[0][h]), _mm256_srai_epi32::<2>(widen(pairs[1][h])));
        }
        sums
    }
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
