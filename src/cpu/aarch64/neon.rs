//! What every AArch64 has, as Cortex-A53 and A72.
//!
//! `smull` and `smlal` multiply int8 into 16 bits, which hold 8 products of 5-bit codes (8 · 31 · 127 = 31,496), 4 of
//! 6-bit codes (4 · 63 · 127 = 32,004) and 2 of int8 (2 · 128 · 127 = 32,512); all 16 of a block's two sums of 4-bit
//! codes (16 · 15 · 127 = 30,480). A lane takes one product from each register of codes.

use super::super::attention::attention;
use super::super::lanes::{self, ATTENTION_TILE, SoftmaxState};
use super::super::rows::Rows;
use super::super::scalar::SCALAR;
use super::super::{Kernels, tile};
use super::intrinsics::*;
use super::{Codes, Dot, Micro, Out, QUADS, each_micro, gemm, load, store};
use std::arch::aarch64::{vld1_u16, vld1q_f32, vst1_u16, vst1q_f32};
use std::arch::asm;

pub static NEON: Kernels = Kernels {
    name: "aarch64-neon",
    available: || std::arch::is_aarch64_feature_detected!("neon"),
    gemm_f32: gemm_float::<F32>,
    gemm_f16: gemm_float::<F16>,
    gemm_bf16: gemm_float::<BF16>,
    gemm_q8_0: gemm::simple::<Wide, 8, false>,
    gemm_q4_0: gemm::simple::<Narrow<4>, 4, false>,
    gemm_q4_1: gemm::simple::<Narrow<4>, 4, true>,
    gemm_q5_0: gemm::simple::<Narrow<5>, 5, false>,
    gemm_q5_1: gemm::simple::<Narrow<5>, 5, true>,
    gemm_q4_k: gemm::k::<Narrow<4>, 4>,
    gemm_q5_k: gemm::k::<Narrow<5>, 5>,
    gemm_q6_k: gemm::q6_k::<Narrow<6>>,
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

/// `sums + codes · x`, the low and the high halves. The intrinsics end as four instructions each where the compiler knows
/// that codes are positive, since it then sees no signed product.
#[inline(always)]
fn smlal([mut low, mut high]: [int16x8_t; 2], codes: int8x16_t, x: int8x16_t) -> [int16x8_t; 2] {
    // SAFETY: two instructions of every AArch64, registers only.
    unsafe {
        asm!(
            "smlal {0:v}.8h, {1:v}.8b, {2:v}.8b",
            inout(vreg) low, in(vreg) codes, in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
        asm!(
            "smlal2 {0:v}.8h, {1:v}.16b, {2:v}.16b",
            inout(vreg) high, in(vreg) codes, in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    [low, high]
}

/// `smlal` with the columns of register V.
#[inline(always)]
fn smlal_all<const M: usize, const V: i32>(sums: &mut [[int16x8_t; 2]; M], codes: &Codes, x: &[int8x16_t; M]) {
    for m in 0..M {
        sums[m] = smlal(sums[m], codes[V as usize], broadcast::<V>(x[m]));
    }
}

/// Unsigned codes of up to 6 bits: sums of 16 bits, four per row.
struct Narrow<const BITS: usize>;

impl<const BITS: usize> Dot for Narrow<BITS> {
    type Sum = [int16x8_t; 2];
    const ROWS: usize = 4;

    #[inline(always)]
    fn begin<const M: usize>(_: &[int32x4_t; M]) -> [Self::Sum; M] {
        [[vdupq_n_s16(0); 2]; M]
    }

    #[inline(always)]
    fn add<const M: usize>(sums: &mut [Self::Sum; M], codes: &Codes, x: &[int8x16_t; M]) {
        smlal_all::<M, 0>(sums, codes, x);
        smlal_all::<M, 1>(sums, codes, x);
        smlal_all::<M, 2>(sums, codes, x);
        smlal_all::<M, 3>(sums, codes, x);
    }

    #[inline(always)]
    fn end<const M: usize>(sums: [Self::Sum; M], starts: &[int32x4_t; M]) -> [int32x4_t; M] {
        let mut ends = *starts;
        for m in 0..M {
            let [first, second] = sums[m];
            ends[m] = match BITS {
                4 => vpadalq_s16(starts[m], vpaddq_s16(first, second)),
                _ => vaddq_s32(starts[m], vpaddq_s32(vpaddlq_s16(first), vpaddlq_s16(second))),
            };
        }
        ends
    }
}

/// Codes of int8: sums of 32 bits, two per row.
struct Wide;

/// `sums + a · x + b · y`, the low and the high halves.
#[inline(always)]
fn two(sums: [int32x4_t; 2], a: int8x16_t, x: int8x16_t, b: int8x16_t, y: int8x16_t) -> [int32x4_t; 2] {
    let low = vmull_s8(vget_low_s8(a), vget_low_s8(x));
    let low = vmlal_s8(low, vget_low_s8(b), vget_low_s8(y));
    let high = vmlal_high_s8(vmull_high_s8(a, x), b, y);
    [vpadalq_s16(sums[0], low), vpadalq_s16(sums[1], high)]
}

impl Dot for Wide {
    type Sum = [int32x4_t; 2];
    const ROWS: usize = 4;

    #[inline(always)]
    fn begin<const M: usize>(_: &[int32x4_t; M]) -> [Self::Sum; M] {
        [[vdupq_n_s32(0); 2]; M]
    }

    #[inline(always)]
    fn add<const M: usize>(sums: &mut [Self::Sum; M], codes: &Codes, x: &[int8x16_t; M]) {
        for m in 0..M {
            sums[m] = two(sums[m], codes[0], broadcast::<0>(x[m]), codes[1], broadcast::<1>(x[m]));
            sums[m] = two(sums[m], codes[2], broadcast::<2>(x[m]), codes[3], broadcast::<3>(x[m]));
        }
    }

    #[inline(always)]
    fn end<const M: usize>(sums: [Self::Sum; M], starts: &[int32x4_t; M]) -> [int32x4_t; M] {
        let mut ends = *starts;
        for m in 0..M {
            ends[m] = vaddq_s32(starts[m], vpaddq_s32(sums[m][0], sums[m][1]));
        }
        ends
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
    each_micro!(M in [4, 1], up to 4, micro_float::<F, M>, tile, x, out);
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
    store(out, &sums);
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
