//! What a session takes of memory, before it is made and when it is.

use super::{OnFull, SessionOptions};
use crate::backend::{Sequence, SequenceMemory};
use crate::model::forward::{self, Pass, Progress};
use crate::model::plan::MemoryPlan;
use crate::sampler::Sampler;
use crate::tensor::{Bytes, Residence, Taken, settle_stack, whole_pages};
use crate::{Error, Model, Result};

/// What a session takes beside its sequence.
pub(super) fn own_memory(vocab_len: usize, context_len: usize) -> Bytes {
    Bytes::host(whole_pages(Sampler::bytes(vocab_len, context_len) + (context_len * size_of::<u32>()) as u64))
}

/// A session's memory beside its sequence.
pub(super) struct Own {
    pub tokens: Vec<u32>,
    pub sampler: Sampler,
    pub taken: Taken,
}

impl Own {
    pub fn new(model: &Model, context_len: usize) -> Result<Own> {
        let vocab_len = model.config().shape.vocab_len;
        let taken = model.ledger().take("a session", own_memory(vocab_len, context_len))?;
        let (mut tokens, bytes) = (Vec::new(), context_len * size_of::<u32>());
        tokens.try_reserve_exact(context_len).map_err(|_| Error::NoMemory { what: "a session's tokens", bytes })?;
        let mut sampler = Sampler::new(vocab_len, context_len)?;
        if model.ledger().residence() != Residence::Lazy {
            sampler.settle();
            tokens.resize(context_len, 0);
            tokens.clear();
        }
        Ok(Own { tokens, sampler, taken })
    }
}

/// Runs a short prompt and a token, whose keys and values nobody will read, so that what they use has been used.
pub(super) fn warm_up(sequence: &mut dyn Sequence, model: &Model, context_len: usize) -> Result<()> {
    settle_stack();
    let passes = [(&[0, 0][..], 0, false), (&[0][..], 2, true)];
    for (tokens, position, decode) in passes.into_iter().filter(|&(tokens, at, _)| at + tokens.len() <= context_len) {
        let pass = Pass { tokens, position, head: true, decode, paced: false };
        forward::forward(sequence, model.config().shape.layers, &pass, &mut Progress::default(), || false)?;
        sequence.logits()?;
    }
    Ok(())
}

/// What a session takes of memory, by the plan of its model, and the longest context that fits as this one does.
pub struct SessionPlan {
    /// The KV cache and everything else.
    pub memory: SequenceMemory,
    /// 0 = none.
    pub context_len_fits: usize,
}

impl SessionPlan {
    /// For a session of a model that is planned.
    pub fn new(plan: &MemoryPlan, options: &SessionOptions) -> Result<SessionPlan> {
        let memory = |context_len| {
            let (context_len, chunk) = SessionOptions { context_len, ..*options }.sizes(plan.context_len_max)?;
            let SequenceMemory { kv, scratch } = plan.sequence(context_len, chunk, options.kv_format)?;
            let own = own_memory(plan.vocab_len, context_len);
            Ok::<_, Error>(SequenceMemory { kv, scratch: scratch + own })
        };
        let wanted = memory(options.context_len)?;
        let least = match options.on_full {
            OnFull::Stop => 1,
            OnFull::Shift { keep } => keep + 2, // At most the context length.
        };
        // A longer context takes more.
        let (mut fits, mut too_long) = (least - 1, plan.context_len_max + 1);
        while fits + 1 < too_long {
            let middle = fits + (too_long - fits) / 2;
            let SequenceMemory { kv, scratch } = memory(middle)?;
            if plan.fits(kv + scratch) { fits = middle } else { too_long = middle }
        }
        Ok(SessionPlan { memory: wanted, context_len_fits: if fits < least { 0 } else { fits } })
    }
}
