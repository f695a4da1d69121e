//! What each token is: its bytes, its kind, and the byte-level alphabet that GGUF writes tokens in.

use crate::{Error, Result};

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";

/// What a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Made from text by merging bytes.
    Normal,
    /// Like a normal one, but not in the byte-level alphabet: it stands for itself, and no text can become it.
    Foreign,
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
    pub(super) fn new<'a>(texts: impl Iterator<Item = &'a [u8]> + Clone, mut kinds: Vec<Kind>) -> Result<Vocab> {
        let total: usize = texts.clone().map(|text| text.len()).sum();
        if u32::try_from(total).is_err() {
            return Err(Error::Format(format!("{TOKENS} holds {total} bytes, at most {}", u32::MAX)));
        }
        let (mut bytes, mut ends) = (reserved("token bytes", total)?, reserved("tokens", kinds.len())?);
        let mut longest = 0;
        for (text, kind) in texts.zip(&mut kinds) {
            let start = bytes.len();
            if *kind == Kind::Normal && !push_decoded(text, &mut bytes) {
                *kind = Kind::Foreign;
            }
            if *kind != Kind::Normal {
                bytes.extend_from_slice(text);
            }
            // Decoding only shortens, so the sum checked above holds.
            ends.push(bytes.len() as u32);
            longest = longest.max(bytes.len() - start);
        }
        Ok(Vocab { bytes, ends, kinds, longest })
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

    /// Whether text may become this token: never a control token, never one whose bytes would not give the text back.
    pub(super) fn mergeable(&self, token: u32) -> bool {
        match self.kind(token) {
            Some(Kind::Normal) => true,
            // Only these mean the same literally and in the alphabet.
            Some(Kind::UserDefined) => self.bytes(token).is_some_and(|text| text.iter().all(u8::is_ascii_graphic)),
            _ => false,
        }
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
/// The bytes that the characters from U+0100 on stand for.
const UNPRINTABLE: [u8; 68] = {
    let mut bytes = [0; 68];
    let mut byte = 0;
    while byte < 256 {
        if ALPHABET[byte] as usize >= 0x100 {
            bytes[ALPHABET[byte] as usize - 0x100] = byte as u8;
        }
        byte += 1;
    }
    bytes
};

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

/// Appends the bytes that `text` stands for; false (nothing appended) when it is not in the alphabet.
fn push_decoded(text: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let mut rest = text;
    loop {
        let graphic = rest.iter().take_while(|byte| byte.is_ascii_graphic()).count();
        out.extend_from_slice(&rest[..graphic]);
        rest = &rest[graphic..];
        let [first, others @ ..] = rest else { return true };
        // The UTF-8 of [`ALPHABET`].
        let byte = match (first, others) {
            (0xC2, [second @ (0xA1..=0xAC | 0xAE..=0xBF), ..]) => *second,
            (0xC3, [second @ 0x80..=0xBF, ..]) => *second | 0x40,
            (0xC4, [second @ 0x80..=0xBF, ..]) => UNPRINTABLE[(*second - 0x80) as usize],
            (0xC5, [second @ 0x80..=0x83, ..]) => UNPRINTABLE[(*second - 0x40) as usize],
            _ => {
                out.truncate(start);
                return false;
            }
        };
        out.push(byte);
        rest = &rest[2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    proptest! {
        #[test]
        fn any_text_is_decoded_character_by_character(
            chars in proptest::collection::vec(prop_oneof![10 => proptest::char::range('\0', '\u{147}'), 1 => any::<char>()], 0..8),
            cut in 0usize..16,
        ) {
            let text = chars.iter().collect::<String>().into_bytes();
            let text = &text[cut.min(text.len())..];
            let byte_of = |char| ALPHABET.iter().position(|known| *known == char).map(|byte| byte as u8);
            let expected = std::str::from_utf8(text).ok().and_then(|text| text.chars().map(byte_of).collect::<Option<Vec<u8>>>());
            let mut out = vec![];
            prop_assert_eq!(push_decoded(text, &mut out), expected.is_some());
            prop_assert_eq!(out, expected.unwrap_or_default());
        }
    }
}
