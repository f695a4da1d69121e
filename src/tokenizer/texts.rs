//! Finding tokens by their texts.

use super::vocab::TOKENS;
use crate::file::Strings;
use crate::{Error, Result};
use foldhash::quality::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use std::hash::{BuildHasher, Hasher};

/// Which token has a text. It holds 5 bytes for a token: the texts stay where they are, and every call is given them.
///
/// The hash is seeded anew in each process, so that no file can be made of texts that fall together.
pub(super) struct Texts {
    tokens: HashTable<u32>,
    state: RandomState,
}

impl Texts {
    /// Empty, with room for `count` tokens.
    pub(super) fn with_room(count: usize) -> Result<Texts> {
        let mut tokens = HashTable::new();
        let bytes = count.saturating_mul(size_of::<u32>());
        tokens.try_reserve(count, |_| 0).map_err(|_| Error::NoMemory { what: "the index of tokens", bytes })?;
        Ok(Texts { tokens, state: RandomState::default() })
    }

    /// Adds a token that has this text, or says which has it already. There must be room.
    pub(super) fn insert<'a>(&mut self, token: u32, text: &[u8], text_of: impl Fn(u32) -> &'a [u8]) -> Option<u32> {
        let (state, hash) = (&self.state, hash(&self.state, text));
        match self.tokens.entry(hash, |other| text_of(*other) == text, |other| self::hash(state, text_of(*other))) {
            Entry::Occupied(other) => Some(*other.get()),
            Entry::Vacant(place) => {
                place.insert(token);
                None
            }
        }
    }

    /// Memory held, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.tokens.allocation_size()
    }

    /// The token that has this text.
    pub(super) fn get<'a>(&self, text: &[u8], text_of: impl Fn(u32) -> &'a [u8]) -> Option<u32> {
        self.tokens.find(hash(&self.state, text), |token| text_of(*token) == text).copied()
    }
}

fn hash(state: &RandomState, text: &[u8]) -> u64 {
    let mut hasher = state.build_hasher();
    hasher.write(text);
    hasher.finish()
}

/// The texts of all tokens, as in the file, and which token each is.
pub(super) struct Index<'a> {
    texts: &'a Strings<'a>,
    tokens: Texts,
}

impl<'a> Index<'a> {
    /// Refuses what has no one meaning: empty and repeated tokens.
    pub(super) fn new(texts: &'a Strings<'a>) -> Result<Index<'a>> {
        let mut tokens = Texts::with_room(texts.len())?;
        for (token, text) in texts.iter().enumerate() {
            if text.is_empty() {
                return Err(Error::Format(format!("{TOKENS}[{token}] is empty")));
            }
            if let Some(first) = tokens.insert(token as u32, text, text_of(texts)) {
                let text = String::from_utf8_lossy(text);
                return Err(Error::Format(format!("{TOKENS}[{token}] repeats {TOKENS}[{first}]: {text:?}")));
            }
        }
        Ok(Index { texts, tokens })
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    pub(super) fn get(&self, text: &[u8]) -> Option<u32> {
        self.tokens.get(text, text_of(self.texts))
    }

    /// The token whose text is `left` and then `right`; found at once if it is `guess`. `whole` is scratch.
    pub(super) fn get_joined(&self, left: &[u8], right: &[u8], guess: u32, whole: &mut Vec<u8>) -> Option<u32> {
        let is_joined =
            |text: &[u8]| text.len() == left.len() + right.len() && text.starts_with(left) && text.ends_with(right);
        if self.texts.get(guess as usize).is_some_and(is_joined) {
            return Some(guess);
        }
        whole.clear();
        whole.extend_from_slice(left);
        whole.extend_from_slice(right);
        self.get(whole)
    }
}

fn text_of<'a>(texts: &'a Strings<'a>) -> impl Fn(u32) -> &'a [u8] {
    |token| texts.get(token as usize).unwrap_or_default()
}
