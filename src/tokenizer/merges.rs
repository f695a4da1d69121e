//! Which pairs of tokens merge, and in what order.

use super::texts::Index;
use super::vocab::{NONE, reserved};
use crate::file::Strings;
use crate::{Error, Result};

pub(super) const MERGES: &str = "tokenizer.ggml.merges";

/// The merges of a vocabulary, found by the two tokens that merge.
pub(super) struct Merges {
    /// `merges[starts[left]..starts[left + 1]]` are those of `left`.
    starts: Vec<u32>,
    /// Of one left token: by `right`, ascending.
    merges: Vec<Merge>,
}

/// What one token and the token before it become.
#[derive(Clone, Copy, Default)]
pub(super) struct Merge {
    right: u32,
    /// Its place in the file: of two possible merges, the one with the lower rank is done.
    pub(super) rank: u32,
    /// [`NONE`] when text may not become it, or one of the two.
    pub(super) whole: u32,
}

/// A merge as the file has it.
struct Listed {
    left: u32,
    right: u32,
    whole: u32,
}

impl Merges {
    /// From the texts in the file. Those that would make or use what is not `mergeable` are checked, but never done.
    pub(super) fn new(index: &Index, texts: &Strings, mergeable: impl Fn(u32) -> bool) -> Result<Merges> {
        let mut listed = reserved("merges", texts.len())?;
        let (mut scratch, mut whole) = (Vec::new(), 0);
        for (rank, text) in texts.iter().enumerate() {
            let (left, right) =
                halves(text).ok_or_else(|| wrong(rank, text, "is not two tokens with a space between them"))?;
            let needs =
                |part: &[u8]| wrong(rank, text, &format!("needs the token {:?}", String::from_utf8_lossy(part)));
            let left_id = index.get(left).ok_or_else(|| needs(left))?;
            let right_id = index.get(right).ok_or_else(|| needs(right))?;
            // Files list tokens in the order in which merges make them.
            let joined = index.get_joined(left, right, whole + 1, &mut scratch);
            whole = joined.ok_or_else(|| needs(&[left, right].concat()))?;
            let mut merge = Listed { left: left_id, right: right_id, whole };
            if ![left_id, right_id, whole].into_iter().all(&mergeable) {
                // What is mergeable is UTF-8.
                std::str::from_utf8(text).map_err(|_| wrong(rank, text, ""))?;
                merge.whole = NONE;
            }
            listed.push(merge);
        }
        let merges = Merges::sorted(&listed, index.len())?;
        match merges.twice() {
            Some(rank) => Err(wrong(rank, texts.get(rank).unwrap_or_default(), "comes twice")),
            None => Ok(merges),
        }
    }

    /// Of merges of `tokens` tokens: sorted by their right and then, leaving that order, by their left tokens.
    fn sorted(listed: &[Listed], tokens: usize) -> Result<Merges> {
        let (mut by_right, mut merges) = (reserved("merges", listed.len())?, reserved("merges", listed.len())?);
        by_right.resize(listed.len(), 0u32);
        merges.resize(listed.len(), Merge::default());
        let mut places = places(tokens, listed.iter().map(|merge| merge.right))?;
        for (rank, merge) in listed.iter().enumerate() {
            let place = &mut places[merge.right as usize];
            by_right[*place as usize] = rank as u32; // The places of strings are u32, so there are no more.
            *place += 1;
        }
        let mut places = self::places(tokens, listed.iter().map(|merge| merge.left))?;
        for rank in by_right {
            let Listed { left, right, whole } = listed[rank as usize];
            let place = &mut places[left as usize];
            merges[*place as usize] = Merge { right, rank, whole };
            *place += 1;
        }
        // Each place has moved on to where the next token's were.
        places.rotate_right(1);
        places[0] = 0;
        Ok(Merges { starts: places, merges })
    }

    /// Memory held, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.starts.capacity() * size_of::<u32>() + self.merges.capacity() * size_of::<Merge>()
    }

    fn of(&self, left: u32) -> &[Merge] {
        let [start, end] = [left as usize, left as usize + 1].map(|index| self.starts[index] as usize);
        &self.merges[start..end]
    }

    /// What `left` and `right` become.
    pub(super) fn get(&self, left: u32, right: u32) -> Option<Merge> {
        let merges = self.of(left);
        let at = merges.binary_search_by_key(&right, |merge| merge.right).ok()?;
        Some(merges[at]).filter(|merge| merge.whole != NONE)
    }

    /// The first merge that is there already, by its rank.
    fn twice(&self) -> Option<usize> {
        let lefts = 0..self.starts.len() as u32 - 1;
        let pairs = lefts.flat_map(|left| self.of(left).array_windows());
        pairs.filter(|[a, b]| a.right == b.right).map(|[_, b]| b.rank as usize).min()
    }
}

