//! Which pairs of tokens merge, and in what order.

use super::texts::Index;
use super::vocab::reserved;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Merge {
    right: u32,
    /// Its place in the file: of two possible merges, the one with the lower rank is done.
    pub(super) rank: u32,
    pub(super) whole: u32,
}

impl Merges {
    /// From the texts in the file. Those that would make or use what text may not become are checked and left out.
    pub(super) fn new(index: &Index, texts: &Strings<'_>, mergeable: impl Fn(u32) -> bool) -> Result<Merges> {
        let mut sorted = reserved("merges", texts.len())?;
        let (mut scratch, mut whole) = (Vec::new(), 0);
        for (rank, text) in texts.iter().enumerate() {
            let wrong = |why: &str| wrong(rank, text, why);
            std::str::from_utf8(text).map_err(|_| wrong("is not UTF-8"))?;
            let (left, right) = halves(text).ok_or_else(|| wrong("is not two tokens with a space between them"))?;
            let needs = |part: &[u8]| wrong(&format!("needs the token {:?}", String::from_utf8_lossy(part)));
            let left_id = index.get(left).ok_or_else(|| needs(left))?;
            let right_id = index.get(right).ok_or_else(|| needs(right))?;
            // Files list tokens in the order in which merges made them.
            whole =
                index.get_joined(left, right, whole + 1, &mut scratch).ok_or_else(|| needs(&[left, right].concat()))?;
            sorted.push(Sorted { left: left_id, right: right_id, rank: rank as u32, whole }); // Strings have u32 places.
        }
        sorted.sort_unstable_by_key(|merge| (u64::from(merge.left) << 32) | u64::from(merge.right));
        let twice = sorted.array_windows().filter(|[a, b]| (a.left, a.right) == (b.left, b.right));
        if let Some(rank) = twice.map(|[a, b]| a.rank.max(b.rank) as usize).min() {
            return Err(wrong(rank, texts.get(rank).unwrap_or_default(), "comes twice"));
        }
        sorted.retain(|merge| [merge.left, merge.right, merge.whole].into_iter().all(&mergeable));
        Merges::of(&sorted, index.len())
    }

    /// Of merges in the order of their left and then their right tokens, out of `tokens` tokens.
    fn of(sorted: &[Sorted], tokens: usize) -> Result<Merges> {
        let mut table = Merges { starts: reserved("merges", tokens + 1)?, merges: reserved("merges", sorted.len())? };
        for Sorted { left, right, rank, whole } in sorted.iter().copied() {
            table.starts.resize(left as usize + 1, table.merges.len() as u32);
            table.merges.push(Merge { right, rank, whole });
        }
        table.starts.resize(tokens + 1, table.merges.len() as u32);
        Ok(table)
    }

    /// What `left` and `right` become.
    pub(super) fn get(&self, left: u32, right: u32) -> Option<Merge> {
        let starts = self.starts.get(left as usize..left as usize + 2)?;
        let merges = &self.merges[starts[0] as usize..starts[1] as usize];
        let at = merges.binary_search_by_key(&right, |merge| merge.right).ok()?;
        Some(merges[at])
    }
}

/// A merge while all are sorted.
#[derive(Clone, Copy)]
struct Sorted {
    left: u32,
    right: u32,
    rank: u32,
    whole: u32,
}

fn wrong(rank: usize, text: &[u8], why: &str) -> Error {
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
