//! Activations as kernels read them: rows of f32 beside the same rows in int8 blocks.

use crate::Result;
use crate::tensor::Buffer;
use std::marker::PhantomData;
use std::slice;

/// Values that share a scale, whatever the weight format: 32 suits every format and is the most accurate choice.
pub const BLOCK: usize = 32;
/// Values summed together: the sub-block of Q6_K.
pub const SUM: usize = 16;

/// Up to `rows_max` rows of activations, one per token, and their int8 form.
///
/// In block b of a row: `value ~ scales[b] * quants`, `sums` of 16 quants each, `scaled_sums[b] = scales[b] * (sum of 32)`.
pub struct RowsBuffer {
    pub values: Buffer<f32>,  // (rows_max, columns)
    quants: Buffer<i8>,       // (rows_max, columns), in -127..=127
    sums: Buffer<i16>,        // (rows_max, columns / 16)
    scales: Buffer<f32>,      // (rows_max, columns / 32)
    scaled_sums: Buffer<f32>, // (rows_max, columns / 32)
    columns: usize,
}

/// One row's int8 form, to be written by `Kernels::quantize`.
pub struct QuantizedRowMut<'a> {
    pub quants: &'a mut [i8],
    pub sums: &'a mut [i16],
    pub scales: &'a mut [f32],
    pub scaled_sums: &'a mut [f32],
}

/// Rows to be read by a GEMM.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub columns: usize,
    pub values: &'a [f32],
    pub quants: &'a [i8],
    pub sums: &'a [i16],
    pub scales: &'a [f32],
    pub scaled_sums: &'a [f32],
}

impl RowsBuffer {
    /// Room for `rows_max` rows of `columns` (a multiple of 32) values.
    pub fn new(rows_max: usize, columns: usize) -> Result<Self> {
        assert_eq!(columns % BLOCK, 0);
        let what = "activations";
        Ok(RowsBuffer {
            values: Buffer::zeroed(what, rows_max * columns)?,
            quants: Buffer::zeroed(what, rows_max * columns)?,
            sums: Buffer::zeroed(what, rows_max * columns / SUM)?,
            scales: Buffer::zeroed(what, rows_max * columns / BLOCK)?,
            scaled_sums: Buffer::zeroed(what, rows_max * columns / BLOCK)?,
            columns,
        })
    }

    /// Memory held.
    pub fn bytes(&self) -> usize {
        self.values.bytes() + self.quants.bytes() + self.sums.bytes() + self.scales.bytes() + self.scaled_sums.bytes()
    }

    /// The first `rows` rows, for a GEMM.
    pub fn rows(&self, rows: usize) -> Rows<'_> {
        let n = rows * self.columns;
        Rows {
            columns: self.columns,
            values: &self.values[..n],
            quants: &self.quants[..n],
            sums: &self.sums[..n / SUM],
            scales: &self.scales[..n / BLOCK],
            scaled_sums: &self.scaled_sums[..n / BLOCK],
        }
    }

    /// The first `rows` rows, to be written by several threads.
    pub fn shards(&mut self, rows: usize) -> RowShards<'_> {
        assert!(rows * self.columns <= self.values.len());
        RowShards {
            values: self.values.as_mut_ptr(),
            quants: self.quants.as_mut_ptr(),
            sums: self.sums.as_mut_ptr(),
            scales: self.scales.as_mut_ptr(),
            scaled_sums: self.scaled_sums.as_mut_ptr(),
            columns: self.columns,
            rows,
            of: PhantomData,
        }
    }
}

/// Rows of a [`RowsBuffer`], each to be written by one thread.
pub struct RowShards<'a> {
    values: *mut f32,
    quants: *mut i8,
    sums: *mut i16,
    scales: *mut f32,
    scaled_sums: *mut f32,
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
    pub unsafe fn row(&self, row: usize) -> (&mut [f32], QuantizedRowMut<'_>) {
        assert!(row < self.rows);
        let columns = self.columns;
        // SAFETY: `shards` checked that the buffers hold `rows` rows; unaliased by the caller's promise.
        unsafe {
            let values = slice::from_raw_parts_mut(self.values.add(row * columns), columns);
            let quants = slice::from_raw_parts_mut(self.quants.add(row * columns), columns);
            let sums = slice::from_raw_parts_mut(self.sums.add(row * columns / SUM), columns / SUM);
            let blocks = columns / BLOCK;
            let scales = slice::from_raw_parts_mut(self.scales.add(row * blocks), blocks);
            let scaled_sums = slice::from_raw_parts_mut(self.scaled_sums.add(row * blocks), blocks);
            (values, QuantizedRowMut { quants, sums, scales, scaled_sums })
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
        let columns = self.columns;
        Rows {
            columns,
            values: &self.values[from * columns..to * columns],
            quants: &self.quants[from * columns..to * columns],
            sums: &self.sums[from * columns / SUM..to * columns / SUM],
            scales: &self.scales[from * columns / BLOCK..to * columns / BLOCK],
            scaled_sums: &self.scaled_sums[from * columns / BLOCK..to * columns / BLOCK],
        }
    }
}
