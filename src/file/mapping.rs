//! The bytes of a file: mapped, read, or already in memory.

use crate::tensor::{Buffer, Bytes, Ledger, Taken, whole_pages};
use crate::{Error, Result};
use memmap2::{Mmap, MmapOptions};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

/// The bytes of a file.
pub(super) enum FileBytes {
    Mapped(Mmap),
    Read(Buffer<u8>, #[expect(dead_code, reason = "held until the bytes are gone")] Taken),
    Static(&'static [u8]),
}

impl FileBytes {
    /// Opens a regular file that is not empty, and maps it or reads all of it.
    ///
    /// Of a mapped file the caller promises that nobody shortens it as long as it is open: reading behind its new end is a
    /// bus error, which no library can turn into an [`Error`]. Replacing it by a rename, or deleting it, is fine.
    pub(super) fn open(path: &Path, mmap: bool, ledger: &Arc<Ledger>) -> Result<FileBytes> {
        let failed = |error: &io::Error| Error::io(path.display(), error);
        let mut file = open_without_waiting(path).map_err(|error| failed(&error))?;
        let about = file.metadata().map_err(|error| failed(&error))?;
        if about.is_dir() {
            return Err(Error::Io {
                message: format!("{}: a directory, not a file", path.display()),
                errno: libc::EISDIR,
            });
        }
        if !about.is_file() {
            let message = format!("{}: a pipe, socket or device, not a regular file", path.display());
            return Err(Error::Io { message, errno: libc::ESPIPE });
        }
        if about.len() == 0 {
            return Err(Error::Format("the file is empty".into()));
        }
        let no_memory = Error::NoMemory { what: "the model file", bytes: usize::MAX };
        let Ok(len) = usize::try_from(about.len()) else { return Err(no_memory) };
        if !mmap {
            let taken = ledger.take("the model file", Bytes::host(whole_pages(len as u64)))?;
            let mut bytes = Buffer::zeroed("the model file", len)?;
            // A file that shrinks meanwhile is an error here.
            file.read_exact(&mut bytes).map_err(|error| failed(&error))?;
            return Ok(FileBytes::Read(bytes, taken));
        }
        // SAFETY: the mapping is read-only, and every parser of its bytes checks what it reads when it reads it; that
        // nobody shortens or rewrites the file meanwhile is the promise in this function's description.
        match unsafe { MmapOptions::new().len(len).map(&file) } {
            Ok(map) => Ok(FileBytes::Mapped(map)),
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                Err(Error::NoMemory { what: "the mapping of the model file", bytes: len })
            }
            Err(error) => Err(failed(&error)),
        }
    }

    /// Tells the system that these bytes, when they are part of this mapping, are not needed again soon.
    pub(super) fn release(&self, bytes: &[u8]) {
        #[cfg(target_os = "linux")]
        if let FileBytes::Mapped(map) = self {
            // SAFETY: asks for a number.
            let page_bytes = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(0);
            if let Some((offset, len)) = pages_inside(map, bytes, page_bytes) {
                // SAFETY: the range is inside this mapping of a file, which is shared and read-only: pages that were
                // dropped come back with the same content when they are touched. It is advice: its failure is no error.
                let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, len) };
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = bytes; // Elsewhere the advice may change what the pages hold.
    }
}

impl std::ops::Deref for FileBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            FileBytes::Mapped(map) => map,
            FileBytes::Read(buffer, _) => buffer,
            FileBytes::Static(bytes) => bytes,
        }
    }
}

/// The pages of `map` that lie wholly in `bytes`, as offset and length; None when there are none.
#[cfg(target_os = "linux")]
fn pages_inside(map: &[u8], bytes: &[u8], page_bytes: usize) -> Option<(usize, usize)> {
    let start = bytes.as_ptr().addr().checked_sub(map.as_ptr().addr())?;
    let end = start.checked_add(bytes.len()).filter(|&end| end <= map.len())?;
    let first = start.checked_next_multiple_of(page_bytes)?;
    // The last page of the file may be a part of one, with nothing behind it.
    let last = if end == map.len() { end } else { end - end % page_bytes };
    (first < last).then(|| (first, last - first))
}

/// Opens for reading, but never waits for the writer of a pipe.
fn open_without_waiting(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    }
    options.open(path)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_pages_wholly_inside_are_released() {
        let map = vec![0u8; 10_000];
        let pages = |start, end| pages_inside(&map, &map[start..end], 4096);
        assert_eq!(pages(0, 4095), None);
        assert_eq!(pages(1, 8191), None);
        assert_eq!(pages(0, 4096), Some((0, 4096)));
        assert_eq!(pages(1, 8192), Some((4096, 4096)));
        assert_eq!(pages(4096, 10_000), Some((4096, 5904)));
        assert_eq!(pages(8193, 10_000), None);
        assert_eq!(pages(5000, 5000), None);
        assert_eq!(pages_inside(&map, &map[..4096], 0), None);
    }

    #[test]
    fn bytes_outside_the_mapping_are_not_released() {
        let bytes = vec![0u8; 30_000];
        assert_eq!(pages_inside(&bytes[10_000..20_000], &bytes[..9_000], 4096), None);
        assert_eq!(pages_inside(&bytes[10_000..20_000], &bytes[15_000..25_000], 4096), None);
        assert_eq!(pages_inside(&bytes[..10_000], &bytes[20_000..], 4096), None);
    }
}
