//! Prompt lookup: what followed last time may follow again, so it is computed along with the token that is certain.
//!
//! Exact: the logits after each drafted token are those of a pass of its own, since the CPU's sums do not depend on how many
//! tokens a pass has. The sampler chooses from them as ever, and only if it chooses the drafted token the next row counts.
//! A row's logits are computed when it counts.

use super::Session;
use super::constraint::Constraint;
use crate::{Error, Result};

/// The most tokens drafted at a time.
pub(super) const DRAFT_MAX: usize = 15;
/// How many of the last tokens must have come before, together, at the most and at the least. A drafted token that does not
/// come costs about 0.4 of a step: two tokens were too often there by chance.
const CONTEXT: std::ops::RangeInclusive<usize> = 3..=4;
/// How many are drafted at first.
const FIRST: usize = 4;

/// A pass over a certain token and drafted ones, and how far it was followed.
pub(super) struct Lookup {
    /// The certain token and the drafted ones; empty when there is no such pass.
    tokens: Vec<u32>,
    /// Which of them the sequence has come to.
    row: usize,
    /// That one's logits are still to be had.
    fresh: bool,
    /// How many tokens to draft: more after good drafts, fewer after bad ones.
    ambition: usize,
}

impl Lookup {
    /// With all the memory that it needs.
    pub(super) fn new() -> Result<Lookup> {
        let (mut tokens, bytes) = (Vec::new(), (1 + DRAFT_MAX) * size_of::<u32>());
        tokens.try_reserve_exact(1 + DRAFT_MAX).map_err(|_| Error::NoMemory { what: "prompt lookup", bytes })?;
        Ok(Lookup { tokens, row: 0, fresh: false, ambition: FIRST })
    }

    /// Drafts at most `most` tokens to follow `tokens`, which the grammar allows; returns whether there are any.
    pub(super) fn draft(&mut self, tokens: &[u32], most: usize, grammar: Option<&mut Constraint>) -> Result<bool> {
        self.clear();
        let most = most.min(DRAFT_MAX);
        let Some(&last) = tokens.last().filter(|_| most > 0) else { return Ok(false) };
        self.tokens.push(last);
        self.tokens.extend_from_slice(continuation(tokens, most.min(self.ambition)));
        if let Some(grammar) = grammar {
            let allowed = grammar.allowed_of(&self.tokens[1..])?;
            self.tokens.truncate(1 + allowed);
            let forced = grammar.forced();
            if forced.len() > allowed {
                self.tokens.truncate(1);
                self.tokens.extend(forced.iter().take(most));
            }
        }
        if self.tokens.len() == 1 {
            self.clear();
        }
        Ok(!self.tokens.is_empty())
    }

    /// The tokens of the pass.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// A token was chosen; true if it is the one that was drafted.
    pub(super) fn follow(&mut self, token: u32) -> bool {
        let drafted = self.tokens.len().saturating_sub(1);
        self.fresh = self.row < drafted && self.tokens[self.row + 1] == token;
        if self.fresh {
            self.row += 1;
            if self.row == drafted {
                self.ambition = (2 * self.ambition).min(DRAFT_MAX);
            }
        } else {
            if self.row < drafted {
                self.ambition = (self.row + 1).max(2);
            }
            self.clear();
        }
        self.fresh
    }

    /// The row of the pass whose logits come next, once.
    pub(super) fn take_row(&mut self) -> Option<usize> {
        std::mem::take(&mut self.fresh).then_some(self.row)
    }

    /// The sequence goes on in another way, or the last pass was another one.
    pub(super) fn clear(&mut self) {
        self.tokens.clear();
        (self.row, self.fresh) = (0, false);
    }
}

impl Session {
    /// The pending token was in this row of the last pass: leaves its logits.
    pub(super) fn logits_of_row(&mut self, row: usize) -> Result<()> {
        self.sequence.head_of_row(row)?;
        self.sequence.wait()?;
        self.cached += 1;
        self.logits_ready = true;
        Ok(())
    }

    /// Whether there are tokens to compute along with the one that is pending.
    pub(super) fn draft(&mut self) -> Result<bool> {
        self.lookup.clear();
        let generated = self.cached + 1 == self.tokens.len() && self.cached >= self.run.prompt_end;
        if !self.sampling.prompt_lookup || !generated {
            return Ok(false);
        }
        let room = (self.context_len - self.tokens.len()).min(self.pace.chunk() - 1);
        let most = match self.sampling.max_tokens {
            0 => room,
            limit => room.min(limit.saturating_sub(self.run.generated + 1)),
        };
        self.lookup.draft(&self.tokens, most, self.constraint.as_mut())
    }
}

/// At most `most` tokens that followed the last time that the end of `tokens` was there before, the longest end first.
fn continuation(tokens: &[u32], most: usize) -> &[u32] {
    for len in CONTEXT.rev() {
        let Some(end) = tokens.len().checked_sub(len + 1) else { continue };
        let context = &tokens[tokens.len() - len..];
        if let Some(found) = (0..=end).rev().find(|&start| tokens[start..start + len] == *context) {
            let from = found + len;
            return &tokens[from..tokens.len().min(from + most)];
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_and_latest_context_is_continued() {
        assert_eq!(continuation(&[1, 2, 3, 9, 1, 2, 3], 3), [9, 1, 2]);
        assert_eq!(continuation(&[0, 1, 2, 8, 5, 0, 1, 2, 9, 6, 0, 1, 2], 2), [9, 6], "the latest");
        assert_eq!(continuation(&[7, 0, 1, 2, 8, 5, 0, 1, 2, 9, 6, 7, 0, 1, 2], 1), [8], "the longest");
        assert_eq!(continuation(&[5, 5, 5, 5], 4), [5], "what follows may be what is there");
        assert_eq!(continuation(&[1, 2, 3, 4, 2, 3], 4), [0u32; 0], "two tokens are too few");
        assert_eq!(continuation(&[], 4), [0u32; 0]);
    }

    #[test]
    fn a_draft_is_followed_while_it_is_right() {
        let mut lookup = Lookup::new().expect("memory");
        assert!(lookup.draft(&[0, 1, 2, 3, 4, 0, 1, 2], 2, None).expect("no grammar"));
        assert_eq!(lookup.tokens(), [2, 3, 4]);
        assert_eq!(lookup.take_row(), None);
        assert!(lookup.follow(3));
        assert_eq!((lookup.take_row(), lookup.take_row()), (Some(1), None));
        assert!(!lookup.follow(7));
        assert!(!lookup.follow(4), "it is over");
        assert!(!lookup.draft(&[1, 2, 3], 2, None).expect("no grammar"));
        assert!(!lookup.draft(&[0, 1, 2, 3, 0, 1, 2], 0, None).expect("no grammar"));
    }
}
