//! The KV cache: keys and values of past positions, per layer and kv head.

use super::Inner;
use super::key_bias::KeyBias;
use crate::backend::{KvFormat, Shape};
use crate::cpu::Kernels;
use crate::cpu::lanes::{self, ATTENTION_TILE, KV_BLOCK};
use crate::tensor::{Buffer, Disjoint, Plain};
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

/// Keys and values.
struct Pair<T: Plain> {
    keys: Buffer<T>,
    values: Buffer<T>,
}

enum Storage {
    F16(Pair<u16>),
    /// For exact sessions.
    F32(Pair<f32>),
    /// Scales (bf16) lie as their quants do, with head_dim / 32 (rounded up) in place of head_dim. Some dimensions of keys are
    /// far larger than others, and would decide the scale that the others are rounded with. Where that is a bias, keys are
    /// without it; else they, and queries with them, are turned by `lanes::hadamard`.
    I8 {
        quants: Pair<i8>,
        scales: Pair<u16>,
        bias: Option<Box<KeyBias>>,
    },
}

/// The longest head (Llama's and Qwen3's are 128).
pub const HEAD_DIM_MAX: usize = 512;

impl<T: Plain> Pair<T> {
    fn new(rows: usize, width: usize) -> Result<Self> {
        let what = "the KV cache";
        let len = rows.checked_mul(width).ok_or(Error::NoMemory { what, bytes: usize::MAX })?;
        Ok(Pair { keys: Buffer::zeroed(what, len)?, values: Buffer::zeroed(what, len)? })
    }

    fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.bytes()
    }

    fn places(&mut self) -> Places<'_, T> {
        Places { keys: Disjoint::new(&mut self.keys), values: Disjoint::new(&mut self.values) }
    }
}

impl KvCache {
    /// All of the cache. Its pages are the operating system's until they are used.
    pub fn new(inner: &Inner, context_len: usize, format: KvFormat) -> Result<Self> {
        let Shape { layers, kv_heads, head_dim, .. } = inner.shape;
        let positions_max = context_len.next_multiple_of(ATTENTION_TILE);
        // One row per position of a head. What does not fit a usize is refused as one does that no machine has.
        let rows = (layers * kv_heads).saturating_mul(positions_max);
        let storage = match (inner.exact, format) {
            (true, KvFormat::Auto) => Storage::F32(Pair::new(rows, head_dim)?),
            (true, format) => {
                let text = format!("KV cache {format:?}: a model loaded as exact has its keys and values in f32");
                return Err(Error::argument(text));
            }
            (false, KvFormat::Auto | KvFormat::F16) => Storage::F16(Pair::new(rows, head_dim)?),
            (false, KvFormat::I8) => Storage::I8 {
                quants: Pair::new(rows, head_dim)?,
                scales: Pair::new(rows, blocks(head_dim))?,
                bias: KeyBias::new(inner, positions_max / ATTENTION_TILE)?.map(Box::new),
            },
        };
        Ok(KvCache { storage, kv_heads, head_dim, positions_max })
    }

    /// Memory held.
    pub fn bytes(&self) -> usize {
        match &self.storage {
            Storage::F16(pair) => pair.bytes(),
            Storage::F32(pair) => pair.bytes(),
            Storage::I8 { quants, scales, bias } => {
                quants.bytes() + scales.bytes() + bias.as_deref().map_or(0, KeyBias::bytes)
            }
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
        let row = (layer * self.kv_heads + head) * self.positions_max + from;
        let head_dim = self.head_dim;
        let at = row * head_dim;
        match &self.storage {
            Storage::F16(all) => {
                kernels.f32_from_f16(&all.keys[at..][..keys.len()], keys);
                kernels.f32_from_f16(&all.values[at..][..values.len()], values);
            }
            Storage::F32(all) => {
                keys.copy_from_slice(&all.keys[at..][..keys.len()]);
                values.copy_from_slice(&all.values[at..][..values.len()]);
            }
            Storage::I8 { quants, scales, bias } => {
                let blocks = blocks(head_dim);
                let key_scales = &scales.keys[row * blocks..][..ATTENTION_TILE * blocks];
                let value_scales = &scales.values[row * blocks..][..values.len() / head_dim * blocks];
                kernels.keys_from_i8(&quants.keys[at..][..keys.len()], key_scales, keys);
                if let Some(bias) = bias {
                    bias.add(kernels, layer, head, from, keys);
                }
                kernels.values_from_i8(&quants.values[at..][..values.len()], value_scales, head_dim, values);
            }
        }
    }

    /// To be written by several threads, each its own positions.
    pub fn writer(&mut self) -> KvWriter<'_> {
        let places = match &mut self.storage {
            Storage::F16(pair) => StoragePlaces::F16(pair.places()),
            Storage::F32(pair) => StoragePlaces::F32(pair.places()),
            Storage::I8 { quants, scales, bias } => {
                StoragePlaces::I8 { quants: quants.places(), scales: scales.places(), bias: bias.as_deref() }
            }
        };
        KvWriter { places, kv_heads: self.kv_heads, head_dim: self.head_dim, positions_max: self.positions_max }
    }
}