/// Where the things of each token begin when they are sorted by their tokens, which are below `tokens`; then a zero.
fn places(tokens: usize, of: impl Iterator<Item = u32>) -> Result<Vec<u32>> {
    let mut places = reserved("merges", tokens + 1)?;
    places.resize(tokens + 1, 0u32);
    of.for_each(|token| places[token as usize] += 1);
    let mut start = 0;
    for place in &mut places {
        (*place, start) = (start, start + *place);
    }
    Ok(places)
}

/// A merge that cannot be, and why, unless it is not even text.
fn wrong(rank: usize, text: &[u8], why: &str) -> Error {
    let why = if std::str::from_utf8(text).is_ok() { why } else { "is not UTF-8" };
    Error::Format(format!("{MERGES}[{rank}] {:?} {why}", String::from_utf8_lossy(text)))
}

/// The two tokens of a merge; None when one is empty.
fn halves(merge: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = merge.iter().position(|byte| *byte == b' ')?;
    let (left, right) = (&merge[..space], &merge[space + 1..]);
    (!left.is_empty() && !right.is_empty()).then_some((left, right))
}

/// Whether a merge makes this text.
pub(super) fn makes(merge: &[u8], text: &[u8]) -> bool {
    merge.len() == text.len() + 1
        && merge.iter().position(|byte| *byte == b' ').is_some_and(|space| {
            let (left, right) = (&merge[..space], &merge[space + 1..]);
            text.strip_prefix(left) == Some(right)
        })
}

#[cfg(test)]
mod tests {
    use super::super::vocab::TOKENS;
    use super::*;
    use crate::file::{Array, Metadata, Value};

    /// The merges of these tokens; the last token is not mergeable.
    fn merges(tokens: &[&[u8]], merges: &[&[u8]]) -> Result<Merges> {
        let array = |texts: &[&[u8]]| Value::Array(Array::of_strings(texts.iter().copied()));
        let metadata = Metadata::new(vec![(TOKENS.into(), array(tokens)), (MERGES.into(), array(merges))]).unwrap();
        let tokens = metadata.strings(TOKENS).unwrap().unwrap();
        let last = tokens.len() as u32 - 1;
        let mergeable = |token: u32| token != last && tokens.get(token as usize).is_some_and(<[u8]>::is_ascii);
        Merges::new(&Index::new(&tokens).unwrap(), &metadata.strings(MERGES).unwrap().unwrap(), mergeable)
    }

    #[test]
    fn merges_are_found_by_their_tokens_with_their_place_in_the_file() {
        let tokens: [&[u8]; 7] = [b"c", b"bc", b"a", b"abc", b"ab", b"b", b"cc"];
        let merges = merges(&tokens, &[b"a b", b"c c", b"b c", b"a bc", b"ab c"]).unwrap();
        let found = |left, right| merges.get(left, right).map(|merge| (merge.rank, merge.whole));
        for left in 0..7 {
            for right in 0..7 {
                let expected = match (left, right) {
                    (2, 5) => Some((0, 4)),
                    (5, 0) => Some((2, 1)),
                    (2, 1) => Some((3, 3)),
                    (4, 0) => Some((4, 3)),
                    _ => None, // c and c too: what they make is the last token.
                };
                assert_eq!(found(left, right), expected, "{left} {right}");
            }
        }
        assert!(self::merges(&tokens, &[]).unwrap().get(2, 5).is_none());
    }

    #[test]
    fn what_is_never_done_is_checked_as_well() {
        let tokens: [&[u8]; 5] = [b"\xFF", b"\xFE", b"\xFF\xFE", b"c", b"cc"];
        for (texts, expected) in [
            ([b"c c", b"\xFF \xFE"], "[1] \"\u{FFFD} \u{FFFD}\" is not UTF-8"),
            ([b"\xFE \xFF", b"c c"], "[0] \"\u{FFFD} \u{FFFD}\" is not UTF-8"),
            ([b"c c", b"c c"], "[1] \"c c\" comes twice"),
            ([b"c d", b"c c"], "[0] \"c d\" needs the token \"d\""),
        ] {
            let error = merges(&tokens, &texts.map(<[u8; 3]>::as_slice)).err().unwrap();
            assert!(matches!(&error, Error::Format(text) if text.ends_with(expected)), "{error}");
        }
    }
}
