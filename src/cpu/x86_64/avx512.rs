//! AVX-512 with VNNI: x86-64 servers from 2019 on, and AMD's cores from Zen 4 on.
//!
//! A 512-bit register holds all 16 rows of a tile, one per 32-bit lane. `vpdpbusd` multiplies four unsigned codes of a
//! lane with four signed activations, which it broadcasts from memory, and adds them to the lane's 32-bit sum; nothing
//! saturates. A block of 32 columns is unpacked into 8 registers once and multiplied with `M` rows of a panel: 16 in a
//! GEMM, so that unpacking costs little, and 1 in a GEMV.

use super::super::attention::attention;
use super::super::lanes::{self, ATTENTION_TILE, SoftmaxState};
use super::super::rows::{Block, Micro, Rows};
use super::super::{Kernels, tile};
use super::{elementwise, ternary512};
use crate::quant::Format;
use std::arch::asm;
use std::arch::x86_64::*;

pub static AVX512_VNNI: Kernels = Kernels {
    name: "x86_64-avx512_vnni",
    available: || {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && (super::avx2::AVX2.available)()
    },
    gemm_f32: gemm_float::<F32>,
    gemm_f16: gemm_float::<F16>,
    gemm_bf16: gemm_float::<BF16>,
    gemm_q8_0: gemm_simple::<8, false>,
    gemm_q4_0: gemm_simple::<4, false>,
    gemm_q4_1: gemm_simple::<4, true>,
    gemm_q5_0: gemm_simple::<5, false>,
    gemm_q5_1: gemm_simple::<5, true>,
    gemm_q4_k: gemm_k::<4>,
    gemm_q5_k: gemm_k::<5>,
    gemm_q6_k,
    gemm_tq2_0: ternary512::gemm::<true>,
    gemm_i2_s: ternary512::gemm::<false>,
    quantize,
    quantize_row,
    rms_norm,
    silu_mul,
    relu2_mul,
    rope,
    softmax_stats,
    attend,
    attend_merge,
    attend_end,
    f32_from_f16,
    keys_from_i8,
    values_from_i8,
    add_rotated,
    ..super::avx2::AVX2
};

elementwise!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");
attention! {
    features: "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c", width: 16, queries: 4, score_vectors: 2,
    value_vectors: 4,
    load: _mm512_loadu_ps, store: _mm512_storeu_ps, splat: _mm512_set1_ps, zero: _mm512_setzero_ps,
    add: _mm512_add_ps, mul: _mm512_mul_ps, fma: _mm512_fmadd_ps
}

/// 64 bytes at `offset`.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn load(bytes: &[u8], offset: usize) -> __m512i {
    let bytes: &[u8; 64] = bytes[offset..].first_chunk().expect("a tile is whole");
    // SAFETY: 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// As `load`, and in the order of the program: the CPU's prefetching follows loads in the order of memory, and the compiler
/// would give them another one in long stretches of code. A GEMV of Q6_K lost a quarter of its speed to that.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn load_in_order(bytes: &[u8], offset: usize) -> __m512i {
    let bytes: &[u8; 64] = bytes[offset..].first_chunk().expect("a tile is whole");
    let out;
    // SAFETY: reads 64 readable bytes. Not `pure`, so that it stays where it is among others of its kind.
    unsafe {
        asm!(
            "vmovdqu64 {0}, [{1}]", out(zmm_reg) out, in(reg) bytes.as_ptr(),
            options(readonly, nostack, preserves_flags)
        );
    }
    out
}

/// 32 bytes at `offset`.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_half(bytes: &[u8], offset: usize) -> __m256i {
    let bytes: &[u8; 32] = bytes[offset..].first_chunk().expect("a tile is whole");
    // SAFETY: 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// 16 f16 at `offset`, as f32.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn load_f16(bytes: &[u8], offset: usize) -> __m512 {
    _mm512_cvtph_ps(load_half(bytes, offset))
}

/// The activations of columns `4 * v..4 * v + 4`, in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn broadcast(x: &Block, v: usize) -> __m512i {
    let four: &[i8; 4] = x.quants[4 * v..].first_chunk().expect("inside a block");
    _mm512_set1_epi32(i32::from_le_bytes(four.map(|quant| quant as u8)))
}

