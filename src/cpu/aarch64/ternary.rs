//! GEMM and GEMV of ternary weights, for any way to multiply int8.
//!
//! A line of a tile is 64 bytes: 4 bytes of each row, every byte with codes 0 to 2 of four columns that are 32 apart. As an
//! activation row has one scale, nothing but integers is summed over the 256 columns of a TQ2_0 block, and over the
//! whole of a row in I2_S. That codes are the weights plus 1, the start of a sum takes back.
//!
//! Tables of the sums of two activations, looked up by `tbl` in place of a multiplication, cost more on the models of all
//! cores, even where the tables are there before: benches/arm/README.md has the figures.

use super::super::rows::{Block, Rows};
use super::super::tile;
use super::intrinsics::*;
use super::{Micro, Out, QUADS, each, each_micro, load_f16, scales, store};

/// Bytes of 128 columns: 8 lines.
pub(super) const LINES: usize = 32 * tile::ROWS;
/// Blocks of activations that 128 columns have: one for each two bits of a byte.
pub(super) const FIELDS: usize = 4;

/// How int8 activations are multiplied with ternary weights.
pub(super) trait Ternary: Sized {
    /// The most activation rows whose sums fit in the registers, a power of two from 4 on.
    const ROWS: usize;

    /// `start + Σ codes · quants` of one activation row, from block `first` on, over all of `lines`.
    fn one<const TOP: bool>(lines: &[u8], x: Micro<'_, 1>, first: usize, start: int32x4_t) -> [int32x4_t; QUADS];
    /// Adds `Σ codes · quants` of M activation rows over up to 256 columns.
    fn add<const TOP: bool, const M: usize>(
        sums: &mut [[int32x4_t; M]; QUADS],
        lines: &[u8],
        x: &Micro<'_, M>,
        first: usize,
    );
    /// The sums by row.
    #[inline(always)]
    fn rows<const M: usize>(sums: [int32x4_t; M]) -> [int32x4_t; M] {
        sums
    }
}

/// The blocks of 128 columns, of which `first` is the first: the one of bits 0 and 1, of bits 2 and 3, and so on. The top
/// bits have the first columns in I2_S, the last ones in TQ2_0.
#[inline(always)]
pub(super) fn fields<'a, const TOP: bool, const M: usize>(x: &Micro<'a, M>, first: usize) -> [&'a [Block; M]; FIELDS] {
    let [a, b, c, d] = x.four_blocks(first);
    if TOP { [d, c, b, a] } else { [a, b, c, d] }
}

/// The code at bits 2S and 2S + 1 of each byte.
#[inline(always)]
pub(super) fn code<const S: i32>(bytes: uint8x16_t) -> int8x16_t {
    let low = vdupq_n_u8(3);
    vreinterpretq_s8_u8(match S {
        0 => vandq_u8(bytes, low),
        1 => vandq_u8(vshrq_n_u8::<2>(bytes), low),
        2 => vandq_u8(vshrq_n_u8::<4>(bytes), low),
        _ => vshrq_n_u8::<6>(bytes),
    })
}

