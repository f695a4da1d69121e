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
pub(super) struct Index {
    texts: Texts,
    /// Those that are not UTF-8: they stand for no text.
    others: HashMap<Vec<u8>, u32>,
}

impl Index {
    /// Refuses what has no one meaning: empty and repeated tokens.
    pub(super) fn new(texts: &[&[u8]]) -> Result<Index> {
        let mut index = Index { texts: Texts::with_capacity(texts.len()), others: HashMap::new() };
        for (token, bytes) in texts.iter().enumerate() {
            if bytes.is_empty() {
                return Err(Error::Format(format!("{TOKENS}[{token}] is empty")));
            }
            let first = match std::str::from_utf8(bytes) {
                Ok(text) => index.texts.insert(text.to_owned(), token as u32),
                Err(_) => index.others.insert(bytes.to_vec(), token as u32),
            };
            if let Some(first) = first {
                let text = String::from_utf8_lossy(bytes);
                return Err(Error::Format(format!("{TOKENS}[{token}] repeats {TOKENS}[{first}]: {text:?}")));
            }
        }
        Ok(index)
    }

    pub(super) fn get(&self, text: &str) -> Option<u32> {
        self.texts.get(text).copied()
    }
}

impl Bpe {
    /// `texts`: of all tokens, as in the file, the same that `index` has.
    pub(super) fn new(
        texts: &[&[u8]],
        kinds: &[Kind],
        index: Index,
        merges: &[&[u8]],
        ignore_merges: bool,
    ) -> Result<Bpe> {
        // Text may become these only: never a control token, never one whose bytes would not give the text back.
        let mergeable = |token: u32| match (kinds.get(token as usize), texts.get(token as usize)) {
            (Some(Kind::Normal), _) => true,
            (Some(Kind::UserDefined), Some(text)) => is_literal(text),
            _ => false,
        };
        let known = known_bytes(&index, mergeable)?;
        let merges = checked_merges(&index, merges, texts.len(), mergeable)?;
        let mut vocab = index.texts;
        vocab.retain(|_, token| mergeable(*token));
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

/// Whether a merge makes this text.
pub(super) fn makes(merge: &[u8], text: &[u8]) -> bool {
    merge.len() == text.len() + 1
        && merge.iter().position(|byte| *byte == b' ').is_some_and(|space| {
            let (left, right) = (&merge[..space], &merge[space + 1..]);
            text.strip_prefix(left) == Some(right)
        })
}

/// Which bytes are tokens. Real vocabularies lack some that text has hardly ever; one that lacks more is damaged.
fn known_bytes(index: &Index, mergeable: impl Fn(u32) -> bool) -> Result<[bool; 256]> {
    let mut known = [false; 256];
    for byte in 0..=255u8 {
        let mut utf8 = [0; 4];
        let text = ALPHABET[byte as usize].encode_utf8(&mut utf8);
        known[byte as usize] = index.get(text).is_some_and(&mergeable);
        // The ASCII that people type, and all of UTF-8 but the lead bytes of the private and unassigned planes.
        let needed = matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7E | 0x80..=0xBF | 0xC2..=0xF0);
        if needed && !known[byte as usize] {
            return Err(Error::Format(format!("{TOKENS} has no token for the byte 0x{byte:02X} ({text:?})")));
        }
    }
    Ok(known)
}

/// The merges as pairs of texts, in order. Those that would make or use what text may not become are left out.
fn checked_merges(index: &Index, merges: &[&[u8]], tokens: usize, mergeable: impl Fn(u32) -> bool) -> Result<Merges> {
    let mut pairs: Merges = reserved("merges", merges.len())?;
    // The left half of the last merge that made each token; those of the earlier ones are in the set.
    let mut made: Vec<Option<u32>> = reserved("merges", tokens)?;
    made.resize(tokens, None);
    let mut made_again = HashSet::new();
    let mut whole = String::new();
    for (number, merge) in merges.iter().enumerate() {
        let wrong = |why: &str| Error::Format(format!("{MERGES}[{number}] {:?} {why}", String::from_utf8_lossy(merge)));
        let text = std::str::from_utf8(merge).map_err(|_| wrong("is not UTF-8"))?;
        let Some((left, right)) = text.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty())
        else {
            return Err(wrong("is not two tokens with a space between them"));
        };
        whole.clear();
        whole.extend([left, right]);
        let token = |part: &str| index.get(part).ok_or_else(|| wrong(&format!("needs the token {part:?}")));
        let [left_id, right_id, whole_id] = [token(left)?, token(right)?, token(&whole)?];
        // What is made and the left half say what the right half is.
        let is_new = match made[whole_id as usize].replace(left_id) {
            None => true,
            Some(other) => {
                made_again.insert((whole_id, other));
                !made_again.contains(&(whole_id, left_id))
            }
        };
        if !is_new {
            return Err(wrong("comes twice"));
        }
        if [left_id, right_id, whole_id].into_iter().all(&mergeable) {
            pairs.push((left.to_owned(), right.to_owned()));
        }
    }
    Ok(pairs)
}
