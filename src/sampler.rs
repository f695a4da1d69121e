//! Logits to a token.

use crate::cpu::lanes::exp;
use crate::grammar::{self, Grammar, GrammarMode, Mask};
use crate::{Error, Result};
use std::cmp::Ordering;
use std::sync::Arc;

/// How a token is chosen from the logits. The default is greedy.
///
/// In this order: bias, penalties, then with a temperature: top-k, top-p, min-p, temperature, draw.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// 0 = greedy (the highest logit; among equals the lowest id).
    pub temperature: f32,
    /// Only the k most likely tokens; 0 = off.
    pub top_k: usize,
    /// The smallest set of most likely tokens whose probabilities reach this sum; 1 = off.
    pub top_p: f32,
    /// Only tokens at least this many times as likely as the most likely; 0 = off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of recent tokens; 1 = off.
    pub repeat_penalty: f32,
    /// Subtracted once per recent occurrence; 0 = off.
    pub frequency_penalty: f32,
    /// Subtracted once from every recent token; 0 = off.
    pub presence_penalty: f32,
    /// How many tokens are "recent".
    pub penalty_last_n: usize,
    /// (seed, position) decides, not the history of calls.
    pub seed: u64,
    /// 0 = until EOS or the context's end.
    pub max_tokens: usize,
    /// Go on after an end-of-generation token.
    pub ignore_eos: bool,
    /// Added to the logits of these tokens; negative infinity bans one.
    pub bias: Vec<(u32, f32)>,
    /// Generation ends before any of these texts.
    pub stops: Vec<String>,
    /// Generation ends at any of these tokens.
    pub stop_tokens: Vec<u32>,
    /// Only tokens that this grammar allows, from where `grammar_mode` says.
    pub grammar: Option<Arc<Grammar>>,
    /// When the grammar begins.
    pub grammar_mode: GrammarMode,
    /// Draft tokens by what followed the same tokens before, in the prompt or the output, and compute them together: the same
    /// tokens as without it, sooner where text repeats. On the CPU only.
    pub prompt_lookup: bool,
    /// How many of the most likely tokens each event tells, at most [`ALTERNATIVES_MAX`].
    pub alternatives: usize,
}

/// The most that [`Sampling::alternatives`] may be.
pub const ALTERNATIVES_MAX: usize = 20;

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
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
            ignore_eos: false,
            bias: Vec::new(),
            stops: Vec::new(),
            stop_tokens: Vec::new(),
            grammar: None,
            grammar_mode: GrammarMode::Now,
            prompt_lookup: false,
            alternatives: 0,
        }
    }
}

