//! One sequence being generated.

mod alternatives;
mod constraint;
mod control;
mod fork;
mod lookup;
mod memory;
mod pace;
mod saved;
mod score;
mod text;

pub use alternatives::Alternative;
pub use control::{Control, Stats};
pub use memory::SessionPlan;
pub use saved::Saving;

use crate::backend::{Device, KvFormat, Sequence, SequenceMemory};
use crate::cpu::environment::FloatEnvironment;
use crate::model::forward::{self, Pass, Progress};
use crate::sampler::Sampler;
use crate::tensor::{Residence, Taken};
use crate::tokenizer::Tokenizer;
use crate::{Error, Model, Result, Sampling};
use alternatives::Alternatives;
use constraint::Constraint;
use control::{Counter, Watch};
use lookup::Lookup;
use memory::{Own, own_memory, warm_up};
use pace::Pace;
use score::Scored;
use std::sync::Arc;
use std::time::Instant;
use text::TextOut;

/// How a session is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionOptions {
    /// How many tokens the session can hold; 0 = what the model was trained for, at most 4096.
    pub context_len: usize,
    /// Prompt tokens in one step; 0 = 512.
    pub prefill_chunk: usize,
    /// What a step should stay within, in microseconds: its part of a prompt is chosen so, by what steps took before; 0 = the
    /// whole chunk. A generated token takes what it takes.
    pub step_budget_us: u32,
    /// What is kept of keys and values.
    pub kv_format: KvFormat,
    /// What happens when a token is to be generated and the context is full.
    pub on_full: OnFull,
}

/// What a session does when its context is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFull {
    /// The run ends with [`Finish::Length`].
    #[default]
    Stop,
    /// Keeps the first `keep` tokens (a system prompt), drops the older half of the others, and goes on: what follows the
    /// dropped ones is computed anew at its new positions, in steps as a prompt is. `prompt` and `append` drop nothing.
    Shift {
        /// At most the context length less 2.
        keep: usize,
    },
}

impl SessionOptions {
    /// The context length and the most tokens of a pass.
    fn sizes(&self, context_len_max: usize) -> Result<(usize, usize)> {
        let context_len = match self.context_len {
            0 => context_len_max.min(CONTEXT_DEFAULT_MAX),
            wanted if wanted <= context_len_max => wanted,
            wanted => {
                let text = format!("context length {wanted}: the model was trained for {context_len_max}");
                return Err(Error::argument(text));
            }
        };
        let prefill_chunk = match self.prefill_chunk {
            0 => PREFILL_CHUNK_DEFAULT,
            chunk => chunk,
        };
        if let OnFull::Shift { keep } = self.on_full
            && keep.saturating_add(2) > context_len
        {
            let text =
                format!("{keep} tokens to keep of a full context: it has {context_len}, of which 2 must be free to go");
            return Err(Error::argument(text));
        }
        Ok((context_len, prefill_chunk.min(context_len)))
    }
}

const CONTEXT_DEFAULT_MAX: usize = 4096;
const PREFILL_CHUNK_DEFAULT: usize = 512;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The deadline came: nothing is lost, call again.
    Again,
    /// A chunk of the prompt is in; no text.
    Prefill,
    /// One token is committed; its text may be empty (half a character, or held back for a stop text).
    Token,
    /// Generation is over, see `finish`; `text` is what was still held back.
    End,
}

/// Why generation is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// An end-of-generation token of the model.
    Eos,
    /// A stop text or a stop token.
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
    /// The grammar is complete: nothing may follow.
    Grammar,
}

/// What a step did, in full.
#[derive(Clone, Debug)]
pub struct Event<'a> {
    /// What kind of step it was.
    pub kind: EventKind,
    /// Why it is over, with [`EventKind::End`].
    pub finish: Option<Finish>,
    /// The token committed by this step: also the EOS or stop token that ended the run.
    pub token: Option<u32>,
    /// log of the token's probability under the model, before bias, penalties and temperature; 0 without a token.
    pub logprob: f32,
    /// With a token: the most likely ones under the model, the likeliest first; as many as the sampling asks for.
    pub alternatives: &'a [Alternative],
    /// Whole UTF-8 characters.
    pub text: &'a str,
    /// Tokens of the run's prompt that are in, of those that had to be computed.
    pub prompt_done: usize,
    /// Tokens of the run's prompt that had to be computed.
    pub prompt_total: usize,
    /// Tokens in the sequence.
    pub length: usize,
    /// Time this step took.
    pub ns: u64,
}

