//! AArch64 kernel tables: `neon` runs on all of them, `dotprod` from Cortex-A55, A75 and Neoverse N1 on, `i8mm` from
//! Cortex-A510, A710 and Neoverse V1 on.
//!
//! A 128-bit register holds 4 of a tile's 16 rows, one per 32-bit lane: a quad. How a quad's weights are unpacked and
//! scaled is the same in all tables (`gemm`); how int8 is multiplied differs (`Dot`).

pub mod dotprod;
mod gemm;
mod gemv;
pub mod i8mm;
mod intrinsics;
pub mod neon;
mod smlal;
mod ternary;

use super::rows::{Block, Micro};
use super::tile;
use intrinsics::*;
use std::arch::aarch64::{vld1_u8, vld1q_f32, vld1q_s8, vld1q_u8, vst1q_f32, vst1q_s8};
use std::arch::asm;
use std::mem::offset_of;

/// Quads of a tile.
const QUADS: usize = tile::ROWS / 4;

/// Codes of 4 rows: register v has columns 4v to 4v + 3 of each row in a lane.
type Codes = [int8x16_t; 4];

/// How int8 weights of a quad are multiplied with activation rows.
///
/// The methods are compiled into functions with the features that they need. All sums of a call are independent, and an
/// instruction goes through all of them before the next one does: it takes some cycles until a sum can be added to again.
trait Dot: Sized {
    /// What is summed for a quad and one activation row.
    type Sum: Copy;
    /// The most activation rows whose f32 sums fit in the registers, a power of two.
    const ROWS: usize;
    /// Whether sums have room for codes times a power of two, which saves shifting them down.
    const ROOM: bool;
    /// Whether `arrange` is to be called.
    const ARRANGES: bool = false;

    /// Where sums begin, so that `floats` gives what is added to them: of codes times 2^shift.
    fn origin(shift: i32) -> i32;
    /// N sums that begin at `start`, or at zero if `floats` adds it.
    fn begin<const N: usize>(start: int32x4_t) -> [Self::Sum; N];
    /// Adds columns 4V to 4V + 7 of x times two registers of codes.
    fn add<const V: i32, const N: usize>(sums: &mut [Self::Sum; N], codes: &[[int8x16_t; 2]; N], x: &[int8x16_t; N]);
    /// The sums, less the origin and divided by 2^shift, which is exact.
    fn floats<const N: usize>(sums: &[Self::Sum; N], start: int32x4_t, shift: i32) -> [float32x4_t; N];

    // From here on: what a GEMM does. These are for sums of which a lane is a weight row, and the register an activation row.

