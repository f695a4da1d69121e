//! A weight matrix in tiles, and its product with activations.

use crate::backend::Linear;
use crate::cpu::rows::Rows;
use crate::cpu::threads::ThreadPool;
use crate::cpu::{GEMM_ROWS_MAX, Kernels, tile};
use crate::file::Tensor;
use crate::quant::{self, Format};
use crate::tensor::{Arena, Buffer};
use crate::{Error, Result};
use std::marker::PhantomData;
use std::ops::Range;

/// Weights (rows = outputs, columns = inputs) in tiles of 16 rows; the last tile is filled up with zero rows.
pub struct Matrix {
    format: Format,
    rows: usize,
    columns: usize,
    tiles: Buffer<u8>,
    bias: Option<Vec<f32>>, // (rows)
}

/// The sums of one tile for up to 64 activation rows.
pub type TileSums = [f32; GEMM_ROWS_MAX * tile::ROWS];

impl Matrix {
    /// What the tiles of a tensor take, in bytes.
    pub fn tiles_bytes(weight: &Tensor<'_>, exact: bool) -> usize {
        let [columns, rows, ..] = weight.shape;
        rows.div_ceil(tile::ROWS).saturating_mul(tile::tile_bytes(Self::format(weight, exact), columns))
    }

    fn format(weight: &Tensor<'_>, exact: bool) -> Format {
        if exact { Format::F32 } else { tile::tiled_format(weight.format) }
    }

    /// The same values, exactly, in the kernels' layout, in memory of the arena. `exact`: as f32.
    pub fn repack(linear: &Linear<'_>, exact: bool, pool: &ThreadPool, arena: &mut Arena) -> Result<Self> {
        let Tensor { format: source, shape: [columns, rows, ..], bytes, .. } = linear.weight;
        let format = Self::format(&linear.weight, exact);
        let row_bytes = columns / source.block_len() * source.block_bytes();
        let tile_bytes = tile::tile_bytes(format, columns);
        let count = rows.div_ceil(tile::ROWS);
        let mut tiles = arena.take(count * tile_bytes)?;
        let converted_bytes = if format == source { 0 } else { tile_bytes };
        let mut scratch = Buffer::zeroed("the conversion of weights", converted_bytes * pool.threads())?;
        let places = Disjoint::new(&mut tiles);
        let scratches = Disjoint::new(&mut scratch);
        pool.each(count, pool.grain(count), |thread, range| {
            // SAFETY: each thread has its own scratch.
            let scratch = unsafe { scratches.range(thread * converted_bytes..(thread + 1) * converted_bytes) };
            for index in range {
                // SAFETY: each tile is written by the one job that took its index.
                let place = unsafe { places.range(index * tile_bytes..(index + 1) * tile_bytes) };
                let from = index * tile::ROWS;
                let count = (rows - from).min(tile::ROWS);
                let source_rows = &bytes[from * row_bytes..][..count * row_bytes];
                fetch(source_rows);
                let (rows, row_bytes) = if format == source {
                    (source_rows, row_bytes)
                } else {
                    convert(source, source_rows, format, scratch);
                    (&*scratch, tile_bytes / tile::ROWS)
                };
                tile::interleave(format, &rows[..count * row_bytes], row_bytes, place);
            }
        })?;
        Ok(Matrix { format, rows, columns, tiles, bias: linear.bias.clone() })
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
    if source == Format::Q3_K && format == Format::Q6_K {
        for (block, out) in rows.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
            quant::q3_k_as_q6_k(block, out);
        }
        return;
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

/// A slice whose parts are written by several threads, no part by two.
pub struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    of: PhantomData<&'a mut [T]>,
}

// SAFETY: `range` is unsafe and its callers promise that no two threads hold overlapping parts.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Disjoint { start: slice.as_mut_ptr(), len: slice.len(), of: PhantomData }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// Nobody else holds a part that overlaps.
    #[allow(clippy::mut_from_ref)] // That is its purpose.
    pub unsafe fn range(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the line above, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// A row of `width` values that ends in whole tiles, so that products may be stored without a special case.
pub fn tiled_width(width: usize) -> usize {
    width.next_multiple_of(tile::ROWS)
}

/// Fails when a token id is not below the vocabulary's length.
pub fn check_tokens(tokens: &[u32], vocab_len: usize) -> Result<()> {
    match tokens.iter().position(|&token| token as usize >= vocab_len) {
        None => Ok(()),
        Some(i) => Err(Error::argument(format!(
            "token {} at index {i} is out of range: the vocabulary has {vocab_len}",
            tokens[i]
        ))),
    }
}
