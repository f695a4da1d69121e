//! Pages of a KV cache: shared by forks, made a sequence's own again, saved and restored.

use super::kv_cache::{Kind, KvCache, PAGE, Page, Pair, Storage, room};
use crate::backend::Sink;
use crate::cpu::lanes::ATTENTION_TILE;
use crate::tensor::Plain;
use crate::{Error, Result};
use std::sync::Arc;

/// A [`Pair`] as bytes.
struct Plane<B> {
    keys: B,
    values: B,
    /// Bytes of a key or a value.
    width: usize,
    /// Bytes of an element.
    element: usize,
}

impl<T: Plain> Pair<T> {
    fn plane(&self) -> Plane<&[u8]> {
        let (keys, values) = (self.keys.as_bytes(), self.values.as_bytes());
        Plane { keys, values, width: self.width * size_of::<T>(), element: size_of::<T>() }
    }

    fn plane_mut(&mut self) -> Plane<&mut [u8]> {
        let (keys, values) = (self.keys.as_bytes_mut(), self.values.as_bytes_mut());
        Plane { keys, values, width: self.width * size_of::<T>(), element: size_of::<T>() }
    }
}

impl Page {
    fn planes(&self) -> impl Iterator<Item = Plane<&[u8]>> {
        let planes = match &self.storage {
            Storage::F16(pair) => [Some(pair.plane()), None],
            Storage::F32(pair) => [Some(pair.plane()), None],
            Storage::I8 { quants, scales } => [Some(quants.plane()), Some(scales.plane())],
        };
        planes.into_iter().flatten()
    }

    fn planes_mut(&mut self) -> impl Iterator<Item = Plane<&mut [u8]>> {
        let planes = match &mut self.storage {
            Storage::F16(pair) => [Some(pair.plane_mut()), None],
            Storage::F32(pair) => [Some(pair.plane_mut()), None],
            Storage::I8 { quants, scales } => [Some(quants.plane_mut()), Some(scales.plane_mut())],
        };
        planes.into_iter().flatten()
    }
}

/// How many of the first `positions` are in the page with this index.
fn within(positions: usize, page: usize) -> usize {
    positions.saturating_sub(page * PAGE).min(PAGE)
}

/// Bytes of the keys of so many positions of a head: whole tiles.
fn keys_bytes(positions: usize, width: usize) -> usize {
    positions.next_multiple_of(ATTENTION_TILE) * width
}

impl KvCache {
    fn heads(&self) -> usize {
        self.layers * self.kv_heads
    }

    /// A page like this one, with its first `positions`.
    fn copy_of(&self, page: &Page, positions: usize) -> Result<Arc<Page>> {
        let mut copy = Page::new(&self.ledger, page.kind(), self.heads(), page.positions, self.head_dim)?;
        if positions > 0 {
            for (from, to) in page.planes().zip(copy.planes_mut()) {
                for head in 0..self.heads() {
                    let at = head * page.positions * from.width;
                    let (keys, values) = (keys_bytes(positions, from.width), positions * from.width);
                    to.keys[at..at + keys].copy_from_slice(&from.keys[at..at + keys]);
                    to.values[at..at + values].copy_from_slice(&from.values[at..at + values]);
                }
            }
        }
        Ok(Arc::new(copy))
    }

    /// A cache with the first `positions` of this one: pages that they fill are shared, the rest of them is copied.
    pub fn fork(&self, positions: usize) -> Result<KvCache> {
        let mut pages = room(self.pages.len())?;
        for (index, page) in self.pages.iter().enumerate() {
            let shared = (index + 1) * PAGE <= positions;
            pages.push(if shared { page.clone() } else { self.copy_of(page, within(positions, index))? });
        }
        let KvCache { layers, kv_heads, head_dim, .. } = *self;
        Ok(KvCache { pages, bias: self.bias.clone(), ledger: self.ledger.clone(), layers, kv_heads, head_dim })
    }

