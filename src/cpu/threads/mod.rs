//! The thread pool: a stage lasts tens of microseconds, so idle workers spin a while before they sleep.

pub mod cores;
mod gate;
mod placement;

use super::environment::FloatEnvironment;
use crate::tensor::page_faults;
use crate::{Error, Result};
use cores::Cpus;
use gate::{Gate, Line, futex};
pub use placement::{OnThread, Schedule};
use placement::{Placement, count_usable};
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// Stack of a worker: kernels keep less than 32 KiB of locals.
const STACK_BYTES: usize = 256 << 10;

/// Most threads of a pool.
pub const THREADS_MAX: usize = 1024;

/// What a pool is made of; the default is one thread per big core.
#[derive(Clone, Default)]
pub struct PoolOptions {
    /// In all, the caller's included. 0 = one per CPU of `cpus`, or else one per big core, in both cases as far as this
    /// process may use them.
    pub threads: usize,
    /// How long an idle thread spins before it sleeps.
    pub spin: Duration,
    /// Where workers stay. None = on the big cores, if there are others and `threads` has a core for each; else anywhere.
    pub cpus: Option<Cpus>,
    /// How the system schedules workers. None = as the thread that makes the pool.
    pub schedule: Option<Schedule>,
    /// Called in each worker when it starts and when it ends.
    pub on_thread: Option<OnThread>,
}

/// A fixed set of threads that run one job at a time, the caller among them.
pub struct ThreadPool {
    shared: Arc<Shared>,
    threads: usize,
    workers: Vec<JoinHandle<()>>,
    /// Sessions of one model take turns, job by job.
    turn: Mutex<()>,
}

type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    gate: Gate,
    /// What those inside the gate run.
    job: UnsafeCell<Option<Job>>,
    /// (threads) How far each thread's part of the items is taken.
    taken: Box<[Line<AtomicUsize>]>,
    /// (threads) Page faults of each worker since it began, as of when it last slept or took part in a [`ThreadPool::run`].
    faults: Box<[AtomicU64]>,
    panicked: AtomicBool,
}

