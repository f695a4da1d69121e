//! One sequence going on in two ways.

use super::alternatives::Alternatives;
use super::lookup::Lookup;
use super::memory::Own;
use super::text::TextOut;
use super::{Control, Run, Session};
use crate::{Error, Result};
use std::sync::Arc;
use std::time::Instant;

impl Session {
    /// A second session that stands where this one does, and from where both go on independently, on any threads.
    ///
    /// On the CPU the KV cache is copied on write, in pages of 256 positions: pages that are full are shared, the last one is
    /// copied now. Steps write to shared pages never. `prompt` and `rewind` that go back into one copy it (the only memory
    /// that they ever ask for), and so does a step that shifts a full context. Statistics start at zero, and a step that a
    /// deadline suspended starts over in the new session.
    pub fn fork(&mut self) -> Result<Session> {
        let Own { mut tokens, sampler, taken } = Own::new(&self.model, self.context_len)?;
        let mut sequence = self.sequence.fork(self.cached)?;
        if self.logits_ready {
            let log_sum_exp = self.sequence.log_sum_exp();
            sequence.set_logits(self.sequence.logits()?, log_sum_exp)?;
        }
        tokens.extend_from_slice(&self.tokens);
        let text = TextOut::resumed(self.model.tokenizer(), &self.sampling.stops, self.text.waiting())?;
        let mut alternatives = Alternatives::default();
        alternatives.reserve(self.sampling.alternatives)?;
        let control = Control::new(&self.model, sequence.kv_bytes() as u64);
        control.set_length(tokens.len());
        Ok(Session {
            model: self.model.clone(),
            sequence,
            context_len: self.context_len,
            pace: self.pace.clone(),
            on_full: self.on_full,
            tokens,
            dropped: self.dropped,
            cached: self.cached,
            logits_ready: self.logits_ready,
            pass: None,
            run: Run { start: Instant::now(), ..self.run },
            sampling: self.sampling.clone(),
            lookup: Lookup::new()?,
            constraint: self.constraint.clone(),
            alternatives,
            sampler,
            text: text.ok_or(Error::Internal("a session's text cannot be resumed".into()))?,
            scored: None,
            control: Arc::new(control),
            _taken: taken,
        })
    }
}
