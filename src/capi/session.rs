//! Sessions: made, told what to say and how, freed.

use super::grammar::{EDGELLM_GRAMMAR_NOW, EDGELLM_GRAMMAR_ON_TRIGGER};
use super::guard::{guard, guard_status, guard_unit};
use super::handle::{Handle, Shared, edgellm_grammar, edgellm_model, edgellm_session, with_session};
use super::memory::{Out, check_flags, optional_text, slice, text, tokens};
use super::model::model;
use super::sized::{init, read_optional, sized};
use super::status::{EDGELLM_OK, edgellm_status};
use super::types::{edgellm_logit_bias, edgellm_str, edgellm_token};
use crate::{Error, Grammar, GrammarMode, KvFormat, OnFull, Result, Sampling, Session, SessionOptions};
use std::sync::Arc;

/// F16; of a model loaded with EDGELLM_LOAD_EXACT, f32, which then is the only choice.
pub const EDGELLM_KV_AUTO: i32 = 0;
/// Half precision.
pub const EDGELLM_KV_F16: i32 = 1;
/// int8 in blocks of 32 values that share a 16-bit scale: 53 % of the memory of F16, for contexts that would not fit
/// otherwise. As with F16 the bits of the logits do not depend on what computes them, but they are other bits. Mean KL
/// divergence from exact logits over English prose: SmolLM2-135M (Q4_1, 1024 tokens) 0.0030, with F16 0.0028;
/// Qwen2.5-0.5B (Q4_K_M, 512 tokens) 0.00055, with F16 0.00046. That is the set `plain` of
/// `tests/reference/compare.py MODEL.gguf --tokens N --engines edgellm,edgellm-kv-i8`.
pub const EDGELLM_KV_I8: i32 = 2;

/// The generation ends with EDGELLM_FINISH_LENGTH.
pub const EDGELLM_FULL_STOP: i32 = 0;
/// Of the tokens after the first n_keep the older half is dropped, and generation goes on. What follows them is computed anew
/// at its new positions, by steps like a prompt's (EDGELLM_EV_PREFILL, AGAIN at a deadline). edgellm_session_length shrinks.
/// edgellm_session_prompt and _append drop nothing: more than n_ctx stays E_CONTEXT.
pub const EDGELLM_FULL_SHIFT: i32 = 1;

/// How a session is made.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct edgellm_session_params {
    /// Set by edgellm_session_params_init.
    pub struct_size: u32,
    /// 0: there are none yet.
    pub flags: u32,
    /// How many tokens the session can hold, at most n_ctx_train; 0 = n_ctx_train or 4096, whichever is less.
    pub n_ctx: u32,
    /// Tokens of the prompt per step, at the most; 0 = 512.
    pub prefill_chunk: u32,
    /// EDGELLM_KV_*: what the session keeps of the keys and values of past tokens.
    pub kv_type: i32,
    /// EDGELLM_FULL_*: what happens when a token is to be generated and n_ctx is reached.
    pub on_full: i32,
    /// With EDGELLM_FULL_SHIFT: the first tokens, for example a system prompt, that are never dropped; at most n_ctx - 2.
    pub n_keep: u32,
    /// What a step should stay within, in microseconds; 0 = throughput first. A step takes as many tokens of the prompt as it
    /// can in that time by what steps took before, at least one and at most prefill_chunk; a generated token takes what it
    /// takes. It is a wish: edgellm_step_until keeps to a deadline.
    pub step_budget_us: u32,
}

sized!(edgellm_session_params {
    struct_size: edgellm_session_params::DEFAULT_SIZE,
    flags: 0,
    n_ctx: 0,
    prefill_chunk: 0,
    kv_type: EDGELLM_KV_AUTO,
    on_full: EDGELLM_FULL_STOP,
    n_keep: 0,
    step_budget_us: 0,
});

/// Draft tokens by what followed the same tokens before, in the prompt or the output, or by what a grammar forces, and
/// compute them along with the one that is certain: the same tokens as without it, sooner where text repeats (code that is
/// edited, JSON that is echoed). A step still gives one token; those that were drafted well take only the last part of a pass.
/// stats.tokens_drafted and stats.tokens_accepted say how it goes. On the CPU only.
pub const EDGELLM_SAMPLING_PROMPT_LOOKUP: u32 = 1;

