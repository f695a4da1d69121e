//! Ternary weights as every AArch64 multiplies them: `smlal` adds 8 products of int8 to sums of 16 bits, which have room for
//! 256 columns: 64 products of 2 · 127 in a lane, twice as many where two lanes are added.
//!
//! Two quads at a time, for the registers. The order of instructions is written out, for cores that run them in order: what
//! an instruction needs was made six or more before, where it can be.

use super::super::rows::{BLOCK, Block};
use super::intrinsics::*;
use super::ternary::{FIELDS, LINES, Ternary, fields};
use super::{Micro, QUADS, each};
use std::arch::aarch64::{vld1q_s8, vld1q_u8};
use std::arch::asm;
use std::mem::offset_of;

pub(super) struct Smlal;

const _: () = assert!(offset_of!(Block, quants) == 0 && size_of::<Block>() == 48);

/// Four sums per row of a quad.
type Sum = [int16x8_t; 2];

/// Columns of an activation row, for all rows of weights. Names: t are columns, x activations.
macro_rules! spread {
    ($columns:literal, $row:literal, $line:literal) => {
        concat!("dup {t", $columns, ":v}.4s, {x", $row, ":v}.s[", $line, "]")
    };
}

/// Adds a line times the columns of an activation row. Names: c and d are the codes of the two quads, p to s their sums.
#[rustfmt::skip]
macro_rules! add_row {
    ($columns:literal, $row:literal, $line:literal) => {
        concat!(
            "smlal {p", $row, ":v}.8h, {c", $line, ":v}.8b, {t", $columns, ":v}.8b\n",
            "smlal2 {q", $row, ":v}.8h, {c", $line, ":v}.16b, {t", $columns, ":v}.16b\n",
            "smlal {r", $row, ":v}.8h, {d", $line, ":v}.8b, {t", $columns, ":v}.8b\n",
            "smlal2 {s", $row, ":v}.8h, {d", $line, ":v}.16b, {t", $columns, ":v}.16b",
        )
    };
}

/// One instruction for the bytes of four lines of both quads.
macro_rules! unpack {
    ($instruction:literal, $by:literal) => {
        unpack!($instruction, $by, "c0" "d0" "c1" "d1" "c2" "d2" "c3" "d3")
    };
    ($instruction:literal, $by:literal, $($bytes:literal)*) => {
        concat!($($instruction, " {", $bytes, ":v}.16b, {", $bytes, ":v}.16b, ", $by, "\n"),*)
    };
}

/// Adds the columns of four lines at a place in the byte, which `unpack` tells, to the sums of two quads and `ROWS`
/// activation rows. `lines` is at the pair of quads, `x` at the columns of the first row's block.
macro_rules! add_columns {
    ($a:ident, $b:ident, $lines:expr, $x:expr, [$($unpack:expr),*], $($mask:ident)?) => {
        // SAFETY: reads 32 bytes of each of four lines of a tile and 16 quants of each of four blocks.
        unsafe {
            asm!(
                "ldr {x0:q}, [{x}]",
                "ldr {x1:q}, [{x}, 48]",
                "ldr {x2:q}, [{x}, 96]",
                "ldr {x3:q}, [{x}, 144]",
                "ldp {c0:q}, {d0:q}, [{lines}]",
                "ldp {c1:q}, {d1:q}, [{lines}, 64]",
                "ldp {c2:q}, {d2:q}, [{lines}, 128]",
                "ldp {c3:q}, {d3:q}, [{lines}, 192]",
                spread!("0", "0", "0"),
                spread!("1", "1", "0"),
                spread!("2", "2", "0"),
                $($unpack,)*
                add_row!("0", "0", "0"),
                spread!("0", "3", "0"),
                add_row!("1", "1", "0"),
                spread!("1", "0", "1"),
                add_row!("2", "2", "0"),
                spread!("2", "1", "1"),
                add_row!("0", "3", "0"),
                spread!("0", "2", "1"),
                add_row!("1", "0", "1"),
                spread!("1", "3", "1"),
                add_row!("2", "1", "1"),
                spread!("2", "0", "2"),
                add_row!("0", "2", "1"),
                spread!("0", "1", "2"),
                add_row!("1", "3", "1"),
                spread!("1", "2", "2"),
                add_row!("2", "0", "2"),
                spread!("2", "3", "2"),
                add_row!("0", "1", "2"),
                spread!("0", "0", "3"),
                add_row!("1", "2", "2"),
                spread!("1", "1", "3"),
                add_row!("2", "3", "2"),
                spread!("2", "2", "3"),
                add_row!("0", "0", "3"),
                spread!("0", "3", "3"),
                add_row!("1", "1", "3"),
                add_row!("2", "2", "3"),
                add_row!("0", "3", "3"),
                p0 = inout(vreg) $a[0][0], q0 = inout(vreg) $a[0][1], r0 = inout(vreg) $b[0][0], s0 = inout(vreg) $b[0][1],
                p1 = inout(vreg) $a[1][0], q1 = inout(vreg) $a[1][1], r1 = inout(vreg) $b[1][0], s1 = inout(vreg) $b[1][1],
                p2 = inout(vreg) $a[2][0], q2 = inout(vreg) $a[2][1], r2 = inout(vreg) $b[2][0], s2 = inout(vreg) $b[2][1],
                p3 = inout(vreg) $a[3][0], q3 = inout(vreg) $a[3][1], r3 = inout(vreg) $b[3][0], s3 = inout(vreg) $b[3][1],
                c0 = out(vreg) _, c1 = out(vreg) _, c2 = out(vreg) _, c3 = out(vreg) _,
                d0 = out(vreg) _, d1 = out(vreg) _, d2 = out(vreg) _, d3 = out(vreg) _,
                x0 = out(vreg) _, x1 = out(vreg) _, x2 = out(vreg) _, x3 = out(vreg) _,
                t0 = out(vreg) _, t1 = out(vreg) _, t2 = out(vreg) _,
                $($mask = in(vreg) vdupq_n_u8(3),)?
                lines = in(reg) $lines, x = in(reg) $x,
                options(nostack, preserves_flags)
            );
        }
    };
}

