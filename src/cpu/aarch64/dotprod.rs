//! `sdot`: four int8 products into each 32-bit lane, with 4 columns of an activation row picked from a register.

use super::super::Kernels;
use super::super::rows::{Block, Rows};
use super::intrinsics::*;
use super::neon::NEON;
use super::ternary::{self, FIELDS, LINES, Ternary, code, fields, for_each_row};
use super::{Codes, Dot, Micro, QUADS, each, gemm, load, quants};
use std::arch::asm;
use std::mem::offset_of;

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
    gemm_tq2_0,
    gemm_i2_s,
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

#[target_feature(enable = "dotprod")]
fn gemm_tq2_0(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    ternary::tq2_0::<TernarySdot>(tile, x, out);
}
#[target_feature(enable = "dotprod")]
fn gemm_i2_s(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    ternary::i2_s::<TernarySdot>(tile, x, out);
}

/// Sums of 32 bits, one per row.
pub(super) struct Sdot;

/// `sum + Σ codes · x` over the 4 columns of lane V of x. The intrinsic is not stable. Not `pure`, so that the compiler keeps
/// the order in which the sums take turns.
#[inline(always)]
fn sdot<const V: usize>(mut sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: one instruction, registers only; compiled only into functions with the dotprod feature.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{3}]",
            inout(vreg) sum, in(vreg) codes, in(vreg) x, const V,
            options(nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// 1.5 · 2^23 as an integer: an f32 of this size counts ones, so that 1.5 · 2^23 + n as an f32, less 1.5 · 2^23, is n for
/// all |n| < 2^22. A subtraction, of which cores start two in a cycle, in place of a conversion: one in two cycles.
const ORIGIN: i32 = 0x4B40_0000;

/// The lanes of sums that began at the origin, as floats. Sums of 32 codes of int8 are below 2^22.
#[inline(always)]
pub(super) fn less_origin(sum: int32x4_t, shift: i32) -> float32x4_t {
    vsubq_f32(vreinterpretq_f32_s32(sum), vdupq_n_f32(f32::from_bits(origin(shift) as u32)))
}

/// The origin of f32 that count parts of 2^-shift.
#[inline(always)]
pub(super) fn origin(shift: i32) -> i32 {
    ORIGIN - (shift << 23)
}

impl Dot for Sdot {
    type Sum = int32x4_t;
    const ROWS: usize = 16;
    const ROOM: bool = true;

    #[inline(always)]
    fn origin(shift: i32) -> i32 {
        origin(shift)
    }

    #[inline(always)]
    fn begin<const N: usize>(start: int32x4_t) -> [int32x4_t; N] {
        [start; N]
    }

    #[inline(always)]
    fn add<const V: i32, const N: usize>(sums: &mut [int32x4_t; N], codes: &[[int8x16_t; 2]; N], x: &[int8x16_t; N]) {
        for i in 0..2 {
            for n in 0..N {
                sums[n] = match V as usize + i {
                    0 => sdot::<0>(sums[n], codes[n][i], x[n]),
                    1 => sdot::<1>(sums[n], codes[n][i], x[n]),
                    2 => sdot::<2>(sums[n], codes[n][i], x[n]),
                    _ => sdot::<3>(sums[n], codes[n][i], x[n]),
                };
            }
        }
    }

    #[inline(always)]
    fn floats<const N: usize>(sums: &[int32x4_t; N], _: int32x4_t, shift: i32) -> [float32x4_t; N] {
        each(*sums, |sum| less_origin(sum, shift))
    }

    #[inline(always)]
    fn add_block<const N: usize>(
        sums: &mut [float32x4_t; N],
        codes: &[Codes; 2],
        shift: i32,
        weights: &[float32x4_t; 2],
        x: &[Block; N],
    ) {
        let start = vdupq_n_s32(origin(shift));
        add_row::<0, N>(sums, codes, start, weights[0], x);
        if N > 1 {
            add_row::<1, N>(sums, codes, start, weights[0], x);
        }
        if N > 2 {
            const { assert!(N <= 4) }
            add_row::<2, N>(sums, codes, start, weights[0], x);
            add_row::<3, N>(sums, codes, start, weights[0], x);
        }
    }

    #[inline(always)]
    fn add_block_6<const N: usize>(
        sums: &mut [float32x4_t; N],
        codes: &[Codes; 2],
        shift: i32,
        weights: &[[float32x4_t; 2]; 2],
        x: &[Block; N],
    ) {
        let start = vdupq_n_s32(origin(shift));
        add_row_6::<0, N>(sums, codes, start, [weights[0][0], weights[1][0]], x);
        if N > 1 {
            add_row_6::<1, N>(sums, codes, start, [weights[0][0], weights[1][0]], x);
        }
        if N > 2 {
            const { assert!(N <= 4) }
            add_row_6::<2, N>(sums, codes, start, [weights[0][0], weights[1][0]], x);
            add_row_6::<3, N>(sums, codes, start, [weights[0][0], weights[1][0]], x);
        }
    }
}

const QUANTS: usize = offset_of!(Block, quants);
const SCALE: usize = offset_of!(Block, scale);

/// `add_block` of row ROW, with 28 registers for 16 rows. In one piece, because a compiler that may move parts of it starts
/// rows before the last are done, and runs out of registers; and not `pure`, so that it does not keep in registers over 16
/// rows what it can load again.
#[inline(always)]
fn add_row<const ROW: usize, const N: usize>(
    sums: &mut [float32x4_t; N],
    [first, last]: &[Codes; 2],
    start: int32x4_t,
    weights: float32x4_t,
    x: &[Block; N],
) {
    // SAFETY: reads the block; compiled only into functions with the dotprod feature.
    unsafe {
        asm!(
            "ldp {first:q}, {last:q}, [{x}, {quants}]",
            "mov {integer:v}.16b, {start:v}.16b",
            "sdot {integer:v}.4s, {c0:v}.16b, {first:v}.4b[0]",
            "sdot {integer:v}.4s, {c1:v}.16b, {first:v}.4b[1]",
            "sdot {integer:v}.4s, {c2:v}.16b, {first:v}.4b[2]",
            "sdot {integer:v}.4s, {c3:v}.16b, {first:v}.4b[3]",
            "ldr {first:s}, [{x}, {scale}]",
            "sdot {integer:v}.4s, {c4:v}.16b, {last:v}.4b[0]",
            "sdot {integer:v}.4s, {c5:v}.16b, {last:v}.4b[1]",
            "sdot {integer:v}.4s, {c6:v}.16b, {last:v}.4b[2]",
            "sdot {integer:v}.4s, {c7:v}.16b, {last:v}.4b[3]",
            "fmul {last:v}.4s, {weights:v}.4s, {first:v}.s[0]",
            "fsub {integer:v}.4s, {integer:v}.4s, {start:v}.4s", // `less_origin`
            "fmla {sum:v}.4s, {integer:v}.4s, {last:v}.4s",
            c0 = in(vreg) first[0], c1 = in(vreg) first[1], c2 = in(vreg) first[2], c3 = in(vreg) first[3],
            c4 = in(vreg) last[0], c5 = in(vreg) last[1], c6 = in(vreg) last[2], c7 = in(vreg) last[3],
            start = in(vreg) start, weights = in(vreg) weights, sum = inout(vreg) sums[ROW],
            x = in(reg) x, quants = const QUANTS + ROW * size_of::<Block>(), scale = const SCALE + ROW * size_of::<Block>(),
            integer = out(vreg) _, first = out(vreg) _, last = out(vreg) _,
            options(nostack, preserves_flags)
        );
    }
}

/// `add_block_6` of row ROW.
#[inline(always)]
fn add_row_6<const ROW: usize, const N: usize>(
    sums: &mut [float32x4_t; N],
    [first, last]: &[Codes; 2],
    start: int32x4_t,
    weights: [float32x4_t; 2],
    x: &[Block; N],
) {
    // SAFETY: as in `add_row`.
    unsafe {
        asm!(
            "ldp {first:q}, {last:q}, [{x}, {quants}]",
            "mov {a:v}.16b, {start:v}.16b",
            "mov {b:v}.16b, {start:v}.16b",
            "sdot {a:v}.4s, {c0:v}.16b, {first:v}.4b[0]",
            "sdot {b:v}.4s, {c4:v}.16b, {last:v}.4b[0]",
            "sdot {a:v}.4s, {c1:v}.16b, {first:v}.4b[1]",
            "sdot {b:v}.4s, {c5:v}.16b, {last:v}.4b[1]",
            "sdot {a:v}.4s, {c2:v}.16b, {first:v}.4b[2]",
            "sdot {b:v}.4s, {c6:v}.16b, {last:v}.4b[2]",
            "sdot {a:v}.4s, {c3:v}.16b, {first:v}.4b[3]",
            "sdot {b:v}.4s, {c7:v}.16b, {last:v}.4b[3]",
            "ldr {first:s}, [{x}, {scale}]",
            "fsub {a:v}.4s, {a:v}.4s, {start:v}.4s",
            "fsub {b:v}.4s, {b:v}.4s, {start:v}.4s",
            "fmul {a:v}.4s, {a:v}.4s, {wa:v}.4s",
            "fmla {a:v}.4s, {b:v}.4s, {wb:v}.4s",
            "fmla {sum:v}.4s, {a:v}.4s, {first:v}.s[0]",
            c0 = in(vreg) first[0], c1 = in(vreg) first[1], c2 = in(vreg) first[2], c3 = in(vreg) first[3],
            c4 = in(vreg) last[0], c5 = in(vreg) last[1], c6 = in(vreg) last[2], c7 = in(vreg) last[3],
            start = in(vreg) start, wa = in(vreg) weights[0], wb = in(vreg) weights[1], sum = inout(vreg) sums[ROW],
            x = in(reg) x, quants = const QUANTS + ROW * size_of::<Block>(), scale = const SCALE + ROW * size_of::<Block>(),
            a = out(vreg) _, b = out(vreg) _, first = out(vreg) _, last = out(vreg) _,
            options(nostack, preserves_flags)
        );
    }
}

/// Codes stay at their place in the byte, where they count 1, 4 or 16 each, and those at the top are shifted down: a sum for
/// each of the three.
type InPlace = [int32x4_t; 3];

/// Sums as of `Sdot`.
pub(super) struct TernarySdot;

impl Ternary for TernarySdot {
    const ROWS: usize = 16;

    #[inline(always)]
    fn one<const TOP: bool>(lines: &[u8], x: Micro<'_, 1>, first: usize, start: int32x4_t) -> [int32x4_t; QUADS] {
        let zero = vdupq_n_s32(0);
        let mut sums = [[start, zero, zero]; QUADS];
        for (b, lines) in lines.chunks_exact(LINES).enumerate() {
            let x = fields::<TOP, 1>(&x, first + FIELDS * b);
            for (half, lines) in lines.chunks_exact(LINES / 2).enumerate() {
                let x = each(x, |x| quants(&x[0], 16 * half));
                add_line::<0>(&mut sums, lines, x);
                add_line::<1>(&mut sums, lines, x);
                add_line::<2>(&mut sums, lines, x);
                add_line::<3>(&mut sums, lines, x);
            }
        }
        each(sums, |[ones, fours, sixteens]| vsraq_n_s32::<4>(vsraq_n_s32::<2>(ones, fours), sixteens))
    }

    #[inline(always)]
    fn add<const TOP: bool, const M: usize>(
        sums: &mut [[int32x4_t; M]; QUADS],
        lines: &[u8],
        x: &Micro<'_, M>,
        first: usize,
    ) {
        for (quad, sums) in sums.iter_mut().enumerate() {
            let mut sum = *sums;
            for (b, lines) in lines.chunks_exact(LINES).enumerate() {
                let x = fields::<TOP, M>(x, first + FIELDS * b);
                for (half, lines) in lines.chunks_exact(LINES / 2).enumerate() {
                    let bytes = each([0, 1, 2, 3], |v| load(lines, 64 * v + 16 * quad));
                    let x = each(x, |x| x.as_ptr().cast::<i8>().wrapping_add(QUANTS + 16 * half));
                    add_ternary::<M>(&mut sum, each(bytes, code::<0>), x[0]);
                    add_ternary::<M>(&mut sum, each(bytes, code::<1>), x[1]);
                    add_ternary::<M>(&mut sum, each(bytes, code::<2>), x[2]);
                    add_ternary::<M>(&mut sum, each(bytes, code::<3>), x[3]);
                }
            }
            *sums = sum;
        }
    }
}

/// Adds 16 columns to the sums of M rows.
#[inline(always)]
fn add_ternary<const M: usize>(sums: &mut [int32x4_t; M], codes: Codes, x: *const i8) {
    for_each_row!(M, |ROW| {
        // SAFETY: reads the block; compiled only into functions with the dotprod feature.
        unsafe {
            asm!(
                "ldr {x16:q}, [{x}, {row}]",
                "sdot {sum:v}.4s, {c0:v}.16b, {x16:v}.4b[0]",
                "sdot {sum:v}.4s, {c1:v}.16b, {x16:v}.4b[1]",
                "sdot {sum:v}.4s, {c2:v}.16b, {x16:v}.4b[2]",
                "sdot {sum:v}.4s, {c3:v}.16b, {x16:v}.4b[3]",
                c0 = in(vreg) codes[0], c1 = in(vreg) codes[1], c2 = in(vreg) codes[2], c3 = in(vreg) codes[3],
                sum = inout(vreg) sums[ROW], x = in(reg) x, row = const ROW * size_of::<Block>(),
                x16 = out(vreg) _,
                options(nostack, preserves_flags)
            );
        }
    });
}

/// Adds the 16 columns of line V.
#[inline(always)]
fn add_line<const V: usize>(sums: &mut [InPlace; QUADS], lines: &[u8], x: [int8x16_t; FIELDS]) {
    let bytes = each([0, 1, 2, 3], |q| load(lines, 64 * V + 16 * q));
    let masked = |byte, mask| vreinterpretq_s8_u8(vandq_u8(byte, vdupq_n_u8(mask)));
    for q in 0..QUADS {
        sums[q][0] = sdot::<V>(sums[q][0], masked(bytes[q], 3), x[0]);
    }
    for q in 0..QUADS {
        sums[q][1] = sdot::<V>(sums[q][1], masked(bytes[q], 12), x[1]);
    }
    for q in 0..QUADS {
        sums[q][2] = sdot::<V>(sums[q][2], masked(bytes[q], 48), x[2]);
    }
    for q in 0..QUADS {
        sums[q][0] = sdot::<V>(sums[q][0], code::<3>(bytes[q]), x[3]);
    }
}
