//! Aligned memory that is asked for once and can be refused.

use crate::{Error, Result};
use memmap2::MmapMut;
use std::marker::PhantomData;

/// A fixed number of zeroed `T`s in pages of their own (so aligned to 4 KiB), given back on drop.
///
/// Pages come from the operating system when they are first touched: a large buffer costs nothing until it is used.
pub struct Buffer<T: Plain> {
    pages: Option<MmapMut>, // None when `len` is 0.
    len: usize,
    of: PhantomData<T>,
}

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
    /// `len` zeros. `what` names the buffer in the error.
    pub fn zeroed(what: &'static str, len: usize) -> Result<Self> {
        Self::with_advice(what, len, false)
    }

    /// `len` zeros that will all be used: in huge pages where the kernel has them, for fewer page faults and TLB misses.
    pub fn zeroed_huge(what: &'static str, len: usize) -> Result<Self> {
        Self::with_advice(what, len, true)
    }

    fn with_advice(what: &'static str, len: usize, huge: bool) -> Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or(Error::NoMemory { what, bytes: usize::MAX })?;
        let pages = match bytes {
            0 => None,
            _ => Some(MmapMut::map_anon(bytes).map_err(|_| Error::NoMemory { what, bytes })?),
        };
        #[cfg(not(target_os = "linux"))]
        let _ = huge;
        #[cfg(target_os = "linux")]
        if huge {
            // Advice: it may be refused.
            let _ = pages.as_ref().map(|pages| pages.advise(memmap2::Advice::HugePage));
        }
        Ok(Buffer { pages, len, of: PhantomData })
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T: Plain> std::ops::Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match &self.pages {
            None => &[],
            // SAFETY: the pages hold `len` zeroed or written `T`s, page-aligned, and `Plain` makes every pattern valid.
            Some(pages) => unsafe { std::slice::from_raw_parts(pages.as_ptr().cast(), self.len) },
        }
    }
}

impl<T: Plain> std::ops::DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.pages {
            None => &mut [],
            // SAFETY: as in `deref`, and `&mut self` makes the borrow unique.
            Some(pages) => unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), self.len) },
        }
    }
}
