//! Cutting text into the pieces that merging never crosses: the pre-tokenizers.
//!
//! Each family is one regular expression of the models' `tokenizer.json`. They are scanned by hand: the expressions
//! need look-ahead, and a backtracking engine gives up in the middle of a megabyte of spaces. The tests compare with
//! that engine.
//!
//! | family | expression |
//! |---|---|
//! | llama 3 | `(?i:'s\|'t\|'re\|'ve\|'m\|'ll\|'d)\|[^\r\n\p{L}\p{N}]?\p{L}+\|\p{N}{1,3}\| ?[^\s\p{L}\p{N}]+[\r\n]*\|\s*[\r\n]+\|\s+(?!\S)\|\s+` |
//! | qwen 2 | the same with `\p{N}` for `\p{N}{1,3}` |
//! | gpt 2 | `'s\|'t\|'re\|'ve\|'m\|'ll\|'d\| ?\p{L}+\| ?\p{N}+\| ?[^\s\p{L}\p{N}]+\|\s+(?!\S)\|\s+` |
//! | smollm | each `\p{N}` alone, then gpt 2 between them |

use super::classes::{Class, Classes};
use crate::{Error, Result};

pub(super) const PRE: &str = "tokenizer.ggml.pre";

/// A shape of pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Llama3,
    Qwen2,
    Gpt2,
    SmolLm,
}

/// What a name in `tokenizer.ggml.pre` says.
#[derive(Debug)]
pub(super) struct Pre {
    pub(super) names: &'static [&'static str],
    pub(super) family: Family,
    /// A piece that is a token is taken whole, without merging.
    pub(super) ignore_merges: bool,
    /// Whether BOS is added when the file does not say.
    pub(super) add_bos: bool,
}

const TABLE: &[Pre] = &[
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        family: Family::Llama3,
        ignore_merges: true,
        add_bos: true,
    },
    Pre {
        names: &["smaug-bpe", "dbrx", "glm4", "chatglm-bpe"],
        family: Family::Llama3,
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan", "grok-2"],
        family: Family::Qwen2,
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"],
        family: Family::Gpt2,
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        family: Family::SmolLm,
        ignore_merges: false,
        add_bos: false,
    },
];

/// The row of a file's `tokenizer.ggml.pre`. A guess would give wrong tokens in silence, so unknown names are refused.
pub(super) fn find(name: Option<&str>) -> Result<&'static Pre> {
    let known = || TABLE.iter().flat_map(|pre| pre.names).copied().collect::<Vec<_>>().join(", ");
    match name {
        None => Err(Error::Unsupported(format!("the file has no {PRE}; known pre-tokenizers: {}", known()))),
        Some(name) => TABLE.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
            Error::Unsupported(format!("{PRE} is {name:?}, which is not supported; known: {}", known()))
        }),
    }
}

