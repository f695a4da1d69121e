//! The stages on the CPU: each is one or two parallel regions, split by outputs (tiles of 16), heads or tokens, never
//! along a sum.

use super::attention;
use super::kv_cache::KvCache;
use super::matrix::{Matrix, TileSums, tiled_width};
use super::memory::SequenceKind;
use super::{Embedding, Inner, Layer};
use crate::backend::tensors::check_tokens;
use crate::backend::{Activation, KvFormat, Sequence, SequenceMemory, Sink};
use crate::cpu::rows::{PANEL, Quantization, Rows, RowsBuffer};
use crate::cpu::{GEMM_ROWS_MAX, tile};
use crate::tensor::{Buffer, Bytes, Disjoint, Residence, Taken};
use crate::{Error, Result};
use std::sync::Arc;

/// See [`Sequence`].
pub struct CpuSequence {
    inner: Arc<Inner>,
    context_len: usize,
    batch: usize,
    /// The pass: how many tokens, and the position of the first.
    tokens: usize,
    position: usize,
    cache: KvCache,
    residual: Buffer<f32>, // (batch, hidden)
    normed: RowsBuffer,    // (batch, hidden): what attn_in, ffn_in and head project
    q: Buffer<f32>,        // (batch, query_heads * head_dim)
    k: Buffer<f32>,        // (batch, kv_heads * head_dim, in whole tiles)
    v: Buffer<f32>,        // (batch, kv_heads * head_dim, in whole tiles)
    attended: RowsBuffer,  // (batch, query_heads * head_dim)
    activated: RowsBuffer, // (batch, intermediate)
    cos: Buffer<f32>,      // (batch, rotated / 2)
    sin: Buffer<f32>,      // (batch, rotated / 2)
    logits: Buffer<f32>,   // (vocab_len, in whole tiles)
    attention: attention::Scratch,
    _taken: Taken,
}

impl CpuSequence {
    pub fn new(inner: Arc<Inner>, context_len: usize, batch: usize, kv_format: KvFormat) -> Result<Self> {
        let cache = KvCache::new(&inner, context_len, kv_format)?;
        CpuSequence::with_cache(inner, context_len, batch, cache)
    }

    fn with_cache(inner: Arc<Inner>, context_len: usize, batch: usize, cache: KvCache) -> Result<Self> {
        let shape = &inner.shape;
        let attention = shape.query_heads * shape.head_dim;
        let kv_width = tiled_width(shape.kv_heads * shape.head_dim);
        let scratch = "activations";
        let bytes = SequenceKind::of(&inner).scratch(context_len, batch as u64);
        let taken = inner.ledger.take(scratch, Bytes::host(bytes))?;
        let residence = inner.ledger.residence();
        let mut sequence = CpuSequence {
            context_len,
            batch,
            tokens: 0,
            position: 0,
            cache,
            residual: Buffer::zeroed(scratch, batch * shape.hidden)?,
            normed: RowsBuffer::new(batch, shape.hidden)?,
            q: Buffer::zeroed(scratch, batch * attention)?,
            k: Buffer::zeroed(scratch, batch * kv_width)?,
            v: Buffer::zeroed(scratch, batch * kv_width)?,
            attended: RowsBuffer::new(batch, attention)?,
            activated: RowsBuffer::new(batch, shape.intermediate)?,
            cos: Buffer::zeroed(scratch, batch * shape.rope_frequencies.len())?,
            sin: Buffer::zeroed(scratch, batch * shape.rope_frequencies.len())?,
            logits: Buffer::zeroed("logits", tiled_width(shape.vocab_len))?,
            attention: attention::Scratch::new(&inner, context_len)?,
            _taken: taken,
            inner,
        };
        sequence.settle(residence)?;
        Ok(sequence)
    }

    /// Makes the scratch memory be there before it is used.
    fn settle(&mut self, residence: Residence) -> Result<()> {
        for rows in [&mut self.normed, &mut self.attended, &mut self.activated] {
            rows.settle(residence)?;
        }
        let CpuSequence { residual, q, k, v, cos, sin, logits, .. } = self;
        for buffer in [residual, q, k, v, cos, sin, logits] {
            buffer.settle("activations", residence)?;
        }
        self.attention.settle(residence)
    }
}

/// RMSNorm of rows of the residual stream, quantized for these matrices. residual: (rows, hidden).
fn norm(inner: &Inner, residual: &[f32], normed: &mut RowsBuffer, weight: &[f32], matrices: &[&Matrix]) -> Result<()> {
    let hidden = inner.shape.hidden;
    each_row(inner, normed, residual.len() / hidden, matrices, |t, values| {
        values.copy_from_slice(&residual[t * hidden..][..hidden]);
        inner.kernels.rms_norm(values, weight, inner.shape.norm_epsilon);
    })
}

