//! The KV cache: keys and values of past positions, per layer and kv head, in pages that forked sequences share.

use super::Inner;
use super::key_bias::KeyBias;
use crate::backend::{KvFormat, Shape};
use crate::cpu::Kernels;
use crate::cpu::lanes::{self, ATTENTION_SEGMENT, ATTENTION_TILE, KV_BLOCK};
use crate::tensor::{Buffer, Bytes, Ledger, Plain, Residence, Taken, buffer_bytes};
use crate::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// Positions of a page.
pub const PAGE: usize = ATTENTION_SEGMENT;

/// All pages that the context needs. Those whose positions are all in use may be shared with other sequences; what is
/// written to is this one's alone.
pub struct KvCache {
    pub(super) pages: Vec<Arc<Page>>,
    /// What int8 keys are without.
    pub(super) bias: Option<Arc<KeyBias>>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) layers: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

/// Keys: (layers, kv_heads, positions / 32, head_dim, 32), as attention reads them. Values: (layers, kv_heads, positions,
/// head_dim).
pub struct Page {
    /// [`PAGE`], or in the last one the rest of the context in whole tiles of attention.
    pub positions: usize,
    pub storage: Storage,
    _taken: Taken,
}

/// Keys and values.
pub struct Pair<T: Plain> {
    pub keys: Buffer<T>,
    pub values: Buffer<T>,
    /// Elements of a key or a value.
    pub width: usize,
}

pub enum Storage {
    F16(Pair<u16>),
    /// For exact sessions.
    F32(Pair<f32>),
    /// Scales (bf16) lie as their quants do, with head_dim / 32 (rounded up) in place of head_dim. Some dimensions of keys are
    /// far larger than others, and would decide the scale that the others are rounded with. Where that is a bias, keys are
    /// without it; else they, and queries with them, are turned by `lanes::hadamard`.
    I8 {
        quants: Pair<i8>,
        scales: Pair<u16>,
    },
}

/// The longest head (Llama's and Qwen3's are 128).
pub const HEAD_DIM_MAX: usize = 512;
const WHAT: &str = "the KV cache";

impl<T: Plain> Pair<T> {
    fn new(rows: usize, width: usize, residence: Residence) -> Result<Self> {
        let len = rows.checked_mul(width).ok_or(Error::NoMemory { what: WHAT, bytes: usize::MAX })?;
        let mut pair = Pair { keys: Buffer::zeroed(WHAT, len)?, values: Buffer::zeroed(WHAT, len)?, width };
        pair.keys.settle(WHAT, residence)?;
        pair.values.settle(WHAT, residence)?;
        Ok(pair)
    }

    fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.bytes()
    }

    /// Writes row `row` of the values and its lane of the tile of keys. `row` counts positions through all layers and heads,
    /// which have whole tiles of them.
    ///
    /// # Safety
    /// Nobody else reads or writes this row or this lane.
    unsafe fn write(&self, row: usize, key: &[T], value: &[T]) {
        let width = value.len();
        // SAFETY: the caller's promise.
        unsafe { self.values.shared_mut(row * width..(row + 1) * width) }.copy_from_slice(value);
        let lane = row % ATTENTION_TILE;
        let tile = (row - lane) * width;
        for (d, value) in key.iter().enumerate() {
            let at = tile + d * ATTENTION_TILE + lane;
            // SAFETY: the caller's promise.
            unsafe { self.keys.shared_mut(at..at + 1).fill(*value) };
        }
    }

    fn held(&self) -> u64 {
        self.keys.held() + self.values.held()
    }
}

impl Page {
    /// `heads`: of all layers.
    pub fn new(ledger: &Arc<Ledger>, kind: Kind, heads: usize, positions: usize, head_dim: usize) -> Result<Self> {
        let taken = ledger.take(WHAT, Bytes::host(Self::held_for(kind, heads, positions, head_dim)))?;
        // One row per position of a head. What does not fit a usize is refused as one does that no machine has.
        let rows = heads.saturating_mul(positions);
        let residence = ledger.residence();
        let storage = match kind {
            Kind::F16 => Storage::F16(Pair::new(rows, head_dim, residence)?),
            Kind::F32 => Storage::F32(Pair::new(rows, head_dim, residence)?),
            Kind::I8 => Storage::I8 {
                quants: Pair::new(rows, head_dim, residence)?,
                scales: Pair::new(rows, blocks(head_dim), residence)?,
            },
        };
        Ok(Page { positions, storage, _taken: taken })
    }

