//! Memory that is there before it is used: touched, or locked.

use super::{Buffer, Plain, page_bytes};
use crate::{Error, Result};

/// Whether pages are made to be there before they are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residence {
    /// When they are first used.
    #[default]
    Lazy,
    /// Touched.
    Touched,
    /// Touched, and kept from being swapped out.
    Locked,
}

impl<T: Plain> Buffer<T> {
    /// Makes all pages be there; what is in them stays. Of an [`super::Arena`]'s buffers nothing is locked beyond its own.
    pub fn settle(&mut self, what: &'static str, residence: Residence) -> Result<()> {
        let bytes = self.bytes();
        if residence == Residence::Lazy || bytes == 0 {
            return Ok(());
        }
        if residence == Residence::Locked {
            lock(self.as_mut_ptr().cast(), bytes, what)?;
        }
        let start = self.as_mut_ptr().cast::<u8>();
        for at in (0..bytes).step_by(page_bytes() as usize) {
            // SAFETY: inside the buffer, which is borrowed for writing; `Plain` types are made of bytes.
            unsafe { start.add(at).write_volatile(start.add(at).read_volatile()) }
        }
        Ok(())
    }
}

/// Keeps pages in memory until they are unmapped.
#[cfg(unix)]
fn lock(start: *const u8, bytes: usize, what: &'static str) -> Result<()> {
    // SAFETY: mapped memory of the caller's; locking changes nothing of it.
    if unsafe { libc::mlock(start.cast(), bytes) } == 0 {
        return Ok(());
    }
    let reason = std::io::Error::last_os_error();
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a place for the answer.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) } == 0;
    #[allow(clippy::unnecessary_cast)] // On some machines it has 32 bits.
    let limit = known.then_some(limit.rlim_cur as u64);
    Err(Error::NotLocked { what, bytes, limit, reason })
}

#[cfg(not(unix))]
fn lock(_: *const u8, _: usize, _: &'static str) -> Result<()> {
    Err(Error::Unsupported("locking memory: not on this system".into()))
}

/// Touches so much of this thread's stack as kernels use.
#[inline(never)]
pub fn settle_stack() {
    let mut stack = [0u8; 48 << 10];
    std::hint::black_box(&mut stack);
}

/// Brings the program's own code and constants into memory, as far as they are in the object that this function is in.
#[cfg(target_os = "linux")]
pub fn settle_code() {
    /// Linux 5.14 and later; elsewhere each page is read.
    const POPULATE_READ: libc::c_int = 22;

    /// # Safety
    /// Called by `dl_iterate_phdr` alone.
    unsafe extern "C" fn settle(info: *mut libc::dl_phdr_info, _: usize, _: *mut libc::c_void) -> libc::c_int {
        // SAFETY: what `dl_iterate_phdr` calls this with.
        let (base, headers) = unsafe {
            let info = &*info;
            (info.dlpi_addr as usize, std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
        };
        let loaded = headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
        let ranges = loaded.map(|header| (base + header.p_vaddr as usize, header.p_memsz as usize, header.p_flags));
        let own = settle_code as fn() as usize;
        if !ranges.clone().any(|(start, len, _)| (start..start + len).contains(&own)) {
            return 0;
        }
        for (start, len, flags) in ranges {
            if flags & libc::PF_R == 0 || flags & libc::PF_W != 0 {
                continue; // What is written to is copied then, and was by now.
            }
            let page = page_bytes() as usize;
            let (start, end) = (start / page * page, start + len);
            // SAFETY: a segment of this object, mapped as long as its code runs; asks for its pages.
            if unsafe { libc::madvise(start as *mut libc::c_void, end - start, POPULATE_READ) } == 0 {
                continue;
            }
            for at in (start..end).step_by(page) {
                // SAFETY: in a segment that may be read.
                unsafe { (at as *const u8).read_volatile() };
            }
        }
        1
    }
    // SAFETY: `settle` keeps to what it is called with, and does not unwind.
    unsafe { libc::dl_iterate_phdr(Some(settle), std::ptr::null_mut()) };
}

/// Elsewhere code comes when it is first run.
#[cfg(not(target_os = "linux"))]
pub fn settle_code() {}

/// How often this thread has met a page that was not there, since it began.
#[cfg(target_os = "linux")]
pub fn page_faults() -> u64 {
    // SAFETY: numbers, for which 0 is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a place for the answer.
    let known = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &mut usage) } == 0;
    if known { (usage.ru_minflt as u64).wrapping_add(usage.ru_majflt as u64) } else { 0 }
}

/// Elsewhere nobody counts.
#[cfg(not(target_os = "linux"))]
pub fn page_faults() -> u64 {
    0
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn settled_pages_are_there_and_keep_what_is_in_them() {
        let (len, page) = (1 << 20, page_bytes() as usize);
        let faults = |residence| {
            let mut buffer = Buffer::<u8>::zeroed("test", len).expect("memory");
            buffer[5] = 7;
            buffer.settle("test", residence).expect("no limit is met");
            let before = page_faults();
            buffer.iter_mut().step_by(page).for_each(|byte| *byte += 1);
            assert!(buffer[0] == 1 && buffer[5] == 7);
            page_faults() - before
        };
        // An emulator's own faults are counted too, now and then.
        assert_eq!((0..5).map(|_| faults(Residence::Touched)).min(), Some(0));
        assert!(faults(Residence::Lazy) > 0, "or the kernel gave one huge page, and this test sees nothing");
        settle_stack();
        settle_code();
    }
}
