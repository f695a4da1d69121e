//! AArch64 kernel tables: `neon` runs on all of them, `dotprod` from Cortex-A55, A75 and Neoverse N1 on, `i8mm` from
//! Cortex-A510, A710 and Neoverse V1 on.
//!
//! A 128-bit register holds 4 of a tile's 16 rows, one per 32-bit lane: a quad. How a quad's weights are unpacked and
//! scaled is the same in all tables (`gemm`); how int8 is multiplied differs (`Dot`).

pub mod dotprod;
mod gemm;
pub mod i8mm;
mod intrinsics;
pub mod neon;

use super::rows::{Block, Micro};
use super::tile;
use intrinsics::*;
use std::arch::aarch64::{vld1_u8, vld1q_s8, vld1q_s16, vld1q_u8, vst1q_f32};
use std::arch::asm;
use std::mem::offset_of;

/// Quads of a tile.
const QUADS: usize = tile::ROWS / 4;

/// Codes of 4 rows: register v has columns 4v to 4v + 3 of each row in a lane.
type Codes = [int8x16_t; 4];

/// How int8 weights of 4 rows are multiplied with M activation rows: 16 columns at a time.
///
/// The methods are compiled into functions with the features that they need.
trait Dot {
    /// What is summed for 4 weight rows and one activation row.
    type Sum: Copy;
    /// The most activation rows that the registers allow, a power of two.
    const ROWS: usize;

    /// 16 columns of M activation rows as `add` wants them.
    fn arrange<const M: usize>(x: [int8x16_t; M]) -> [int8x16_t; M] {
        x
    }
    /// Sums that begin at `starts`, or at zero if `end` adds them.
    fn begin<const M: usize>(starts: &[int32x4_t; M]) -> [Self::Sum; M];
    /// Adds Σ code · quant over 16 columns.
    fn add<const M: usize>(sums: &mut [Self::Sum; M], codes: &Codes, x: &[int8x16_t; M]);
    /// The sums, a row in each lane.
    fn end<const M: usize>(sums: [Self::Sum; M], starts: &[int32x4_t; M]) -> [int32x4_t; M];
}

/// Runs the micro-kernel over all activation rows: with each of the numbers of rows as often as it goes, leaving out those
/// that are more than the registers allow.
macro_rules! each_micro {
    ($m:ident in [$($value:literal),*], up to $most:expr, $micro:expr, $tile:expr, $x:expr, $out:expr) => {{
        let (x, out) = ($x, $out);
        let mut t = 0;
        $({
            const $m: usize = $value;
            while $m <= $most && t + $m <= x.count() {
                let out = out[t * tile::ROWS..].as_chunks_mut().0.first_chunk_mut().expect("out is whole");
                $micro($tile, Micro::new(&x, t), out);
                t += $m;
            }
        })*
    }};
}
use each_micro;

/// What a micro-kernel writes.
type Out<const M: usize> = [[f32; tile::ROWS]; M];

/// Stores what a micro-kernel summed.
#[inline(always)]
fn store<const M: usize>(out: &mut Out<M>, sums: &[[float32x4_t; M]; QUADS]) {
    for m in 0..M {
        for (out, sums) in out[m].as_chunks_mut::<4>().0.iter_mut().zip(sums) {
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

/// 16 quants of each row, from column `at` of the block on.
#[inline(always)]
fn quants<D: Dot, const M: usize>(x: &[Block; M], at: usize) -> [int8x16_t; M] {
    let mut quants = [vdupq_n_s8(0); M];
    for m in 0..M {
        let sixteen: &[i8; 16] = x[m].quants[at..].first_chunk().expect("inside a block");
        // SAFETY: 16 readable bytes; the load needs no alignment.
        quants[m] = unsafe { vld1q_s8(sixteen.as_ptr()) };
    }
    D::arrange(quants)
}

/// What follows the quants of a block: `scale` and `scaled_sum` in 32-bit lanes 0 and 1, the two `sums` in 16-bit lanes 4
/// and 5, `negated_sum`, which 16 bits hold, in lane 6.
#[inline(always)]
fn tail(x: &Block) -> int16x8_t {
    const {
        let tail = offset_of!(Block, scale);
        assert!(tail + 16 == size_of::<Block>() && offset_of!(Block, scaled_sum) == tail + 4);
        assert!(offset_of!(Block, sums) == tail + 8 && offset_of!(Block, negated_sum) == tail + 12);
    }
    // SAFETY: 16 readable bytes of the block, by the lines above; the load needs no alignment.
    unsafe { vld1q_s16(std::ptr::from_ref(x).cast::<u8>().add(offset_of!(Block, scale)).cast()) }
}

/// The f32 lanes of a `tail`.
#[inline(always)]
fn scales(x: &Block) -> float32x4_t {
    vreinterpretq_f32_s16(tail(x))
}
