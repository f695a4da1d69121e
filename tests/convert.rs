//! Folders of random BitNet models, converted: every number of the file is what the folder says.
#![cfg(feature = "cli")]

mod common;

use common::folder::{Dtype, Folder, HEAD_DIM, HIDDEN, LAYERS, LLAMA3, Stored, VOCAB};
use common::{Rng, TempDir};
use edgellm::convert::{self, Options, Report};
use edgellm::file::{ModelFile, Source};
use edgellm::quant::Format;
use edgellm::{Error, LoadOptions, Model, Session, SessionOptions};
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const BITNET: &str = "BitNetForCausalLM";
const LINEAR: [Format; 3] = [Format::TQ2_0, Format::TQ1_0, Format::I2_S];
const EMBEDDING: [Format; 3] = [Format::Q8_0, Format::Q6_K, Format::F16];

fn options(linear: Format, embedding: Format) -> Options {
    Options { linear, embedding, force: true, verify: false }
}

fn convert(folder: &Path, out: &Path, options: &Options) -> Result<Report, Error> {
    convert::convert(folder, out, options, &mut |_, _, _| true)
}

/// A converted file, and the temporary folder that it is in.
struct Converted {
    _folder: TempDir,
    path: PathBuf,
}

impl Converted {
    #[track_caller]
    fn new(folder: &Folder, options: &Options) -> Converted {
        let (temporary, path) = folder.place();
        let out = temporary.path().join("out.gguf");
        assert!(convert(&path, &out, options).unwrap().written());
        Converted { _folder: temporary, path: out }
    }

    fn file(&self) -> ModelFile {
        ModelFile::open(Source::Path(&self.path), true).unwrap()
    }
}

/// The values of a tensor of the file.
fn values(file: &ModelFile, name: &str) -> (Format, Vec<f32>) {
    let tensor = file.tensor(name).unwrap_or_else(|| panic!("no {name}"));
    let mut values = vec![f32::NAN; tensor.shape.iter().product()];
    tensor.format.dequantize(tensor.bytes, &mut values);
    values.iter_mut().for_each(|value| *value *= tensor.scale);
    (tensor.format, values)
}

const PARTS: [(&str, &str); 7] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Each linear layer of the file has exactly the folder's weights. `rows`: where row `r` of a part is in the folder.
#[track_caller]
fn assert_layers(file: &ModelFile, folder: &Folder, linear: Format, rows: impl Fn(&str, usize) -> usize) {
    for layer in 0..LAYERS {
        for (theirs, ours) in PARTS {
            let expected = &folder.layers[&format!("model.layers.{layer}.{theirs}.weight")];
            let (format, found) = values(file, &format!("blk.{layer}.{ours}.weight"));
            assert_eq!(format, linear);
            let scale = match linear {
                Format::I2_S => expected.scale,
                _ => half::f16::from_f32(expected.scale).to_f32(),
            };
            for (r, found) in found.chunks(expected.columns).enumerate() {
                let codes = &expected.codes[rows(ours, r) * expected.columns..][..expected.columns];
                let expected: Vec<f32> = codes.iter().map(|code| f32::from(*code) * scale).collect();
                assert_eq!(found, expected, "layer {layer}, {ours}, row {r}");
            }
        }
    }
}

/// A table is as near to the folder's as its format allows.
#[track_caller]
fn assert_table(file: &ModelFile, name: &str, expected: &[f32], embedding: Format) {
    let (format, found) = values(file, name);
    assert_eq!(format, embedding);
    let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    // Half a step of a block's largest value, and what its scale is rounded by.
    let tolerance = largest
        * if embedding == Format::F16 {
            1e-3
        } else if embedding == Format::Q8_0 {
            0.6 / 127.0
        } else {
            1.0 / 31.0
        };
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance, "{name} {i}: {found} {expected}");
    }
}

/// The model runs, and its logits are numbers.
#[track_caller]
fn assert_runs(path: &Path) {
    let model = Model::load(Source::Path(path), LoadOptions { threads: 1, ..LoadOptions::default() }).unwrap();
    let mut session = Session::new(&model, &SessionOptions { context_len: 8, ..SessionOptions::default() }).unwrap();
    session.prompt(&[1, 2, 3]).unwrap();
    session.forward(None).unwrap();
    let logits = session.logits().unwrap();
    assert!(logits.iter().all(|logit| logit.is_finite()) && logits.iter().any(|logit| *logit != logits[0]));
}

