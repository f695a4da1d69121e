//! `smmla`: 2 × 8 int8 times 8 × 2, into four 32-bit sums: two weight rows with two activation rows.

use super::super::Kernels;
use super::super::rows::{Block, Rows};
use super::dotprod::{DOTPROD, Sdot, TernarySdot};
use super::intrinsics::*;
use super::ternary::{self, FIELDS, LINES, Ternary, code, fields, for_each_row};
use super::{Codes, Dot, Micro, QUADS, each, gemm, load, quants, scales, set};
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
    gemm_q6_k,
    gemm_tq2_0,
    gemm_i2_s,
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
#[target_feature(enable = "i8mm,dotprod")]
fn gemm_q6_k(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    gemm::q6_k::<Smmla>(tile, x, out);
}

#[target_feature(enable = "i8mm,dotprod")]
fn gemm_tq2_0(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    ternary::tq2_0::<TernarySmmla>(tile, x, out);
}
#[target_feature(enable = "i8mm,dotprod")]
fn gemm_i2_s(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    ternary::i2_s::<TernarySmmla>(tile, x, out);
}

/// Activation rows by twos: sums 2p and 2p + 1 are those of rows 2p and 2p + 1, with the first and the last two weight rows
/// of a quad. They stay so to the end of the tile, and so is what they are scaled with.
struct Smmla;

/// `add_block` of rows ROW and ROW + 1, in one piece as `dotprod::add_row`. `smmla` is `sum[i][j] + Σ x[i] · codes[j]`, (2, 2)
/// and twice (2, 8). What the numbers of bytes are to, `scales` asserts.
#[inline(always)]
fn add_rows<const ROW: usize, const N: usize>(
    sums: &mut [float32x4_t; N],
    [first, last]: &[Codes; 2],
    start: int32x4_t,
    weights: &[float32x4_t; 2],
    x: &[Block; N],
) {
    let [sum0, sum1] = sums[ROW..].first_chunk_mut().expect("rows by twos");
    // SAFETY: reads two blocks; compiled only into functions with the i8mm feature.
    unsafe {
        asm!(
            "ldp {a:q}, {b:q}, [{x}]",
            "mov {i0:v}.16b, {start:v}.16b",
            "mov {i1:v}.16b, {start:v}.16b",
            "smmla {i0:v}.4s, {a:v}.16b, {c0:v}.16b",
            "smmla {i1:v}.4s, {a:v}.16b, {c1:v}.16b",
            "smmla {i0:v}.4s, {b:v}.16b, {c4:v}.16b",
            "smmla {i1:v}.4s, {b:v}.16b, {c5:v}.16b",
            "ldp {a:q}, {b:q}, [{x}, 48]",
            "smmla {i0:v}.4s, {a:v}.16b, {c2:v}.16b",
            "smmla {i1:v}.4s, {a:v}.16b, {c3:v}.16b",
            "smmla {i0:v}.4s, {b:v}.16b, {c6:v}.16b",
            "smmla {i1:v}.4s, {b:v}.16b, {c7:v}.16b",
            "ldr {a:q}, [{x}, 32]",
            "fmul {b:v}.4s, {a:v}.4s, {w1:v}.4s",
            "fmul {a:v}.4s, {a:v}.4s, {w0:v}.4s",
            "fsub {i0:v}.4s, {i0:v}.4s, {start:v}.4s", // `less_origin`
            "fsub {i1:v}.4s, {i1:v}.4s, {start:v}.4s",
            "fmla {sum0:v}.4s, {i0:v}.4s, {a:v}.4s",
            "fmla {sum1:v}.4s, {i1:v}.4s, {b:v}.4s",
            c0 = in(vreg) first[0], c1 = in(vreg) first[1], c2 = in(vreg) first[2], c3 = in(vreg) first[3],
            c4 = in(vreg) last[0], c5 = in(vreg) last[1], c6 = in(vreg) last[2], c7 = in(vreg) last[3],
            start = in(vreg) start, w0 = in(vreg) weights[0], w1 = in(vreg) weights[1],
            sum0 = inout(vreg) *sum0, sum1 = inout(vreg) *sum1, x = in(reg) &x[ROW],
            i0 = out(vreg) _, i1 = out(vreg) _, a = out(vreg) _, b = out(vreg) _,
            options(nostack, preserves_flags)
        );
    }
}