    /// What [`Page::new`] takes.
    pub fn held_for(kind: Kind, heads: usize, positions: usize, head_dim: usize) -> u64 {
        let rows = (heads as u64).saturating_mul(positions as u64);
        let values = rows.saturating_mul(head_dim as u64);
        match kind {
            Kind::F16 => 2 * buffer_bytes::<u16>(values),
            Kind::F32 => 2 * buffer_bytes::<f32>(values),
            Kind::I8 => {
                let scales = rows.saturating_mul(blocks(head_dim) as u64);
                2 * (buffer_bytes::<i8>(values) + buffer_bytes::<u16>(scales))
            }
        }
    }

    /// Memory held.
    fn held(&self) -> u64 {
        match &self.storage {
            Storage::F16(pair) => pair.held(),
            Storage::F32(pair) => pair.held(),
            Storage::I8 { quants, scales } => quants.held() + scales.held(),
        }
    }

    pub fn kind(&self) -> Kind {
        match self.storage {
            Storage::F16(_) => Kind::F16,
            Storage::F32(_) => Kind::F32,
            Storage::I8 { .. } => Kind::I8,
        }
    }

    fn bytes(&self) -> usize {
        match &self.storage {
            Storage::F16(pair) => pair.bytes(),
            Storage::F32(pair) => pair.bytes(),
            Storage::I8 { quants, scales } => quants.bytes() + scales.bytes(),
        }
    }
}

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    F16,
    F32,
    I8,
}

impl Kind {
    /// What there is for this wish.
    pub fn of(exact: bool, format: KvFormat) -> Result<Kind> {
        match (exact, format) {
            (true, KvFormat::Auto) => Ok(Kind::F32),
            (true, format) => {
                let text = format!("KV cache {format:?}: a model loaded as exact has its keys and values in f32");
                Err(Error::argument(text))
            }
            (false, KvFormat::Auto | KvFormat::F16) => Ok(Kind::F16),
            (false, KvFormat::I8) => Ok(Kind::I8),
        }
    }
}

impl KvCache {
    /// All of the cache. Its memory is the operating system's until it is used.
    pub fn new(inner: &Inner, context_len: usize, format: KvFormat) -> Result<Self> {
        let Shape { layers, kv_heads, head_dim, .. } = inner.shape;
        let positions_max = context_len.next_multiple_of(ATTENTION_TILE);
        let kind = Kind::of(inner.exact, format)?;
        let mut pages = room(positions_max.div_ceil(PAGE))?;
        for from in (0..positions_max).step_by(PAGE) {
            let positions = PAGE.min(positions_max - from);
            pages.push(Arc::new(Page::new(&inner.ledger, kind, layers * kv_heads, positions, head_dim)?));
        }
        let bias = match kind {
            Kind::I8 => KeyBias::new(inner, positions_max / ATTENTION_TILE)?.map(Arc::new),
            Kind::F16 | Kind::F32 => None,
        };
        Ok(KvCache { pages, bias, ledger: inner.ledger.clone(), layers, kv_heads, head_dim })
    }

    /// Memory held; of shared pages too.
    pub fn bytes(&self) -> usize {
        let pages: usize = self.pages.iter().map(|page| page.bytes()).sum();
        pages + self.bias.as_deref().map_or(0, KeyBias::bytes)
    }

    /// The same, in whole pages.
    pub fn held(&self) -> u64 {
        let pages: u64 = self.pages.iter().map(|page| page.held()).sum();
        pages + self.bias.as_deref().map_or(0, KeyBias::held)
    }

    /// What [`KvCache::new`] takes for so many heads of all layers; `key_bias`: keys have one that int8 keys are without.
    pub fn held_for(shape: &Shape, kind: Kind, context_len: usize, key_bias: bool) -> u64 {
        let positions_max = context_len.next_multiple_of(ATTENTION_TILE);
        let page = |positions| Page::held_for(kind, shape.layers * shape.kv_heads, positions, shape.head_dim);
        let pages = page(PAGE).saturating_mul((positions_max / PAGE) as u64).saturating_add(page(positions_max % PAGE));
        let bias = key_bias && kind == Kind::I8;
        pages.saturating_add(if bias { KeyBias::held_for(shape, positions_max / ATTENTION_TILE) } else { 0 })
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
        let (page, row) = self.place(layer, head, from);
        let head_dim = self.head_dim;
        let at = row * head_dim;
        match &page.storage {
            Storage::F16(all) => {
                kernels.f32_from_f16(&all.keys[at..][..keys.len()], keys);
                kernels.f32_from_f16(&all.values[at..][..values.len()], values);
            }
            Storage::F32(all) => {
                keys.copy_from_slice(&all.keys[at..][..keys.len()]);
                values.copy_from_slice(&all.values[at..][..values.len()]);
            }
            Storage::I8 { quants, scales } => {
                let blocks = blocks(head_dim);
                let key_scales = &scales.keys[row * blocks..][..ATTENTION_TILE * blocks];
                let value_scales = &scales.values[row * blocks..][..values.len() / head_dim * blocks];
                kernels.keys_from_i8(&quants.keys[at..][..keys.len()], key_scales, keys);
                if let Some(bias) = &self.bias {
                    bias.add(kernels, layer, head, from, keys);
                }
                kernels.values_from_i8(&quants.values[at..][..values.len()], value_scales, head_dim, values);
            }
        }
    }

