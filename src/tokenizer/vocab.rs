//! What each token is: its bytes, its kind, and the byte-level alphabet that GGUF writes tokens in.

use crate::{Error, Result};

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";

/// No token, no symbol, no merge.
pub(super) const NONE: u32 = u32::MAX;

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
        bytes.resize(total, 0);
        let (mut end, mut longest) = (0, 0);
        for (text, kind) in texts.zip(&mut kinds) {
            // Decoding only shortens, so there is room.
            let room = &mut bytes[end..end + text.len()];
            let decoded = if *kind == Kind::Normal { decode(text, room) } else { None };
            let len = decoded.unwrap_or_else(|| {
                room.copy_from_slice(text);
                text.len()
            });
            if *kind == Kind::Normal && decoded.is_none() {
                *kind = Kind::Foreign;
            }
            end += len;
            ends.push(end as u32);
            longest = longest.max(len);
        }
        bytes.truncate(end);
        bytes.shrink_to_fit();
        Ok(Vocab { bytes, ends, kinds, longest })
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Memory held, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<u32>() + self.kinds.capacity() * size_of::<Kind>()
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

    /// The tokens of some kinds, ascending.
    pub(super) fn of_kinds(&self, kinds: &[Kind]) -> impl Iterator<Item = u32> {
        (0..).zip(&self.kinds).filter(|(_, kind)| kinds.contains(kind)).map(|(token, _)| token)
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
const BYTES: [Option<u8>; 0x180] = {
    let mut bytes = [None; 0x180];
    let mut byte = 0;
    while byte < 256 {
        bytes[ALPHABET[byte] as usize] = Some(byte as u8);
        byte += 1;
    }
    bytes
};

/// Puts the bytes that `text` stands for at the start of `out`, and says how many they are, at most as many as it has
/// itself; None when it is not in the alphabet.
fn decode(text: &[u8], out: &mut [u8]) -> Option<usize> {
    let (mut text, mut len) = (text.iter(), 0);
    while let Some(first) = text.next() {
        // UTF-8 up to U+017F.
        let char = match first {
            0..0x80 => usize::from(*first),
            0xC2..=0xC5 => {
                let second = text.next().filter(|second| matches!(second, 0x80..=0xBF))?;
                usize::from(*first & 0x1F) << 6 | usize::from(*second & 0x3F)
            }
            _ => return None,
        };
        *out.get_mut(len)? = BYTES[char]?;
        len += 1;
    }
    Some(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(text: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0; text.len()];
        let len = decode(text, &mut out)?;
        out.truncate(len);
        Some(out)
    }

    #[test]
    fn alphabet_goes_both_ways_and_is_gpt2s() {
        for byte in 0..=255u8 {
            assert_eq!(decoded(ALPHABET[byte as usize].to_string().as_bytes()), Some(vec![byte]));
        }
        assert_eq!((ALPHABET[b' ' as usize], ALPHABET[b'\n' as usize], ALPHABET[0xAD]), ('Ġ', 'Ċ', 'Ń'));
    }

    #[test]
    fn text_outside_the_alphabet_is_not_decoded() {
        for text in ["a b", "Ġ中", "\u{144}"] {
            assert_eq!(decoded(text.as_bytes()), None, "{text}");
        }
        assert_eq!(decoded(b"\xC4"), None);
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
            prop_assert_eq!(decoded(text), expected);
        }
    }
}
