//! The reference: portable, and the meaning of every other kernel file.
//!
//! A GEMM kernel multiplies the 16 rows of one tile with the given activation rows: `out[t][r] = Σ_k w[r][k] · x[t][k]`.
//! What is summed in which order is defined here and nowhere else:
//! - inside a block of 32 activations everything is integer, hence exact in any order;
//! - ternary weights without a scale of their own: integer along the whole row;
//! - between blocks: one fused multiply-add after the other in block order, in f32;
//! - float formats: four chains of fused multiply-adds, chain c taking the columns c, c+4, c+8, …, then
//!   (0 + 1) + (2 + 3).

use super::rows::{BLOCK, Rows, SUM};
use super::{Kernels, lanes, tile};
use crate::quant::{self, Format};
use half::{bf16, f16};

/// The table that runs everywhere and defines the others.
pub static SCALAR: Kernels = Kernels {
    name: "scalar",
    available: || true,
    gemm_f32,
    gemm_f16,
    gemm_bf16,
    gemm_q8_0,
    gemm_q4_0,
    gemm_q4_1,
    gemm_q5_0,
    gemm_q5_1,
    gemm_q4_k,
    gemm_q5_k,
    gemm_q6_k,
    gemm_tq2_0,
    gemm_i2_s,
    quantize: lanes::quantize,
    quantize_row: lanes::quantize_row,
    rms_norm: lanes::rms_norm,
    silu_mul: lanes::silu_mul,
    relu2_mul: lanes::relu2_mul,
    rope: lanes::rope,
    softmax_stats: lanes::softmax_stats,
    attend: lanes::attend,
    attend_merge: lanes::attend_merge,
    attend_end: lanes::attend_end,
    f32_from_f16,
    f16_from_f32,
    keys_from_i8: lanes::keys_from_i8,
    values_from_i8: lanes::values_from_i8,
    add_rotated: lanes::add_rotated,
};

/// A block of 32 weights `scale * (code - zero) [+ minimum]`.
struct Simple {
    codes: [i16; BLOCK],
    zero: i32,
    scale: f32,
    minimum: Option<f32>,
}

fn f16_at(bytes: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([bytes[offset], bytes[offset + 1]]).to_f32()
}

/// Code i of 32 packed as GGUF's 4-bit formats do: the low halves of 16 bytes, then the high halves.
fn nibble(bytes: &[u8], i: usize) -> i16 {
    (if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 }) as i16
}

/// Bit i of 32 bits, where the fifth bit of a code goes.
fn fifth(bytes: &[u8], i: usize) -> i16 {
    ((bytes[i / 8] >> (i % 8) & 1) as i16) << 4
}

fn unpack(format: Format, block: &[u8]) -> Simple {
    let codes = |code: &dyn Fn(usize) -> i16| std::array::from_fn(code);
    let scale = f16_at(block, 0);
    match format {
        Format::Q8_0 => Simple { codes: codes(&|i| block[2 + i] as i8 as i16), zero: 0, scale, minimum: None },
        Format::Q4_0 => Simple { codes: codes(&|i| nibble(&block[2..], i)), zero: 8, scale, minimum: None },
        Format::Q4_1 => {
            Simple { codes: codes(&|i| nibble(&block[4..], i)), zero: 0, scale, minimum: Some(f16_at(block, 2)) }
        }
        Format::Q5_0 => {
            Simple { codes: codes(&|i| nibble(&block[6..], i) | fifth(&block[2..], i)), zero: 16, scale, minimum: None }
        }
        Format::Q5_1 => Simple {
            codes: codes(&|i| nibble(&block[8..], i) | fifth(&block[4..], i)),
            zero: 0,
            scale,
            minimum: Some(f16_at(block, 2)),
        },
        other => unreachable!("{} is not a format of 32-blocks with one scale", other.name()),
    }
}

fn dot_codes(codes: &[i16], quants: &[i8]) -> i32 {
    codes.iter().zip(quants).map(|(&code, &quant)| code as i32 * quant as i32).sum()
}

