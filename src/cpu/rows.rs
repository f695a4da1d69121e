//! Activations as kernels read them: rows of f32, and the same rows in blocks of int8.

use crate::Result;
use crate::tensor::{Buffer, Plain};
use std::marker::PhantomData;
use std::slice;

/// Values that share a scale, whatever the weight format: 32 suits every format and is the most accurate choice.
pub const BLOCK: usize = 32;
/// Values summed together: the sub-block of Q6_K.
pub const SUM: usize = 16;

/// 32 quantized activations: `value ~ scale * quant`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Block {
    /// In -127..=127.
    pub quants: [i8; BLOCK],
    /// What a quant is multiplied with.
    pub scale: f32,
    /// `scale` times the sum of the quants: what the minimum of a weight block is multiplied with.
    pub scaled_sum: f32,
    /// The sums of 16 quants each: what the zero point of a weight block is multiplied with.
    pub sums: [i16; BLOCK / SUM],
}

const _: () = assert!(size_of::<Block>() == 44);
// SAFETY: integers and floats without padding, by the line above.
unsafe impl Plain for Block {}

/// Up to `rows_max` rows of activations, one per token, and their int8 form.
pub struct RowsBuffer {
    /// (rows_max, columns).
    pub values: Buffer<f32>,
    blocks: Buffer<Block>, // (rows_max, columns / 32)
    columns: usize,
}

/// Rows to be read by a GEMM.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// Values of a row.
    pub columns: usize,
    /// (rows, columns).
    pub values: &'a [f32],
    /// (rows, columns / 32).
    pub blocks: &'a [Block],
}

impl RowsBuffer {
    /// Room for `rows_max` rows of `columns` (a multiple of 32) values.
    pub fn new(rows_max: usize, columns: usize) -> Result<Self> {
        assert_eq!(columns % BLOCK, 0);
        let what = "activations";
        Ok(RowsBuffer {
            values: Buffer::zeroed(what, rows_max * columns)?,
            blocks: Buffer::zeroed(what, rows_max * columns / BLOCK)?,
            columns,
        })
    }

    /// The first `rows` rows, for a GEMM.
    pub fn rows(&self, rows: usize) -> Rows<'_> {
        let len = rows * self.columns;
        Rows { columns: self.columns, values: &self.values[..len], blocks: &self.blocks[..len / BLOCK] }
    }

    /// The first `rows` rows, to be written by several threads.
    pub fn shards(&mut self, rows: usize) -> RowShards<'_> {
        assert!(rows * self.columns <= self.values.len());
        RowShards {
            values: self.values.as_mut_ptr(),
            blocks: self.blocks.as_mut_ptr(),
            columns: self.columns,
            rows,
            of: PhantomData,
        }
    }
}

/// Rows of a [`RowsBuffer`], each to be written by one thread.
pub struct RowShards<'a> {
    values: *mut f32,
    blocks: *mut Block,
    columns: usize,
    rows: usize,
    of: PhantomData<&'a mut RowsBuffer>,
}

// SAFETY: `row` is unsafe and its callers promise that no two threads hold the same row.
unsafe impl Sync for RowShards<'_> {}

impl RowShards<'_> {
    /// (values, where their int8 form goes) of one row.
    ///
    /// # Safety
    /// Nobody else holds this row.
    #[allow(clippy::mut_from_ref)] // That is its purpose.
    pub unsafe fn row(&self, row: usize) -> (&mut [f32], &mut [Block]) {
        assert!(row < self.rows);
        let (columns, blocks) = (self.columns, self.columns / BLOCK);
        // SAFETY: `shards` checked that the buffers hold `rows` rows; unaliased by the caller's promise.
        unsafe {
            (
                slice::from_raw_parts_mut(self.values.add(row * columns), columns),
                slice::from_raw_parts_mut(self.blocks.add(row * blocks), blocks),
            )
        }
    }
}

impl<'a> Rows<'a> {
    /// How many rows.
    pub fn count(&self) -> usize {
        self.values.len() / self.columns
    }

    /// Rows `from..to`.
    pub fn slice(&self, from: usize, to: usize) -> Rows<'a> {
        let (columns, blocks) = (self.columns, self.columns / BLOCK);
        Rows {
            columns,
            values: &self.values[from * columns..to * columns],
            blocks: &self.blocks[from * blocks..to * blocks],
        }
    }
}
