//! Aligned memory that is asked for once and can be refused.

mod allocations;
mod host_memory;
mod ledger;
mod resident;

pub use allocations::allocations;
pub use host_memory::{HostMemory, host_memory};
pub use ledger::{Bytes, Ledger, Taken, page_bytes, whole_pages};
pub use resident::{Residence, page_faults, settle_code, settle_stack};

use crate::{Error, Result};
use memmap2::MmapMut;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// A fixed number of zeroed `T`s, aligned to 64 bytes at least, given back on drop.
///
/// Pages come from the operating system when they are first touched: a large buffer costs nothing until it is used.
pub struct Buffer<T: Plain> {
    /// Where the elements are in `pages`, which are nobody else's there.
    start: NonNull<T>,
    len: usize,
    pages: Option<Arc<MmapMut>>, // None when `len` is 0.
}

// SAFETY: a buffer owns its elements, as a `Box<[T]>` does, and `Plain` types are `Send` and `Sync`.
unsafe impl<T: Plain> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Buffer<T> {}

/// Types for which every bit pattern, all zeros included, is a value.
///
/// # Safety
/// The type has no padding, no invalid bit pattern, and an alignment of at most a page.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: the integers and floats have no padding and no invalid bit patterns.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for i16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}

impl<T: Plain> Buffer<T> {
    /// `len` zeros in pages of their own. `what` names the buffer in the error.
    pub fn zeroed(what: &'static str, len: usize) -> Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or(Error::NoMemory { what, bytes: usize::MAX })?;
        if bytes == 0 {
            return Ok(Buffer { start: NonNull::dangling(), len, pages: None });
        }
        let mut pages = MmapMut::map_anon(bytes).map_err(|_| Error::NoMemory { what, bytes })?;
        let start = NonNull::new(pages.as_mut_ptr().cast()).ok_or(Error::NoMemory { what, bytes })?;
        Ok(Buffer { start, len, pages: Some(Arc::new(pages)) })
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// The same of a buffer that was made by [`Buffer::zeroed`], in whole pages.
    pub fn held(&self) -> u64 {
        whole_pages(self.bytes() as u64)
    }

    /// The elements as they lie in memory.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: as in `deref`; `Plain` types have no padding.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.bytes()) }
    }

    /// The elements as they lie in memory, to be changed.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref_mut`; whatever is written is a `T`, since `Plain` makes every pattern valid.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.bytes()) }
    }

    /// A part, to be written through a buffer that several threads have.
    ///
    /// # Safety
    /// Nobody else reads or writes the part as long as the result lives, nor has a reference to it.
    #[allow(clippy::mut_from_ref)] // That is its purpose.
    pub unsafe fn shared_mut(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the line above, zeroed or written, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(range.start), range.len()) }
    }
}

/// What [`Buffer::zeroed`] takes for so many `T`s: whole pages.
pub fn buffer_bytes<T: Plain>(len: u64) -> u64 {
    whole_pages(len.saturating_mul(size_of::<T>() as u64))
}

impl<T: Plain> std::ops::Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `start` has `len` zeroed or written `T`s that `pages` keeps alive; `Plain` makes every pattern valid.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> std::ops::DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` makes the borrow unique, since no two buffers overlap.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// Memory for many buffers that will all be used: in huge pages where the kernel has them, for fewer page faults and TLB
/// misses, also where each buffer is smaller than such a page.
pub struct Arena {
    what: &'static str,
    rest: Buffer<u8>,
}

impl Arena {
    /// Room for buffers of these lengths in bytes, in any order.
    pub fn new(what: &'static str, residence: Residence, lens: impl Iterator<Item = usize>) -> Result<Self> {
        let bytes = lens.map(Self::reserved).fold(0usize, usize::saturating_add);
        let mut rest = Buffer::zeroed(what, bytes)?;
        #[cfg(target_os = "linux")]
        if let Some(pages) = &rest.pages {
            // Advice: it may be refused.
            let _ = pages.advise(memmap2::Advice::HugePage);
        }
        rest.settle(what, residence)?;
        Ok(Arena { what, rest })
    }

    /// What [`Arena::new`] takes for buffers of these lengths.
    pub fn held(lens: impl Iterator<Item = usize>) -> u64 {
        whole_pages(lens.map(Self::reserved).fold(0usize, usize::saturating_add) as u64)
    }

    /// Buffers begin at cache lines.
    fn reserved(len: usize) -> usize {
        len.checked_next_multiple_of(64).unwrap_or(usize::MAX)
    }

    /// A buffer of so many bytes, zeroed; it keeps the arena's memory alive.
    pub fn take(&mut self, len: usize) -> Result<Buffer<u8>> {
        let bytes = Self::reserved(len);
        if bytes > self.rest.len {
            return Err(Error::NoMemory { what: self.what, bytes: len });
        }
        let taken = Buffer { start: self.rest.start, len, pages: self.rest.pages.clone() };
        // SAFETY: at most one past the end, by the check above. What is left no longer overlaps what was taken.
        self.rest.start = unsafe { self.rest.start.add(bytes) };
        self.rest.len -= bytes;
        Ok(taken)
    }
}

/// A slice whose parts are written by several threads, no part by two.
pub struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    of: PhantomData<&'a mut [T]>,
}

// SAFETY: `range` is unsafe and its callers promise that no two threads hold overlapping parts.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// All of it.
    pub fn new(slice: &'a mut [T]) -> Self {
        Disjoint { start: slice.as_mut_ptr(), len: slice.len(), of: PhantomData }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// Nobody else holds a part that overlaps.
    #[allow(clippy::mut_from_ref)] // That is its purpose.
    pub unsafe fn range(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the line above, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_an_arena_are_apart_and_outlive_it() {
        let lens = [1, 64, 65, 0, 5000];
        let mut arena = Arena::new("test", Residence::Lazy, lens.into_iter()).expect("memory");
        let mut buffers = lens.map(|len| arena.take(len).expect("room"));
        assert!(matches!(arena.take(1), Err(Error::NoMemory { what: "test", bytes: 1 })));
        drop(arena);
        for (i, buffer) in buffers.iter_mut().enumerate() {
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(i as u8 + 1);
        }
        for (i, (buffer, len)) in buffers.iter().zip(lens).enumerate() {
            assert!(buffer.len() == len && buffer.iter().all(|byte| *byte == i as u8 + 1));
            assert_eq!(buffer.as_ptr() as usize % 64, if len == 0 { buffer.as_ptr() as usize % 64 } else { 0 });
        }
    }
}
