//! What each token is: its bytes, its kind, and the byte-level alphabet that GGUF writes tokens in.

use crate::{Error, Result};

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";

/// What a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Made from text by merging bytes.
    Normal,
    /// Steers the model (`<|im_end|>`); comes from text only when the caller says so. "Unknown" tokens too.
    Control,
    /// Literal text that is always one token (`<tool_call>`).
    UserDefined,
    /// A gap in the vocabulary; never comes from text.
    Unused,
}

/// All tokens: their bytes in one arena, their kinds beside it.
pub(super) struct Vocab {
    bytes: Vec<u8>,
    /// `ends[i]` is where token `i` ends and token `i + 1` begins in `bytes`.
    ends: Vec<u32>,
    kinds: Vec<Kind>,
    longest: usize,
}

impl Vocab {
    /// `texts` as in the file: normal tokens in the byte-level alphabet, the others literal.
    pub(super) fn new(texts: &[&[u8]], kinds: Vec<Kind>) -> Result<Vocab> {
        let total: usize = texts.iter().map(|text| text.len()).sum();
        if u32::try_from(total).is_err() {
            return Err(Error::Format(format!("{TOKENS} holds {total} bytes, at most {}", u32::MAX)));
        }
        let mut vocab =
            Vocab { bytes: reserved("token bytes", total)?, ends: reserved("tokens", texts.len())?, kinds, longest: 0 };
        for (text, kind) in texts.iter().zip(&vocab.kinds) {
            let start = vocab.bytes.len();
            // What is not in the alphabet stays as it is: no text can become it.
            if *kind != Kind::Normal || !push_decoded(text, &mut vocab.bytes) {
                vocab.bytes.extend_from_slice(text);
            }
            // Decoding only shortens, so the sum checked above holds.
            vocab.ends.push(vocab.bytes.len() as u32);
            vocab.longest = vocab.longest.max(vocab.bytes.len() - start);
        }
        Ok(vocab)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of the longest token.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    pub(super) fn bytes(&self, token: u32) -> Option<&[u8]> {
        let index = token as usize;
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        Some(&self.bytes[start..end])
    }

    pub(super) fn kind(&self, token: u32) -> Option<Kind> {
        self.kinds.get(token as usize).copied()
    }
}

/// The kinds in `tokenizer.ggml.token_type`; all normal when the file has none.
pub(super) fn kinds(types: Option<&[i64]>, count: usize) -> Result<Vec<Kind>> {
    let mut kinds = reserved("token kinds", count)?;
    let Some(types) = types else {
        kinds.resize(count, Kind::Normal);
        return Ok(kinds);
    };
    if types.len() != count {
        return Err(Error::Format(format!("{TOKEN_TYPE} has {} entries, {TOKENS} has {count}", types.len())));
    }
    for (index, value) in types.iter().enumerate() {
        kinds.push(match value {
            0 | 1 | 6 => Kind::Normal,
            2 | 3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            _ => return Err(Error::Format(format!("{TOKEN_TYPE}[{index}] is {value}, not a type of token (0 to 6)"))),
        });
    }
    Ok(kinds)
}

/// An empty vector with room for `count` elements.
pub(super) fn reserved<T>(what: &'static str, count: usize) -> Result<Vec<T>> {
    let mut vector = Vec::new();
    let bytes = count.saturating_mul(size_of::<T>());
    vector.try_reserve_exact(count).map_err(|_| Error::NoMemory { what, bytes })?;
    Ok(vector)
}

/// The characters that stand for bytes: a printable Latin-1 character for itself, the rest from U+0100 on, in order.
pub(super) const ALPHABET: [char; 256] = alphabet();
/// Characters from here on stand for no byte.
const ALPHABET_END: usize = 0x100 + 68;

const fn alphabet() -> [char; 256] {
    let mut chars = ['\0'; 256];
    let (mut byte, mut next) = (0, 0x100);
    while byte < 256 {
        chars[byte] = if matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) {
            byte as u8 as char
        } else {
            next += 1;
            match char::from_u32(next - 1) {
                Some(char) => char,
                None => panic!("U+0100 to U+0143 are characters"),
            }
        };
        byte += 1;
    }
    chars
}

/// The byte that each character stands for.
const BYTES: [Option<u8>; ALPHABET_END] = {
    let mut bytes = [None; ALPHABET_END];
    let mut byte = 0;
    while byte < 256 {
        bytes[ALPHABET[byte] as usize] = Some(byte as u8);
        byte += 1;
    }
    bytes
};

/// Appends the bytes that `text` stands for; false (nothing appended) when it is not in the alphabet.
fn push_decoded(text: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let Ok(text) = std::str::from_utf8(text) else { return false };
    for char in text.chars() {
        let Some(Some(byte)) = BYTES.get(char as usize) else {
            out.truncate(start);
            return false;
        };
        out.push(*byte);
    }
    true
}

/// Whether the text means the same literally and in the byte-level alphabet.
pub(super) fn is_literal(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_goes_both_ways_and_is_gpt2s() {
        for byte in 0..=255u8 {
            let mut out = vec![];
            assert!(push_decoded(ALPHABET[byte as usize].to_string().as_bytes(), &mut out));
            assert_eq!(out, [byte]);
        }
        assert_eq!((ALPHABET[b' ' as usize], ALPHABET[b'\n' as usize], ALPHABET[0xAD]), ('Ġ', 'Ċ', 'Ń'));
    }

    #[test]
    fn text_outside_the_alphabet_is_not_decoded() {
        let mut out = b"x".to_vec();
        for text in ["a b", "Ġ中", "\u{144}"] {
            assert!(!push_decoded(text.as_bytes(), &mut out), "{text}");
            assert_eq!(out, b"x");
        }
        assert!(!push_decoded(b"\xC4", &mut out));
    }
}
