//! A weight matrix in tiles, and its product with activations.

use crate::Result;
use crate::backend::Linear;
use crate::backend::tensors::{check_codes, common_scale};
use crate::cpu::rows::Rows;
use crate::cpu::threads::ThreadPool;
use crate::cpu::{GEMM_ROWS_MAX, Kernels, tile};
use crate::file::Tensor;
use crate::quant::{self, Format, I2sLayout, ternary};
use crate::tensor::{Arena, Buffer, Disjoint};

/// Weights (rows = outputs, columns = inputs) in tiles of 16 rows; the last tile is filled up with zero rows.
pub struct Matrix {
    format: Format, // Of the tiles.
    is_ternary: bool,
    scale: f32, // Of every product and value.
    rows: usize,
    columns: usize,
    tiles: Buffer<u8>,
    bias: Option<Vec<f32>>, // (rows)
}

/// The sums of one tile for up to 64 activation rows.
pub type TileSums = [f32; GEMM_ROWS_MAX * tile::ROWS];

/// About so many bytes of a file are repacked at a time: a mapped file then takes no more memory than that beside the tiles.
const PART_BYTES: usize = 16 << 20;

impl Matrix {
    /// What the tiles of a tensor take at the most, in bytes.
    pub fn tiles_bytes(weight: &Tensor<'_>, exact: bool) -> usize {
        let [columns, rows, ..] = weight.shape;
        rows.div_ceil(tile::ROWS).saturating_mul(tile::tile_bytes(Self::format(weight, exact), columns))
    }

    /// What rewriting a tensor as tiles takes beside them at the most, with so many threads, in bytes.
    pub fn scratch_bytes_max(weight: &Tensor<'_>, exact: bool, threads: usize) -> u64 {
        // Ternary weights of one scale become I2_S, whose tiles are no larger.
        let format = Self::format(weight, exact);
        let converted = weight.format != format || format == Format::TQ2_0;
        (threads as u64).saturating_mul(Self::scratch_bytes(weight, format, converted) as u64)
    }

    /// Of a thread.
    fn scratch_bytes(weight: &Tensor<'_>, format: Format, converted: bool) -> usize {
        let row_bytes = weight.shape[0] / weight.format.block_len() * weight.format.block_bytes();
        let ordered = if weight.i2s_layout == I2sLayout::Block128 { 0 } else { tile::ROWS * row_bytes };
        ordered + if converted { tile::tile_bytes(format, weight.shape[0]) } else { 0 }
    }

    fn format(weight: &Tensor<'_>, exact: bool) -> Format {
        if exact { Format::F32 } else { tile::tiled_format(weight.format) }
    }

    /// The same values, exactly, in the kernels' layout, in memory of the arena. `exact`: as f32. `done` gets each part of
    /// the weight's bytes when it is not needed any more, and may stop it.
    pub fn repack(
        linear: &Linear<'_>,
        exact: bool,
        pool: &ThreadPool,
        arena: &mut Arena,
        done: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<Self> {
        let Tensor { format: source, shape: [columns, rows, ..], bytes, scale, i2s_layout, .. } = linear.weight;
        check_codes(&linear.weight, pool)?;
        let mut format = Self::format(&linear.weight, exact);
        let mut scale = scale;
        if format == Format::TQ2_0
            && let Some(common) = common_scale(source, bytes)
        {
            // As in BitNet: without a scale in each block there is less to read, and sums are integers to the end.
            (format, scale) = (Format::I2_S, scale * common);
        }
        let row_bytes = columns / source.block_len() * source.block_bytes();
        let tile_bytes = tile::tile_bytes(format, columns);
        let count = rows.div_ceil(tile::ROWS);
        let mut tiles = arena.take(count * tile_bytes)?;
        let ordered_bytes = if i2s_layout == I2sLayout::Block128 { 0 } else { tile::ROWS * row_bytes };
        let scratch_bytes = Self::scratch_bytes(&linear.weight, format, format != source);
        let mut scratch = Buffer::zeroed("the conversion of weights", scratch_bytes * pool.threads())?;
        let places = Disjoint::new(&mut tiles);
        let scratches = Disjoint::new(&mut scratch);
        let part = (PART_BYTES / (tile::ROWS * row_bytes)).max(1);
        for first in (0..count).step_by(part) {
            let part = part.min(count - first);
            pool.each(part, pool.grain(part), |thread, range| {
                // SAFETY: each thread has its own scratch.
                let scratch = unsafe { scratches.range(thread * scratch_bytes..(thread + 1) * scratch_bytes) };
                let (ordered, converted) = scratch.split_at_mut(ordered_bytes);
                for index in range.start + first..range.end + first {
                    // SAFETY: each tile is written by the one job that took its index.
                    let place = unsafe { places.range(index * tile_bytes..(index + 1) * tile_bytes) };
                    let from = index * tile::ROWS;
                    let count = (rows - from).min(tile::ROWS);
                    let mut source_rows = &bytes[from * row_bytes..][..count * row_bytes];
                    fetch(source_rows);
                    if ordered_bytes > 0 {
                        let ordered = &mut ordered[..source_rows.len()];
                        i2s_layout.to_block128(source_rows, columns, ordered);
                        source_rows = ordered;
                    }
                    let (rows, row_bytes) = if format == source {
                        (source_rows, row_bytes)
                    } else {
                        convert(source, source_rows, format, converted);
                        (&*converted, tile_bytes / tile::ROWS)
                    };
                    tile::interleave(format, &rows[..count * row_bytes], row_bytes, place);
                }
            })?;
            let row = |tile: usize| (tile * tile::ROWS).min(rows);
            done(&bytes[row(first) * row_bytes..row(first + part) * row_bytes])?;
        }
        let is_ternary = source.is_ternary();
        Ok(Matrix { format, is_ternary, scale, rows, columns, tiles, bias: linear.bias.clone() })
    }

    /// Whether it is to be multiplied with rows that have one scale.
    pub fn is_ternary(&self) -> bool {
        self.is_ternary
    }

    /// Memory of the tiles.
    pub fn bytes(&self) -> usize {
        self.tiles.bytes()
    }

    /// (rows).
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Tiles of 16 outputs.
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(tile::ROWS)
    }

