//! Steps: what they return, what stops them, what they cost.

use super::guard::{guard, guard_signal, guard_status};
use super::handle::{Handle, Shared, edgellm_session, with_session};
use super::memory::{Buffer, Out, tokens};
use super::sized::{OutStruct, init, sized};
use super::status::{EDGELLM_AGAIN, EDGELLM_END, EDGELLM_OK, Failure, edgellm_status};
use super::types::{edgellm_str, edgellm_token};
use crate::session::{Alternative, Stats};
use crate::{Error, Event, EventKind, Finish, Result};
use std::time::{Duration, Instant};

/// As a deadline: there is none, as 0 is the default everywhere.
const NO_DEADLINE: u64 = 0;

/// Nothing happened.
pub const EDGELLM_EV_NONE: i32 = 0;
/// A chunk of the prompt is in; no text.
pub const EDGELLM_EV_PREFILL: i32 = 1;
/// One token is committed; its text may be empty: half a character, or held back for a stop text.
pub const EDGELLM_EV_TOKEN: i32 = 2;
/// Generation is over; `text` holds what was still held back.
pub const EDGELLM_EV_END: i32 = 3;

/// It is not over.
pub const EDGELLM_FINISH_NONE: i32 = 0;
/// The model ended it.
pub const EDGELLM_FINISH_EOS: i32 = 1;
/// A stop text or stop token came.
pub const EDGELLM_FINISH_STOP: i32 = 2;
/// max_tokens are out, or the context is full.
pub const EDGELLM_FINISH_LENGTH: i32 = 3;
/// The grammar is complete: nothing may follow. (Where something may, the model ends it: EDGELLM_FINISH_EOS.)
pub const EDGELLM_FINISH_GRAMMAR: i32 = 4;

/// A token that could have come.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct edgellm_alternative {
    /// The token.
    pub token: edgellm_token,
    /// Natural logarithm of its probability in the model, before any sampling setting.
    pub logprob: f32,
}

const _: () = assert!(size_of::<edgellm_alternative>() == size_of::<Alternative>());

/// What a step did.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct edgellm_event {
    /// Set by edgellm_event_init.
    pub struct_size: u32,
    /// EDGELLM_EV_*.
    pub kind: i32,
    /// EDGELLM_FINISH_*.
    pub finish: i32,
    /// The committed token, or the one that ended the generation; -1 = none.
    pub token: edgellm_token,
    /// Natural logarithm of the token's probability in the model, before any sampling setting.
    pub logprob: f32,
    /// How many entries `alternatives` has: with a token, sampling.n_alternatives.
    pub n_alternatives: u32,
    /// Whole UTF-8 characters; valid until the next call on this session except _cancel, _run, _length and _stats.
    pub text: edgellm_str,
    /// Tokens of the prompt that are in, of those that had to be computed.
    pub prompt_done: u64,
    /// Tokens of the prompt that had to be computed.
    pub prompt_total: u64,
    /// Tokens that the session holds.
    pub length: u64,
    /// How long the step took, in nanoseconds.
    pub ns: u64,
    /// The most likely tokens at the place of this one, the likeliest first; valid as long as `text`.
    pub alternatives: *const edgellm_alternative,
}

sized!(edgellm_event {
    struct_size: edgellm_event::DEFAULT_SIZE,
    kind: EDGELLM_EV_NONE,
    finish: EDGELLM_FINISH_NONE,
    token: -1,
    logprob: 0.0,
    n_alternatives: 0,
    text: edgellm_str { ptr: std::ptr::null(), len: 0 },
    prompt_done: 0,
    prompt_total: 0,
    length: 0,
    ns: 0,
    alternatives: std::ptr::null(),
});

