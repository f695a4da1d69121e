//! The thread pool: a stage lasts tens of microseconds, so idle workers spin a while before they sleep.

use super::environment::FloatEnvironment;
use crate::{Error, Result};
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Stack of a worker: kernels keep less than 32 KiB of locals.
const STACK_BYTES: usize = 256 << 10;

/// A fixed set of threads that run one job at a time, the caller among them.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Sessions of one model take turns, job by job.
    turn: Mutex<()>,
}

type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// Raised for each job; workers sleep on it.
    epoch: AtomicU32,
    /// Workers that have not finished the job; the caller sleeps on it.
    running: AtomicU32,
    sleepers: AtomicU32,
    caller_sleeps: AtomicBool,
    panicked: AtomicBool,
    stop: AtomicBool,
    spin: Duration,
    job: UnsafeCell<Option<Job>>,
}

// SAFETY: `job` is written by the caller while no worker runs (`running` is 0 and the turn is held), and read by workers
// after they have seen the epoch that was raised after the write; the closure is `Sync` and outlives the job, since
// `run` returns only when `running` is 0 again.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl ThreadPool {
    /// `threads` in all, the caller's included: with 1 there is no worker and no synchronization.
    pub fn new(threads: usize, spin: Duration) -> Result<Self> {
        let shared = Arc::new(Shared {
            epoch: AtomicU32::new(0),
            running: AtomicU32::new(0),
            sleepers: AtomicU32::new(0),
            caller_sleeps: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            spin,
            job: UnsafeCell::new(None),
        });
        let mut pool = ThreadPool { shared, workers: Vec::new(), turn: Mutex::new(()) };
        let _blocked = BlockedSignals::block();
        for index in 1..threads {
            let shared = pool.shared.clone();
            let worker = std::thread::Builder::new()
                .name(format!("edgellm-w{}", index - 1))
                .stack_size(STACK_BYTES)
                .spawn(move || work(&shared, index))
                .map_err(|error| {
                    Error::io(format_args!("starting worker thread {index} of {}", threads - 1), &error)
                })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// How many threads run a job.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job(thread index)` on every thread at once; back when all are done. A panic in any is `Error::Internal`.
    pub fn run(&self, job: &(dyn Fn(usize) + Sync)) -> Result<()> {
        if self.workers.is_empty() {
            job(0);
            return Ok(());
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime is changed; the job is not used after this function, which waits for all workers.
        let job_for_workers: Job = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(job) };
        // SAFETY: no worker runs, see `Shared`.
        unsafe { *shared.job.get() = Some(job_for_workers) };
        shared.running.store(self.workers.len() as u32, Relaxed);
        shared.epoch.fetch_add(1, SeqCst);
        if shared.sleepers.load(SeqCst) > 0 {
            futex::wake_all(&shared.epoch);
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        shared.wait_for_workers();
        let panicked = shared.panicked.swap(false, Relaxed);
        match own {
            Ok(()) if !panicked => Ok(()),
            Ok(()) => Err(Error::Internal("a worker thread panicked".into())),
            Err(payload) => std::panic::resume_unwind(payload),
        }
    }

    /// Runs `job(thread index, range)` for ranges that cover `0..items`, none longer than `grain`, on all threads.
    ///
    /// Who takes which range depends on timing, so results may not.
    pub fn each(&self, items: usize, grain: usize, job: impl Fn(usize, Range<usize>) + Sync) -> Result<()> {
        if items <= grain || self.workers.is_empty() {
            job(0, 0..items);
            return Ok(());
        }
        let next = AtomicUsize::new(0);
        self.run(&|thread| {
            loop {
                let start = next.fetch_add(grain, Relaxed);
                if start >= items {
                    break;
                }
                job(thread, start..items.min(start + grain));
            }
        })
    }

    /// A grain for `items` of equal cost: several ranges a thread, so that a thread that lost its core holds up little.
    pub fn grain(&self, items: usize) -> usize {
        items.div_ceil(self.threads() * 8).max(1)
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.shared.epoch.fetch_add(1, SeqCst);
        futex::wake_all(&self.shared.epoch);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn wait_for_workers(&self) {
        if spin_until(self.spin, || self.running.load(Acquire) == 0) {
            return;
        }
        self.caller_sleeps.store(true, SeqCst);
        loop {
            let running = self.running.load(SeqCst);
            if running == 0 {
                break;
            }
            futex::wait(&self.running, running);
        }
        self.caller_sleeps.store(false, Relaxed);
    }

    /// Waits for an epoch other than `seen` and returns it.
    fn wait_for_job(&self, seen: u32) -> u32 {
        if !spin_until(self.spin, || self.epoch.load(Acquire) != seen) {
            self.sleepers.fetch_add(1, SeqCst);
            while self.epoch.load(SeqCst) == seen {
                futex::wait(&self.epoch, seen);
            }
            self.sleepers.fetch_sub(1, Relaxed);
        }
        self.epoch.load(Acquire)
    }
}

fn work(shared: &Shared, index: usize) {
    let _environment = FloatEnvironment::enter();
    let mut seen = 0;
    loop {
        seen = shared.wait_for_job(seen);
        if shared.stop.load(Relaxed) {
            return;
        }
        // SAFETY: the epoch was raised after the job was written, and the job lives until `running` is 0.
        let job = unsafe { (*shared.job.get()).map(|job| &*job) };
        if let Some(job) = job
            && let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(index)))
        {
            std::mem::forget(payload); // Its drop might panic in turn.
            shared.panicked.store(true, Relaxed);
        }
        if shared.running.fetch_sub(1, SeqCst) == 1 && shared.caller_sleeps.load(SeqCst) {
            futex::wake_all(&shared.running);
        }
    }
}

/// Spins until `done` or for `time`, giving up the core now and then in case the awaited thread needs it.
fn spin_until(time: Duration, done: impl Fn() -> bool) -> bool {
    const PAUSES: u32 = 128;
    let mut start = None;
    loop {
        for _ in 0..PAUSES {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.get_or_insert_with(Instant::now).elapsed() >= time {
            return done();
        }
        std::thread::yield_now();
    }
}

/// While this lives, threads started by this one block all signals, which are the host's to handle.
struct BlockedSignals {
    #[cfg(unix)]
    before: libc::sigset_t,
}

impl BlockedSignals {
    #[cfg(unix)]
    fn block() -> Self {
        // SAFETY: both sets are initialized by the calls themselves.
        unsafe {
            let mut all = std::mem::zeroed();
            let mut before = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &all, &mut before);
            BlockedSignals { before }
        }
    }
    #[cfg(not(unix))]
    fn block() -> Self {
        BlockedSignals {}
    }
}

#[cfg(unix)]
impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: `before` was written by `block` on this thread.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

#[cfg(target_os = "linux")]
mod futex {
    use std::sync::atomic::AtomicU32;

    /// Sleeps while the word holds `value`; may wake for no reason.
    pub fn wait(word: &AtomicU32, value: u32) {
        let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        let forever = std::ptr::null::<libc::timespec>();
        // SAFETY: the word is alive for the call.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, forever) };
    }

    pub fn wake_all(word: &AtomicU32) {
        let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: the word is alive for the call.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, i32::MAX) };
    }
}