/// Runs `$micro::<…, M>(tile, micro rows, out of those rows)` over the activation rows from `$t` on, as many at a time as
/// there are: the largest M of the list first.
macro_rules! each_micro {
    ($t:ident, $micro:ident, [$($generic:tt),*], [], $tile:ident, $x:ident, $out:ident) => {};
    (
        $t:ident, $micro:ident, [$($generic:tt),*], [$m:literal $(, $smaller:literal)*], $tile:ident, $x:ident, $out:ident
    ) => {
        while $x.count() - $t >= $m {
            let out = $out[$t * tile::ROWS..].as_chunks_mut().0.first_chunk_mut().expect("out is whole");
            $micro::<$($generic,)* $m>($tile, Micro::new(&$x, $t), out);
            $t += $m;
        }
        each_micro!($t, $micro, [$($generic),*], [$($smaller),*], $tile, $x, $out);
    };
}

pub(super) use each_micro;

/// Runs the body for each m below M (16 at most), written out, so that what the body indexes with m stays in registers.
macro_rules! unrolled {
    ($m:ident < $M:ident, $body:block) => {
        unrolled!(@ $m, $M, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $m:ident, $M:ident, $body:block, $($i:literal)*) => {
        $(
            if $i < $M {
                let $m = $i;
                $body
            }
        )*
    };
}

pub(super) use unrolled;

/// Sums of M activation rows, 16 each.
pub type Sums<const M: usize> = [[f32; tile::ROWS]; M];

/// The sums of activation row t.
pub fn row(out: &mut [f32], t: usize) -> &mut Sums<1> {
    out[t * tile::ROWS..].as_chunks_mut().0.first_chunk_mut().expect("out is whole")
}

#[inline]
#[target_feature(enable = "avx512f")]
pub fn store<const M: usize>(out: &mut Sums<M>, sums: [__m512; M]) {
    for (out, sums) in out.iter_mut().zip(sums) {
        // SAFETY: 16 writable floats; the store needs no alignment.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sums) };
    }
}

/// `start + Σ code · quant` over a block, in two chains: in one, each product waits for the one before.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot(codes: &[__m512i; 8], x: &Block, start: __m512i) -> __m512i {
    let mut sums = [start, _mm512_setzero_si512()];
    for v in 0..8 {
        sums[v % 2] = _mm512_dpbusd_epi32(sums[v % 2], codes[v], broadcast(x, v));
    }
    _mm512_add_epi32(sums[0], sums[1])
}

/// Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 by bits and whether a block has a minimum.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn gemm_simple<const BITS: usize, const MINIMUM: bool>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    let mut t = 0;
    each_micro!(t, micro_simple, [BITS, MINIMUM], [16, 8, 4, 2, 1], tile, x, out);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn micro_simple<const BITS: usize, const MINIMUM: bool, const M: usize>(
    tile: &[u8],
    x: Micro<'_, M>,
    out: &mut Sums<M>,
) {
    let high = if MINIMUM { 4 } else { 2 };
    let codes = if BITS == 5 { high + 4 } else { high };
    let block_bytes = codes + if BITS == 8 { 32 } else { 16 };
    let mut sums = [_mm512_setzero_ps(); M];
    for (b, block) in tile.chunks_exact(block_bytes * tile::ROWS).enumerate() {
        let x = x.block(b);
        let packed = &block[codes * tile::ROWS..];
        let codes = match BITS {
            4 => codes_4(packed),
            5 => codes_5(load(block, high * tile::ROWS), packed),
            _ => codes_8(packed),
        };
        let scale = load_f16(block, 0);
        unrolled!(m < M, {
            let negated = _mm512_set1_epi32(x[m].negated_sum);
            let start = match BITS {
                _ if MINIMUM => _mm512_setzero_si512(),
                4 => _mm512_slli_epi32::<3>(negated),
                5 => _mm512_slli_epi32::<4>(negated),
                _ => _mm512_slli_epi32::<7>(negated),
            };
            let integers = dot(&codes, &x[m], start);
            let scale = _mm512_mul_ps(scale, _mm512_set1_ps(x[m].scale));
            sums[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(integers), scale, sums[m]);
            if MINIMUM {
                let minimum = load_f16(block, 2 * tile::ROWS);
                sums[m] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(x[m].scaled_sum), sums[m]);
            }
        });
    }
    store(out, sums);
}

/// 32 columns of 4-bit codes: register v holds columns 4v to 4v + 3.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn codes_4(packed: &[u8]) -> [__m512i; 8] {
    let mask = _mm512_set1_epi8(15);
    let mut codes = [mask; 8];
    for v in 0..4 {
        let bytes = load(packed, v * 64);
        codes[v] = _mm512_and_si512(bytes, mask);
        codes[v + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
    }
    codes
}