/// How a token is chosen from the logits. The defaults are greedy.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct edgellm_sampling {
    /// Set by edgellm_sampling_init.
    pub struct_size: u32,
    /// EDGELLM_SAMPLING_*, or-ed.
    pub flags: u32,
    /// 0 = greedy: the highest logit, of equal ones the lowest token.
    pub temperature: f32,
    /// Only the k most likely tokens; 0 = off.
    pub top_k: i32,
    /// Only the most likely tokens whose probabilities together reach this; 1 = off.
    pub top_p: f32,
    /// Only tokens at least this many times as likely as the most likely one; 0 = off.
    pub min_p: f32,
    /// Divides the positive and multiplies the negative logits of recent tokens; 1 = off.
    pub repeat_penalty: f32,
    /// Subtracted from a logit for each recent occurrence; 0 = off.
    pub frequency_penalty: f32,
    /// Subtracted from the logit of each recent token; 0 = off.
    pub presence_penalty: f32,
    /// How many of the last tokens are recent.
    pub penalty_last_n: u32,
    /// (seed, position) decides, not the history of calls.
    pub seed: u64,
    /// 0 = until the model ends or the context is full.
    pub max_tokens: u32,
    /// Other than 0: go on after a token that ends a generation.
    pub ignore_eos: u32,
    /// `n_bias` entries.
    pub bias: *const edgellm_logit_bias,
    /// At most the size of the vocabulary.
    pub n_bias: usize,
    /// `n_stops` texts, UTF-8: generation ends before any of them.
    pub stops: *const edgellm_str,
    /// At most 1024.
    pub n_stops: usize,
    /// `n_stop_tokens` tokens: generation ends at any of them.
    pub stop_tokens: *const edgellm_token,
    /// At most the size of the vocabulary.
    pub n_stop_tokens: usize,
    /// How many of the most likely tokens each event tells, at most 20.
    pub n_alternatives: u32,
    /// EDGELLM_GRAMMAR_NOW or EDGELLM_GRAMMAR_ON_TRIGGER.
    pub grammar_mode: u32,
    /// Only tokens that this grammar allows are sampled; NULL = any. It must be of the session's model; the session takes a
    /// reference of its own. It begins at the next token, unless it is the one that is set already, with the same mode and
    /// trigger, which goes on; each _prompt and _append begins it anew. After _rewind it is where it was after the tokens
    /// that are left.
    pub grammar: *mut edgellm_grammar,
    /// With EDGELLM_GRAMMAR_ON_TRIGGER, UTF-8 of at most 256 bytes.
    pub grammar_trigger: edgellm_str,
}

sized!(edgellm_sampling {
    struct_size: edgellm_sampling::DEFAULT_SIZE,
    flags: 0,
    temperature: 0.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    repeat_penalty: 1.0,
    frequency_penalty: 0.0,
    presence_penalty: 0.0,
    penalty_last_n: 64,
    seed: 0,
    max_tokens: 0,
    ignore_eos: 0,
    bias: std::ptr::null(),
    n_bias: 0,
    stops: std::ptr::null(),
    n_stops: 0,
    stop_tokens: std::ptr::null(),
    n_stop_tokens: 0,
    n_alternatives: 0,
    grammar_mode: EDGELLM_GRAMMAR_NOW,
    grammar: std::ptr::null_mut(),
    grammar_trigger: edgellm_str { ptr: std::ptr::null(), len: 0 },
});

/// More stop texts than this are a mistake.
const STOPS_MAX: usize = 1024;

/// Use edgellm_session_params_init.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgellm_session_params_init_(p: *mut edgellm_session_params, size: usize) {
    // SAFETY: the caller's contract.
    guard((), || unsafe { init(p, size) });
}

/// Makes a session with all the memory that it will ever need. *out is the caller's to free. `p` = NULL: all defaults.
///
/// Any thread. The session keeps its own reference to the model. Errors: E_ARG, E_NOMEM, E_FORKED; on a
/// CUDA device also E_DEVICE_MEM, E_DEVICE, and E_UNSUPPORTED (keys and values in int8).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_session_new(
    m: *mut edgellm_model,
    p: *const edgellm_session_params,
    out: *mut *mut edgellm_session,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let (model, params, out) = unsafe { (model(m)?, read_optional(p)?, Out::new(out, "out")?) };
        let options = session_options(&params)?;
        out.write(Handle::new(Shared::new(Session::new(model, &options)?)));
        Ok(EDGELLM_OK)
    })
}

pub(super) fn session_options(params: &edgellm_session_params) -> Result<SessionOptions> {
    check_flags(params.flags, 0, "session_params.flags")?;
    Ok(SessionOptions {
        context_len: params.n_ctx as usize,
        prefill_chunk: params.prefill_chunk as usize,
        step_budget_us: params.step_budget_us,
        kv_format: kv_format(params.kv_type)?,
        on_full: on_full(params)?,
    })
}