/// Calls `add(accumulators, block bytes, block index)` for every block of every row; accumulators: one per activation row.
fn each_block(format: Format, tile: &[u8], out: &mut [f32], mut add: impl FnMut(&mut [f32], &[u8], usize)) {
    let mut block = [0; 256]; // Longer than any format's block.
    let block = &mut block[..format.block_bytes()];
    // `out` is (rows of x, 16): the accumulators of weight row r are every 16th from r.
    let mut accumulators = [0.0; super::GEMM_ROWS_MAX];
    let accumulators = &mut accumulators[..out.len() / tile::ROWS];
    for row in 0..tile::ROWS {
        accumulators.fill(0.0);
        for (b, blocks) in tile.chunks_exact(block.len() * tile::ROWS).enumerate() {
            tile::block_of_row(format, blocks, row, block);
            add(accumulators, block, b);
        }
        for (out, accumulator) in out[row..].iter_mut().step_by(tile::ROWS).zip(&*accumulators) {
            *out = *accumulator;
        }
    }
}

fn gemm_simple(format: Format, tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_block(format, tile, out, |accumulators, block, b| {
        let Simple { codes, zero, scale, minimum } = unpack(format, block);
        for (t, accumulator) in accumulators.iter_mut().enumerate() {
            let x = x.block(t, b);
            let integer = dot_codes(&codes, &x.quants) + zero * x.negated_sum;
            *accumulator = (integer as f32).mul_add(scale * x.scale, *accumulator);
            if let Some(minimum) = minimum {
                *accumulator = minimum.mul_add(x.scaled_sum, *accumulator);
            }
        }
    });
}

/// Q4_K and Q5_K: 256 weights `d * scale_j * code - dmin * minimum_j` in 8 sub-blocks. The sub-blocks are summed in
/// order with their 6-bit scales, then the two sums are added with d and dmin.
fn gemm_k(format: Format, tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_block(format, tile, out, |accumulators, block, b| {
        let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
        let packed = block[4..16].as_array().expect("12 bytes");
        let (scales, minimums) = quant::scales_k4(packed);
        let (high, low) =
            if format == Format::Q5_K { (&block[16..48], &block[48..176]) } else { (&[][..], &block[16..144]) };
        let code = |j: usize, i: usize| {
            let byte = low[j / 2 * 32 + i];
            let nibble = if j % 2 == 0 { byte & 15 } else { byte >> 4 };
            (nibble | if high.is_empty() { 0 } else { (high[i] >> j & 1) << 4 }) as i16
        };
        let codes: [[i16; BLOCK]; 8] = std::array::from_fn(|j| std::array::from_fn(|i| code(j, i)));
        for (t, accumulator) in accumulators.iter_mut().enumerate() {
            let (mut scaled, mut below) = (0.0f32, 0.0f32);
            for j in 0..8 {
                let x = x.block(t, b * 8 + j);
                let integer = dot_codes(&codes[j], &x.quants);
                scaled = (integer as f32).mul_add(scales[j] as f32 * x.scale, scaled);
                below = (minimums[j] as f32).mul_add(x.scaled_sum, below);
            }
            *accumulator = d.mul_add(scaled, *accumulator);
            *accumulator = (-dmin).mul_add(below, *accumulator);
        }
    });
}

/// Q6_K: 256 weights `d * scale_s * (code - 32)` in 16 sub-blocks of 16. The two sub-blocks of 32 activations are summed
/// as integers with their 8-bit scales, the eight sums in order, then added with d.
fn gemm_q6_k(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_block(Format::Q6_K, tile, out, |accumulators, block, b| {
        let d = f16_at(block, 208);
        let code = |j: usize, i: usize| {
            // Half h of 128 weights is 4 groups of 32: low bits in two nibbles of 64 bytes, high bits in four fields of 32.
            let (h, g) = (j / 4, j % 4);
            let low = block[64 * h + 32 * (g % 2) + i];
            let high = block[128 + 32 * h + i] >> (2 * g) & 3;
            ((if g < 2 { low & 15 } else { low >> 4 }) | high << 4) as i16
        };
        let codes: [[i16; BLOCK]; 8] = std::array::from_fn(|j| std::array::from_fn(|i| code(j, i)));
        for (t, accumulator) in accumulators.iter_mut().enumerate() {
            let mut scaled = 0.0f32;
            for (j, codes) in codes.iter().enumerate() {
                let x = x.block(t, b * 8 + j);
                let integer: i32 = (0..2)
                    .map(|half| {
                        let quants = &x.quants[half * SUM..][..SUM];
                        let scale = block[192 + 2 * j + half] as i8 as i32;
                        scale * (dot_codes(&codes[half * SUM..][..SUM], quants) - 32 * x.sums[half] as i32)
                    })
                    .sum();
                scaled = (integer as f32).mul_add(x.scale, scaled);
            }
            *accumulator = d.mul_add(scaled, *accumulator);
        }
    });
}

