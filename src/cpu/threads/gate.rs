//! The gate of a job: workers go in while it is open, and whoever opened it waits only for those that went in.
//!
//! One atomic word says which job it is, whether it is open, and how many workers are inside. A worker that comes too
//! late (it slept, or had lost its core to another process) finds the gate closed and goes back to waiting; nobody has
//! waited for it. That is what keeps a decode step, some 150 jobs of tens of microseconds, from stopping for a whole
//! time slice of another process at each of them.
//!
//! Why nobody is in a job that is over, which is what the pool's borrowing rests on:
//!
//! 1. A worker is inside from the compare-exchange in [`Gate::enter`] that adds 1 to the word, to the subtraction in
//!    [`Gate::leave`]. The exchange is from a value with `OPEN` set, so none succeeds while the word is without it.
//! 2. Only [`Gate::open`] sets `OPEN`, and its caller has the turn (see there), so between the drop of an [`Opened`] and
//!    the next `open` nobody can go in.
//! 3. The drop of an [`Opened`] takes `OPEN` away and returns only after it has read 0 workers inside. From then on
//!    there are none, by 2. `Opened` is dropped on every way out of the job, also by a panic.
//! 4. What is in memory before `open` is seen inside: `open` stores with release, and the exchange acquires from that
//!    store or from a read-modify-write that follows it (these continue its release sequence). What was done inside is
//!    seen after the drop: `leave` subtracts with release, and the 0 is read with acquire, from that subtraction or from
//!    a read-modify-write that follows it.
//!
//! A worker that read the word, lost its core, and finds the same value there 2^32 jobs later enters the job that is
//! open then: it looks at what the job is only after the exchange.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

/// The number of the job is above this bit.
const NUMBER: u32 = 32;
/// Workers may go in.
const OPEN: u64 = 1 << 31;
/// The pool ends: workers that see this go home.
const STOPPED: u64 = 1 << 30;
/// Whoever closed the gate sleeps until the last worker is out.
const AWAITED: u64 = 1 << 29;
/// How many workers are inside: the bits below the flags.
const INSIDE: u64 = AWAITED - 1;

/// See the module.
pub struct Gate {
    word: Line<AtomicU64>,
    /// Raised to wake sleeping workers.
    wake: AtomicU32,
    /// Workers that sleep, or are about to.
    sleepers: AtomicU32,
    /// Raised when the last worker is out and that is awaited.
    empty: AtomicU32,
    /// How long to spin before sleeping.
    spin: Duration,
}

/// Alone on its cache lines (pairs of them, which some CPUs fetch together).
#[derive(Default)]
#[repr(align(128))]
pub struct Line<T>(pub T);

impl Gate {
    /// Closed, nobody inside. Waiting threads spin for `spin` before they sleep.
    pub fn new(spin: Duration) -> Self {
        Gate {
            word: Line(AtomicU64::new(0)),
            wake: AtomicU32::new(0),
            sleepers: AtomicU32::new(0),
            empty: AtomicU32::new(0),
            spin,
        }
    }