/// As `codes_4`, with the 32 fifth bits in each lane of `bits`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn codes_5(bits: __m512i, packed: &[u8]) -> [__m512i; 8] {
    // Byte v / 2 of a lane, four times; the bits of even and odd groups of columns in it.
    let first = _mm512_set4_epi32(0x0C0C_0C0C, 0x0808_0808, 0x0404_0404, 0);
    let (even, odd) = (_mm512_set1_epi32(0x0804_0201), _mm512_set1_epi32(0x8040_2010u32 as i32));
    let mut codes = codes_4(packed);
    for v in 0..8 {
        let place = _mm512_add_epi8(first, _mm512_set1_epi8((v / 2) as i8));
        let set = _mm512_test_epi8_mask(_mm512_shuffle_epi8(bits, place), if v % 2 == 0 { even } else { odd });
        codes[v] = _mm512_mask_add_epi8(codes[v], set, codes[v], _mm512_set1_epi8(16));
    }
    codes
}

/// 32 columns of int8 weights, each plus 128: the sums begin at -128 · Σ quant.
#[inline]
#[target_feature(enable = "avx512f")]
fn codes_8(packed: &[u8]) -> [__m512i; 8] {
    let mut codes = [_mm512_set1_epi8(-128); 8];
    for v in 0..8 {
        codes[v] = _mm512_xor_si512(load(packed, v * 64), codes[v]);
    }
    codes
}

/// The 6-bit scales and minimums: byte j % 4 of lane r in register j / 4 is sub-block j's of row r.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn scales_k4(packed: &[u8]) -> ([__m512i; 2], [__m512i; 2]) {
    let (six, four, top) = (_mm512_set1_epi8(0x3F), _mm512_set1_epi8(0x0F), _mm512_set1_epi8(0x30));
    let (a, b, c) = (load(packed, 0), load(packed, 64), load(packed, 128));
    // (x >> 2 & 0x30) | low
    let with_top = |x, low| _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16::<2>(x), top), low);
    (
        [_mm512_and_si512(a, six), with_top(a, _mm512_and_si512(c, four))],
        [_mm512_and_si512(b, six), with_top(b, _mm512_and_si512(_mm512_srli_epi16::<4>(c), four))],
    )
}

/// Byte `j % 4` of each lane of register `j / 4`, as f32.
#[inline]
#[target_feature(enable = "avx512f")]
fn byte_as_f32(registers: &[__m512i; 2], j: usize) -> __m512 {
    let shifted = _mm512_srl_epi32(registers[j / 4], _mm_cvtsi32_si128(8 * (j % 4) as i32));
    _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(0xFF)))
}

/// Q4_K and Q5_K.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn gemm_k<const BITS: usize>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    let mut t = 0;
    each_micro!(t, micro_k, [BITS], [16, 8, 4, 2], tile, x, out);
    if t < x.count() {
        gemv_k::<BITS>(tile, Micro::new(&x, t), row(out, t));
    }
}

