//! Weights onto the device: planned to the byte, repacked part by part, each part copied while the next is repacked.

use super::Layer;
use super::kernels::Matrix;
use super::tiles::{Layout, Planes, ROWS, Tiling};
use crate::backend::tensors::{check_codes, common_scale};
use crate::backend::{LayerWeights, Linear, Weights};
use crate::cpu::threads::ThreadPool;
use crate::cuda::{Context, DeviceBuffer, Event, PinnedBuffer, Stream};
use crate::file::Tensor;
use crate::quant::{Format, I2sLayout};
use crate::tensor::Disjoint;
use crate::{Error, Result};
use std::sync::Arc;

/// Planes and vectors begin at multiples of this.
const ALIGNMENT: usize = 256;
/// About so many bytes are repacked at a time.
pub const PART_BYTES: usize = 8 << 20;
const WHAT: &str = "weights";

/// What is on the device.
pub struct Loaded {
    pub buffer: DeviceBuffer,
    pub embedding: Matrix,
    pub head: Matrix,
    pub output_norm: u64,
    pub layers: Vec<Layer>,
}

/// Bytes on the device that these weights take.
pub fn plan(weights: &Weights<'_>) -> Result<usize> {
    plan_of(weights, |tensor| Ok(tiling(tensor)?.0))
}

/// The most that it can be; unlike it, this looks at no weight.
pub fn plan_max(weights: &Weights<'_>) -> Result<usize> {
    plan_of(weights, |tensor| new_tiling(tensor, false))
}

fn plan_of(weights: &Weights<'_>, tiling: impl Fn(&Tensor<'_>) -> Result<Tiling>) -> Result<usize> {
    let matrix_bytes = |tensor: &Tensor<'_>| {
        let Layout { codes, high, scales, supers } = tiling(tensor)?.layout(tensor.shape[1])?;
        Ok::<usize, Error>([codes, high, scales, supers].map(reserved).iter().sum())
    };
    let mut bytes = matrix_bytes(&weights.embedding)? + reserved(4 * weights.output_norm.len());
    if let Some(head) = &weights.head {
        bytes += matrix_bytes(head)?;
    }
    for layer in &weights.layers {
        for linear in layer.linears() {
            bytes += matrix_bytes(&linear.weight)? + linear.bias.as_ref().map_or(0, |bias| reserved(4 * bias.len()));
        }
        bytes += layer.norms().map(|vector| reserved(4 * vector.len())).sum::<usize>();
    }
    Ok(bytes)
}

fn vectors<'a>(layer: &'a LayerWeights<'_>) -> [Option<&'a Vec<f32>>; 6] {
    let LayerWeights { attn_norm, q_norm, k_norm, attn_sub_norm, ffn_norm, ffn_sub_norm, .. } = layer;
    [Some(attn_norm), q_norm.as_ref(), k_norm.as_ref(), attn_sub_norm.as_ref(), Some(ffn_norm), ffn_sub_norm.as_ref()]
}

fn reserved(len: usize) -> usize {
    len.next_multiple_of(ALIGNMENT)
}

/// Memory of the host in which rows of another order are put right, with so many threads.
pub fn reordering_bytes(weights: &Weights<'_>, threads: usize) -> u64 {
    let linears = weights.layers.iter().flat_map(LayerWeights::linears).map(|linear| &linear.weight);
    let tensors = linears.chain([&weights.embedding]).chain(&weights.head);
    let reordered = tensors.filter(|tensor| tensor.i2s_layout != I2sLayout::Block128);
    let row_bytes = |tensor: &Tensor<'_>| tensor.shape[0] / tensor.format.block_len() * tensor.format.block_bytes();
    reordered.map(|tensor| (threads * ROWS * row_bytes(tensor)) as u64).max().unwrap_or(0)
}

/// How a tensor becomes tiles, and what every value is multiplied with.
fn tiling(tensor: &Tensor<'_>) -> Result<(Tiling, f32)> {
    let with_scales = matches!(tensor.format, Format::TQ1_0 | Format::TQ2_0);
    let common = if with_scales { common_scale(tensor.format, tensor.bytes) } else { None };
    Ok((new_tiling(tensor, common.is_some())?, tensor.scale * common.unwrap_or(1.0)))
}

fn new_tiling(tensor: &Tensor<'_>, one_scale: bool) -> Result<Tiling> {
    Tiling::new(tensor.format, tensor.shape[0], one_scale).map_err(|error| match error {
        Error::Unsupported(text) => Error::Unsupported(format!("tensor `{}`: {text}", tensor.name)),
        other => other,
    })
}

