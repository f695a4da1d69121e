//! I2_S in every order of codes that bitnet.cpp writes: named, a model is the same to the last bit.

mod common;

use common::{
    Formats, GgufWriter, ModelSpec, in_i2s_layout, random_blocks, random_model, random_model_writer, refusal,
};
use edgellm::quant::Format;
use edgellm::{I2sLayout, LoadOptions, Model, Result, Session, SessionOptions, Source, cpu};
use std::path::Path;

const OTHERS: [I2sLayout; 2] = [I2sLayout::Block64, I2sLayout::Rows4];

fn fixture() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/fixtures/bitnet-i2_s.gguf");
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Bits of the logits after a few tokens at once and after one more.
fn logits(source: Source<'_>, options: LoadOptions<'_>) -> Result<Vec<u32>> {
    let mut session = Session::new(&Model::load(source, options)?, &SessionOptions::default())?;
    let mut bits = Vec::new();
    for tokens in [&[1u32, 2, 3, 5, 8, 13, 21, 34, 55][..], &[7]] {
        session.append(tokens)?;
        assert!(session.forward(None)?);
        bits.extend(session.logits()?.iter().map(|logit| logit.to_bits()));
    }
    Ok(bits)
}

/// A file in blocks of 128 has the same logits in the other orders, when they are named and only then.
fn is_the_same_when_named(bytes: Vec<u8>) -> Result<()> {
    let bytes = common::forever(bytes);
    for exact in [false, true] {
        let options = || LoadOptions { exact, threads: 2, ..LoadOptions::default() };
        let expected = logits(Source::Bytes(bytes), options())?;
        for i2s_layout in OTHERS {
            let named = || LoadOptions { i2s_layout, ..options() };
            let other = common::forever(in_i2s_layout(bytes, i2s_layout));
            assert_eq!(logits(Source::Bytes(other), named())?, expected, "{i2s_layout:?}, exact: {exact}");
            assert_ne!(logits(Source::Bytes(other), options())?, expected, "{i2s_layout:?}, not named");
            assert_ne!(logits(Source::Bytes(bytes), named())?, expected, "{i2s_layout:?}, but it is not");
        }
    }
    Ok(())
}

#[test]
fn named_layouts_are_the_same_model() -> Result<()> {
    assert_eq!(in_i2s_layout(&fixture(), I2sLayout::Block128), fixture());
    is_the_same_when_named(fixture())
}

#[test]
fn named_layouts_are_the_same_model_for_every_kernel_table_and_thread_count() -> Result<()> {
    let expected = logits(Source::Bytes(common::forever(fixture())), LoadOptions::default())?;
    for i2s_layout in OTHERS {
        let other = common::forever(in_i2s_layout(&fixture(), i2s_layout));
        for isa in cpu::available().map(cpu::Kernels::name) {
            for threads in [1, 3] {
                let options = LoadOptions { i2s_layout, threads, isa: Some(isa), ..LoadOptions::default() };
                assert_eq!(logits(Source::Bytes(other), options)?, expected, "{i2s_layout:?} {isa} {threads} threads");
            }
        }
    }
    Ok(())
}

/// The last tile of 316 rows is not full; an embedding that is not the head is read by rows, from the file or a copy.
#[test]
fn embeddings_and_heads_are_the_same_too() -> Result<()> {
    for tied in [false, true] {
        let formats = Formats::all(Format::I2_S);
        let spec = ModelSpec { formats, tied, vocab: 316, ..ModelSpec::tiny("bitnet-b1.58") };
        is_the_same_when_named(random_model(&spec))?;
    }
    let folder = common::TempDir::new();
    let spec = ModelSpec { formats: Formats::all(Format::I2_S), ..ModelSpec::tiny("bitnet-b1.58") };
    let bytes = random_model(&spec);
    let path = folder.file("block128.gguf", &bytes);
    let expected = logits(Source::Path(&path), LoadOptions::default())?;
    for i2s_layout in OTHERS {
        let path = folder.file("other.gguf", &in_i2s_layout(&bytes, i2s_layout));
        for mmap in [false, true] {
            let options = LoadOptions { i2s_layout, mmap, ..LoadOptions::default() };
            assert_eq!(logits(Source::Path(&path), options)?, expected, "{i2s_layout:?}, mmap: {mmap}");
        }
    }
    Ok(())
}

#[test]
fn a_layout_is_nothing_to_a_file_without_i2_s() -> Result<()> {
    let spec = ModelSpec { formats: Formats::ternary(Format::TQ2_0), ..ModelSpec::tiny("bitnet-b1.58") };
    let bytes = common::forever(random_model(&spec));
    let expected = logits(Source::Bytes(bytes), LoadOptions::default())?;
    for i2s_layout in OTHERS {
        assert_eq!(logits(Source::Bytes(bytes), LoadOptions { i2s_layout, ..LoadOptions::default() })?, expected);
    }
    Ok(())
}

/// What is said of a BitNet with this tensor in I2_S.
fn refused(name: &str, shape: &[u64], i2s_layout: I2sLayout) -> (&'static str, String) {
    let spec = ModelSpec { formats: Formats::ternary(Format::I2_S), vocab: 318, ..ModelSpec::tiny("bitnet-b1.58") };
    let mut writer: GgufWriter = random_model_writer(&spec);
    let count = shape.iter().product::<u64>() as usize;
    let bytes = random_blocks(&mut common::Rng::new(3), Format::I2_S, count, 0.1);
    writer.remove_tensor(name).tensor(name, shape, Format::I2_S, bytes);
    let bytes = writer.write(3).leak();
    refusal(Model::load(Source::Bytes(bytes), LoadOptions { i2s_layout, threads: 1, ..LoadOptions::default() }))
}

#[test]
fn a_tensor_that_the_layout_cannot_hold_is_refused_with_its_name() {
    let (head, shape) = ("output.weight", [256, 318]);
    let (kind, text) = refused(head, &shape, I2sLayout::Rows4);
    assert_eq!(kind, "Format");
    assert_eq!(text, format!("tensor `{head}` has 318 rows, which I2_S in groups of 4 rows cannot hold"));
    let norm = "blk.1.attn_norm.weight";
    let (kind, text) = refused(norm, &[256], I2sLayout::Block64);
    assert_eq!(kind, "Unsupported");
    assert_eq!(text, format!("tensor `{norm}`: a vector in I2_S is read in blocks of 128 only"));
    let (kind, text) = refused(norm, &[256], I2sLayout::Rows4);
    assert_eq!((kind, text.contains(norm)), ("Format", true), "{text}");
}
