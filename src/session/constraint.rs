//! The grammar that a session's output follows: where it stands, and which tokens may come next.

use crate::grammar::{Grammar, GrammarMode, Mask, Matcher};
use crate::{Error, Result, Sampling};
use std::sync::Arc;

/// A trigger that is longer is a mistake.
const TRIGGER_BYTES_MAX: usize = 256;

/// As a start: it is gone. A walk that is cut then begins anew.
const UNKNOWN: usize = usize::MAX;

/// A walk through a grammar beside the tokens of a session.
#[derive(Clone)]
pub(super) struct Constraint {
    grammar: Arc<Grammar>,
    mode: GrammarMode,
    matcher: Matcher,
    /// None: the grammar governs from the start on.
    trigger: Option<Trigger>,
    /// How many tokens came before it.
    start: usize,
    state: State,
    /// One bit per logit: the tokens that may come next, when `masked`.
    mask: Box<Mask>,
    masked: bool,
}

#[derive(Clone)]
struct Trigger {
    text: Vec<u8>,
    /// The grammar's sentences begin with the trigger, instead of following it.
    included: bool,
    /// The end of the free text: too short to hold the trigger, and room for one more token.
    tail: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Free text: the trigger has not come.
    Free,
    Governed,
    /// The walk went wrong in a way that only a new start mends.
    Lost,
}

impl Constraint {
    /// The walk that a sampling asks for, to begin after `start` tokens. `logits`, `longest_token`: what the model has.
    pub(super) fn new(sampling: &Sampling, start: usize, logits: usize, longest_token: usize) -> Result<Option<Self>> {
        let Some(grammar) = &sampling.grammar else { return Ok(None) };
        let trigger = match &sampling.grammar_mode {
            GrammarMode::Now => None,
            GrammarMode::OnTrigger(text) => Some(Trigger::new(text, grammar, longest_token)?),
        };
        let words = logits.div_ceil(u32::BITS as usize);
        let mut mask = Vec::new();
        mask.try_reserve_exact(words).map_err(|_| Error::NoMemory { what: "a grammar's mask", bytes: words * 4 })?;
        mask.resize(words, 0);
        let mut constraint = Constraint {
            grammar: grammar.clone(),
            mode: sampling.grammar_mode.clone(),
            matcher: grammar.matcher(),
            trigger,
            start,
            state: State::Governed,
            mask: mask.into_boxed_slice(),
            masked: false,
        };
        constraint.rest();
        Ok(Some(constraint))
    }

    /// Whether this is the walk that the sampling asks for.
    pub(super) fn serves(&self, sampling: &Sampling) -> bool {
        sampling.grammar.as_ref().is_some_and(|grammar| Arc::ptr_eq(grammar, &self.grammar))
            && sampling.grammar_mode == self.mode
    }

    /// Begins anew after `start` tokens.
    pub(super) fn begin(&mut self, start: usize) {
        self.start = start;
        if self.state == State::Lost || !self.matcher.restart() {
            self.matcher = self.grammar.matcher();
        }
        self.rest();
    }

    fn rest(&mut self) {
        self.masked = false;
        self.state = if self.trigger.is_some() { State::Free } else { State::Governed };
        if let Some(trigger) = &mut self.trigger {
            trigger.tail.clear();
        }
    }