#[test]
fn every_format_holds_the_numbers_of_the_folder_in_both_meanings_of_the_scale() {
    for stored in [Stored::Multiply, Stored::Divide] {
        let folder = Folder::random(BITNET, stored);
        for linear in LINEAR {
            for embedding in EMBEDDING {
                let converted = Converted::new(&folder, &options(linear, embedding));
                let file = converted.file();
                assert_layers(&file, &folder, linear, |_, r| r);
                assert_table(&file, "token_embd.weight", &folder.floats("model.embed_tokens.weight"), embedding);
                let (format, norm) = values(&file, "blk.1.ffn_sub_norm.weight");
                assert_eq!(format, Format::F32);
                assert_eq!(norm, folder.floats("model.layers.1.mlp.ffn_sub_norm.weight"));
                assert!(file.tensor("output.weight").is_none());
                assert_runs(&converted.path);
            }
        }
    }
}

#[test]
fn masters_become_what_training_used() {
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let mut folder = Folder::random(BITNET, Stored::Masters(dtype));
        if dtype == Dtype::F16 {
            folder.config["quantization_config"] = Json::Null; // As the first models have it.
        }
        for linear in LINEAR {
            let converted = Converted::new(&folder, &options(linear, Format::Q8_0));
            assert_layers(&converted.file(), &folder, linear, |_, r| r);
        }
    }
}

#[test]
fn metadata_says_what_the_configuration_says() {
    let mut folder = Folder::random(BITNET, Stored::Multiply);
    folder
        .files
        .insert("README.md".into(), "---\nlanguage: en\nlicense: apache-2.0\n---\n# A card\nlicense: no\n".into());
    let converted = Converted::new(&folder, &options(Format::TQ2_0, Format::Q8_0));
    let file = converted.file();
    let m = &file.metadata;
    for (key, expected) in [
        ("general.architecture", "bitnet-b1.58"),
        ("general.name", "random"),
        ("general.license", "apache-2.0"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "qwen2"),
    ] {
        assert_eq!(m.string(key).unwrap(), Some(expected), "{key}");
    }
    for (key, expected) in [
        ("block_count", LAYERS),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", 512),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("context_length", 512),
        ("vocab_size", VOCAB),
        ("rope.dimension_count", HEAD_DIM),
    ] {
        assert_eq!(m.uint(&format!("bitnet-b1.58.{key}")).unwrap(), Some(expected as u64), "{key}");
    }
    assert_eq!(m.uint("general.file_type").unwrap(), Some(37));
    assert_eq!(m.float("bitnet-b1.58.rope.freq_base").unwrap(), Some(500_000.0));
    assert_eq!(m.float("bitnet-b1.58.attention.layer_norm_rms_epsilon").unwrap(), Some(1e-5));
}

#[test]
fn silu_is_the_architecture_of_llama_cpp_and_old_names_of_norms_are_known() {
    let mut folder = Folder::random("BitnetForCausalLM", Stored::Divide);
    folder.config["hidden_act"] = json!("silu");
    for layer in 0..LAYERS {
        for (new, old) in
            [("self_attn.attn_sub_norm", "self_attn.inner_attn_ln"), ("mlp.ffn_sub_norm", "mlp.ffn_layernorm")]
        {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            let tensor = folder.tensors.remove(&name(new)).unwrap();
            folder.tensors.insert(name(old), tensor);
        }
    }
    let converted = Converted::new(&folder, &options(Format::TQ2_0, Format::Q8_0));
    assert_eq!(converted.file().metadata.string("general.architecture").unwrap(), Some("bitnet"));
    let norm = values(&converted.file(), "blk.0.attn_sub_norm.weight").1;
    assert_eq!(norm, folder.floats("model.layers.0.self_attn.inner_attn_ln.weight"));
    assert_runs(&converted.path);
}