// SAFETY: `job` is written by whoever has the turn while the gate is closed with nobody inside, and read only inside; the
// closure is `Sync`, and alive while anyone is inside (see `share`).
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl ThreadPool {
    /// `threads` in all, the caller's included: with 1 there is no worker and no synchronization.
    pub fn new(threads: usize, spin: Duration) -> Result<Self> {
        ThreadPool::start(PoolOptions { threads: threads.max(1), spin, ..PoolOptions::default() })
    }

    /// Starts the workers. When one cannot be set up as asked, none is left behind.
    pub fn start(options: PoolOptions) -> Result<Self> {
        let (threads, placement) = place(&options)?;
        let shared = Arc::new(Shared::new(threads, options.spin));
        let mut pool = ThreadPool { shared, threads, workers: Vec::new(), turn: Mutex::new(()) };
        let (report, reports) = mpsc::channel();
        let blocked = BlockedSignals::block();
        for index in 1..threads {
            let (shared, placement, report) = (pool.shared.clone(), placement.clone(), report.clone());
            let worker = std::thread::Builder::new()
                .name(format!("edgellm-w{}", index - 1))
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    let entered = placement.enter(index - 1);
                    let usable = entered.is_ok();
                    let _ = report.send(entered); // Nobody listens any more when another worker has failed.
                    if usable {
                        work(&shared, index);
                        placement.leave(index - 1);
                    }
                })
                .map_err(|error| {
                    Error::io(format_args!("starting worker thread {index} of {}", threads - 1), &error)
                })?;
            pool.workers.push(worker);
        }
        drop((blocked, report));
        for _ in &pool.workers {
            reports.recv().unwrap_or_else(|_| Err(Error::Internal("a worker thread did not start".into())))?;
        }
        Ok(pool)
    }

    /// How many threads [`ThreadPool::start`] would make a pool of, the caller's included.
    pub fn count(options: &PoolOptions) -> Result<usize> {
        Ok(place(options)?.0)
    }

    /// The stacks of the workers of so many threads, in bytes.
    pub fn stacks_bytes(threads: usize) -> u64 {
        (threads.saturating_sub(1) * STACK_BYTES) as u64
    }

    /// How many threads run a job.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `job(thread index)` on every thread at once; back when all are done. A panic in any is `Error::Internal`.
    ///
    /// This waits for every worker to come: it is for measurements. [`ThreadPool::each`] does not.
    pub fn run(&self, job: &(dyn Fn(usize) + Sync)) -> Result<()> {
        let missing = AtomicU32::new(self.workers.len() as u32);
        let own = || {
            job(0);
            loop {
                match missing.load(Acquire) {
                    0 => break,
                    count => futex::wait(&missing, count),
                }
            }
        };
        let others = |thread| {
            let _counted = Countdown(&missing); // Also when the job panics.
            job(thread);
            self.shared.count_faults(thread);
        };
        self.share(self.turn(), &others, self.workers.len(), own)
    }

    /// Runs `job(thread index, range)` for ranges that cover `0..items`, none longer than `grain`, on all threads that
    /// are there in time.
    ///
    /// Who takes which range depends on timing, so results may not. Each thread begins with its own part of the items,
    /// the same in every call, and goes through it in order; who is done helps the others, also those that never came.
    /// So a thread reads one sequential stream of weights, which memory likes better than threads that take ranges in
    /// turns (15 to 25 % slower in a decode of 600 KB a region with 2 threads), and in the next pass reads it again, near
    /// the core that has seen it. Ranges that get shorter toward the end were tried: no gain.
    pub fn each(&self, items: usize, grain: usize, job: impl Fn(usize, Range<usize>) + Sync) -> Result<()> {
        if items <= grain || self.threads == 1 {
            job(0, 0..items);
            return Ok(());
        }
        let (turn, taken, grain) = (self.turn(), &*self.shared.taken, grain.max(1));
        let bound = |part: usize| items / self.threads * part + part.min(items % self.threads);
        for (part, taken) in taken.iter().enumerate() {
            taken.0.store(bound(part), Relaxed); // Seen by all who enter the gate.
        }
        let work = |thread: usize| {
            for part in (thread..self.threads).chain(0..thread) {
                while let Some(range) = take(&taken[part].0, bound(part + 1), grain) {
                    job(thread, range);
                }
            }
        };
        self.share(turn, &work, items.div_ceil(grain) - 1, || work(0))
    }

    /// A grain for `items` of equal cost: 8 ranges a thread, so that threads of unequal speed are done at about the same
    /// time. Finer would not help against one that lost its core: it is away for milliseconds, a range takes microseconds.
    pub fn grain(&self, items: usize) -> usize {
        items.div_ceil(self.threads() * 8).max(1)
    }

    /// Page faults of all workers since they began, as of when each last slept or took part in a [`ThreadPool::run`].
    pub fn page_faults(&self) -> u64 {
        self.shared.faults.iter().map(|faults| faults.load(Relaxed)).sum()
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `own` here, and `job` on the workers that come before `own` is done; wakes up to `wanted` of those that sleep.
    fn share(
        &self,
        _turn: MutexGuard<'_, ()>,
        job: &(dyn Fn(usize) + Sync),
        wanted: usize,
        own: impl FnOnce(),
    ) -> Result<()> {
        let shared = &*self.shared;
        // SAFETY: only the lifetime is changed. Workers use the job inside the gate alone, and nobody is inside once
        // `opened` is dropped (see `gate`). That happens before this function ends, whether `own` returns or panics, so
        // while `job` is borrowed.
        let job: Job = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(job) };
        // SAFETY: with the turn nobody else writes here, and nobody reads, since the last job's gate is closed and empty.
        unsafe { *shared.job.get() = Some(job) };
        shared.panicked.store(false, Relaxed);
        let opened = shared.gate.open(wanted);
        own();
        drop(opened);
        if shared.panicked.load(Relaxed) {
            return Err(Error::Internal("a worker thread panicked".into()));
        }
        Ok(())
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.gate.stop();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn new(threads: usize, spin: Duration) -> Self {
        Shared {
            gate: Gate::new(spin),
            job: UnsafeCell::new(None),
            taken: (0..threads).map(|_| Line::default()).collect(),
            faults: (0..threads).map(|_| AtomicU64::new(0)).collect(),
            panicked: AtomicBool::new(false),
        }
    }

    fn count_faults(&self, thread: usize) {
        self.faults[thread].store(page_faults(), Relaxed);
    }
}