impl Sampling {
    /// Checks every number and token id.
    pub fn check(&self, vocab_len: usize) -> Result<()> {
        let numbers = [
            ("temperature", self.temperature, 0.0, 1e4),
            ("top_p", self.top_p, 0.0, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("repeat_penalty", self.repeat_penalty, 1e-3, 1e3),
            ("frequency_penalty", self.frequency_penalty, -1e4, 1e4),
            ("presence_penalty", self.presence_penalty, -1e4, 1e4),
        ];
        for (name, value, min, max) in numbers {
            if !(min..=max).contains(&value) {
                return Err(Error::argument(format!("sampling: {name} is {value}, not in {min}..={max}")));
            }
        }
        let in_range = |what: &str, token: u32| match (token as usize) < vocab_len {
            true => Ok(()),
            false => Err(Error::argument(format!(
                "sampling: {what} {token} is out of range: the vocabulary has {vocab_len}"
            ))),
        };
        for &(token, bias) in &self.bias {
            in_range("bias for token", token)?;
            if bias.is_nan() || bias == f32::INFINITY {
                return Err(Error::argument(format!("sampling: bias {bias} for token {token}")));
            }
        }
        self.stop_tokens.iter().try_for_each(|&token| in_range("stop token", token))?;
        if self.alternatives > ALTERNATIVES_MAX {
            let text = format!("sampling: {} alternatives, at most {ALTERNATIVES_MAX}", self.alternatives);
            return Err(Error::argument(text));
        }
        if self.stops.iter().any(String::is_empty) {
            return Err(Error::argument("sampling: a stop text is empty"));
        }
        Ok(())
    }

    /// The highest logit as the model gave it.
    pub(crate) fn is_plain_greedy(&self) -> bool {
        self.temperature == 0.0 && !self.changes_logits()
    }

    fn changes_logits(&self) -> bool {
        !self.bias.is_empty()
            || self.repeat_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }
}

/// A token and its logit.
#[derive(Clone, Copy)]
struct Candidate {
    logit: f32,
    token: u32,
}

/// The most likely first; among equals the lowest id.
fn by_likelihood(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// Chooses tokens without asking for memory.
pub struct Sampler {
    candidates: Vec<Candidate>,
    recent: Vec<u32>,
    /// Empty until a caller asks for logits under a grammar.
    masked: Vec<f32>,
}

/// Tokens e^40 times less likely than the most likely one are never drawn: together they weigh less than 1e-12.
const NEGLIGIBLE: f32 = 40.0;

impl Sampler {
    /// Memory for a vocabulary and a context of these lengths.
    pub fn new(vocab_len: usize, context_len: usize) -> Result<Self> {
        let (mut candidates, mut recent) = (Vec::new(), Vec::new());
        let no_memory = |bytes| move |_| Error::NoMemory { what: "the sampler", bytes };
        candidates.try_reserve_exact(vocab_len).map_err(no_memory(vocab_len * size_of::<Candidate>()))?;
        recent.try_reserve_exact(context_len).map_err(no_memory(context_len * size_of::<u32>()))?;
        Ok(Sampler { candidates, recent, masked: Vec::new() })
    }

    /// Touches its memory.
    pub fn settle(&mut self) {
        self.candidates.resize(self.candidates.capacity(), Candidate { logit: 0.0, token: 0 });
        self.candidates.clear();
        self.recent.resize(self.recent.capacity(), 0);
        self.recent.clear();
    }

    /// What [`Sampler::new`] takes, in bytes.
    pub fn bytes(vocab_len: usize, context_len: usize) -> u64 {
        let sizes = [(vocab_len, size_of::<Candidate>()), (context_len, size_of::<u32>())];
        sizes.into_iter().map(|(count, size)| count as u64 * size as u64).sum()
    }

    /// Chooses the token that follows `tokens` from its logits, of those in `mask` when there is one; the random number is
    /// that of `position`.
    pub(crate) fn choose(
        &mut self,
        sampling: &Sampling,
        logits: &[f32],
        tokens: &[u32],
        position: u64,
        mask: Option<&Mask>,
    ) -> Result<u32> {
        if logits.iter().fold(false, |bad, logit| bad | !logit.is_finite()) {
            return Err(Error::Format("the logits are not finite: the weights hold NaN or infinity".into()));
        }
        if sampling.is_plain_greedy() && mask.is_none() {
            let best = logits.iter().fold(f32::NEG_INFINITY, |best, &logit| if logit > best { logit } else { best });
            return Ok(logits.iter().position(|&logit| logit == best).unwrap_or(0) as u32);
        }
        self.candidates.clear();
        let all = logits.iter().zip(0..).map(|(&logit, token)| Candidate { logit, token });
        match mask {
            // Bias and penalties find a token by its place.
            Some(mask) if !sampling.changes_logits() => {
                self.candidates.extend(all.filter(|candidate| grammar::admits(mask, candidate.token)));
            }
            _ => self.candidates.extend(all),
        }
        for &(token, bias) in &sampling.bias {
            self.candidates[token as usize].logit += bias;
        }
        if sampling.changes_logits() {
            self.penalize(sampling, tokens);
        }
        if let Some(mask) = mask.filter(|_| sampling.changes_logits()) {
            self.candidates.retain(|candidate| grammar::admits(mask, candidate.token));
        }
        let best = self.candidates.iter().min_by(|a, b| by_likelihood(a, b)).copied();
        let best = best.filter(|best| best.logit > f32::NEG_INFINITY);
        let best = best.ok_or_else(|| match mask {
            None => Error::State("sampling: the bias bans every token".into()),
            Some(_) => Error::Grammar("the grammar cannot go on: the bias bans every token that it allows".into()),
        })?;
        if sampling.temperature == 0.0 {
            return Ok(best.token);
        }
        self.keep_top_k(sampling.top_k);
        self.keep_top_p(sampling.top_p, best.logit);
        if sampling.min_p > 0.0 {
            let least = best.logit + libm::logf(sampling.min_p);
            self.candidates.retain(|candidate| candidate.logit >= least || candidate.token == best.token);
        }
        Ok(self.draw(sampling, best.logit, position))
    }

    /// The logits, with negative infinity for what the mask does not have. `logits` has at most the vocabulary's length.
    pub(crate) fn masked(&mut self, logits: &[f32], mask: &Mask) -> Result<&[f32]> {
        self.masked.clear();
        let bytes = size_of_val(logits);
        self.masked.try_reserve(logits.len()).map_err(|_| Error::NoMemory { what: "masked logits", bytes })?;
        let admitted = logits.iter().zip(0..);
        let admitted =
            admitted.map(|(&logit, token)| if grammar::admits(mask, token) { logit } else { f32::NEG_INFINITY });
        self.masked.extend(admitted);
        Ok(&self.masked)
    }

    /// Repeat, frequency and presence penalties, as in llama.cpp and the OpenAI API.
    fn penalize(&mut self, sampling: &Sampling, tokens: &[u32]) {
        self.recent.clear();
        self.recent.extend_from_slice(&tokens[tokens.len().saturating_sub(sampling.penalty_last_n)..]);
        self.recent.sort_unstable();
        for same in self.recent.chunk_by(|a, b| a == b) {
            let logit = &mut self.candidates[same[0] as usize].logit;
            *logit = if *logit > 0.0 { *logit / sampling.repeat_penalty } else { *logit * sampling.repeat_penalty };
            *logit -= same.len() as f32 * sampling.frequency_penalty + sampling.presence_penalty;
        }
    }

    /// Keeps the k most likely candidates, sorted.
    fn keep_top_k(&mut self, k: usize) {
        if k > 0 && k < self.candidates.len() {
            self.sort_first(k);
            self.candidates.truncate(k);
        }
    }

    /// Brings the k most likely candidates to the front, sorted.
    fn sort_first(&mut self, k: usize) {
        if k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k, by_likelihood);
        }
        let k = k.min(self.candidates.len());
        self.candidates[..k].sort_unstable_by(by_likelihood);
    }

