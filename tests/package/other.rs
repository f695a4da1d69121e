//! Another library in Rust with a C interface, as a program may have beside ours.

/// `n`, out of a panic that is caught, in a thread.
#[unsafe(no_mangle)]
pub extern "C" fn other_caught(n: i32) -> i32 {
    let caught = std::thread::spawn(move || {
        std::panic::set_hook(Box::new(|_| {}));
        std::panic::catch_unwind(|| std::panic::panic_any(n)).map_or_else(|n| *n.downcast().unwrap_or_default(), |()| 0)
    });
    caught.join().unwrap_or(-1)
}
