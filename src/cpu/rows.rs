//! Activations as kernels read them: rows of f32, and the same rows in blocks of int8.
//!
//! The int8 blocks are in panels of 16 rows: all rows' block 0, all rows' block 1, and so on, so that a kernel that
//! multiplies a panel with a tile reads one stream. The last panel is as narrow as the rows that are left.

use super::Kernels;
use crate::Result;
use crate::tensor::{Buffer, Plain, Residence, buffer_bytes};
use std::marker::PhantomData;
use std::slice;

/// Values that share a scale, whatever the weight format: 32 suits every format and is the most accurate choice.
pub const BLOCK: usize = 32;
/// Values summed together: the sub-block of Q6_K.
pub const SUM: usize = 16;

/// Rows of a panel.
pub const PANEL: usize = 16;

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
    /// The sums of 16 quants each: what the zero point of a weight sub-block is multiplied with.
    pub sums: [i16; BLOCK / SUM],
    /// Minus the sum of the quants: times the zero point of a weight block, it is where an integer sum begins.
    pub negated_sum: i32,
}

const _: () = assert!(size_of::<Block>() == 48);
// SAFETY: integers and floats without padding, by the line above.
unsafe impl Plain for Block {}

/// How a row is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// A scale for each block of 32: `lanes::quantize`.
    Blocks,
    /// One scale for the row, as ternary weights want it: `lanes::quantize_row`.
    Row,
    /// The same, and the row's f32 values become `scale * quant`, for weights that are held as floats.
    RoundedRow,
}

/// Up to `rows_max` rows of activations, one per token, and their int8 form.
pub struct RowsBuffer {
    /// (rows_max, columns).
    pub values: Buffer<f32>,
    blocks: Buffer<Block>, // (panels, columns / 32, rows of the panel)
    negated_sums: Buffer<i32>,
    columns: usize,
}

/// Rows to be read by a GEMM.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// Values of a row.
    pub columns: usize,
    /// (rows, columns).
    pub values: &'a [f32],
    /// (panels, columns / 32, rows of the panel): see `block`.
    pub blocks: &'a [Block],
    /// (rows): minus the sum of a row's quants, the start of an integer sum over the row with weights that count from 1.
    pub negated_sums: &'a [i32],
}

impl RowsBuffer {
    /// Room for `rows_max` rows of `columns` (a multiple of 32) values.
    pub fn new(rows_max: usize, columns: usize) -> Result<Self> {
        assert_eq!(columns % BLOCK, 0);
        let what = "activations";
        Ok(RowsBuffer {
            values: Buffer::zeroed(what, rows_max * columns)?,
            blocks: Buffer::zeroed(what, rows_max * columns / BLOCK)?,
            negated_sums: Buffer::zeroed(what, rows_max)?,
            columns,
        })
    }

    /// What [`RowsBuffer::new`] takes.
    pub fn held_for(rows_max: u64, columns: usize) -> u64 {
        let values = rows_max.saturating_mul(columns as u64);
        buffer_bytes::<f32>(values) + buffer_bytes::<Block>(values / BLOCK as u64) + buffer_bytes::<i32>(rows_max)
    }

    /// Makes its memory be there before it is used.
    pub fn settle(&mut self, residence: Residence) -> Result<()> {
        let what = "activations";
        self.values.settle(what, residence)?;
        self.blocks.settle(what, residence)?;
        self.negated_sums.settle(what, residence)
    }

    /// Memory held, in whole pages.
    pub fn held(&self) -> u64 {
        self.values.held() + self.blocks.held() + self.negated_sums.held()
    }

    /// The first `rows` rows, for a GEMM: the same number as were written.
    pub fn rows(&self, rows: usize) -> Rows<'_> {
        let len = rows * self.columns;
        Rows {
            columns: self.columns,
            values: &self.values[..len],
            blocks: &self.blocks[..len / BLOCK],
            negated_sums: &self.negated_sums[..rows],
        }
    }

    /// The first `rows` rows, to be written by several threads.
    pub fn shards(&mut self, rows: usize) -> RowShards<'_> {
        assert!(rows * self.columns <= self.values.len());
        RowShards {
            values: self.values.as_mut_ptr(),
            blocks: self.blocks.as_mut_ptr(),
            negated_sums: self.negated_sums.as_mut_ptr(),
            columns: self.columns,
            rows,
            of: PhantomData,
        }
    }
}

/// Panels of a [`RowsBuffer`], each to be written by one thread.
pub struct RowShards<'a> {
    values: *mut f32,
    blocks: *mut Block,
    negated_sums: *mut i32,
    columns: usize,
    rows: usize,
    of: PhantomData<&'a mut RowsBuffer>,
}

// SAFETY: `panel` is unsafe and its callers promise that no two threads hold the same panel.
unsafe impl Sync for RowShards<'_> {}

/// The rows of a panel, to be written.
pub struct PanelMut<'a> {
    /// (rows of the panel, columns).
    pub values: &'a mut [f32],
    /// (columns / 32, rows of the panel).
    pub blocks: &'a mut [Block],
    negated_sums: &'a mut [i32], // (rows of the panel)
    columns: usize,
}