    /// Writes two rows of activations as the other functions take them.
    fn arrange(_x: &[Block; 2], _arranged: &mut [Block; 2]) {}
    /// Codes as `add_block` takes them. All that is done with each byte alone may be done later.
    #[inline(always)]
    fn arrange_codes(codes: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        codes
    }
    /// `sums + Σ codes · quants · weights · scale` for N rows: 32 columns, with codes times 2^shift.
    #[inline(always)]
    fn add_block<const N: usize>(
        sums: &mut [float32x4_t; N],
        codes: &[Codes; 2],
        shift: i32,
        weights: &[float32x4_t; 2],
        x: &[Block; N],
    ) {
        let start = vdupq_n_s32(Self::origin(shift));
        let mut integers = Self::begin(start);
        add_sixteen::<Self, N>(&mut integers, &codes[0], &quants_of(x, 0));
        add_sixteen::<Self, N>(&mut integers, &codes[1], &quants_of(x, 16));
        let floats = Self::floats(&integers, start, shift);
        for m in 0..N {
            let scale = vmulq_laneq_f32::<0>(weights[0], scales(&x[m]));
            sums[m] = vfmaq_f32(sums[m], floats[m], scale);
        }
    }
    /// As `add_block`, with weights for each 16 columns: `sums + (Σ codes · quants · weights + Σ …) · scale`. In the
    /// brackets are integers of less than 24 bits, so that their order does not matter.
    #[inline(always)]
    fn add_block_6<const N: usize>(
        sums: &mut [float32x4_t; N],
        codes: &[Codes; 2],
        shift: i32,
        weights: &[[float32x4_t; 2]; 2],
        x: &[Block; N],
    ) {
        let start = vdupq_n_s32(Self::origin(shift));
        let mut integers = [Self::begin(start); 2];
        add_sixteen::<Self, N>(&mut integers[0], &codes[0], &quants_of(x, 0));
        add_sixteen::<Self, N>(&mut integers[1], &codes[1], &quants_of(x, 16));
        let a = Self::floats(&integers[0], start, shift);
        let b = Self::floats(&integers[1], start, shift);
        for m in 0..N {
            let both = vfmaq_f32(vmulq_f32(a[m], weights[0][0]), b[m], weights[1][0]);
            sums[m] = vfmaq_laneq_f32::<0>(sums[m], both, scales(&x[m]));
        }
    }
    /// A value of each weight row, as `weights` and `minimums` have it: for the sums at even and at odd places.
    #[inline(always)]
    fn spread(values: float32x4_t) -> [float32x4_t; 2] {
        [values; 2]
    }
    /// `sum + minimums · scaled sum`, for sum m.
    #[inline(always)]
    fn add_minimum<const N: usize>(
        sum: float32x4_t,
        minimums: &[float32x4_t; 2],
        x: &[Block; N],
        m: usize,
    ) -> float32x4_t {
        vfmaq_laneq_f32::<1>(sum, minimums[0], scales(&x[m]))
    }
    /// The sums by row.
    #[inline(always)]
    fn rows<const N: usize>(sums: [float32x4_t; N]) -> [float32x4_t; N] {
        sums
    }
}

/// Adds 16 columns, the same codes for N rows.
#[inline(always)]
fn add_sixteen<D: Dot, const N: usize>(sums: &mut [D::Sum; N], codes: &Codes, x: &[int8x16_t; N]) {
    D::add::<0, N>(sums, &[[codes[0], codes[1]]; N], x);
    D::add::<2, N>(sums, &[[codes[2], codes[3]]; N], x);
}

/// Runs a micro-kernel for M rows, N of them at a time, over all activation rows: with each of the numbers of rows as often
/// as it goes, and at last a GEMV.
macro_rules! each_micro {
    ($m:ident, $n:ident in [$($value:literal by $by:literal),*], up to $most:expr, $micro:expr, then $gemv:expr,
     $tile:expr, $x:expr, $out:expr) => {{
        let (x, out) = ($x, $out);
        let mut t = 0;
        $({
            const $m: usize = $value;
            #[allow(dead_code)]
            const $n: usize = $by;
            while $m <= $most && t + $m <= x.count() {
                let out = out[t * tile::ROWS..].as_chunks_mut().0.first_chunk_mut().expect("out is whole");
                $micro($tile, Micro::new(&x, t), out);
                t += $m;
            }
        })*
        while t < x.count() {
            let out = out[t * tile::ROWS..].as_chunks_mut().0.first_chunk_mut().expect("out is whole");
            $gemv($tile, Micro::new(&x, t), out);
            t += 1;
        }
    }};
}
use each_micro;

/// What a micro-kernel writes.
type Out<const M: usize> = [[f32; tile::ROWS]; M];

/// Stores what a micro-kernel summed, by row.
#[inline(always)]
fn store<const M: usize>(
    out: &mut Out<M>,
    sums: &[[float32x4_t; M]; QUADS],
    rows: impl Fn([float32x4_t; M]) -> [float32x4_t; M],
) {
    for q in 0..QUADS {
        let sums = rows(sums[q]);
        for m in 0..M {
            let out: &mut [f32; 4] = out[m][4 * q..].first_chunk_mut().expect("4 floats of 16");
            // SAFETY: 4 writable floats; the store needs no alignment.
            unsafe { vst1q_f32(out.as_mut_ptr(), sums[m]) };
        }
    }
}