fn kv_format(kv_type: i32) -> Result<KvFormat> {
    match kv_type {
        EDGELLM_KV_AUTO => Ok(KvFormat::Auto),
        EDGELLM_KV_F16 => Ok(KvFormat::F16),
        EDGELLM_KV_I8 => Ok(KvFormat::I8),
        unknown => Err(Error::argument(format!("session_params.kv_type: {unknown} is no EDGELLM_KV_*"))),
    }
}

fn on_full(params: &edgellm_session_params) -> Result<OnFull> {
    match params.on_full {
        EDGELLM_FULL_STOP => Ok(OnFull::Stop),
        EDGELLM_FULL_SHIFT => Ok(OnFull::Shift { keep: params.n_keep as usize }),
        unknown => Err(Error::argument(format!("session_params.on_full: {unknown} is no EDGELLM_FULL_*"))),
    }
}

/// Frees a session. Never waits: a step that another thread is in is cancelled, and that thread frees the session when
/// it leaves. NULL is fine. Any thread; no call on this session may begin after it. In a child process after fork() it
/// does nothing: the memory goes with the process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgellm_session_free(s: *mut edgellm_session) {
    guard_unit(|| {
        if !s.is_null() {
            // SAFETY: the caller's contract.
            unsafe { Handle::<Shared>::take(s)? }.free();
        }
        Ok(())
    });
}

/// Use edgellm_sampling_init.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgellm_sampling_init_(p: *mut edgellm_sampling, size: usize) {
    // SAFETY: the caller's contract.
    guard((), || unsafe { init(p, size) });
}

/// Sets how the session chooses tokens, from the next one on. Everything is copied. `p` = NULL: all defaults.
///
/// The session's caller only. Errors: E_ARG (a number that is not finite or out of range, a token out of range, a stop
/// text that is empty or not UTF-8, a grammar of another model), E_UNSUPPORTED (prompt lookup on a CUDA device), E_BUSY, E_NOMEM, E_FORKED, E_INTERNAL.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_session_sampling(
    s: *mut edgellm_session,
    p: *const edgellm_sampling,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let params = unsafe { read_optional(p)? };
        // SAFETY: the caller's contract.
        unsafe {
            with_session(s, |session| {
                let sampling = sampling(&params, session.model().info().vocab_len)?;
                Ok(session.set_sampling(&sampling)?)
            })?;
        }
        Ok(EDGELLM_OK)
    })
}

/// # Safety
/// What `params` points to is valid for its length.
unsafe fn sampling(params: &edgellm_sampling, vocab_len: usize) -> Result<Sampling> {
    check_flags(params.flags, EDGELLM_SAMPLING_PROMPT_LOOKUP, "sampling.flags")?;
    at_most(params.n_bias, vocab_len, "sampling.n_bias")?;
    at_most(params.n_stops, STOPS_MAX, "sampling.n_stops")?;
    at_most(params.n_stop_tokens, vocab_len, "sampling.n_stop_tokens")?;
    let top_k = usize::try_from(params.top_k);
    // SAFETY: the contract.
    let (biases, texts, stop_tokens) = unsafe {
        (
            slice(params.bias, params.n_bias, "sampling.bias")?,
            slice(params.stops, params.n_stops, "sampling.stops")?,
            tokens(params.stop_tokens, params.n_stop_tokens)?,
        )
    };
    // SAFETY: the contract.
    let (grammar, grammar_mode) = unsafe { grammar(params)? };
    let mut stops = reserved(texts.len(), "stop texts")?;
    for stop in texts {
        // SAFETY: the contract.
        let stop = unsafe { text(stop.ptr, stop.len, "sampling.stops")? };
        let mut copy = String::new();
        copy.try_reserve_exact(stop.len()).map_err(|_| Error::NoMemory { what: "a stop text", bytes: stop.len() })?;
        copy.push_str(stop);
        stops.push(copy);
    }
    let mut bias = reserved(biases.len(), "logit biases")?;
    bias.extend(biases.iter().map(|entry| (entry.token as u32, entry.bias)));
    let mut stop_list = reserved(stop_tokens.len(), "stop tokens")?;
    stop_list.extend_from_slice(stop_tokens);
    Ok(Sampling {
        temperature: params.temperature,
        top_k: top_k.map_err(|_| Error::argument(format!("sampling.top_k: {} is negative", params.top_k)))?,
        top_p: params.top_p,
        min_p: params.min_p,
        repeat_penalty: params.repeat_penalty,
        frequency_penalty: params.frequency_penalty,
        presence_penalty: params.presence_penalty,
        penalty_last_n: params.penalty_last_n as usize,
        seed: params.seed,
        max_tokens: params.max_tokens as usize,
        ignore_eos: params.ignore_eos != 0,
        bias,
        stops,
        stop_tokens: stop_list,
        grammar,
        grammar_mode,
        prompt_lookup: params.flags & EDGELLM_SAMPLING_PROMPT_LOOKUP != 0,
        alternatives: params.n_alternatives as usize,
    })
}

