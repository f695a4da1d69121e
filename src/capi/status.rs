//! Status codes, and the text that goes with the last failure of a thread.

use super::guard::guard;
use super::text::Text;
use crate::Error;
use std::cell::RefCell;
use std::ffi::{CStr, c_char};
use std::fmt;

/// What a call came to: 0 = done, above 0 = not an error, below 0 = error. Numbers are never reused.
/// Not a C enum, whose size would depend on -fshort-enums.
pub type edgellm_status = i32;

/// Done.
pub const EDGELLM_OK: i32 = 0;
/// Generation is over: see event.finish.
pub const EDGELLM_END: i32 = 1;
/// The deadline came first, nothing is lost: call again.
pub const EDGELLM_AGAIN: i32 = 2;
/// An argument is wrong: NULL, misaligned, a bad length, bad UTF-8, an unknown flag, not a handle of that kind.
pub const EDGELLM_E_ARG: i32 = -1;
/// The call is not allowed now.
pub const EDGELLM_E_STATE: i32 = -2;
/// Another thread is inside this session.
pub const EDGELLM_E_BUSY: i32 = -3;
/// The buffer is too small: *n says what is needed, nothing else was written.
pub const EDGELLM_E_BUFFER: i32 = -4;
/// Memory of the host could not be had, or load_params.memory_limit is not enough.
pub const EDGELLM_E_NOMEM: i32 = -5;
/// Memory of the device could not be had.
pub const EDGELLM_E_DEVICE_MEM: i32 = -6;
/// The operating system refused: edgellm_last_errno() has its code.
pub const EDGELLM_E_IO: i32 = -7;
/// The file is damaged or hostile.
pub const EDGELLM_E_FORMAT: i32 = -8;
/// The file is fine, this build cannot run it; or the caller's struct is newer and uses what it added.
pub const EDGELLM_E_UNSUPPORTED: i32 = -9;
/// A checksum or signature does not match.
pub const EDGELLM_E_INTEGRITY: i32 = -10;
/// The context is full.
pub const EDGELLM_E_CONTEXT: i32 = -11;
/// Cancelled, by edgellm_session_cancel, edgellm_session_free or on_progress.
pub const EDGELLM_E_CANCELLED: i32 = -12;
/// A grammar was rejected, or cannot go on.
pub const EDGELLM_E_GRAMMAR: i32 = -13;
/// A saved state belongs to another model, layout or version.
pub const EDGELLM_E_MISMATCH: i32 = -14;
/// The device's driver is missing, the device was lost, or a kernel failed.
pub const EDGELLM_E_DEVICE: i32 = -15;
/// The handle was made before fork() and used in the child.
pub const EDGELLM_E_FORKED: i32 = -16;
/// A bug of ours, caught: the session can only be freed.
pub const EDGELLM_E_INTERNAL: i32 = -99;

/// Why a call of the C API failed: an [`Error`] of the crate, or a caller's buffer that is too small.
#[derive(Debug)]
pub(super) enum Failure {
    Error(Error),
    Buffer { needed: usize, capacity: usize },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Error(error)
    }
}

impl Failure {
    /// The status that C sees.
    pub(super) fn status(&self) -> edgellm_status {
        match self {
            Failure::Buffer { .. } => EDGELLM_E_BUFFER,
            Failure::Error(error) => match error {
                Error::Argument(_) => EDGELLM_E_ARG,
                Error::State(_) => EDGELLM_E_STATE,
                Error::Busy => EDGELLM_E_BUSY,
                Error::NoMemory { .. } | Error::MemoryLimit { .. } | Error::NotLocked { .. } => EDGELLM_E_NOMEM,
                Error::DeviceMemory { .. } => EDGELLM_E_DEVICE_MEM,
                Error::Io { .. } => EDGELLM_E_IO,
                Error::Format(_) => EDGELLM_E_FORMAT,
                Error::Unsupported(_) => EDGELLM_E_UNSUPPORTED,
                Error::Integrity(_) => EDGELLM_E_INTEGRITY,
                Error::Mismatch(_) => EDGELLM_E_MISMATCH,
                Error::Context { .. } => EDGELLM_E_CONTEXT,
                Error::Grammar(_) => EDGELLM_E_GRAMMAR,
                Error::Cancelled => EDGELLM_E_CANCELLED,
                Error::Device(_) => EDGELLM_E_DEVICE,
                Error::Forked => EDGELLM_E_FORKED,
                Error::Internal(_) => EDGELLM_E_INTERNAL,
            },
        }
    }

    fn errno(&self) -> i32 {
        match self {
            Failure::Error(Error::Io { errno, .. }) => *errno,
            _ => 0,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Error(error) => error.fmt(f),
            Failure::Buffer { needed, capacity } => write!(f, "buffer too small: {needed} needed, {capacity} given"),
        }
    }
}

struct Last {
    text: Text<1024>,
    errno: i32,
}

thread_local! {
    // In place and without a destructor: a failing step allocates nothing, and a thread may fail until its very end.
    static LAST: RefCell<Last> = const { RefCell::new(Last { text: Text::new(), errno: 0 }) };
}

