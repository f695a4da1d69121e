//! GEMM of the integer formats with 256-bit registers, for any way to multiply int8.
//!
//! A register holds 8 of a tile's 16 rows, one per 32-bit lane: a half. The codes of a block are unpacked once for all
//! activation rows of a panel and wait in the first cache, as do the sums of the panel: both are too many for registers.
//! They are multiplied with 4 activation rows at a time, or with the one row of a GEMV.

use super::super::rows::{Block, PANEL, Rows};
use super::super::tile;
use crate::quant::Format;
use std::arch::x86_64::*;
use std::array::{from_mut, from_ref};

/// Rows of a register.
pub const LANES: usize = 8;

/// Registers that hold the rows of a tile.
pub const HALVES: usize = tile::ROWS / LANES;

/// 32 columns of a tile: `codes[v][h]` has columns 4v to 4v + 3 of each row of half h in a lane.
pub type Codes = [[__m256i; HALVES]; 8];

/// How codes are multiplied with M activation rows.
pub trait Dot {
    /// `starts[m] + Σ code · quant` over 32 columns: of unsigned codes of 4 or 5 bits, or of int8, which starts at 0.
    ///
    /// # Safety
    /// The CPU has AVX2 and the instruction that the type is named after.
    unsafe fn block<const BITS: usize, const M: usize>(
        codes: &Codes,
        x: &[Block; M],
        starts: [__m256i; M],
    ) -> [[__m256i; HALVES]; M];

    /// `Σ scale · code · quant` over 32 columns of unsigned codes of 6 bits. Lane r of `scales[0][h]` has row r's scale of
    /// columns 0 to 15 twice, in 16 bits; `scales[1]` those of columns 16 to 31.
    ///
    /// # Safety
    /// As for `block`.
    unsafe fn block_6<const M: usize>(
        codes: &Codes,
        x: &[Block; M],
        scales: [[__m256i; HALVES]; 2],
    ) -> [[__m256i; HALVES]; M];

    /// `Σ code · quant` over 128 columns of codes of 0, 1 or 2, by 32 columns.
    ///
    /// # Safety
    /// As for `block`.
    unsafe fn ternary<const M: usize>(codes: &[Codes; 4], x: [&[Block; M]; 4]) -> [[__m256i; HALVES]; M];

    /// The same for one activation row, from the lines of a tile: I2_S, or TQ2_0 if SCALED.
    ///
    /// # Safety
    /// As for `block`.
    unsafe fn ternary_row<const SCALED: bool>(lines: &[u8], x: [&Block; 4]) -> [__m256i; HALVES];
}

/// 32 bytes at `offset`.
#[inline]
#[target_feature(enable = "avx2")]
pub fn load(bytes: &[u8], offset: usize) -> __m256i {
    let bytes: &[u8; 32] = bytes[offset..].first_chunk().expect("a tile is whole");
    // SAFETY: 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// 16 bytes at `offset`.
#[inline]
#[target_feature(enable = "avx2")]
pub fn load_half(bytes: &[u8], offset: usize) -> __m128i {
    let bytes: &[u8; 16] = bytes[offset..].first_chunk().expect("a tile is whole");
    // SAFETY: 16 readable bytes; the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// 8 f16 at `offset`, as f32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub fn load_f16(bytes: &[u8], offset: usize) -> __m256 {
    _mm256_cvtph_ps(load_half(bytes, offset))
}

/// The activations of columns `4 * v..4 * v + 4`, in every lane.
#[inline]
#[target_feature(enable = "avx2")]
pub fn broadcast(x: &Block, v: usize) -> __m256i {
    let four: &[i8; 4] = x.quants[4 * v..].first_chunk().expect("inside a block");
    _mm256_set1_epi32(i32::from_le_bytes(four.map(|quant| quant as u8)))
}

/// The two sums of a block of 32 activations, as a pair of 16 bits in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast_sums(x: &Block) -> __m256i {
    let [first, second] = x.sums;
    _mm256_set1_epi32((first as u16 as i32) | (second as i32) << 16)
}