/// Writes `count` rows by `write(row, values)` and quantizes them for these matrices, panel by panel in parallel.
fn each_row(
    inner: &Inner,
    rows: &mut RowsBuffer,
    count: usize,
    matrices: &[&Matrix],
    write: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<()> {
    let how = match matrices.iter().any(|matrix| matrix.is_ternary()) {
        false => Quantization::Blocks,
        true if inner.exact => Quantization::RoundedRow,
        true => Quantization::Row,
    };
    let shards = rows.shards(count);
    inner.pool.each(shards.panels(), 1, |_, range| {
        for index in range {
            // SAFETY: each panel is taken by one job.
            let mut panel = unsafe { shards.panel(index) };
            panel.fill(inner.kernels, how, |row, values| write(index * PANEL + row, values));
        }
    })
}

/// A norm that only some architectures have.
fn norm_in_place(inner: &Inner, weight: &Option<Vec<f32>>, values: &mut [f32]) {
    if let Some(weight) = weight {
        inner.kernels.rms_norm(values, weight, inner.shape.norm_epsilon);
    }
}

/// Multiplies activation rows with matrices side by side: `sink(matrix index, first output, activation row, 16 sums)`.
fn project(
    inner: &Inner,
    matrices: &[&Matrix],
    x: Rows<'_>,
    sink: impl Fn(usize, usize, usize, &[f32; tile::ROWS]) + Sync,
) -> Result<()> {
    let total = matrices.iter().map(|matrix| matrix.tiles()).sum();
    inner.pool.each(total, inner.pool.grain(total), |_, range| {
        let mut sums: TileSums = [0.0; GEMM_ROWS_MAX * tile::ROWS];
        for from in (0..x.count()).step_by(GEMM_ROWS_MAX) {
            let x = x.slice(from, x.count().min(from + GEMM_ROWS_MAX));
            for tile in range.clone() {
                let (mut m, mut index) = (0, tile);
                while index >= matrices[m].tiles() {
                    index -= matrices[m].tiles();
                    m += 1;
                }
                let sums = matrices[m].product(inner.kernels, index, x, &mut sums);
                for (t, sums) in sums.iter().enumerate() {
                    sink(m, index * tile::ROWS, from + t, sums);
                }
            }
        }
    })
}

/// Adds a projection to the residual stream.
fn project_to_residual(inner: &Inner, matrix: &Matrix, x: Rows<'_>, residual: &mut [f32]) -> Result<()> {
    let hidden = inner.shape.hidden;
    let residual = Disjoint::new(residual);
    project(inner, &[matrix], x, |_, row, t, sums| {
        // SAFETY: each tile of each row is taken by one job. The hidden size is a multiple of 16, so a tile is whole.
        let place = unsafe { residual.range(t * hidden + row..t * hidden + row + tile::ROWS) };
        for (place, sum) in place.iter_mut().zip(sums) {
            *place += sum;
        }
    })
}

impl Sequence for CpuSequence {
    fn embed(&mut self, tokens: &[u32], position: usize) -> Result<()> {
        let inner = &*self.inner;
        let shape = &inner.shape;
        check_tokens(tokens, shape.vocab_len)?;
        assert!(tokens.len() <= self.batch && position + tokens.len() <= self.context_len);
        (self.tokens, self.position) = (tokens.len(), position);
        for (token, out) in tokens.iter().zip(self.residual.chunks_exact_mut(shape.hidden)) {
            embedding_row(inner, *token as usize, out)?;
        }
        let pairs = shape.rope_frequencies.len();
        let rows = self.cos.chunks_exact_mut(pairs.max(1)).zip(self.sin.chunks_exact_mut(pairs.max(1)));
        for (t, (cos, sin)) in rows.take(tokens.len()).enumerate() {
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&shape.rope_frequencies) {
                // libm's, in f64: the same on every machine.
                let (s, c) = libm::sincos((position + t) as f64 * frequency);
                (*cos, *sin) = (c as f32, s as f32);
            }
        }
        Ok(())
    }

    fn attn_in(&mut self, layer: usize) -> Result<()> {
        let inner = &*self.inner;
        let Layer { attn_norm, q, k, v, .. } = &inner.layers[layer];
        let residual = &self.residual[..self.tokens * inner.shape.hidden];
        norm(inner, residual, &mut self.normed, attn_norm, &[q, k, v])?;
        let widths = [inner.shape.query_heads * inner.shape.head_dim, tiled_width(k.rows()), tiled_width(v.rows())];
        let outs = [Disjoint::new(&mut self.q), Disjoint::new(&mut self.k), Disjoint::new(&mut self.v)];
        project(inner, &[q, k, v], self.normed.rows(self.tokens), |m, row, t, sums| {
            let at = t * widths[m] + row;
            // SAFETY: each tile of each row is taken by one job.
            unsafe { outs[m].range(at..at + tile::ROWS) }.copy_from_slice(sums);
        })?;
        self.rotate_and_append(layer)
    }

    fn attention(&mut self, layer: usize) -> Result<()> {
        let pass = attention::Pass {
            inner: &self.inner,
            cache: &self.cache,
            layer,
            position: self.position,
            tokens: self.tokens,
            q: &self.q,
        };
        pass.run(&mut self.attention, &mut self.attended.values)?;
        let Layer { attn_sub_norm, attn_output, .. } = &self.inner.layers[layer];
        each_row(&self.inner, &mut self.attended, self.tokens, &[attn_output], |_, values| {
            norm_in_place(&self.inner, attn_sub_norm, values);
        })
    }

    fn attn_out(&mut self, layer: usize) -> Result<()> {
        let matrix = &self.inner.layers[layer].attn_output;
        project_to_residual(&self.inner, matrix, self.attended.rows(self.tokens), &mut self.residual)
    }

    fn ffn_in(&mut self, layer: usize) -> Result<()> {
        let inner = &*self.inner;
        let Layer { ffn_norm, gate, up, ffn_sub_norm, down, .. } = &inner.layers[layer];
        let residual = &self.residual[..self.tokens * inner.shape.hidden];
        norm(inner, residual, &mut self.normed, ffn_norm, &[gate, up])?;
        let (width, kernels) = (inner.shape.intermediate, inner.kernels);
        let x = self.normed.rows(self.tokens);
        let out = Disjoint::new(&mut self.activated.values);
        inner.pool.each(gate.tiles(), inner.pool.grain(gate.tiles()), |_, range| {
            let mut gates: TileSums = [0.0; GEMM_ROWS_MAX * tile::ROWS];
            let mut ups: TileSums = [0.0; GEMM_ROWS_MAX * tile::ROWS];
            for from in (0..x.count()).step_by(GEMM_ROWS_MAX) {
                let x = x.slice(from, x.count().min(from + GEMM_ROWS_MAX));
                for index in range.clone() {
                    let gates = gate.product(kernels, index, x, &mut gates);
                    let ups = up.product(kernels, index, x, &mut ups);
                    match inner.shape.activation {
                        Activation::Silu => kernels.silu_mul(gates.as_flattened_mut(), ups.as_flattened()),
                        Activation::Relu2 => kernels.relu2_mul(gates.as_flattened_mut(), ups.as_flattened()),
                    }
                    for (t, activated) in gates.iter().enumerate() {
                        let at = (from + t) * width + index * tile::ROWS;
                        // SAFETY: each tile of each row is taken by one job.
                        unsafe { out.range(at..at + tile::ROWS) }.copy_from_slice(activated);
                    }
                }
            }
        })?;
        each_row(inner, &mut self.activated, self.tokens, &[down], |_, values| {
            norm_in_place(inner, ffn_sub_norm, values)
        })
    }

    fn ffn_out(&mut self, layer: usize) -> Result<()> {
        let matrix = &self.inner.layers[layer].down;
        project_to_residual(&self.inner, matrix, self.activated.rows(self.tokens), &mut self.residual)
    }

    fn head(&mut self) -> Result<()> {
        self.head_of_row(self.tokens - 1)
    }

    fn head_of_row(&mut self, row: usize) -> Result<()> {
        let inner = &*self.inner;
        let row = &self.residual[row * inner.shape.hidden..(row + 1) * inner.shape.hidden];
        norm(inner, row, &mut self.normed, &inner.output_norm, &[&inner.head])?;
        let logits = Disjoint::new(&mut self.logits);
        project(inner, &[&inner.head], self.normed.rows(1), |_, row, _, sums| {
            // SAFETY: each tile is taken by one job.
            unsafe { logits.range(row..row + tile::ROWS) }.copy_from_slice(sums);
        })
    }

    fn logits(&mut self) -> Result<&[f32]> {
        Ok(&self.logits[..self.inner.shape.vocab_len])
    }

    fn log_sum_exp(&self) -> f32 {
        let (max, sum) = self.inner.kernels.softmax_stats(&self.logits[..self.inner.shape.vocab_len]);
        max + libm::logf(sum)
    }

    fn kv_bytes(&self) -> usize {
        self.cache.bytes()
    }

    fn fork(&mut self, positions: usize) -> Result<Box<dyn Sequence>> {
        let cache = self.cache.fork(positions)?;
        Ok(Box::new(CpuSequence::with_cache(self.inner.clone(), self.context_len, self.batch, cache)?))
    }

    fn unshare(&mut self, from: usize) -> Result<()> {
        self.cache.unshare(from)
    }

    fn kv_layout(&self) -> String {
        self.cache.layout()
    }

    fn kv_saved_bytes(&self, positions: usize) -> usize {
        self.cache.saved_bytes(positions)
    }

    fn kv_save(&mut self, positions: usize, sink: Sink<'_>) -> Result<()> {
        self.cache.save(positions, sink)
    }

    fn kv_restore(&mut self, positions: usize, saved: &[u8]) -> Result<()> {
        self.cache.restore(positions, saved)
    }

    fn set_logits(&mut self, logits: &[f32], _: f32) -> Result<()> {
        self.logits[..self.inner.shape.vocab_len].copy_from_slice(logits);
        Ok(())
    }

    fn held(&self) -> SequenceMemory {
        let values = [&self.residual, &self.q, &self.k, &self.v, &self.cos, &self.sin, &self.logits];
        let rows = [&self.normed, &self.attended, &self.activated];
        let scratch = values.map(Buffer::held).iter().sum::<u64>() + rows.map(RowsBuffer::held).iter().sum::<u64>();
        SequenceMemory { kv: Bytes::host(self.cache.held()), scratch: Bytes::host(scratch + self.attention.held()) }
    }
}