/// The codes of a field of both quads of a line, and the columns that they are multiplied with. Names: c and e are codes,
/// d columns, of set a or b; b and g are bytes; x are activations.
#[rustfmt::skip]
macro_rules! take {
    ($set:literal, $lane:literal, $line:literal, $field:literal, $unpack:literal, $by:literal) => {
        concat!(
            "dup {d", $set, ":v}.4s, {x", $field, ":v}.s[", $lane, "]\n",
            $unpack, " {c", $set, ":v}.16b, {b", $line, ":v}.16b, ", $by, "\n",
            $unpack, " {e", $set, ":v}.16b, {g", $line, ":v}.16b, ", $by,
        )
    };
}

/// Multiplies what was taken and adds it to the sums of a place in the byte.
#[rustfmt::skip]
macro_rules! multiply {
    ($set:literal, $place:literal) => {
        concat!(
            "smlal {p", $place, ":v}.8h, {c", $set, ":v}.8b, {d", $set, ":v}.8b\n",
            "smlal2 {q", $place, ":v}.8h, {c", $set, ":v}.16b, {d", $set, ":v}.16b\n",
            "smlal {r", $place, ":v}.8h, {e", $set, ":v}.8b, {d", $set, ":v}.8b\n",
            "smlal2 {s", $place, ":v}.8h, {e", $set, ":v}.16b, {d", $set, ":v}.16b",
        )
    };
}

impl Ternary for Smlal {
    const ROWS: usize = 4;