#[cfg(not(target_os = "linux"))]
mod futex {
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Sleeps a moment: without futexes, waiting is polling.
    pub fn wait(word: &AtomicU32, value: u32) {
        if word.load(Ordering::SeqCst) == value {
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    }

    pub fn wake_all(_word: &AtomicU32) {}
}

const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<ThreadPool>();
};

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize, spin_us: u64) -> ThreadPool {
        ThreadPool::new(threads, Duration::from_micros(spin_us)).expect("threads can be started")
    }

    #[test]
    fn each_covers_every_item_once_whatever_the_threads() {
        for threads in [1, 2, 3, 7] {
            for spin_us in [0, 50] {
                let pool = pool(threads, spin_us);
                for items in [0, 1, 2, 3, 100] {
                    let counts: Vec<_> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                    for _ in 0..200 {
                        pool.each(items, 3, |_, range| {
                            for item in range {
                                counts[item].fetch_add(1, Relaxed);
                            }
                        })
                        .expect("no panic");
                    }
                    assert!(counts.iter().all(|count| count.load(Relaxed) == 200), "{threads} threads, {items} items");
                }
            }
        }
    }

    #[test]
    fn a_panic_in_a_worker_is_an_error_and_the_pool_goes_on() {
        let pool = pool(3, 10);
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let failed = pool.run(&|thread| assert_ne!(thread, 1));
        std::panic::set_hook(hook);
        assert!(matches!(failed, Err(Error::Internal(_))), "{failed:?}");
        assert!(pool.run(&|_| ()).is_ok());
    }

    #[test]
    fn sessions_may_share_a_pool() {
        let pool = pool(2, 10);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let hits = AtomicUsize::new(0);
                        pool.run(&|_| {
                            hits.fetch_add(1, Relaxed);
                        })
                        .expect("no panic");
                        assert_eq!(hits.load(Relaxed), 2);
                    }
                });
            }
        });
    }
}