    /// Pages of our own in place of shared ones, from the position `from` on; what is before it stays.
    pub fn unshare(&mut self, from: usize) -> Result<()> {
        self.own(from / PAGE, from)
    }

    /// Pages of our own from the page with the index `first` on, with what they have of the first `positions`.
    fn own(&mut self, first: usize, positions: usize) -> Result<()> {
        if self.pages[first..].iter_mut().all(|page| Arc::get_mut(page).is_some()) {
            return Ok(()); // Without asking for memory.
        }
        let mut own = room(self.pages.len())?;
        for index in first..self.pages.len() {
            if Arc::get_mut(&mut self.pages[index]).is_none() {
                own.push((index, self.copy_of(&self.pages[index], within(positions, index))?));
            }
        }
        for (index, page) in own {
            self.pages[index] = page;
        }
        Ok(())
    }

    /// What two caches have in common that can read what the other one has saved.
    pub fn layout(&self) -> String {
        let kind = match self.kind() {
            Kind::F16 => "f16",
            Kind::F32 => "f32",
            Kind::I8 => "int8",
        };
        let end = if cfg!(target_endian = "little") { "little" } else { "big" };
        let KvCache { layers, kv_heads, head_dim, .. } = self;
        format!("CPU, {kind}, {layers} layers, {kv_heads} kv heads of {head_dim}, {end}-endian")
    }

    /// What [`KvCache::save`] gives to its sink.
    pub fn saved_bytes(&self, positions: usize) -> usize {
        let planes = self.pages.first().map(|page| page.planes().map(|plane| plane.width).sum::<usize>());
        (positions.next_multiple_of(ATTENTION_TILE) + positions) * self.heads() * planes.unwrap_or(0)
    }

    /// The first `positions`, page by page; what is in no position is zeros.
    pub fn save(&self, positions: usize, sink: Sink<'_>) -> Result<()> {
        for (index, page) in self.pages.iter().enumerate() {
            let count = within(positions, index);
            let (tiles, rest) = (count / ATTENTION_TILE * ATTENTION_TILE, count % ATTENTION_TILE);
            for Plane { keys, values, width, element } in page.planes().filter(|_| count > 0) {
                for head in 0..self.heads() {
                    let at = head * page.positions * width;
                    sink(&keys[at..][..tiles * width])?;
                    if rest > 0 {
                        let tile = &keys[at + tiles * width..][..ATTENTION_TILE * width];
                        for row in tile.chunks_exact(ATTENTION_TILE * element) {
                            let mut kept = [0; ATTENTION_TILE * size_of::<f32>()];
                            kept[..rest * element].copy_from_slice(&row[..rest * element]);
                            sink(&kept[..row.len()])?;
                        }
                    }
                    sink(&values[at..][..count * width])?;
                }
            }
        }
        Ok(())
    }

    /// The first `positions` as they were saved, in pages of our own; a failure has changed nothing.
    pub fn restore(&mut self, positions: usize, mut saved: &[u8]) -> Result<()> {
        let capacity: usize = self.pages.iter().map(|page| page.positions).sum();
        if saved.len() != self.saved_bytes(positions) || positions > capacity {
            return Err(Error::Internal("what was saved of a KV cache has another length".into()));
        }
        self.own(0, 0)?;
        let heads = self.heads();
        for (index, page) in self.pages.iter_mut().enumerate() {
            let count = within(positions, index);
            let page = Arc::get_mut(page).ok_or(Error::Internal("a page is shared".into()))?;
            let page_positions = page.positions;
            for Plane { keys, values, width, .. } in page.planes_mut() {
                for head in 0..heads {
                    let at = head * page_positions * width;
                    for (to, len) in [(&mut *keys, keys_bytes(count, width)), (&mut *values, count * width)] {
                        let (now, later) = saved.split_at(len);
                        to[at..at + len].copy_from_slice(now);
                        saved = later;
                    }
                }
            }
        }
        Ok(())
    }
}