    /// What all its pages hold.
    pub fn kind(&self) -> Kind {
        self.pages.first().map_or(Kind::F16, |page| page.kind())
    }

    /// The page of a position, and the position's row in it.
    fn place(&self, layer: usize, head: usize, position: usize) -> (&Page, usize) {
        let page = &*self.pages[position / PAGE];
        (page, (layer * self.kv_heads + head) * page.positions + position % PAGE)
    }

    /// To write these positions by several threads, each its own ones.
    pub fn writer(&mut self, positions: Range<usize>) -> Result<KvWriter<'_>> {
        let pages = positions.start / PAGE..positions.end.div_ceil(PAGE);
        if self.pages[pages].iter_mut().any(|page| Arc::get_mut(page).is_none()) {
            return Err(Error::Internal("a page that is shared is to be written".into()));
        }
        Ok(KvWriter { cache: self, positions })
    }
}

/// Scales of a key or value.
fn blocks(head_dim: usize) -> usize {
    head_dim.div_ceil(KV_BLOCK)
}

/// Room for so many pages.
pub fn room<T>(pages: usize) -> Result<Vec<T>> {
    let mut room = Vec::new();
    let bytes = pages.saturating_mul(size_of::<T>());
    room.try_reserve_exact(pages).map_err(|_| Error::NoMemory { what: WHAT, bytes })?;
    Ok(room)
}

/// See [`KvCache::writer`].
pub struct KvWriter<'a> {
    /// Borrowed for writing; the pages of `positions` are nobody else's.
    cache: &'a KvCache,
    positions: Range<usize>,
}

impl KvWriter<'_> {
    fn turns(&self) -> bool {
        self.cache.bias.is_none() && self.cache.kind() == Kind::I8
    }

    /// To be called on each key before RoPE: takes out of it what `KvCache::read` adds.
    pub fn before_rope(&self, layer: usize, head: usize, k: &mut [f32]) {
        if let Some(bias) = &self.cache.bias {
            bias.leave_out(layer, head, k);
        }
    }

    /// To be called on each query after RoPE: turns it as keys are turned, which keeps its dot products with them.
    pub fn turn_query(&self, q: &mut [f32]) {
        if self.turns() {
            let inverse = 1.0 / lanes::hadamard(q); // Of a power of two: exact.
            q.iter_mut().for_each(|q| *q *= inverse);
        }
    }

    /// Writes one position of one head: its key after RoPE, and its value.
    ///
    /// # Safety
    /// No other thread writes this position of this head.
    pub unsafe fn write(&self, kernels: &Kernels, layer: usize, head: usize, position: usize, k: &[f32], v: &[f32]) {
        assert!(self.positions.contains(&position));
        let (page, row) = self.cache.place(layer, head, position);
        let head_dim = self.cache.head_dim;
        // SAFETY: the page is nobody else's (`writer`), the cache is borrowed for writing; by the caller's promise this row
        // of values and this lane of the tile of keys are this thread's.
        unsafe {
            match &page.storage {
                Storage::F16(pair) => {
                    let mut halves = [[0; HEAD_DIM_MAX]; 2];
                    let [keys, values] = halves.each_mut().map(|halves| &mut halves[..head_dim]);
                    kernels.f16_from_f32(k, keys);
                    kernels.f16_from_f32(v, values);
                    pair.write(row, keys, values);
                }
                Storage::F32(pair) => pair.write(row, k, v),
                Storage::I8 { quants, scales } => {
                    let mut turned = [0.0; HEAD_DIM_MAX];
                    let turned = &mut turned[..head_dim];
                    turned.copy_from_slice(k);
                    if self.turns() {
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