    /// The product of tile `index` with at most 64 activation rows (+ bias): `sums[t][r]`, one row of 16 per activation row.
    pub fn product<'s>(
        &self,
        kernels: &Kernels,
        index: usize,
        x: Rows<'_>,
        sums: &'s mut TileSums,
    ) -> &'s mut [[f32; 16]] {
        let tile_bytes = tile::tile_bytes(self.format, self.columns);
        let sums = &mut sums[..x.count() * tile::ROWS];
        kernels.gemm(self.format, &self.tiles[index * tile_bytes..][..tile_bytes], x, sums);
        if self.scale != 1.0 {
            sums.iter_mut().for_each(|sum| *sum *= self.scale);
        }
        let sums = sums.as_chunks_mut().0;
        if let Some(bias) = &self.bias {
            let bias = &bias[index * tile::ROWS..];
            for sums in &mut *sums {
                for (sum, bias) in sums.iter_mut().zip(bias) {
                    *sum += bias;
                }
            }
        }
        sums
    }

    /// Dequantizes one row.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let tile_bytes = tile::tile_bytes(self.format, self.columns);
        let tile = &self.tiles[row / tile::ROWS * tile_bytes..][..tile_bytes];
        let block_bytes = self.format.block_bytes();
        let mut block = [0; 256]; // Longer than any format's block.
        let blocks = tile.chunks_exact(block_bytes * tile::ROWS);
        for (out, blocks) in out.chunks_exact_mut(self.format.block_len()).zip(blocks) {
            tile::block_of_row(self.format, blocks, row % tile::ROWS, &mut block[..block_bytes]);
            self.format.dequantize(&block[..block_bytes], out);
        }
        if self.scale != 1.0 {
            out.iter_mut().for_each(|value| *value *= self.scale);
        }
    }
}

/// Brings bytes into the cache, from end to end as the CPU's prefetching likes it: interleaving reads 16 places in turn.
fn fetch(bytes: &[u8]) {
    for line in bytes.chunks(64) {
        std::hint::black_box(line[0]);
    }
}

/// Rewrites rows of one format in another that holds the same values.
fn convert(source: Format, rows: &[u8], format: Format, out: &mut [u8]) {
    match (source, format) {
        (Format::Q3_K, Format::Q6_K) => return each_block(rows, out, quant::q3_k_as_q6_k),
        (Format::TQ1_0, Format::TQ2_0) => return each_block(rows, out, ternary::tq1_0_as_tq2_0),
        (Format::TQ2_0, Format::I2_S) => return each_block(rows, out, ternary::tq2_0_as_i2_s),
        (Format::TQ1_0, Format::I2_S) => {
            return each_block(rows, out, |block, out| {
                let mut two_bits = [0; 66];
                ternary::tq1_0_as_tq2_0(block, &mut two_bits);
                ternary::tq2_0_as_i2_s(&two_bits, out);
            });
        }
        _ => {}
    }
    let mut values = [0.0; 256]; // No block is longer.
    let values = &mut values[..source.block_len()];
    for (block, out) in rows.chunks_exact(source.block_bytes()).zip(out.chunks_exact_mut(4 * values.len())) {
        source.dequantize(block, values);
        for (out, value) in out.as_chunks_mut().0.iter_mut().zip(&*values) {
            *out = value.to_le_bytes();
        }
    }
}

