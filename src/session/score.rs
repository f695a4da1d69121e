//! How likely a text is, without generating it.

use super::Session;
use crate::cpu::environment::FloatEnvironment;
use crate::model::forward::{self, Pass, Progress};
use crate::tensor::{Bytes, Ledger, Taken, whole_pages};
use crate::{Error, Result};
use std::sync::Arc;

/// Memory of `score`, asked for by a session's first one.
pub struct Scored {
    /// The logits that the session goes on from: (vocab_len).
    logits: Vec<f32>,
    /// (context_len).
    logprobs: Vec<f32>,
    _taken: Taken,
}

impl Scored {
    fn new(vocab_len: usize, context_len: usize, ledger: &Arc<Ledger>) -> Result<Self> {
        let bytes = (vocab_len + context_len) * size_of::<f32>();
        let taken = ledger.take("scores", Bytes::host(whole_pages(bytes as u64)))?;
        let (mut logits, mut logprobs) = (Vec::new(), Vec::new());
        let no_memory = |len: usize| move |_| Error::NoMemory { what: "scores", bytes: len * size_of::<f32>() };
        logits.try_reserve_exact(vocab_len).map_err(no_memory(vocab_len))?;
        logprobs.try_reserve_exact(context_len).map_err(no_memory(context_len))?;
        Ok(Scored { logits, logprobs, _taken: taken })
    }
}

impl Session {
    /// Natural logarithms of the probabilities of each of these tokens after the sequence and those before it, in the model's
    /// own distribution. The sequence stays as it is, with its logits, as after `forward`, which this begins with.
    ///
    /// Passes of at most a prefill chunk; `cancel` ends it.
    pub fn score(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        let _environment = FloatEnvironment::enter();
        if self.tokens.is_empty() {
            return Err(Error::State("score: there are no tokens before: call prompt or append first".into()));
        }
        self.check_new(tokens, self.tokens.len())?;
        let mut scored = match self.scored.take() {
            Some(scored) => scored,
            None => Scored::new(self.model.config().shape.vocab_len, self.context_len, self.model.ledger())?,
        };
        let result = self.score_into(tokens, &mut scored);
        let scored = self.scored.insert(scored);
        result.map(|()| &*scored.logprobs)
    }

    fn score_into(&mut self, tokens: &[u32], scored: &mut Scored) -> Result<()> {
        self.forward(None)?;
        self.lookup.clear(); // Its pass is not the last one any more.
        let log_sum_exp = self.sequence.log_sum_exp();
        scored.logits.clear();
        scored.logits.extend_from_slice(self.sequence.logits()?);
        scored.logprobs.clear();
        scored.logprobs.push(scored.logits[tokens[0] as usize] - log_sum_exp);
        let result = self.score_rest(tokens, &mut scored.logprobs);
        self.sequence.set_logits(&scored.logits, log_sum_exp)?;
        result
    }

    /// All but the first, which needs no pass. The KV cache is written after what is in use.
    fn score_rest(&mut self, tokens: &[u32], logprobs: &mut Vec<f32>) -> Result<()> {
        let mut next = tokens[1..].iter();
        for chunk in tokens[..tokens.len() - 1].chunks(self.pace.chunk_max()) {
            let position = self.tokens.len() + logprobs.len() - 1;
            let pass = Pass { tokens: chunk, position, head: false, decode: false, paced: false };
            let layers = self.model.config().shape.layers;
            let control = &self.control;
            let stop = || control.cancelled();
            let mut done = forward::forward(&mut *self.sequence, layers, &pass, &mut Progress::default(), stop)?;
            for (row, &token) in (0..chunk.len()).zip(&mut next) {
                done &= !self.control.cancelled();
                if !done {
                    self.control.clear_cancel();
                    return Err(Error::Cancelled);
                }
                self.sequence.head_of_row(row)?;
                self.sequence.wait()?;
                let logit = self.sequence.logits()?[token as usize];
                logprobs.push(logit - self.sequence.log_sum_exp());
            }
        }
        Ok(())
    }
}