#[test]
fn llama_gets_its_rows_in_pairs_its_own_head_and_its_scaling() {
    let mut folder = Folder::random("LlamaForCausalLM", Stored::Divide);
    folder.config["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let converted = Converted::new(&folder, &options(Format::TQ2_0, Format::Q8_0));
    let file = converted.file();
    // Adjacent rows of q and k are half a head apart in the folder.
    assert_layers(&file, &folder, Format::TQ2_0, |part, r| match part {
        "attn_q" | "attn_k" => r / HEAD_DIM * HEAD_DIM + r % 2 * (HEAD_DIM / 2) + r % HEAD_DIM / 2,
        _ => r,
    });
    assert_table(&file, "output.weight", &folder.floats("lm_head.weight"), Format::Q8_0);
    // Base 500000, heads of 64: pair 0 turns once in 2 pi positions, pair 31 once in 2 million.
    let divisors = values(&file, "rope_freqs.weight").1;
    assert_eq!((divisors.len(), divisors[0], divisors[31]), (32, 1.0, 8.0));
    assert!(divisors.is_sorted() && divisors.iter().any(|divisor| (1.1..7.9).contains(divisor)), "{divisors:?}");
    assert_runs(&converted.path);
}

#[test]
fn shards_and_a_second_run_give_the_same_bytes() {
    let folder = Folder::random(BITNET, Stored::Multiply);
    let (temporary, whole) = folder.place();
    let sharded = temporary.path().join("deeper").join("random");
    folder.write_sharded(&sharded, 3);
    let bytes = |from: &Path| {
        let out = temporary.path().join("out.gguf");
        convert(from, &out, &options(Format::TQ1_0, Format::Q6_K)).unwrap();
        std::fs::read(&out).unwrap()
    };
    let first = bytes(&whole);
    assert!(first == bytes(&whole) && first == bytes(&sharded));
}

// ---- the tokenizer ----

/// The tokens of the converted file equal those of the folder's `tokenizer.json`, read by the crate that defines it.
#[track_caller]
fn assert_same_tokens(folder: &Folder) -> Arc<Model> {
    let converted = Converted::new(folder, &options(Format::TQ2_0, Format::Q8_0));
    let model =
        Model::load(Source::Path(&converted.path), LoadOptions { threads: 1, ..LoadOptions::default() }).unwrap();
    let theirs: tokenizers::Tokenizer = folder.tokenizer.to_string().parse().unwrap();
    let ours = model.tokenizer().unwrap();
    for text in ["hello the hello", "a 12 1234 x", "don't  stop\n\n é ", "c<|im_start|>a<tool>b<|im_end|>", ""] {
        let expected = theirs.encode(text, true).unwrap();
        assert_eq!(ours.encode(text, true, true).unwrap(), expected.get_ids(), "{text:?}");
    }
    drop(converted);
    model
}

#[test]
fn tokens_are_those_of_the_folders_tokenizer() {
    assert_same_tokens(&Folder::random(BITNET, Stored::Multiply));
}

#[test]
fn llama_3_takes_whole_pieces_and_adds_its_bos() {
    let mut folder = Folder::random(BITNET, Stored::Multiply);
    folder.tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(LLAMA3);
    folder.tokenizer["model"]["ignore_merges"] = json!(true);
    let special = json!({ "<|im_start|>": { "id": "<|im_start|>", "ids": [273], "tokens": ["<|im_start|>"] } });
    let (bos, text) = (
        json!({ "SpecialToken": { "id": "<|im_start|>", "type_id": 0 } }),
        |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } }),
    );
    folder.tokenizer["post_processor"] = json!({ "type": "Sequence", "processors": [
        { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true },
        {
            "type": "TemplateProcessing", "single": [bos, text("A")], "pair": [bos, text("A"), bos, text("B")],
            "special_tokens": special,
        },
    ] });
    let model = assert_same_tokens(&folder);
    assert_eq!(model.metadata().string("tokenizer.ggml.pre").unwrap(), Some("llama-bpe"));
    assert_eq!(model.tokenizer().unwrap().encode("stop", true, false).unwrap(), [273, 272]);
}

#[test]
fn every_end_of_the_folder_ends_generation() {
    let mut folder = Folder::random(BITNET, Stored::Multiply);
    let model = assert_same_tokens(&folder);
    assert_eq!(model.tokenizer().unwrap().eos(), [274, 275]); // <|stop|> is no name that the loader knows.
    assert_eq!(model.metadata().uint("tokenizer.ggml.eos_token_id").unwrap(), Some(274));
    folder.generation = json!({ "eos_token_id": [1, 275] });
    let model = assert_same_tokens(&folder);
    assert_eq!(model.tokenizer().unwrap().eos(), [1, 274, 275]);
}

#[test]
fn a_chat_template_of_its_own_file_wins_and_several_keep_their_names() {
    let template = |folder: &Folder, key: &str| {
        let converted = Converted::new(folder, &options(Format::TQ2_0, Format::Q8_0));
        converted.file().metadata.string(key).unwrap().map(str::to_owned)
    };
    let mut folder = Folder::random(BITNET, Stored::Multiply);
    let key = "tokenizer.chat_template";
    assert_eq!(template(&folder, key).as_deref(), folder.tokenizer_config["chat_template"].as_str());
    let several = json!([{ "name": "default", "template": "a" }, { "name": "tool_use", "template": "b" }]);
    folder.tokenizer_config["chat_template"] = several;
    assert_eq!(template(&folder, key).as_deref(), Some("a"));
    assert_eq!(template(&folder, "tokenizer.chat_template.tool_use").as_deref(), Some("b"));
    folder.files.insert("chat_template.jinja".into(), "c".into());
    assert_eq!(template(&folder, key).as_deref(), Some("c"));
}