/// How many threads, and what each worker sets up.
fn place(options: &PoolOptions) -> Result<(usize, Placement)> {
    let PoolOptions { threads, cpus, schedule, on_thread, .. } = options.clone();
    let mut placement = Placement { cpus, cpus_are_a_wish: false, schedule, on_thread };
    if threads > THREADS_MAX {
        return Err(Error::argument(format!("{threads} threads, at most {THREADS_MAX}")));
    }
    if placement.cpus.as_ref().is_some_and(Cpus::is_empty) {
        return Err(Error::argument("cpu_mask is empty"));
    }
    let threads = match &placement.cpus {
        _ if threads == 1 => 1,
        Some(cpus) if threads == 0 => count_usable(cpus)?,
        Some(_) => threads,
        None => {
            let (count, cpus) = default_place(threads);
            placement.cpus = cpus;
            placement.cpus_are_a_wish = true;
            count
        }
    };
    Ok((threads.clamp(1, THREADS_MAX), placement))
}

/// How many threads if `threads` is 0, and where to keep workers so that they stay on the big cores.
fn default_place(threads: usize) -> (usize, Option<Cpus>) {
    // Less than there are CPUs where a control group has a quota.
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let Some((usable, big)) = cores::machine() else {
        return (if threads == 0 { available } else { threads }, None);
    };
    let threads = if threads == 0 { big.count.min(available) } else { threads };
    let keep = big.cpus != usable && threads <= big.count;
    (threads, keep.then_some(big.cpus))
}

/// Takes the next range of a part that ends at `end`.
fn take(taken: &AtomicUsize, end: usize, grain: usize) -> Option<Range<usize>> {
    if taken.load(Relaxed) >= end {
        return None; // Without writing: the line may be in another core's cache.
    }
    let start = taken.fetch_add(grain, Relaxed);
    (start < end).then(|| start..end.min(start + grain))
}

/// Counts down when dropped, and wakes who waits for it.
struct Countdown<'a>(&'a AtomicU32);

impl Drop for Countdown<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, AcqRel);
        futex::wake(self.0, 1);
    }
}

fn work(shared: &Shared, index: usize) {
    let _environment = FloatEnvironment::enter();
    let mut seen = 0;
    while shared.gate.enter(&mut seen, || shared.count_faults(index)) {
        // SAFETY: inside the gate, so the job was written before it opened and lives until this worker has left.
        let job = unsafe { (*shared.job.get()).map(|job| &*job) };
        if let Some(job) = job
            && let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(index)))
        {
            std::mem::forget(payload); // Its drop might panic in turn.
            shared.panicked.store(true, Relaxed);
        }
        shared.gate.leave();
    }
}

/// While this lives, threads started by this one block all signals, which are the host's to handle.
pub(crate) struct BlockedSignals {
    #[cfg(unix)]
    before: libc::sigset_t,
}

impl BlockedSignals {
    #[cfg(unix)]
    pub(crate) fn block() -> Self {
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
    pub(crate) fn block() -> Self {
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

const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<ThreadPool>();
};

#[cfg(test)]
mod tests;