    /// Keeps the fewest most likely candidates whose probabilities reach `top_p`, sorted.
    fn keep_top_p(&mut self, top_p: f32, best: f32) {
        if top_p >= 1.0 {
            return;
        }
        let total: f64 = self.candidates.iter().map(|candidate| weight(candidate.logit - best)).sum();
        // Usually few candidates are enough: sort no more than needed.
        let mut sorted = 128;
        loop {
            self.sort_first(sorted);
            let mut sum = 0.0;
            let reached = self.candidates.iter().take(sorted).position(|candidate| {
                sum += weight(candidate.logit - best);
                sum >= top_p as f64 * total
            });
            match reached {
                Some(last) => break self.candidates.truncate(last + 1),
                None if sorted >= self.candidates.len() => break,
                None => sorted *= 8,
            }
        }
    }

    /// Draws a candidate with probability e^(logit / temperature).
    fn draw(&self, sampling: &Sampling, best: f32, position: u64) -> u32 {
        let weight = |candidate: &Candidate| weight((candidate.logit - best) / sampling.temperature);
        let total: f64 = self.candidates.iter().map(weight).sum();
        let mut left = uniform(sampling.seed, position) * total;
        let mut drawn = self.candidates.first().map_or(0, |candidate| candidate.token);
        for candidate in &self.candidates {
            let weight = weight(candidate);
            if weight > 0.0 {
                drawn = candidate.token; // The last one with a weight, should rounding leave a rest.
                left -= weight;
                if left < 0.0 {
                    break;
                }
            }
        }
        drawn
    }
}

