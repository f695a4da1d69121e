//! Models split into several files: `NAME-00001-of-00003.gguf` and so on, each with its part of the tensors.

use super::metadata::Metadata;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// What a part says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// From 0.
    pub(super) index: u64,
    pub(super) count: u64,
    /// In all parts together.
    pub(super) tensor_count: u64,
}

/// What the metadata says of parts; None when the file is a whole model.
pub(super) fn part(metadata: &Metadata) -> Result<Option<Part>> {
    let index = metadata.uint("split.no")?;
    let count = metadata.uint("split.count")?;
    let tensor_count = metadata.uint("split.tensors.count")?;
    match (index, count, tensor_count) {
        (None | Some(0), None | Some(0 | 1), _) => Ok(None),
        (Some(index), Some(count), Some(tensor_count)) if index < count => {
            Ok(Some(Part { index, count, tensor_count }))
        }
        _ => Err(Error::Format(format!(
            "part of a split model, but split.no = {}, split.count = {}, split.tensors.count = {} cannot be",
            said(index),
            said(count),
            said(tensor_count)
        ))),
    }
}

fn said(value: Option<u64>) -> String {
    value.map_or("absent".into(), |value| value.to_string())
}

/// Checks that part `index` is the part of the model whose first part is `first`.
pub(super) fn check_part(found: Option<Part>, first: Part, index: u64) -> Result<()> {
    let expected = Part { index, ..first };
    if found == Some(expected) {
        return Ok(());
    }
    let found = match found {
        Some(Part { index, count, tensor_count }) => {
            format!("part {} of {count} with {tensor_count} tensors", index + 1)
        }
        None => "a whole model".into(),
    };
    let Part { count, tensor_count, .. } = first;
    let text = format!("expected part {} of {count} with {tensor_count} tensors in all, found {found}", index + 1);
    Err(Error::Format(text))
}

/// The paths of the parts of a split model, from the path of its first one.
#[derive(Debug)]
pub(super) struct Paths<'a> {
    first: &'a Path,
    stem: String,
    count: u64,
}

impl<'a> Paths<'a> {
    /// `path` is the file that the caller named, `part` what it says of itself: it has to be the first one.
    pub(super) fn of(path: &'a Path, part: Part) -> Result<Paths<'a>> {
        let Part { index, count, .. } = part;
        if index != 0 {
            return Err(Error::argument(format!(
                "{}: part {} of {count} of a split model: name its first part, …{}",
                path.display(),
                index + 1,
                suffix(0, count)
            )));
        }
        let stem =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(&suffix(0, count)));
        match stem {
            Some(stem) => Ok(Paths { first: path, stem: stem.into(), count }),
            None => Err(Error::Format(format!(
                "{}: the first of {count} parts of a split model: its name has to end in {} to find the others",
                path.display(),
                suffix(0, count)
            ))),
        }
    }

    /// Of part `index`.
    pub(super) fn part(&self, index: u64) -> PathBuf {
        self.first.with_file_name(format!("{}{}", self.stem, suffix(index, self.count)))
    }
}

fn suffix(index: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::Value;

    fn metadata(pairs: &[(&str, Value)]) -> Metadata {
        Metadata::new(pairs.iter().map(|(key, value)| (key.to_string(), value.clone())).collect()).unwrap()
    }

    #[test]
    fn a_file_without_split_keys_or_of_one_part_is_whole() {
        assert_eq!(part(&metadata(&[])).unwrap(), None);
        assert_eq!(part(&metadata(&[("split.count", Value::U16(1)), ("split.no", Value::U16(0))])).unwrap(), None);
        assert_eq!(part(&metadata(&[("split.count", Value::U16(0))])).unwrap(), None);
    }

    #[test]
    fn split_keys_that_contradict_each_other_are_refused() {
        for (index, count, tensors) in [(3, 3, Some(1)), (1, 1, Some(1)), (0, 3, None), (9, 0, Some(1))] {
            let mut pairs = vec![("split.no", Value::U16(index)), ("split.count", Value::U16(count))];
            pairs.extend(tensors.map(|count| ("split.tensors.count", Value::I32(count))));
            assert!(matches!(part(&metadata(&pairs)), Err(Error::Format(_))), "{index} {count} {tensors:?}");
        }
        assert!(matches!(part(&metadata(&[("split.count", Value::I32(-1))])), Err(Error::Format(_))));
    }

    #[test]
    fn the_paths_of_the_parts_follow_from_the_first() {
        let first = Part { index: 0, count: 12, tensor_count: 5 };
        let path = Path::new("models/a-00001-of-00012.gguf");
        let paths = Paths::of(path, first).unwrap();
        assert_eq!(paths.part(0), path);
        assert_eq!(paths.part(11), Path::new("models/a-00012-of-00012.gguf"));
        assert!(matches!(Paths::of(Path::new("a.gguf"), first), Err(Error::Format(_))));
        assert!(matches!(Paths::of(path, Part { index: 1, ..first }), Err(Error::Argument(_))));
        assert!(matches!(Paths::of(path, Part { count: 13, ..first }), Err(Error::Format(_))));
    }
}