/// `add_block_6` of rows ROW and ROW + 1.
#[inline(always)]
fn add_rows_6<const ROW: usize, const N: usize>(
    sums: &mut [float32x4_t; N],
    [first, last]: &[Codes; 2],
    start: int32x4_t,
    weights: &[[float32x4_t; 2]; 2],
    x: &[Block; N],
) {
    let [sum0, sum1] = sums[ROW..].first_chunk_mut().expect("rows by twos");
    // SAFETY: as in `add_rows`.
    unsafe {
        asm!(
            "ldp {a:q}, {b:q}, [{x}]",
            "mov {i0:v}.16b, {start:v}.16b",
            "mov {i1:v}.16b, {start:v}.16b",
            "mov {j0:v}.16b, {start:v}.16b",
            "mov {j1:v}.16b, {start:v}.16b",
            "smmla {i0:v}.4s, {a:v}.16b, {c0:v}.16b",
            "smmla {i1:v}.4s, {a:v}.16b, {c1:v}.16b",
            "smmla {j0:v}.4s, {b:v}.16b, {c4:v}.16b",
            "smmla {j1:v}.4s, {b:v}.16b, {c5:v}.16b",
            "ldp {a:q}, {b:q}, [{x}, 48]",
            "smmla {i0:v}.4s, {a:v}.16b, {c2:v}.16b",
            "smmla {i1:v}.4s, {a:v}.16b, {c3:v}.16b",
            "smmla {j0:v}.4s, {b:v}.16b, {c6:v}.16b",
            "smmla {j1:v}.4s, {b:v}.16b, {c7:v}.16b",
            "ldr {a:q}, [{x}, 32]",
            "fsub {i0:v}.4s, {i0:v}.4s, {start:v}.4s",
            "fsub {i1:v}.4s, {i1:v}.4s, {start:v}.4s",
            "fsub {j0:v}.4s, {j0:v}.4s, {start:v}.4s",
            "fsub {j1:v}.4s, {j1:v}.4s, {start:v}.4s",
            "fmul {i0:v}.4s, {i0:v}.4s, {v0:v}.4s",
            "fmul {i1:v}.4s, {i1:v}.4s, {v1:v}.4s",
            "fmla {i0:v}.4s, {j0:v}.4s, {w0:v}.4s",
            "fmla {i1:v}.4s, {j1:v}.4s, {w1:v}.4s",
            "fmla {sum0:v}.4s, {i0:v}.4s, {a:v}.4s",
            "fmla {sum1:v}.4s, {i1:v}.4s, {a:v}.4s",
            c0 = in(vreg) first[0], c1 = in(vreg) first[1], c2 = in(vreg) first[2], c3 = in(vreg) first[3],
            c4 = in(vreg) last[0], c5 = in(vreg) last[1], c6 = in(vreg) last[2], c7 = in(vreg) last[3],
            v0 = in(vreg) weights[0][0], v1 = in(vreg) weights[0][1],
            w0 = in(vreg) weights[1][0], w1 = in(vreg) weights[1][1],
            start = in(vreg) start, sum0 = inout(vreg) *sum0, sum1 = inout(vreg) *sum1, x = in(reg) &x[ROW],
            i0 = out(vreg) _, i1 = out(vreg) _, j0 = out(vreg) _, j1 = out(vreg) _, a = out(vreg) _, b = out(vreg) _,
            options(nostack, preserves_flags)
        );
    }
}

/// The 64-bit halves of two registers, by half.
#[inline(always)]
fn halves(a: int32x4_t, b: int32x4_t) -> [int32x4_t; 2] {
    let (a, b) = (vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b));
    [vreinterpretq_s32_s64(vzip1q_s64(a, b)), vreinterpretq_s32_s64(vzip2q_s64(a, b))]
}

/// As `halves`, of floats.
#[inline(always)]
fn halves_f32(a: float32x4_t, b: float32x4_t) -> [float32x4_t; 2] {
    each(halves(vreinterpretq_s32_f32(a), vreinterpretq_s32_f32(b)), vreinterpretq_f32_s32)
}