impl CpuSequence {
    /// q/k norm and RoPE on every head of the pass; keys and values go to the cache.
    fn rotate_and_append(&mut self, layer: usize) -> Result<()> {
        let inner = &*self.inner;
        let (shape, kernels, weights) = (&inner.shape, inner.kernels, &inner.layers[layer]);
        let (head_dim, pairs) = (shape.head_dim, shape.rope_frequencies.len());
        let q_width = shape.query_heads * head_dim;
        let kv_width = tiled_width(shape.kv_heads * head_dim);
        let (cos, sin, v) = (&*self.cos, &*self.sin, &*self.v);
        let position = self.position;
        let q = Disjoint::new(&mut self.q);
        let k = Disjoint::new(&mut self.k);
        let tokens = self.tokens;
        let cache = self.cache.writer(position..position + tokens)?;
        inner.pool.each(tokens, if tokens < 4 { tokens } else { 1 }, |_, range| {
            for t in range {
                let (cos, sin) = (&cos[t * pairs..][..pairs], &sin[t * pairs..][..pairs]);
                let rotate = |head: &mut [f32], norm: &Option<Vec<f32>>| {
                    norm_in_place(inner, norm, head);
                    kernels.rope(head, cos, sin, shape.rope_adjacent);
                };
                // SAFETY: each token is taken by one job, and so are its rows and its places in the cache.
                let (q, k) =
                    unsafe { (q.range(t * q_width..(t + 1) * q_width), k.range(t * kv_width..(t + 1) * kv_width)) };
                for head in q.chunks_exact_mut(head_dim) {
                    rotate(head, &weights.q_norm);
                    cache.turn_query(head);
                }
                let v = v[t * kv_width..][..kv_width].chunks_exact(head_dim);
                let heads = k.chunks_exact_mut(head_dim).zip(v).take(shape.kv_heads);
                for (h, (k, v)) in heads.enumerate() {
                    cache.before_rope(layer, h, k);
                    rotate(k, &weights.k_norm);
                    // SAFETY: as above.
                    unsafe { cache.write(kernels, layer, h, position + t, k, v) };
                }
            }
        })
    }
}

fn embedding_row(inner: &Inner, token: usize, out: &mut [f32]) -> Result<()> {
    let (bytes, format, scale) = match &inner.embedding {
        Embedding::Tied => {
            inner.head.row(token, out);
            return Ok(());
        }
        Embedding::Copied(bytes, format, scale) => (&**bytes, *format, *scale),
        Embedding::File(file, name) => {
            let tensor = file.tensor(name).ok_or(Error::Internal("the embedding has left the file".into()))?;
            (tensor.bytes, tensor.format, tensor.scale)
        }
    };
    let row_bytes = out.len() / format.block_len() * format.block_bytes();
    format.dequantize(&bytes[token * row_bytes..][..row_bytes], out);
    out.iter_mut().for_each(|value| *value *= scale);
    Ok(())
}