/// What the steps of a session cost, in nanoseconds and counts. Set struct_size to sizeof(edgellm_stats) before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct edgellm_stats {
    /// Set by the caller.
    pub struct_size: u32,
    /// Steps.
    pub steps: u32,
    /// Tokens given to _prompt and _append.
    pub tokens_prompt: u64,
    /// Of these, tokens that were there already and were not computed again.
    pub tokens_reused: u64,
    /// Tokens generated.
    pub tokens_out: u64,
    /// Loading the model.
    pub ns_load: u64,
    /// From _prompt or _append to the first token of the last run.
    pub ns_first_token: u64,
    /// Computing prompts.
    pub ns_prefill: u64,
    /// Computing generated tokens.
    pub ns_decode: u64,
    /// Choosing tokens.
    pub ns_sample: u64,
    /// Of the decode steps, half took at most this. The percentiles are exact to 7 %.
    pub step_ns_p50: u64,
    /// 95 of 100 took at most this.
    pub step_ns_p95: u64,
    /// 99 of 100 took at most this.
    pub step_ns_p99: u64,
    /// The longest.
    pub step_ns_max: u64,
    /// Memory of the KV cache, in bytes.
    pub kv_bytes: u64,
    /// Finding which tokens a grammar allows, and following it.
    pub ns_grammar: u64,
    /// What the next step will take, by what steps took before: for admission control. 0 = not known yet.
    pub next_step_ns: u64,
    /// Calls that returned AGAIN: they were not done by their deadline.
    pub deadline_misses: u64,
    /// The longest that one of these came back after its deadline.
    pub deadline_late_ns_max: u64,
    /// Pages of memory that were not there when a step needed them: of the caller's thread in this session's steps, and of
    /// worker threads in whatever they did since the session was made, as far as they have slept since. Linux only, else 0.
    pub page_faults_in_step: u64,
    /// How often the caller's thread asked for memory in this session's steps; UINT64_MAX where that is not counted: the library
    /// was built without the feature `count-allocations`.
    pub allocations_in_step: u64,
    /// Memory that the model and all its sessions have taken on the host, in bytes, as edgellm_plan_memory counts it.
    pub host_bytes: u64,
    /// And on the device.
    pub device_bytes: u64,
    /// The most of the host's that was taken at a time, loading the model included.
    pub host_peak_bytes: u64,
    /// What the machine took since the session was made or its counts were reset, in joules: by RAPL the energy of all
    /// processor packages, on boards with an INA3221 that of the rail of the whole board, or else of all its rails, as mean of
    /// the power at two calls of this function times the time between them. -1 where there is no meter that may be read.
    pub energy_joule: f64,
    /// Tokens that prompt lookup drafted and a pass computed.
    pub tokens_drafted: u64,
    /// Of these, tokens that came.
    pub tokens_accepted: u64,
}

sized!(edgellm_stats {
    struct_size: edgellm_stats::DEFAULT_SIZE,
    steps: 0,
    tokens_prompt: 0,
    tokens_reused: 0,
    tokens_out: 0,
    ns_load: 0,
    ns_first_token: 0,
    ns_prefill: 0,
    ns_decode: 0,
    ns_sample: 0,
    step_ns_p50: 0,
    step_ns_p95: 0,
    step_ns_p99: 0,
    step_ns_max: 0,
    kv_bytes: 0,
    ns_grammar: 0,
    next_step_ns: 0,
    deadline_misses: 0,
    deadline_late_ns_max: 0,
    page_faults_in_step: 0,
    allocations_in_step: u64::MAX,
    host_bytes: 0,
    device_bytes: 0,
    host_peak_bytes: 0,
    energy_joule: -1.0,
    tokens_drafted: 0,
    tokens_accepted: 0,
});

/// The event as C sees it; the text still belongs to the session.
fn for_c(event: &Event) -> (edgellm_status, edgellm_event) {
    let (status, kind) = match event.kind {
        EventKind::Again => (EDGELLM_AGAIN, EDGELLM_EV_NONE),
        EventKind::Prefill => (EDGELLM_OK, EDGELLM_EV_PREFILL),
        EventKind::Token => (EDGELLM_OK, EDGELLM_EV_TOKEN),
        EventKind::End => (EDGELLM_END, EDGELLM_EV_END),
    };
    let finish = match event.finish {
        None => EDGELLM_FINISH_NONE,
        Some(Finish::Eos) => EDGELLM_FINISH_EOS,
        Some(Finish::Stop) => EDGELLM_FINISH_STOP,
        Some(Finish::Length) => EDGELLM_FINISH_LENGTH,
        Some(Finish::Grammar) => EDGELLM_FINISH_GRAMMAR,
    };
    let event = edgellm_event {
        struct_size: edgellm_event::DEFAULT_SIZE,
        kind,
        finish,
        token: event.token.map_or(-1, |token| token as i32),
        logprob: event.logprob,
        n_alternatives: event.alternatives.len() as u32,
        text: event.text.as_bytes().into(),
        prompt_done: event.prompt_done as u64,
        prompt_total: event.prompt_total as u64,
        length: event.length as u64,
        ns: event.ns,
        alternatives: match event.alternatives {
            [] => std::ptr::null(),
            list => list.as_ptr().cast(),
        },
    };
    (status, event)
}

/// A time of CLOCK_MONOTONIC as the `Instant` nearest to it that there is; None = no deadline.
fn deadline(deadline_ns: u64) -> Result<Option<Instant>> {
    if deadline_ns == NO_DEADLINE {
        return Ok(None);
    }
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the answer.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) } != 0 {
        return Err(Error::io("CLOCK_MONOTONIC", &std::io::Error::last_os_error()));
    }
    let now_ns = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
    // An `Instant` cannot be made of a number, only of now and a difference. What is past may as well be now.
    Ok(Instant::now().checked_add(Duration::from_nanos(deadline_ns.saturating_sub(now_ns))))
}

