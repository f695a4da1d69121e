//! Models split into several files are joined, and each way to get them wrong is refused by file and reason.

mod common;

use common::{GgufWriter, TempDir, forever, refusal};
use edgellm::file::{ModelFile, Source};
use edgellm::quant::Format;
use std::path::PathBuf;

const COUNT: u16 = 3;

fn file_name(index: u16) -> String {
    format!("model-{:05}-of-{COUNT:05}.gguf", index + 1)
}

/// Part `index`: the first has the metadata and no tensors (as some splitters do), the others two each.
fn part(index: u16) -> GgufWriter {
    let mut writer = GgufWriter::new();
    writer.kv_u16("split.no", index).kv_u16("split.count", COUNT).kv_i32("split.tensors.count", 4);
    if index == 0 {
        writer.kv_str("general.architecture", "llama");
        return writer;
    }
    for i in 0..2 {
        writer.tensor(&format!("t{index}{i}"), &[2], Format::F32, vec![index as u8 * 16 + i; 8]);
    }
    writer
}

/// Writes the parts, after `spoil` had its way with each, and names the first.
fn written(directory: &TempDir, spoil: impl Fn(u16, &mut GgufWriter)) -> PathBuf {
    for index in 0..COUNT {
        let mut writer = part(index);
        spoil(index, &mut writer);
        directory.file(&file_name(index), &writer.write(3));
    }
    directory.path().join(file_name(0))
}

fn open(path: &std::path::Path) -> Result<ModelFile, edgellm::Error> {
    ModelFile::open(Source::Path(path), true)
}

#[track_caller]
fn refused(variant: &str, words: &[&str], spoil: impl Fn(u16, &mut GgufWriter)) {
    let directory = TempDir::new();
    let (found, text) = refusal(open(&written(&directory, spoil)));
    assert_eq!(found, variant, "{text}");
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

#[test]
fn the_parts_of_a_split_model_are_one_file() {
    let directory = TempDir::new();
    let path = written(&directory, |_, _| ());
    for mmap in [true, false] {
        let file = ModelFile::open(Source::Path(&path), mmap).unwrap();
        let names: Vec<&str> = file.tensors().map(|tensor| tensor.name).collect();
        assert_eq!(names, ["t10", "t11", "t20", "t21"]);
        assert_eq!(file.tensor("t11").unwrap().bytes, [17; 8]);
        assert_eq!(file.tensor("t20").unwrap().bytes, [32; 8]);
        assert_eq!(file.metadata.string("general.architecture").unwrap(), Some("llama"));
        let bytes: usize = (0..COUNT).map(|index| part(index).write(3).len()).sum();
        assert_eq!(file.bytes(), bytes as u64);
        file.tensors().for_each(|tensor| file.release(tensor.bytes));
    }
}

#[test]
fn a_part_that_is_not_the_first_names_the_first() {
    let directory = TempDir::new();
    written(&directory, |_, _| ());
    let (variant, text) = refusal(open(&directory.path().join(file_name(1))));
    assert_eq!(variant, "Argument");
    assert!(text.contains("part 2 of 3") && text.contains("-00001-of-00003.gguf"), "{text}");
}

#[test]
fn a_missing_part_is_an_error_of_the_system() {
    let directory = TempDir::new();
    let path = written(&directory, |_, _| ());
    std::fs::remove_file(directory.path().join(file_name(2))).unwrap();
    let (variant, text) = refusal(open(&path));
    assert_eq!(variant, "Io");
    assert!(text.contains(&file_name(2)), "{text}");
}

#[test]
fn a_renamed_first_part_says_what_its_name_must_be() {
    let directory = TempDir::new();
    let path = directory.file("renamed.gguf", &part(0).write(3));
    let (variant, text) = refusal(open(&path));
    assert_eq!(variant, "Format");
    assert!(text.contains("-00001-of-00003.gguf"), "{text}");
}

#[test]
fn a_part_in_memory_is_refused() {
    let (variant, text) = refusal(ModelFile::open(Source::Bytes(forever(part(0).write(3))), true));
    assert_eq!(variant, "Unsupported");
    assert!(text.contains("split"), "{text}");
}

#[test]
fn parts_that_do_not_belong_together_are_refused_by_file() {
    refused("Format", &[&file_name(2), "part 3 of 3", "part 2 of 3"], |index, writer| {
        if index == 2 {
            writer.remove("split.no").kv_u16("split.no", 1);
        }
    });
    refused("Format", &[&file_name(1), "of 4"], |index, writer| {
        if index == 1 {
            writer.remove("split.count").kv_u16("split.count", 4);
        }
    });
    refused("Format", &[&file_name(1), "9 tensors"], |index, writer| {
        if index == 1 {
            writer.remove("split.tensors.count").kv_i32("split.tensors.count", 9);
        }
    });
    refused("Format", &[&file_name(1), "a whole model"], |index, writer| {
        if index == 1 {
            *writer = GgufWriter::new();
        }
    });
    refused("Format", &[&file_name(2), "split.no = absent"], |index, writer| {
        if index == 2 {
            writer.remove("split.no");
        }
    });
}

#[test]
fn more_or_fewer_tensors_than_promised_are_refused() {
    for promised in [0, 3, 5, i32::MAX] {
        refused("Format", &["split.tensors.count"], |_, writer| {
            writer.remove("split.tensors.count").kv_i32("split.tensors.count", promised);
        });
    }
    refused("Format", &["split.tensors.count", "negative"], |_, writer| {
        writer.remove("split.tensors.count").kv_i32("split.tensors.count", -4);
    });
}

#[test]
fn a_tensor_in_two_parts_is_refused_by_name() {
    refused("Format", &["\"t10\"", "two parts"], |index, writer| {
        if index == 2 {
            writer.remove_tensor("t20").tensor("t10", &[2], Format::F32, vec![0; 8]);
        }
    });
}

#[test]
fn damage_in_a_later_part_is_refused_by_its_file() {
    refused("Format", &[&file_name(1), "\"two\""], |index, writer| {
        if index == 1 {
            writer.kv_raw(b"two", edgellm::file::kind::BOOL, &[2]);
        }
    });
}

#[test]
fn a_split_count_that_lies_ends_at_the_first_missing_part() {
    let directory = TempDir::new();
    let mut writer = part(0);
    writer.remove("split.count").kv_u64("split.count", u64::MAX);
    let name = format!("model-00001-of-{}.gguf", u64::MAX);
    let (variant, text) = refusal(open(&directory.file(&name, &writer.write(3))));
    assert_eq!(variant, "Io");
    assert!(text.contains("00002-of"), "{text}");
}
