//! GEMM of ternary weights with 256-bit registers, for any way to multiply int8. `ternary512` says how codes lie. With
//! tables a GEMV in cache took 19.3 GB/s of weights, with AVX2's products it takes 29 (Zen 4).

use super::super::rows::{Block, PANEL, Rows};
use super::super::tile;
use super::gemm256::{Codes, Dot, HALVES, load, load_f16, store};
use std::arch::x86_64::*;
use std::array::{from_mut, from_ref};

/// Bytes of 128 columns of a tile.
pub const LINES: usize = 8 * 64;

/// 32-bit sums of an activation row, by half.
type Integers = [__m256i; HALVES];

/// I2_S, or TQ2_0 if SCALED.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn gemm<D: Dot, const SCALED: bool>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    for (p, out) in out.chunks_mut(PANEL * tile::ROWS).enumerate() {
        let count = out.len() / tile::ROWS;
        let x = x.slice(p * PANEL, p * PANEL + count);
        match count {
            1 => panel::<D, SCALED, 1>(tile, x, out),
            _ => panel::<D, SCALED, PANEL>(tile, x, out),
        }
    }
}

/// Where field f of a byte is.
pub const fn shift<const SCALED: bool>(f: usize) -> usize {
    if SCALED { 2 * f } else { 6 - 2 * f }
}

/// The rows of a panel: one in a GEMV, whose N is 1, else up to N.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn panel<D: Dot, const SCALED: bool, const N: usize>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    let rows = if N == 1 { 1 } else { x.count() };
    let blocks = |first: usize| &x.blocks[first * rows..];
    let mut sums = [[_mm256_setzero_ps(); HALVES]; N];
    if SCALED {
        for (b, block) in tile.chunks_exact(32 + 2 * LINES).enumerate() {
            let mut integers = [[_mm256_setzero_si256(); HALVES]; N];
            for m in 0..rows {
                let start = (0..8).map(|j| blocks(8 * b + j)[m].negated_sum).sum();
                integers[m] = [_mm256_set1_epi32(start); HALVES];
            }
            add_columns::<D, SCALED, N>(&block[32..][..LINES], blocks(8 * b), rows, &mut integers);
            add_columns::<D, SCALED, N>(&block[32 + LINES..], blocks(8 * b + 4), rows, &mut integers);
            for m in 0..rows {
                for h in 0..HALVES {
                    let integers = _mm256_cvtepi32_ps(integers[m][h]);
                    sums[m][h] = _mm256_fmadd_ps(load_f16(block, 16 * h), integers, sums[m][h]);
                }
            }
        }
    } else {
        let mut integers = [[_mm256_setzero_si256(); HALVES]; N];
        for m in 0..rows {
            integers[m] = [_mm256_set1_epi32(x.negated_sums[m]); HALVES];
        }
        for (b, lines) in tile.chunks_exact(LINES).enumerate() {
            add_columns::<D, SCALED, N>(lines, blocks(4 * b), rows, &mut integers);
        }
        for m in 0..rows {
            for h in 0..HALVES {
                sums[m][h] = _mm256_cvtepi32_ps(integers[m][h]);
            }
        }
    }
    for m in 0..rows {
        let scale = _mm256_set1_ps(x.blocks[m].scale);
        for h in 0..HALVES {
            store(out, m, h, _mm256_mul_ps(sums[m][h], scale));
        }
    }
}

/// Adds 128 columns; `blocks` begins with the panel's blocks of the first 32 of them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_columns<D: Dot, const SCALED: bool, const N: usize>(
    lines: &[u8],
    blocks: &[Block],
    rows: usize,
    sums: &mut [Integers; N],
) {
    if N == 1 {
        let x = [&blocks[0], &blocks[1], &blocks[2], &blocks[3]];
        // SAFETY: the table that lists this function checked the CPU for D.
        add(&mut sums[0], unsafe { D::ternary_row::<SCALED>(lines, x) });
        return;
    }
    let codes = codes::<SCALED>(lines);
    let by_field = [0, 1, 2, 3].map(|f| &blocks[f * rows..][..rows]);
    let (sums4, sums1) = sums[..rows].as_chunks_mut::<4>();
    for (i, sums) in sums4.iter_mut().enumerate() {
        let x = by_field.map(|x| x[4 * i..].first_chunk().expect("four of the rows"));
        // SAFETY: as above.
        let columns = unsafe { D::ternary::<4>(&codes, x) };
        for m in 0..4 {
            add(&mut sums[m], columns[m]);
        }
    }
    for (i, sums) in sums1.iter_mut().enumerate() {
        let x = by_field.map(|x| from_ref(&x[rows / 4 * 4 + i]));
        // SAFETY: as above.
        let [columns] = unsafe { D::ternary::<1>(&codes, x) };
        add(&mut from_mut(sums)[0], columns);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn add(sums: &mut Integers, columns: Integers) {
    for h in 0..HALVES {
        sums[h] = _mm256_add_epi32(sums[h], columns[h]);
    }
}

/// The codes of 128 columns, by field.
#[inline]
#[target_feature(enable = "avx2")]
fn codes<const SCALED: bool>(lines: &[u8]) -> [Codes; 4] {
    let three = _mm256_set1_epi8(3);
    let lines = &lines[..LINES];
    let mut codes = [[[three; HALVES]; 8]; 4];
    for v in 0..8 {
        for h in 0..HALVES {
            let bytes = load(lines, 64 * v + 32 * h);
            for f in 0..4 {
                let by = _mm_cvtsi32_si128(shift::<SCALED>(f) as i32);
                codes[f][v][h] = _mm256_and_si256(_mm256_srl_epi16(bytes, by), three);
            }
        }
    }
    codes
}