/// Rewrites block by block.
fn each_block<const FROM: usize, const TO: usize>(
    rows: &[u8],
    out: &mut [u8],
    convert: impl Fn(&[u8; FROM], &mut [u8; TO]),
) {
    for (block, out) in rows.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        convert(block, out);
    }
}

/// A row of `width` values that ends in whole tiles, so that products may be stored without a special case.
pub fn tiled_width(width: usize) -> usize {
    width.next_multiple_of(tile::ROWS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::rows::{Quantization, RowsBuffer};
    use crate::cpu::threads::PoolOptions;
    use crate::cpu::{available, scalar::SCALAR};
    use crate::tensor::Residence;

    const COLUMNS: usize = 512;
    const ROWS: usize = 19;

    /// Codes in some order, and the same matrix in TQ2_0: a few blocks are all zeros, by their codes or by their scale.
    fn two_bits(scale: f32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for b in 0..ROWS * COLUMNS / 256 {
            let scale = half::f16::from_f32(if b % 7 == 3 { 0.0 } else { scale });
            let byte =
                |i: usize| if b % 5 == 2 { 0x55 } else { [0x00, 0x12, 0x94, 0x21, 0x68, 0xA5][(i * 31 + b) % 6] };
            bytes.extend((0..64).map(byte));
            bytes.extend(scale.to_le_bytes());
        }
        bytes
    }

    fn matrix(format: Format, bytes: &[u8], scale: f32, exact: bool) -> Matrix {
        let shape = [COLUMNS, ROWS, 1, 1];
        let linear = Linear {
            weight: Tensor { name: "w", format, shape, bytes, scale, i2s_layout: I2sLayout::default() },
            bias: None,
        };
        let pool = ThreadPool::start(PoolOptions { threads: 1, ..PoolOptions::default() }).expect("no thread");
        let tiles = Matrix::tiles_bytes(&linear.weight, exact);
        let mut arena = Arena::new("weights", Residence::Lazy, std::iter::once(tiles)).expect("memory");
        Matrix::repack(&linear, exact, &pool, &mut arena, &mut |_| Ok(())).expect("a good matrix")
    }

    fn products(matrix: &Matrix, kernels: &Kernels) -> Vec<u32> {
        let mut x = RowsBuffer::new(3, COLUMNS).expect("memory");
        let shards = x.shards(3);
        // SAFETY: the only panel is taken once.
        unsafe { shards.panel(0) }.fill(&SCALAR, Quantization::RoundedRow, |row, values| {
            values.iter_mut().enumerate().for_each(|(i, value)| *value = ((i * 37 + row * 11) % 83) as f32 - 41.0);
        });
        let mut sums = [0.0; GEMM_ROWS_MAX * tile::ROWS];
        let tiles = 0..matrix.tiles();
        tiles
            .flat_map(|index| matrix.product(kernels, index, x.rows(3), &mut sums).to_vec())
            .flatten()
            .map(f32::to_bits)
            .collect()
    }

    #[test]
    fn ternary_matrices_of_one_scale_are_the_same_whatever_the_file_holds() {
        let bytes = two_bits(0.375);
        let mut without_scales = vec![0; bytes.len() / 66 * 64];
        each_block(&bytes, &mut without_scales, ternary::tq2_0_as_i2_s);
        let ours = matrix(Format::TQ2_0, &bytes, 1.0, false);
        let other = matrix(Format::I2_S, &without_scales, 0.375, false);
        assert!(ours.format == Format::I2_S && ours.is_ternary() && other.format == Format::I2_S);
        for kernels in available() {
            assert_eq!(products(&ours, kernels), products(&other, kernels), "{}", kernels.name());
        }
        let (mut a, mut b) = ([0.0; COLUMNS], [0.0; COLUMNS]);
        for row in 0..ROWS {
            ours.row(row, &mut a);
            other.row(row, &mut b);
            assert_eq!(a, b);
            let mut expected = [0.0; COLUMNS];
            Format::TQ2_0.dequantize(&bytes[row * 132..][..132], &mut expected);
            assert_eq!(a, expected);
        }
    }

    #[test]
    fn scales_that_differ_stay_with_their_blocks() {
        let mut bytes = two_bits(0.375);
        bytes[66 * 6 + 65] ^= 0x80;
        let ours = matrix(Format::TQ2_0, &bytes, 1.0, false);
        assert!(ours.format == Format::TQ2_0 && ours.is_ternary());
        let exact = matrix(Format::TQ2_0, &bytes, 1.0, true);
        assert!(exact.format == Format::F32 && exact.is_ternary());
        let value = |bits: u32| f32::from_bits(bits);
        for (found, expected) in products(&ours, &SCALAR).into_iter().zip(products(&exact, &SCALAR)) {
            // Sums of up to 10^4, rounded in another order.
            assert!((value(found) - value(expected)).abs() <= 1e-3, "{} {}", value(found), value(expected));
        }
    }
}
