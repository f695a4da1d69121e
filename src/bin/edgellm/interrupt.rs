//! Ctrl-C during an answer stops the answer, not the program; during other work it stops the work in good order.

use crate::failure::Failure;
use edgellm::session::Control;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// What the handler cancels: a handler reaches nothing but globals. Set once, never freed.
static CONTROL: AtomicPtr<Control> = AtomicPtr::new(ptr::null_mut());
/// Whether there is an answer to stop.
static ANSWERING: AtomicBool = AtomicBool::new(false);
/// Whether a signal has come, for work that asks.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT cancels this session's run while [`answering`] runs, and ends the program at other times.
pub fn install(control: Arc<Control>) -> Result<(), Failure> {
    CONTROL.store(Arc::into_raw(control).cast_mut(), Ordering::Release);
    handle(libc::SIGINT, on_interrupt)
}

/// From now on SIGINT and SIGTERM only make [`stopped`] true.
pub fn install_stop() -> Result<(), Failure> {
    handle(libc::SIGINT, on_stop)?;
    handle(libc::SIGTERM, on_stop)
}

/// Whether the work is to stop.
pub fn stopped() -> bool {
    STOPPED.load(Ordering::Acquire)
}

/// Sets the handler of a signal.
fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) -> Result<(), Failure> {
    // SAFETY: all zeros is a valid `sigaction`: no flags, an empty mask, no restorer.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is initialised, both handlers are async-signal-safe, and NULL asks for no old action.
    match unsafe { libc::sigaction(signal, &action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(Failure::new(format_args!("handler of signal {signal}: {}", std::io::Error::last_os_error()))),
    }
}

/// Runs `answer`, which Ctrl-C stops.
pub fn answering<T>(answer: impl FnOnce() -> T) -> T {
    ANSWERING.store(true, Ordering::Release);
    let result = answer();
    ANSWERING.store(false, Ordering::Release);
    result
}

/// Async-signal-safe: atomic loads, then an atomic store (`cancel` promises no more) or `_exit`.
extern "C" fn on_interrupt(signal: libc::c_int) {
    // SAFETY: `install` stored a pointer from an `Arc` whose count it never gives back.
    let control = unsafe { CONTROL.load(Ordering::Acquire).as_ref() };
    match control {
        Some(control) if ANSWERING.load(Ordering::Acquire) => control.cancel(0),
        // SAFETY: `_exit` is async-signal-safe and does not return.
        _ => unsafe { libc::_exit(128 + signal) },
    }
}

/// Async-signal-safe: one atomic store.
extern "C" fn on_stop(_: libc::c_int) {
    STOPPED.store(true, Ordering::Release);
}