impl RowShards<'_> {
    /// How many panels there are.
    pub fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Panel `index`: the rows from `index * 16` on.
    ///
    /// # Safety
    /// Nobody else holds this panel.
    pub unsafe fn panel(&self, index: usize) -> PanelMut<'_> {
        let first = index * PANEL;
        assert!(first < self.rows);
        let rows = (self.rows - first).min(PANEL);
        let len = rows * self.columns;
        // SAFETY: `shards` checked that the buffers hold `rows` rows; unaliased by the caller's promise.
        unsafe {
            PanelMut {
                values: slice::from_raw_parts_mut(self.values.add(first * self.columns), len),
                blocks: slice::from_raw_parts_mut(self.blocks.add(first * self.columns / BLOCK), len / BLOCK),
                negated_sums: slice::from_raw_parts_mut(self.negated_sums.add(first), rows),
                columns: self.columns,
            }
        }
    }
}

impl PanelMut<'_> {
    /// Writes each row by `write(row of the panel, values)` and quantizes it.
    pub fn fill(&mut self, kernels: &Kernels, how: Quantization, write: impl Fn(usize, &mut [f32])) {
        let rows = self.negated_sums.len();
        for (row, values) in self.values.chunks_exact_mut(self.columns).enumerate() {
            write(row, values);
            let blocks = &mut self.blocks[row..];
            if how == Quantization::Blocks {
                kernels.quantize(values, blocks, rows);
                continue;
            }
            kernels.quantize_row(values, blocks, rows);
            self.negated_sums[row] = blocks.iter().step_by(rows).map(|block| block.negated_sum).sum();
            if how == Quantization::RoundedRow {
                for (values, block) in values.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks.iter().step_by(rows)) {
                    *values = block.quants.map(|quant| block.scale * quant as f32);
                }
            }
        }
    }
}

impl<'a> Rows<'a> {
    /// How many rows.
    pub fn count(&self) -> usize {
        self.values.len() / self.columns
    }

    /// Block `b` of row `t`.
    pub fn block(&self, t: usize, b: usize) -> &'a Block {
        let first = t / PANEL * PANEL;
        let width = (self.count() - first).min(PANEL);
        &self.blocks[first * self.columns / BLOCK + b * width + t % PANEL]
    }

    /// Rows `from..to`: whole panels.
    pub fn slice(&self, from: usize, to: usize) -> Rows<'a> {
        assert!(from % PANEL == 0 && (to % PANEL == 0 || to == self.count()));
        let (columns, blocks) = (self.columns, self.columns / BLOCK);
        Rows {
            columns,
            values: &self.values[from * columns..to * columns],
            blocks: &self.blocks[from * blocks..to * blocks],
            negated_sums: &self.negated_sums[from..to],
        }
    }
}

/// M rows of one panel: what one call of a micro-kernel multiplies.
#[derive(Clone, Copy)]
pub struct Micro<'a, const M: usize> {
    /// The panel's blocks from the first of the rows on: block b of the rows is at `b * width`.
    blocks: &'a [Block],
    width: usize,
    /// The rows: (M, columns).
    pub values: [&'a [f32]; M],
    /// Minus the sum of each row's quants.
    pub negated_sums: &'a [i32; M],
}

impl<'a, const M: usize> Micro<'a, M> {
    /// Rows `from..from + M`, which are in one panel.
    #[inline(always)]
    pub fn new(x: &Rows<'a>, from: usize) -> Self {
        let first = from / PANEL * PANEL;
        let mut values = [&x.values[..0]; M];
        for (m, values) in values.iter_mut().enumerate() {
            *values = &x.values[(from + m) * x.columns..][..x.columns];
        }
        let blocks = &x.blocks[first * x.columns / BLOCK + from % PANEL..];
        let negated_sums = x.negated_sums[from..].first_chunk().expect("the rows are in the panel");
        Micro { blocks, width: (x.count() - first).min(PANEL), values, negated_sums }
    }

    /// The blocks from `first` on, of each row.
    #[inline(always)]
    pub fn blocks(&self, first: usize) -> impl Iterator<Item = &'a [Block; M]> {
        let (mut rest, width) = (&self.blocks[first * self.width..], self.width);
        std::iter::from_fn(move || {
            let blocks = rest.first_chunk()?;
            rest = rest.get(width..).unwrap_or_default();
            Some(blocks)
        })
    }

    /// Blocks `first` to `first + 3` of each row.
    #[inline(always)]
    pub fn four_blocks(&self, first: usize) -> [&'a [Block; M]; 4] {
        let (blocks, width) = self.span(first, 4);
        // SAFETY: each multiple of the width up to 3 has M blocks after it in the slice.
        [0, 1, 2, 3].map(|i| unsafe { &*blocks.as_ptr().add(i * width).cast() })
    }

    /// From block `first` to block `first + count - 1` of the last row, and how far a row's blocks are from each other.
    #[inline(always)]
    pub fn span(&self, first: usize, count: usize) -> (&'a [Block], usize) {
        (&self.blocks[first * self.width..][..(count - 1) * self.width + M], self.width)
    }

    /// Block b of each row.
    #[inline(always)]
    pub fn block(&self, b: usize) -> &'a [Block; M] {
        self.blocks[b * self.width..].first_chunk().expect("a panel is whole")
    }
}
