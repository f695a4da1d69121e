//! The most likely tokens, beside the one that was chosen.

use crate::{Error, Result};

/// A token that could have come, and log of its probability under the model, before any sampling setting.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alternative {
    /// The token.
    pub token: u32,
    /// Natural logarithm.
    pub logprob: f32,
}

/// Those of the last token. Memory is asked for in `reserve` only.
#[derive(Default)]
pub(super) struct Alternatives(Vec<Alternative>);

impl Alternatives {
    pub(super) fn reserve(&mut self, count: usize) -> Result<()> {
        self.0.clear();
        let bytes = count * size_of::<Alternative>();
        self.0.try_reserve(count).map_err(|_| Error::NoMemory { what: "alternatives", bytes })
    }

    /// Finds the `count` highest logits, the highest first and of equal ones the lowest token.
    pub(super) fn find(&mut self, logits: &[f32], log_sum_exp: f32, count: usize) {
        let list = &mut self.0;
        list.clear();
        for (&logit, token) in logits.iter().zip(0..) {
            if list.len() == count {
                if list.last().is_none_or(|least| logit <= least.logprob) {
                    continue;
                }
                list.pop();
            }
            let place = list.iter().position(|other| logit > other.logprob).unwrap_or(list.len());
            list.insert(place, Alternative { token, logprob: logit });
        }
        list.iter_mut().for_each(|alternative| alternative.logprob -= log_sum_exp);
    }

    pub(super) fn found(&self) -> &[Alternative] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_come_first_and_of_equal_ones_the_lowest_token() {
        let mut alternatives = Alternatives::default();
        alternatives.reserve(3).expect("memory");
        alternatives.find(&[1.0, 3.0, -2.0, 3.0, 2.0], 4.0, 3);
        let found: Vec<_> = alternatives.found().iter().map(|found| (found.token, found.logprob)).collect();
        assert_eq!(found, [(1, -1.0), (3, -1.0), (4, -2.0)]);
        alternatives.find(&[1.0, 0.5], 1.0, 3);
        assert_eq!(alternatives.found().len(), 2, "no more than there are");
    }
}
