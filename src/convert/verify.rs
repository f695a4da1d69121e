//! Whether a converted file still says what the folder's own numbers say.

use crate::session::{Session, SessionOptions};
use crate::{Error, LoadOptions, Model, Result, Source};
use std::path::Path;
use std::sync::Arc;

/// What both models read. Any text would do; this one has names, numbers, speech and a list.
const TEXT: &str = "The robot waited at the end of the corridor until the door opened. It was a quarter past nine, and \
    Anna had asked for two things: a cup of tea, and the blue box from the second shelf. \"Go slowly,\" she said, \"the \
    floor is wet.\" It turned left, moved forward 3.5 meters and stopped in front of the table. There were 12 boxes in \
    all, four of them blue, and only one with a handle. The robot looked at each in turn, measured the distance to the \
    nearest, and lifted it with care. Then it went back the way it had come, past the stairs and the window, and put the \
    box down beside her chair. \"Thank you,\" Anna said. \"Now please close the door.\"";
/// No more tokens are compared.
const TOKENS_MAX: usize = 128;
/// The least share of positions whose most likely token has to be the same.
const SAME_TOP_MIN: f64 = 0.9;

/// How two models differ over one text.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    /// Positions of the text.
    pub positions: usize,
    /// All logits are finite numbers.
    pub finite: bool,
    /// The largest difference of two logits.
    pub difference_max: f32,
    /// Kullback-Leibler divergence of the probabilities before from those after, in nats, as the mean over positions.
    pub divergence_mean: f64,
    /// The share of positions with the same most likely token.
    pub same_top: f64,
}

impl Comparison {
    /// Whether the file is good enough to keep.
    pub fn passed(&self) -> bool {
        self.finite && self.positions > 0 && self.same_top >= SAME_TOP_MIN
    }
}

/// Runs the same tokens through both files, one after the other.
pub(super) fn compare(before: &Path, after: &Path, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<Comparison> {
    let model = load(before)?;
    let tokens = tokens(&model)?;
    let total = 2 * tokens.len() as u64;
    let mut expected: Vec<Vec<f32>> = Vec::new();
    run(&model, &tokens, |logits| {
        expected.push(logits.to_vec());
        progress(expected.len() as u64, total)
    })?;
    drop(model);
    let mut comparison = Comparison::EMPTY;
    run(&load(after)?, &tokens, |logits| {
        comparison.add(&expected[comparison.positions], logits);
        progress((expected.len() + comparison.positions) as u64, total)
    })?;
    let positions = comparison.positions as f64;
    comparison.divergence_mean /= positions;
    comparison.same_top /= positions;
    Ok(comparison)
}

impl Comparison {
    const EMPTY: Comparison =
        Comparison { positions: 0, finite: true, difference_max: 0.0, divergence_mean: 0.0, same_top: 0.0 };

    /// Takes in one position; the means are sums until the end.
    fn add(&mut self, before: &[f32], after: &[f32]) {
        self.positions += 1;
        if !before.iter().chain(after).all(|logit| logit.is_finite()) {
            self.finite = false;
            return;
        }
        let differences = before.iter().zip(after).map(|(a, b)| (a - b).abs());
        self.difference_max = differences.fold(self.difference_max, f32::max);
        let (sum_before, sum_after) = (log_sum(before), log_sum(after));
        let divergence = before.iter().zip(after).map(|(a, b)| {
            let (a, b) = (f64::from(*a) - sum_before, f64::from(*b) - sum_after);
            a.exp() * (a - b)
        });
        self.divergence_mean += divergence.sum::<f64>();
        self.same_top += f64::from(u8::from(top(before) == top(after)));
    }
}

/// The logarithm of the sum of exponentials.
fn log_sum(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    largest + logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum::<f64>().ln()
}

/// The first of the largest.
fn top(logits: &[f32]) -> usize {
    logits.iter().enumerate().fold(0, |best, (i, logit)| if *logit > logits[best] { i } else { best })
}

fn load(path: &Path) -> Result<Arc<Model>> {
    Model::load(Source::Path(path), LoadOptions::default())
}

/// The tokens of the text, as many as fit.
fn tokens(model: &Model) -> Result<Vec<u32>> {
    let tokenizer = model.tokenizer().ok_or_else(|| Error::Internal("a new file has no vocabulary".into()))?;
    let mut tokens = tokenizer.encode(TEXT, true, false)?;
    tokens.truncate(TOKENS_MAX.min(model.info().context_len_max));
    Ok(tokens)
}

/// Hands the logits after each of these tokens to `each`; false stops.
fn run(model: &Arc<Model>, tokens: &[u32], mut each: impl FnMut(&[f32]) -> bool) -> Result<()> {
    let options = SessionOptions { context_len: tokens.len(), ..SessionOptions::default() };
    let mut session = Session::new(model, &options)?;
    for token in tokens {
        session.append(&[*token])?;
        session.forward(None)?;
        if !each(session.logits()?) {
            return Err(Error::Cancelled);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(pairs: &[(&[f32], &[f32])]) -> Comparison {
        let mut comparison = Comparison::EMPTY;
        pairs.iter().for_each(|(before, after)| comparison.add(before, after));
        comparison
    }

    #[test]
    fn equal_logits_do_not_differ_and_a_shift_is_no_divergence() {
        let comparison = compared(&[(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]), (&[1.0, 2.0], &[2.0, 3.0])]);
        assert_eq!((comparison.positions, comparison.difference_max, comparison.same_top), (2, 1.0, 2.0));
        assert!(comparison.divergence_mean.abs() < 1e-12);
    }

    #[test]
    fn divergence_is_that_of_the_definition() {
        // Probabilities 1/2, 1/2 and 1/4, 3/4: (ln 2 - ln 3/2 ) / 2 + ...
        let comparison = compared(&[(&[0.0, 0.0], &[0.0, 3f32.ln()])]);
        let expected = 0.5 * (2.0f64).ln() + 0.5 * (2.0f64 / 3.0).ln();
        assert!((comparison.divergence_mean - expected).abs() < 1e-7, "{}", comparison.divergence_mean);
        assert_eq!(comparison.same_top, 0.0);
    }

    #[test]
    fn what_is_not_finite_does_not_pass() {
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(!compared(&[(&[0.0, bad], &[0.0, 1.0])]).passed());
            assert!(!compared(&[(&[0.0, 1.0], &[0.0, bad])]).passed());
        }
        assert!(compared(&[(&[0.0, 1.0], &[0.0, 1.0])]).passed());
        assert!(!compared(&[]).passed());
    }
}
