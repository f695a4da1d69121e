//! The KV cache: keys and values of past positions, per layer and kv head.

use super::matrix::Disjoint;
use crate::cpu::Kernels;
use crate::cpu::lanes::ATTENTION_TILE;
use crate::tensor::Buffer;
use crate::{Error, Result};

/// Keys: (layers, kv_heads, positions_max / 32, head_dim, 32), as attention reads them. Values: (layers, kv_heads,
/// positions_max, head_dim).
pub struct KvCache {
    storage: Storage,
    kv_heads: usize,
    head_dim: usize,
    /// The context length in whole tiles of attention.
    positions_max: usize,
}

enum Storage {
    F16 {
        keys: Buffer<u16>,
        values: Buffer<u16>,
    },
    /// For exact sessions.
    F32 {
        keys: Buffer<f32>,
        values: Buffer<f32>,
    },
}

/// The longest head (Llama's and Qwen3's are 128).
pub const HEAD_DIM_MAX: usize = 512;

impl KvCache {
    /// All of the cache. Its pages are the operating system's until they are used.
    pub fn new(layers: usize, kv_heads: usize, head_dim: usize, context_len: usize, exact: bool) -> Result<Self> {
        let what = "the KV cache";
        let positions_max = context_len.next_multiple_of(ATTENTION_TILE);
        let len = (layers * kv_heads * head_dim).checked_mul(positions_max);
        let len = len.ok_or(Error::NoMemory { what, bytes: usize::MAX })?;
        let storage = match exact {
            true => Storage::F32 { keys: Buffer::zeroed(what, len)?, values: Buffer::zeroed(what, len)? },
            false => Storage::F16 { keys: Buffer::zeroed(what, len)?, values: Buffer::zeroed(what, len)? },
        };
        Ok(KvCache { storage, kv_heads, head_dim, positions_max })
    }

    /// Memory held.
    pub fn bytes(&self) -> usize {
        match &self.storage {
            Storage::F16 { keys, values } => keys.bytes() + values.bytes(),
            Storage::F32 { keys, values } => keys.bytes() + values.bytes(),
        }
    }

    /// Copies the tile of positions from `from` (a multiple of 32) as f32: all of `keys` (head_dim, 32), and as many
    /// positions of `values` (positions, head_dim) as it has room for.
    pub fn read(
        &self,
        kernels: &Kernels,
        layer: usize,
        head: usize,
        from: usize,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        let at = (layer * self.kv_heads + head) * self.positions_max * self.head_dim + from * self.head_dim;
        match &self.storage {
            Storage::F16 { keys: all_keys, values: all_values } => {
                kernels.f32_from_f16(&all_keys[at..][..keys.len()], keys);
                kernels.f32_from_f16(&all_values[at..][..values.len()], values);
            }
            Storage::F32 { keys: all_keys, values: all_values } => {
                keys.copy_from_slice(&all_keys[at..][..keys.len()]);
                values.copy_from_slice(&all_values[at..][..values.len()]);
            }
        }
    }

    /// To be written by several threads, each its own positions.
    pub fn writer(&mut self) -> KvWriter<'_> {
        let places = match &mut self.storage {
            Storage::F16 { keys, values } => Places::F16(Disjoint::new(keys), Disjoint::new(values)),
            Storage::F32 { keys, values } => Places::F32(Disjoint::new(keys), Disjoint::new(values)),
        };
        KvWriter { places, kv_heads: self.kv_heads, head_dim: self.head_dim, positions_max: self.positions_max }
    }
}

/// See [`KvCache::writer`].
pub struct KvWriter<'a> {
    places: Places<'a>,
    kv_heads: usize,
    head_dim: usize,
    positions_max: usize,
}

enum Places<'a> {
    F16(Disjoint<'a, u16>, Disjoint<'a, u16>),
    F32(Disjoint<'a, f32>, Disjoint<'a, f32>),
}

impl KvWriter<'_> {
    /// Writes one position of one head.
    ///
    /// # Safety
    /// No other thread writes this position of this head.
    pub unsafe fn write(&self, kernels: &Kernels, layer: usize, head: usize, position: usize, k: &[f32], v: &[f32]) {
        let head_dim = self.head_dim;
        let at = ((layer * self.kv_heads + head) * self.positions_max + position) * head_dim;
        // SAFETY: the caller's promise: this row of values and this lane of the tile of keys are this thread's.
        unsafe {
            match &self.places {
                Places::F16(keys, values) => {
                    kernels.f16_from_f32(v, values.range(at..at + head_dim));
                    let mut halves = [0; HEAD_DIM_MAX];
                    kernels.f16_from_f32(k, &mut halves[..head_dim]);
                    transpose(&halves[..head_dim], at, position, keys);
                }
                Places::F32(keys, values) => {
                    values.range(at..at + head_dim).copy_from_slice(v);
                    transpose(k, at, position, keys);
                }
            }
        }
    }
}

/// Writes a key to its lane of a tile; `at` is where its row would be without tiles.
///
/// # Safety
/// No other thread writes this lane.
unsafe fn transpose<T: Copy>(key: &[T], at: usize, position: usize, keys: &Disjoint<'_, T>) {
    let lane = position % ATTENTION_TILE;
    let tile = at - lane * key.len();
    for (d, value) in key.iter().enumerate() {
        let at = tile + d * ATTENTION_TILE + lane;
        // SAFETY: the caller's promise.
        unsafe { keys.range(at..at + 1).fill(*value) };
    }
}
