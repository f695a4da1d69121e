//! Merging bytes into tokens: byte-level BPE.

use super::merges::Merges;
use super::texts::{Index, Texts};
use super::vocab::{ALPHABET, NONE, TOKENS, Vocab};
use crate::{Error, Result};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The longest piece merged at once. A longer one is cut, so that memory stays bounded: tokens near the cut may then
/// differ from those of the uncut piece; the text they stand for does not.
const PIECE_MAX: usize = 256 << 10;

/// What turns pieces of text into tokens.
pub(super) struct Bpe {
    /// The token for each byte alone, or [`NONE`].
    bytes: [u32; 256],
    merges: Merges,
    /// The tokens that text may become, by their bytes, where a piece that is a token is taken whole.
    wholes: Option<Texts>,
}

/// Memory for merging, kept from piece to piece.
#[derive(Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    /// Merges to do, the lowest rank first and of one rank the leftmost: the rank, then the left symbol.
    queue: BinaryHeap<Reverse<(u32, u32)>>,
}

/// A part of a piece that has become a token.
#[derive(Clone, Copy)]
struct Symbol {
    token: u32,
    /// The index of the symbol before, or [`NONE`].
    before: u32,
    /// The index of the symbol after, or the number of symbols.
    after: u32,
    /// The rank of the merge with the symbol after, and the token that it makes; [`NONE`] when there is none.
    rank: u32,
    whole: u32,
}

impl Bpe {
    /// `bytes`: from [`byte_tokens`].
    pub(super) fn new(bytes: [u32; 256], merges: Merges, vocab: &Vocab, ignore_merges: bool) -> Result<Bpe> {
        let wholes = if ignore_merges { Some(wholes(vocab)?) } else { None };
        Ok(Bpe { bytes, merges, wholes })
    }

    /// Memory held, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.merges.memory() + self.wholes.as_ref().map_or(0, Texts::memory)
    }

    /// Appends the tokens of one piece of text.
    ///
    /// A byte that has no token (SmolLM2 has none for some control characters) is left out, as llama.cpp does.
    pub(super) fn encode(&self, vocab: &Vocab, piece: &str, scratch: &mut Scratch, out: &mut Vec<u32>) -> Result<()> {
        let mut rest = piece;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.floor_char_boundary(PIECE_MAX));
            for run in now.as_bytes().split(|byte| self.bytes[*byte as usize] == NONE).filter(|run| !run.is_empty()) {
                let bytes = run.len().saturating_mul(size_of::<u32>());
                out.try_reserve(run.len()).map_err(|_| Error::NoMemory { what: "tokens", bytes })?;
                let whole = self.wholes.as_ref().and_then(|wholes| wholes.get(run, text_of(vocab)));
                match whole {
                    Some(token) => out.push(token),
                    None => self.merge(run, scratch, out)?,
                }
            }
            rest = later;
        }
        Ok(())
    }

    /// Merges until no two neighbours merge. `run` has at most [`PIECE_MAX`] bytes, each of which is a token; `out` has
    /// room for as many.
    fn merge(&self, run: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) -> Result<()> {
        let Scratch { symbols, queue } = scratch;
        symbols.clear();
        queue.clear();
        // Each merge takes one symbol away and makes two new pairs.
        let pairs = 3 * run.len();
        let bytes = run.len() * size_of::<Symbol>() + pairs * size_of::<Reverse<(u32, u32)>>();
        let no_memory = |_| Error::NoMemory { what: "merging", bytes };
        symbols.try_reserve(run.len()).map_err(no_memory)?;
        queue.try_reserve(pairs).map_err(no_memory)?;
        for (at, byte) in run.iter().enumerate() {
            let (at, token) = (at as u32, self.bytes[*byte as usize]);
            symbols.push(Symbol { token, before: at.wrapping_sub(1), after: at + 1, rank: NONE, whole: NONE });
        }
        for at in 0..run.len() {
            self.pair(symbols, queue, at);
        }
        while let Some(Reverse((rank, at))) = queue.pop() {
            let at = at as usize;
            // The symbols of a pair may have changed since it was queued; then its rank has, too.
            if symbols[at].rank != rank {
                continue;
            }
            let Symbol { before, after: taken, whole, .. } = symbols[at];
            let after = symbols[taken as usize].after;
            symbols[taken as usize].rank = NONE;
            symbols[at].token = whole;
            symbols[at].after = after;
            if let Some(symbol) = symbols.get_mut(after as usize) {
                symbol.before = at as u32;
            }
            self.pair(symbols, queue, at);
            if before != NONE {
                self.pair(symbols, queue, before as usize);
            }
        }
        let mut at = 0;
        while let Some(symbol) = symbols.get(at) {
            out.push(symbol.token);
            at = symbol.after as usize;
        }
        Ok(())
    }

    /// Looks up the merge of a symbol with the one after it.
    fn pair(&self, symbols: &mut [Symbol], queue: &mut BinaryHeap<Reverse<(u32, u32)>>, at: usize) {
        let Symbol { token, after, .. } = symbols[at];
        let merge = symbols.get(after as usize).and_then(|right| self.merges.get(token, right.token));
        (symbols[at].rank, symbols[at].whole) = merge.map_or((NONE, NONE), |merge| (merge.rank, merge.whole));
        if let Some(merge) = merge {
            queue.push(Reverse((merge.rank, at as u32)));
        }
    }
}