/// One sequence: its tokens, KV cache and sampling. One thread at a time (`&mut`).
pub struct Session {
    model: Arc<Model>,
    sequence: Box<dyn Sequence>,
    context_len: usize,
    on_full: OnFull,
    pace: Pace,
    tokens: Vec<u32>,
    /// How many tokens were dropped from a full context since `prompt`: the next one's position counts them.
    dropped: usize,
    /// How many of `tokens` are in the KV cache.
    cached: usize,
    /// The logits after the last of `tokens` are there.
    logits_ready: bool,
    /// The pass over `tokens[cached..]` that a deadline interrupted.
    pass: Option<Interrupted>,
    lookup: Lookup,
    run: Run,
    sampling: Sampling,
    sampler: Sampler,
    constraint: Option<Constraint>,
    alternatives: Alternatives,
    text: TextOut,
    scored: Option<Scored>,
    control: Arc<Control>,
    _taken: Taken,
}

/// A pass that a deadline interrupted: how many tokens, how far it is, and what it has taken.
#[derive(Default)]
struct Interrupted {
    count: usize,
    progress: Progress,
    ns: u64,
}

/// What has happened since `prompt`, `append` or `rewind`.
#[derive(Clone, Copy)]
struct Run {
    start: Instant,
    /// The tokens `prompt_start..prompt_end` were not in the cache when the run started.
    prompt_start: usize,
    prompt_end: usize,
    /// Tokens committed by this run.
    generated: usize,
    finish: Option<Finish>,
}

/// The parts of an event that do not borrow.
struct Outcome {
    kind: EventKind,
    token: Option<u32>,
    logprob: f32,
}

impl Outcome {
    fn of(kind: EventKind) -> Self {
        Outcome { kind, token: None, logprob: 0.0 }
    }
}

impl Session {
    /// Allocates everything that the session will ever need, the whole KV cache among it.
    pub fn new(model: &Arc<Model>, options: &SessionOptions) -> Result<Session> {
        let (context_len, prefill_chunk) = options.sizes(model.config().context_len_max)?;
        let own = own_memory(model.config().shape.vocab_len, context_len);
        let memory = model.backend().sequence_memory(context_len, prefill_chunk, options.kv_format)?;
        // All of it has room, and then its parts are taken: some are shared with forks, and may outlive this session.
        drop(model.ledger().take("a session", memory.kv + memory.scratch + own)?);
        let mut sequence = model.backend().new_sequence(context_len, prefill_chunk, options.kv_format)?;
        let Own { tokens, sampler, taken } = Own::new(model, context_len)?;
        if model.ledger().residence() != Residence::Lazy {
            warm_up(&mut *sequence, model, context_len)?;
        }
        // Threads say what they have met until now.
        model.run_on_threads(&|_| ())?;
        Ok(Session {
            control: Arc::new(Control::new(model, sequence.kv_bytes() as u64)),
            sequence,
            sampler,
            text: TextOut::new(model.tokenizer())?,
            context_len,
            on_full: options.on_full,
            pace: Pace::new(prefill_chunk, options.step_budget_us),
            tokens,
            dropped: 0,
            cached: 0,
            logits_ready: false,
            pass: None,
            lookup: Lookup::new()?,
            run: Run { start: Instant::now(), prompt_start: 0, prompt_end: 0, generated: 0, finish: None },
            sampling: Sampling::default(),
            constraint: None,
            alternatives: Alternatives::default(),
            scored: None,
            _taken: taken,
            model: model.clone(),
        })
    }

    /// What other threads may use while this session is in a step.
    pub fn control(&self) -> Arc<Control> {
        self.control.clone()
    }

    /// What the sequence holds of memory.
    pub fn held(&self) -> SequenceMemory {
        self.sequence.held()
    }

    /// The model it was made from.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// How many tokens fit.
    pub fn context_len(&self) -> usize {
        self.context_len
    }