/// Repacks and copies everything; `plan` is what [`plan`] gave.
pub fn load(
    context: &Arc<Context>,
    weights: &Weights<'_>,
    plan: usize,
    pool: &ThreadPool,
    progress: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Loaded> {
    let buffer = DeviceBuffer::new(context, WHAT, plan)?;
    let mut upload = Upload::new(context, buffer, pool, progress)?;
    let mut layers = Vec::with_capacity(weights.layers.len());
    for layer in &weights.layers {
        let vector = |upload: &mut Upload<'_>, values: Option<&Vec<f32>>| match values {
            Some(values) => upload.vector(values),
            None => Ok(0),
        };
        let [attn_norm, q_norm, k_norm, attn_sub_norm, ffn_norm, ffn_sub_norm] = vectors(layer);
        layers.push(Layer {
            attn_norm: vector(&mut upload, attn_norm)?,
            q: upload.linear(&layer.q)?,
            k: upload.linear(&layer.k)?,
            v: upload.linear(&layer.v)?,
            q_norm: vector(&mut upload, q_norm)?,
            k_norm: vector(&mut upload, k_norm)?,
            attn_sub_norm: vector(&mut upload, attn_sub_norm)?,
            attn_output: upload.linear(&layer.attn_output)?,
            ffn_norm: vector(&mut upload, ffn_norm)?,
            gate: upload.linear(&layer.gate)?,
            up: upload.linear(&layer.up)?,
            ffn_sub_norm: vector(&mut upload, ffn_sub_norm)?,
            down: upload.linear(&layer.down)?,
        });
    }
    let output_norm = upload.vector(&weights.output_norm)?;
    let embedding = upload.matrix(&weights.embedding)?;
    let head = match &weights.head {
        Some(head) => upload.matrix(head)?,
        None => embedding,
    };
    let buffer = upload.finish()?;
    Ok(Loaded { buffer, embedding, head, output_norm, layers })
}

/// Fills the device's memory from front to back.
struct Upload<'a> {
    stream: Stream,
    buffer: DeviceBuffer,
    /// What is taken of `buffer`.
    at: usize,
    /// Two, of which one is filled while the other is copied.
    staging: [Staging; 2],
    turn: usize,
    pool: &'a ThreadPool,
    progress: &'a mut dyn FnMut(&[u8]) -> Result<()>,
}

struct Staging {
    bytes: PinnedBuffer,
    copied: Event,
}

impl<'a> Upload<'a> {
    fn new(
        context: &Arc<Context>,
        buffer: DeviceBuffer,
        pool: &'a ThreadPool,
        progress: &'a mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<Self> {
        let staging = || {
            Ok::<_, Error>(Staging {
                bytes: PinnedBuffer::new(context, WHAT, PART_BYTES)?,
                copied: Event::new(context, false)?,
            })
        };
        let staging = [staging()?, staging()?];
        Ok(Upload { stream: Stream::new(context, 0)?, buffer, at: 0, staging, turn: 0, pool, progress })
    }

    fn take(&mut self, len: usize) -> usize {
        let at = self.at;
        self.at += reserved(len);
        at
    }

    /// The address of a plane or vector; 0 when it has no bytes.
    fn address(&self, offset: usize, len: usize) -> u64 {
        if len == 0 { 0 } else { self.buffer.pointer() + offset as u64 }
    }

    fn linear(&mut self, linear: &Linear<'_>) -> Result<Matrix> {
        let bias = match &linear.bias {
            Some(bias) => self.vector(bias)?,
            None => 0,
        };
        Ok(Matrix { bias, ..self.matrix(&linear.weight)? })
    }

    fn vector(&mut self, values: &[f32]) -> Result<u64> {
        let offset = self.take(4 * values.len());
        for (i, part) in values.chunks(PART_BYTES / 4).enumerate() {
            let staging = &mut self.staging[self.turn];
            staging.copied.synchronize()?;
            // SAFETY: what was copied from here before has arrived.
            let bytes = unsafe { staging.bytes.bytes_mut() };
            for (out, value) in bytes.as_chunks_mut().0.iter_mut().zip(part) {
                *out = value.to_le_bytes();
            }
            let at = offset + i * PART_BYTES;
            // SAFETY: the staging bytes stay until `copied`, which is waited for before they change or go.
            unsafe { self.stream.write_later(&self.buffer, at, staging.bytes.as_ptr(), 4 * part.len())? };
            staging.copied.record(&self.stream)?;
            self.turn ^= 1;
        }
        Ok(self.address(offset, 4 * values.len()))
    }