/// `body` for each of M rows: not a loop, because arrays that are indexed by a variable are not in registers.
macro_rules! for_each_row {
    ($m:ident, |$row:ident| $body:block) => {
        for_each_row!($m, |$row| $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($m:ident, |$row:ident| $body:block, $($value:literal)*) => {{
        const { assert!($m <= 16) }
        $(if $value < $m {
            const $row: usize = $value;
            $body
        })*
    }};
}
pub(super) use for_each_row;

/// I2_S.
#[inline(always)]
pub fn i2_s<T: Ternary>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_micro!(
        M, N in [16 by 4, 8 by 4, 4 by 4], up to T::ROWS,
        rows_i2_s::<T, M>, then row_i2_s::<T>, tile, x, out
    );
}

#[inline(always)]
fn row_i2_s<T: Ternary>(tile: &[u8], x: Micro<'_, 1>, out: &mut Out<1>) {
    let integers = T::one::<true>(tile, x, 0, vdupq_n_s32(x.negated_sums[0]));
    let sums = each(integers, |integers| [vmulq_laneq_f32::<0>(vcvtq_f32_s32(integers), scales(&x.block(0)[0]))]);
    store(out, &sums, |sums| sums);
}

#[inline(always)]
fn rows_i2_s<T: Ternary, const M: usize>(tile: &[u8], x: Micro<'_, M>, out: &mut Out<M>) {
    let mut integers = [[vdupq_n_s32(0); M]; QUADS];
    for (c, lines) in tile.chunks(2 * LINES).enumerate() {
        T::add::<true, M>(&mut integers, lines, &x, 2 * FIELDS * c);
    }
    let sums = each(integers, |integers| {
        let integers = T::rows(integers);
        let mut sums = [vdupq_n_f32(0.0); M];
        for m in 0..M {
            let integers = vaddq_s32(integers[m], vdupq_n_s32(x.negated_sums[m]));
            sums[m] = vmulq_laneq_f32::<0>(vcvtq_f32_s32(integers), scales(&x.block(0)[m]));
        }
        sums
    });
    store(out, &sums, |sums| sums);
}

/// TQ2_0.
#[inline(always)]
pub fn tq2_0<T: Ternary>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_micro!(
        M, N in [16 by 4, 8 by 4, 4 by 4], up to T::ROWS,
        rows_tq2_0::<T, M>, then row_tq2_0::<T>, tile, x, out
    );
}

/// The scales of 16 rows, and the lines after them.
const SCALES: usize = 2 * tile::ROWS;

#[inline(always)]
fn row_tq2_0<T: Ternary>(tile: &[u8], x: Micro<'_, 1>, out: &mut Out<1>) {
    let mut sums = [[vdupq_n_f32(0.0)]; QUADS];
    for (b, block) in tile.chunks_exact(SCALES + 2 * LINES).enumerate() {
        let start = vdupq_n_s32(negated_sums(&x, 8 * b)[0]);
        let integers = T::one::<false>(&block[SCALES..], x, 8 * b, start);
        for q in 0..QUADS {
            sums[q][0] = vfmaq_f32(sums[q][0], load_f16(block, 8 * q), vcvtq_f32_s32(integers[q]));
        }
    }
    store_scaled(out, &sums, &x);
}

#[inline(always)]
fn rows_tq2_0<T: Ternary, const M: usize>(tile: &[u8], x: Micro<'_, M>, out: &mut Out<M>) {
    let mut sums = [[vdupq_n_f32(0.0); M]; QUADS];
    for (b, block) in tile.chunks_exact(SCALES + 2 * LINES).enumerate() {
        let mut integers = [[vdupq_n_s32(0); M]; QUADS];
        T::add::<false, M>(&mut integers, &block[SCALES..], &x, 8 * b);
        let negated = negated_sums(&x, 8 * b);
        for q in 0..QUADS {
            let integers = T::rows(integers[q]);
            for m in 0..M {
                let integers = vaddq_s32(integers[m], vdupq_n_s32(negated[m]));
                sums[q][m] = vfmaq_f32(sums[q][m], load_f16(block, 8 * q), vcvtq_f32_s32(integers));
            }
        }
    }
    store_scaled(out, &sums, &x);
}

/// Minus the sums of the quants of 8 blocks.
#[inline(always)]
fn negated_sums<const M: usize>(x: &Micro<'_, M>, first: usize) -> [i32; M] {
    let mut sums = [0; M];
    for blocks in x.blocks(first).take(8) {
        for m in 0..M {
            sums[m] += blocks[m].negated_sum;
        }
    }
    sums
}

/// Stores sums times the scale of their activation row.
#[inline(always)]
fn store_scaled<const M: usize>(out: &mut Out<M>, sums: &[[float32x4_t; M]; QUADS], x: &Micro<'_, M>) {
    store(out, sums, |mut sums| {
        for m in 0..M {
            sums[m] = vmulq_laneq_f32::<0>(sums[m], scales(&x.block(0)[m]));
        }
        sums
    });
}
