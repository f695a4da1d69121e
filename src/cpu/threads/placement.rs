//! Where worker threads run and how the system schedules them.

use super::cores::{self, Cpus};
use crate::{Error, Result};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Called in each worker thread with its index, from 0: with true when it starts, with false when it ends.
pub type OnThread = Arc<dyn Fn(usize, bool) + Send + Sync>;

/// How the system schedules a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The system's number: on Linux SCHED_OTHER 0, SCHED_FIFO 1, SCHED_RR 2, SCHED_BATCH 3, SCHED_IDLE 5.
    pub policy: i32,
    /// Within the policy; None = its lowest.
    pub priority: Option<i32>,
}

/// What a worker does to itself before it works.
#[derive(Clone, Default)]
pub(super) struct Placement {
    /// Where to stay.
    pub cpus: Option<Cpus>,
    /// `cpus` is ours: where the system refuses it, the thread may run anywhere.
    pub cpus_are_a_wish: bool,
    pub schedule: Option<Schedule>,
    pub on_thread: Option<OnThread>,
}

impl Placement {
    /// Sets this thread up, the host's callback last.
    pub fn enter(&self, worker: usize) -> Result<()> {
        if let Some(cpus) = &self.cpus {
            match stay_on(cpus) {
                Err(error) if self.cpus_are_a_wish => log::warn!("worker thread {worker}: {error}"),
                result => result?,
            }
        }
        if let Some(schedule) = self.schedule {
            schedule.apply()?;
        }
        self.call(worker, true)
    }

    /// Tells the host that this thread ends.
    pub fn leave(&self, worker: usize) {
        let _ = self.call(worker, false); // It is over in any case.
    }

    fn call(&self, worker: usize, start: bool) -> Result<()> {
        let Some(on_thread) = &self.on_thread else { return Ok(()) };
        catch_unwind(AssertUnwindSafe(|| on_thread(worker, start))).map_err(|payload| {
            std::mem::forget(payload); // Its drop might panic in turn.
            Error::argument("on_thread panicked")
        })
    }
}

/// Keeps this thread to those of the CPUs that this process may use.
fn stay_on(cpus: &Cpus) -> Result<()> {
    cores::set_affinity(cpus).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => {
            let list = cores::list(cpus);
            Error::argument(format!("cpu_mask has no CPU that this process may use: it has `{list}`"))
        }
        io::ErrorKind::Unsupported => {
            Error::Unsupported("cpu_mask: this system does not let a thread choose its CPUs".into())
        }
        _ => Error::io(format_args!("keeping a worker thread to the CPUs {} of cpu_mask", cores::list(cpus)), &error),
    })
}

/// How many of the CPUs this process may use. That is more than this thread may use where the host has pinned the
/// thread, so a thread of its own goes there and looks.
pub(super) fn count_usable(cpus: &Cpus) -> Result<usize> {
    let look = || {
        stay_on(cpus)?;
        let found = cores::affinity().map_err(|error| Error::io("asking for a thread's CPUs", &error))?;
        Ok(found.intersection(cpus).count().max(1))
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("edgellm-cpus".into()).spawn_scoped(scope, look);
        let thread = thread.map_err(|error| Error::io("starting a thread", &error))?;
        thread.join().unwrap_or_else(|_| Err(Error::Internal("counting CPUs panicked".into())))
    })
}

impl Schedule {
    #[cfg(unix)]
    fn apply(self) -> Result<()> {
        let Schedule { policy, priority } = self;
        // SAFETY: these two only look numbers up.
        let (lowest, highest) = unsafe { (libc::sched_get_priority_min(policy), libc::sched_get_priority_max(policy)) };
        let priority = priority.unwrap_or(lowest);
        // SAFETY: plain numbers, for which 0 is a value (and the default of those that only some systems have).
        let mut parameters: libc::sched_param = unsafe { std::mem::zeroed() };
        parameters.sched_priority = priority;
        // SAFETY: this thread is alive, and so are the parameters.
        let code = unsafe { libc::pthread_setschedparam(libc::pthread_self(), policy, &parameters) };
        match code {
            0 => Ok(()),
            libc::EINVAL if lowest < 0 => Err(Error::argument(format!("sched_policy {policy}: no such policy here"))),
            libc::EINVAL => Err(Error::argument(format!(
                "sched_priority {priority}: sched_policy {policy} has {lowest} to {highest}"
            ))),
            code => Err(Error::io(
                format_args!("setting sched_policy {policy} and sched_priority {priority} of a worker thread"),
                &io::Error::from_raw_os_error(code),
            )),
        }
    }

    #[cfg(not(unix))]
    fn apply(self) -> Result<()> {
        Err(Error::Unsupported("sched_policy: not on this system".into()))
    }
}