    /// The sequence so far: prompt and generated tokens, an EOS token among them.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Checks and copies all of it. Takes effect at the next token: a grammar begins there, unless it is the one that was
    /// set before.
    pub fn set_sampling(&mut self, sampling: &Sampling) -> Result<()> {
        let vocab_len = self.model.config().shape.vocab_len;
        sampling.check(vocab_len)?;
        if sampling.grammar.as_ref().is_some_and(|grammar| !self.model.owns(grammar)) {
            return Err(Error::argument("sampling: the grammar was made for another model"));
        }
        if sampling.prompt_lookup && self.model.backend().device() != Device::Cpu {
            // A device's sums for one token differ from those for several.
            return Err(Error::Unsupported("sampling: prompt lookup runs on the CPU only".into()));
        }
        let keeps = self.constraint.as_ref().is_some_and(|constraint| constraint.serves(sampling));
        let longest = self.model.tokenizer().map_or(0, Tokenizer::longest_token);
        let fresh = if keeps { None } else { Constraint::new(sampling, self.tokens.len(), vocab_len, longest)? };
        self.alternatives.reserve(sampling.alternatives)?;
        self.text.set_stops(&sampling.stops)?;
        if !keeps {
            self.constraint = fresh;
        }
        self.sampling = sampling.clone();
        Ok(())
    }

    /// Starts a run with these tokens. What the KV cache already has of them is kept: returns how many.
    pub fn prompt(&mut self, tokens: &[u32]) -> Result<usize> {
        self.check_new(tokens, 0)?;
        let common = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        self.start_run(common, &tokens[common..])?;
        self.dropped = 0;
        self.begin_grammar();
        self.control.add(Counter::TokensReused, self.cached as u64);
        self.control.add(Counter::TokensPrompt, tokens.len() as u64);
        Ok(self.cached)
    }

    /// Starts a run that goes on with these tokens after the sequence.
    pub fn append(&mut self, tokens: &[u32]) -> Result<()> {
        self.check_new(tokens, self.tokens.len())?;
        self.start_run(self.tokens.len(), tokens)?;
        self.begin_grammar();
        self.control.add(Counter::TokensPrompt, tokens.len() as u64);
        Ok(())
    }

    /// Keeps the first `keep` tokens and starts a new run. A grammar stays where it was after the tokens that are kept, and
    /// begins anew when it began after them.
    pub fn rewind(&mut self, keep: usize) -> Result<()> {
        if keep > self.tokens.len() {
            let text = format!("rewind to {keep}: the sequence has {} tokens", self.tokens.len());
            return Err(Error::argument(text));
        }
        self.start_run(keep, &[])?;
        let model = &self.model;
        match &mut self.constraint {
            Some(constraint) => constraint.cut(&self.tokens, |token| bytes_of(model, token)),
            None => Ok(()),
        }
    }

    fn begin_grammar(&mut self) {
        if let Some(constraint) = &mut self.constraint {
            constraint.begin(self.tokens.len());
        }
    }

