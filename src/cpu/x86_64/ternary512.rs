//! GEMM of ternary weights with AVX-512 VNNI.
//!
//! A line of 64 bytes has 4 bytes of each of a tile's 16 rows, one row per 32-bit lane, and a byte has 4 codes of 0, 1 or 2:
//! weights plus 1, so that a sum begins at minus the sum of the activations. Eight lines are 128 columns: field f of line v
//! is columns 32f + 4v to 32f + 4v + 3.
//!
//! Looking sums of two columns up in tables (T-MAC) was tried and lost. `vpshufb` looks up half of a 16-bit sum of two
//! columns for 64 rows, which is less than what `vpdpbusd` multiplies and adds, and the tables fill the first cache: a
//! GEMV in cache took 20.6 GB/s of weights where this one takes 45 (Zen 4).

use super::super::rows::{Block, Micro, Rows};
use super::super::tile;
use super::avx512::{Sums, broadcast, each_micro, load, load_f16, load_in_order, row, store, unrolled};
use super::ternary256::{LINES, shift};
use std::arch::x86_64::*;
use std::ops::RangeInclusive;
use std::ptr::from_ref;

/// Columns of which a GEMV asks for every activation once more, half a row before it is due. Activations and a tile are
/// then more than a first cache of 32 KiB: each activation would have left it when the next tile wants it, and would disturb
/// the prefetching of weights. Activations and half a tile fit. 6912 columns read memory at 89 to 95 % of the speed of a plain
/// read, not at 69 to 78 % (Zen 4). Fewer columns fit without it, more do not fit with it and would lose.
const KEPT: RangeInclusive<usize> = 5632..=7424;

/// I2_S, or TQ2_0 if SCALED.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub fn gemm<const SCALED: bool>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    let mut t = 0;
    each_micro!(t, micro, [SCALED], [16, 8, 4, 2], tile, x, out);
    if t < x.count() {
        gemv::<SCALED>(tile, Micro::new(&x, t), row(out, t));
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn micro<const SCALED: bool, const M: usize>(tile: &[u8], x: Micro<'_, M>, out: &mut Sums<M>) {
    let mut sums = [_mm512_setzero_ps(); M];
    if SCALED {
        for (b, block) in tile.chunks_exact(32 + 2 * LINES).enumerate() {
            let mut integers = starts(x, b);
            add_columns::<SCALED, M>(&block[32..][..LINES], x, 8 * b, &mut integers);
            add_columns::<SCALED, M>(&block[32 + LINES..], x, 8 * b + 4, &mut integers);
            let scale = load_f16(block, 0);
            for m in 0..M {
                sums[m] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(integers[m]), sums[m]);
            }
        }
    } else {
        let mut integers = [_mm512_setzero_si512(); M];
        for m in 0..M {
            integers[m] = _mm512_set1_epi32(x.negated_sums[m]);
        }
        for (b, lines) in tile.chunks_exact(LINES).enumerate() {
            add_columns::<SCALED, M>(lines, x, 4 * b, &mut integers);
        }
        for m in 0..M {
            sums[m] = _mm512_cvtepi32_ps(integers[m]);
        }
    }
    for m in 0..M {
        sums[m] = _mm512_mul_ps(sums[m], _mm512_set1_ps(x.block(0)[m].scale));
    }
    store(out, sums);
}

/// Where the sums of 256 columns begin.
#[inline]
#[target_feature(enable = "avx512f")]
fn starts<const M: usize>(x: Micro<'_, M>, b: usize) -> [__m512i; M] {
    let mut starts = [_mm512_setzero_si512(); M];
    for m in 0..M {
        starts[m] = _mm512_set1_epi32((0..8).map(|j| x.block(8 * b + j)[m].negated_sum).sum());
    }
    starts
}

