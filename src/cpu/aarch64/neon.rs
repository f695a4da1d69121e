//! What every AArch64 has, as Cortex-A53 and A72.
//!
//! `smlal` multiplies int8 and adds in 16 bits, which hold 16 products of 4-bit codes (16 · 15 · 127 = 30,480) and of codes
//! from -16 on (16 · 16 · 127 = 32,512), 8 of 5-bit codes (8 · 31 · 127 = 31,496) and of codes from -32 on
//! (8 · 32 · 127 = 32,512), 2 of int8 (2 · 128 · 127 = 32,512). A lane takes one product from each register of codes: 4 of
//! 16 columns, twice as many where two lanes are added.

use super::super::attention::attention;
use super::super::lanes::{self, ATTENTION_TILE, SoftmaxState};
use super::super::rows::Rows;
use super::super::scalar::SCALAR;
use super::super::{Kernels, tile};
use super::intrinsics::*;
use super::smlal::Smlal;
use super::{Dot, Micro, Out, QUADS, each, each_micro, gemm, load, store, ternary};
use std::arch::aarch64::{vld1_u16, vld1q_f32, vst1_u16, vst1q_f32};
use std::arch::asm;

pub static NEON: Kernels = Kernels {
    name: "aarch64-neon",
    available: || std::arch::is_aarch64_feature_detected!("neon"),
    gemm_f32: gemm_float::<F32>,
    gemm_f16: gemm_float::<F16>,
    gemm_bf16: gemm_float::<BF16>,
    gemm_q8_0: gemm::simple::<Wide, 8, false>,
    gemm_q4_0: gemm::simple::<Narrow<16>, 4, false>,
    gemm_q4_1: gemm::simple::<Narrow<16>, 4, true>,
    gemm_q5_0: gemm::simple::<Narrow<16>, 5, false>,
    gemm_q5_1: gemm::simple::<Narrow<8>, 5, true>,
    gemm_q4_k: gemm::k::<Narrow<16>, 4>,
    gemm_q5_k: gemm::k::<Narrow<8>, 5>,
    gemm_q6_k: gemm::q6_k::<Narrow<16>>,
    gemm_tq2_0: ternary::tq2_0::<Smlal>,
    gemm_i2_s: ternary::i2_s::<Smlal>,
    attend,
    f32_from_f16,
    f16_from_f32,
    // The elementwise functions are compiled for NEON already.
    ..SCALAR
};

attention! {
    features: "neon", width: 4, queries: 4, score_vectors: 2, value_vectors: 4,
    load: vld1q_f32, store: vst1q_f32, splat: vdupq_n_f32, zero: zero,
    add: vaddq_f32, mul: vmulq_f32, fma: fma
}

#[inline]
#[target_feature(enable = "neon")]
fn zero() -> float32x4_t {
    vdupq_n_f32(0.0)
}

/// `x * y + z`, in the order of arguments that the other instruction sets have.
#[inline]
#[target_feature(enable = "neon")]
fn fma(x: float32x4_t, y: float32x4_t, z: float32x4_t) -> float32x4_t {
    vfmaq_f32(z, x, y)
}

/// Columns 4V to 4V + 3 of an activation row, in every lane.
#[inline(always)]
fn broadcast<const V: i32>(x: int8x16_t) -> int8x16_t {
    vreinterpretq_s8_s32(vdupq_laneq_s32::<V>(vreinterpretq_s32_s8(x)))
}

/// Columns 4V + 4 to 4V + 7.
#[inline(always)]
fn broadcast_next<const V: i32>(x: int8x16_t) -> int8x16_t {
    if V == 0 { broadcast::<1>(x) } else { broadcast::<3>(x) }
}

