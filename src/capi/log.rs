//! The process-wide log callback: a forwarder behind the `log` facade.

use super::guard::guard;
use super::text::Text;
use std::ffi::{c_char, c_void};
use std::sync::{OnceLock, RwLock};

/// Receives one line of log. `target` is the part of the library that speaks ("edgellm::model"), NUL-terminated; `text`
/// is `len` bytes of UTF-8, also NUL-terminated, and both live until the function returns. It is called on the thread
/// that logs, maybe on several at once, and must not unwind or longjmp. It may call edgellm_set_log.
pub type edgellm_log_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, level: i32, target: *const c_char, text: *const c_char, len: usize)>;

/// Nothing at all.
pub const EDGELLM_LOG_OFF: i32 = 0;
/// What failed.
pub const EDGELLM_LOG_ERROR: i32 = 1;
/// What is probably not meant so.
pub const EDGELLM_LOG_WARN: i32 = 2;
/// What was done: loads and their figures.
pub const EDGELLM_LOG_INFO: i32 = 3;
/// Everything.
pub const EDGELLM_LOG_DEBUG: i32 = 4;

#[derive(Clone, Copy)]
struct Receiver {
    function: edgellm_log_fn,
    user: *mut c_void,
}

// SAFETY: the caller promises (header) that `function` may be called with `user` on any thread.
unsafe impl Send for Receiver {}
// SAFETY: as for Send; the fields are only copied.
unsafe impl Sync for Receiver {}

static RECEIVER: RwLock<Receiver> = RwLock::new(Receiver { function: None, user: std::ptr::null_mut() });

struct Forwarder;

impl log::Log for Forwarder {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true // `log::max_level` has decided.
    }

    fn log(&self, record: &log::Record) {
        // Copied out, so that no lock is held during the call: the callback may call `edgellm_set_log`.
        let receiver = *RECEIVER.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(function) = receiver.function {
            let mut target = Text::<64>::new();
            let mut text = Text::<1024>::new();
            target.set(format_args!("{}", record.target()));
            text.set(format_args!("{}", record.args()));
            let level = (record.level() as i32).min(EDGELLM_LOG_DEBUG);
            // SAFETY: the caller's function with the caller's `user`; both texts are NUL-terminated and outlive the call.
            unsafe { function(receiver.user, level, target.as_ptr(), text.as_ptr(), text.as_str().len()) };
        }
    }

    fn flush(&self) {}
}

/// Sets the function that receives the log of the whole process, and up to which level; function = NULL or EDGELLM_LOG_OFF:
/// none, as at the start. A level out of range means the nearest.
///
/// Any thread, also from inside the function. A call of the previous function that another thread has begun may still
/// be running when this returns. Where a Rust program links this library and has set a logger of its own for the `log`
/// crate, that logger receives everything and this function does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn edgellm_set_log(function: edgellm_log_fn, user: *mut c_void, level: i32) {
    guard((), || {
        static OURS: OnceLock<bool> = OnceLock::new();
        if !OURS.get_or_init(|| log::set_logger(&Forwarder).is_ok()) {
            return;
        }
        *RECEIVER.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Receiver { function, user };
        log::set_max_level(match (function, level) {
            (None, _) | (_, ..=EDGELLM_LOG_OFF) => log::LevelFilter::Off,
            (_, EDGELLM_LOG_ERROR) => log::LevelFilter::Error,
            (_, EDGELLM_LOG_WARN) => log::LevelFilter::Warn,
            (_, EDGELLM_LOG_INFO) => log::LevelFilter::Info,
            (_, EDGELLM_LOG_DEBUG..) => log::LevelFilter::Debug,
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

    extern "C" fn once(user: *mut c_void, level: i32, target: *const c_char, text: *const c_char, len: usize) {
        // SAFETY: the contract of a log function: NUL-terminated texts.
        let (target, text) = unsafe { (std::ffi::CStr::from_ptr(target), std::ffi::CStr::from_ptr(text)) };
        if target != c"edgellm::test" {
            return; // Other tests may log at the same moment.
        }
        assert_eq!((text.to_bytes().len(), user as usize), (len, 17));
        SEEN.lock().unwrap().push(format!("{level} {} {}", target.to_str().unwrap(), text.to_str().unwrap()));
        edgellm_set_log(None, std::ptr::null_mut(), EDGELLM_LOG_DEBUG); // Would hang if a lock were held.
    }

    #[test]
    fn the_log_is_silent_unless_asked_and_the_callback_may_set_it() {
        log::error!(target: "edgellm::test", "nobody hears");
        edgellm_set_log(Some(once), 17 as *mut c_void, EDGELLM_LOG_WARN);
        log::info!(target: "edgellm::test", "too low");
        log::warn!(target: "edgellm::test", "hears {}", 1);
        log::warn!(target: "edgellm::test", "again nobody");
        assert_eq!(*SEEN.lock().unwrap(), ["2 edgellm::test hears 1"]);
    }
}