/// Use edgellm_event_init.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgellm_event_init_(ev: *mut edgellm_event, size: usize) {
    // SAFETY: the caller's contract.
    guard((), || unsafe { init(ev, size) });
}

/// At most one forward pass: one chunk of the prompt or one token. OK: *ev says what was done, call again. END: the
/// generation is over, *ev says why, and so does every further step; _prompt, _append or _rewind start the next one. The
/// step that takes in the last of the prompt also gives the first token.
///
/// The session's caller only. After the first step no memory is asked for, and no file is ever touched. A step that fails
/// leaves the session as it was before, and *ev too. Errors: E_ARG, E_STATE (nothing to go on from), E_CONTEXT,
/// E_CANCELLED, E_GRAMMAR (it cannot go on: no token fits, or finding one exceeds a bound; start a new run), E_BUSY, E_DEVICE
/// (the CUDA device is lost or failed: free the session), E_FORKED, E_INTERNAL.
///
/// With a grammar, its parser asks for memory at each token, and gives back most of it: under a JSON schema with Qwen2.5's
/// vocabulary 38 times and 53 KB at the median, 483 times and 125 KB at the 99th percentile. When the grammar is complete,
/// the last token comes as any other, and the next step is END.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_step(s: *mut edgellm_session, ev: *mut edgellm_event) -> edgellm_status {
    // SAFETY: the caller's contract.
    guard_status(|| unsafe { step(s, NO_DEADLINE, ev) })
}

/// edgellm_step that gives the thread back at the first stage of a layer that ends after `deadline_ns`, a time of
/// CLOCK_MONOTONIC in nanoseconds: AGAIN, nothing is lost, and the next call goes on from there. 0 = no deadline.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_step_until(
    s: *mut edgellm_session,
    deadline_ns: u64,
    ev: *mut edgellm_event,
) -> edgellm_status {
    // SAFETY: the caller's contract.
    guard_status(|| unsafe { step(s, deadline_ns, ev) })
}

/// # Safety
/// As for `edgellm_step`.
unsafe fn step(s: *mut edgellm_session, deadline_ns: u64, ev: *mut edgellm_event) -> Result<edgellm_status, Failure> {
    let deadline = deadline(deadline_ns)?;
    // SAFETY: the caller's contract.
    let out = unsafe { OutStruct::new(ev)? };
    // SAFETY: the caller's contract.
    let (status, event) = unsafe { with_session(s, |session| Ok(for_c(&session.step(deadline)?)))? };
    out.write(&event);
    Ok(status)
}

/// Ends a run from outside: the step that it is in, or its next one, returns EDGELLM_E_CANCELLED. `run` is a number from
/// edgellm_session_run, so that a late cancel cannot hit the next run; 0 = whatever runs now. It takes effect within one
/// stage of a layer.
///
/// Any thread, any signal handler, while the session is not freed. Nothing happens when `s` is no session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgellm_session_cancel(s: *mut edgellm_session, run: u64) {
    // No failure is recorded: a signal handler may have interrupted whoever is reading it.
    guard_signal((), || {
        // SAFETY: the caller's contract.
        if let Ok(shared) = unsafe { Handle::<Shared>::get(s) } {
            shared.control.cancel(run);
        }
    });
}

/// The number of the current run, for edgellm_session_cancel. _prompt, _append and _rewind start a new one. 0 when `s` is
/// no session of this process. Any thread, any signal handler.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgellm_session_run(s: *const edgellm_session) -> u64 {
    // SAFETY: the caller's contract.
    guard_signal(0, || unsafe { Handle::<Shared>::get(s) }.map_or(0, |shared| shared.control.run()))
}

/// For samplers of your own: computes all tokens that are pending and leaves the logits of the next one. Returns AGAIN
/// when `deadline_ns` came first (as for edgellm_step_until; 0 = no deadline).
///
/// The session's caller only; asks for no memory after the first. Errors: as edgellm_step.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_forward(s: *mut edgellm_session, deadline_ns: u64) -> edgellm_status {
    guard_status(|| {
        let deadline = deadline(deadline_ns)?;
        // SAFETY: the caller's contract.
        let done = unsafe { with_session(s, |session| Ok(session.forward(deadline)?))? };
        Ok(if done { EDGELLM_OK } else { EDGELLM_AGAIN })
    })
}