/// The pieces of a text, in order; together they are the text.
pub(super) struct Pieces<'a> {
    rest: &'a str,
    family: Family,
    classes: &'a Classes,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(text: &'a str, family: Family, classes: &'a Classes) -> Self {
        Pieces { rest: text, family, classes }
    }

    /// The character at `at` and its class; None at the end.
    fn peek(&self, at: usize) -> Option<(char, Class)> {
        let char = self.rest[at..].chars().next()?;
        Some((char, self.classes.of(char)))
    }

    /// Where the run of `class` that begins at `at` ends, after `most` characters at the latest.
    fn run(&self, at: usize, class: Class, most: usize) -> usize {
        let run = self.rest[at..].chars().take(most).take_while(|char| self.classes.of(*char) == class);
        at + run.map(char::len_utf8).sum::<usize>()
    }

    /// `'s`, `'t`, … at the start: its length.
    fn contraction(&self, any_case: bool) -> Option<usize> {
        let mut chars = self.rest.strip_prefix('\'')?.chars();
        // U+017F folds to `s` under `(?i)`; no other letter from outside ASCII folds to one of these.
        let mut next =
            || chars.next().map(|char| if any_case && char != 'ſ' { char.to_ascii_lowercase() } else { char });
        match next()? {
            's' | 't' | 'm' | 'd' => Some(2),
            'ſ' if any_case => Some(1 + 'ſ'.len_utf8()),
            'r' | 'v' => (next()? == 'e').then_some(3),
            'l' => (next()? == 'l').then_some(3),
            _ => None,
        }
    }

    /// `\s+(?!\S)|\s+`: white space, less its last character when more text follows. `end` is where the run ends.
    fn space(&self, end: usize) -> usize {
        let followed = match self.peek(end) {
            None => false,
            // Numbers are cut out first there, so white space before one ends its stretch of text.
            Some((_, Class::Number)) => self.family != Family::SmolLm,
            Some(_) => true,
        };
        let last = self.rest[..end].chars().next_back().map_or(0, char::len_utf8);
        if followed && end > last { end - last } else { end }
    }

    fn next_llama3(&self, digits: usize) -> Option<usize> {
        let (first, class) = self.peek(0)?;
        let second = first.len_utf8();
        if let Some(end) = self.contraction(true) {
            return Some(end);
        }
        match class {
            Class::Letter => return Some(self.run(0, Class::Letter, usize::MAX)),
            Class::Number => return Some(self.run(0, Class::Number, digits)),
            Class::Space | Class::Other => {}
        }
        let newline = matches!(first, '\r' | '\n');
        let next = self.peek(second).map(|(_, class)| class);
        if !newline && next == Some(Class::Letter) {
            return Some(self.run(second, Class::Letter, usize::MAX));
        }
        if class == Class::Other || (first == ' ' && next == Some(Class::Other)) {
            let end = self.run(second, Class::Other, usize::MAX);
            let newlines = self.rest.as_bytes()[end..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            return Some(end + newlines);
        }
        let end = self.run(0, Class::Space, usize::MAX);
        match self.rest.as_bytes()[..end].iter().rposition(|byte| matches!(byte, b'\r' | b'\n')) {
            Some(last) => Some(last + 1),
            None => Some(self.space(end)),
        }
    }

    fn next_gpt2(&self) -> Option<usize> {
        let (first, class) = self.peek(0)?;
        if let Some(end) = self.contraction(false) {
            return Some(end);
        }
        let alone = self.family == Family::SmolLm;
        if class != Class::Space {
            let most = if alone && class == Class::Number { 1 } else { usize::MAX };
            return Some(self.run(0, class, most));
        }
        if first == ' ' {
            match self.peek(1) {
                Some((_, Class::Space)) | None => {}
                Some((_, Class::Number)) if alone => {}
                Some((_, next)) => return Some(self.run(1, next, usize::MAX)),
            }
        }
        Some(self.space(self.run(0, Class::Space, usize::MAX)))
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let end = match self.family {
            Family::Llama3 => self.next_llama3(3)?,
            Family::Qwen2 => self.next_llama3(1)?,
            Family::Gpt2 | Family::SmolLm => self.next_gpt2()?,
        };
        let (piece, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};

    const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    /// The expressions themselves, run by the crate's engine.
    struct Reference(Vec<(Family, Vec<Split>)>);

    impl Reference {
        fn new() -> Reference {
            let split = |regex: &str| {
                Split::new(SplitPattern::Regex(regex.into()), SplitDelimiterBehavior::Isolated, false).unwrap()
            };
            let qwen2 = LLAMA3.replace("{1,3}", "");
            Reference(vec![
                (Family::Llama3, vec![split(LLAMA3)]),
                (Family::Qwen2, vec![split(&qwen2)]),
                (Family::Gpt2, vec![split(GPT2)]),
                (Family::SmolLm, vec![split(r"\p{N}"), split(GPT2)]),
            ])
        }

        fn check(&self, text: &str, classes: &Classes) {
            for (family, splits) in &self.0 {
                let mut expected = PreTokenizedString::from(text);
                splits.iter().for_each(|split| split.pre_tokenize(&mut expected).unwrap());
                let expected: Vec<&str> = expected
                    .get_splits(OffsetReferential::Original, OffsetType::Byte)
                    .into_iter()
                    .map(|(piece, _, _)| piece)
                    .collect();
                let found: Vec<&str> = Pieces::new(text, *family, classes).collect();
                assert_eq!(found, expected, "{family:?} {text:?}");
            }
        }
    }

    #[test]
    fn every_character_is_cut_as_the_expressions_cut_it() {
        let (reference, classes) = (Reference::new(), Classes::new().unwrap());
        for block in (0..=u32::from(char::MAX)).step_by(64) {
            let chars = || (block..block + 64).filter_map(char::from_u32);
            reference.check(&chars().flat_map(|char| ['a', char, '1', char, ' ']).collect::<String>(), &classes);
        }
    }

    #[test]
    fn unknown_names_are_refused_and_known_ones_are_listed_once() {
        let mut names: Vec<_> = TABLE.iter().flat_map(|pre| pre.names).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
        for name in names {
            assert!(find(Some(name)).unwrap().names.contains(name));
        }
        for name in [None, Some("default"), Some("deepseek-llm"), Some("qwen2 "), Some("QWEN2")] {
            assert!(matches!(find(name), Err(Error::Unsupported(_))), "{name:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(800))]

        #[test]
        fn pieces_are_those_of_the_expressions(
            parts in proptest::collection::vec(
                proptest::sample::select(vec![
                    "'", "'s", "'S", "'ll", "'Re", "'ſ", "ſ", " ", "  ", "\n", "\r", "\r\n", "\t", "\u{A0}", "\u{3000}", "\u{85}", "1", "22",
                    "4444", "²", "a", "the", "É", "\u{301}", "中", "😀", "\u{200D}", "!", "...", "_", "\0", "\u{1C}", "\u{180E}", "s", "e", "l",
                ]),
                0..24,
            ),
            any in any::<String>(),
        ) {
            thread_local!(static FIXED: (Reference, Classes) = (Reference::new(), Classes::new().unwrap()));
            FIXED.with(|(reference, classes)| {
                reference.check(&parts.concat(), classes);
                reference.check(&any, classes);
            });
        }
    }
}
