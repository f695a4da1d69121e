//! Text of bounded size, kept in place: messages are made without asking for memory.

use std::ffi::c_char;
use std::fmt::{self, Write};

/// What a text that did not fit ends with.
const CUT: &str = "...";

/// UTF-8 text of fewer than `N` bytes, NUL-terminated. What does not fit is cut at a character and replaced by `...`.
pub(super) struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
    cut: bool,
}

impl<const N: usize> Text<N> {
    /// An empty text.
    pub(super) const fn new() -> Self {
        assert!(N > CUT.len());
        Text { bytes: [0; N], len: 0, cut: false }
    }

    /// Replaces the text.
    pub(super) fn set(&mut self, text: fmt::Arguments) {
        self.clear();
        // A `Display` that fails leaves what it wrote until then, which is the best message to be had.
        let _ = self.write_fmt(text);
    }

    /// Makes the text empty.
    pub(super) fn clear(&mut self) {
        self.len = 0;
        self.cut = false;
        self.bytes[0] = 0;
    }

    /// The text, without its NUL.
    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }

    /// The text for C, with its NUL.
    pub(super) fn as_ptr(&self) -> *const c_char {
        self.bytes.as_ptr().cast()
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        self.bytes[self.len] = 0;
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.cut {
                break;
            }
            let c = if c == '\0' { '?' } else { c }; // C would stop reading at a NUL.
            if self.len + c.len_utf8() + CUT.len() < N {
                self.push(c.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                self.push(CUT.as_bytes());
                self.cut = true;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    #[test]
    fn text_is_cut_at_a_character_and_stays_terminated() {
        let mut text = Text::<10>::new();
        for (given, kept) in
            [("", ""), ("abcdef", "abcdef"), ("abcdefg", "abcdef..."), ("aaaaaé", "aaaaa..."), ("a\0b", "a?b")]
        {
            text.set(format_args!("{given}"));
            assert_eq!(text.as_str(), kept);
            // SAFETY: a `Text` always ends with a NUL.
            assert_eq!(unsafe { CStr::from_ptr(text.as_ptr()) }.to_str(), Ok(kept));
        }
        text.set(format_args!("{}{}", "é".repeat(9), "x"));
        assert_eq!(text.as_str(), "ééé...");
    }
}