/// One activation row: the two sub-blocks that share bytes take them together, and every byte is loaded once, in the order
/// of memory, which the CPU's prefetching needs.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn gemv_k<const BITS: usize>(tile: &[u8], x: Micro<'_, 1>, out: &mut Sums<1>) {
    let codes = if BITS == 5 { 48 } else { 16 };
    let (four, sixteen) = (_mm512_set1_epi8(15), _mm512_set1_epi8(16));
    let mut sum = _mm512_setzero_ps();
    for (b, block) in tile.chunks_exact((codes + 128) * tile::ROWS).enumerate() {
        let (d, dmin) = (load_f16(block, 0), load_f16(block, 2 * tile::ROWS));
        let (scales, minimums) = scales_k4(&block[4 * tile::ROWS..]);
        let (mut scaled, mut below) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        let mut fifths = [four; 8];
        if BITS == 5 {
            for v in 0..8 {
                fifths[v] = load(block, 16 * tile::ROWS + v * 64);
            }
        }
        for pair in 0..4 {
            let packed = &block[(codes + 32 * pair) * tile::ROWS..][..512];
            let ([low], [high]) = (x.block(8 * b + 2 * pair), x.block(8 * b + 2 * pair + 1));
            let mut integers = [_mm512_setzero_si512(); 2];
            for v in 0..8 {
                let bytes = load_in_order(packed, v * 64);
                let mut lows = _mm512_and_si512(bytes, four);
                let mut highs = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), four);
                if BITS == 5 {
                    // As in `codes_k`.
                    let bits = _mm512_rorv_epi32(fifths[v], _mm512_set1_epi32(2 * pair as i32 + 28));
                    lows = select_or(bits, sixteen, lows);
                    highs = select_or(_mm512_ror_epi32::<1>(bits), sixteen, highs);
                }
                integers[0] = _mm512_dpbusd_epi32(integers[0], lows, broadcast(low, v));
                integers[1] = _mm512_dpbusd_epi32(integers[1], highs, broadcast(high, v));
            }
            for (side, x) in [low, high].into_iter().enumerate() {
                let scale = _mm512_mul_ps(byte_as_f32(&scales, 2 * pair + side), _mm512_set1_ps(x.scale));
                scaled = _mm512_fmadd_ps(_mm512_cvtepi32_ps(integers[side]), scale, scaled);
                let minimum = byte_as_f32(&minimums, 2 * pair + side);
                below = _mm512_fmadd_ps(minimum, _mm512_set1_ps(x.scaled_sum), below);
            }
        }
        sum = _mm512_fmadd_ps(d, scaled, sum);
        sum = _mm512_fnmadd_ps(dmin, below, sum);
    }
    store(out, [sum]);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn micro_k<const BITS: usize, const M: usize>(tile: &[u8], x: Micro<'_, M>, out: &mut Sums<M>) {
    let codes = if BITS == 5 { 48 } else { 16 };
    let mut sums = [_mm512_setzero_ps(); M];
    for (b, block) in tile.chunks_exact((codes + 128) * tile::ROWS).enumerate() {
        let (scales, minimums) = scales_k4(&block[4 * tile::ROWS..]);
        let mut xs = [x.block(8 * b); 8];
        for j in 1..8 {
            xs[j] = x.block(8 * b + j);
        }
        let mut scaled = [_mm512_setzero_ps(); M];
        for j in 0..8 {
            let packed = &block[(codes + j / 2 * 32) * tile::ROWS..];
            let fifths = &block[16 * tile::ROWS..];
            let codes = codes_k::<BITS>(packed, fifths, j);
            let x = xs[j];
            let scale = byte_as_f32(&scales, j);
            unrolled!(m < M, {
                let integers = dot(&codes, &x[m], _mm512_setzero_si512());
                let scale = _mm512_mul_ps(scale, _mm512_set1_ps(x[m].scale));
                scaled[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(integers), scale, scaled[m]);
            });
        }
        let mut minimum = [_mm512_setzero_ps(); 8];
        for j in 0..8 {
            minimum[j] = byte_as_f32(&minimums, j);
        }
        let (d, dmin) = (load_f16(block, 0), load_f16(block, 2 * tile::ROWS));
        for m in 0..M {
            let mut below = _mm512_setzero_ps();
            for j in 0..8 {
                below = _mm512_fmadd_ps(minimum[j], _mm512_set1_ps(xs[j][m].scaled_sum), below);
            }
            sums[m] = _mm512_fmadd_ps(d, scaled[m], sums[m]);
            sums[m] = _mm512_fnmadd_ps(dmin, below, sums[m]);
        }
    }
    store(out, sums);
}

/// The 32 columns of sub-block j: the low or high halves of the bytes, and bit j of the bytes of fifth bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn codes_k<const BITS: usize>(packed: &[u8], fifths: &[u8], j: usize) -> [__m512i; 8] {
    let half = _mm_cvtsi32_si128(if j % 2 == 0 { 0 } else { 4 });
    // Rotating a lane moves bit j of each of its bytes to bit 4.
    let rotation = _mm512_set1_epi32(j as i32 + 28);
    let (packed, fifths) = (&packed[..512], &fifths[..512]);
    let mut codes = [rotation; 8];
    for v in 0..8 {
        codes[v] = _mm512_and_si512(_mm512_srl_epi16(load(packed, v * 64), half), _mm512_set1_epi8(15));
        if BITS == 5 {
            let bits = _mm512_rorv_epi32(load(fifths, v * 64), rotation);
            codes[v] = select_or(bits, _mm512_set1_epi8(16), codes[v]);
        }
    }
    codes
}