/// # Safety
/// As for [`sampling`].
unsafe fn grammar(params: &edgellm_sampling) -> Result<(Option<Arc<Grammar>>, GrammarMode)> {
    let trigger = params.grammar_trigger;
    // SAFETY: the contract.
    let trigger = unsafe { optional_text(trigger.ptr, trigger.len, "sampling.grammar_trigger")? }.unwrap_or_default();
    let mode = match params.grammar_mode {
        EDGELLM_GRAMMAR_NOW if !trigger.is_empty() => {
            return Err(Error::argument("sampling.grammar_trigger: grammar_mode is not EDGELLM_GRAMMAR_ON_TRIGGER"));
        }
        EDGELLM_GRAMMAR_NOW => GrammarMode::Now,
        EDGELLM_GRAMMAR_ON_TRIGGER => GrammarMode::OnTrigger(trigger.to_owned()),
        unknown => return Err(Error::argument(format!("sampling.grammar_mode: {unknown} is no mode"))),
    };
    if params.grammar.is_null() {
        return Ok((None, mode));
    }
    // SAFETY: the contract.
    Ok((Some(Arc::clone(unsafe { Handle::<Arc<Grammar>>::get(params.grammar)? })), mode))
}

fn at_most(count: usize, max: usize, what: &str) -> Result<()> {
    if count <= max { Ok(()) } else { Err(Error::argument(format!("{what} is {count}, at most {max} allowed"))) }
}

fn reserved<T>(len: usize, what: &'static str) -> Result<Vec<T>> {
    let mut list = Vec::new();
    list.try_reserve_exact(len).map_err(|_| Error::NoMemory { what, bytes: len * size_of::<T>() })?;
    Ok(list)
}

/// Starts a run with these `n` tokens. The longest common prefix with what the session already holds is kept and need
/// not be computed again (but its last token always is): *reused says how many tokens, NULL = not asked. The work is done
/// by edgellm_step.
///
/// The session's caller only; no memory is asked for, but by a grammar, and to replace what is shared with a fork
/// (edgellm_session_fork). Errors: E_ARG (also: no tokens, or one out of range), E_CONTEXT (more than n_ctx), E_NOMEM, E_BUSY,
/// E_FORKED, E_INTERNAL.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_session_prompt(
    s: *mut edgellm_session,
    t: *const edgellm_token,
    n: usize,
    reused: *mut usize,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let (tokens, out) = unsafe { (tokens(t, n)?, Out::optional(reused, "reused")?) };
        // SAFETY: the caller's contract.
        let reused = unsafe { with_session(s, |session| Ok(session.prompt(tokens)?))? };
        out.write(reused);
        Ok(EDGELLM_OK)
    })
}

/// Starts a run that goes on with these `n` tokens after what the session holds.
///
/// The session's caller only; no memory is asked for without a grammar. Errors: as edgellm_session_prompt.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_session_append(
    s: *mut edgellm_session,
    t: *const edgellm_token,
    n: usize,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        unsafe {
            let tokens = tokens(t, n)?;
            with_session(s, |session| Ok(session.append(tokens)?))?;
        }
        Ok(EDGELLM_OK)
    })
}

/// Keeps the first `n_keep` tokens of the session and starts a new run from there.
///
/// The session's caller only; no memory is asked for, but by a grammar, and to replace what is shared with a fork
/// (edgellm_session_fork). Errors: E_ARG (more than the session holds), E_NOMEM, E_BUSY, E_FORKED, E_INTERNAL.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_session_rewind(s: *mut edgellm_session, n_keep: usize) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        unsafe { with_session(s, |session| Ok(session.rewind(n_keep)?))? };
        Ok(EDGELLM_OK)
    })
}

/// How many tokens the session holds; 0 when `s` is no session of this process. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgellm_session_length(s: *const edgellm_session) -> usize {
    // SAFETY: the caller's contract.
    guard(0, || unsafe { Handle::<Shared>::get(s) }.map_or(0, |shared| shared.control.length()))
}
