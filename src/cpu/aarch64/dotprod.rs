//! `sdot`: four int8 products into each 32-bit lane, with 4 columns of an activation row picked from a register.

use super::super::Kernels;
use super::super::rows::Rows;
use super::intrinsics::*;
use super::neon::NEON;
use super::{Codes, Dot, gemm};
use std::arch::asm;

pub static DOTPROD: Kernels = Kernels {
    name: "aarch64-dotprod",
    available: || std::arch::is_aarch64_feature_detected!("dotprod"),
    gemm_q8_0: gemm_simple::<8, false>,
    gemm_q4_0: gemm_simple::<4, false>,
    gemm_q4_1: gemm_simple::<4, true>,
    gemm_q5_0: gemm_simple::<5, false>,
    gemm_q5_1: gemm_simple::<5, true>,
    gemm_q4_k: gemm_k::<4>,
    gemm_q5_k: gemm_k::<5>,
    gemm_q6_k,
    ..NEON
};

#[target_feature(enable = "dotprod")]
fn gemm_simple<const BITS: usize, const MINIMUM: bool>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    gemm::simple::<Sdot, BITS, MINIMUM>(tile, x, out);
}
#[target_feature(enable = "dotprod")]
fn gemm_k<const BITS: usize>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    gemm::k::<Sdot, BITS>(tile, x, out);
}
#[target_feature(enable = "dotprod")]
fn gemm_q6_k(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    gemm::q6_k::<Sdot>(tile, x, out);
}

/// Sums of 32 bits, one per row.
pub(super) struct Sdot;

/// `sum + Σ codes · x` over the 4 columns of lane V of x. The intrinsic is not stable.
#[inline(always)]
fn sdot<const V: usize>(mut sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: one instruction, registers only; compiled only into functions with the dotprod feature.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{3}]",
            inout(vreg) sum, in(vreg) codes, in(vreg) x, const V,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

impl Dot for Sdot {
    type Sum = int32x4_t;
    const ROWS: usize = 8;

    #[inline(always)]
    fn begin<const M: usize>(starts: &[int32x4_t; M]) -> [int32x4_t; M] {
        *starts
    }

    #[inline(always)]
    fn add<const M: usize>(sums: &mut [int32x4_t; M], codes: &Codes, x: &[int8x16_t; M]) {
        for m in 0..M {
            sums[m] = sdot::<0>(sums[m], codes[0], x[m]);
            sums[m] = sdot::<1>(sums[m], codes[1], x[m]);
            sums[m] = sdot::<2>(sums[m], codes[2], x[m]);
            sums[m] = sdot::<3>(sums[m], codes[3], x[m]);
        }
    }

    #[inline(always)]
    fn end<const M: usize>(sums: [int32x4_t; M], _: &[int32x4_t; M]) -> [int32x4_t; M] {
        sums
    }
}
