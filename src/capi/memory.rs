//! Memory of the caller: checked on the way in, written once on the way out.

use super::status::{EDGELLM_OK, Failure, edgellm_status};
use super::types::edgellm_token;
use crate::{Error, Result};
use std::ffi::{CStr, c_char};

/// As a length: the text is NUL-terminated. (`EDGELLM_NUL` in the header.)
const NUL: usize = usize::MAX;

/// No caller means more elements than this: such a length is a mistake, and is not read.
const LEN_MAX: usize = i32::MAX as usize;

/// `count` bytes at `pointer`, which may be more than [`LEN_MAX`].
///
/// # Safety
/// As for [`slice`].
pub(super) unsafe fn blob<'a>(pointer: *const u8, count: usize, what: &str) -> Result<&'a [u8]> {
    if pointer.is_null() || count > isize::MAX as usize {
        return Err(Error::argument(format!("{what}: NULL, or a length of more than there is memory ({count})")));
    }
    // SAFETY: not NULL, readable by the contract, no longer than an isize.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// `count` values at `pointer`, which may be NULL when there are none.
///
/// # Safety
/// If not NULL, `pointer` has `count` readable values that live and do not change for `'a`.
pub(super) unsafe fn slice<'a, T>(pointer: *const T, count: usize, what: &str) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if count > LEN_MAX {
        return Err(Error::argument(format!("{what}: a length of {count}, at most {LEN_MAX} allowed")));
    }
    if pointer.is_null() {
        return Err(Error::argument(format!("{what}: NULL with a length of {count}")));
    }
    if !pointer.is_aligned() {
        return Err(Error::argument(format!("{what}: misaligned pointer")));
    }
    // SAFETY: not NULL, aligned, readable by the contract, and LEN_MAX values of our types fit an isize.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// Token ids. A negative one becomes a number that no vocabulary reaches, and is refused where ids are checked.
///
/// # Safety
/// As for [`slice`].
pub(super) unsafe fn tokens<'a>(pointer: *const edgellm_token, count: usize) -> Result<&'a [u32]> {
    // SAFETY: i32 and u32 have the same layout and every bit pattern is both; the rest is the contract.
    unsafe { slice(pointer.cast::<u32>(), count, "tokens") }
}

/// The bytes of a text; `len` may be `EDGELLM_NUL`.
///
/// # Safety
/// As for [`slice`]; with `EDGELLM_NUL`, `pointer` is NULL or a NUL-terminated string.
pub(super) unsafe fn bytes<'a>(pointer: *const c_char, len: usize, what: &str) -> Result<&'a [u8]> {
    if len != NUL {
        // SAFETY: the contract.
        return unsafe { slice(pointer.cast(), len, what) };
    }
    if pointer.is_null() {
        return Err(Error::argument(format!("{what}: NULL")));
    }
    // SAFETY: NUL-terminated by the contract.
    Ok(unsafe { CStr::from_ptr(pointer) }.to_bytes())
}

/// A text, which must be UTF-8.
///
/// # Safety
/// As for [`bytes`].
pub(super) unsafe fn text<'a>(pointer: *const c_char, len: usize, what: &str) -> Result<&'a str> {
    // SAFETY: the contract.
    let bytes = unsafe { bytes(pointer, len, what)? };
    utf8(bytes, what)
}

/// A text that may be left out by giving NULL.
///
/// # Safety
/// As for [`bytes`].
pub(super) unsafe fn optional_text<'a>(pointer: *const c_char, len: usize, what: &str) -> Result<Option<&'a str>> {
    if pointer.is_null() && (len == 0 || len == NUL) {
        return Ok(None);
    }
    // SAFETY: the contract.
    unsafe { text(pointer, len, what).map(Some) }
}

/// The same bytes as text.
pub(super) fn utf8<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str> {
    std::str::from_utf8(bytes)
        .map_err(|error| Error::argument(format!("{what}: not UTF-8 at byte {}", error.valid_up_to())))
}

/// Refuses flags that this version does not know.
pub(super) fn check_flags(flags: u32, known: u32, what: &str) -> Result<()> {
    match flags & !known {
        0 => Ok(()),
        unknown => Err(Error::argument(format!("{what}: unknown flag {unknown:#x}"))),
    }
}