/// `(x & mask) | y`
#[inline]
#[target_feature(enable = "avx512f")]
fn select_or(x: __m512i, mask: __m512i, y: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0b1110_1010>(x, mask, y)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn gemm_q6_k(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    let mut t = 0;
    each_micro!(t, micro_q6_k, [], [16, 8, 4, 2], tile, x, out);
    if t < x.count() {
        gemv_q6_k(tile, Micro::new(&x, t), row(out, t));
    }
}

/// One activation row: each byte is loaded once, one after the other, since the bits of a byte are those of several groups
/// of columns. The CPU's prefetching does not see through loads that come back.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn gemv_q6_k(tile: &[u8], x: Micro<'_, 1>, out: &mut Sums<1>) {
    let mut sum = _mm512_setzero_ps();
    for (b, block) in tile.chunks_exact(Format::Q6_K.block_bytes() * tile::ROWS).enumerate() {
        let scaled = half_q6_k(&block[..tile::Q6_K_HALF], x, 8 * b, _mm512_setzero_ps());
        let scaled = half_q6_k(&block[tile::Q6_K_HALF..][..tile::Q6_K_HALF], x, 8 * b + 4, scaled);
        sum = _mm512_fmadd_ps(load_f16(block, 208 * tile::ROWS), scaled, sum);
    }
    store(out, [sum]);
}

/// `scaled` plus the four groups of 32 columns of half a Q6_K block, the first of which is block `first` of the activations.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn half_q6_k(half: &[u8], x: Micro<'_, 1>, first: usize, mut scaled: __m512) -> __m512 {
    let (four, two) = (_mm512_set1_epi8(0x0F), _mm512_set1_epi8(0x30));
    let x = [x.block(first), x.block(first + 1), x.block(first + 2), x.block(first + 3)].map(|[x]| x);
    let mut sums = [starts_6(x[0]), starts_6(x[1]), starts_6(x[2]), starts_6(x[3])];
    for side in 0..2 {
        // 12 lines a loop: of more, the compiler changes the order.
        let columns = &half[12 * side * 64..][..12 * 64];
        for v in 0..4 {
            let high = load_in_order(columns, 3 * v * 64);
            for a in 0..2 {
                let low = load_in_order(columns, (3 * v + 1 + a) * 64);
                let lows = [_mm512_and_si512(low, four), _mm512_and_si512(_mm512_srli_epi16::<4>(low), four)];
                for (g, low) in [(a, lows[0]), (a + 2, lows[1])] {
                    // Rotating a lane moves bits 2g and 2g + 1 of each of its bytes to bits 4 and 5.
                    let bits = _mm512_rorv_epi32(high, _mm512_set1_epi32(2 * g as i32 + 28));
                    let codes = select_or(bits, two, low);
                    sums[g][side] = _mm512_dpbusd_epi32(sums[g][side], codes, broadcast(x[g], 4 * side + v));
                }
            }
        }
    }
    for g in 0..4 {
        scaled = _mm512_fmadd_ps(scaled_6(sums[g], scales_6(half, g)), _mm512_set1_ps(x[g].scale), scaled);
    }
    scaled
}

/// Where the sums of the two sub-blocks of 16 columns begin: -32 · Σ quant.
#[inline]
#[target_feature(enable = "avx512f")]
fn starts_6(x: &Block) -> [__m512i; 2] {
    [_mm512_set1_epi32(-32 * x.sums[0] as i32), _mm512_set1_epi32(-32 * x.sums[1] as i32)]
}

/// The scales of the two sub-blocks of group g.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn scales_6(half: &[u8], g: usize) -> [__m512i; 2] {
    let pairs = _mm512_cvtepi8_epi16(load_half(half, (96 + 2 * g) * tile::ROWS));
    [_mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(pairs)), _mm512_srai_epi32::<16>(pairs)]
}

