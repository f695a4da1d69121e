//! Memory of a device, and memory of the host that a device uses, too.

use super::device::Context;
use super::driver::{DevicePointer, OUT_OF_MEMORY};
use crate::tensor::whole_pages;
use crate::{Error, Result};
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Memory of a device, given back on drop, which waits for what runs there. Not zeroed.
pub struct DeviceBuffer {
    context: Arc<Context>,
    pointer: DevicePointer,
    len: usize,
}

impl DeviceBuffer {
    /// Devices give memory in units of this size. Small buffers may share one; they are counted as if they did not.
    const UNIT: u64 = 2 << 20;

    /// What a buffer of `len` bytes takes.
    pub fn held_for(len: u64) -> u64 {
        len.checked_next_multiple_of(Self::UNIT).unwrap_or(u64::MAX)
    }

    /// What this one takes.
    pub fn held(&self) -> u64 {
        Self::held_for(self.len as u64)
    }

    /// `len` bytes, aligned to 256 at least. `what` names the buffer in the error.
    pub fn new(context: &Arc<Context>, what: &'static str, len: usize) -> Result<DeviceBuffer> {
        let mut pointer = 0;
        if len > 0 {
            // SAFETY: one address; `drop` gives the memory back.
            let code = context.code("cuMemAlloc", |driver| unsafe { (driver.memory_alloc)(&mut pointer, len) })?;
            if code == OUT_OF_MEMORY {
                return Err(Error::DeviceMemory { what, bytes: len });
            }
            context.check(code, "cuMemAlloc")?;
        }
        Ok(DeviceBuffer { context: context.clone(), pointer, len })
    }

    /// Its address on the device; 0 when it has no bytes.
    pub fn pointer(&self) -> DevicePointer {
        self.pointer
    }

    /// In bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of `len` bytes at `offset`, which must be inside.
    pub(super) fn at(&self, offset: usize, len: usize) -> Result<DevicePointer> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.pointer + offset as u64),
            _ => Err(Error::Internal(format!("bytes {offset} + {len} of a device buffer of {}", self.len).into())),
        }
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated by `new` in this context, not freed before.
            self.context.release("cuMemFree", |driver| unsafe { (driver.memory_free)(self.pointer) });
        }
    }
}

/// Memory of the host that stays where it is, so that a device can copy from it, write to it and read it on its own.
/// Zeroed. The device must be done with it when it is dropped.
pub struct PinnedBuffer {
    context: Arc<Context>,
    start: NonNull<u8>,
    pointer: DevicePointer,
    len: usize,
}

// SAFETY: the memory is the buffer's alone on the host's side; `&self` reaches it by atomics and raw pointers only.
unsafe impl Send for PinnedBuffer {}
// SAFETY: as above.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// Usable from all contexts; mapped into the device's addresses.
    const FLAGS: u32 = 1 | 2;

    /// `len` bytes, at least 1. `what` names the buffer in the error.
    pub fn new(context: &Arc<Context>, what: &'static str, len: usize) -> Result<PinnedBuffer> {
        let mut memory: *mut c_void = std::ptr::null_mut();
        let call = "cuMemHostAlloc";
        // SAFETY: one address; `drop` gives the memory back.
        let code = context.code(call, |driver| unsafe { (driver.host_alloc)(&mut memory, len, Self::FLAGS) })?;
        if code == OUT_OF_MEMORY {
            return Err(Error::NoMemory { what, bytes: len });
        }
        context.check(code, call)?;
        let start = NonNull::new(memory.cast::<u8>()).ok_or(Error::NoMemory { what, bytes: len })?;
        // SAFETY: `len` bytes of a new allocation.
        unsafe { start.as_ptr().write_bytes(0, len) };
        let mut buffer = PinnedBuffer { context: context.clone(), start, pointer: 0, len };
        let call = "cuMemHostGetDevicePointer";
        // SAFETY: mapped memory, allocated above; one address.
        context.call(call, |driver| unsafe { (driver.host_device_pointer)(&mut buffer.pointer, memory, 0) })?;
        Ok(buffer)
    }

    /// What it takes of the host's memory: whole pages.
    pub fn held(&self) -> u64 {
        whole_pages(self.len as u64)
    }

    /// Its address on the device.
    pub fn pointer(&self) -> DevicePointer {
        self.pointer
    }

    /// Its address on the host. What the device writes there arrives at any time until the work has been waited for.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// In bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes: never.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The 32-bit word `index`, read whole, also while a device writes. It must be inside.
    pub fn load(&self, index: usize) -> u32 {
        self.word(index).load(Ordering::Acquire)
    }

    /// Writes the 32-bit word `index`, which must be inside.
    pub fn store(&self, index: usize, value: u32) {
        self.word(index).store(value, Ordering::Release);
    }

    fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.len / size_of::<u32>());
        // SAFETY: inside, aligned because allocations are of pages, alive as long as `self`; the host reaches it through
        // this function or raw pointers, whose users answer for themselves.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().cast::<u32>().add(index)) }
    }

    /// What is in it.
    ///
    /// # Safety
    /// Nothing writes to it while the result lives, no device either.
    pub unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: zeroed or written, alive as long as `self`; the rest is the contract.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// What is in it, to be changed.
    ///
    /// # Safety
    /// Nothing else reads or writes it while the result lives, no device either.
    pub unsafe fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes it unique on the host.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, not freed before.
        self.context.release("cuMemFreeHost", |driver| unsafe { (driver.host_free)(self.start.as_ptr().cast()) });
    }
}
