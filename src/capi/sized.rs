//! Structs that grow at the end and say their size in the first word.
//!
//! Input: bytes that this library does not know must be zero (else the caller relies on something that would be
//! ignored), fields that the caller does not have get their defaults. Output: only what both know is written.

use crate::{Error, Result};

/// A struct's size that is more than this is a variable that was never set.
const SIZE_MAX: usize = 4096;

/// A `#[repr(C)]` struct whose first field is `uint32_t struct_size`; implemented by [`sized!`], which proves the rest.
///
/// # Safety
/// `Self` has no padding, and any bytes are a value of it (integers, floats, pointers, `Option` of function pointers).
pub(super) unsafe trait SizedStruct: Copy {
    /// What a field has that the caller does not give. `struct_size` is that of the whole struct.
    const DEFAULT: Self;
    /// Where each field ends.
    const FIELD_ENDS: &'static [usize];
    const NAME: &'static str;
}

/// Implements [`SizedStruct`]; the fields are all of the struct's, in order, else it does not compile.
macro_rules! sized {
    ($type:ident { $($field:ident: $default:expr),+ $(,)? }) => {
        // SAFETY: that the fields touch each other and fill the struct is asserted below; they are C's plain types.
        unsafe impl crate::capi::sized::SizedStruct for $type {
            const DEFAULT: Self = $type { $($field: $default),+ };
            const FIELD_ENDS: &'static [usize] =
                &[$(std::mem::offset_of!($type, $field) + crate::capi::sized::field_size(|s: &$type| &s.$field)),+];
            const NAME: &'static str = stringify!($type);
        }
        const _: () = {
            let mut end = 0;
            $(
                assert!(std::mem::offset_of!($type, $field) == end, "padding before a field");
                end += crate::capi::sized::field_size(|s: &$type| &s.$field);
            )+
            assert!(size_of::<$type>() == end, "padding at the end");
            assert!($type::DEFAULT_SIZE as usize == end && end <= 4096);
        };
        impl $type {
            const DEFAULT_SIZE: u32 = size_of::<$type>() as u32;
        }
    };
}
pub(super) use sized;