    fn check_new(&self, tokens: &[u32], before: usize) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::argument("no tokens"));
        }
        let wanted = before.saturating_add(tokens.len());
        if wanted > self.context_len {
            return Err(Error::Context { capacity: self.context_len, wanted });
        }
        let vocab_len = self.model.config().shape.vocab_len;
        if let Some(i) = tokens.iter().position(|&token| token as usize >= vocab_len) {
            let text = format!("token {} at index {i} is out of range: the vocabulary has {vocab_len}", tokens[i]);
            return Err(Error::argument(text));
        }
        Ok(())
    }

    /// Keeps the first `keep` tokens, adds `more`, and starts a run.
    fn start_run(&mut self, keep: usize, more: &[u32]) -> Result<()> {
        // The last token always runs again: its logits are what the run begins with.
        let cached = self.cached.min(keep).min((keep + more.len()).saturating_sub(1));
        self.sequence.unshare(cached)?;
        self.cached = cached;
        self.tokens.truncate(keep);
        self.tokens.extend_from_slice(more);
        self.logits_ready = false;
        self.pass = None;
        self.lookup.clear();
        self.text.clear();
        let (prompt_start, prompt_end) = (self.cached, self.tokens.len());
        self.run = Run { start: Instant::now(), prompt_start, prompt_end, generated: 0, finish: None };
        self.control.start_run();
        self.control.set(Counter::NextStepNs, self.pace.next_ns(self.tokens.len() - self.cached));
        self.control.set_length(self.tokens.len());
        Ok(())
    }

    /// Drops the older half of what follows the tokens to keep, when the context is full and that is wanted.
    fn make_room(&mut self) -> Result<()> {
        let OnFull::Shift { keep } = self.on_full else { return Ok(()) };
        let len = self.tokens.len();
        if len < self.context_len {
            return Ok(());
        }
        let cached = self.cached.min(keep);
        self.sequence.unshare(cached)?;
        let drop = (len - keep) / 2;
        self.tokens.drain(keep..keep + drop);
        self.dropped += drop;
        if let Some(constraint) = &mut self.constraint {
            constraint.tokens_dropped(keep, drop);
        }
        self.cached = cached;
        (self.logits_ready, self.pass) = (false, None);
        self.lookup.clear();
        // To be computed like a prompt, whose progress events tell.
        (self.run.prompt_start, self.run.prompt_end) = (cached, self.tokens.len());
        self.control.set_length(self.tokens.len());
        Ok(())
    }

    /// At most one forward pass: one prefill chunk or one token. Past `deadline`: [`EventKind::Again`].
    ///
    /// The step that takes in the last of the prompt also commits the first token. An error has changed nothing.
    pub fn step(&mut self, deadline: Option<Instant>) -> Result<Event<'_>> {
        let _environment = FloatEnvironment::enter();
        let _watch = Watch::new(&self.control, &self.model);
        let start = Instant::now();
        self.text.silence();
        let outcome = self.step_inner(start, deadline)?;
        Ok(self.event(outcome, start))
    }

    fn step_inner(&mut self, start: Instant, deadline: Option<Instant>) -> Result<Outcome> {
        if self.run.finish.is_some() {
            return Ok(Outcome::of(EventKind::End));
        }
        if self.constraint.as_ref().is_some_and(Constraint::is_complete) {
            return Ok(self.finish(Finish::Grammar, Outcome::of(EventKind::End)));
        }
        let enough = self.sampling.max_tokens > 0 && self.run.generated >= self.sampling.max_tokens;
        if !enough {
            self.make_room()?;
        }
        let full = self.tokens.len() >= self.context_len && self.run.generated > 0;
        if full || enough {
            return Ok(self.finish(Finish::Length, Outcome::of(EventKind::End)));
        }
        if self.logits_ready && self.control.cancelled() {
            self.control.clear_cancel(); // There is no pass that would see it.
            return Err(Error::Cancelled);
        }
        self.prepare_grammar()?;
        let decodes = self.cached >= self.run.prompt_end && self.run.generated > 0;
        if !self.logits_ready && !self.run_pass(deadline)? {
            return Ok(Outcome::of(EventKind::Again));
        }
        if !self.logits_ready {
            return Ok(Outcome::of(EventKind::Prefill));
        }
        if self.tokens.len() >= self.context_len {
            return Ok(self.finish(Finish::Length, Outcome::of(EventKind::End)));
        }
        let sampling_start = Instant::now();
        let token = self.choose()?;
        let logprob = self.logprob(token)?;
        self.control.add(Counter::NsSample, sampling_start.elapsed().as_nanos() as u64);
        if decodes {
            self.control.decode_step(start.elapsed().as_nanos() as u64);
        }
        self.commit(token, logprob)
    }

    /// Finds the tokens that the grammar lets come next. Before the pass, so that its time does not come after the last
    /// border at which a deadline is asked for.
    fn prepare_grammar(&mut self) -> Result<()> {
        let Some(constraint) = &mut self.constraint else { return Ok(()) };
        let start = Instant::now();
        let prepared = constraint.prepare();
        self.control.add(Counter::NsGrammar, start.elapsed().as_nanos() as u64);
        prepared
    }

    fn choose(&mut self) -> Result<u32> {
        loop {
            let mask = self.constraint.as_ref().and_then(Constraint::mask);
            let token = match self.sequence.best() {
                Some((token, _)) if mask.is_none() && self.sampling.is_plain_greedy() => token,
                _ => {
                    let position = (self.dropped + self.tokens.len()) as u64;
                    self.sampler.choose(&self.sampling, self.sequence.logits()?, &self.tokens, position, mask)?
                }
            };
            let bytes = bytes_of(&self.model, token);
            if self.constraint.as_mut().map_or(Ok(true), |constraint| constraint.allows(token, bytes))? {
                return Ok(token);
            }
        }
    }

    /// For samplers of the caller's own: runs all tokens that are not in the cache, and leaves the logits.
    ///
    /// False = the deadline came first: call again.
    pub fn forward(&mut self, deadline: Option<Instant>) -> Result<bool> {
        let _environment = FloatEnvironment::enter();
        self.make_room()?;
        let _watch = Watch::new(&self.control, &self.model);
        while !self.logits_ready {
            if !self.run_pass(deadline)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The logits that `forward` left, one per vocabulary entry; negative infinity where the grammar does not let the token
    /// come next. `accept`, `step` and a new run end their validity.
    pub fn logits(&mut self) -> Result<&[f32]> {
        if !self.logits_ready {
            return Err(Error::State("no logits: call forward first".into()));
        }
        self.prepare_grammar()?;
        match self.constraint.as_ref().and_then(Constraint::mask) {
            Some(mask) => self.sampler.masked(self.sequence.logits()?, mask),
            None => self.sequence.logits(),
        }
    }

    /// Commits a token of the caller's choice after `forward`. The event is as `step`'s.
    pub fn accept(&mut self, token: u32) -> Result<Event<'_>> {
        let _environment = FloatEnvironment::enter();
        let start = Instant::now();
        if !self.logits_ready {
            return Err(Error::State("accept: call forward first".into()));
        }
        self.check_new(&[token], self.tokens.len())?;
        self.prepare_grammar()?;
        if let Some(constraint) = &mut self.constraint
            && !constraint.allows(token, bytes_of(&self.model, token))?
        {
            return Err(Error::Grammar(format!("accept: the grammar does not allow token {token} here").into()));
        }
        self.text.silence();
        self.run.finish = None;
        let logprob = self.logprob(token)?;
        let mut outcome = self.commit(token, logprob)?;
        if outcome.kind == EventKind::Token && self.constraint.as_ref().is_some_and(Constraint::is_complete) {
            outcome = self.finish(Finish::Grammar, outcome);
        }
        Ok(self.event(outcome, start))
    }

    /// One pass over the next tokens, at most a chunk; false when the deadline interrupted it.
    fn run_pass(&mut self, deadline: Option<Instant>) -> Result<bool> {
        let pending = self.tokens.len() - self.cached;
        if pending == 0 {
            return Err(Error::State("no tokens: call prompt or append first".into()));
        }
        let start = Instant::now();
        let counter = if self.cached < self.run.prompt_end { Counter::NsPrefill } else { Counter::NsDecode };
        if !self.control.cancelled()
            && let Some(row) = self.lookup.take_row()
        {
            self.logits_of_row(row)?;
            self.control.add(counter, start.elapsed().as_nanos() as u64);
            return Ok(true);
        }
        let Interrupted { count, mut progress, ns } = match self.pass.take() {
            Some(pass) => pass,
            None if self.draft()? => Interrupted { count: self.lookup.tokens().len(), ..Interrupted::default() },
            None => Interrupted { count: pending.min(self.pace.chunk()), ..Interrupted::default() },
        };
        let drafts = !self.lookup.tokens().is_empty();
        let decode = count == 1 && self.cached >= self.run.prompt_end;
        let pass = Pass {
            tokens: if drafts { self.lookup.tokens() } else { &self.tokens[self.cached..self.cached + count] },
            position: self.cached,
            head: count == pending && !drafts,
            decode,
            paced: deadline.is_some(),
        };
        let mut cancelled = self.control.cancelled();
        let done = !cancelled
            && forward::forward(&mut *self.sequence, self.model.config().shape.layers, &pass, &mut progress, || {
                cancelled = self.control.cancelled();
                cancelled || deadline.is_some_and(|deadline| Instant::now() >= deadline)
            })?;
        if cancelled {
            self.control.clear_cancel();
            self.lookup.clear();
            return Err(Error::Cancelled);
        }
        if done && drafts {
            self.logits_of_row(0)?;
        }
        let elapsed = start.elapsed().as_nanos() as u64;
        self.control.add(counter, elapsed);
        let ns = ns + elapsed;
        if !done {
            self.pass = Some(Interrupted { count, progress, ns });
            if let Some(late) = deadline.and_then(|deadline| Instant::now().checked_duration_since(deadline)) {
                self.control.missed_deadline(late.as_nanos() as u64);
            }
            return Ok(false);
        }
        if decode {
            self.pace.token_took(ns)
        } else {
            self.pace.prompt_took(count, ns)
        }
        self.control.set(Counter::NextStepNs, self.pace.next_ns(pending.saturating_sub(count)));
        if drafts {
            self.control.add(Counter::Drafted, count as u64 - 1);
        } else {
            self.cached += count;
            self.logits_ready = count == pending;
        }
        self.control.add(Counter::Steps, 1);
        Ok(true)
    }

    fn logprob(&mut self, token: u32) -> Result<f32> {
        let logit = match self.sequence.best() {
            Some((best, logit)) if best == token => logit,
            _ => self.sequence.logits()?.get(token as usize).copied().unwrap_or(f32::NAN),
        };
        Ok(logit - self.sequence.log_sum_exp())
    }

    /// Adds a token to the sequence and decides whether it ends the run.
    fn commit(&mut self, token: u32, logprob: f32) -> Result<Outcome> {
        let tokenizer = self.model.tokenizer();
        let eos = tokenizer.is_some_and(|tokenizer| tokenizer.eos().contains(&token));
        let finish = if eos && !self.sampling.ignore_eos {
            Some(Finish::Eos)
        } else if self.sampling.stop_tokens.contains(&token) {
            Some(Finish::Stop)
        } else {
            None
        };
        if self.sampling.alternatives > 0 {
            let sum = self.sequence.log_sum_exp();
            self.alternatives.find(self.sequence.logits()?, sum, self.sampling.alternatives);
        }
        if let Some(constraint) = &mut self.constraint {
            let start = Instant::now();
            let accepted = constraint.accept(token, bytes_of(&self.model, token));
            self.control.add(Counter::NsGrammar, start.elapsed().as_nanos() as u64);
            accepted?;
        }
        let mut stopped = false;
        if finish.is_none()
            && let Some(tokenizer) = tokenizer
            && !tokenizer.is_control(token)
        {
            stopped = self.text.push(tokenizer.token_bytes(token).unwrap_or_default())?;
        }
        if self.lookup.follow(token) {
            self.control.add(Counter::Accepted, 1);
        }
        self.tokens.push(token); // The commit. Within capacity: there is room for context_len tokens.
        self.logits_ready = false;
        self.run.generated += 1;
        if self.run.generated == 1 {
            self.control.set(Counter::NsFirstToken, self.run.start.elapsed().as_nanos() as u64);
        }
        self.control.add(Counter::TokensOut, 1);
        self.control.set_length(self.tokens.len());
        let outcome = Outcome { kind: EventKind::Token, token: Some(token), logprob };
        Ok(match finish {
            Some(finish) => self.finish(finish, outcome),
            None if stopped => {
                self.run.finish = Some(Finish::Stop);
                Outcome { kind: EventKind::End, ..outcome }
            }
            None => outcome,
        })
    }

    fn finish(&mut self, finish: Finish, outcome: Outcome) -> Outcome {
        self.run.finish = Some(finish);
        self.text.finish();
        Outcome { kind: EventKind::End, ..outcome }
    }

    fn event(&self, outcome: Outcome, start: Instant) -> Event<'_> {
        let Outcome { kind, token, logprob } = outcome;
        let prompt_total = self.run.prompt_end - self.run.prompt_start;
        Event {
            kind,
            finish: self.run.finish.filter(|_| kind == EventKind::End),
            token,
            logprob,
            alternatives: if token.is_some() { self.alternatives.found() } else { &[] },
            text: self.text.shown(),
            prompt_done: self.cached.saturating_sub(self.run.prompt_start).min(prompt_total),
            prompt_total,
            length: self.tokens.len(),
            ns: start.elapsed().as_nanos() as u64,
        }
    }
}

/// The bytes of a token, of a control token its name.
fn bytes_of(model: &Model, token: u32) -> &[u8] {
    model.tokenizer().and_then(|tokenizer| tokenizer.token_bytes(token)).unwrap_or_default()
}