/// `sums + codes · x`, the low and the high halves. The intrinsics end as four instructions each where the compiler knows
/// that codes are positive, since it then sees no signed product. Not `pure`: see `sdot`.
#[inline(always)]
fn smlal([mut low, mut high]: [int16x8_t; 2], codes: int8x16_t, x: int8x16_t) -> [int16x8_t; 2] {
    // SAFETY: two instructions of every AArch64, registers only.
    unsafe {
        asm!(
            "smlal {0:v}.8h, {1:v}.8b, {2:v}.8b",
            inout(vreg) low, in(vreg) codes, in(vreg) x,
            options(nomem, nostack, preserves_flags)
        );
        asm!(
            "smlal2 {0:v}.8h, {1:v}.16b, {2:v}.16b",
            inout(vreg) high, in(vreg) codes, in(vreg) x,
            options(nomem, nostack, preserves_flags)
        );
    }
    [low, high]
}

/// Codes of up to 6 bits: sums of 16 bits, four per row. They have room for PRODUCTS, 8 or 16.
struct Narrow<const PRODUCTS: usize>;

impl<const PRODUCTS: usize> Dot for Narrow<PRODUCTS> {
    type Sum = [int16x8_t; 2];
    const ROWS: usize = 8;
    const ROOM: bool = false;

    #[inline(always)]
    fn origin(_: i32) -> i32 {
        0
    }

    #[inline(always)]
    fn begin<const N: usize>(_: int32x4_t) -> [Self::Sum; N] {
        [[vdupq_n_s16(0); 2]; N]
    }

    #[inline(always)]
    fn add<const V: i32, const N: usize>(sums: &mut [Self::Sum; N], codes: &[[int8x16_t; 2]; N], x: &[int8x16_t; N]) {
        for n in 0..N {
            sums[n] = smlal(sums[n], codes[n][0], broadcast::<V>(x[n]));
        }
        for n in 0..N {
            sums[n] = smlal(sums[n], codes[n][1], broadcast_next::<V>(x[n]));
        }
    }

    #[inline(always)]
    fn floats<const N: usize>(sums: &[Self::Sum; N], start: int32x4_t, _: i32) -> [float32x4_t; N] {
        each(*sums, |[first, second]| {
            vcvtq_f32_s32(match PRODUCTS {
                16 => vpadalq_s16(start, vpaddq_s16(first, second)),
                _ => vaddq_s32(start, vpaddq_s32(vpaddlq_s16(first), vpaddlq_s16(second))),
            })
        })
    }
}

/// Codes of int8: sums of 32 bits, two per row.
struct Wide;

impl Dot for Wide {
    type Sum = [int32x4_t; 2];
    const ROWS: usize = 8;
    const ROOM: bool = false;

    #[inline(always)]
    fn origin(_: i32) -> i32 {
        0
    }

    #[inline(always)]
    fn begin<const N: usize>(_: int32x4_t) -> [Self::Sum; N] {
        [[vdupq_n_s32(0); 2]; N]
    }

    #[inline(always)]
    fn add<const V: i32, const N: usize>(sums: &mut [Self::Sum; N], codes: &[[int8x16_t; 2]; N], x: &[int8x16_t; N]) {
        for n in 0..N {
            let ([a, b], x, y) = (codes[n], broadcast::<V>(x[n]), broadcast_next::<V>(x[n]));
            let low = vmull_s8(vget_low_s8(a), vget_low_s8(x));
            let low = vmlal_s8(low, vget_low_s8(b), vget_low_s8(y));
            let high = vmlal_high_s8(vmull_high_s8(a, x), b, y);
            sums[n] = [vpadalq_s16(sums[n][0], low), vpadalq_s16(sums[n][1], high)];
        }
    }

    #[inline(always)]
    fn floats<const N: usize>(sums: &[Self::Sum; N], start: int32x4_t, _: i32) -> [float32x4_t; N] {
        each(*sums, |[first, second]| vcvtq_f32_s32(vaddq_s32(start, vpaddq_s32(first, second))))
    }
}

/// A float format of weights.
trait Float {
    const BYTES: usize;
    /// 4 weights at `offset`, as f32.
    fn load(bytes: &[u8], offset: usize) -> float32x4_t;
}
struct F32;
struct F16;
struct BF16;
impl Float for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    fn load(bytes: &[u8], offset: usize) -> float32x4_t {
        vreinterpretq_f32_u8(load(bytes, offset))
    }
}
impl Float for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load(bytes: &[u8], offset: usize) -> float32x4_t {
        super::load_f16(bytes, offset)
    }
}
impl Float for BF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load(bytes: &[u8], offset: usize) -> float32x4_t {
        let halves = vreinterpret_u16_u8(super::load_half(bytes, offset));
        vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(halves)))
    }
}

