//! GGUF files: good ones are read as they were written, bad ones are refused with what was wrong and where.

mod common;

use common::{Field, GgufWriter, ModelSpec, Rng, TempDir, Vocabulary, forever, random_model, refusal, with_model_file};
use edgellm::Error;
use edgellm::file::{Array, ModelFile, Source, Value, kind};
use edgellm::quant::Format;
use std::path::Path;

/// A file with a value of every type and tensors of one, two and three dimensions.
fn small() -> GgufWriter {
    let mut rng = Rng::new(3);
    let mut writer = GgufWriter::new();
    writer
        .kv_str("general.architecture", "llama")
        .alignment(64)
        .kv_u8("u8", 200)
        .kv_i8("i8", -100)
        .kv_u16("u16", 60_000)
        .kv_i16("i16", -30_000)
        .kv_i32("i32", -2_000_000_000)
        .kv_u64("u64", u64::MAX - 1)
        .kv_i64("i64", i64::MIN)
        .kv_f32("f32", 1.5)
        .kv_f64("f64", -2.5)
        .kv_bool("bool", true)
        .kv_strings("tokenizer.ggml.tokens", &[b"a".as_slice(), b"\xff\xfe", b""])
        .kv_strings("names", &["x", "é"])
        .kv_i32s("ints", &[-1, 0, 7])
        .kv_f32s("floats", &[0.25, -1.0])
        .kv_raw(b"bools", kind::ARRAY, &[7, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1])
        .tensor("vector", &[8], Format::F32, common::random_f32(&mut rng, 8, -1.0, 1.0))
        .tensor("matrix", &[32, 3], Format::Q4_0, common::random_blocks(&mut rng, Format::Q4_0, 96, 1.0))
        .tensor("cube", &[256, 2, 2], Format::Q4_K, common::random_blocks(&mut rng, Format::Q4_K, 1024, 1.0));
    writer
}

/// Reads everything that a file offers; it must be consistent.
fn walk(file: &ModelFile) {
    for tensor in file.tensors() {
        let values = tensor.shape.iter().product::<usize>();
        assert!(values > 0);
        assert_eq!(values / tensor.format.block_len() * tensor.format.block_bytes(), tensor.bytes.len());
        assert_eq!(file.tensor(tensor.name).unwrap().bytes.as_ptr(), tensor.bytes.as_ptr());
        std::hint::black_box(tensor.bytes.iter().fold(0u8, |sum, &b| sum.wrapping_add(b)));
        file.release(tensor.bytes);
    }
    for (key, value) in file.metadata.entries() {
        assert!(file.metadata.get(key).is_some());
        let is = |kinds: &[u32]| matches!(value, Value::Array(array) if kinds.contains(&array.element));
        assert_eq!(file.metadata.strings(key).is_ok(), is(&[kind::STRING]), "{key}");
        assert_eq!(file.metadata.floats(key).is_ok(), is(&[kind::F32]), "{key}");
        assert!(is(&[kind::U64]) || file.metadata.ints(key).is_ok() == is(&[0, 1, 2, 3, 4, 5, 11]), "{key}");
    }
}

/// A file that nobody promised to be good: either consistent or refused.
fn survives(bytes: &[u8], about: impl FnOnce() -> String) -> bool {
    with_model_file(bytes, |result| match result {
        Ok(file) => {
            walk(file);
            true
        }
        Err(Error::Format(_) | Error::Unsupported(_)) => false,
        Err(error) => panic!("{}: {error:?}", about()),
    })
}

/// Refused as damaged, in these words.
#[track_caller]
fn damaged(bytes: &[u8], words: &[&str]) {
    says("Format", bytes, words);
}

