//! Finding special tokens in text, before anything else looks at it.

use super::vocab::{Kind, TOKENS, Vocab};
use crate::{Error, Result};
use aho_corasick::{AhoCorasick, MatchKind};

/// How many bytes all special tokens may have together; real vocabularies stay under 100,000.
const BYTES_MAX: usize = 1 << 20;

/// The searchers for special tokens: one for text that may contain control tokens, one for text that may not.
pub(super) struct Specials {
    trusted: Searcher,
    untrusted: Searcher,
}

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Text(&'a str),
    Token(u32),
}

impl Specials {
    pub(super) fn new(vocab: &Vocab) -> Result<Specials> {
        let of = |kinds: &[Kind]| Searcher::new(vocab, kinds);
        Ok(Specials { trusted: of(&[Kind::Control, Kind::UserDefined])?, untrusted: of(&[Kind::UserDefined])? })
    }

    /// Memory held, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.trusted.memory() + self.untrusted.memory()
    }

    /// Cuts a text at its special tokens: the leftmost, and there the longest.
    ///
    /// Control tokens are found only with `control`. This is what the models' own tokenizers do. llama.cpp searches
    /// for the longest token first and then the next: the same unless the end of one token is the start of another.
    pub(super) fn parts<'a>(&'a self, text: &'a str, control: bool) -> impl Iterator<Item = Part<'a>> {
        let searcher = if control { &self.trusted } else { &self.untrusted };
        let mut matches = searcher.automaton.as_ref().map(|automaton| automaton.find_iter(text)).into_iter().flatten();
        let (mut at, mut token) = (0, None);
        std::iter::from_fn(move || {
            if let Some(token) = token.take() {
                return Some(Part::Token(token));
            }
            let (start, end) = match matches.next() {
                Some(found) => {
                    token = Some(searcher.tokens[found.pattern().as_usize()]);
                    (found.start(), found.end())
                }
                None if at < text.len() => (text.len(), text.len()),
                None => return None,
            };
            // Patterns are whole UTF-8, so they match between whole characters.
            let before = &text[at..start];
            at = end;
            if before.is_empty() { token.take().map(Part::Token) } else { Some(Part::Text(before)) }
        })
    }
}

struct Searcher {
    /// None when there is nothing to find.
    automaton: Option<AhoCorasick>,
    /// The token of each pattern.
    tokens: Vec<u32>,
}

impl Searcher {
    fn new(vocab: &Vocab, kinds: &[Kind]) -> Result<Searcher> {
        let (mut patterns, mut tokens, mut bytes) = (Vec::new(), Vec::new(), 0);
        for token in vocab.of_kinds(kinds) {
            // A pattern that is not UTF-8 could match half a character.
            if let Some(text) = vocab.bytes(token).filter(|text| std::str::from_utf8(text).is_ok()) {
                bytes += text.len();
                patterns.push(text);
                tokens.push(token);
            }
        }
        if bytes > BYTES_MAX {
            let what = "special tokens (control and user-defined)";
            return Err(Error::Format(format!("{TOKENS}: {what} hold {bytes} bytes, at most {BYTES_MAX}")));
        }
        if patterns.is_empty() {
            return Ok(Searcher { automaton: None, tokens });
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&patterns)
            .map_err(|error| Error::Format(format!("{TOKENS}: the special tokens cannot be searched: {error}")))?;
        Ok(Searcher { automaton: Some(automaton), tokens })
    }

    fn memory(&self) -> usize {
        let automaton = self.automaton.as_ref().map_or(0, AhoCorasick::memory_usage);
        automaton + self.tokens.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_special_token_wins_and_control_only_when_asked() {
        let texts: [&[u8]; 5] = [b"<a>", b"<a><b>", b"<b>", b"<tool>", b"\xFF"];
        let kinds = vec![Kind::Control, Kind::Control, Kind::Control, Kind::UserDefined, Kind::Control];
        let vocab = Vocab::new(texts.into_iter(), kinds).unwrap();
        let specials = Specials::new(&vocab).unwrap();
        let parts = |text: &'static str, control| specials.parts(text, control).collect::<Vec<_>>();
        assert_eq!(
            parts("x<a><b><b>é<tool>", true),
            [Part::Text("x"), Part::Token(1), Part::Token(2), Part::Text("é"), Part::Token(3)]
        );
        assert_eq!(parts("x<a><b><tool>y", false), [Part::Text("x<a><b>"), Part::Token(3), Part::Text("y")]);
        assert_eq!(parts("", true), []);
    }

    #[test]
    fn special_tokens_without_bound_are_refused() {
        let text = vec![b'x'; BYTES_MAX + 1];
        let vocab = Vocab::new([text.as_slice()].into_iter(), vec![Kind::Control]).unwrap();
        assert!(matches!(Specials::new(&vocab), Err(Error::Format(message)) if message.contains("hold 1048577 bytes")));
    }
}