/// 16 bytes at `offset`.
#[inline(always)]
fn load(bytes: &[u8], offset: usize) -> uint8x16_t {
    let bytes: &[u8; 16] = bytes[offset..].first_chunk().expect("a tile is whole");
    // SAFETY: 16 readable bytes; the load needs no alignment.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

/// 8 bytes at `offset`.
#[inline(always)]
fn load_half(bytes: &[u8], offset: usize) -> uint8x8_t {
    let bytes: &[u8; 8] = bytes[offset..].first_chunk().expect("a tile is whole");
    // SAFETY: 8 readable bytes; the load needs no alignment.
    unsafe { vld1_u8(bytes.as_ptr()) }
}

/// 4 f16 as f32. The intrinsic wants the fp16 extension, which the instruction does not.
#[inline(always)]
fn f32_from_f16(halves: uint16x4_t) -> float32x4_t {
    let wide;
    // SAFETY: one instruction of every AArch64, registers only.
    unsafe { asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) halves, options(pure, nomem, nostack)) };
    wide
}

/// 4 f32 as f16.
#[inline(always)]
fn f16_from_f32(wide: float32x4_t) -> uint16x4_t {
    let halves;
    // SAFETY: one instruction of every AArch64, registers only.
    unsafe { asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) halves, in(vreg) wide, options(pure, nomem, nostack)) };
    halves
}

/// 4 f16 at `offset`, as f32.
#[inline(always)]
fn load_f16(bytes: &[u8], offset: usize) -> float32x4_t {
    f32_from_f16(vreinterpret_u16_u8(load_half(bytes, offset)))
}

/// 16 quants of a row, from column `at` of the block on.
#[inline(always)]
fn quants(x: &Block, at: usize) -> int8x16_t {
    let sixteen: &[i8; 16] = x.quants[at..].first_chunk().expect("inside a block");
    // SAFETY: 16 readable bytes; the load needs no alignment.
    unsafe { vld1q_s8(sixteen.as_ptr()) }
}

/// `quants` of N rows.
#[inline(always)]
fn quants_of<const N: usize>(x: &[Block; N], at: usize) -> [int8x16_t; N] {
    let mut rows = [quants(&x[0], at); N];
    for m in 1..N {
        rows[m] = quants(&x[m], at);
    }
    rows
}

/// What follows the quants of a block: `scale` and `scaled_sum` in lanes 0 and 1.
#[inline(always)]
fn scales(x: &Block) -> float32x4_t {
    const {
        assert!(size_of::<Block>() == 48 && offset_of!(Block, quants) == 0);
        assert!(offset_of!(Block, scale) == 32 && offset_of!(Block, scaled_sum) == 36);
    }
    // SAFETY: 16 readable bytes of the block, by the lines above; the load needs no alignment.
    unsafe { vld1q_f32(std::ptr::from_ref(x).cast::<f32>().add(8)) }
}

/// `x.map(f)`, which the compiler is free not to inline, and does not here.
#[inline(always)]
fn each<T: Copy, U: Copy, const N: usize>(x: [T; N], f: impl Fn(T) -> U) -> [U; N] {
    let mut out = [f(x[0]); N];
    for i in 1..N {
        out[i] = f(x[i]);
    }
    out
}

/// Writes what `quants` and `scales` read.
#[inline(always)]
fn set(x: &mut Block, quants: [int8x16_t; 2], scales: float32x4_t) {
    // SAFETY: 48 writable bytes, as in `scales`, and any bits are a block; the stores need no alignment.
    unsafe {
        vst1q_s8(x.quants.as_mut_ptr(), quants[0]);
        vst1q_s8(x.quants.as_mut_ptr().add(16), quants[1]);
        vst1q_f32(std::ptr::from_mut(x).cast::<f32>().add(8), scales);
    }
}