/// Σ scale · sum of two sub-blocks, as f32.
#[inline]
#[target_feature(enable = "avx512f")]
fn scaled_6(sums: [__m512i; 2], scales: [__m512i; 2]) -> __m512 {
    let scaled = [_mm512_mullo_epi32(sums[0], scales[0]), _mm512_mullo_epi32(sums[1], scales[1])];
    _mm512_cvtepi32_ps(_mm512_add_epi32(scaled[0], scaled[1]))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn micro_q6_k<const M: usize>(tile: &[u8], x: Micro<'_, M>, out: &mut Sums<M>) {
    let mut sums = [_mm512_setzero_ps(); M];
    for (b, block) in tile.chunks_exact(Format::Q6_K.block_bytes() * tile::ROWS).enumerate() {
        let mut scaled = [_mm512_setzero_ps(); M];
        for j in 0..8 {
            let half = &block[j / 4 * tile::Q6_K_HALF..][..tile::Q6_K_HALF];
            let codes = codes_6(half, j % 4);
            let scales = scales_6(half, j % 4);
            let x = x.block(8 * b + j);
            unrolled!(m < M, {
                let mut sums = starts_6(&x[m]);
                for v in [0, 4, 1, 5, 2, 6, 3, 7] {
                    sums[v / 4] = _mm512_dpbusd_epi32(sums[v / 4], codes[v], broadcast(&x[m], v));
                }
                scaled[m] = _mm512_fmadd_ps(scaled_6(sums, scales), _mm512_set1_ps(x[m].scale), scaled[m]);
            });
        }
        let d = load_f16(block, 208 * tile::ROWS);
        for m in 0..M {
            sums[m] = _mm512_fmadd_ps(d, scaled[m], sums[m]);
        }
    }
    store(out, sums);
}

/// The 32 columns of group g of half a Q6_K block: 4 low bits, 2 high bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn codes_6(half: &[u8], g: usize) -> [__m512i; 8] {
    let nibble = _mm_cvtsi32_si128(if g < 2 { 0 } else { 4 });
    // Rotating a lane moves bits 2g and 2g + 1 of each of its bytes to bits 4 and 5.
    let rotation = _mm512_set1_epi32(2 * g as i32 + 28);
    let mut codes = [rotation; 8];
    for v in 0..8 {
        let low = _mm512_srl_epi16(load(half, (3 * v + 1 + g % 2) * 64), nibble);
        let high = _mm512_rorv_epi32(load(half, 3 * v * 64), rotation);
        codes[v] = select_or(high, _mm512_set1_epi8(0x30), _mm512_and_si512(low, _mm512_set1_epi8(15)));
    }
    codes
}

/// A float format of weights.
trait Float {
    const BYTES: usize;
    /// 16 weights at `offset`, as f32.
    ///
    /// # Safety
    /// The CPU has AVX-512F.
    unsafe fn load(bytes: &[u8], offset: usize) -> __m512;
}
struct F32;
struct F16;
struct BF16;
impl Float for F32 {
    const BYTES: usize = 4;
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(bytes: &[u8], offset: usize) -> __m512 {
        _mm512_castsi512_ps(load(bytes, offset))
    }
}
impl Float for F16 {
    const BYTES: usize = 2;
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(bytes: &[u8], offset: usize) -> __m512 {
        load_f16(bytes, offset)
    }
}
impl Float for BF16 {
    const BYTES: usize = 2;
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(bytes: &[u8], offset: usize) -> __m512 {
        let wide = _mm512_cvtepu16_epi32(load_half(bytes, offset));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
    }
}

#[target_feature(enable = "avx512f")]
fn gemm_float<F: Float>(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    let mut t = 0;
    each_micro!(t, micro_float, [F], [4, 1], tile, x, out);
}

#[inline]
#[target_feature(enable = "avx512f")]
fn micro_float<F: Float, const M: usize>(tile: &[u8], x: Micro<'_, M>, out: &mut Sums<M>) {
    let mut chains = [[_mm512_setzero_ps(); 4]; M];
    for (k, columns) in tile.chunks_exact(4 * F::BYTES * tile::ROWS).enumerate() {
        for chain in 0..4 {
            // SAFETY: this function's own features include those of `load`.
            let weights = unsafe { F::load(columns, chain * tile::ROWS * F::BYTES) };
            for m in 0..M {
                let value = _mm512_set1_ps(x.values[m][4 * k + chain]);
                chains[m][chain] = _mm512_fmadd_ps(weights, value, chains[m][chain]);
            }
        }
    }
    let mut sums = [_mm512_setzero_ps(); M];
    for m in 0..M {
        let [a, b, c, d] = chains[m];
        sums[m] = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
    }
    store(out, sums);
}

#[target_feature(enable = "avx512f")]
fn f32_from_f16(x: &[u16], out: &mut [f32]) {
    let (x16, x_rest) = x.as_chunks::<{ tile::ROWS }>();
    let (out16, out_rest) = out.as_chunks_mut::<{ tile::ROWS }>();
    for (out, x) in out16.iter_mut().zip(x16) {
        // SAFETY: 16 values on either side; neither needs alignment.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast()))) };
    }
    for (out, x) in out_rest.iter_mut().zip(x_rest) {
        *out = half::f16::from_bits(*x).to_f32();
    }
}
