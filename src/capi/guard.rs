//! The panic guard that every exported function runs in, and the fork generation.

use super::status::{EDGELLM_E_INTERNAL, Failure, edgellm_status, record, record_text};
use super::text::Text;
use crate::{Error, Result};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

thread_local! {
    static GUARDED: Cell<u32> = const { Cell::new(0) };
    static PANIC: RefCell<Text<512>> = const { RefCell::new(Text::new()) };
}

/// Runs the body of an exported function; a panic in it becomes `otherwise`.
pub(super) fn guard<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    GUARDED.set(GUARDED.get() + 1);
    let result = guard_signal(otherwise, body);
    GUARDED.set(GUARDED.get() - 1);
    result
}

/// [`guard`] for functions that signal handlers may call: takes no lock, asks for no memory, touches no thread-local
/// (whose first use on a thread may ask for memory).
pub(super) fn guard_signal<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    // What a panic leaves behind is not used again: a session is poisoned by its lock, the rest is immutable or atomic.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        // The payload's own `drop` may panic too; then the second payload is leaked, there is no end otherwise.
        if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(second);
        }
        otherwise
    })
}

/// [`guard`] for functions that return a status: a failure is recorded as this thread's last error.
pub(super) fn guard_status(body: impl FnOnce() -> Result<edgellm_status, Failure>) -> edgellm_status {
    silence_panics();
    let status = guard(None, || {
        Some(body().unwrap_or_else(|failure| {
            record(&failure);
            failure.status()
        }))
    });
    status.unwrap_or_else(|| {
        PANIC.with(|message| match message.try_borrow() {
            Ok(message) => record_text(format_args!("internal error: {}", message.as_str()), 0),
            Err(_) => record_text(format_args!("internal error"), 0),
        });
        EDGELLM_E_INTERNAL
    })
}

/// [`guard`] for functions that return nothing: a failure is recorded all the same.
pub(super) fn guard_unit(body: impl FnOnce() -> Result<(), Failure>) {
    guard_status(|| body().map(|()| 0));
}

/// A library does not print: a panic inside a guard leaves its message to `last_error`. All other panics go on to the
/// hook that was there before.
fn silence_panics() {
    static ONCE: Once = Once::new();
    // `set_hook` itself panics on a thread that is unwinding: a host's destructor calls us then.
    if !std::thread::panicking() {
        ONCE.call_once(|| {
            let previous = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                if !keep_message(info) {
                    previous(info);
                }
            }));
        });
    }
}

/// Whether the panic is one that a guard (of this thread, or of the step that a worker thread serves) will report.
fn keep_message(info: &PanicHookInfo) -> bool {
    if GUARDED.get() == 0 {
        return std::thread::current().name().is_some_and(|name| name.starts_with("edgellm-"));
    }
    let what = info.payload_as_str().unwrap_or("a panic without a message");
    PANIC.with(|message| {
        if let Ok(mut message) = message.try_borrow_mut() {
            match info.location() {
                Some(place) => message.set(format_args!("{what} ({}:{})", place.file(), place.line())),
                None => message.set(format_args!("{what}")),
            }
        }
    });
    true
}

static FORKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// How many forks lie between the process that loaded this library and this one. A handle of another generation is not
/// usable: the threads that it needs did not come along.
pub(super) fn fork_generation() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// Starts counting forks; to be called before the first handle is made.
pub(super) fn watch_forks() -> Result<()> {
    static WATCHED: AtomicBool = AtomicBool::new(false);
    if WATCHED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    // SAFETY: the handler is a function of this library that only adds to an atomic, which is allowed in a new child.
    let code = unsafe { libc::pthread_atfork(None, None, Some(count_fork)) };
    if code != 0 {
        WATCHED.store(false, Ordering::Relaxed);
        return Err(Error::NoMemory { what: "a fork handler", bytes: 0 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capi::status::{EDGELLM_E_ARG, EDGELLM_OK, edgellm_last_error};
    use std::ffi::CStr;

    /// A payload whose own `drop` panics, with a payload whose `drop` panics.
    struct Nasty(u32);
    impl Drop for Nasty {
        fn drop(&mut self) {
            if self.0 > 0 && !std::thread::panicking() {
                std::panic::panic_any(Nasty(self.0 - 1));
            }
        }
    }

    fn last_error() -> String {
        // SAFETY: the function's contract: NUL-terminated, valid as long as this thread.
        unsafe { CStr::from_ptr(edgellm_last_error()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_panic_becomes_internal_with_its_message_and_place() {
        assert_eq!(guard_status(|| panic!("seven of {}", 9)), EDGELLM_E_INTERNAL);
        assert!(last_error().starts_with("internal error: seven of 9 (src"), "{}", last_error());
        assert_eq!(guard_status(|| Ok(EDGELLM_OK)), EDGELLM_OK);
        assert_eq!(guard_status(|| Err(Error::argument("no").into())), EDGELLM_E_ARG);
        assert_eq!(last_error(), "no");
    }

    #[test]
    fn a_panic_payload_that_panics_when_dropped_does_not_get_out() {
        for depth in 0..3 {
            assert_eq!(guard_status(|| std::panic::panic_any(Nasty(depth))), EDGELLM_E_INTERNAL);
        }
        assert_eq!(guard(5, || std::panic::panic_any(Nasty(2))), 5);
        assert_eq!(GUARDED.get(), 0);
    }
}