/// TQ2_0: 256 weights `d * (code - 1)`, with activation rows that have one scale: the sums of blocks are added with d, and
/// the end is multiplied with the row's scale.
fn gemm_tq2_0(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    each_block(Format::TQ2_0, tile, out, |accumulators, block, b| {
        let d = f16_at(block, 64);
        for (t, accumulator) in accumulators.iter_mut().enumerate() {
            let code = |j: usize, i: usize| (block[j / 4 * 32 + i] >> (2 * (j % 4)) & 3) as i16 - 1;
            let integer: i32 = (0..8).map(|j| dot_ternary(&x.block(t, 8 * b + j).quants, |i| code(j, i))).sum();
            *accumulator = d.mul_add(integer as f32, *accumulator);
        }
    });
    for (t, out) in out.chunks_exact_mut(tile::ROWS).enumerate() {
        out.iter_mut().for_each(|sum| *sum *= x.block(t, 0).scale);
    }
}

/// I2_S: 128 weights `code - 1`, with activation rows that have one scale: the sum of a whole row is an integer, which is
/// multiplied with the scale.
fn gemm_i2_s(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    for row in 0..tile::ROWS {
        let mut integers = [0i32; super::GEMM_ROWS_MAX];
        let mut block = [0; 32];
        for (b, blocks) in tile.chunks_exact(block.len() * tile::ROWS).enumerate() {
            tile::block_of_row(Format::I2_S, blocks, row, &mut block);
            for (t, integer) in integers[..x.count()].iter_mut().enumerate() {
                let code = |j: usize, i: usize| (block[i] >> (6 - 2 * j) & 3) as i16 - 1;
                *integer += (0..4).map(|j| dot_ternary(&x.block(t, 4 * b + j).quants, |i| code(j, i))).sum::<i32>();
            }
        }
        for (t, out) in out[row..].iter_mut().step_by(tile::ROWS).enumerate() {
            *out = integers[t] as f32 * x.block(t, 0).scale;
        }
    }
}

fn dot_ternary(quants: &[i8; BLOCK], code: impl Fn(usize) -> i16) -> i32 {
    dot_codes(&std::array::from_fn::<_, BLOCK, _>(code), quants)
}

/// Float weights with f32 activations.
fn gemm_float(tile: &[u8], x: Rows<'_>, out: &mut [f32], unit: usize, value: impl Fn(&[u8]) -> f32) {
    for (x, out) in x.values.chunks_exact(x.columns).zip(out.as_chunks_mut::<{ tile::ROWS }>().0) {
        let mut chains = [[0.0f32; tile::ROWS]; 4];
        for (k, (x, column)) in x.iter().zip(tile.chunks_exact(unit * tile::ROWS)).enumerate() {
            for (chain, weight) in chains[k % 4].iter_mut().zip(column.chunks_exact(unit)) {
                *chain = value(weight).mul_add(*x, *chain);
            }
        }
        *out = std::array::from_fn(|r| (chains[0][r] + chains[1][r]) + (chains[2][r] + chains[3][r]));
    }
}

fn gemm_f32(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    gemm_float(tile, x, out, 4, |bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
}
fn gemm_f16(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    gemm_float(tile, x, out, 2, |bytes| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32());
}
fn gemm_bf16(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    gemm_float(tile, x, out, 2, |bytes| bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32());
}
fn gemm_q8_0(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    gemm_simple(Format::Q8_0, tile, x, out);
}
fn gemm_q4_0(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    gemm_simple(Format::Q4_0, tile, x, out);
}
fn gemm_q4_1(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    gemm_simple(Format::Q4_1, tile, x, out);
}
fn gemm_q5_0(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    gemm_simple(Format::Q5_0, tile, x, out);
}
fn gemm_q5_1(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    gemm_simple(Format::Q5_1, tile, x, out);
}
fn gemm_q4_k(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    gemm_k(Format::Q4_K, tile, x, out);
}
fn gemm_q5_k(tile: &[u8], x: Rows<'_>, out: &mut [f32]) {
    gemm_k(Format::Q5_K, tile, x, out);
}

fn f32_from_f16(x: &[u16], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = f16::from_bits(*x).to_f32();
    }
}

fn f16_from_f32(x: &[f32], out: &mut [u16]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = f16::from_f32(*x).to_bits();
    }
}
