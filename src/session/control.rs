//! What any thread may ask of a session, or do to it, while another is inside: atomics, nothing else.

use crate::Model;
use crate::cpu::energy::Energy;
use crate::tensor::{Ledger, allocations, page_faults};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};

/// Shared by a session and whoever watches it.
pub struct Control {
    run: AtomicU64,
    /// The run to cancel, 0 for none.
    cancel: AtomicU64,
    length: AtomicUsize,
    ns_load: u64,
    kv_bytes: u64,
    ledger: Arc<Ledger>,
    energy: Energy,
    /// Page faults of worker threads that are counted, or were before.
    worker_faults: AtomicU64,
    counters: [AtomicU64; COUNTERS],
    /// Decode steps by duration, see `bucket`.
    durations: [AtomicU32; BUCKETS],
}

/// What is counted.
#[derive(Clone, Copy)]
pub enum Counter {
    Steps,
    TokensPrompt,
    TokensReused,
    TokensOut,
    NsFirstToken,
    NsPrefill,
    NsDecode,
    NsSample,
    StepNsMax,
    NsGrammar,
    NextStepNs,
    DeadlineMisses,
    DeadlineLateNsMax,
    PageFaults,
    Allocations,
    Drafted,
    Accepted,
}
const COUNTERS: usize = Counter::Accepted as usize + 1;

/// Times in ns; the step percentiles are of decode steps since the last reset, to 6 %.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Forward passes that were completed.
    pub steps: u64,
    /// Tokens given to `prompt` and `append`.
    pub tokens_prompt: u64,
    /// Of these, tokens that were in the KV cache already.
    pub tokens_reused: u64,
    /// Tokens committed.
    pub tokens_out: u64,
    /// Loading the model.
    pub ns_load: u64,
    /// From `prompt` or `append` to the first token of the last run.
    pub ns_first_token: u64,
    /// Forward passes before a run's first token.
    pub ns_prefill: u64,
    /// Forward passes after it.
    pub ns_decode: u64,
    /// Choosing tokens.
    pub ns_sample: u64,
    /// Finding which tokens a grammar allows, and following it.
    pub ns_grammar: u64,
    /// Tokens that prompt lookup drafted and a pass computed.
    pub tokens_drafted: u64,
    /// Of these, tokens that came.
    pub tokens_accepted: u64,
    /// Half of the decode steps took at most this.
    pub step_ns_p50: u64,
    /// 95 of 100.
    pub step_ns_p95: u64,
    /// 99 of 100.
    pub step_ns_p99: u64,
    /// The longest.
    pub step_ns_max: u64,
    /// Memory of the KV cache.
    pub kv_bytes: u64,
    /// What the next step will take by what steps took before; 0 = not known yet.
    pub next_step_ns: u64,
    /// Steps that a deadline ended before they were done.
    pub deadline_misses: u64,
    /// The longest that one of these came back after its deadline.
    pub deadline_late_ns_max: u64,
    /// Pages that were not there: of the caller's thread in steps of this session, and of worker threads since it was made.
    pub page_faults: u64,
    /// How often the caller's thread asked for memory in steps; None without the feature `count-allocations`.
    pub allocations: Option<u64>,
    /// Memory of the host that the model and all its sessions have taken.
    pub host_bytes: u64,
    /// Of the device.
    pub device_bytes: u64,
    /// The most of the host's that was taken at a time.
    pub host_peak_bytes: u64,
    /// What the machine's meters counted since the session was made or reset, in joules; -1 = there are none to be read.
    pub energy_joule: f64,
}

impl Control {
    pub(super) fn new(model: &Model, kv_bytes: u64) -> Self {
        let energy = Energy::new(model.meters().clone());
        let control = Control::of(model.info().load_ns, kv_bytes, model.ledger().clone(), energy);
        control.worker_faults.store(model.backend().page_faults(), Relaxed);
        control
    }