/// Scales of a key or value.
fn blocks(head_dim: usize) -> usize {
    head_dim.div_ceil(KV_BLOCK)
}

/// See [`KvCache::writer`].
pub struct KvWriter<'a> {
    places: StoragePlaces<'a>,
    kv_heads: usize,
    head_dim: usize,
    positions_max: usize,
}

struct Places<'a, T> {
    keys: Disjoint<'a, T>,
    values: Disjoint<'a, T>,
}

enum StoragePlaces<'a> {
    F16(Places<'a, u16>),
    F32(Places<'a, f32>),
    I8 { quants: Places<'a, i8>, scales: Places<'a, u16>, bias: Option<&'a KeyBias> },
}

impl KvWriter<'_> {
    /// To be called on each key before RoPE: takes out of it what `KvCache::read` adds.
    pub fn before_rope(&self, layer: usize, head: usize, k: &mut [f32]) {
        if let StoragePlaces::I8 { bias: Some(bias), .. } = self.places {
            bias.leave_out(layer, head, k);
        }
    }

    /// To be called on each query after RoPE: turns it as keys are turned, which keeps its dot products with them.
    pub fn turn_query(&self, q: &mut [f32]) {
        if let StoragePlaces::I8 { bias: None, .. } = self.places {
            let inverse = 1.0 / lanes::hadamard(q); // Of a power of two: exact.
            q.iter_mut().for_each(|q| *q *= inverse);
        }
    }

    /// Writes one position of one head: its key after RoPE, and its value.
    ///
    /// # Safety
    /// No other thread writes this position of this head.
    pub unsafe fn write(&self, kernels: &Kernels, layer: usize, head: usize, position: usize, k: &[f32], v: &[f32]) {
        let head_dim = self.head_dim;
        let row = (layer * self.kv_heads + head) * self.positions_max + position;
        // SAFETY: the caller's promise: this row of values and this lane of the tile of keys are this thread's.
        unsafe {
            match &self.places {
                StoragePlaces::F16(places) => {
                    let mut halves = [[0; HEAD_DIM_MAX]; 2];
                    let [keys, values] = halves.each_mut().map(|halves| &mut halves[..head_dim]);
                    kernels.f16_from_f32(k, keys);
                    kernels.f16_from_f32(v, values);
                    places.write(row, keys, values);
                }
                StoragePlaces::F32(places) => places.write(row, k, v),
                StoragePlaces::I8 { quants, scales, bias } => {
                    let mut turned = [0.0; HEAD_DIM_MAX];
                    let turned = &mut turned[..head_dim];
                    turned.copy_from_slice(k);
                    if bias.is_none() {
                        lanes::hadamard(turned);
                    }
                    let (keys, values) = (QuantizedRow::of(turned), QuantizedRow::of(v));
                    quants.write(row, &keys.quants[..head_dim], &values.quants[..head_dim]);
                    scales.write(row, &keys.scales[..blocks(head_dim)], &values.scales[..blocks(head_dim)]);
                }
            }
        }
    }
}

/// One key or value in int8.
struct QuantizedRow {
    quants: [i8; HEAD_DIM_MAX],
    scales: [u16; HEAD_DIM_MAX / KV_BLOCK],
}

impl QuantizedRow {
    fn of(x: &[f32]) -> Self {
        let mut row = QuantizedRow { quants: [0; HEAD_DIM_MAX], scales: [0; HEAD_DIM_MAX / KV_BLOCK] };
        lanes::quantize_kv(x, &mut row.quants[..x.len()], &mut row.scales[..blocks(x.len())]);
        row
    }
}

impl<T: Plain> Places<'_, T> {
    /// Writes row `row` of the values and its lane of the tile of keys. `row` counts positions through all layers and heads,
    /// which have whole tiles of them.
    ///
    /// # Safety
    /// No other thread writes this row or this lane.
    unsafe fn write(&self, row: usize, key: &[T], value: &[T]) {
        let width = value.len();
        // SAFETY: the caller's promise.
        unsafe { self.values.range(row * width..(row + 1) * width) }.copy_from_slice(value);
        let lane = row % ATTENTION_TILE;
        let tile = (row - lane) * width;
        for (d, value) in key.iter().enumerate() {
            let at = tile + d * ATTENTION_TILE + lane;
            // SAFETY: the caller's promise.
            unsafe { self.keys.range(at..at + 1).fill(*value) };
        }
    }
}
