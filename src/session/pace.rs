//! How many tokens of a prompt a step takes, and how long the next one will.

/// Tokens of a first step that has a budget, when nothing is known of the machine.
const FIRST: usize = 4;
/// A step takes at most so many times the tokens of the one before.
const GROWTH: u64 = 4;

/// What steps took, and what they may take.
#[derive(Clone, Default)]
pub struct Pace {
    chunk_max: usize,
    /// In nanoseconds; 0 = none.
    budget: u64,
    /// Tokens of the last step that took in a part of a prompt, and its nanoseconds.
    prompt: Option<(u64, u64)>,
    /// Nanoseconds of a generated token, smoothed.
    token: Option<u64>,
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
        let chunk = match self.prompt {
            None => FIRST,
            // A part of the time is the same for any number of tokens, so more tokens take less than this expects. A tenth
            // is left for what varies.
            Some((tokens, ns)) => {
                let fitting = u128::from(tokens) * u128::from(self.budget) * 9 / 10 / u128::from(ns.max(1));
                fitting.min(u128::from(tokens * GROWTH)) as usize
            }
        };
        chunk.clamp(1, self.chunk_max)
    }

    /// A step has taken in so many tokens of a prompt.
    pub fn prompt_took(&mut self, tokens: usize, ns: u64) {
        self.prompt = Some((tokens as u64, ns));
    }

    /// A step has computed a generated token.
    pub fn token_took(&mut self, ns: u64) {
        self.token = Some(self.token.map_or(ns, |before| before - before / 8 + ns / 8));
    }

    /// What the next step will take in nanoseconds, with so many tokens of a prompt pending (0: it generates one); 0 = not
    /// known yet.
    pub fn next_ns(&self, pending: usize) -> u64 {
        match (self.prompt, self.token) {
            (_, Some(ns)) if pending == 0 => ns,
            // One token takes about as long, whether it is given or generated.
            (Some((tokens, ns)), _) => {
                let next = pending.clamp(1, self.chunk()) as u64;
                let all = u128::from(ns) * u128::from(next) / u128::from(tokens.max(1));
                u64::try_from(all).unwrap_or(u64::MAX)
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
        (0..12).map(step).collect()
    }

    #[test]
    fn chunks_come_close_to_a_budget_and_stay_within_it() {
        for (fixed, each) in [(0, 1_000), (50_000, 20_000), (400_000, 10_000), (100, 1)] {
            let steps = run(1_000, fixed, each);
            assert!(steps.iter().all(|&(_, ns)| ns <= 1_000_000), "{fixed} + {each}: {steps:?}");
            let (last, ns) = steps[11];
            assert!(last == 512 || ns >= 700_000, "{fixed} + {each}: {steps:?}");
        }
        // What is too slow for the budget takes one token at a time.
        assert_eq!(run(100, 1_000_000, 1_000_000)[2].0, 1);
        assert_eq!(run(0, 5, 5)[0].0, 512, "without a budget all that there is room for");
    }

    #[test]
    fn estimates_are_of_the_step_that_comes() {
        let mut pace = Pace::new(64, 0);
        assert_eq!((pace.next_ns(0), pace.next_ns(9)), (0, 0));
        pace.prompt_took(64, 6400);
        assert_eq!((pace.next_ns(1000), pace.next_ns(10), pace.next_ns(0)), (6400, 1000, 100));
        pace.token_took(800);
        pace.token_took(1600);
        assert_eq!((pace.next_ns(10), pace.next_ns(0)), (1000, 900));
        let mut slow = Pace::new(4, 0);
        slow.prompt_took(1, u64::MAX);
        assert_eq!(slow.next_ns(4), u64::MAX);
    }
}