/// The size of the field that a projection gives.
pub(super) const fn field_size<S, F>(_: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

/// How many bytes of the struct both sides have, given what the caller says is its size.
fn common<T: SizedStruct>(size: usize) -> Result<usize> {
    let known = size.min(size_of::<T>());
    if size > SIZE_MAX || !T::FIELD_ENDS.contains(&known) {
        let reason = "not a size this struct ever had: was it set up by its _init macro?";
        return Err(Error::argument(format!("{}.struct_size is {size}: {reason}", T::NAME)));
    }
    Ok(known)
}

/// The `struct_size` that the caller wrote at the start of the struct.
///
/// # Safety
/// If not NULL, `pointer` has a readable `uint32_t`.
unsafe fn size_said<T: SizedStruct>(pointer: *const T) -> Result<usize> {
    if pointer.is_null() {
        return Err(Error::argument(format!("{}: NULL", T::NAME)));
    }
    if !pointer.is_aligned() {
        return Err(Error::argument(format!("{}: misaligned pointer", T::NAME)));
    }
    // SAFETY: not NULL, aligned, readable by the contract.
    Ok(unsafe { pointer.cast::<u32>().read() } as usize)
}

/// Reads a struct, of an older or newer caller too.
///
/// # Safety
/// If not NULL, `pointer` has as many readable bytes as its `struct_size` says.
pub(super) unsafe fn read<T: SizedStruct>(pointer: *const T) -> Result<T> {
    // SAFETY: the contract.
    let size = unsafe { size_said(pointer)? };
    let known = common::<T>(size)?;
    for at in known..size {
        // SAFETY: within the caller's struct, by the contract.
        if unsafe { pointer.cast::<u8>().add(at).read() } != 0 {
            let text = format!("{}: byte {at} is set, this library knows the first {known}", T::NAME);
            return Err(Error::Unsupported(text));
        }
    }
    let mut value = T::DEFAULT;
    // SAFETY: `known` bytes are within both; any bytes are a T (trait contract).
    unsafe { (&raw mut value).cast::<u8>().copy_from_nonoverlapping(pointer.cast(), known) };
    Ok(value)
}

/// Reads a struct, or takes the defaults when it is left out by giving NULL.
///
/// # Safety
/// As for [`read`].
pub(super) unsafe fn read_optional<T: SizedStruct>(pointer: *const T) -> Result<T> {
    // SAFETY: the contract.
    if pointer.is_null() { Ok(T::DEFAULT) } else { unsafe { read(pointer) } }
}

/// What the `_init` macros call: zeros and defaults, as much as the caller's struct has. A size that no struct has makes
/// one that every function refuses.
///
/// # Safety
/// If not NULL, `pointer` has `size` writable bytes.
pub(super) unsafe fn init<T: SizedStruct>(pointer: *mut T, size: usize) {
    if pointer.is_null() || !pointer.is_aligned() || size < size_of::<u32>() {
        return;
    }
    if size > SIZE_MAX {
        // SAFETY: at least a `uint32_t` by the contract.
        return unsafe { pointer.cast::<u32>().write(0) };
    }
    let known = T::FIELD_ENDS.iter().copied().filter(|&end| end <= size).max().unwrap_or(0);
    let value = T::DEFAULT;
    // SAFETY: `size` bytes by the contract, of which `known` <= size_of::<T>() come from the default.
    unsafe {
        pointer.cast::<u8>().write_bytes(0, size);
        pointer.cast::<u8>().copy_from_nonoverlapping((&raw const value).cast(), known);
        pointer.cast::<u32>().write(size as u32);
    }
}

/// A struct of the caller's, to be written once: as much of it as the caller has.
pub(super) struct OutStruct<T> {
    pointer: *mut T,
    known: usize,
}

impl<T: SizedStruct> OutStruct<T> {
    /// Checks the pointer and the size; nothing is written yet.
    ///
    /// # Safety
    /// If not NULL, `pointer` has as many writable bytes as its `struct_size` says, until the value was used.
    pub(super) unsafe fn new(pointer: *mut T) -> Result<OutStruct<T>> {
        // SAFETY: the contract.
        let known = common::<T>(unsafe { size_said(pointer)? })?;
        Ok(OutStruct { pointer, known })
    }

    /// Writes all fields that the caller has, except `struct_size`, which stays the caller's.
    pub(super) fn write(self, value: &T) {
        let start = size_of::<u32>();
        // SAFETY: `known` bytes are within both by the contract of `new`, and at least `start`: no field ends earlier.
        unsafe {
            let from = std::ptr::from_ref(value).cast::<u8>().add(start);
            self.pointer.cast::<u8>().add(start).copy_from_nonoverlapping(from, self.known - start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct sample {
        struct_size: u32,
        small: u32,
        large: u64,
    }
    sized!(sample { struct_size: sample::DEFAULT_SIZE, small: 7, large: 9 });

    /// A newer caller's struct.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Newer {
        known: sample,
        added: [u32; 2],
    }

    fn newer(struct_size: u32, added: u32) -> Newer {
        Newer { known: sample { struct_size, small: 1, large: 2 }, added: [0, added] }
    }

    fn read_newer(given: &Newer) -> Result<sample> {
        // SAFETY: all tests below give sizes of at most a `Newer`, or such that nothing past the first word is read.
        unsafe { read(std::ptr::from_ref(given).cast::<sample>()) }
    }

    #[test]
    fn fields_the_caller_does_not_have_get_defaults() {
        assert_eq!(read_newer(&newer(4, 5)).unwrap(), sample { struct_size: 4, small: 7, large: 9 });
        assert_eq!(read_newer(&newer(8, 5)).unwrap(), sample { struct_size: 8, small: 1, large: 9 });
        assert_eq!(read_newer(&newer(16, 5)).unwrap(), sample { struct_size: 16, small: 1, large: 2 });
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { read_optional::<sample>(std::ptr::null()) }.unwrap(), sample::DEFAULT);
    }

    #[test]
    fn bytes_we_do_not_know_must_be_zero() {
        assert_eq!(read_newer(&newer(24, 0)).unwrap().large, 2);
        assert_eq!(read_newer(&newer(20, 5)).unwrap().large, 2);
        assert!(matches!(read_newer(&newer(24, 5)), Err(Error::Unsupported(text)) if text.contains("byte 20")));
    }

    #[test]
    fn sizes_that_no_version_had_are_refused() {
        for size in [0, 1, 3, 5, 7, 9, 12, 15, 4097, u32::MAX] {
            assert!(matches!(read_newer(&newer(size, 0)), Err(Error::Argument(_))), "{size}");
        }
        // SAFETY: NULL is allowed.
        assert!(matches!(unsafe { read::<sample>(std::ptr::null()) }, Err(Error::Argument(_))));
    }

    #[test]
    fn init_and_write_keep_to_the_callers_size() {
        for (size, small, large, added) in [(4, 1, 2, 3), (8, 7, 2, 3), (16, 7, 9, 3), (24, 7, 9, 0)] {
            let mut given = newer(77, 3);
            // SAFETY: `size` is at most that of `given`.
            unsafe { init((&raw mut given).cast::<sample>(), size) };
            let wanted = Newer { known: sample { struct_size: size as u32, small, large }, added: [0, added] };
            assert_eq!(given, wanted, "init {size}");

            let value = sample { struct_size: 16, small: 70, large: 90 };
            let known = sample {
                struct_size: size as u32,
                small: if size < 8 { small } else { 70 },
                large: if size < 16 { large } else { 90 },
            };
            // SAFETY: `struct_size` is that of `given` or less.
            unsafe { OutStruct::new((&raw mut given).cast::<sample>()) }.unwrap().write(&value);
            assert_eq!(given, Newer { known, added: [0, added] }, "write {size}");
        }
        let mut given = newer(77, 3);
        // SAFETY: more than SIZE_MAX: only the first word is written.
        unsafe { init((&raw mut given).cast::<sample>(), 1 << 20) };
        assert_eq!(given, newer(0, 3));
    }
}