impl Dot for Smmla {
    type Sum = int32x4_t;
    const ROWS: usize = 16;
    const ROOM: bool = true;
    const ARRANGES: bool = true;

    #[inline(always)]
    fn origin(shift: i32) -> i32 {
        Sdot::origin(shift)
    }

    #[inline(always)]
    fn begin<const N: usize>(start: int32x4_t) -> [int32x4_t; N] {
        Sdot::begin(start)
    }

    /// A row alone is left to `sdot`.
    #[inline(always)]
    fn add<const V: i32, const N: usize>(sums: &mut [int32x4_t; N], codes: &[[int8x16_t; 2]; N], x: &[int8x16_t; N]) {
        Sdot::add::<V, N>(sums, codes, x);
    }

    #[inline(always)]
    fn floats<const N: usize>(sums: &[int32x4_t; N], start: int32x4_t, shift: i32) -> [float32x4_t; N] {
        Sdot::floats(sums, start, shift)
    }

    /// By 8 columns of both rows, the first and the last 8 of each 16; then the two scales, and the two scaled sums, each
    /// twice.
    #[inline(always)]
    fn arrange(x: &[Block; 2], arranged: &mut [Block; 2]) {
        let [first, second] = each([0, 16], |at| {
            let [a, b] = each([&x[0], &x[1]], |x| vreinterpretq_s32_s8(quants(x, at)));
            each(halves(a, b), vreinterpretq_s8_s32)
        });
        let [a, b] = each([scales(&x[0]), scales(&x[1])], |both| vzip1q_f32(both, both));
        let [all_scales, all_sums] = halves_f32(a, b);
        set(&mut arranged[0], [first[0], second[0]], all_scales);
        set(&mut arranged[1], [first[1], second[1]], all_sums);
    }

    /// Columns 4v to 4v + 7 of the first two and the last two rows, from the registers of columns 4v and 4v + 4.
    #[inline(always)]
    fn arrange_codes([a, b, c, d]: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        let [a, b, c, d] = each([a, b, c, d], vreinterpretq_u32_u8);
        each([vzip1q_u32(a, b), vzip2q_u32(a, b), vzip1q_u32(c, d), vzip2q_u32(c, d)], vreinterpretq_u8_u32)
    }

    #[inline(always)]
    fn add_block<const N: usize>(
        sums: &mut [float32x4_t; N],
        codes: &[Codes; 2],
        shift: i32,
        weights: &[float32x4_t; 2],
        x: &[Block; N],
    ) {
        let start = vdupq_n_s32(Sdot::origin(shift));
        add_rows::<0, N>(sums, codes, start, weights, x);
        if N > 2 {
            const { assert!(N <= 4) }
            add_rows::<2, N>(sums, codes, start, weights, x);
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
        let start = vdupq_n_s32(Sdot::origin(shift));
        add_rows_6::<0, N>(sums, codes, start, weights, x);
        if N > 2 {
            const { assert!(N <= 4) }
            add_rows_6::<2, N>(sums, codes, start, weights, x);
        }
    }

    #[inline(always)]
    fn spread(values: float32x4_t) -> [float32x4_t; 2] {
        halves_f32(values, values)
    }

    #[inline(always)]
    fn add_minimum<const N: usize>(
        sum: float32x4_t,
        minimums: &[float32x4_t; 2],
        x: &[Block; N],
        m: usize,
    ) -> float32x4_t {
        vfmaq_f32(sum, minimums[m % 2], scales(&x[m / 2 * 2 + 1]))
    }

    #[inline(always)]
    fn rows<const N: usize>(mut sums: [float32x4_t; N]) -> [float32x4_t; N] {
        for two in sums.as_chunks_mut::<2>().0 {
            *two = halves_f32(two[0], two[1]);
        }
        sums
    }
}

/// Sums as of `Smmla`.
struct TernarySmmla;

impl Ternary for TernarySmmla {
    const ROWS: usize = 16;

    #[inline(always)]
    fn rows<const M: usize>(mut sums: [int32x4_t; M]) -> [int32x4_t; M] {
        for two in sums.as_chunks_mut::<2>().0 {
            *two = halves(two[0], two[1]);
        }
        sums
    }

