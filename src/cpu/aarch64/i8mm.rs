//! `smmla`: 2 × 8 int8 times 8 × 2, into four 32-bit sums: two weight rows with two activation rows.

use super::super::Kernels;
use super::super::rows::Rows;
use super::dotprod::{DOTPROD, Sdot};
use super::intrinsics::*;
use super::{Codes, Dot, gemm};
use std::arch::asm;

pub static I8MM: Kernels = Kernels {
    name: "aarch64-i8mm",
    available: || std::arch::is_aarch64_feature_detected!("i8mm") && std::arch::is_aarch64_feature_detected!("dotprod"),
    gemm_q8_0: gemm_simple::<8, false>,
    gemm_q4_0: gemm_simple::<4, false>,
    gemm_q4_1: gemm_simple::<4, true>,
    gemm_q5_0: gemm_simple::<5, false>,
    gemm_q5_1: gemm_simple::<5, true>,
    gemm_q4_k: gemm_k::<4>,
    gemm_q5_k: gemm_k::<5>,
    // In Q6_K a sum ends after 16 columns, so that the shuffles around `smmla` cost more than it saves.
    ..DOTPROD
};

#[target_feature(enable = "i8mm,dotprod")]
fn gemm_simple<const BITS: usize, const MINIMUM: bool>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    gemm::simple::<Smmla, BITS, MINIMUM>(tile, x, out);
}
#[target_feature(enable = "i8mm,dotprod")]
fn gemm_k<const BITS: usize>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    gemm::k::<Smmla, BITS>(tile, x, out);
}

/// Activation rows by twos: registers 2p and 2p + 1 are the sums of rows 2p and 2p + 1 with the first and the last two
/// weight rows of a quad. A row alone is left to `sdot`.
struct Smmla;

/// `sum[i][j] + Σ x[i] · codes[j]`, (2, 2) and twice (2, 8). The intrinsic is not stable.
#[inline(always)]
fn smmla(mut sum: int32x4_t, x: int8x16_t, codes: int8x16_t) -> int32x4_t {
    // SAFETY: one instruction, registers only; compiled only into functions with the i8mm feature.
    unsafe {
        asm!(
            "smmla {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sum, in(vreg) x, in(vreg) codes,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// The 64-bit halves of two registers, by half.
#[inline(always)]
fn halves(a: int32x4_t, b: int32x4_t) -> [int32x4_t; 2] {
    let (a, b) = (vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b));
    [vreinterpretq_s32_s64(vzip1q_s64(a, b)), vreinterpretq_s32_s64(vzip2q_s64(a, b))]
}

/// Columns 4v to 4v + 7 of the first two and the last two rows, from the registers of columns 4v and 4v + 4.
#[inline(always)]
fn zip(a: int8x16_t, b: int8x16_t) -> [int8x16_t; 2] {
    let (a, b) = (vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b));
    [vreinterpretq_s8_s32(vzip1q_s32(a, b)), vreinterpretq_s8_s32(vzip2q_s32(a, b))]
}

impl Dot for Smmla {
    type Sum = int32x4_t;
    const ROWS: usize = 8;

    #[inline(always)]
    fn arrange<const M: usize>(mut x: [int8x16_t; M]) -> [int8x16_t; M] {
        for two in x.as_chunks_mut::<2>().0 {
            let [first, last] = halves(vreinterpretq_s32_s8(two[0]), vreinterpretq_s32_s8(two[1]));
            *two = [vreinterpretq_s8_s32(first), vreinterpretq_s8_s32(last)];
        }
        x
    }

    #[inline(always)]
    fn begin<const M: usize>(starts: &[int32x4_t; M]) -> [int32x4_t; M] {
        if M == 1 { *starts } else { [vdupq_n_s32(0); M] }
    }

    #[inline(always)]
    fn add<const M: usize>(sums: &mut [int32x4_t; M], codes: &Codes, x: &[int8x16_t; M]) {
        if M == 1 {
            return Sdot::add(sums, codes, x);
        }
        let columns = [zip(codes[0], codes[1]), zip(codes[2], codes[3])];
        for (sums, x) in sums.as_chunks_mut::<2>().0.iter_mut().zip(x.as_chunks::<2>().0) {
            for (codes, x) in columns.iter().zip(x) {
                sums[0] = smmla(sums[0], *x, codes[0]);
                sums[1] = smmla(sums[1], *x, codes[1]);
            }
        }
    }

    #[inline(always)]
    fn end<const M: usize>(mut sums: [int32x4_t; M], starts: &[int32x4_t; M]) -> [int32x4_t; M] {
        if M == 1 {
            return sums;
        }
        for (sums, starts) in sums.as_chunks_mut::<2>().0.iter_mut().zip(starts.as_chunks::<2>().0) {
            let rows = halves(sums[0], sums[1]);
            *sums = [vaddq_s32(rows[0], starts[0]), vaddq_s32(rows[1], starts[1])];
        }
        sums
    }
}