/// Stores 8 rows' sums of one activation row.
#[inline]
#[target_feature(enable = "avx2")]
pub fn store(out: &mut [f32], row: usize, half: usize, sums: __m256) {
    let out: &mut [f32; LANES] = out[row * tile::ROWS + half * LANES..].first_chunk_mut().expect("out is whole");
    // SAFETY: 8 writable floats; the store needs no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sums) }
}

/// Sums of an activation row, by half.
type Sums = [__m256; HALVES];

/// Stores what a micro-kernel summed.
#[inline]
#[target_feature(enable = "avx2")]
fn store_all(out: &mut [f32], sums: &[Sums]) {
    for (row, sums) in sums.iter().take(out.len() / tile::ROWS).enumerate() {
        for half in 0..HALVES {
            store(out, row, half, sums[half]);
        }
    }
}

/// The blocks of a panel: of one row in a GEMV, whose N is 1, else of up to N.
#[derive(Clone, Copy)]
struct Panel<'a, const N: usize> {
    /// (columns / 32, rows).
    blocks: &'a [Block],
    count: usize,
}

impl<'a, const N: usize> Panel<'a, N> {
    #[inline(always)]
    fn rows(&self) -> usize {
        if N == 1 { 1 } else { self.count }
    }

    /// Block b of each row.
    #[inline(always)]
    fn block(&self, b: usize) -> &'a [Block] {
        &self.blocks[b * self.rows()..][..self.rows()]
    }
}

/// Runs `$micro::<…, N>(tile, panel, out of its rows)` for each panel.
macro_rules! each_panel {
    ($micro:ident, [$($generic:tt),*], $tile:expr, $x:expr, $out:expr) => {
        for (p, out) in $out.chunks_mut(PANEL * tile::ROWS).enumerate() {
            let count = out.len() / tile::ROWS;
            let blocks = $x.slice(p * PANEL, p * PANEL + count).blocks;
            match count {
                1 => $micro::<$($generic,)* 1>($tile, Panel { blocks, count }, out),
                _ => $micro::<$($generic,)* PANEL>($tile, Panel { blocks, count }, out),
            }
        }
    };
}

/// Runs `$rows::<…, M>(x, sums, …)` over the activation rows of a panel, 4 at a time.
macro_rules! each_rows {
    ($rows:ident, [$($generic:tt),*], $x:expr, $sums:expr, $($argument:expr),*) => {{
        let (x4, x1) = $x.as_chunks::<4>();
        let (sums4, sums1) = $sums[..$x.len()].as_chunks_mut::<4>();
        for (x, sums) in x4.iter().zip(sums4) {
            $rows::<$($generic,)* 4>(x, sums, $($argument),*);
        }
        for (x, sums) in x1.iter().zip(sums1) {
            $rows::<$($generic,)* 1>(from_ref(x), from_mut(sums), $($argument),*);
        }
    }};
}

/// `sums + scale · x.scale · Σ code · quant` over a block of 32 columns, in which codes have a zero point in the middle if
/// ZERO, `+ minimum · x.scaled_sum` if MINIMUM.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_block<D: Dot, const BITS: usize, const ZERO: bool, const MINIMUM: bool, const M: usize>(
    x: &[Block; M],
    sums: &mut [Sums; M],
    codes: &Codes,
    scales: Sums,
    minimums: Sums,
) {
    let mut starts = [_mm256_setzero_si256(); M];
    if ZERO {
        for m in 0..M {
            let negated = _mm256_set1_epi32(x[m].negated_sum);
            starts[m] = if BITS == 4 { _mm256_slli_epi32::<3>(negated) } else { _mm256_slli_epi32::<4>(negated) };
        }
    }
    // SAFETY: the table that lists this function checked the CPU for D.
    let integers = unsafe { D::block::<BITS, M>(codes, x, starts) };
    for m in 0..M {
        for h in 0..HALVES {
            let scale = _mm256_mul_ps(scales[h], _mm256_set1_ps(x[m].scale));
            sums[m][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(integers[m][h]), scale, sums[m][h]);
            if MINIMUM {
                sums[m][h] = _mm256_fmadd_ps(minimums[h], _mm256_set1_ps(x[m].scaled_sum), sums[m][h]);
            }
        }
    }
}

/// Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 by bits and whether a block has a minimum.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn simple<D: Dot, const BITS: usize, const MINIMUM: bool>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_panel!(micro_simple, [D, BITS, MINIMUM], tile, x, out);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn micro_simple<D: Dot, const BITS: usize, const MINIMUM: bool, const N: usize>(
    tile: &[u8],
    x: Panel<'_, N>,
    out: &mut [f32],
) {
    let high = if MINIMUM { 4 } else { 2 };
    let codes = if BITS == 5 { high + 4 } else { high };
    let block_bytes = codes + if BITS == 8 { 32 } else { 16 };
    let mut sums = [[_mm256_setzero_ps(); HALVES]; N];
    for (b, block) in tile.chunks_exact(block_bytes * tile::ROWS).enumerate() {
        let packed = &block[codes * tile::ROWS..];
        let codes = match BITS {
            4 => codes_4(packed),
            5 => codes_5(&block[high * tile::ROWS..], packed),
            _ => bytes(packed),
        };
        let scales = load_f16s(block);
        let minimums = if MINIMUM { load_f16s(&block[2 * tile::ROWS..]) } else { scales };
        match BITS == 8 || MINIMUM {
            true => each_rows!(add_block, [D, BITS, false, MINIMUM], x.block(b), sums, &codes, scales, minimums),
            false => each_rows!(add_block, [D, BITS, true, false], x.block(b), sums, &codes, scales, minimums),
        }
    }
    store_all(out, &sums);
}

/// The 16 f16 that `bytes` begin with, as f32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load_f16s(bytes: &[u8]) -> Sums {
    [load_f16(bytes, 0), load_f16(bytes, 16)]
}

/// 32 columns of bytes, such as int8.
#[inline]
#[target_feature(enable = "avx2")]
fn bytes(packed: &[u8]) -> Codes {
    let mut codes = [[_mm256_setzero_si256(); HALVES]; 8];
    for v in 0..8 {
        codes[v] = [load(packed, 64 * v), load(packed, 64 * v + 32)];
    }
    codes
}

/// 32 columns of 4-bit codes.
#[inline]
#[target_feature(enable = "avx2")]
fn codes_4(packed: &[u8]) -> Codes {
    let mask = _mm256_set1_epi8(15);
    let mut codes = [[mask; HALVES]; 8];
    for v in 0..4 {
        for h in 0..HALVES {
            let bytes = load(packed, 64 * v + 32 * h);
            codes[v][h] = _mm256_and_si256(bytes, mask);
            codes[v + 4][h] = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
        }
    }
    codes
}

/// As `codes_4`, with 32 fifth bits for each row.
#[inline]
#[target_feature(enable = "avx2")]
fn codes_5(bits: &[u8], packed: &[u8]) -> Codes {
    // Byte v / 2 of a lane, four times; the bits of even and odd groups of columns in it.
    let first = _mm256_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0C0C_0C0C, 0, 0x0404_0404, 0x0808_0808, 0x0C0C_0C0C);
    let (even, odd) = (_mm256_set1_epi32(0x0804_0201), _mm256_set1_epi32(0x8040_2010u32 as i32));
    let bits = [load(bits, 0), load(bits, 32)];
    let mut codes = codes_4(packed);
    for v in 0..8 {
        let place = _mm256_add_epi8(first, _mm256_set1_epi8((v / 2) as i8));
        let bit = if v % 2 == 0 { even } else { odd };
        for h in 0..HALVES {
            let spread = _mm256_shuffle_epi8(bits[h], place);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
            codes[v][h] = _mm256_or_si256(codes[v][h], _mm256_and_si256(set, _mm256_set1_epi8(16)));
        }
    }
    codes
}

/// The 6-bit scales and minimums of 8 rows: byte j % 4 of lane r in register j / 4 is sub-block j's of row r.
#[inline]
#[target_feature(enable = "avx2")]
fn scales_k4(packed: &[u8], place: usize) -> ([__m256i; 2], [__m256i; 2]) {
    let (six, four, top) = (_mm256_set1_epi8(0x3F), _mm256_set1_epi8(0x0F), _mm256_set1_epi8(0x30));
    let (a, b, c) = (load(packed, place), load(packed, 64 + place), load(packed, 128 + place));
    // (x >> 2 & 0x30) | low
    let with_top = |x, low| _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16::<2>(x), top), low);
    (
        [_mm256_and_si256(a, six), with_top(a, _mm256_and_si256(c, four))],
        [_mm256_and_si256(b, six), with_top(b, _mm256_and_si256(_mm256_srli_epi16::<4>(c), four))],
    )
}