    fn of(ns_load: u64, kv_bytes: u64, ledger: Arc<Ledger>, energy: Energy) -> Self {
        Control {
            run: AtomicU64::new(1),
            cancel: AtomicU64::new(0),
            length: AtomicUsize::new(0),
            ns_load,
            kv_bytes,
            ledger,
            energy,
            worker_faults: AtomicU64::new(0),
            counters: [const { AtomicU64::new(0) }; COUNTERS],
            durations: [const { AtomicU32::new(0) }; BUCKETS],
        }
    }

    /// Cancels a run: its step in progress, or else its next one, returns [`crate::Error::Cancelled`], once.
    ///
    /// 0 = the current run. From any thread or signal handler: two atomic operations.
    pub fn cancel(&self, run: u64) {
        self.cancel.store(if run == 0 { self.run() } else { run }, Release);
    }

    /// The number of the current run: `prompt`, `append` and `rewind` start a new one.
    pub fn run(&self) -> u64 {
        self.run.load(Acquire)
    }

    /// Tokens in the sequence.
    pub fn length(&self) -> usize {
        self.length.load(Acquire)
    }

    /// The numbers so far; `reset` sets the counters and percentiles to zero.
    pub fn stats(&self, reset: bool) -> Stats {
        let take = |counter: Counter| {
            let counter = &self.counters[counter as usize];
            if reset { counter.swap(0, Relaxed) } else { counter.load(Relaxed) }
        };
        let mut durations = [0; BUCKETS];
        for (count, bucket) in durations.iter_mut().zip(&self.durations) {
            *count = if reset { bucket.swap(0, Relaxed) } else { bucket.load(Relaxed) };
        }
        let step_ns_max = take(Counter::StepNsMax);
        Stats {
            steps: take(Counter::Steps),
            tokens_prompt: take(Counter::TokensPrompt),
            tokens_reused: take(Counter::TokensReused),
            tokens_out: take(Counter::TokensOut),
            ns_load: self.ns_load,
            ns_first_token: take(Counter::NsFirstToken),
            ns_prefill: take(Counter::NsPrefill),
            ns_decode: take(Counter::NsDecode),
            ns_sample: take(Counter::NsSample),
            ns_grammar: take(Counter::NsGrammar),
            tokens_drafted: take(Counter::Drafted),
            tokens_accepted: take(Counter::Accepted),
            step_ns_p50: percentile(&durations, 50).min(step_ns_max),
            step_ns_p95: percentile(&durations, 95).min(step_ns_max),
            step_ns_p99: percentile(&durations, 99).min(step_ns_max),
            step_ns_max,
            kv_bytes: self.kv_bytes,
            next_step_ns: self.counters[Counter::NextStepNs as usize].load(Relaxed), // No count.
            deadline_misses: take(Counter::DeadlineMisses),
            deadline_late_ns_max: take(Counter::DeadlineLateNsMax),
            page_faults: take(Counter::PageFaults),
            allocations: allocations().map(|_| take(Counter::Allocations)),
            host_bytes: self.ledger.taken().host,
            device_bytes: self.ledger.taken().device,
            host_peak_bytes: self.ledger.host_peak(),
            energy_joule: self.energy.joules(reset),
        }
    }

    pub(super) fn start_run(&self) {
        self.run.fetch_add(1, Release);
    }

    pub(super) fn set_length(&self, length: usize) {
        self.length.store(length, Release);
    }

    pub(super) fn add(&self, counter: Counter, value: u64) {
        self.counters[counter as usize].fetch_add(value, Relaxed);
    }

    pub(super) fn set(&self, counter: Counter, value: u64) {
        self.counters[counter as usize].store(value, Relaxed);
    }

    pub(super) fn missed_deadline(&self, late_ns: u64) {
        self.add(Counter::DeadlineMisses, 1);
        self.counters[Counter::DeadlineLateNsMax as usize].fetch_max(late_ns, Relaxed);
    }

