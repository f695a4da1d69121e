//! The three classes of characters that the pre-tokenizers' expressions name.

use crate::{Error, Result};
use regex_syntax::hir::{Class as HirClass, HirKind};

/// What a pre-tokenizer sees in a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Class {
    /// None of the others.
    Other,
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s`
    Space,
}

const PAGE: usize = 256;

/// The class of every character, in pages of 256; pages that are alike are kept once.
pub(super) struct Classes {
    page_of: Vec<u8>,
    pages: Vec<[Class; PAGE]>,
}

impl Classes {
    /// From the tables of `regex-syntax`, the ones the expressions themselves would use.
    pub(super) fn new() -> Result<Classes> {
        let mut flat = vec![Class::Other; char::MAX as usize + 1];
        for (expression, class) in [(r"\p{L}", Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Space)] {
            let hir = regex_syntax::parse(expression).map_err(|error| Error::Internal(error.to_string().into()))?;
            let HirKind::Class(HirClass::Unicode(set)) = hir.kind() else {
                return Err(Error::Internal("a class of characters is not Unicode".into()));
            };
            for range in set.ranges() {
                flat[range.start() as usize..=range.end() as usize].fill(class);
            }
        }
        let mut classes = Classes { page_of: Vec::with_capacity(flat.len() / PAGE), pages: Vec::new() };
        for page in flat.as_chunks::<PAGE>().0 {
            // Neighbours are alike (ideographs, private use), so search from the end.
            let index = classes.pages.iter().rposition(|known| known == page).unwrap_or_else(|| {
                classes.pages.push(*page);
                classes.pages.len() - 1
            });
            classes.page_of.push(u8::try_from(index).map_err(|_| Error::Internal("too many character pages".into()))?);
        }
        Ok(classes)
    }

    pub(super) fn of(&self, char: char) -> Class {
        let code = char as usize;
        self.pages[self.page_of[code / PAGE] as usize][code % PAGE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_white_space_agree_with_the_standard_library_where_both_know_them() {
        let classes = Classes::new().unwrap();
        for char in (0..=0xFFFFu32).filter_map(char::from_u32) {
            assert_eq!(classes.of(char) == Class::Space, char.is_whitespace(), "{char:?}");
            if classes.of(char) == Class::Number {
                assert!(char.is_numeric(), "{char:?}");
            }
            if classes.of(char) == Class::Letter {
                assert!(char.is_alphabetic(), "{char:?}");
            }
        }
        for (char, class) in [('é', Class::Letter), ('中', Class::Letter), ('²', Class::Number), ('Ⅷ', Class::Number)]
        {
            assert_eq!(classes.of(char), class, "{char:?}");
        }
        // Marks are neither letters nor numbers, though some are "alphabetic".
        for char in ['\u{301}', '\u{93E}', '\u{200D}', '\u{FE0F}', '\u{200B}'] {
            assert_eq!(classes.of(char), Class::Other, "{char:?}");
        }
    }
}