/// Adds 128 columns, the first of which is in block `first` of the activations.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add_columns<const SCALED: bool, const M: usize>(
    lines: &[u8],
    x: Micro<'_, M>,
    first: usize,
    sums: &mut [__m512i; M],
) {
    let three = _mm512_set1_epi8(3);
    let x = [x.block(first), x.block(first + 1), x.block(first + 2), x.block(first + 3)];
    for v in 0..8 {
        let bytes = load(lines, 64 * v);
        for f in 0..4 {
            let by = _mm_cvtsi32_si128(shift::<SCALED>(f) as i32);
            let codes = _mm512_and_si512(_mm512_srl_epi16(bytes, by), three);
            unrolled!(m < M, {
                sums[m] = _mm512_dpbusd_epi32(sums[m], codes, broadcast(&x[f][m], v));
            });
        }
    }
}

/// One activation row. Codes stay where they are in a byte, hence are multiplied with a power of 4, and each field has sums
/// of its own, which are divided at the end: a mask for each field, but no shift. Of 2^18 columns they stay below 2^31.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn gemv<const SCALED: bool>(tile: &[u8], x: Micro<'_, 1>, out: &mut Sums<1>) {
    let zero = [_mm512_setzero_si512(); 8];
    let mut sum = _mm512_setzero_ps();
    if SCALED {
        for (b, block) in tile.chunks_exact(32 + 2 * LINES).enumerate() {
            let mut fields = zero;
            add_fields::<SCALED>(&block[32..][..LINES], blocks_of(x, 8 * b), &mut fields);
            add_fields::<SCALED>(&block[32 + LINES..], blocks_of(x, 8 * b + 4), &mut fields);
            let integers = _mm512_add_epi32(starts(x, b)[0], total::<SCALED>(&fields));
            sum = _mm512_fmadd_ps(load_f16(block, 0), _mm512_cvtepi32_ps(integers), sum);
        }
    } else {
        let mut fields = zero;
        let count = tile.len() / LINES;
        for (b, lines) in tile.chunks_exact(LINES).enumerate() {
            if KEPT.contains(&(128 * count)) {
                for block in blocks_of(x, 4 * ((b + count / 2) % count)) {
                    _mm_prefetch::<_MM_HINT_T0>(from_ref(block).cast());
                }
            }
            add_fields::<SCALED>(lines, blocks_of(x, 4 * b), &mut fields);
        }
        let start = _mm512_set1_epi32(x.negated_sums[0]);
        sum = _mm512_cvtepi32_ps(_mm512_add_epi32(start, total::<SCALED>(&fields)));
    }
    store(out, [_mm512_mul_ps(sum, _mm512_set1_ps(x.block(0)[0].scale))]);
}

/// The activations of 128 columns.
#[inline(always)]
fn blocks_of(x: Micro<'_, 1>, first: usize) -> [&Block; 4] {
    x.four_blocks(first).map(|[x]| x)
}

/// Adds 128 columns to the sums of each field: of even lines, then of odd ones, since each product waits for the sum before.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add_fields<const SCALED: bool>(lines: &[u8], x: [&Block; 4], sums: &mut [__m512i; 8]) {
    for v in 0..8 {
        let bytes = load_in_order(lines, 64 * v);
        for f in 0..4 {
            let mask = _mm512_set1_epi8((3 << shift::<SCALED>(f)) as u8 as i8);
            let at = 4 * (v % 2) + f;
            sums[at] = _mm512_dpbusd_epi32(sums[at], _mm512_and_si512(bytes, mask), broadcast(x[f], v));
        }
    }
}

/// The sum of all fields, each divided by its power of 4, which is exact.
#[inline]
#[target_feature(enable = "avx512f")]
fn total<const SCALED: bool>(sums: &[__m512i; 8]) -> __m512i {
    let mut total = _mm512_setzero_si512();
    for f in 0..4 {
        let sum = _mm512_add_epi32(sums[f], sums[4 + f]);
        let by = _mm_cvtsi32_si128(shift::<SCALED>(f) as i32);
        total = _mm512_add_epi32(total, _mm512_sra_epi32(sum, by));
    }
    total
}