/// Records why this thread's call failed.
pub(super) fn record(failure: &Failure) {
    record_text(format_args!("{failure}"), failure.errno());
}

/// Records why this thread's call failed, in words.
pub(super) fn record_text(text: fmt::Arguments, errno: i32) {
    LAST.with(|last| {
        // Held by nobody: only a `Display` that calls the C API could be, and then its outer text wins.
        if let Ok(mut last) = last.try_borrow_mut() {
            last.text.set(text);
            last.errno = errno;
        }
    });
}

fn name(status: edgellm_status) -> &'static CStr {
    match status {
        EDGELLM_OK => c"EDGELLM_OK",
        EDGELLM_END => c"EDGELLM_END",
        EDGELLM_AGAIN => c"EDGELLM_AGAIN",
        EDGELLM_E_ARG => c"EDGELLM_E_ARG",
        EDGELLM_E_STATE => c"EDGELLM_E_STATE",
        EDGELLM_E_BUSY => c"EDGELLM_E_BUSY",
        EDGELLM_E_BUFFER => c"EDGELLM_E_BUFFER",
        EDGELLM_E_NOMEM => c"EDGELLM_E_NOMEM",
        EDGELLM_E_DEVICE_MEM => c"EDGELLM_E_DEVICE_MEM",
        EDGELLM_E_IO => c"EDGELLM_E_IO",
        EDGELLM_E_FORMAT => c"EDGELLM_E_FORMAT",
        EDGELLM_E_UNSUPPORTED => c"EDGELLM_E_UNSUPPORTED",
        EDGELLM_E_INTEGRITY => c"EDGELLM_E_INTEGRITY",
        EDGELLM_E_CONTEXT => c"EDGELLM_E_CONTEXT",
        EDGELLM_E_CANCELLED => c"EDGELLM_E_CANCELLED",
        EDGELLM_E_GRAMMAR => c"EDGELLM_E_GRAMMAR",
        EDGELLM_E_MISMATCH => c"EDGELLM_E_MISMATCH",
        EDGELLM_E_DEVICE => c"EDGELLM_E_DEVICE",
        EDGELLM_E_FORKED => c"EDGELLM_E_FORKED",
        EDGELLM_E_INTERNAL => c"EDGELLM_E_INTERNAL",
        _ => c"unknown status",
    }
}

/// The name of a status, for example "EDGELLM_E_ARG"; "unknown status" for a number that is none.
/// A static string, never NULL. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn edgellm_status_name(status: edgellm_status) -> *const c_char {
    guard(c"unknown status".as_ptr(), || name(status).as_ptr())
}

/// Why this thread's last failed call failed: what was wrong and where. UTF-8, NUL-terminated, at most 1023 bytes.
///
/// Never NULL; "" until a call of this thread fails. Calls that succeed leave it as it is (but edgellm_device_get says
/// why a device is not usable): look at it after a status below 0. The pointer is this thread's own and stays valid as
/// long as the thread; the text behind it changes with this thread's next failed call.
#[unsafe(no_mangle)]
pub extern "C" fn edgellm_last_error() -> *const c_char {
    guard(c"".as_ptr(), || {
        LAST.with(|last| match last.try_borrow() {
            Ok(last) => last.text.as_ptr(),
            Err(_) => c"".as_ptr(),
        })
    })
}

/// The errno of this thread's last failed call when that was EDGELLM_E_IO and the system gave one, else 0.
#[unsafe(no_mangle)]
pub extern "C" fn edgellm_last_errno() -> i32 {
    guard(0, || LAST.with(|last| last.try_borrow().map_or(0, |last| last.errno)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_error() -> String {
        // SAFETY: the function's contract: NUL-terminated, valid as long as this thread.
        unsafe { CStr::from_ptr(edgellm_last_error()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn failures_of_a_device_have_their_statuses() {
        let memory = Failure::Error(Error::DeviceMemory { what: "weights", bytes: 5 });
        assert_eq!((memory.status(), name_of(&memory)), (-6, c"EDGELLM_E_DEVICE_MEM"));
        assert_eq!(memory.to_string(), "no memory of the device for weights: 5 bytes");
        let device = Failure::Error(Error::device("gone"));
        assert_eq!((device.status(), name_of(&device)), (-15, c"EDGELLM_E_DEVICE"));
        assert_eq!(device.to_string(), "gone");
    }

    fn name_of(failure: &Failure) -> &'static CStr {
        name(failure.status())
    }

    #[test]
    fn last_error_is_the_threads_own_and_empty_at_first() {
        let other = std::thread::spawn(|| {
            assert_eq!(last_error(), "");
            record(&Failure::Error(Error::Io { message: "open x: gone".into(), errno: 2 }));
            assert_eq!((last_error().as_str(), edgellm_last_errno()), ("open x: gone", 2));
            record(&Failure::Buffer { needed: 7, capacity: 3 });
            assert_eq!((last_error().as_str(), edgellm_last_errno()), ("buffer too small: 7 needed, 3 given", 0));
        });
        other.join().unwrap();
        assert_eq!(last_error(), "");
    }
}