    #[inline(always)]
    fn one<const TOP: bool>(lines: &[u8], x: Micro<'_, 1>, first: usize, start: int32x4_t) -> [int32x4_t; QUADS] {
        TernarySdot::one::<TOP>(lines, x, first, start)
    }

    #[inline(always)]
    fn add<const TOP: bool, const M: usize>(
        sums: &mut [[int32x4_t; M]; QUADS],
        lines: &[u8],
        x: &Micro<'_, M>,
        first: usize,
    ) {
        let mut arranged = [[[[0; 32]; M]; FIELDS]; 2];
        let blocks = lines.len() / LINES;
        for (b, arranged) in arranged[..blocks].iter_mut().enumerate() {
            for (x, arranged) in fields::<TOP, M>(x, first + FIELDS * b).into_iter().zip(arranged) {
                arrange(x, arranged);
            }
        }
        for (quad, sums) in sums.iter_mut().enumerate() {
            let mut sum = *sums;
            for (lines, x) in lines.chunks_exact(LINES).zip(&arranged) {
                for (half, lines) in lines.chunks_exact(LINES / 2).enumerate() {
                    let bytes = Smmla::arrange_codes(each([0, 1, 2, 3], |v| load(lines, 64 * v + 16 * quad)));
                    let x = each([0, 1, 2, 3], |i| x[i].as_flattened()[32 * half..].as_ptr());
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

/// Writes columns 8i to 8i + 7 of each two rows side by side, 16 bytes for each i.
#[inline(always)]
fn arrange<const M: usize>(x: &[Block; M], arranged: &mut [[i8; 32]; M]) {
    for (x, arranged) in x.as_chunks::<2>().0.iter().zip(arranged.as_chunks_mut::<2>().0) {
        // SAFETY: reads the quants of two blocks and writes the two rows. Not with vector registers, which have more
        // to do.
        unsafe {
            asm!(
                "ldp {a0}, {a1}, [{x}]",
                "ldp {b0}, {b1}, [{x}, 48]",
                "ldp {a2}, {a3}, [{x}, 16]",
                "ldp {b2}, {b3}, [{x}, 64]",
                "stp {a0}, {b0}, [{arranged}]",
                "stp {a1}, {b1}, [{arranged}, 16]",
                "stp {a2}, {b2}, [{arranged}, 32]",
                "stp {a3}, {b3}, [{arranged}, 48]",
                x = in(reg) x, arranged = in(reg) arranged,
                a0 = out(reg) _, a1 = out(reg) _, a2 = out(reg) _, a3 = out(reg) _,
                b0 = out(reg) _, b1 = out(reg) _, b2 = out(reg) _, b3 = out(reg) _,
                options(nostack, preserves_flags)
            );
        }
    }
}

/// Adds 16 columns to the sums of M rows.
#[inline(always)]
fn add_ternary<const M: usize>(sums: &mut [int32x4_t; M], codes: Codes, x: *const i8) {
    for_each_row!(M, |ROW| {
        if ROW % 2 == 0 {
            let [sum0, sum1] = sums[ROW..].first_chunk_mut().expect("rows by twos");
            // SAFETY: reads 32 bytes of two rows; compiled only into functions with the i8mm feature.
            unsafe {
                asm!(
                    "ldp {a:q}, {b:q}, [{x}, {row}]",
                    "smmla {sum0:v}.4s, {a:v}.16b, {c0:v}.16b",
                    "smmla {sum1:v}.4s, {a:v}.16b, {c1:v}.16b",
                    "smmla {sum0:v}.4s, {b:v}.16b, {c2:v}.16b",
                    "smmla {sum1:v}.4s, {b:v}.16b, {c3:v}.16b",
                    c0 = in(vreg) codes[0], c1 = in(vreg) codes[1], c2 = in(vreg) codes[2], c3 = in(vreg) codes[3],
                    sum0 = inout(vreg) *sum0, sum1 = inout(vreg) *sum1, x = in(reg) x, row = const ROW * 32,
                    a = out(vreg) _, b = out(vreg) _,
                    options(nostack, preserves_flags)
                );
            }
        }
    });
}
