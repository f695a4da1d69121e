//! The three classes of characters that the pre-tokenizers' expressions name.

use crate::{Error, Result};
use regex_syntax::hir::{Class as HirClass, ClassUnicodeRange, HirKind};

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

/// The class of every character.
pub(super) struct Classes {
    ascii: [Class; 128],
    /// Characters of one class that follow each other, ascending; what is in none of them is [`Class::Other`].
    ranges: Vec<Range>,
}

struct Range {
    first: char,
    last: char,
    class: Class,
}

impl Classes {
    /// Memory held, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.ranges.capacity() * size_of::<Range>()
    }

    /// From the tables of `regex-syntax`, the ones the expressions themselves would use.
    pub(super) fn new() -> Result<Classes> {
        let mut ranges = Vec::new();
        for (expression, class) in [(r"\p{L}", Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Space)] {
            let hir = regex_syntax::parse(expression).map_err(|error| Error::Internal(error.to_string().into()))?;
            let HirKind::Class(HirClass::Unicode(set)) = hir.kind() else {
                return Err(Error::Internal("a class of characters is not Unicode".into()));
            };
            let range = |range: &ClassUnicodeRange| Range { first: range.start(), last: range.end(), class };
            ranges.extend(set.ranges().iter().map(range));
        }
        ranges.sort_unstable_by_key(|range| range.first);
        let ascii = std::array::from_fn(|code| search(&ranges, char::from(code as u8)));
        Ok(Classes { ascii, ranges })
    }

    pub(super) fn of(&self, char: char) -> Class {
        match self.ascii.get(char as usize) {
            Some(class) => *class,
            None => search(&self.ranges, char),
        }
    }
}

fn search(ranges: &[Range], char: char) -> Class {
    let at = ranges.partition_point(|range| range.last < char);
    ranges.get(at).filter(|range| range.first <= char).map_or(Class::Other, |range| range.class)
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
