//! What an int8 KV cache leaves out of its keys: the bias of the key projection.

use super::Inner;
use crate::Result;
use crate::backend::Shape;
use crate::cpu::Kernels;
use crate::cpu::lanes::ATTENTION_TILE;
use crate::tensor::{Buffer, Bytes, Taken, buffer_bytes};

/// The biases of all layers, and how RoPE rotates them to the positions of a tile.
///
/// Qwen2's reach 150 in some dimensions where the rest of a key is about 1: with them in, an int8 scale leaves two bits for
/// the rest. They need not be stored for each position, since they are the same at all of them but for RoPE. An angle of
/// RoPE is that of the tile's first position plus that from there on, so the tables are small.
pub struct KeyBias {
    biases: Buffer<f32>,           // (layers, kv_heads, head_dim)
    to_tile: [Buffer<f32>; 2],     // cosines and sines: (tiles, pairs)
    within_tile: [Buffer<f32>; 2], // cosines and sines: (pairs, 32)
    adjacent: bool,
    heads: usize,
    head_dim: usize,
    _taken: Taken,
}

impl KeyBias {
    /// None when no layer has a bias that RoPE rotates as it is.
    pub fn new(inner: &Inner, tiles: usize) -> Result<Option<Self>> {
        let shape = &inner.shape;
        let width = shape.kv_heads * shape.head_dim;
        let bias = |layer: usize| match &inner.layers[layer] {
            layer if layer.k_norm.is_none() => layer.k.bias(),
            _ => None,
        };
        if (0..shape.layers).all(|layer| bias(layer).is_none()) {
            return Ok(None);
        }
        let what = "the KV cache";
        let taken = inner.ledger.take(what, Bytes::host(Self::held_for(shape, tiles)))?;
        let mut biases = Buffer::zeroed(what, shape.layers * width)?;
        for (layer, place) in biases.chunks_exact_mut(width).enumerate() {
            if let Some(bias) = bias(layer) {
                place.copy_from_slice(bias);
            }
        }
        let frequencies = &shape.rope_frequencies;
        let tables = |len: usize, angle: &dyn Fn(usize) -> f64| -> Result<[Buffer<f32>; 2]> {
            let (mut cos, mut sin) = (Buffer::zeroed(what, len)?, Buffer::zeroed(what, len)?);
            for (i, (cos, sin)) in cos.iter_mut().zip(sin.iter_mut()).enumerate() {
                let (s, c) = libm::sincos(angle(i));
                (*cos, *sin) = (c as f32, s as f32);
            }
            Ok([cos, sin])
        };
        let pairs = frequencies.len();
        Ok(Some(KeyBias {
            biases,
            to_tile: tables(tiles * pairs, &|i| (i / pairs * ATTENTION_TILE) as f64 * frequencies[i % pairs])?,
            within_tile: tables(pairs * ATTENTION_TILE, &|i| {
                (i % ATTENTION_TILE) as f64 * frequencies[i / ATTENTION_TILE]
            })?,
            adjacent: shape.rope_adjacent,
            heads: shape.kv_heads,
            head_dim: shape.head_dim,
            _taken: taken,
        }))
    }

    /// What [`KeyBias::new`] takes where there is a bias.
    pub fn held_for(shape: &Shape, tiles: usize) -> u64 {
        let pairs = shape.rope_frequencies.len();
        buffer_bytes::<f32>((shape.layers * shape.kv_heads * shape.head_dim) as u64)
            + 2 * buffer_bytes::<f32>((tiles * pairs) as u64)
            + 2 * buffer_bytes::<f32>((pairs * ATTENTION_TILE) as u64)
    }

    /// Memory held.
    pub fn bytes(&self) -> usize {
        self.to_tile.iter().chain(&self.within_tile).chain([&self.biases]).map(Buffer::bytes).sum()
    }

    /// The same, in whole pages.
    pub fn held(&self) -> u64 {
        self.to_tile.iter().chain(&self.within_tile).chain([&self.biases]).map(Buffer::held).sum()
    }

    fn of(&self, layer: usize, head: usize) -> &[f32] {
        &self.biases[(layer * self.heads + head) * self.head_dim..][..self.head_dim]
    }

    /// Takes the bias out of a key that RoPE has not rotated yet.
    pub fn leave_out(&self, layer: usize, head: usize, key: &mut [f32]) {
        for (key, bias) in key.iter_mut().zip(self.of(layer, head)) {
            *key -= bias;
        }
    }

    /// Adds it to all keys of a tile, (head_dim, 32), which starts at position `from`.
    pub fn add(&self, kernels: &Kernels, layer: usize, head: usize, from: usize, keys: &mut [f32]) {
        let mut bias = [0.0; super::kv_cache::HEAD_DIM_MAX];
        let bias = &mut bias[..self.head_dim];
        bias.copy_from_slice(self.of(layer, head));
        let [cos, sin] = &self.within_tile;
        let pairs = cos.len() / ATTENTION_TILE;
        let [tile_cos, tile_sin] =
            self.to_tile.each_ref().map(|table| &table[from / ATTENTION_TILE * pairs..][..pairs]);
        kernels.rope(bias, tile_cos, tile_sin, self.adjacent);
        kernels.add_rotated(bias, cos, sin, self.adjacent, keys);
    }
}