/// The logits that edgellm_forward left: *n of them (n_vocab), one per token of the vocabulary, negative infinity where the
/// grammar does not let the token come next. *out is valid until the next call on this session except _cancel, _run, _length
/// and _stats.
///
/// The session's caller only. Errors: E_ARG, E_STATE (no edgellm_forward before), E_GRAMMAR (it cannot go on), E_BUSY,
/// E_FORKED, E_INTERNAL.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_logits(
    s: *mut edgellm_session,
    out: *mut *const f32,
    n: *mut usize,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let (out, len) = unsafe { (Out::new(out, "out")?, Out::new(n, "n")?) };
        // SAFETY: the caller's contract.
        let logits = unsafe { with_session(s, |session| Ok(std::ptr::from_ref(session.logits()?)))? };
        out.write(logits.cast());
        len.write(logits.len());
        Ok(EDGELLM_OK)
    })
}

/// Commits a token of the caller's choice after edgellm_forward, as edgellm_step commits its own: OK or END and *ev. The token
/// that completes the grammar is END, with its text.
///
/// The session's caller only. Errors: E_ARG (also: a token out of range), E_STATE (no edgellm_forward before), E_CONTEXT,
/// E_GRAMMAR (which does not allow the token), E_BUSY, E_FORKED, E_INTERNAL.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_accept(
    s: *mut edgellm_session,
    t: edgellm_token,
    ev: *mut edgellm_event,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { OutStruct::new(ev)? };
        let token = u32::try_from(t).map_err(|_| Error::argument(format!("token {t} is negative")))?;
        // SAFETY: the caller's contract.
        let (status, event) = unsafe { with_session(s, |session| Ok(for_c(&session.accept(token)?)))? };
        out.write(&event);
        Ok(status)
    })
}

/// How likely these `n` tokens are after what the session holds: to rank what a robot may do next without generating it.
/// logprobs[i] becomes the natural logarithm of the probability of t[i] after the session's tokens and t[0] to t[i - 1], in
/// the model, before any sampling setting. Their sum is that of the whole text.
///
/// The session stays as it is: what is pending of its prompt is computed first (that work is kept, and a step need not do it
/// again), then these tokens in passes of prefill_chunk, and nothing of them is kept. The session's caller only; asks for no
/// memory after the session's first. A failure has written nothing. Errors: E_ARG (also: no tokens, or one out of range),
/// E_STATE (the session holds no tokens), E_CONTEXT (they do not fit after those that it holds), E_CANCELLED, E_NOMEM,
/// E_BUSY, E_DEVICE, E_FORKED, E_INTERNAL.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_score(
    s: *mut edgellm_session,
    t: *const edgellm_token,
    n: usize,
    logprobs: *mut f32,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let (tokens, mut count) = (unsafe { tokens(t, n)? }, 0);
        // SAFETY: the caller's contract; the count that is written is a variable of ours.
        let out = unsafe { Buffer::new(logprobs, n, &mut count)? };
        // SAFETY: the caller's contract.
        unsafe { with_session(s, |session| out.write(session.score(tokens)?)) }
    })
}

/// What the session's steps took until now; `reset` other than 0 then starts all counts and percentiles anew.
///
/// Any thread, also during a step. Errors: E_ARG, E_FORKED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_session_stats(
    s: *const edgellm_session,
    out: *mut edgellm_stats,
    reset: u32,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let (shared, out) = unsafe { (Handle::<Shared>::get(s)?, OutStruct::new(out)?) };
        let stats: Stats = shared.control.stats(reset != 0);
        out.write(&edgellm_stats {
            struct_size: edgellm_stats::DEFAULT_SIZE,
            steps: u32::try_from(stats.steps).unwrap_or(u32::MAX),
            tokens_prompt: stats.tokens_prompt,
            tokens_reused: stats.tokens_reused,
            tokens_out: stats.tokens_out,
            ns_load: stats.ns_load,
            ns_first_token: stats.ns_first_token,
            ns_prefill: stats.ns_prefill,
            ns_decode: stats.ns_decode,
            ns_sample: stats.ns_sample,
            step_ns_p50: stats.step_ns_p50,
            step_ns_p95: stats.step_ns_p95,
            step_ns_p99: stats.step_ns_p99,
            step_ns_max: stats.step_ns_max,
            kv_bytes: stats.kv_bytes,
            ns_grammar: stats.ns_grammar,
            next_step_ns: stats.next_step_ns,
            deadline_misses: stats.deadline_misses,
            deadline_late_ns_max: stats.deadline_late_ns_max,
            page_faults_in_step: stats.page_faults,
            allocations_in_step: stats.allocations.unwrap_or(u64::MAX),
            host_bytes: stats.host_bytes,
            device_bytes: stats.device_bytes,
            host_peak_bytes: stats.host_peak_bytes,
            energy_joule: stats.energy_joule,
            tokens_drafted: stats.tokens_drafted,
            tokens_accepted: stats.tokens_accepted,
        });
        Ok(EDGELLM_OK)
    })
}