    #[inline(always)]
    fn one<const TOP: bool>(lines: &[u8], x: Micro<'_, 1>, first: usize, start: int32x4_t) -> [int32x4_t; QUADS] {
        let mut sums = [start; QUADS];
        let (blocks, width) = x.span(first, FIELDS * (lines.len() / LINES));
        let step = FIELDS * width * size_of::<Block>();
        let mut x = each([0, 1, 2, 3], |i| {
            let block = width * if TOP { FIELDS - 1 - i } else { i };
            blocks.as_ptr().wrapping_add(block).cast::<i8>()
        });
        for lines in lines.chunks(2 * LINES) {
            let end = lines.as_ptr_range().end;
            let start = x;
            for pair in 0..2 {
                let zero = [[vdupq_n_s16(0); 2]; 2];
                let (mut ones, mut fours) = (zero, zero);
                let mut at = lines[32 * pair..].as_ptr();
                x = start;
                // SAFETY: `at` is in the lines of a block, `x` at the quants of as many blocks as `span` gave; in the last
                // block what is loaded next is the block itself.
                unsafe {
                    let mut loaded = Loaded::new(at, x);
                    loop {
                        let mut sixteens = zero;
                        let last = at.wrapping_add(LINES) >= end;
                        let (half, next) = (at.add(LINES / 2), at.wrapping_add(if last { 0 } else { LINES }));
                        let x_half = each(x, |x| x.add(BLOCK / 2));
                        let x_next = each(x, |x| x.wrapping_add(if last { 0 } else { step }));
                        add_lines(&mut ones, &mut fours, &mut sixteens, &mut loaded, at, half, x_half);
                        add_lines(&mut ones, &mut fours, &mut sixteens, &mut loaded, half, next, x_next);
                        // 8 products of 16 · 2 · 127 are as much as a lane holds.
                        ones = shifted_in::<4>(ones, sixteens);
                        x = each(x, |x| x.wrapping_add(step));
                        if last {
                            break;
                        }
                        at = next;
                    }
                }
                let ones = shifted_in::<2>(ones, fours);
                for q in 0..2 {
                    sums[2 * pair + q] = widened(sums[2 * pair + q], ones[q]);
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn add<const TOP: bool, const M: usize>(
        sums: &mut [[int32x4_t; M]; QUADS],
        lines: &[u8],
        x: &Micro<'_, M>,
        first: usize,
    ) {
        for pair in 0..2 {
            let mut narrow = [[[vdupq_n_s16(0); 2]; Self::ROWS]; 2];
            for (b, lines) in lines.as_chunks::<LINES>().0.iter().enumerate() {
                let fields = each(fields::<TOP, M>(x, first + FIELDS * b), |x| {
                    let rows: &[Block; Self::ROWS] = x.first_chunk().expect("as many as ROWS");
                    rows.as_ptr().cast::<i8>()
                });
                for (half, lines) in lines.as_chunks::<{ LINES / 2 }>().0.iter().enumerate() {
                    let (lines, x) = (lines[32 * pair..].as_ptr(), each(fields, |x| x.wrapping_add(16 * half)));
                    let [a, b] = &mut narrow;
                    add_columns!(a, b, lines, x[0], [unpack!("and", "{three:v}.16b")], three);
                    add_columns!(a, b, lines, x[1], [unpack!("ushr", "2"), unpack!("and", "{three:v}.16b")], three);
                    add_columns!(a, b, lines, x[2], [unpack!("ushr", "4"), unpack!("and", "{three:v}.16b")], three);
                    add_columns!(a, b, lines, x[3], [unpack!("ushr", "6")],);
                }
            }
            for q in 0..2 {
                for m in 0..Self::ROWS {
                    sums[2 * pair + q][m] = widened(sums[2 * pair + q][m], narrow[q][m]);
                }
            }
        }
    }
}

/// `sums + shifted / 2^N`, which is exact.
#[inline(always)]
fn shifted_in<const N: i32>(sums: [Sum; 2], shifted: [Sum; 2]) -> [Sum; 2] {
    each([0, 1], |q| each([0, 1], |side| vsraq_n_s16::<N>(sums[q][side], shifted[q][side])))
}

/// `sum` and the four sums of each row.
#[inline(always)]
fn widened(sum: int32x4_t, [low, high]: Sum) -> int32x4_t {
    vpadalq_s16(sum, vpaddq_s16(low, high))
}

/// What is loaded of four lines: the bytes of both quads of the first two, and the columns of each field.
struct Loaded {
    bytes: [[uint8x16_t; 2]; 2],
    x: [int8x16_t; FIELDS],
}

impl Loaded {
    /// # Safety
    /// `lines` is at the pair of quads in two lines, `x` at 16 quants each.
    #[inline(always)]
    unsafe fn new(lines: *const u8, x: [*const i8; FIELDS]) -> Loaded {
        // SAFETY: the caller's promise; the loads need no alignment.
        let byte = |at: usize| unsafe { vld1q_u8(lines.add(at)) };
        // SAFETY: as above.
        Loaded { bytes: [[byte(0), byte(16)], [byte(64), byte(80)]], x: each(x, |x| unsafe { vld1q_s8(x) }) }
    }
}

/// Adds the columns of four lines to the sums of two quads and one activation row, and loads the next ones. Codes stay at
/// their place in the byte, where they count 1, 4 or 16 each, and those at the top are shifted down.
///
/// # Safety
/// `lines` and `next` are at the pair of quads in four lines each, `x` at 16 quants each.
#[inline(always)]
unsafe fn add_lines(
    [[p0, q0], [r0, s0]]: &mut [Sum; 2],
    [[p1, q1], [r1, s1]]: &mut [Sum; 2],
    [[p2, q2], [r2, s2]]: &mut [Sum; 2],
    loaded: &mut Loaded,
    lines: *const u8,
    next: *const u8,
    x: [*const i8; FIELDS],
) {
    let Loaded { bytes: [[b0, g0], [b1, g1]], x: [x0, x1, x2, x3] } = loaded;
    // SAFETY: reads what the caller promises.
    unsafe {
        asm!(
            take!("a", "0", "0", "0", "and", "{m0:v}.16b"),
            take!("b", "0", "0", "1", "and", "{m1:v}.16b"),
            multiply!("a", "0"),
            take!("a", "0", "0", "3", "ushr", "6"),
            multiply!("b", "1"),
            take!("b", "0", "0", "2", "and", "{m2:v}.16b"),
            multiply!("a", "0"),
            take!("a", "1", "1", "0", "and", "{m0:v}.16b"),
            multiply!("b", "2"),
            take!("b", "1", "1", "1", "and", "{m1:v}.16b"),
            multiply!("a", "0"),
            take!("a", "1", "1", "3", "ushr", "6"),
            multiply!("b", "1"),
            take!("b", "1", "1", "2", "and", "{m2:v}.16b"),
            "ldp {b0:q}, {g0:q}, [{lines}, 128]",
            "ldp {b1:q}, {g1:q}, [{lines}, 192]",
            multiply!("a", "0"),
            take!("a", "2", "0", "0", "and", "{m0:v}.16b"),
            multiply!("b", "2"),
            take!("b", "2", "0", "1", "and", "{m1:v}.16b"),
            multiply!("a", "0"),
            take!("a", "2", "0", "3", "ushr", "6"),
            multiply!("b", "1"),
            take!("b", "2", "0", "2", "and", "{m2:v}.16b"),
            multiply!("a", "0"),
            take!("a", "3", "1", "0", "and", "{m0:v}.16b"),
            multiply!("b", "2"),
            take!("b", "3", "1", "1", "and", "{m1:v}.16b"),
            multiply!("a", "0"),
            take!("a", "3", "1", "3", "ushr", "6"),
            multiply!("b", "1"),
            take!("b", "3", "1", "2", "and", "{m2:v}.16b"),
            "ldp {b0:q}, {g0:q}, [{next}]",
            "ldp {b1:q}, {g1:q}, [{next}, 64]",
            "ldr {x0:q}, [{n0}]",
            "ldr {x1:q}, [{n1}]",
            "ldr {x2:q}, [{n2}]",
            "ldr {x3:q}, [{n3}]",
            multiply!("a", "0"),
            multiply!("b", "2"),
            p0 = inout(vreg) *p0, q0 = inout(vreg) *q0, r0 = inout(vreg) *r0, s0 = inout(vreg) *s0,
            p1 = inout(vreg) *p1, q1 = inout(vreg) *q1, r1 = inout(vreg) *r1, s1 = inout(vreg) *s1,
            p2 = inout(vreg) *p2, q2 = inout(vreg) *q2, r2 = inout(vreg) *r2, s2 = inout(vreg) *s2,
            b0 = inout(vreg) *b0, g0 = inout(vreg) *g0, b1 = inout(vreg) *b1, g1 = inout(vreg) *g1,
            x0 = inout(vreg) *x0, x1 = inout(vreg) *x1, x2 = inout(vreg) *x2, x3 = inout(vreg) *x3,
            m0 = in(vreg) vdupq_n_u8(3), m1 = in(vreg) vdupq_n_u8(12), m2 = in(vreg) vdupq_n_u8(48),
            ca = out(vreg) _, ea = out(vreg) _, da = out(vreg) _, cb = out(vreg) _, eb = out(vreg) _, db = out(vreg) _,
            lines = in(reg) lines, next = in(reg) next,
            n0 = in(reg) x[0], n1 = in(reg) x[1], n2 = in(reg) x[2], n3 = in(reg) x[3],
            options(nostack, preserves_flags)
        );
    }
}
