//! Text out of tokens as they come: whole characters only.

use crate::{Error, Result};

/// Bytes in, whole UTF-8 characters out; what is not UTF-8 becomes U+FFFD exactly as in [`String::from_utf8_lossy`].
///
/// Allocates when it is made and never again.
#[derive(Debug)]
pub struct Utf8Stream {
    /// An unfinished character (at most 3 bytes), then the bytes of the current push.
    bytes: Vec<u8>,
    text: String,
    /// The most bytes one push may bring.
    longest: usize,
}

/// The most bytes of an unfinished character.
const PENDING_MAX: usize = 3;

impl Utf8Stream {
    /// A stream for pushes of at most `longest` bytes (for tokens: [`Tokenizer::longest_token`]).
    ///
    /// [`Tokenizer::longest_token`]: super::Tokenizer::longest_token
    pub fn new(longest: usize) -> Result<Utf8Stream> {
        let refused = |bytes| Error::NoMemory { what: "a stream of text", bytes };
        let whole = longest.checked_add(PENDING_MAX).ok_or(refused(usize::MAX))?;
        // Each byte may become a U+FFFD.
        let text_len = whole.checked_mul(char::REPLACEMENT_CHARACTER.len_utf8()).ok_or(refused(usize::MAX))?;
        let (mut bytes, mut text) = (Vec::new(), String::new());
        bytes.try_reserve_exact(whole).map_err(|_| refused(whole))?;
        text.try_reserve_exact(text_len).map_err(|_| refused(text_len))?;
        Ok(Utf8Stream { bytes, text, longest })
    }

    /// Takes the next bytes and gives the characters that are now whole.
    pub fn push(&mut self, bytes: &[u8]) -> Result<&str> {
        if bytes.len() > self.longest {
            let message = format!("{} bytes in one push, at most {}", bytes.len(), self.longest);
            return Err(Error::argument(message));
        }
        self.bytes.extend_from_slice(bytes);
        self.text.clear();
        let mut at = 0;
        while let Some(rest) = self.bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let (valid, invalid) = match std::str::from_utf8(rest) {
                Ok(_) => (rest.len(), Some(0)),
                Err(error) => (error.valid_up_to(), error.error_len()),
            };
            // The first `valid` bytes were just found to be UTF-8, so nothing is replaced and nothing allocated.
            self.text.push_str(&String::from_utf8_lossy(&rest[..valid]));
            at += valid;
            match invalid {
                None => break, // An unfinished character: it waits for the next push.
                Some(0) => {}
                Some(len) => {
                    self.text.push(char::REPLACEMENT_CHARACTER);
                    at += len;
                }
            }
        }
        self.bytes.drain(..at);
        Ok(&self.text)
    }

    /// The end: an unfinished character becomes U+FFFD. The stream is then as new.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.bytes.is_empty() {
            self.bytes.clear();
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        &self.text
    }

    /// The bytes of an unfinished character.
    pub fn pending(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets an unfinished character.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.text.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(bytes: &[u8], cuts: &[usize]) -> String {
        let mut stream = Utf8Stream::new(bytes.len()).unwrap();
        let capacity = (stream.bytes.capacity(), stream.text.capacity());
        let mut out = String::new();
        let mut rest = bytes;
        for cut in cuts {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            out.push_str(stream.push(now).unwrap());
            rest = later;
        }
        out.push_str(stream.push(rest).unwrap());
        out.push_str(stream.finish());
        assert_eq!((stream.bytes.capacity(), stream.text.capacity()), capacity, "the stream allocated");
        out
    }

    #[test]
    fn characters_come_out_whole() {
        let mut stream = Utf8Stream::new(4).unwrap();
        let family = "👩‍👩".as_bytes();
        let got: Vec<String> = family.iter().map(|byte| stream.push(&[*byte]).unwrap().to_owned()).collect();
        assert_eq!(got, ["", "", "", "👩", "", "", "\u{200D}", "", "", "", "👩"]);
        assert_eq!(stream.finish(), "");
        assert!(matches!(stream.push(b"12345"), Err(Error::Argument(_))));
        assert_eq!(stream.push(b"\xF0\x9F").unwrap(), "");
        assert_eq!(stream.finish(), "\u{FFFD}");
        assert_eq!(stream.push(b"a").unwrap(), "a");
    }

    proptest! {
        #[test]
        fn any_cut_equals_from_utf8_lossy(
            bytes in proptest::collection::vec(
                prop_oneof![any::<u8>(), 0x80u8..=0xBF, 0xC0u8..=0xF7, proptest::sample::select(vec![0xE0u8, 0xED, 0xF0, 0xF4, 0x9F, 0xA0, b'a'])], 0..40),
            cuts in proptest::collection::vec(0usize..6, 0..12),
        ) {
            prop_assert_eq!(pieces(&bytes, &cuts), String::from_utf8_lossy(&bytes));
        }
    }
}
