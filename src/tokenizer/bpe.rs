//! Merging bytes into tokens: the `tokenizers` crate's BPE, with its input checked and bounded.

use super::vocab::{ALPHABET, Kind, TOKENS, is_literal, reserved};
use crate::{Error, Result};
use std::collections::{HashMap, HashSet};
use tokenizers::Model as _;
use tokenizers::models::bpe::{BPE, Merges, Vocab as Texts};

pub(super) const MERGES: &str = "tokenizer.ggml.merges";

/// The longest piece merged at once. A longer one is cut, so that memory stays bounded: tokens near the cut may then
/// differ from those of the uncut piece; the text they stand for does not.
const PIECE_MAX: usize = 256 << 10;

/// The crate's model, and which bytes it knows.
pub(super) struct Bpe {
    model: BPE,
    /// Whether there is a token for each byte alone.
    known: [bool; 256],
}

/// The texts of all tokens, as in the file, with their numbers.
pub(super) struct Index<'a>(HashMap<&'a [u8], u32>);

impl<'a> Index<'a> {
    /// Refuses what has no one meaning: empty and repeated tokens.
    pub(super) fn new(texts: &[&'a [u8]]) -> Result<Index<'a>> {
        let mut map = HashMap::new();
        let bytes = texts.len().saturating_mul(size_of::<(&[u8], u32)>());
        map.try_reserve(texts.len()).map_err(|_| Error::NoMemory { what: "the index of tokens", bytes })?;
        for (index, text) in texts.iter().enumerate() {
            if text.is_empty() {
                return Err(Error::Format(format!("{TOKENS}[{index}] is empty")));
            }
            if let Some(first) = map.insert(*text, index as u32) {
                let text = String::from_utf8_lossy(text);
                return Err(Error::Format(format!("{TOKENS}[{index}] repeats {TOKENS}[{first}]: {text:?}")));
            }
        }
        Ok(Index(map))
    }

    pub(super) fn get(&self, text: &[u8]) -> Option<u32> {
        self.0.get(text).copied()
    }
}

impl Bpe {
    pub(super) fn new(
        texts: &[&[u8]],
        kinds: &[Kind],
        index: &Index<'_>,
        merges: &[&[u8]],
        ignore_merges: bool,
    ) -> Result<Bpe> {
        // Text may become these only: never a control token, never one whose bytes would not give the text back.
        let mergeable = |token: u32| match (kinds.get(token as usize), texts.get(token as usize)) {
            (Some(Kind::Normal), _) => true,
            (Some(Kind::UserDefined), Some(text)) => is_literal(text),
            _ => false,
        };
        let known = known_bytes(index, mergeable)?;
        let merges = checked_merges(index, merges, mergeable)?;
        let mut vocab = Texts::with_capacity(texts.len());
        for (token, text) in texts.iter().enumerate() {
            let token = token as u32;
            if let Ok(text) = std::str::from_utf8(text)
                && mergeable(token)
            {
                vocab.insert(text.to_owned(), token);
            }
        }
        let model = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .ignore_merges(ignore_merges)
            // The crate's cache is a thread-local that outlives the model.
            .cache_capacity(0)
            .build()
            .map_err(|error| Error::Format(format!("{MERGES}: {error}")))?;
        Ok(Bpe { model, known })
    }

    /// Appends the tokens of one piece of text. `mapped` is scratch.
    ///
    /// A byte that has no token (SmolLM2 has none for some control characters) is left out, as llama.cpp does.
    pub(super) fn encode(&self, piece: &str, mapped: &mut String, out: &mut Vec<u32>) -> Result<()> {
        let mut rest = piece;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.floor_char_boundary(PIECE_MAX));
            for run in now.as_bytes().split(|byte| !self.known[*byte as usize]).filter(|run| !run.is_empty()) {
                mapped.clear();
                mapped.extend(run.iter().map(|byte| ALPHABET[*byte as usize]));
                self.merge(mapped, out)?;
            }
            rest = later;
        }
        Ok(())
    }

    fn merge(&self, mapped: &str, out: &mut Vec<u32>) -> Result<()> {
        let tokens = self.model.tokenize(mapped).map_err(|error| Error::Internal(error.to_string().into()))?;
        let bytes = tokens.len().saturating_mul(size_of::<u32>());
        out.try_reserve(tokens.len()).map_err(|_| Error::NoMemory { what: "tokens", bytes })?;
        out.extend(tokens.iter().map(|token| token.id));
        Ok(())
    }
}

/// Which bytes are tokens. Real vocabularies lack some that text has hardly ever; one that lacks more is damaged.
fn known_bytes(index: &Index<'_>, mergeable: impl Fn(u32) -> bool) -> Result<[bool; 256]> {
    let mut known = [false; 256];
    for byte in 0..=255u8 {
        let mut utf8 = [0; 4];
        let text = ALPHABET[byte as usize].encode_utf8(&mut utf8);
        known[byte as usize] = index.get(text.as_bytes()).is_some_and(&mergeable);
        // The ASCII that people type, and all of UTF-8 but the lead bytes of the private and unassigned planes.
        let needed = matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7E | 0x80..=0xBF | 0xC2..=0xF0);
        if needed && !known[byte as usize] {
            return Err(Error::Format(format!("{TOKENS} has no token for the byte 0x{byte:02X} ({text:?})")));
        }
    }
    Ok(known)
}

/// The merges as pairs of texts, in order. Those that would make or use what text may not become are left out.
fn checked_merges(index: &Index<'_>, merges: &[&[u8]], mergeable: impl Fn(u32) -> bool) -> Result<Merges> {
    let mut pairs: Merges = reserved("merges", merges.len())?;
    let mut seen = HashSet::new();
    let bytes = merges.len().saturating_mul(size_of::<(u32, u32)>());
    seen.try_reserve(merges.len()).map_err(|_| Error::NoMemory { what: "the index of merges", bytes })?;
    let mut whole = Vec::new();
    for (number, merge) in merges.iter().enumerate() {
        let wrong = |why: &str| Error::Format(format!("{MERGES}[{number}] {:?} {why}", String::from_utf8_lossy(merge)));
        let text = std::str::from_utf8(merge).map_err(|_| wrong("is not UTF-8"))?;
        let Some((left, right)) = text.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty())
        else {
            return Err(wrong("is not two tokens with a space between them"));
        };
        whole.clear();
        whole.extend_from_slice(left.as_bytes());
        whole.extend_from_slice(right.as_bytes());
        let token = |part: &[u8]| {
            index.get(part).ok_or_else(|| wrong(&format!("needs the token {:?}", String::from_utf8_lossy(part))))
        };
        let ids = [token(left.as_bytes())?, token(right.as_bytes())?, token(&whole)?];
        if !seen.insert((ids[0], ids[1])) {
            return Err(wrong("comes twice"));
        }
        if ids.into_iter().all(&mergeable) {
            pairs.push((left.to_owned(), right.to_owned()));
        }
    }
    Ok(pairs)
}