/// A GEMV takes the four quads together, so that a tile is read as one stream; a GEMM one at a time, for the registers.
fn gemm_float<F: Float>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_micro!(M, N in [4 by 4], up to 4, micro_float::<F, M>, then micro_float::<F, 1>, tile, x, out);
}

#[inline(always)]
fn micro_float<F: Float, const M: usize>(tile: &[u8], x: Micro<'_, M>, out: &mut Out<M>) {
    let mut sums = [[vdupq_n_f32(0.0); M]; QUADS];
    if M == 1 {
        sums = quads_float::<F, M, QUADS>(tile, &x, 0);
    } else {
        for q in 0..QUADS {
            [sums[q]] = quads_float::<F, M, 1>(tile, &x, q);
        }
    }
    store(out, &sums, |sums| sums);
}

/// The sums of Q quads from `first` on.
#[inline(always)]
fn quads_float<F: Float, const M: usize, const Q: usize>(
    tile: &[u8],
    x: &Micro<'_, M>,
    first: usize,
) -> [[float32x4_t; M]; Q] {
    let mut chains = [[[vdupq_n_f32(0.0); 4]; M]; Q];
    for (k, columns) in tile.chunks_exact(4 * F::BYTES * tile::ROWS).enumerate() {
        let mut values = [vdupq_n_f32(0.0); M];
        for m in 0..M {
            let four: &[f32; 4] = x.values[m][4 * k..].first_chunk().expect("columns are a multiple of 32");
            // SAFETY: 4 readable floats; the load needs no alignment.
            values[m] = unsafe { vld1q_f32(four.as_ptr()) };
        }
        for q in 0..Q {
            let weights = |chain: usize| F::load(columns, (chain * tile::ROWS + 4 * (first + q)) * F::BYTES);
            let (a, b, c, d) = (weights(0), weights(1), weights(2), weights(3));
            for m in 0..M {
                let chains = &mut chains[q][m];
                chains[0] = vfmaq_laneq_f32::<0>(chains[0], a, values[m]);
                chains[1] = vfmaq_laneq_f32::<1>(chains[1], b, values[m]);
                chains[2] = vfmaq_laneq_f32::<2>(chains[2], c, values[m]);
                chains[3] = vfmaq_laneq_f32::<3>(chains[3], d, values[m]);
            }
        }
    }
    let mut sums = [[vdupq_n_f32(0.0); M]; Q];
    for q in 0..Q {
        for m in 0..M {
            let [a, b, c, d] = chains[q][m];
            sums[q][m] = vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d));
        }
    }
    sums
}

fn f32_from_f16(x: &[u16], out: &mut [f32]) {
    let (x4, x_rest) = x.as_chunks::<4>();
    let (out4, out_rest) = out.as_chunks_mut::<4>();
    for (out, x) in out4.iter_mut().zip(x4) {
        // SAFETY: 4 values on either side; neither needs alignment.
        unsafe { vst1q_f32(out.as_mut_ptr(), super::f32_from_f16(vld1_u16(x.as_ptr()))) };
    }
    for (out, x) in out_rest.iter_mut().zip(x_rest) {
        *out = half::f16::from_bits(*x).to_f32();
    }
}

fn f16_from_f32(x: &[f32], out: &mut [u16]) {
    let (x4, x_rest) = x.as_chunks::<4>();
    let (out4, out_rest) = out.as_chunks_mut::<4>();
    for (out, x) in out4.iter_mut().zip(x4) {
        // SAFETY: 4 values on either side; neither needs alignment.
        unsafe { vst1_u16(out.as_mut_ptr(), super::f16_from_f32(vld1q_f32(x.as_ptr()))) };
    }
    for (out, x) in out_rest.iter_mut().zip(x_rest) {
        *out = half::f16::from_f32(*x).to_bits();
    }
}