/// Byte `j % 4` of each lane of register `j / 4`, as f32.
#[inline]
#[target_feature(enable = "avx2")]
fn byte_as_f32(registers: &[__m256i; 2], j: usize) -> __m256 {
    let shifted = _mm256_srl_epi32(registers[j / 4], _mm_cvtsi32_si128(8 * (j % 4) as i32));
    _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(0xFF)))
}

/// Q4_K and Q5_K.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn k<D: Dot, const BITS: usize>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_panel!(micro_k, [D, BITS], tile, x, out);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn micro_k<D: Dot, const BITS: usize, const N: usize>(tile: &[u8], x: Panel<'_, N>, out: &mut [f32]) {
    let codes = if BITS == 5 { 48 } else { 16 };
    let mut sums = [[_mm256_setzero_ps(); HALVES]; N];
    for (b, block) in tile.chunks_exact((codes + 128) * tile::ROWS).enumerate() {
        let scales = [scales_k4(&block[4 * tile::ROWS..], 0), scales_k4(&block[4 * tile::ROWS..], 32)];
        let mut scaled = [[_mm256_setzero_ps(); HALVES]; N];
        let fifths = bytes(&block[16 * tile::ROWS..]);
        for pair in 0..4 {
            let packed = &block[(codes + 32 * pair) * tile::ROWS..];
            let codes = codes_k::<BITS>(packed, &fifths, pair);
            for side in 0..2 {
                let j = 2 * pair + side;
                let scales = [byte_as_f32(&scales[0].0, j), byte_as_f32(&scales[1].0, j)];
                each_rows!(
                    add_block,
                    [D, BITS, false, false],
                    x.block(8 * b + j),
                    scaled,
                    &codes[side],
                    scales,
                    scales
                );
            }
        }
        let (d, dmin) = (load_f16s(block), load_f16s(&block[2 * tile::ROWS..]));
        for h in 0..HALVES {
            let mut minimum = [_mm256_setzero_ps(); 8];
            for j in 0..8 {
                minimum[j] = byte_as_f32(&scales[h].1, j);
            }
            for m in 0..x.rows() {
                let mut below = _mm256_setzero_ps();
                for j in 0..8 {
                    below = _mm256_fmadd_ps(minimum[j], _mm256_set1_ps(x.block(8 * b + j)[m].scaled_sum), below);
                }
                sums[m][h] = _mm256_fmadd_ps(d[h], scaled[m][h], sums[m][h]);
                sums[m][h] = _mm256_fnmadd_ps(dmin[h], below, sums[m][h]);
            }
        }
    }
    store_all(out, &sums);
}

/// Sub-blocks 2·pair (low halves of the bytes) and 2·pair + 1 (high halves), with those bits of the bytes of fifth bits.
#[inline]
#[target_feature(enable = "avx2")]
fn codes_k<const BITS: usize>(packed: &[u8], fifths: &Codes, pair: usize) -> [Codes; 2] {
    let (four, sixteen) = (_mm256_set1_epi8(15), _mm256_set1_epi8(16));
    let shift = _mm_cvtsi32_si128(2 * pair as i32);
    let mut codes = [[[four; HALVES]; 8]; 2];
    for v in 0..8 {
        for h in 0..HALVES {
            let bytes = load(packed, 64 * v + 32 * h);
            codes[0][v][h] = _mm256_and_si256(bytes, four);
            codes[1][v][h] = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), four);
            if BITS == 5 {
                let bits = _mm256_srl_epi16(fifths[v][h], shift);
                let low = _mm256_and_si256(_mm256_slli_epi16::<4>(bits), sixteen);
                let high = _mm256_and_si256(_mm256_slli_epi16::<3>(bits), sixteen);
                codes[0][v][h] = _mm256_or_si256(codes[0][v][h], low);
                codes[1][v][h] = _mm256_or_si256(codes[1][v][h], high);
            }
        }
    }
    codes
}