    pub(super) fn decode_step(&self, ns: u64) {
        self.durations[bucket(ns)].fetch_add(1, Relaxed);
        self.counters[Counter::StepNsMax as usize].fetch_max(ns, Relaxed);
    }

    /// Whether the current run is cancelled.
    pub(super) fn cancelled(&self) -> bool {
        self.cancel.load(Acquire) == self.run.load(Relaxed)
    }

    /// Forgets the cancellation that a step has just reported.
    pub(super) fn clear_cancel(&self) {
        let _ = self.cancel.compare_exchange(self.run.load(Relaxed), 0, Relaxed, Relaxed);
    }
}

/// Counts the page faults and allocations of a step, until it is dropped.
pub(super) struct Watch {
    control: Arc<Control>,
    model: Arc<Model>,
    /// Of this thread.
    faults: u64,
    allocations: u64,
}

impl Watch {
    pub(super) fn new(control: &Arc<Control>, model: &Arc<Model>) -> Watch {
        let (faults, allocations) = (page_faults(), allocations().unwrap_or(0));
        Watch { control: control.clone(), model: model.clone(), faults, allocations }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let own = page_faults().saturating_sub(self.faults);
        let workers = self.model.backend().page_faults();
        let known = self.control.worker_faults.swap(workers, Relaxed);
        self.control.add(Counter::Allocations, allocations().unwrap_or(0).saturating_sub(self.allocations));
        self.control.add(Counter::PageFaults, own + workers.saturating_sub(known));
    }
}

/// Buckets a factor 2^(1/16) apart or less: 16 to each power of two.
const STEPS: u32 = 16;
const BUCKETS: usize = (u64::BITS * STEPS) as usize;

fn bucket(ns: u64) -> usize {
    let ns = ns.max(STEPS as u64);
    let power = ns.ilog2();
    (power * STEPS) as usize + (ns >> (power - STEPS.ilog2())) as usize - STEPS as usize
}

/// The upper end of a bucket.
fn bucket_end(bucket: usize) -> u64 {
    let (power, step) = (bucket as u32 / STEPS, bucket as u64 % STEPS as u64);
    (1u64 << power).saturating_add((step + 1) << power >> STEPS.ilog2())
}

fn percentile(durations: &[u32; BUCKETS], percent: u64) -> u64 {
    let total: u64 = durations.iter().map(|&count| count as u64).sum();
    let rank = (total * percent).div_ceil(100);
    let mut seen = 0;
    for (bucket, &count) in durations.iter().enumerate() {
        seen += count as u64;
        if count > 0 && seen >= rank {
            return bucket_end(bucket);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::energy::Meters;
    use crate::tensor::Residence;
    use std::path::Path;

    fn idle() -> Control {
        let meters = Arc::new(Meters::open(Path::new("/no/such/folder")));
        Control::of(0, 0, Ledger::new(None, Residence::Lazy), Energy::new(meters))
    }

    #[test]
    fn percentiles_are_within_a_bucket_of_the_truth() {
        let control = idle();
        for ns in 1..=1000 {
            control.decode_step(ns * 1000);
        }
        let stats = control.stats(true);
        for (found, exact) in [(stats.step_ns_p50, 500e3), (stats.step_ns_p95, 950e3), (stats.step_ns_p99, 990e3)] {
            assert!((found as f64 / exact - 1.0).abs() < 0.07, "{found} for {exact}");
        }
        assert_eq!(stats.step_ns_max, 1_000_000);
        assert_eq!(control.stats(false).step_ns_p50, 0, "a reset starts anew");
        control.decode_step(0);
        assert!(control.stats(false).step_ns_p50 <= 17);
    }

    #[test]
    fn a_cancellation_is_for_one_run_only() {
        let control = idle();
        let first = control.run();
        control.start_run();
        control.cancel(first);
        assert!(!control.cancelled(), "that run is over");
        control.cancel(0);
        assert!(control.cancelled());
        control.clear_cancel();
        assert!(!control.cancelled());
    }
}