fn weight(x: f32) -> f64 {
    if x < -NEGLIGIBLE { 0.0 } else { exp(x) as f64 }
}

/// A number in 0..1 that (seed, position) decides: SplitMix64's mixing function (Steele et al., 2014), twice.
fn uniform(seed: u64, position: u64) -> f64 {
    let mix = |x: u64| {
        let x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ x >> 31
    };
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let bits = mix(mix(seed.wrapping_add(GOLDEN)).wrapping_add(position.wrapping_mul(GOLDEN)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(sampling: &Sampling, logits: &[f32], tokens: &[u32]) -> Result<u32> {
        sampling.check(logits.len())?;
        Sampler::new(logits.len(), tokens.len().max(1))?.choose(sampling, logits, tokens, tokens.len() as u64, None)
    }

    /// How often each token is drawn over many positions.
    fn histogram(sampling: &Sampling, logits: &[f32], draws: usize) -> Vec<f64> {
        let mut sampler = Sampler::new(logits.len(), draws).expect("memory");
        let mut counts = vec![0.0; logits.len()];
        let tokens = vec![0; draws];
        for position in 0..draws {
            let token = sampler.choose(sampling, logits, &tokens[..position], position as u64, None).expect("a token");
            counts[token as usize] += 1.0 / draws as f64;
        }
        counts
    }

    const LOGITS: [f32; 5] = [1.0, 3.0, -2.0, 3.0, 2.0];

    #[test]
    fn greedy_takes_the_lowest_id_among_equals() {
        assert_eq!(choose(&Sampling::default(), &LOGITS, &[]).expect("a token"), 1);
    }

    #[test]
    fn draws_follow_the_softmax_at_the_temperature() {
        for temperature in [0.5, 1.0, 2.0f32] {
            let sampling = Sampling { temperature, seed: 5, ..Sampling::default() };
            let weights: Vec<f64> = LOGITS.iter().map(|logit| ((logit / temperature) as f64).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (token, found) in histogram(&sampling, &LOGITS, 40_000).iter().enumerate() {
                let expected = weights[token] / total;
                assert!((found - expected).abs() < 0.01, "token {token}: {found}, not {expected} at {temperature}");
            }
        }
    }

    #[test]
    fn top_k_top_p_and_min_p_keep_what_they_should() {
        let base = Sampling { temperature: 1.0, ..Sampling::default() };
        let drawn = |sampling: &Sampling| -> Vec<usize> {
            (0..5).zip(histogram(sampling, &LOGITS, 4_000)).filter(|(_, p)| *p > 0.0).map(|(token, _)| token).collect()
        };
        assert_eq!(drawn(&Sampling { top_k: 1, ..base.clone() }), [1], "the lowest id among equals");
        assert_eq!(drawn(&Sampling { top_k: 3, ..base.clone() }), [1, 3, 4]);
        // Probabilities: 0.397, 0.397, 0.146, 0.054, 0.003.
        assert_eq!(drawn(&Sampling { top_p: 0.3, ..base.clone() }), [1]);
        assert_eq!(drawn(&Sampling { top_p: 0.5, ..base.clone() }), [1, 3]);
        assert_eq!(drawn(&Sampling { top_p: 0.9, ..base.clone() }), [1, 3, 4]);
        assert_eq!(drawn(&Sampling { min_p: 0.3, ..base.clone() }), [1, 3, 4]);
        assert_eq!(drawn(&Sampling { min_p: 1.0, ..base.clone() }), [1, 3]);
        assert_eq!(drawn(&Sampling { top_p: 0.0, ..base }), [1], "at least one token is kept");
    }

    #[test]
    fn top_p_of_a_flat_distribution_keeps_its_share() {
        let sampling = Sampling { temperature: 1.0, top_p: 0.75, ..Sampling::default() };
        let drawn = histogram(&sampling, &[0.0; 2000], 60_000).iter().filter(|p| **p > 0.0).count();
        assert_eq!(drawn, 1500);
    }

    #[test]
    fn the_seed_and_the_position_decide() {
        let logits = [0.0; 1000];
        let at = |seed, position: usize| {
            let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
            choose(&sampling, &logits, &vec![0; position]).expect("a token")
        };
        assert_eq!(at(1, 10), at(1, 10));
        assert_ne!(at(1, 10), at(1, 11));
        assert_ne!(at(1, 10), at(2, 10));
    }

    #[test]
    fn bias_and_penalties_change_the_choice() {
        let greedy = Sampling::default();
        let bias = vec![(1, f32::NEG_INFINITY), (2, 9.0)];
        assert_eq!(choose(&Sampling { bias, ..greedy.clone() }, &LOGITS, &[]).expect("a token"), 2);
        let repeat = Sampling { repeat_penalty: 2.0, ..greedy.clone() };
        assert_eq!(choose(&repeat, &LOGITS, &[1, 3]).expect("a token"), 4);
        let negative = [-1.0, -1.5];
        assert_eq!(choose(&repeat, &negative, &[0]).expect("a token"), 1, "a penalty lowers negative logits as well");
        let frequency = Sampling { frequency_penalty: 0.6, ..greedy.clone() };
        assert_eq!(choose(&frequency, &LOGITS, &[1, 3, 3]).expect("a token"), 1);
        assert_eq!(choose(&frequency, &LOGITS, &[1, 1, 3, 3]).expect("a token"), 4);
        let presence = Sampling { presence_penalty: 1.5, penalty_last_n: 1, ..greedy.clone() };
        assert_eq!(choose(&presence, &LOGITS, &[3, 1]).expect("a token"), 3, "only the last token is recent");
        let ban = Sampling { bias: (0..5).map(|token| (token, f32::NEG_INFINITY)).collect(), ..greedy };
        assert!(matches!(choose(&ban, &LOGITS, &[]), Err(Error::State(_))));
    }

    #[test]
    fn bad_settings_are_refused_by_name() {
        let bad = [
            (Sampling { temperature: f32::NAN, ..Sampling::default() }, "temperature"),
            (Sampling { temperature: -1.0, ..Sampling::default() }, "temperature"),
            (Sampling { top_p: 1.5, ..Sampling::default() }, "top_p"),
            (Sampling { min_p: -0.1, ..Sampling::default() }, "min_p"),
            (Sampling { repeat_penalty: 0.0, ..Sampling::default() }, "repeat_penalty"),
            (Sampling { frequency_penalty: f32::INFINITY, ..Sampling::default() }, "frequency_penalty"),
            (Sampling { bias: vec![(5, 0.0)], ..Sampling::default() }, "token 5"),
            (Sampling { bias: vec![(1, f32::NAN)], ..Sampling::default() }, "bias NaN"),
            (Sampling { stop_tokens: vec![9], ..Sampling::default() }, "stop token 9"),
            (Sampling { stops: vec![String::new()], ..Sampling::default() }, "stop text"),
        ];
        for (sampling, name) in bad {
            let error = sampling.check(5).expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn logits_that_are_not_finite_are_an_error() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(matches!(choose(&Sampling::default(), &[0.0, bad], &[]), Err(Error::Format(_))));
        }
    }
}