#[target_feature(enable = "avx2,fma,f16c")]
pub fn q6_k<D: Dot>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_panel!(micro_q6_k, [D], tile, x, out);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn micro_q6_k<D: Dot, const N: usize>(tile: &[u8], x: Panel<'_, N>, out: &mut [f32]) {
    let mut sums = [[_mm256_setzero_ps(); HALVES]; N];
    for (b, block) in tile.chunks_exact(Format::Q6_K.block_bytes() * tile::ROWS).enumerate() {
        let mut scaled = [[_mm256_setzero_ps(); HALVES]; N];
        for part in 0..2 {
            let lines = &block[part * tile::Q6_K_HALF..][..tile::Q6_K_HALF];
            let codes = codes_6(lines);
            for g in 0..4 {
                // Lane r: (scale of columns 0 to 15, scale of columns 16 to 31) of row r.
                let scales = load(lines, (96 + 2 * g) * tile::ROWS);
                let scales = [_mm256_castsi256_si128(scales), _mm256_extracti128_si256::<1>(scales)];
                let scales = scales.map(|scales| _mm256_cvtepi8_epi16(scales));
                let twice = [scales.map(|pairs| twice(pairs, 0)), scales.map(|pairs| twice(pairs, 1))];
                each_rows!(add_6, [D], x.block(8 * b + 4 * part + g), scaled, &codes[g], scales, twice);
            }
        }
        let d = load_f16s(&block[208 * tile::ROWS..]);
        for (sums, scaled) in sums.iter_mut().zip(scaled) {
            for h in 0..HALVES {
                sums[h] = _mm256_fmadd_ps(d[h], scaled[h], sums[h]);
            }
        }
    }
    store_all(out, &sums);
}

/// `sums + Σ scale · (code - 32) · x` over a group of 32 columns.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_6<D: Dot, const M: usize>(
    x: &[Block; M],
    sums: &mut [Sums; M],
    codes: &Codes,
    scales: [__m256i; HALVES],
    twice: [[__m256i; HALVES]; 2],
) {
    // SAFETY: the table that lists this function checked the CPU for D.
    let integers = unsafe { D::block_6::<M>(codes, x, twice) };
    for m in 0..M {
        for h in 0..HALVES {
            let zero = _mm256_slli_epi32::<5>(_mm256_madd_epi16(scales[h], broadcast_sums(&x[m])));
            let integer = _mm256_cvtepi32_ps(_mm256_sub_epi32(integers[m][h], zero));
            sums[m][h] = _mm256_fmadd_ps(integer, _mm256_set1_ps(x[m].scale), sums[m][h]);
        }
    }
}

/// The first or the second 16 bits of each lane, twice.
#[inline]
#[target_feature(enable = "avx2")]
fn twice(pairs: __m256i, which: usize) -> __m256i {
    let [a, b, c, d] = [0x0100_0100, 0x0504_0504, 0x0908_0908, 0x0D0C_0D0C];
    let bytes = _mm256_setr_epi32(a, b, c, d, a, b, c, d);
    _mm256_shuffle_epi8(pairs, _mm256_add_epi8(bytes, _mm256_set1_epi8(2 * which as i8)))
}

/// The four groups of 32 columns of half a Q6_K block: 4 low bits, 2 high bits.
#[inline]
#[target_feature(enable = "avx2")]
fn codes_6(lines: &[u8]) -> [Codes; 4] {
    let (four, two) = (_mm256_set1_epi8(0x0F), _mm256_set1_epi8(0x30));
    let lines = &lines[..24 * 64];
    let mut codes = [[[four; HALVES]; 8]; 4];
    for v in 0..8 {
        for h in 0..HALVES {
            let high = load(lines, 3 * v * 64 + 32 * h);
            for a in 0..2 {
                let low = load(lines, (3 * v + 1 + a) * 64 + 32 * h);
                let high = if a == 0 { high } else { _mm256_srli_epi16::<2>(high) };
                let first = _mm256_and_si256(_mm256_slli_epi16::<4>(high), two);
                codes[a][v][h] = _mm256_or_si256(_mm256_and_si256(low, four), first);
                let low = _mm256_srli_epi16::<4>(low);
                codes[a + 2][v][h] = _mm256_or_si256(_mm256_and_si256(low, four), _mm256_and_si256(high, two));
            }
        }
    }
    codes
}