    fn matrix(&mut self, tensor: &Tensor<'_>) -> Result<Matrix> {
        check_codes(tensor, self.pool)?;
        let (tiling, scale) = tiling(tensor)?;
        let [columns, rows, ..] = tensor.shape;
        let whole = tiling.layout(rows)?;
        let lens = [whole.codes, whole.high, whole.scales, whole.supers];
        let offsets = lens.map(|len| self.take(len));
        let tile = tiling.tile();
        let tile_lens = [tile.codes, tile.high, tile.scales, tile.supers];
        let row_bytes = columns / tensor.format.block_len() * tensor.format.block_bytes();
        let tiles = whole.codes / tile.codes; // More than the rows have: see `tiles`.
        let part = (PART_BYTES / tile.bytes().max(1)).max(1);
        if part * tile.bytes() > PART_BYTES {
            return Err(Error::Unsupported(format!("tensor `{}`: rows of {columns} values", tensor.name)));
        }
        for first in (0..tiles).step_by(part) {
            let part = part.min(tiles - first);
            let row = |tile: usize| (tile * ROWS).min(rows);
            let bytes = &tensor.bytes[row(first) * row_bytes..row(first + part) * row_bytes];
            let staging = &mut self.staging[self.turn];
            staging.copied.synchronize()?;
            // SAFETY: what was copied from here before has arrived.
            let planes = unsafe { staging.bytes.bytes_mut() };
            repack(tensor, &tiling, bytes, row_bytes, &mut planes[..part * tile.bytes()], self.pool)?;
            let mut from = staging.bytes.as_ptr();
            for (offset, len) in offsets.into_iter().zip(tile_lens) {
                // SAFETY: as for vectors; the planes are one behind the other in the staging bytes.
                unsafe {
                    self.stream.write_later(&self.buffer, offset + first * len, from, part * len)?;
                    from = from.add(part * len);
                }
            }
            staging.copied.record(&self.stream)?;
            self.turn ^= 1;
            (self.progress)(bytes)?;
        }
        let [codes, high, scales, supers] = [0, 1, 2, 3].map(|i| self.address(offsets[i], lens[i]));
        Ok(Matrix {
            codes,
            high,
            scales,
            supers,
            rows: rows as u32,
            columns: columns as u32,
            format: tiling.format() as u32,
            scale,
            ..Matrix::default()
        })
    }

    /// Waits for the copies.
    fn finish(self) -> Result<DeviceBuffer> {
        self.stream.synchronize()?;
        debug_assert!(self.at == self.buffer.len());
        Ok(self.buffer)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After a failure copies may still read the bytes.
        let _ = self.copied.synchronize();
    }
}

/// Writes the planes of whole tiles, one plane behind the other, with all threads.
fn repack(
    tensor: &Tensor<'_>,
    tiling: &Tiling,
    rows: &[u8],
    row_bytes: usize,
    planes: &mut [u8],
    pool: &ThreadPool,
) -> Result<()> {
    let tile = tiling.tile();
    let tiles = planes.len() / tile.bytes();
    let (codes, rest) = planes.split_at_mut(tiles * tile.codes);
    let (high, rest) = rest.split_at_mut(tiles * tile.high);
    let (scales, supers) = rest.split_at_mut(tiles * tile.scales);
    let [codes, high, scales, supers] = [codes, high, scales, supers].map(Disjoint::new);
    let reorder = tensor.i2s_layout != I2sLayout::Block128;
    let mut scratch = vec![0; if reorder { pool.threads() * ROWS * row_bytes } else { 0 }];
    let scratch = Disjoint::new(&mut scratch);
    pool.each(tiles, pool.grain(tiles), |thread, range| {
        for index in range {
            let byte = |tile: usize| (tile * ROWS * row_bytes).min(rows.len());
            let mut rows = &rows[byte(index)..byte(index + 1)];
            if reorder {
                // SAFETY: each thread has its own scratch.
                let scratch =
                    unsafe { scratch.range(thread * ROWS * row_bytes..thread * ROWS * row_bytes + rows.len()) };
                tensor.i2s_layout.to_block128(rows, tensor.shape[0], scratch);
                rows = scratch;
            }
            let of = |len: usize| index * len..(index + 1) * len;
            // SAFETY: each tile is written by the one job that took its index.
            let mut planes = unsafe {
                Planes {
                    codes: codes.range(of(tile.codes)),
                    high: high.range(of(tile.high)),
                    scales: scales.range(of(tile.scales)),
                    supers: supers.range(of(tile.supers)),
                }
            };
            tiling.repack(rows, &mut planes);
        }
    })
}
