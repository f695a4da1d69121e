//! AVX-VNNI: x86-64 without AVX-512 from 2021 on, such as Intel's N100, Meteor Lake and Arrow Lake.
//!
//! `vpdpbusd` multiplies four unsigned codes of a lane with four signed activations and adds them to the lane's 32-bit
//! sum; nothing saturates. This table was never run on a CPU that it is for. On CPUs with AVX-512, tests run the same code
//! with the instruction's other encoding, so that what they leave out is how one instruction is encoded.

use super::super::Kernels;
use super::super::rows::Block;
use super::avx2::AVX2;
use super::gemm256::{self, Codes, Dot, HALVES, broadcast, load};
use super::ternary256;
use std::arch::asm;
use std::arch::x86_64::*;

pub static AVX_VNNI: Kernels =
    table::<false>("x86_64-avx_vnni", || is_x86_feature_detected!("avxvnni") && (AVX2.available)());

/// The same for tests, on CPUs that have AVX-512 and maybe no AVX-VNNI.
#[cfg(test)]
pub static AVX_VNNI_IN_AVX512: Kernels = table::<true>("x86_64-avx_vnni_in_avx512", || {
    is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl") && (AVX2.available)()
});

const fn table<const EVEX: bool>(name: &'static str, available: fn() -> bool) -> Kernels {
    Kernels {
        name,
        available,
        gemm_q8_0: gemm256::simple::<Dpbusd<EVEX>, 8, false>,
        gemm_q4_0: gemm256::simple::<Dpbusd<EVEX>, 4, false>,
        gemm_q4_1: gemm256::simple::<Dpbusd<EVEX>, 4, true>,
        gemm_q5_0: gemm256::simple::<Dpbusd<EVEX>, 5, false>,
        gemm_q5_1: gemm256::simple::<Dpbusd<EVEX>, 5, true>,
        gemm_q4_k: gemm256::k::<Dpbusd<EVEX>, 4>,
        gemm_q5_k: gemm256::k::<Dpbusd<EVEX>, 5>,
        gemm_q6_k: gemm256::q6_k::<Dpbusd<EVEX>>,
        gemm_tq2_0: ternary256::gemm::<Dpbusd<EVEX>, true>,
        gemm_i2_s: ternary256::gemm::<Dpbusd<EVEX>, false>,
        ..AVX2
    }
}

/// `vpdpbusd`, in the encoding of AVX-512 if EVEX.
struct Dpbusd<const EVEX: bool>;

/// `sum + Σ code · quant` over the 4 columns of each lane. The intrinsics would be calls, since the functions that they end
/// up in are shared with AVX2 and lack their features.
#[inline]
#[target_feature(enable = "avx2")]
fn dpbusd<const EVEX: bool>(mut sum: __m256i, codes: __m256i, quants: __m256i) -> __m256i {
    macro_rules! instruction {
        ($text:literal) => {
            asm!(
                $text,
                inout(ymm_reg) sum, in(ymm_reg) codes, in(ymm_reg) quants,
                options(pure, nomem, nostack, preserves_flags)
            )
        };
    }
    // SAFETY: one instruction, registers only; the table checked that the CPU has it.
    unsafe {
        match EVEX {
            false => instruction!("{{vex}} vpdpbusd {0}, {1}, {2}"),
            true => instruction!("{{evex}} vpdpbusd {0}, {1}, {2}"),
        }
    }
    sum
}

impl<const EVEX: bool> Dot for Dpbusd<EVEX> {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn block<const BITS: usize, const M: usize>(
        codes: &Codes,
        x: &[Block; M],
        starts: [__m256i; M],
    ) -> [[__m256i; HALVES]; M] {
        let mut sums = starts.map(|start| [start; HALVES]);
        if BITS == 8 {
            // Of int8 plus 128.
            for m in 0..M {
                sums[m] = [_mm256_slli_epi32::<7>(_mm256_set1_epi32(x[m].negated_sum)); HALVES];
            }
        }
        for v in 0..8 {
            let codes = match BITS {
                8 => codes[v].map(|code| _mm256_xor_si256(code, _mm256_set1_epi8(-128))),
                _ => codes[v],
            };
            for m in 0..M {
                let quants = broadcast(&x[m], v);
                for h in 0..HALVES {
                    sums[m][h] = dpbusd::<EVEX>(sums[m][h], codes[h], quants);
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
        let mut integers = [[_mm256_setzero_si256(); HALVES]; M];
        for side in 0..2 {
            let mut sums = [[_mm256_setzero_si256(); HALVES]; M];
            for v in 4 * side..4 * side + 4 {
                for m in 0..M {
                    let quants = broadcast(&x[m], v);
                    for h in 0..HALVES {
                        sums[m][h] = dpbusd::<EVEX>(sums[m][h], codes[v][h], quants);
                    }
                }
            }
            for h in 0..HALVES {
                let scale = _mm256_srai_epi32::<16>(scales[side][h]);
                for m in 0..M {
                    integers[m][h] = _mm256_add_epi32(integers[m][h], _mm256_mullo_epi32(sums[m][h], scale));
                }
            }
        }
        integers
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn ternary<const M: usize>(codes: &[Codes; 4], x: [&[Block; M]; 4]) -> [[__m256i; HALVES]; M] {
        let mut sums = [[_mm256_setzero_si256(); HALVES]; M];
        for f in 0..4 {
            for v in 0..8 {
                for m in 0..M {
                    let quants = broadcast(&x[f][m], v);
                    for h in 0..HALVES {
                        sums[m][h] = dpbusd::<EVEX>(sums[m][h], codes[f][v][h], quants);
                    }
                }
            }
        }
        sums
    }

    /// Codes stay where they are in a byte, as in `ternary512`.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn ternary_row<const SCALED: bool>(lines: &[u8], x: [&Block; 4]) -> [__m256i; HALVES] {
        let lines = &lines[..ternary256::LINES];
        let mut fields = [[_mm256_setzero_si256(); HALVES]; 4];
        for v in 0..8 {
            let bytes = [load(lines, 64 * v), load(lines, 64 * v + 32)];
            for f in 0..4 {
                let mask = _mm256_set1_epi8((3 << ternary256::shift::<SCALED>(f)) as u8 as i8);
                let quants = broadcast(x[f], v);
                for h in 0..HALVES {
                    fields[f][h] = dpbusd::<EVEX>(fields[f][h], _mm256_and_si256(bytes[h], mask), quants);
                }
            }
        }
        let mut sums = [_mm256_setzero_si256(); HALVES];
        for f in 0..4 {
            let by = _mm_cvtsi32_si128(ternary256::shift::<SCALED>(f) as i32);
            for h in 0..HALVES {
                sums[h] = _mm256_add_epi32(sums[h], _mm256_sra_epi32(fields[f][h], by));
            }
        }
        sums
    }
}