// ---- the program ----

fn command(args: &[&str]) -> Command {
    let mut command = common::cross::program(env!("CARGO_BIN_EXE_edgellm"));
    command.arg("convert").args(args).stdin(Stdio::null());
    command
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_program_converts_compares_and_never_replaces_unasked() {
    let (temporary, folder) = Folder::random(BITNET, Stored::Divide).place();
    let out = temporary.path().join("out.gguf");
    let args = [text(&folder), "-o", text(&out), "--type", "i2_s", "--embedding", "f16", "--verify"];
    let output = command(&args).output().unwrap();
    let (stdout, stderr) = said(&output);
    assert!(output.status.success() && stderr.is_empty(), "{stderr}");
    for expected in
        ["bitnet-b1.58", "over weight_scale (as config.json says)", "same most likely token          100.0 %"]
    {
        assert!(stdout.contains(expected), "{stdout}");
    }
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 2);
    let before = std::fs::read(&out).unwrap();

    let output = command(&args).output().unwrap();
    let (stdout, stderr) = said(&output);
    assert!(output.status.code() == Some(1) && stdout.is_empty(), "{stdout}");
    assert!(stderr.starts_with("edgellm: ") && stderr.contains("--force"), "{stderr}");
    assert_eq!(std::fs::read(&out).unwrap(), before);

    let output = command(&[&args[..], &["--force"]].concat()).output().unwrap();
    assert!(output.status.success());
    assert_eq!(std::fs::read(&out).unwrap(), before);
}

#[test]
fn a_file_that_says_something_else_is_not_kept() {
    let mut folder = Folder::random(BITNET, Stored::Multiply);
    // One value a block that is far larger than the others leaves them no bits in Q8_0.
    let mut rng = Rng::new(3);
    let embedding = folder.tensors.get_mut("model.embed_tokens.weight").unwrap();
    for (i, bytes) in embedding.bytes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let value = if i % 32 == 0 { 512.0 } else { rng.range(-1.0, 1.0) };
        *bytes = half::bf16::from_f32(value).to_le_bytes();
    }
    let (temporary, folder) = folder.place();
    let out = temporary.path().join("out.gguf");
    let output = command(&[text(&folder), "-o", text(&out), "--verify"]).output().unwrap();
    let (stdout, stderr) = said(&output);
    assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
    assert!(stdout.contains("same most likely token") && stderr.contains("not written"), "{stdout}{stderr}");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 1);
    assert!(command(&[text(&folder), "-o", text(&out)]).output().unwrap().status.success());
}

/// A folder that takes a while: its head is quantized to Q6_K.
fn slow_folder() -> (TempDir, PathBuf) {
    let mut folder = Folder::random("LlamaForCausalLM", Stored::Divide);
    let rows = 100_000;
    folder.config["vocab_size"] = json!(rows);
    let mut rng = Rng::new(5);
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let tensor = folder.tensors.get_mut(name).unwrap();
        tensor.shape[0] = rows;
        tensor.bytes.resize_with(2 * HIDDEN * rows, || rng.byte() & 0xBF); // Neither infinite nor large.
    }
    folder.place()
}

#[test]
fn a_conversion_that_is_killed_or_stopped_leaves_no_file() {
    let (temporary, folder) = slow_folder();
    let out = temporary.path().join("out.gguf");
    let entries = || std::fs::read_dir(temporary.path()).unwrap().count();
    for (signal, left_over) in [(libc::SIGINT, 0), (libc::SIGTERM, 0), (libc::SIGKILL, 1)] {
        let mut child = command(&[text(&folder), "-o", text(&out), "--embedding", "q6_k"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let from = Instant::now();
        while entries() == 1 {
            assert!(from.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(1));
        }
        // SAFETY: the child has not been waited for, so its number is still its own.
        assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success() && !out.exists(), "{signal}: {}", output.status);
        assert_eq!(entries(), 1 + left_over, "{signal}");
    }
    // What a kill left is in nobody's way.
    assert!(command(&[text(&folder), "-o", text(&out)]).output().unwrap().status.success() && out.exists());
}