    /// Opens the gate for the next job and wakes up to `wanted` sleeping workers. It is closed when the result is dropped.
    ///
    /// Calls take turns: the last `Opened` was dropped, and that happened before this call.
    #[must_use = "the gate closes when this is dropped"]
    pub fn open(&self, wanted: usize) -> Opened<'_> {
        let number = (self.word.0.load(Relaxed) >> NUMBER).wrapping_add(1);
        // A plain store loses nothing: a closed word with nobody inside is changed by its opener alone.
        self.word.0.store((number << NUMBER) | OPEN, SeqCst);
        // Either this sees the sleeper, or the sleeper, which counted itself first, sees the new word: both sides store
        // and then load, all of it sequentially consistent.
        if wanted > 0 && self.sleepers.load(SeqCst) > 0 {
            self.wake(wanted);
        }
        Opened(self)
    }

    /// Waits for a job with a number other than `seen`, which becomes the new number, and goes in. False: the pool ends.
    /// `idle` is called before the thread sleeps.
    pub fn enter(&self, seen: &mut u64, idle: impl Fn()) -> bool {
        loop {
            let mut word = self.wait_for_other_than(*seen, &idle);
            *seen = word >> NUMBER;
            if word & STOPPED != 0 {
                return false;
            }
            while word & OPEN != 0 && word >> NUMBER == *seen {
                match self.word.0.compare_exchange_weak(word, word + 1, Acquire, Relaxed) {
                    Ok(_) => return true,
                    Err(now) => word = now,
                }
            }
        }
    }

    /// Goes out. To be called once after each `enter` that was true.
    pub fn leave(&self) {
        let before = self.word.0.fetch_sub(1, Release);
        if before & (INSIDE | AWAITED) == AWAITED | 1 {
            self.empty.fetch_add(1, Release);
            futex::wake(&self.empty, 1);
        }
    }

    /// Sends all workers home. As for `open`, nobody is inside, and none is let in any more.
    pub fn stop(&self) {
        let number = (self.word.0.load(Relaxed) >> NUMBER).wrapping_add(1);
        self.word.0.store((number << NUMBER) | STOPPED, SeqCst);
        self.wake(usize::MAX);
    }

    fn wake(&self, count: usize) {
        self.wake.fetch_add(1, Release);
        futex::wake(&self.wake, count);
    }

    /// The word when its number is no longer `seen`.
    fn wait_for_other_than(&self, seen: u64, idle: &impl Fn()) -> u64 {
        let other = |word: u64| (word >> NUMBER != seen).then_some(word);
        if let Some(word) = spin_until(self.spin, || other(self.word.0.load(Relaxed))) {
            return word;
        }
        idle();
        self.sleepers.fetch_add(1, SeqCst);
        let word = loop {
            let wake = self.wake.load(Acquire);
            if let Some(word) = other(self.word.0.load(SeqCst)) {
                break word;
            }
            futex::wait(&self.wake, wake);
        };
        self.sleepers.fetch_sub(1, Relaxed);
        word
    }
}

/// An open gate; dropping it closes the gate and waits for the workers inside.
pub struct Opened<'a>(&'a Gate);

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        let Opened(gate) = *self;
        let word = &gate.word.0;
        if word.fetch_and(!OPEN, Acquire) & INSIDE == 0 {
            return;
        }
        let empty = |word: u64| (word & INSIDE == 0).then_some(());
        if spin_until(gate.spin, || empty(word.load(Acquire))).is_some() {
            return;
        }
        loop {
            // Read before the flag is set: the worker that sees the flag raises it after.
            let seen = gate.empty.load(Acquire);
            if empty(word.fetch_or(AWAITED, Acquire)).is_some() {
                return;
            }
            futex::wait(&gate.empty, seen);
        }
    }
}

/// Spins until `done` gives something or for `time` (0: looks once). Gives up the core now and then, in case it is what
/// the awaited thread needs.
fn spin_until<T>(time: Duration, done: impl Fn() -> Option<T>) -> Option<T> {
    const PAUSES: u32 = 128;
    if time.is_zero() {
        return done();
    }
    let mut start = None;
    loop {
        for _ in 0..PAUSES {
            if let Some(result) = done() {
                return Some(result);
            }
            std::hint::spin_loop();
        }
        if start.get_or_insert_with(Instant::now).elapsed() >= time {
            return done();
        }
        std::thread::yield_now();
    }
}

#[cfg(target_os = "linux")]
pub mod futex {
    //! Sleeping on a word and waking who sleeps there.

    use std::sync::atomic::AtomicU32;

    /// Sleeps while the word holds `value`; may wake for no reason.
    pub fn wait(word: &AtomicU32, value: u32) {
        let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        let forever = std::ptr::null::<libc::timespec>();
        // SAFETY: the word is alive for the call.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, forever) };
    }

    /// Wakes at most `count` of those who sleep on the word.
    pub fn wake(word: &AtomicU32, count: usize) {
        let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
        let count = count.min(i32::MAX as usize) as i32;
        // SAFETY: the word is alive for the call.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, count) };
    }
}

#[cfg(not(target_os = "linux"))]
pub mod futex {
    //! Without futexes, waiting is polling.

    use std::sync::atomic::{AtomicU32, Ordering};

    /// Sleeps a moment.
    pub fn wait(word: &AtomicU32, value: u32) {
        if word.load(Ordering::SeqCst) == value {
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    }

    /// Nobody sleeps for long.
    pub fn wake(_word: &AtomicU32, _count: usize) {}
}
