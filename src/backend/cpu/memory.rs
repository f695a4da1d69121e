//! What weights and sequences take of memory, said by their shapes before any of it is asked for.

use super::Inner;
use super::attention;
use super::kv_cache::{Kind, KvCache};
use super::matrix::{Matrix, tiled_width};
use crate::Result;
use crate::backend::{KvFormat, LayerWeights, SequenceMemory, Shape, Weights, WeightsMemory};
use crate::cpu::rows::RowsBuffer;
use crate::cpu::threads::ThreadPool;
use crate::tensor::{Arena, Bytes, buffer_bytes, whole_pages};

/// What the memory of a model depends on beside its file.
#[derive(Clone, Copy)]
pub struct Holding {
    /// All weights as f32.
    pub exact: bool,
    /// Threads that compute.
    pub threads: usize,
    /// The file stays mapped: rows of an untied embedding are read from it when needed. Else they are copied.
    pub keep_file: bool,
}

/// Weights in tiles, and the stacks of the threads that compute with them.
pub fn weights(weights: &Weights<'_>, holding: Holding) -> WeightsMemory {
    let Holding { exact, threads, keep_file } = holding;
    let head = weights.head.as_ref().unwrap_or(&weights.embedding);
    let linears = || weights.layers.iter().flat_map(LayerWeights::linears);
    let matrices = || linears().map(|linear| &linear.weight).chain([head]);
    let tiles = Arena::held(matrices().map(|weight| Matrix::tiles_bytes(weight, exact)));
    let biases = linears().filter_map(|linear| linear.bias.as_ref());
    let norms = weights.layers.iter().flat_map(LayerWeights::norms).chain([&weights.output_norm]);
    let vectors: usize = norms.chain(biases).map(|vector| size_of_val(&**vector)).sum();
    let copied = match weights.head {
        Some(_) if super::is_copied(&weights.embedding, keep_file) => whole_pages(weights.embedding.bytes.len() as u64),
        _ => 0,
    };
    let converting = matrices().map(|weight| buffer_bytes::<u8>(Matrix::scratch_bytes_max(weight, exact, threads)));
    WeightsMemory {
        weights: Bytes::host(tiles + whole_pages(vectors as u64) + copied + ThreadPool::stacks_bytes(threads)),
        loading: Bytes::host(converting.max().unwrap_or(0)),
    }
}

/// What the memory of a sequence depends on beside its size.
#[derive(Clone, Copy)]
pub struct SequenceKind<'a> {
    /// Of the model.
    pub shape: &'a Shape,
    /// Keys and values are f32.
    pub exact: bool,
    /// Threads that compute.
    pub threads: usize,
    /// Keys have a bias that an int8 cache leaves out.
    pub key_bias: bool,
}

impl<'a> SequenceKind<'a> {
    /// Of weights that are not loaded.
    pub fn of_weights(shape: &'a Shape, weights: &Weights<'_>, holding: Holding) -> Self {
        let has_bias = |layer: &LayerWeights<'_>| layer.k_norm.is_none() && layer.k.bias.is_some();
        let key_bias = weights.layers.iter().any(has_bias);
        SequenceKind { shape, exact: holding.exact, threads: holding.threads, key_bias }
    }

    /// Of those that are.
    pub(super) fn of(inner: &'a Inner) -> Self {
        let key_bias = inner.layers.iter().any(|layer| layer.k_norm.is_none() && layer.k.bias().is_some());
        SequenceKind { shape: &inner.shape, exact: inner.exact, threads: inner.pool.threads(), key_bias }
    }

    /// KV cache and scratch memory, each buffer in whole pages.
    pub fn memory(&self, context_len: usize, batch: usize, format: KvFormat) -> Result<SequenceMemory> {
        let kv = KvCache::held_for(self.shape, Kind::of(self.exact, format)?, context_len, self.key_bias);
        Ok(SequenceMemory { kv: Bytes::host(kv), scratch: Bytes::host(self.scratch(context_len, batch as u64)) })
    }

    /// Everything but the KV cache.
    pub fn scratch(&self, context_len: usize, batch: u64) -> u64 {
        let shape = self.shape;
        let attention = shape.query_heads * shape.head_dim;
        let kv_width = tiled_width(shape.kv_heads * shape.head_dim);
        let rows = |width: usize| buffer_bytes::<f32>(batch.saturating_mul(width as u64));
        let [normed, attended, activated] =
            [shape.hidden, attention, shape.intermediate].map(|columns| RowsBuffer::held_for(batch, columns));
        let projected = rows(shape.hidden) + rows(attention) + 2 * rows(kv_width);
        let rotations = 2 * rows(shape.rope_frequencies.len());
        let logits = buffer_bytes::<f32>(tiled_width(shape.vocab_len) as u64);
        let attention = attention::Scratch::held_for(shape, self.threads, context_len);
        projected + normed + attended + activated + rotations + logits + attention
    }
}