fn text_of<'a>(vocab: &'a Vocab) -> impl Fn(u32) -> &'a [u8] {
    |token| vocab.bytes(token).unwrap_or_default()
}

/// The tokens that text may become, by their bytes. No two have the same.
fn wholes(vocab: &Vocab) -> Result<Texts> {
    let mut wholes = Texts::with_room(vocab.len())?;
    for token in (0..vocab.len() as u32).filter(|token| vocab.mergeable(*token)) {
        wholes.insert(token, text_of(vocab)(token), text_of(vocab));
    }
    Ok(wholes)
}

/// The token for each byte. Real vocabularies lack some that text has hardly ever; one that lacks more is damaged.
pub(super) fn byte_tokens(index: &Index, vocab: &Vocab) -> Result<[u32; 256]> {
    let mut tokens = [NONE; 256];
    for byte in 0..=255u8 {
        let mut utf8 = [0; 4];
        let text = ALPHABET[byte as usize].encode_utf8(&mut utf8);
        let token = index.get(text.as_bytes()).filter(|token| vocab.mergeable(*token));
        // The ASCII that people type, and all of UTF-8 but the lead bytes of the private and unassigned planes.
        let needed = matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7E | 0x80..=0xBF | 0xC2..=0xF0);
        if needed && token.is_none() {
            return Err(Error::Format(format!("{TOKENS} has no token for the byte 0x{byte:02X} ({text:?})")));
        }
        tokens[byte as usize] = token.unwrap_or(NONE);
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::super::{merges::MERGES, vocab::Kind};
    use super::*;
    use crate::file::{Array, Metadata, ModelFile, Source, Value};
    use proptest::prelude::*;
    use std::collections::HashSet;
    use std::path::Path;
    use tokenizers::Model;
    use tokenizers::models::bpe::BPE;

    /// Ours and the `tokenizers` crate's, of one vocabulary.
    struct Both {
        vocab: Vocab,
        ours: Bpe,
        reference: BPE,
    }

    impl Both {
        /// `kinds`: of the tokens that are not normal.
        fn new(metadata: &Metadata, kinds: &[(u32, Kind)], ignore_merges: bool) -> Both {
            let (tokens, merges) =
                (metadata.strings(TOKENS).unwrap().unwrap(), metadata.strings(MERGES).unwrap().unwrap());
            let mut all = vec![Kind::Normal; tokens.len()];
            kinds.iter().for_each(|(token, kind)| all[*token as usize] = *kind);
            let vocab = Vocab::new(tokens.iter(), all).unwrap();
            let index = Index::new(&tokens).unwrap();
            let bytes = byte_tokens(&index, &vocab).unwrap();
            let checked = Merges::new(&index, &merges, |token| vocab.mergeable(token)).unwrap();
            let ours = Bpe::new(bytes, checked, &vocab, ignore_merges).unwrap();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let known = (0..).zip(tokens.iter()).filter(|(token, _)| vocab.mergeable(*token));
            let known: tokenizers::models::bpe::Vocab = known.map(|(token, bytes)| (text(bytes), token)).collect();
            let pairs = merges.iter().map(|merge| {
                let (left, right) = std::str::from_utf8(merge).unwrap().split_once(' ').unwrap();
                (left.to_owned(), right.to_owned())
            });
            let has = |part: &String| known.contains_key(part);
            let pairs =
                pairs.filter(|(left, right)| has(left) && has(right) && has(&format!("{left}{right}"))).collect();
            let builder = BPE::builder().vocab_and_merges(known, pairs);
            let reference = builder.ignore_merges(ignore_merges).cache_capacity(0).build().unwrap();
            Both { vocab, ours, reference }
        }

        #[track_caller]
        fn check(&self, scratch: &mut Scratch, piece: &str) {
            let mapped: String = piece.bytes().map(|byte| ALPHABET[byte as usize]).collect();
            let expected: Vec<u32> = self.reference.tokenize(&mapped).unwrap().iter().map(|token| token.id).collect();
            let mut found = vec![7];
            self.ours.encode(&self.vocab, piece, scratch, &mut found).unwrap();
            assert_eq!(found[1..], expected, "{piece:?}");
        }
    }

    fn metadata(tokens: &[String], merges: &[String]) -> Metadata {
        let array = |texts: &[String]| Value::Array(Array::of_strings(texts.iter().map(String::as_bytes)));
        Metadata::new(vec![(TOKENS.into(), array(tokens)), (MERGES.into(), array(merges))]).unwrap()
    }

    /// A vocabulary: `merges` are pairs of tokens (modulo their number so far), `turned` moves the tokens' numbers.
    fn grown(merges: &[(usize, usize)], turned: usize) -> Metadata {
        // Merges mostly start from these.
        let mut tokens: Vec<String> = "abc ".bytes().map(|byte| ALPHABET[byte as usize].to_string()).collect();
        let (mut texts, mut seen) = (vec![], HashSet::new());
        for (left, right) in merges {
            let pair = [*left, *right].map(|index| tokens[index % tokens.len()].clone());
            let whole = pair.concat();
            if whole.len() <= 64 && seen.insert(pair.clone()) {
                texts.push(pair.join(" "));
                if !tokens.contains(&whole) {
                    tokens.push(whole);
                }
            }
        }
        let others = ALPHABET.iter().map(char::to_string).filter(|char| !tokens.contains(char)).collect::<Vec<_>>();
        tokens.extend(others);
        let by = turned % tokens.len();
        tokens.rotate_left(by);
        metadata(&tokens, &texts)
    }

    #[test]
    fn long_runs_merge_as_in_the_reference() {
        let metadata = grown(&[(0, 0), (4, 4), (5, 5), (6, 0), (5, 6), (0, 1), (9, 0), (1, 0)], 0);
        let (both, mut scratch) = (Both::new(&metadata, &[], false), Scratch::default());
        for unit in ["a", "ab", "aab", "aaaaaab", "ba"] {
            for len in [1, 2, 3, 100, 4095, 4096, 50_000] {
                both.check(&mut scratch, &unit.repeat(len)[..len]);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..Default::default() })]

        #[test]
        fn any_vocabulary_merges_as_in_the_reference(
            merges in proptest::collection::vec((0usize..200, 0usize..200), 0..80),
            turned in 0usize..300,
            control in proptest::collection::vec(0usize..400, 0..4),
            ignore_merges: bool,
            pieces in proptest::collection::vec("[abc ]{0,40}", 1..16),
            other in any::<String>(),
        ) {
            let metadata = grown(&merges, turned);
            let tokens = metadata.strings(TOKENS).unwrap().unwrap();
            // Some tokens that merges make or use are out of bounds for text.
            let long = |index: &usize| tokens.get(*index).is_some_and(|text| String::from_utf8_lossy(text).chars().count() > 1);
            let kinds: Vec<_> = control.into_iter().filter(long).map(|index| (index as u32, Kind::Control)).collect();
            let (both, mut scratch) = (Both::new(&metadata, &kinds, ignore_merges), Scratch::default());
            for piece in pieces.iter().chain([&other]) {
                both.check(&mut scratch, piece);
            }
        }

        #[test]
        fn a_trained_vocabulary_merges_as_in_the_reference(
            words in proptest::collection::vec("[a-z ]{1,12}|[0-9éабв中 \\n]{1,6}|the|ing| and|tion", 1..8),
            any in any::<String>(),
        ) {
            thread_local!(static SMALL: Vec<Both> = {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer/small-vocab.bin");
                let metadata = ModelFile::open(Source::Path(&path), true).unwrap().metadata;
                [false, true].map(|ignore_merges| Both::new(&metadata, &[], ignore_merges)).into()
            });
            SMALL.with(|both| for both in both {
                both.check(&mut Scratch::default(), &words.concat());
                both.check(&mut Scratch::default(), &any);
            });
        }
    }
}