/// One variable of the caller's, to be written once.
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Checks the pointer; nothing is written yet.
    ///
    /// # Safety
    /// If not NULL, `pointer` is writable until the value was used.
    pub(super) unsafe fn new(pointer: *mut T, what: &str) -> Result<Out<T>> {
        if pointer.is_null() {
            return Err(Error::argument(format!("{what}: NULL")));
        }
        // SAFETY: the contract.
        Ok(unsafe { Out::optional(pointer, what)? })
    }

    /// The same for a variable that may be left out by giving NULL.
    ///
    /// # Safety
    /// As for [`Out::new`].
    pub(super) unsafe fn optional(pointer: *mut T, what: &str) -> Result<Out<T>> {
        if !pointer.is_aligned() {
            return Err(Error::argument(format!("{what}: misaligned pointer")));
        }
        Ok(Out(pointer))
    }

    /// Writes, if there is a variable. What was in it is not looked at.
    pub(super) fn write(&self, value: T) {
        if !self.0.is_null() {
            // SAFETY: aligned (checked), writable (the contract of `new`).
            unsafe { self.0.write(value) }
        }
    }
}

/// A buffer of the caller's and the variable that takes how much of it was, or would have to be, used.
pub(super) struct Buffer<T> {
    pointer: *mut T,
    capacity: usize,
    len: Out<usize>,
}

impl Buffer<u8> {
    /// Writes the length that is needed and, if there is room for it, gives what takes the bytes, part by part.
    pub(super) fn room(self, needed: usize) -> Result<Room, Failure> {
        self.len.write(needed);
        match needed <= self.capacity {
            true => Ok(Room { pointer: self.pointer, left: needed }),
            false => Err(Failure::Buffer { needed, capacity: self.capacity }),
        }
    }
}

/// What is left of a caller's buffer.
pub(super) struct Room {
    pointer: *mut u8,
    left: usize,
}

impl Room {
    /// Appends bytes of ours.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() > self.left {
            return Err(Error::Internal("more bytes than were announced".into()));
        }
        // SAFETY: within what `Buffer::new` was promised, by the line above; memory of ours, so the two do not overlap. With
        // no bytes the pointer may be NULL, which a copy of nothing allows.
        unsafe {
            self.pointer.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            self.pointer = self.pointer.add(bytes.len());
        }
        self.left -= bytes.len();
        Ok(())
    }
}

impl<T: Copy> Buffer<T> {
    /// Checks the pointers; nothing is written yet. NULL with a capacity of 0 asks for the length.
    ///
    /// # Safety
    /// If not NULL, `pointer` has room for `capacity` values and `len` for one, until the value was used.
    pub(super) unsafe fn new(pointer: *mut T, capacity: usize, len: *mut usize) -> Result<Buffer<T>> {
        // SAFETY: the contract.
        let len = unsafe { Out::new(len, "n")? };
        if capacity > isize::MAX as usize / size_of::<T>() {
            return Err(Error::argument(format!("cap: {capacity} is more than there is memory")));
        }
        if capacity > 0 && pointer.is_null() {
            return Err(Error::argument(format!("buffer: NULL with a capacity of {capacity}")));
        }
        if !pointer.is_aligned() {
            return Err(Error::argument("buffer: misaligned pointer"));
        }
        Ok(Buffer { pointer, capacity, len })
    }

    /// Writes all of `values` and their number; if they do not fit, the number alone.
    pub(super) fn write(self, values: &[T]) -> Result<edgellm_status, Failure> {
        let fits = values.len() <= self.capacity;
        if fits && !values.is_empty() {
            // SAFETY: not NULL because `capacity` > 0, aligned, with room by the contract of `new`. `values` is memory
            // of ours, so the two do not overlap.
            unsafe { self.pointer.copy_from_nonoverlapping(values.as_ptr(), values.len()) }
        }
        self.len.write(values.len());
        if fits { Ok(EDGELLM_OK) } else { Err(Failure::Buffer { needed: values.len(), capacity: self.capacity }) }
    }
}
