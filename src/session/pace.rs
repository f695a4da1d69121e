//! How many tokens of a prompt a step takes, and how long the next one will.

/// Tokens of a first step that has a budget, when nothing is known of the machine.
const FIRST: usize = 4;
/// A step takes at most so many times the tokens of the one before.
const GROWTH: u64 = 4;
/// At least this part of a step's time is held to be of its tokens, each the same: two steps that took about as long may
/// have been disturbed differently.
const PART: f64 = 0.125;

/// What steps took, and what they may take.
#[derive(Clone, Default)]
pub struct Pace {
    chunk_max: usize,
    /// In nanoseconds; 0 = none.
    budget: u64,
    /// The last step that took in a part of a prompt.
    last: Option<Measured>,
    /// The last one before it with another number of tokens.
    other: Option<Measured>,
    /// Nanoseconds of a generated token, smoothed.
    token: Option<u64>,
}

/// Tokens of a step, and its nanoseconds.
#[derive(Clone, Copy)]
struct Measured {
    tokens: u64,
    ns: u64,
}

impl Pace {
    /// `chunk_max`: the most tokens that a step can take. `budget_us`: what a step should stay within; 0 = nothing.
    pub fn new(chunk_max: usize, budget_us: u32) -> Pace {
        Pace { chunk_max, budget: u64::from(budget_us) * 1000, ..Pace::default() }
    }

    /// The most tokens that a pass has room for.
    pub fn chunk_max(&self) -> usize {
        self.chunk_max
    }

    /// How many tokens of a prompt the next step takes at the most.
    pub fn chunk(&self) -> usize {
        if self.budget == 0 {
            return self.chunk_max;
        }
        let Some(last) = self.last else { return FIRST.min(self.chunk_max) };
        // A tenth is left for what varies.
        let spare = self.budget as f64 * 0.9 - last.ns as f64;
        let more = spare / self.each(last);
        let fitting = (last.tokens as f64 + more.floor()).max(1.0) as u64;
        // What part of the time is the same for any number of tokens is not known before a second number was tried.
        let probe = u64::from(spare > 0.0 && self.other.is_none());
        let chunk = fitting.max(last.tokens.saturating_add(probe) * probe).min(last.tokens * GROWTH);
        usize::try_from(chunk).unwrap_or(usize::MAX).clamp(1, self.chunk_max)
    }

    /// Nanoseconds of one token more.
    fn each(&self, last: Measured) -> f64 {
        let all = (last.ns as f64 / last.tokens as f64).max(1.0);
        let slope = |other: Measured| (last.ns as f64 - other.ns as f64) / (last.tokens as f64 - other.tokens as f64);
        self.other.map_or(all, slope).clamp(all * PART, all)
    }

    /// A step has taken in so many tokens of a prompt: at least one.
    pub fn prompt_took(&mut self, tokens: usize, ns: u64) {
        let now = Measured { tokens: tokens as u64, ns };
        if let Some(before) = self.last.replace(now)
            && before.tokens != now.tokens
        {
            self.other = Some(before);
        }
    }

    /// A step has computed a generated token.
    pub fn token_took(&mut self, ns: u64) {
        self.token = Some(self.token.map_or(ns, |before| before - before / 8 + ns / 8));
    }

    /// What the next step will take in nanoseconds, with so many tokens of a prompt pending (0: it generates one); 0 = not
    /// known yet.
    pub fn next_ns(&self, pending: usize) -> u64 {
        match (self.last, self.token) {
            (_, Some(ns)) if pending == 0 => ns,
            // One token takes about as long, whether it is given or generated.
            (Some(last), _) => {
                let next = pending.clamp(1, self.chunk()) as f64;
                (last.ns as f64 + (next - last.tokens as f64) * self.each(last)).max(1.0) as u64
            }
            (None, token) => token.unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that takes `fixed + each * tokens` for a step.
    fn run(budget_us: u32, fixed: u64, each: u64) -> Vec<(usize, u64)> {
        let mut pace = Pace::new(512, budget_us);
        let step = |_| {
            let chunk = pace.chunk();
            let ns = fixed + each * chunk as u64;
            pace.prompt_took(chunk, ns);
            (chunk, ns)
        };
        (0..20).map(step).collect()
    }

    #[test]
    fn chunks_come_close_to_a_budget_and_stay_within_it() {
        for (fixed, each) in [(0, 1_000), (50_000, 20_000), (400_000, 10_000), (800_000, 10_000), (100, 1)] {
            let steps = run(1_000, fixed, each);
            assert!(steps.iter().all(|&(_, ns)| ns <= 1_000_000), "{fixed} + {each}: {steps:?}");
            let (last, ns) = steps[19];
            assert!(last == 512 || ns >= 850_000, "{fixed} + {each}: {steps:?}");
        }
        // What is too slow for the budget takes one token at a time, and two are tried once only.
        assert!(run(100, 1_000_000, 1_000_000)[2..].iter().all(|&(tokens, _)| tokens == 1));
        let tokens: Vec<_> = run(1_000, 0, 700_000).iter().map(|&(tokens, _)| tokens).collect();
        assert!(tokens[0] == 4 && tokens[2..].iter().all(|&tokens| tokens == 1), "{tokens:?}");
        assert_eq!(run(0, 5, 5)[0].0, 512, "without a budget all that there is room for");
    }

    #[test]
    fn a_step_that_was_disturbed_is_forgotten_soon() {
        let mut pace = Pace::new(512, 1_000);
        for step in 0..40 {
            let chunk = pace.chunk();
            assert!(step < 12 || step % 20 < 6 || chunk >= 30, "{step}: {chunk}");
            let disturbed = if step == 20 { 30_000_000 } else { 0 };
            pace.prompt_took(chunk, 400_000 + 10_000 * chunk as u64 + disturbed);
        }
    }

    #[test]
    fn estimates_are_of_the_step_that_comes() {
        let mut pace = Pace::new(64, 0);
        assert_eq!((pace.next_ns(0), pace.next_ns(9)), (0, 0));
        pace.prompt_took(64, 6400);
        assert_eq!((pace.next_ns(1000), pace.next_ns(10), pace.next_ns(0)), (6400, 1000, 100));
        pace.prompt_took(32, 4800); // 3200 and 50 a token.
        assert_eq!((pace.next_ns(64), pace.next_ns(12)), (6400, 3800));
        pace.token_took(800);
        pace.token_took(1600);
        assert_eq!((pace.next_ns(12), pace.next_ns(0)), (3800, 900));
        let mut slow = Pace::new(4, 0);
        slow.prompt_took(1, u64::MAX);
        assert_eq!(slow.next_ns(4), u64::MAX);
    }
}