    /// Follows a sequence that was cut: to its end, or to where it now ends if that is before the grammar's start.
    pub(super) fn cut<'a>(&mut self, tokens: &[u32], bytes: impl Fn(u32) -> &'a [u8]) -> Result<()> {
        self.begin(self.start.min(tokens.len()));
        for &token in &tokens[self.start..] {
            self.accept(token, bytes(token))?;
        }
        Ok(())
    }

    /// How many tokens came before it; None when that is gone.
    pub(super) fn start(&self) -> Option<usize> {
        (self.start != UNKNOWN).then_some(self.start)
    }

    /// So many tokens after the first `keep` are gone. What has gone from the grammar's own cannot be walked again.
    pub(super) fn tokens_dropped(&mut self, keep: usize, dropped: usize) {
        if self.start > keep {
            self.start = if self.start >= keep + dropped { self.start - dropped } else { UNKNOWN };
        }
    }

    /// Finds out which tokens may come next, unless that is known.
    pub(super) fn prepare(&mut self) -> Result<()> {
        match self.state {
            State::Free => Ok(()),
            State::Lost => Err(Error::Grammar("the grammar could not go on: start a new run".into())),
            State::Governed if self.masked => Ok(()),
            State::Governed => {
                let found = self.matcher.mask(&mut self.mask);
                self.check(found)?;
                self.masked = true;
                Ok(())
            }
        }
    }

    fn check<T>(&mut self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.state = State::Lost;
        }
        result
    }

    /// The tokens that may come next; None = any. After `prepare`.
    pub(super) fn mask(&self) -> Option<&Mask> {
        self.masked.then_some(&self.mask)
    }

    /// Whether a token that the mask lets pass really may come next: one that completes the trigger and goes on must go
    /// on as the grammar has it. If not, the mask excludes it from now on.
    pub(super) fn allows(&mut self, token: u32, bytes: &[u8]) -> Result<bool> {
        if self.state != State::Free {
            return Ok(self.mask().is_none_or(|mask| crate::grammar::admits(mask, token)));
        }
        let Some(rest) = self.trigger.as_ref().and_then(|trigger| trigger.completed(bytes)) else { return Ok(true) };
        let found = self.matcher.follows(&rest);
        let allowed = self.check(found)?;
        if !allowed {
            if !self.masked {
                self.mask.fill(u32::MAX);
                self.masked = true;
            }
            self.mask[token as usize / 32] &= !(1 << (token % 32));
        }
        Ok(allowed)
    }

    /// How many of these tokens, from the first on, may come next one after the other.
    pub(super) fn allowed_of(&mut self, tokens: &[u32]) -> Result<usize> {
        match self.state {
            State::Governed if !self.matcher.is_complete() => {
                let found = self.matcher.allowed_of(tokens);
                self.check(found)
            }
            _ => Ok(tokens.len()),
        }
    }

    /// Tokens that must come next, one after the other, as far as the grammar leaves no choice.
    pub(super) fn forced(&mut self) -> Vec<u32> {
        if self.state == State::Governed { self.matcher.forced() } else { Vec::new() }
    }

    /// Takes a token in.
    pub(super) fn accept(&mut self, token: u32, bytes: &[u8]) -> Result<()> {
        self.masked = false;
        let taken = match (self.state, &mut self.trigger) {
            (State::Free, Some(trigger)) => match trigger.completed(bytes) {
                Some(rest) => {
                    self.state = State::Governed;
                    if rest.is_empty() { Ok(()) } else { self.matcher.accept_bytes(&rest) }
                }
                None => {
                    trigger.push(bytes);
                    Ok(())
                }
            },
            _ => self.matcher.accept(token),
        };
        self.check(taken)
    }

    /// Whether the grammar is at its end: nothing may follow.
    pub(super) fn is_complete(&self) -> bool {
        self.state == State::Governed && self.matcher.is_complete()
    }
}

impl Trigger {
    fn new(text: &str, grammar: &Grammar, longest_token: usize) -> Result<Trigger> {
        let text = match text {
            "" => grammar.trigger().ok_or(Error::argument(
                "sampling.grammar_trigger: empty, and only tools have a beginning of their own",
            ))?,
            text => text,
        };
        if text.len() > TRIGGER_BYTES_MAX {
            let text = format!("sampling.grammar_trigger: {} bytes, at most {TRIGGER_BYTES_MAX}", text.len());
            return Err(Error::argument(text));
        }
        let mut tail = Vec::new();
        let bytes = text.len() + longest_token;
        tail.try_reserve_exact(bytes).map_err(|_| Error::NoMemory { what: "a grammar's trigger", bytes })?;
        let included = grammar.opening().is_some_and(|opening| opening.starts_with(text));
        Ok(Trigger { text: text.into(), included, tail })
    }

    /// If these bytes complete the trigger: what the grammar is to begin with.
    fn completed(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let (&last, _) = self.text.split_last()?;
        let before = self.tail.len();
        let at = |index: usize| if index < before { self.tail[index] } else { bytes[index - before] };
        let ends = (before..before + bytes.len()).filter(|&index| at(index) == last && index + 1 >= self.text.len());
        let mut ends = ends.filter(|&end| {
            let start = end + 1 - self.text.len();
            (start..=end).zip(&self.text).all(|(index, &byte)| at(index) == byte)
        });
        let end = ends.next()?;
        let rest = &bytes[end + 1 - before..];
        Some(if self.included { [&self.text, rest].concat() } else { rest.to_vec() })
    }

    fn push(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        let keep = self.text.len() - 1;
        let surplus = self.tail.len().saturating_sub(keep);
        self.tail.drain(..surplus);
    }
}