#[track_caller]
fn says(variant: &str, bytes: &[u8], words: &[&str]) {
    let (found, text) = with_model_file(bytes, |result| refusal(result));
    assert_eq!(found, variant, "{text}");
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

/// Overwrites an integer with the low bytes of `value`.
fn put(bytes: &mut [u8], field: &Field, value: u64) {
    bytes[field.at..field.at + field.width].copy_from_slice(&value.to_le_bytes()[..field.width]);
}

/// The small file with one integer changed.
fn with(what: &str, value: u64) -> Vec<u8> {
    let (mut bytes, fields) = small().write_with_fields(3);
    put(&mut bytes, fields.iter().find(|field| field.what == what).expect(what), value);
    bytes
}

fn open(path: &Path) -> Result<ModelFile, Error> {
    ModelFile::open(Source::Path(path), true)
}

// Good files.

#[test]
fn values_and_tensors_read_back_as_written_in_versions_2_and_3() {
    for version in [2, 3] {
        let file = ModelFile::open(Source::Bytes(forever(small().write(version))), true).unwrap();
        walk(&file);
        let m = &file.metadata;
        assert_eq!(m.string("general.architecture").unwrap(), Some("llama"));
        assert_eq!(m.uint("u8").unwrap(), Some(200));
        assert_eq!(m.get("i8"), Some(&Value::I8(-100)));
        assert_eq!(m.uint("u16").unwrap(), Some(60_000));
        assert_eq!(m.get("i16"), Some(&Value::I16(-30_000)));
        assert_eq!(m.get("i32"), Some(&Value::I32(-2_000_000_000)));
        assert_eq!(m.uint("u64").unwrap(), Some(u64::MAX - 1));
        assert_eq!(m.get("i64"), Some(&Value::I64(i64::MIN)));
        assert_eq!(m.float("f32").unwrap(), Some(1.5));
        assert_eq!(m.float("f64").unwrap(), Some(-2.5));
        assert_eq!(m.bool("bool").unwrap(), Some(true));
        assert!(m.strings("tokenizer.ggml.tokens").unwrap().unwrap().iter().eq([b"a".as_slice(), b"\xff\xfe", b""]));
        assert!(m.strings("names").unwrap().unwrap().iter().eq([b"x".as_slice(), "é".as_bytes()]));
        assert_eq!(m.ints("ints").unwrap().unwrap(), [-1, 0, 7]);
        assert_eq!(m.floats("floats").unwrap().unwrap(), [0.25, -1.0]);
        let names: Vec<&str> = file.tensors().map(|tensor| tensor.name).collect();
        assert_eq!(names, ["vector", "matrix", "cube"]);
        assert_eq!(file.tensor("vector").unwrap().shape, [8, 1, 1, 1]);
        assert_eq!(file.tensor("cube").unwrap().shape, [256, 2, 2, 1]);
        let matrix = file.tensor("matrix").unwrap();
        let bytes = common::random_blocks(&mut after_vector(), Format::Q4_0, 96, 1.0);
        assert_eq!((matrix.format, matrix.shape, matrix.bytes), (Format::Q4_0, [32, 3, 1, 1], bytes.as_slice()));
        assert!(file.tensor("").is_none() && file.tensor("matrixx").is_none());
    }
}

/// The generator of [`small`] where the matrix begins.
fn after_vector() -> Rng {
    let mut rng = Rng::new(3);
    common::random_f32(&mut rng, 8, -1.0, 1.0);
    rng
}

#[test]
fn a_file_is_the_same_mapped_read_or_in_memory() {
    let bytes = random_model(&ModelSpec::tiny("qwen2"));
    let directory = TempDir::new();
    let path = directory.file("model.gguf", &bytes);
    let mapped = open(&path).unwrap();
    let read = ModelFile::open(Source::Path(&path), false).unwrap();
    let memory = ModelFile::open(Source::Bytes(forever(bytes.clone())), true).unwrap();
    for file in [&mapped, &read, &memory] {
        assert_eq!(file.bytes(), bytes.len() as u64);
        assert_eq!(file.tensors().len(), mapped.tensors().len());
        assert_eq!(file.metadata.entries(), mapped.metadata.entries());
        for tensor in file.tensors() {
            let other = mapped.tensor(tensor.name).unwrap();
            assert_eq!((other.shape, other.format), (tensor.shape, tensor.format));
            assert!(other.bytes == tensor.bytes, "{}", tensor.name);
        }
    }
}

#[test]
fn released_tensors_keep_their_bytes() {
    let directory = TempDir::new();
    let path = directory.file("model.gguf", &random_model(&ModelSpec::tiny("llama")));
    for mmap in [true, false] {
        let file = ModelFile::open(Source::Path(&path), mmap).unwrap();
        for tensor in file.tensors() {
            let before = tensor.bytes.to_vec();
            file.release(tensor.bytes);
            assert!(tensor.bytes == before, "{}", tensor.name);
        }
    }
}

#[test]
fn random_models_are_valid_in_every_architecture_and_format() {
    for architecture in ["llama", "qwen2", "qwen3", "bitnet-b1.58"] {
        for &format in Format::ALL {
            let spec = ModelSpec {
                formats: common::Formats::all(format),
                rope_freqs: architecture == "llama",
                vocabulary: Vocabulary::Gpt2 { pre: "qwen2" },
                ..ModelSpec::tiny(architecture)
            };
            let file = ModelFile::open(Source::Bytes(forever(random_model(&spec))), true).unwrap();
            for tensor in file.tensors() {
                let mut values = vec![0.0; tensor.shape.iter().product()];
                tensor.format.dequantize(tensor.bytes, &mut values);
                values.iter_mut().for_each(|value| *value *= tensor.scale);
                let squares = values.iter().map(|v| f64::from(v * v)).sum::<f64>() / values.len() as f64;
                let expected = match tensor.name {
                    "token_embd.weight" => 0.5,
                    "rope_freqs.weight" => 18.5,
                    name if name.ends_with("norm.weight") => 1.0,
                    name if name.ends_with(".bias") => 0.29,
                    _ => (tensor.shape[0] as f64).powf(-0.5),
                };
                let ratio = squares.sqrt() / expected;
                assert!((0.7..1.4).contains(&ratio), "{architecture} {format:?} {}", tensor.name);
            }
            assert_eq!(file.metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap().len(), spec.vocab);
        }
    }
}

// What is no model file at all.

#[test]
fn paths_that_are_no_files_are_refused_with_the_code_of_the_system() {
    let directory = TempDir::new();
    let fifo = directory.path().join("fifo");
    let name = std::ffi::CString::new(fifo.to_str().unwrap()).unwrap();
    // SAFETY: a path that ends in NUL.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let missing = directory.path().join("missing.gguf");
    let below_a_file = directory.file("file", b"x").join("model.gguf");
    for (path, expected) in [
        (missing.as_path(), libc::ENOENT),
        (directory.path(), libc::EISDIR),
        (&fifo, libc::ESPIPE),
        (Path::new("/dev/null"), libc::ESPIPE),
        (&below_a_file, libc::ENOTDIR),
    ] {
        for mmap in [true, false] {
            match ModelFile::open(Source::Path(path), mmap).err() {
                Some(Error::Io { message, errno }) => {
                    assert_eq!(errno, expected, "{message}");
                    assert!(message.contains(path.to_str().unwrap()), "{message}");
                }
                other => panic!("{}: {other:?}", path.display()),
            }
        }
    }
}

#[test]
fn files_that_are_something_else_are_refused_by_name() {
    let directory = TempDir::new();
    let (variant, text) = refusal(open(&directory.file("empty.gguf", b"")));
    assert!(variant == "Format" && text.contains("empty.gguf") && text.contains("empty"), "{text}");
    damaged(b"", &["magic"]);
    damaged(b"GGU", &["magic"]);
    damaged(b"\x10\0\0\0\0\0\0\0{\"x\":", &["not a GGUF file"]);
    damaged(b"version https://git-lfs.github.com/spec/v1\n", &["git lfs pull"]);
    says("Unsupported", b"tjgg\x03\0\0\0", &["before GGUF"]);
    says("Unsupported", &with("version", 1), &["version 1"]);
    says("Unsupported", &with("version", 4), &["version 4"]);
    says("Unsupported", &with("version", 0), &["version 0"]);
    for version in [1u32, 2, 3] {
        says("Unsupported", &with("version", version.swap_bytes().into()), &["big-endian"]);
    }
}

// Files that end too early.

#[test]
fn a_small_file_cut_at_any_byte_is_refused() {
    let bytes = small().write(3);
    assert!(survives(&bytes, String::new));
    for len in 0..bytes.len() {
        assert!(!survives(&bytes[..len], || format!("{len} bytes")), "{len} of {} bytes", bytes.len());
    }
}

#[test]
fn a_model_cut_at_2000_places_is_refused() {
    let spec = ModelSpec { vocabulary: Vocabulary::Gpt2 { pre: "smollm" }, ..ModelSpec::tiny("qwen3") };
    let bytes = random_model(&spec);
    assert!(survives(&bytes, String::new));
    let mut rng = Rng::new(11);
    let near_the_ends = (0..500).chain(bytes.len() - 500..bytes.len());
    for len in near_the_ends.chain((0..1000).map(|_| rng.below(bytes.len()))) {
        assert!(!survives(&bytes[..len], || format!("{len} bytes")), "{len} of {} bytes", bytes.len());
    }
}

// Integers that lie.

const HOSTILE: [u64; 13] = [
    0,
    1,
    (1 << 31) - 1,
    1 << 31,
    (1 << 31) + 1,
    (1 << 32) - 1,
    1 << 32,
    (1 << 32) + 1,
    (1 << 63) - 1,
    1 << 63,
    (1 << 63) + 1,
    u64::MAX - 1,
    u64::MAX,
];

/// Whether the value of this field is free: it describes nothing else.
fn is_free(field: &Field) -> bool {
    field.what.starts_with("value of") && !field.what.ends_with("length") && !field.what.contains("alignment")
}

#[test]
fn every_integer_of_the_header_may_be_hostile() {
    let (good, fields) = small().write_with_fields(3);
    assert!(fields.len() > 60);
    for field in &fields {
        for value in HOSTILE {
            let mut bytes = good.clone();
            put(&mut bytes, field, value);
            let accepted = survives(&bytes, || format!("{} = {value}", field.what));
            let cut = if field.width == 8 { value } else { value & ((1 << (8 * field.width)) - 1) };
            assert!(!accepted || is_free(field) || cut < 1 << 30, "{} = {value} is accepted", field.what);
            assert!(accepted || !is_free(field), "{} = {value} is refused", field.what);
        }
    }
}

#[test]
fn every_pair_of_integers_of_the_header_may_be_hostile() {
    let (good, fields) = small().write_with_fields(3);
    let values = [0, 1, 1 << 31, 1 << 32, 1 << 62, u64::MAX];
    for (i, a) in fields.iter().enumerate() {
        for b in &fields[i + 1..] {
            for (x, y) in values.iter().flat_map(|&x| values.map(|y| (x, y))) {
                let mut bytes = good.clone();
                put(&mut bytes, a, x);
                put(&mut bytes, b, y);
                survives(&bytes, || format!("{} = {x}, {} = {y}", a.what, b.what));
            }
        }
    }
}

#[test]
fn counts_and_lengths_that_lie_are_refused_by_name() {
    damaged(&with("key count", 65_537), &["number of keys", "65537", "at byte 16"]);
    damaged(&with("key count", 65_536), &["number of keys", "65536"]);
    damaged(&with("tensor count", u64::MAX), &["number of tensors", "at byte 8"]);
    damaged(&with("tensor count", 4), &["tensor"]);
    damaged(&with("key count", 100), &["key"]);
    damaged(&with("key u16 length", (64 << 20) + 1), &["key 4", "at byte", "67108865"]);
    damaged(&with("key u16 length", 0), &["key 4", "empty"]);
    damaged(&with("value of general.architecture length", u64::MAX), &["\"general.architecture\"", "at byte"]);
    damaged(&with("count of ints", 1 << 62), &["\"ints\"", "4 bytes each"]);
    damaged(&with("count of tokenizer.ggml.tokens", u64::MAX), &["\"tokenizer.ggml.tokens\""]);
    damaged(&with("first length of names", 1 << 40), &["element 0", "\"names\""]);
    damaged(&with("tensor matrix length", 0), &["tensor 1", "empty"]);
}

#[test]
fn wrong_types_are_refused_by_name() {
    damaged(&with("type of u16", 13), &["\"u16\"", "13", "at byte"]);
    damaged(&with("type of bool", u64::MAX), &["\"bool\""]);
    damaged(&with("element type of ints", 13), &["\"ints\"", "13"]);
    says("Unsupported", &with("element type of ints", 9), &["\"ints\"", "array of arrays"]);
    let mut writer = small();
    damaged(&writer.kv_raw(b"two", kind::BOOL, &[2]).write(3), &["\"two\"", "bool of 2"]);
    let array = Array { element: kind::BOOL, count: 3, bytes: vec![1, 0, 255] };
    damaged(&small().kv_array("many", &array).write(3), &["\"many\"", "bool of 255"]);
}

#[test]
fn text_that_is_not_utf_8_is_refused_except_tokens() {
    damaged(&small().kv_raw(b"bad\xff", kind::U8, &[0]).write(3), &["bad\\xff", "UTF-8", "at byte"]);
    damaged(&small().kv_raw(b"s", kind::STRING, &[1, 0, 0, 0, 0, 0, 0, 0, 0x80]).write(3), &["\"s\"", "UTF-8"]);
    damaged(&small().kv_strings("list", &[b"ok".as_slice(), b"\xc3"]).write(3), &["\"list\"", "element 1", "UTF-8"]);
    damaged(&small().tensor_raw(b"\xfe", &[1], 0, None, vec![0; 4]).write(3), &["\\xfe", "UTF-8"]);
    let endless = "k".repeat(70_000);
    damaged(&small().kv_u8(&endless, 0).write(3), &["70000", "at most 65535"]);
}

#[test]
fn a_name_in_a_message_is_short_and_printable() {
    let name = format!("\n\x1b[31m{}", "x".repeat(5000));
    let (_, text) =
        with_model_file(&small().tensor_raw(name.as_bytes(), &[1, 0], 0, None, vec![]).write(3), |result| {
            refusal(result)
        });
    assert!(text.len() < 250 && text.contains("\\n\\x1b[31mxx"), "{text}");
    assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
}

#[test]
fn the_same_name_twice_is_refused() {
    damaged(&small().kv_u32("u8", 1).write(3), &["key \"u8\"", "another"]);
    damaged(&small().alignment(64).write(3), &["\"general.alignment\"", "another"]);
    let twice = small().tensor("matrix", &[1], Format::F32, vec![0; 4]).write(3);
    damaged(&twice, &["tensor \"matrix\"", "another"]);
}

#[test]
fn alignments_that_are_none_are_refused() {
    for alignment in [0, 1, 3, 4, 96, (1 << 20) + 1, 1 << 21, u32::MAX] {
        damaged(&with("value of general.alignment", alignment.into()), &["\"general.alignment\"", "power of two"]);
    }
    for alignment in [8, 32, 4096, 1 << 20] {
        let mut writer = GgufWriter::new();
        writer.alignment(alignment).tensor("a", &[3], Format::F32, vec![1; 12]).tensor(
            "b",
            &[1],
            Format::F16,
            vec![2; 2],
        );
        assert!(survives(&writer.write(3), String::new), "{alignment}");
    }
    let mut wide = GgufWriter::new();
    damaged(&wide.kv_u64("general.alignment", 1 << 40).write(3), &["\"general.alignment\"", "u64"]);
    damaged(&GgufWriter::new().kv_str("general.alignment", "32").write(3), &["\"general.alignment\"", "string"]);
}

#[test]
fn shapes_that_cannot_be_are_refused_by_tensor() {
    for (dimensions, shape) in [(0, [].as_slice()), (5, &[1; 5])] {
        let bytes = small().tensor_raw(b"t", shape, 0, None, vec![0; 4]).write(3);
        damaged(&bytes, &["tensor \"t\"", &format!("{dimensions} dimensions"), "at byte"]);
    }
    damaged(&with("dimension 1 of matrix", 0), &["\"matrix\"", "dimension 1 is 0"]);
    damaged(&with("dimension 0 of matrix", 33), &["\"matrix\"", "whole Q4_0 blocks of 32"]);
    damaged(&with("dimension 0 of cube", 128), &["\"cube\"", "whole Q4_K blocks of 256"]);
    for shape in [[1 << 32, 1 << 32, 1, 1], [1 << 31, 1 << 31, 2, 2], [1 << 60, 16, 1, 1], [u64::MAX - 31, 1, 1, 1]] {
        for format in [Format::F32, Format::F16, Format::Q8_0, Format::Q4_0] {
            let bytes = small().tensor("t", &shape, format, vec![0; 64]).write(3);
            damaged(&bytes, &["tensor \"t\"", "too large"]);
        }
    }
    // The bytes of this product wrap around to few: CVE-2026-33298.
    let bytes = small().tensor("t", &[1 << 30, 1 << 30, 4, 1], Format::F32, vec![0; 64]).write(3);
    damaged(&bytes, &["tensor \"t\"", "too large"]);
}

#[test]
fn tensors_outside_the_file_or_over_each_other_are_refused() {
    damaged(&with("offset of matrix", 32), &["\"matrix\"", "offset 32", "alignment 64"]);
    damaged(&with("offset of cube", 1 << 20), &["\"cube\"", "do not fit"]);
    damaged(&with("offset of cube", u64::MAX - 63), &["\"cube\"", "do not fit"]);
    damaged(&with("offset of cube", 64), &["\"cube\"", "overlaps", "\"matrix\""]);
    damaged(&with("dimension 1 of matrix", 5), &["\"cube\"", "overlaps", "\"matrix\""]);
    damaged(&with("dimension 2 of cube", 3), &["\"cube\"", "do not fit"]);
    // One behind the other in the other order is fine.
    let mut writer = GgufWriter::new();
    writer.tensor_raw(b"b", &[4], 0, Some(32), vec![0; 16]).tensor_raw(b"a", &[4], 0, Some(0), vec![0; 16]);
    assert!(survives(&writer.write(3), String::new));
}

#[test]
fn formats_that_do_not_run_here_are_refused_by_tensor_and_name() {
    for (id, name) in [(23, "IQ4_XS"), (38, "TL1"), (39, "MXFP4"), (26, "I32"), (4, "Q4_2"), (77, "type 77")] {
        says("Unsupported", &with("type of matrix", id), &["tensor \"matrix\"", name, "not supported"]);
    }
}

// Anything.

#[test]
fn flipped_bytes_never_panic() {
    let good = small().write(3);
    let mut rng = Rng::new(5);
    let mut bytes = good.clone();
    for round in 0..20_000 {
        let flips: Vec<usize> = (0..1 + round % 3).map(|_| rng.below(good.len())).collect();
        flips.iter().for_each(|&at| bytes[at] = rng.byte());
        survives(&bytes, || format!("round {round}: {flips:?}"));
        flips.iter().for_each(|&at| bytes[at] = good[at]);
    }
}

#[test]
fn each_single_bit_flip_never_panics() {
    let mut bytes = small().write(3);
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        survives(&bytes, || format!("bit {bit}"));
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn random_bytes_behind_a_good_magic_never_panic() {
    let mut rng = Rng::new(17);
    for round in 0..20_000 {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        // Mostly small numbers: random counts would be refused at once.
        let len = rng.below(400);
        bytes.extend((0..len).map(|_| if rng.below(3) > 0 { rng.byte() & 3 & rng.byte() } else { rng.byte() }));
        survives(&bytes, || format!("round {round}"));
    }
}
